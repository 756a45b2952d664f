"""The task from its first step to its last."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from saebench_meta.task import Output
from saebench_tasks.autointerp import explanations, passages, peaks, questions, score, shown
from saebench_tasks.autointerp.meta import Parts, parts

if TYPE_CHECKING:
    from jaxtyping import Bool

    from saebench_meta.context import Context
    from saebench_meta.sae import SAE
    from saebench_tasks.autointerp.passages import Passage, Quoting
    from saebench_tasks.autointerp.questions import Drawn, Outcome


@dataclass(frozen=True)
class Protocol:
    """Parameters of the task, `latents` with the limit applied."""

    latents: int
    top: int
    bins: int
    length: int
    options: int
    dense: float
    fewest: int
    listed: int
    held_out: float


def output(sae: SAE, ctx: Context, p: Protocol) -> Output:
    """Everything that the task gives. Meta-latents are explained and asked about for the SAE itself alone."""
    documents = ctx.memo(("autointerp", "documents", ctx.seed), lambda: peaks.documents_of(ctx.sample(), ctx.seed))
    pieces = ctx.memo(("autointerp", "pieces"), lambda: passages.Pieces(ctx.lm()))
    found = peaks.peaks_of(sae, ctx, documents)
    kinds = peaks.kinds(found, p.dense, p.fewest)
    askable = kinds == peaks.ASKABLE
    quoting = passages.Quoting(found, pieces, p.length)
    drawn = draws(quoting, askable, p, ctx)
    made_of = parts(sae, ctx, p.held_out, askable, p.listed) if ctx.control is None else None
    explained, outcomes = judged(quoting, drawn, made_of, p, ctx)
    counted = score.counts(outcomes, len(drawn), made_of is not None)
    on_latents = [o for o in outcomes if o.question.kind == questions.LATENT]
    by_frequency = score.by_frequency(on_latents, found.density, ctx)
    result = shown.Result(found, kinds, drawn, explained, outcomes, counted, by_frequency, p.options)
    return Output(
        estimates={
            **score.estimates(counted, len(drawn), made_of is not None, p.options, ctx),
            **{
                f"{name}_share": ctx.census(float((kinds == kind).mean()), len(kinds))
                for name, kind in (("dead", peaks.DEAD), ("dense", peaks.DENSE), ("askable", peaks.ASKABLE))
            },
        },
        tables=shown.tables(result, ctx),
        figures=shown.figures(result, ctx),
        transcripts=shown.transcripts(result),
        notes=shown.notes(result, ctx.judge().name),
    )


def draws(quoting: Quoting, askable: Bool[np.ndarray, " d_sae"], p: Protocol, ctx: Context) -> list[Drawn]:
    """The targets, drawn from the latents that can be asked about, and what their questions are made from.

    A smaller number of targets is the first of a larger one's, with the same questions.
    """
    pool = np.flatnonzero(askable)
    targets = ctx.rng("latents").permutation(pool)[: p.latents].tolist()
    tracked = ctx.track(targets, "questions drawn", len(targets))
    return [questions.draw(t, pool, quoting, p.options, ctx.rng(f"question on {t}")) for t in tracked]


def judged(
    quoting: Quoting, drawn: list[Drawn], made_of: Parts | None, p: Protocol, ctx: Context
) -> tuple[explanations.Explanations, list[Outcome]]:
    """Have everything explained that is needed, then ask."""
    judge = ctx.judge()
    targets = [d.target for d in drawn]
    needed = set(targets)
    if made_of is not None:
        needed |= {j for d in drawn for j in d.others[: p.options - 1]}
        needed |= {j for t in targets for m in made_of.active.get(t, ()) for j in made_of.listed.get(m, ())}
    explained = explanations.of_latents({j: _passages(quoting, j, p, ctx.rng) for j in sorted(needed)}, judge)
    asking = questions.Asking(drawn, explained, quoting, p.options)
    asked = [*asking.of_latents(questions.exchanged(drawn, ctx.rng("shuffled")))]
    if made_of is not None:
        explained = explanations.with_meta(explained, made_of, targets, judge)
        asking = questions.Asking(drawn, explained, quoting, p.options)
        told = [d for d in drawn if asking.told(d.target, made_of, without=False) is not None]
        asked += asking.of_meta(made_of, questions.exchanged(told, ctx.rng("shuffled meta-latents")))
    return explained, questions.answered(asked, judge)


def _passages(
    quoting: Quoting, latent: int, p: Protocol, rng: Callable[[str], np.random.Generator]
) -> tuple[Passage, ...]:
    return passages.to_explain(quoting, latent, p.top, p.bins, rng(f"passages of {latent}"))
