"""Tables, figures and notes of `frankenstein`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from saebench_meta.task import Figure, Table
from saebench_tasks.frankenstein.build import moved, nearest

if TYPE_CHECKING:
    from saebench_meta.context import Context
    from saebench_meta.sae import SAE
    from saebench_meta.splice import Baselines, Losses
    from saebench_tasks.frankenstein.build import Stage
    from saebench_tasks.frankenstein.sums import Sums

MEMBER, BEFORE, AFTER = "trained member", "stitched", "stitched, decoder retrained"
QUANTILES = (0, 0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99, 1)


def frame(
    members: Sequence[SAE],
    made: Sequence[Stage],
    trained: Mapping[int, SAE],
    measured: Sequence[Sums],
    losses: Sequence[Losses],
    tokens: np.ndarray,
    sst: np.ndarray,
    base: Baselines,
) -> pd.DataFrame:
    """A row a dictionary, in the order of `sums.layers`."""
    n, elements = tokens.sum(), tokens.sum() * members[0].d_in
    predictions, clean, mean = base.predictions.sum(), base.clean.sum(), base.mean.sum()
    rows = []
    for what, sums, lost in zip(_named(members, made, trained), measured, losses, strict=True):
        spliced = lost.loss.sum()
        rows.append(
            {
                **what,
                "l0": sums.active.sum() / max(1, n),
                "mse": sums.sse.sum() / max(1, elements),
                "explained_variance": 1 - sums.sse.sum() / sst.sum() if sst.sum() > 0 else np.nan,
                "ce_spliced": spliced / predictions if predictions else np.nan,
                "ce_recovered": (mean - spliced) / (mean - clean) if mean > clean else np.nan,
            }
        )
    return pd.DataFrame(rows)


def _named(members: Sequence[SAE], made: Sequence[Stage], trained: Mapping[int, SAE]) -> Iterator[dict[str, Any]]:
    """What each dictionary is."""
    for sae in members:
        yield {"kind": MEMBER, "name": sae.info.name, "members": 1, "added": sae.d_sae, "latents": sae.d_sae}
    for kind, which in ((BEFORE, range(len(made))), (AFTER, trained)):
        for i in which:
            stage = made[i]
            sizes = {"members": i + 2, "added": len(stage.chosen[-1]), "latents": stage.sae.d_sae}
            yield {"kind": kind, "name": f"with {members[i + 1].info.name}", **sizes}


def tables(made: Sequence[Stage], trained: Mapping[int, SAE], rows: pd.DataFrame) -> dict[str, Table]:
    """Every dictionary, and how far retrained rows have moved."""
    found = {
        "stages": Table(
            "Members and stages",
            rows,
            "Each stage has the members up to the one it is named for; `added` are the latents that one gave.",
        )
    }
    if trained:
        columns = {
            f"{made[i].sae.d_sae} latents": np.quantile(np.concatenate(list(moved(made[i], sae))), QUANTILES)
            for i, sae in trained.items()
        }
        caption = "Cosine of retrained decoder rows with the rows they began as, quantiles over latents."
        found["row_cosines"] = Table("How far rows moved", pd.DataFrame({"quantile": QUANTILES, **columns}), caption)
    return found


def figures(
    members: Sequence[SAE], made: Sequence[Stage], trained: Mapping[int, SAE], rows: pd.DataFrame
) -> dict[str, Figure]:
    """Every dictionary on the plane of error and sparsity; how far retrained rows moved."""
    from saebench_meta import charts

    axes: dict[str, Any] = {
        "x": ("l0", "L0 (active latents per token)"),
        "y": ("mse", "MSE (squared activation)"),
        "group": "kind",
    }
    plane = charts.line_path(rows, **axes) + charts.scatter(rows, **axes, tooltip=["name", "latents"])
    found = {
        "plane": Figure(
            "Error and sparsity",
            plane,
            "From the narrowest on. A weaker sparsity penalty would also move a trained SAE down and to the right.",
        )
    }
    if len(made) - 1 in trained:
        parts = list(moved(made[-1], trained[len(made) - 1]))
        cosines = {name: part for name, part in zip(_labels(members), parts, strict=True) if len(part)}
        low = min(0.0, *(float(part.min()) for part in cosines.values()))
        found["row_cosines"] = Figure(
            "How far retrained rows moved",
            charts.bars(
                charts.histogram(cosines, bounds=(low, 1.0)), x="cosine with the row it began as", y="share of latents"
            ),
            "Of the last stage, by the member that a latent is from.",
        )
    return found


def _labels(members: Sequence[SAE]) -> list[str]:
    """Names of members, told apart where they are the same."""
    names = [sae.info.name for sae in members]
    return [name if names.count(name) == 1 else f"{name} ({i + 1})" for i, name in enumerate(names)]


def notes(
    members: Sequence[SAE],
    made: Sequence[Stage],
    trained: Mapping[int, SAE],
    rows: pd.DataFrame,
    near: int,
    ctx: Context,
) -> tuple[str, ...]:
    """Where latents are from, what it is compared with, what it was trained on."""
    last = len(members) + len(made) - 1
    parts = ", ".join(
        f"{len(chosen):,} of {sae.d_sae:,} from {sae.info.name}"
        for sae, chosen in zip(members, made[-1].chosen, strict=True)
    )
    by_l0 = nearest(list(rows["l0"][: len(members)]), float(rows["l0"][last]))
    said = [
        f"{made[-1].sae.d_sae:,} latents: {parts}.",
        f"Nearest in size is {members[near].info.name} ({members[near].d_sae:,} latents, L0 {rows['l0'][near]:.4g}); "
        f"nearest in L0 is {members[by_l0].info.name} (L0 {rows['l0'][by_l0]:.4g}, MSE {rows['mse'][by_l0]:.6g}).",
        f"{int(ctx.activations().n_tokens):,} tokens of {ctx.sample().n_docs:,} documents.",
    ]
    if trained:
        seen = ctx.recipes[-1]
        said.append(
            f"Decoders were trained on {seen.steps * seen.batch_size:,} activations that are not evaluated (the post: "
            "100 million); the members' were not trained further."
        )
    return tuple(said)
