"""Latents that stand for no feature or for several: absorption, mixtures, duplicates, in worlds of known truth.

Chanin, Dulka and Bloom, "Broken latents: studying SAEs and feature co-occurrence in toy models" (2024). Two parts:

(a) The SAE's architecture is trained on a few toy worlds, whose features are known, and the kind of every latent it
    finds there is counted (`toys`, `kinds`).
(b) Of the SAE itself, latents whose activations have more than one peak (`peaks`). The post sees several peaks where a
    tied SAE mixes a parent feature into its children, and finds them hard to separate in language models. A latent for
    a feature of several strengths has several peaks too, and one that takes over another's tokens may have a single
    one. So the share is called multimodality and has no better direction; how well it tells broken latents in toy
    worlds is in the documentation (`auc`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from saebench_meta.errors import SaebenchError
from saebench_meta.hookspecs import hookimpl
from saebench_meta.task import Metric, Output, Task, task
from saebench_tasks.broken_latents import toys

if TYPE_CHECKING:
    import numpy as np

    from saebench_meta.context import Context
    from saebench_meta.sae import SAE
    from saebench_meta.stats import Estimate
    from saebench_tasks.broken_latents.peaks import Firings, Peaks

saebench_api = 1

_NO_ORDER = "several peaks may mean a mixture of features or one feature of several strengths"
_SAMPLE = "it depends on the size of the sample"

METRICS = (
    Metric(
        "multimodality",
        "neither",
        "fraction",
        main=True,
        why=_NO_ORDER,
        help="Share of the tested latents with more than one activation peak: dip test, false discovery rate `level`.",
    ),
    Metric("tested", "neither", "latents", why=_SAMPLE, help="Latents with activations enough to be tested."),
    Metric("untested", "neither", "latents", why=_SAMPLE, help="Latents with fewer, dead ones included."),
    Metric("median_dip", "neither", "1", why=_NO_ORDER, help="Median dip of the tested latents, from 0 to 1/4."),
    Metric("mean_peaks", "neither", "peaks", why=_NO_ORDER, help="Activation peaks, mean over the tested latents."),
    Metric(
        "median_valley",
        "neither",
        "fraction",
        why=_NO_ORDER,
        help="Depth of the valley between the two highest peaks over the lower: median of multimodal latents.",
    ),
    *toys.METRICS,
)


@task(
    "broken_latents",
    version=1,
    metrics=METRICS,
    needs=["activations"],
    controls=["random"],
    source="Chanin, Dulka and Bloom 2024; Hartigan and Hartigan 1985",
    trains=toys.recipes,
    profiles={"quick": {"worlds": ("toy:absorption-4",)}},
)
def broken_latents(
    sae: SAE,
    ctx: Context,
    *,
    level: float = 0.05,
    most: int = 1000,
    least: int = 50,
    examples: int = 10,
    architecture: str = "",
    worlds: tuple[str, ...] = ("toy:absorption-4", "toy:small-parent-20"),
    toy_seeds: int = 1,
) -> Output:
    """Latents with several activation peaks, and what the SAE's architecture makes of toy worlds.

    Args:
        level: false discovery rate of the dip tests.
        most: activations of a latent that are looked at, drawn by token.
        least: latents with fewer are not tested.
        examples: latents of which tokens are shown in their context, and histograms drawn; 0 for none.
        architecture: what is trained on the toy worlds; the SAE's own unless given, `none` for nothing.
        worlds: toy worlds to train on.
        toy_seeds: SAEs trained on each.

    Raises:
        SaebenchError: a parameter out of range.
    """
    _check(level=0 < level < 1, most=most >= least, least=least >= 10, examples=examples >= 0, toy_seeds=toy_seeds > 0)
    from saebench_tasks.broken_latents import peaks, shown

    chunks = (codes for _, codes in ctx.track(ctx.code_chunks(sae), "activations of latents"))
    firings = peaks.collect(chunks, sae.d_sae, ctx.activations().n_tokens, most, ctx.rng("tokens"))
    found = peaks.find(firings, least, level, ctx.rng("resolution"), lambda latents: ctx.track(latents, "dip tests"))
    clearest = [i for i in found.strongest.tolist() if len(found.peaks[i]) > 1][:examples]
    trained = toys.outcomes(sae, ctx, architecture, worlds, toy_seeds)
    return Output(
        estimates={**estimates(found, ctx), **toys.estimates(trained, sae.info, ctx)},
        tables=shown.tables(firings, found, clearest, trained, ctx),
        figures=shown.figures(firings, found, clearest),
        notes=notes(firings, found, least, most),
    )


def _check(**in_range: bool) -> None:
    for name, fine in in_range.items():
        if not fine:
            raise SaebenchError(f"broken_latents.{name} is out of range: see `saebench tasks broken_latents`")


def estimates(found: Peaks, ctx: Context) -> dict[str, Estimate]:
    """Metrics of part (b): of this dictionary on this sample, so without an interval."""
    import numpy as np

    n = len(found.latent)
    peaks = np.array([len(at) for at in found.peaks])
    none = f"none of {found.of} latents was active often enough to be tested"

    def of(statistic: Callable[[np.ndarray], Any], values: np.ndarray, why: str = none) -> Estimate:
        n = len(values)
        return ctx.census(float(statistic(values)), n) if n else ctx.census(None, 0, reason=why)

    return {
        "multimodality": of(np.mean, found.several),
        "tested": ctx.census(n, found.of),
        "untested": ctx.census(found.of - n, found.of),
        "median_dip": of(np.median, found.dip),
        "mean_peaks": of(np.mean, peaks),
        "median_valley": of(np.median, found.valley[found.several], "no latent is multimodal"),
    }


def notes(firings: Firings, found: Peaks, least: int, most: int) -> tuple[str, ...]:
    """What the numbers rest on, in sentences."""
    dead = int((firings.total == 0).sum())
    return (
        f"{len(found.latent)} of {found.of} latents were tested on {firings.n_tokens} tokens; {dead} were active on "
        f"none, {found.of - len(found.latent) - dead} had fewer than {least} activations above the floor.",
        f"At most {most} activations a latent were looked at. Tokens of a document are not independent, so p is "
        "somewhat too small for latents that fire in few documents.",
    )


@hookimpl
def saebench_tasks() -> list[Task]:
    return [broken_latents]
