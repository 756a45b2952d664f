"""Accuracies with Wilson intervals, and what stands against them: chance, and questions without an answer."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from saebench_meta.stats import Estimate
from saebench_tasks.autointerp import questions
from saebench_tasks.autointerp.questions import META_KINDS, RIGHT, UNANSWERED

if TYPE_CHECKING:
    from jaxtyping import Float

    from saebench_meta.context import Context
    from saebench_tasks.autointerp.questions import Outcome

METRIC_OF = {
    questions.LATENT: "latent_accuracy",
    questions.LATENT_SHUFFLED: "latent_accuracy_shuffled",
    questions.META: "meta_accuracy",
    questions.META_LEFT_OUT: "meta_accuracy_left_out",
    questions.META_SHUFFLED: "meta_accuracy_shuffled",
}
NOT_FOR_CONTROLS = "questions on meta-latents are asked for the SAE itself, not for controls"
UNIT = "questions"
BINS, PER_BIN = 5, 10
"""Bins of frequency, and so many questions in each at least."""


@dataclass(frozen=True)
class Count:
    """Questions of one kind.

    Attributes:
        right, answered, asked: how many.
        by_chance: targets of which there was nothing to tell; each counts as one answer that is right by chance.
    """

    right: int
    answered: int
    asked: int
    by_chance: int = 0


def count(outcomes: Sequence[Outcome], by_chance: int = 0) -> Count:
    """Count what became of questions."""
    verdicts = Counter(o.verdict for o in outcomes)
    return Count(verdicts[RIGHT], len(outcomes) - verdicts[UNANSWERED], len(outcomes), by_chance)


def accuracy(counted: Count, chance: float, ctx: Context) -> Estimate:
    """Share of right answers among questions that were answered.

    Targets that count as chance are certain: with a share s of them, accuracy and both limits of the interval of the
    others go from p to (1 − s) p + s · chance.
    """
    found = ctx.proportion(counted.right, counted.answered, n_unit=UNIT)
    if not counted.by_chance:
        return found
    n = counted.answered + counted.by_chance
    if found.value is None:
        return Estimate(chance, n, UNIT, "exact")
    s = counted.by_chance / n
    value, low, high = (
        None if p is None else (1 - s) * p + s * chance for p in (found.value, found.ci_low, found.ci_high)
    )
    return replace(found, value=value, n=n, ci_low=low, ci_high=high)


def bounds(counted: Count, chance: float) -> tuple[float, float]:
    """The accuracy if all questions without an answer had been answered wrong, and if all right."""
    n = max(1, counted.asked + counted.by_chance)
    low = counted.right + chance * counted.by_chance
    return low / n, (low + counted.asked - counted.answered) / n


def counts(outcomes: Sequence[Outcome], targets: int, meta: bool) -> dict[str, Count]:
    """By kind of question; where a target has no question of the first two meta kinds, it counts as chance."""
    found = {}
    for kind in METRIC_OF:
        own = [o for o in outcomes if o.question.kind == kind]
        certain = kind in (questions.META, questions.META_LEFT_OUT) and meta
        found[kind] = count(own, targets - len(own) if certain else 0)
    return found


def estimates(counted: dict[str, Count], targets: int, meta: bool, n_options: int, ctx: Context) -> dict[str, Estimate]:
    """All metrics that come from questions."""
    missing = Estimate(None, 0, UNIT, "wilson", reason=NOT_FOR_CONTROLS)
    found = {
        name: missing if kind in META_KINDS and not meta else accuracy(counted[kind], 1 / n_options, ctx)
        for kind, name in METRIC_OF.items()
    }
    without = counted[questions.META].by_chance
    asked, answered = (sum(getattr(c, what) for c in counted.values()) for what in ("asked", "answered"))
    return {
        **found,
        "no_meta_share": ctx.proportion(without, targets, n_unit="latents") if meta else missing,
        "unanswered_share": ctx.proportion(asked - answered, asked, n_unit=UNIT),
    }


@dataclass(frozen=True)
class Bin:
    """Questions on targets of similar density."""

    low: float
    high: float
    counted: Count
    accuracy: Estimate


def by_frequency(outcomes: Sequence[Outcome], density: Float[np.ndarray, " d_sae"], ctx: Context) -> list[Bin]:
    """Accuracy on latents, in bins of density with as many questions each."""
    ranked = sorted(outcomes, key=lambda o: (density[o.question.target], o.question.target))
    parts = np.array_split(np.arange(len(ranked)), max(1, min(BINS, len(ranked) // PER_BIN))) if ranked else []
    found = []
    for part in parts:
        own = [ranked[i] for i in part]
        low, high = (float(density[o.question.target]) for o in (own[0], own[-1]))
        counted = count(own)
        found.append(Bin(low, high, counted, accuracy(counted, 0, ctx)))
    return found
