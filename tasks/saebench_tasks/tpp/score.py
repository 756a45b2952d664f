"""From the trials of every set to the numbers of the task: means over log n, over trials and over sets."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from saebench_tasks.tpp.metrics import SIZES

if TYPE_CHECKING:
    from jaxtyping import Float

    from saebench_meta.context import Context
    from saebench_meta.stats import Estimate
    from saebench_tasks.tpp.trial import Drops, Trial


def _over_log_n() -> Float[np.ndarray, " sizes"]:
    """Weights of the sizes in the mean over log n (trapezoid rule)."""
    steps = np.diff(np.log(SIZES))
    return np.asarray(np.convolve(steps, [0.5, 0.5]) / steps.sum())


OVER_LOG_N = _over_log_n()


@dataclass(frozen=True, eq=False)
class SetResult:
    """The trials of one set.

    Attributes:
        counts: whether it is part of the score. With two classes both probes are one classifier, and what hurts one
            hurts the other as much: S is then 0 whatever the SAE.
        ids: of the test texts.
        strength: C of the probes.
    """

    name: str
    classes: tuple[str, ...]
    counts: bool
    ids: tuple[str, ...]
    strength: float
    trials: tuple[Trial, ...]

    @property
    def texts(self) -> int:
        """Test texts."""
        return len(self.ids)

    def mean(self, of: Callable[[Trial], np.ndarray]) -> np.ndarray:
        """Mean over trials."""
        return np.asarray(np.mean([of(trial) for trial in self.trials], axis=0))

    def random(self, of: Callable[[Drops], np.ndarray]) -> np.ndarray:
        """Of every draw of random latents in every trial, one row each."""
        return np.array([of(drops) for trial in self.trials for drops in trial.random])

    def columns(self) -> dict[str, Float[np.ndarray, " texts"]]:
        """What each test text adds to each number of this set."""
        intended, unintended = self.mean(lambda t: t.ranked.intended), self.mean(lambda t: t.ranked.unintended)
        drawn = {
            "random": self.random(lambda d: (d.intended - d.unintended) @ OVER_LOG_N),
            "random_intended": self.random(lambda d: d.intended @ OVER_LOG_N),
        }
        return {
            "intended": intended @ OVER_LOG_N,
            "unintended": unintended @ OVER_LOG_N,
            **{f"score_{n}": (intended - unintended)[:, i] for i, n in enumerate(SIZES)},
            **{name: c.mean(0) if len(c) else np.full(self.texts, np.nan) for name, c in drawn.items()},
            "accuracy": self.mean(lambda t: t.accuracy),
        }


def documents(sets: Sequence[SetResult]) -> dict[str, np.ndarray]:
    """One row a test text of the sets that count, scaled so that the mean over all rows is the mean over these sets."""
    counted = [s for s in sets if s.counts]
    total = sum(s.texts for s in counted)
    parts = [s.columns() for s in counted]
    columns = {
        name: np.concatenate([np.zeros(0), *(part[name] for part in parts)]) * total / max(1, len(counted))
        for name in sets[0].columns()
    }
    names = [f"{s.name}/{text}" for s in counted for text in s.ids]
    return {"document": np.array(names), "texts": np.ones(total), **columns}


def of_trials(sets: Sequence[SetResult]) -> Float[np.ndarray, " trials"]:
    """The score of each trial."""
    return np.asarray(np.mean([[t.ranked.score @ OVER_LOG_N for t in s.trials] for s in sets], axis=0))


def of_random(sets: Sequence[SetResult]) -> Float[np.ndarray, "trials draws"]:
    """The score of each random draw of each trial."""
    return np.asarray(np.mean([[[d.score @ OVER_LOG_N for d in t.random] for t in s.trials] for s in sets], axis=0))


def reseed_sd(sets: Sequence[SetResult], ctx: Context) -> Estimate:
    """Standard deviation of the score over trials."""
    if not (counted := [s for s in sets if s.counts]):
        return ctx.census(None, 0, n_unit="trials", reason=NO_SETS)
    found = of_trials(counted)
    if len(found) < 2:
        return ctx.census(None, len(found), n_unit="trials", reason="one trial has no spread")
    return ctx.census(float(found.std(ddof=1)), len(found), n_unit="trials")


def random_above(sets: Sequence[SetResult], ctx: Context) -> Estimate:
    """How often random latents score as high as the ranked ones of their trial."""
    if not (counted := [s for s in sets if s.counts]):
        return ctx.census(None, 0, n_unit="draws", reason=NO_SETS)
    drawn = of_random(counted)
    if not drawn.size:
        return ctx.census(None, 0, n_unit="draws", reason="the stock protocol has no random latents")
    return ctx.proportion(int((drawn >= of_trials(counted)[:, None]).sum()), drawn.size, n_unit="draws")


NO_SETS = "no set has three classes or more"
