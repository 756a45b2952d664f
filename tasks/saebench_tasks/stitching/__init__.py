"""Interpolating between two dictionaries: latents of one are added to the other and swapped, until it has become it.

Leask et al., section 4.1, equation 5, figures 5, 17 and 18, appendix A.7, and the stitching post that preceded it.
With S0 the reference, S1 the SAE under test, L0 and L1 the latents that are taken of each, each with its own codes f::

    x_hat = Σ_{i in L0} f0_i w0_i + Σ_{j in L1} f1_j w1_j + α b0 + (1 − α) b1        α = |L0| / (|L0| + |L1|)

Phase 1 adds the novel latents of S1 (largest cosine ≤ theta) one by one. Phase 2 swaps connected subgraphs of the graph
cosine > theta one by one, S0's latents out and S1's in. Latents of S0 without a neighbour
leave last; what is left is S1.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from saebench_meta.errors import SaebenchError
from saebench_meta.hookspecs import hookimpl
from saebench_meta.task import Family, Output, Pair, Table, Task, task
from saebench_tasks.stitching.metrics import CHAIN, METRICS

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    import pandas as pd

    from saebench_meta.context import Context
    from saebench_meta.stats import Estimate
    from saebench_meta.stitching import PairSample, Path, Schedule
    from saebench_tasks.stitching.children import Together
    from saebench_tasks.stitching.link import Link

saebench_api = 1

ADDED_ROWS = 1000
"""Rows of the table of cumulative adding for each order."""


@task(
    "stitching",
    version=1,
    subject="pair",
    metrics=METRICS,
    needs=["reference", "activations", "lm"],
    controls=["random", "permuted_rows"],
    source="Leask et al. 2025, section 4.1, equation 5, figures 5, 17 and 18",
    profiles={"quick": {"ce_points": 3, "ce_tokens": 2048, "adding_orders": 1}},
)
def stitching(
    pair: Pair,
    ctx: Context,
    *,
    threshold: float = 0.7,
    order: str = "cosine",
    ce_points: int = 5,
    ce_tokens: int = 4096,
    examples: int = 5,
    adding_orders: int = 2,
) -> Output:
    """What happens to error, sparsity and cross-entropy on the way from the reference SAE to this one.

    Args:
        threshold: theta, the cosine above which two latents belong together.
        order: `cosine`, most novel latents and most similar components first, or `random`; the other is beside it.
        ce_points: stitched SAEs on the way that are spliced into the model, at least 3.
        ce_tokens: cross-entropies are taken on the first documents of the sample with at most this many tokens
            together; 0 for the whole sample.
        examples: components of each kind whose latents are shown with tokens; 0 for none.
        adding_orders: random orders in which novel, and reconstruction, latents are added.

    Raises:
        SaebenchError: the SAEs differ in site, width or input transform, or a parameter is out of range.
    """
    _check(order=order in ("cosine", "random"), ce_points=ce_points >= 3, ce_tokens=ce_tokens >= 0)
    _check(examples=examples >= 0, adding_orders=adding_orders >= 0)
    from saebench_meta.stitching import PairSample, swaps
    from saebench_tasks.stitching import census, effects, link, points, shown

    found = link.link(pair, ctx, threshold, "stitching")
    sample, parts = PairSample(pair, ctx), found.parts
    names, schedules = _other_ways(found, adding_orders, ctx)
    (shuffled, *added) = _walk(sample, schedules)
    steps, path, beside_steps, beside = found.schedule, found.path, schedules[0], shuffled
    if order == "random":
        steps, path, beside_steps, beside = beside_steps, beside, steps, path
    orders = ("cosine", "random") if order == "cosine" else ("random", "cosine")
    in_turn, alone = effects.turns(path, steps), swaps(sample, parts)
    base, named, spliced = points.at_points(pair, ctx, steps, ce_points, ce_tokens)
    pairs, example_table = _looked_into(sample, found, examples, ctx)
    by_component = effects.components_table(parts, alone, in_turn["swap"])
    adding = effects.adding_table(names, added, ADDED_ROWS)
    return Output(
        documents={"document": _ids(ctx), **found.documents, **points.columns(base, named)},
        estimates={
            **effects.estimates(in_turn, alone, parts, ctx),
            **census.estimates(found, ctx),
            **_verdicts(pairs, ctx),
            **census.bias(_biases(pair), ctx),
        },
        tables={
            "path": Table("The path", effects.path_table(path, steps), f"In {orders[0]} order; one row a step."),
            "phases": effects.phases(in_turn, path),
            "components": Table("Components", by_component, _COMPONENTS),
            "census": census.summary(parts),
            "cross_entropy": Table("Cross-entropy along the path", points.table(base, spliced, path), _SPLICED),
            "adding": Table("Latents added in random order", adding, "Nothing is removed."),
            "co_occurrence": Table("Pairs of latents", _pair_table(pairs, found), _TOGETHER),
            **example_table,
        },
        figures={
            "path": shown.along(path, steps, beside, beside_steps, orders),
            "swaps": shown.swapped(by_component),
            "adding": shown.added(adding),
            "components": shown.census(parts),
            "co_occurrence": shown.lifts(pairs),
        },
        notes=_notes(found, sample, pairs, base.predictions),
    )


@task(
    "stitching_family",
    version=1,
    subject="family",
    part_of="stitching",
    metrics=CHAIN,
    needs=["activations"],
    controls=[],
    source="Leask et al. 2025, section 4.1, figure 5",
)
def stitching_family(family: Family, ctx: Context, *, threshold: float = 0.7) -> Output:
    """The way through a family, from each SAE to the next in the order given.

    Each link stands beside its controls in the record of `stitching` for that pair, so the chain has none of its own.

    Args:
        threshold: theta, the cosine above which two latents belong together.

    Raises:
        SaebenchError: the SAEs differ in site, width or input transform, or theta is no cosine.
    """
    from saebench_tasks.stitching import chain

    found = chain.chain(family, ctx, threshold)
    return Output(
        estimates=chain.estimates(found, ctx),
        tables={"links": chain.table(found)},
        figures={"chain": chain.figure(found)},
        notes=(f"{len(found.links)} links on {ctx.activations().n_tokens} tokens.",),
    )


_COMPONENTS = (
    "dmse, dl0: swapped alone on the reference; in_turn: along the path. Percent of the reference's MSE. Latents of "
    "the reference (S0) on the left of the arrow, of this SAE (S1) on the right."
)
_SPLICED = "The stitched SAE in place of the activations; nats per token. Recovered from zero and mean ablation."
_TOGETHER = (
    "Children of one split, and random pairs of latents of this SAE: tokens on which each and both are active, those "
    "expected by chance, exact two-sided p and q after Benjamini and Hochberg. log2_lift is empty where the two are "
    "never together."
)


def _check(**in_range: bool) -> None:
    for name, fine in in_range.items():
        if not fine:
            raise SaebenchError(f"stitching.{name} is out of range: see `saebench tasks stitching`")


def _other_ways(found: Link, orders: int, ctx: Context) -> tuple[list[str], list[Schedule]]:
    """The same moves in random order, then latents that are only added; names of the latter."""
    from saebench_meta.stitching import schedule
    from saebench_tasks.stitching.effects import adding

    parts = found.parts
    shuffled = schedule(parts, found.similarity.max_a, order="random", rng=ctx.rng("order of moves"))
    added = adding(parts.new < 0, len(parts.old), orders, ctx.rng("order of adding"))
    return [name for name, _ in added], [shuffled, *(steps for _, steps in added)]


def _walk(sample: PairSample, schedules: Sequence[Schedule]) -> list[Path]:
    from saebench_meta.stitching import walk

    return walk(sample, schedules)


def _looked_into(
    sample: PairSample, found: Link, examples: int, ctx: Context
) -> tuple[dict[str, Together], dict[str, Table]]:
    """Pairs of children and random pairs, and examples of components, from one pass over the sample."""
    import numpy as np

    from saebench_tasks.stitching import census, children

    parts = found.parts
    splits = children.of_splits(parts, ctx.rng("children"))
    random = children.at_random(len(splits.a), len(parts.new), ctx.rng("random pairs"))
    chosen = census.chosen(parts, examples)
    old, new = census.members(parts, chosen)
    wanted = np.unique(np.concatenate([new, splits.a, splits.b, random.a, random.b]))
    of_old, of_new = census.firings(sample, old, wanted)
    pairs = {
        "children": children.together(splits, of_new, wanted),
        "random": children.together(random, of_new, wanted),
    }
    if not chosen:
        return pairs, {}
    columns_old = {latent: of_old[:, [i]] for i, latent in enumerate(old.tolist())}
    places = np.searchsorted(wanted, new).tolist()
    columns_new = {latent: of_new[:, [i]] for latent, i in zip(new.tolist(), places, strict=True)}
    return pairs, {"examples": census.examples(found, chosen, columns_old, columns_new, ctx)}


def _verdicts(pairs: dict[str, Together], ctx: Context) -> dict[str, Estimate]:
    from saebench_tasks.stitching.children import COOCCUR, EXCLUDE

    verdicts = {"exclude": EXCLUDE, "cooccur": COOCCUR}
    return {f"{name}_{key}": t.share(text, ctx) for name, t in pairs.items() for key, text in verdicts.items()}


def _pair_table(pairs: dict[str, Together], found: Link) -> pd.DataFrame:
    from saebench_tasks.stitching.children import table

    return table(pairs, found.parts)


def _biases(pair: Pair) -> tuple[np.ndarray, np.ndarray]:
    old, new = (sae.b_dec.detach().double().cpu().numpy() for sae in (pair.reference, pair.sae))
    return old, new


def _ids(ctx: Context) -> np.ndarray:
    import numpy as np

    return np.asarray(ctx.sample().document_ids)


def _notes(found: Link, sample: PairSample, pairs: dict[str, Together], predictions: np.ndarray) -> tuple[str, ...]:
    """What the numbers rest on, in sentences."""
    from saebench_tasks.stitching.children import LEVEL

    children = pairs["children"]
    n, tested = len(children.pairs.a), int(children.tested.sum())
    return (
        f"{found.schedule.steps} moves over {sample.n_tokens} tokens of {sample.n_docs} documents, each exact; "
        f"{int((found.parts.old < 0).sum())} latents of the reference have no counterpart and leave last.",
        f"Cross-entropies: {int(predictions.sum())} predictions in {int((predictions > 0).sum())} documents.",
        f"Children of splits: {n} of {children.pairs.of} pairs looked at, {tested} with both latents active; false "
        f"discovery rate {LEVEL:g}. Tokens of a document are not independent, so p is somewhat too small.",
    )


@hookimpl
def saebench_tasks() -> list[Task]:
    return [stitching, stitching_family]
