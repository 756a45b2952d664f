"""Which texts a trial trains on, and how texts are weighed: classes count the same, and nothing is drawn to balance.

The paper holds a class against "a random mix of all other labels" of the same size. Here all texts of the other classes
are used and weighed, which is the mean over such mixes: with M classes and n_c texts of class c, for the probe of class
j

    w_jt = 1 / (2 n_j)             for a text of class j
    w_jt = 1 / (2 (M − 1) n_c)     for a text of another class c
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int

TRAINED_ON = 0.8
"""Share of the training texts of each class that one trial trains and ranks on; which ones is what a seed changes."""


def draw(
    label: Int[np.ndarray, " texts"], test: Bool[np.ndarray, " texts"], rng: np.random.Generator
) -> Bool[np.ndarray, " texts"]:
    """The texts of a trial: of each class the same share of its training texts, at least one, and not all of them."""
    chosen = np.zeros(len(label), dtype=bool)
    for c in np.unique(label):
        own = np.flatnonzero((label == c) & ~test)
        chosen[rng.permutation(own)[: max(1, min(round(TRAINED_ON * len(own)), len(own) - 1))]] = True
    return chosen


def weights(
    label: Int[np.ndarray, " texts"], chosen: Bool[np.ndarray, " texts"], n_classes: int
) -> Float[np.ndarray, "classes texts"]:
    """w_jt of every class's problem, summing to 1 over the chosen texts; 0 for the others."""
    sizes = np.bincount(label[chosen], minlength=n_classes)
    share = np.where(chosen, 1 / np.maximum(1, sizes)[label], 0.0)
    own = label == np.arange(n_classes)[:, None]
    return share * np.where(own, 1 / 2, 1 / (2 * (n_classes - 1)))


def contrast(
    label: Int[np.ndarray, " texts"], chosen: Bool[np.ndarray, "trials texts"], n_classes: int
) -> Float[np.ndarray, "problems texts"]:
    """Weights that make a sum the mean over a class minus the mean over the others, for each trial's texts."""
    own = label == np.arange(n_classes)[:, None]
    return np.concatenate([np.where(own, 2.0, -2.0) * weights(label, texts, n_classes) for texts in chosen])
