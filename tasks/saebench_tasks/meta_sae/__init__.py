"""Are the latents of an SAE atomic? A meta-SAE: a sparse autoencoder of the decoder rows of another.

Leask et al., section 5, and the meta-SAE post. With unit decoder rows w of the SAE as data::

    f = BatchTopK((w − b_dec) W_enc + b_enc)       k meta-latents a row, mean over a batch
    ŵ = f W_dec + b_dec                             rows of W_dec: meta-latents, norm 1
    variance explained = 1 − Σ‖w − ŵ‖² / Σ‖w − w̄‖²

The headline is the paper's: on the rows that it was trained on, by the inference threshold. Since a meta-SAE rebuilds
part of any rows, a share of the rows is held out, and meta-SAEs are trained alike on rows of two null models (`rows`).
`pair` asks whether a smaller SAE would have done, `family` what split latents are made of.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from saebench_meta.errors import SaebenchError
from saebench_meta.hookspecs import hookimpl
from saebench_meta.task import Family, Output, Pair, Task, task
from saebench_tasks.meta_sae import metrics
from saebench_tasks.meta_sae.build import trains, trains_family, trains_pair

if TYPE_CHECKING:
    from saebench_meta.context import Context
    from saebench_meta.sae import SAE

saebench_api = 1

SOURCE = "Leask et al. 2025, section 5, figures 1, 6, 23; the meta-SAE post"


@task(
    "meta_sae",
    version=1,
    subject="sae",
    metrics=metrics.METRICS,
    controls=[],
    limit_unit="latents shown",
    source=SOURCE,
    trains=trains,
    profiles={"quick": {"curve": ()}},
)
def meta_sae(
    sae: SAE,
    ctx: Context,
    *,
    width: int = 0,  # noqa: ARG001  # read by `trains`, when the run is planned
    k: int = 4,  # noqa: ARG001
    steps: int = 200,  # noqa: ARG001
    lr: float = 1e-3,  # noqa: ARG001
    held_out: float = 0.1,
    seeds: int = 1,
    curve: tuple[float, ...] = (0.5,),
    threshold: float = 0.7,
    latents: tuple[str, ...] = (),
) -> Output:
    """How much of the decoder directions a few common parts explain, against rows without structure.

    Args:
        width: meta-latents; 0 for 3 · d_in, or a quarter of the latents where that is fewer.
        k: meta-latents a latent, on average.
        steps: batches of 4096 rows, or of all where there are fewer (the paper: 24,000; the post: 2000 of 16,384).
        lr: of Adam.
        held_out: share of the rows that is kept from training; with 0 there is nothing to compare nulls on.
        seeds: trainings of the SAE's rows and of each null; the first is reported and saved.
        curve: further widths, as multiples of the first.
        threshold: theta, the cosine above which a meta-latent is found in a dictionary.
        latents: numbers of latents to look at closely; a few are drawn where none is given.

    Raises:
        SaebenchError: the SAE has too few latents, or a parameter is out of range.
    """
    from saebench_tasks.meta_sae import single

    check_threshold("meta_sae", threshold)
    return single.output(sae, ctx, {"held_out": held_out, "seeds": seeds, "curve": curve}, threshold, latents)


@task(
    "meta_sae_pair",
    version=1,
    subject="pair",
    part_of="meta_sae",
    metrics=metrics.PAIR,
    needs=["reference"],
    controls=[],
    limit_unit="latents shown",
    source=SOURCE,
    trains=trains_pair,
)
def meta_sae_pair(
    pair: Pair,
    ctx: Context,
    *,
    width: int = 0,  # noqa: ARG001  # read by `trains_pair`
    k: int = 4,  # noqa: ARG001
    steps: int = 200,  # noqa: ARG001
    lr: float = 1e-3,  # noqa: ARG001
    held_out: float = 0.1,
    threshold: float = 0.7,
    latents: tuple[str, ...] = (),
) -> Output:
    """Whether the latents of a smaller SAE would have done as meta-latents, and relate the same latents.

    Args:
        width, k, steps, lr, held_out, threshold, latents: as of `meta_sae`; where they are equal, so is the meta-SAE.

    Raises:
        SaebenchError: the SAEs differ in site, width or input transform, or as for `meta_sae`.
    """
    from saebench_meta.stitching import check_same_space
    from saebench_tasks.meta_sae import pair as comparisons

    check_threshold("meta_sae_pair", threshold)
    check_same_space("meta_sae_pair", pair.sae, pair.reference)
    return comparisons.output(pair, ctx, held_out, threshold, latents)


@task(
    "meta_sae_family",
    version=1,
    subject="family",
    part_of="meta_sae",
    metrics=metrics.FAMILY,
    controls=[],
    limit_unit="nothing: all latents are read",
    source='the meta-SAE post, "Using Meta-SAEs to Interpret Split Features"',
    trains=trains_family,
)
def meta_sae_family(
    family: Family,
    ctx: Context,
    *,
    width: int = 0,  # noqa: ARG001  # read by `trains_family`
    k: int = 4,  # noqa: ARG001
    steps: int = 200,  # noqa: ARG001
    lr: float = 1e-3,  # noqa: ARG001
    held_out: float = 0.1,
    threshold: float = 0.7,
) -> Output:
    """One meta-SAE for the latents of a family: meta-latents per latent by width, and of latents that split.

    Args:
        width, k, steps, lr, held_out: as of `meta_sae`, the rows being those of all members.
        threshold: theta, the cosine above which latents of two SAEs belong together.

    Raises:
        SaebenchError: the SAEs differ in site, width or input transform, or as for `meta_sae`.
    """
    from saebench_meta.stitching import check_same_space
    from saebench_tasks.meta_sae import family as split

    check_threshold("meta_sae_family", threshold)
    members = sorted(family.saes, key=lambda sae: sae.d_sae)
    for sae in members[1:]:
        check_same_space("meta_sae_family", sae, members[0])
    return split.output(members, ctx, held_out, threshold)


def check_threshold(name: str, theta: float) -> None:
    """Refuse what is no cosine, or would join everything."""
    if not 0 <= theta <= 1:
        raise SaebenchError(f"{name}.threshold is {theta}: give a cosine from 0 to 1")


@hookimpl
def saebench_tasks() -> list[Task]:
    return [meta_sae, meta_sae_pair, meta_sae_family]
