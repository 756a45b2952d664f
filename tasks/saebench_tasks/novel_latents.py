"""Is the smaller dictionary complete? Which latents of an SAE have no counterpart in a reference SAE.

Leask et al., section 4.2, equation 6, and the stitching post that preceded it, "How similar are features in SAEs of
different widths?". With decoder directions w1 of the SAE under test and w0 of the reference, in the SAEs' input space::

    m_i = max_j cos(w1_i, w0_j)
    latent i is novel           when m_i ≤ theta
    latent i is reconstruction  when m_i > theta

The post counts equality as novel; equation 6 leaves it open. theta is 0.7 for GPT-2 and was 0.4 for Gemma Scope.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from saebench_meta.errors import SaebenchError
from saebench_meta.hookspecs import hookimpl
from saebench_meta.task import Figure, Metric, Output, Pair, Table, Task, task

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from jaxtyping import Float, Int

    from saebench_meta.context import Context
    from saebench_meta.sae import SAE
    from saebench_meta.stats import Estimate

saebench_api = 1

_NO_ORDER = "a high ratio may mean a richer dictionary or a worse one; random directions are nearly all novel"

METRICS = (
    Metric(
        "novel_ratio",
        "neither",
        "fraction",
        main=True,
        why=_NO_ORDER,
        help="Share of this SAE's latents whose largest decoder cosine with the reference is at most theta.",
    ),
    Metric(
        "mirrored_ratio",
        "neither",
        "fraction",
        why=_NO_ORDER,
        help="Share of the reference's latents that have no counterpart in this SAE, by the same rule.",
    ),
    Metric(
        "mean_max_cosine",
        "neither",
        "1",
        why=_NO_ORDER,
        help="Mean over this SAE's latents of the largest decoder cosine with the reference.",
    ),
)


@dataclass(frozen=True)
class Matches:
    """The nearest direction of the other dictionary for latents of one.

    Attributes:
        latent: which latents were looked at.
        of: how many the dictionary has.
        cosine: m_i, float64.
        nearest: the latent of the other dictionary.
    """

    latent: Int[np.ndarray, " latents"]
    of: int
    cosine: Float[np.ndarray, " latents"]
    nearest: Int[np.ndarray, " latents"]


@task(
    "novel_latents",
    version=1,
    subject="pair",
    metrics=METRICS,
    needs=["reference"],
    controls=["random", "permuted_columns"],
    limit_unit="latents",
    source="Leask et al. 2025, section 4.2, equation 6",
)
def novel_latents(pair: Pair, ctx: Context, *, threshold: float = 0.7) -> Output:
    """Share of this SAE's latents that the reference SAE has no counterpart for, and the other way round.

    Args:
        threshold: theta, the largest cosine at which a latent still counts as novel.

    Raises:
        SaebenchError: if the two SAEs differ in site, width or input transform, or theta is no cosine.
    """
    if not -1 <= threshold <= 1:
        raise SaebenchError(f"novel_latents.threshold is {threshold}: a cosine lies between -1 and 1")
    same_space(pair)
    forward = match(pair.sae, pair.reference, ctx)
    mirrored = match(pair.reference, pair.sae, ctx)
    return Output(
        estimates={
            "novel_ratio": share_novel(forward, threshold, ctx),
            "mirrored_ratio": share_novel(mirrored, threshold, ctx),
            "mean_max_cosine": mean_cosine(forward, ctx),
        },
        tables={"novel_latents": novel_table(forward, threshold), "ratio_over_theta": curve_table(forward, mirrored)},
        figures=figures(forward, mirrored, threshold),
        notes=notes(forward, mirrored),
    )


def same_space(pair: Pair) -> None:
    """Refuse SAEs whose directions do not live in one space."""
    one, other = pair.sae.info, pair.reference.info
    compared = {
        "model": (one.site.model, other.site.model),
        "hook": (one.site.hook, other.site.hook),
        "model revision": (one.site.revision, other.site.revision),
        "width d_in": (one.d_in, other.d_in),
        "input transform": (one.input_transform, other.input_transform),
    }
    if wrong := [f"{what} ({a} and {b})" for what, (a, b) in compared.items() if a != b]:
        raise SaebenchError(
            f"novel_latents: '{one.name}' and its reference '{other.name}' differ in {', '.join(wrong)}, so their "
            "decoder directions cannot be compared. Give a --reference trained at the same site."
        )


def match(sae: SAE, other: SAE, ctx: Context) -> Matches:
    """m_i of the latents of `sae` (all, or the seeded subset of `--limit`) among all latents of `other`."""
    import numpy as np
    import torch

    from saebench_meta.geometry import max_cosine

    chosen = np.asarray(ctx.latents(sae.d_sae), dtype=np.int64)
    cosine, nearest = max_cosine(sae.W_dec[torch.from_numpy(chosen).to(sae.device)], other.W_dec)
    return Matches(chosen, sae.d_sae, cosine.cpu().numpy(), nearest.cpu().numpy())


def share_novel(matches: Matches, theta: float, ctx: Context) -> Estimate:
    """Share of latents with m_i ≤ theta: a census over the dictionary, a proportion where only some were drawn."""
    novel, n = int((matches.cosine <= theta).sum()), len(matches.latent)
    if n < matches.of:
        return ctx.proportion(novel, n, n_unit="latents")
    return ctx.census(novel / n, n)


def mean_cosine(matches: Matches, ctx: Context) -> Estimate:
    """Mean of m_i: a census over the dictionary, a bootstrap over latents where only some were drawn."""
    if len(matches.latent) < matches.of:
        return replace(ctx.bootstrap(matches.cosine), n_unit="latents")
    return ctx.census(float(matches.cosine.mean()), len(matches.latent))


def novel_table(matches: Matches, theta: float) -> Table:
    """The novel latents, most novel first."""
    import pandas as pd

    columns = {
        "latent": matches.latent,
        "max_cosine": matches.cosine,
        "nearest_reference_latent": matches.nearest,
    }
    frame = pd.DataFrame(columns)
    frame = frame[frame["max_cosine"] <= theta].sort_values(["max_cosine", "latent"], ignore_index=True)
    return Table("Novel latents", frame, f"Latents whose largest cosine with the reference is at most {theta:g}.")


def ratio_over_theta(matches: Matches, thetas: Sequence[float]) -> Float[np.ndarray, " thetas"]:
    """Share of latents with m_i ≤ theta for every theta."""
    import numpy as np

    return np.searchsorted(np.sort(matches.cosine), thetas, side="right") / len(matches.cosine)


def curve(forward: Matches, mirrored: Matches) -> pd.DataFrame:
    """The ratio over theta in both directions: columns `theta`, `direction`, `ratio`."""
    import pandas as pd

    thetas = [i / 100 for i in range(101)]
    sides = {"this SAE in the reference": forward, "the reference in this SAE": mirrored}
    frames = [
        pd.DataFrame({"theta": thetas, "direction": name, "ratio": ratio_over_theta(matches, thetas)})
        for name, matches in sides.items()
    ]
    return pd.concat(frames, ignore_index=True)


def curve_table(forward: Matches, mirrored: Matches) -> Table:
    """The curve as a table."""
    return Table("Novel ratio over theta", curve(forward, mirrored), "Share of latents with max cosine ≤ theta.")


def figures(forward: Matches, mirrored: Matches, theta: float) -> dict[str, Figure]:
    """The ratio over theta and the distribution of m_i, in both directions."""
    from saebench_meta import charts

    groups = {"this SAE in the reference": forward.cosine, "the reference in this SAE": mirrored.cosine}
    low = min(0.0, float(forward.cosine.min()), float(mirrored.cosine.min()))
    counts = charts.histogram(groups, bounds=(low, 1.0))
    over_theta = charts.lines(
        curve(forward, mirrored),
        x=("theta", "threshold theta (cosine)"),
        y=("ratio", "share of latents that are novel"),
        group="direction",
        y_domain=(0, 1),
    )
    return {
        "ratio_over_theta": Figure("Novel ratio over theta", over_theta, f"This run's theta is {theta:g}."),
        "max_cosine": Figure(
            "Largest decoder cosine with the other dictionary",
            charts.bars(counts, x="largest cosine", y="share of latents"),
            "A latent whose twin is in the other dictionary stands at the right.",
        ),
    }


def notes(forward: Matches, mirrored: Matches) -> tuple[str, ...]:
    """What the numbers rest on."""
    return (
        f"{len(forward.latent)} of {forward.of} latents against {mirrored.of} of the reference; "
        f"mirrored: {len(mirrored.latent)} of {mirrored.of}. A decoder row of zeros has cosine 0 with everything.",
    )


@hookimpl
def saebench_tasks() -> list[Task]:
    return [novel_latents]
