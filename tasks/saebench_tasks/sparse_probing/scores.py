"""From outcomes to scores, averaged over classes and sets with equal weights, and what each test text contributes.

A score is a mean over sets of means over classes of means over texts, so it is no ratio of two sums over texts. What a
text contributes is therefore its pseudo-value: the score plus the text's influence on it. Pseudo-values average to the
score, and their bootstrap has the variance of a resampling within every class of every set, to first order (Efron
1982; for the AUC this is the variance of DeLong, DeLong and Clarke-Pearson 1988)::

    accuracy           texts right / texts asked
    balanced accuracy  ½ (share right of the class's texts + share right of the others)
    AUC                share of pairs, one text of either side, ranked rightly
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int

    from saebench_tasks.sparse_probing.examples import Examples
    from saebench_tasks.sparse_probing.probing import Outcome, Probed

Score = Literal["accuracy", "balanced_accuracy", "auc"]
SCORES: tuple[Score, ...] = get_args(Score)


@dataclass(frozen=True, eq=False)
class Scored:
    """One score of one set.

    Attributes:
        value: by k.
        influence: of each test text on it, n times as much as it moves the score; sums to 0 within a class.
    """

    value: Float[np.ndarray, " ks"]
    influence: Float[np.ndarray, "ks test"]

    @property
    def error(self) -> Float[np.ndarray, " ks"]:
        """Standard error over test texts."""
        return np.asarray(np.sqrt((self.influence**2).sum(1)) / self.influence.shape[1])


def scored(outcome: Outcome, examples: Examples, score: Score) -> Scored:
    """A score of a set, mean over its classes, with the influence of each text."""
    share = _shares(outcome.asked, examples.positive[:, examples.test], score)
    part = (share * (outcome.ranked if score == "auc" else outcome.right)).sum(1)
    # An AUC is a mean over the texts of one side and over those of the other at once: either moves it in full.
    scale = (2 if score == "auc" else 1) * part.shape[1]
    return Scored(part.sum(1), scale * _within_classes(part, examples.label))


def _shares(
    asked: Bool[np.ndarray, "ks classes test"], positive: Bool[np.ndarray, "classes test"], score: Score
) -> Float[np.ndarray, "ks classes test"]:
    """Weight of each text in the score of a set; they sum to 1."""
    n_classes = len(positive)
    if score == "accuracy":
        return np.asarray(asked / asked.sum(2, keepdims=True) / n_classes)
    sides = (asked & positive, asked & ~positive)
    return np.asarray(sum(side / np.maximum(1, side.sum(2, keepdims=True)) for side in sides) / (2 * n_classes))


def _within_classes(part: Float[np.ndarray, "ks test"], label: Int[np.ndarray, " test"]) -> np.ndarray:
    """Minus the mean of its class; scaled up, since the mean is of the same texts."""
    out = np.zeros(part.shape)
    for c in np.unique(label):
        of = part[:, label == c]
        n = of.shape[1]
        out[:, label == c] = (of - of.mean(1, keepdims=True)) * (np.sqrt(n / (n - 1)) if n > 1 else 1.0)
    return out


def over_sets(parts: Sequence[Scored]) -> Float[np.ndarray, "ks texts"]:
    """Pseudo-values of the test texts of all sets for the mean over sets."""
    n, value = sum(p.influence.shape[1] for p in parts), np.mean([p.value for p in parts], axis=0)
    # Within a set an influence counts for n_set texts; among all texts it counts for n, in one of the sets.
    own = [p.influence * n / p.influence.shape[1] / len(parts) for p in parts]
    return np.asarray(value[:, None] + np.concatenate(own, axis=1))


def documents(probed: Sequence[Probed], ks: Sequence[int]) -> dict[str, np.ndarray]:
    """One row a test text: pseudo-values by metric."""
    columns: dict[str, np.ndarray] = {
        "document": np.array([name for p in probed for name in p.examples.ids]),
    }
    columns["texts"] = np.ones(len(columns["document"]))
    for kind, prefix in (("latents", ""), ("random", "random_"), ("dense", "dense_")):
        for score in SCORES:
            if kind == "random" and score != "balanced_accuracy":
                continue
            values = over_sets([scored(getattr(p, kind), p.examples, score) for p in probed])
            names = [f"{prefix}{score}"] if kind == "dense" else [f"{prefix}{score}_k{k}" for k in ks]
            columns.update(zip(names, values, strict=True))
    return columns


def by_set(probed: Sequence[Probed]) -> Mapping[str, Float[np.ndarray, "sets ks"]]:
    """Balanced accuracy of each set, by kind of probe."""
    return {
        kind: np.stack([scored(getattr(p, kind), p.examples, "balanced_accuracy").value for p in probed])
        for kind in ("latents", "random", "dense")
    }
