"""All sets of a run with one SAE: what does not depend on the SAE is worked out once, and so is an SAE's own part."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, cast, get_args

from saebench_meta.errors import SaebenchError, did_you_mean
from saebench_tasks.sparse_probing import compat as stock
from saebench_tasks.sparse_probing.examples import examples
from saebench_tasks.sparse_probing.metrics import KS
from saebench_tasks.sparse_probing.probing import Probed, probe_dense, probe_latents
from saebench_tasks.sparse_probing.selection import Selection

if TYPE_CHECKING:
    from collections.abc import Sequence

    from saebench_meta.context import Context
    from saebench_meta.labelled import Labelled
    from saebench_meta.sae import SAE

MOST_SPLITS = 100


@dataclass(frozen=True)
class Options:
    """The parameters, checked."""

    selection: Selection
    splits: int
    compat: str


def options(task: str, selection: str, splits: int, compat: str) -> Options:
    """The parameters of a task.

    Raises:
        SaebenchError: says which one has no such value.
    """
    for name, value, known in (
        ("selection", selection, get_args(Selection)),
        ("compat", compat, ("", stock.VERSION)),
    ):
        if value not in known:
            raise SaebenchError(
                f"{task}.{name} is {value!r}{did_you_mean(str(value), [k for k in known if k])}; "
                f"known: {', '.join(repr(k) for k in known)}"
            )
    if isinstance(splits, bool) or not isinstance(splits, int) or not 1 <= splits <= MOST_SPLITS:
        raise SaebenchError(f"{task}.splits is {splits!r}: give a whole number from 1 to {MOST_SPLITS}")
    return Options(cast("Selection", selection), splits, compat)


def probe(sae: SAE, ctx: Context, asked: Options) -> list[Probed]:
    """Every labelled set of the run, probed."""
    return [_of_set(ctx.labelled(name), sae, ctx, asked) for name in ctx.track(ctx.labelled_sets, "labelled sets")]


def _of_set(labelled: Labelled, sae: SAE, ctx: Context, asked: Options) -> Probed:
    try:
        weights = sae.content_hash()
    except ValueError:  # a foreign encoder hides its weights
        return _probed(labelled, sae, ctx, asked)
    key = ("sparse_probing", labelled.name, labelled.content_hash, weights, ctx.seed, asked)
    return ctx.memo(key, lambda: _probed(labelled, sae, ctx, asked))


def _probed(labelled: Labelled, sae: SAE, ctx: Context, asked: Options) -> Probed:
    if asked.compat:
        key = ("sparse_probing stock dense", labelled.name, labelled.content_hash, ctx.seed)
        dense = ctx.memo(key, lambda: stock.probe_dense(labelled, ctx.seed))
        return stock.probe(labelled, labelled.codes(sae), KS, ctx.seed, dense)
    of = examples(labelled, ctx.seed, asked.splits)
    memo = ("sparse_probing dense", labelled.name, labelled.content_hash, ctx.seed, asked.splits)
    dense = ctx.memo(memo, lambda: probe_dense(labelled.x, of))
    latents, random, chosen = probe_latents(labelled.codes(sae), of, KS, asked.selection, ctx.seed)
    return Probed(of, latents, random, dense, chosen)


def notes(ctx: Context, probed: Sequence[Probed], asked: Options) -> tuple[str, ...]:
    """What the numbers rest on."""
    tests = sum(len(p.examples.test) for p in probed)
    said = f"{len(probed)} labelled sets, {tests:,} test texts, {sum(len(p.examples.classes) for p in probed)} probes"
    dropped = {name: n for name in ctx.labelled_sets if (n := sum(ctx.labelled(name).dropped.values()))}
    left_out = [f"Texts left out: {', '.join(f'{name} {n:,}' for name, n in dropped.items())}."] if dropped else []
    if asked.compat:
        how = "; the stock protocol: one balanced draw of negatives for every class and k, no validation"
    else:
        how = f" for every k, each fitted on {asked.splits} splits into training and validation"
    return (
        f"{said}{how}. Sets and classes weigh the same, whatever their number of texts.",
        "Intervals resample test texts and hold probes and chosen latents fixed; the spread over splits is in table "
        "'sets'.",
        *left_out,
    )
