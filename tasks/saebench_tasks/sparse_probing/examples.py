"""Which texts of a set the probes are fitted, chosen and scored on: the same for every k, SAE, baseline and control."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from saebench_meta import seeds

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int

    from saebench_meta.labelled import Labelled

VALIDATION = 0.25
"""Share of a class's texts outside the test split that C is chosen on."""


@dataclass(frozen=True, eq=False)
class Examples:
    """One probe a class, that class against all others; a set of two classes has one probe, since the other mirrors it.

    Attributes:
        name: of the set.
        ids: of the test texts, so that two results are paired text by text.
        classes: names of the classes that have a probe.
        positive: whether a text is of the probe's class.
        train, validation: disjoint, for each split seed; together all texts outside the test split.
        test: texts that scores are taken on, by number.
        label: class of each test text.
    """

    name: str
    ids: tuple[str, ...]
    classes: tuple[str, ...]
    positive: Bool[np.ndarray, "classes texts"]
    train: Bool[np.ndarray, "splits texts"]
    validation: Bool[np.ndarray, "splits texts"]
    test: Int[np.ndarray, " test"]
    label: Int[np.ndarray, " test"]

    @property
    def problems(self) -> list[tuple[int, int]]:
        """(class, split) of each probe of one k, in the order in which they are worked on."""
        return [(c, s) for c in range(len(self.positive)) for s in range(len(self.train))]


def examples(labelled: Labelled, seed: int, splits: int) -> Examples:
    """Split the texts outside the test split, class by class, once a split seed.

    The streams bear the task's name and not that of whoever asks, so that the family task has the same examples.
    """
    train = np.zeros((splits, labelled.n_texts), dtype=bool)
    for s in range(splits):
        rng = seeds.rng(seed, "sparse_probing", "split", labelled.name, s)
        for c in range(len(labelled.classes)):
            texts = rng.permutation(np.flatnonzero((labelled.label == c) & ~labelled.test))
            train[s, texts[max(1, round(VALIDATION * len(texts))) :]] = True
    probed = probed_classes(labelled)
    test = np.flatnonzero(labelled.test)
    return Examples(
        labelled.name,
        test_ids(labelled),
        tuple(labelled.classes[c] for c in probed),
        labelled.label == np.array(probed)[:, None],
        train,
        ~train & ~labelled.test,
        test,
        labelled.label[test],
    )


def test_ids(labelled: Labelled) -> tuple[str, ...]:
    """Names of the test texts, with the set's: two sets may hold one text."""
    return tuple(f"{labelled.name}/{labelled.ids[i]}" for i in np.flatnonzero(labelled.test))


def probed_classes(labelled: Labelled) -> range:
    """Numbers of the classes that have a probe."""
    n = len(labelled.classes)
    return range(1 if n == 2 else n)


def balanced(
    positive: Bool[np.ndarray, "problems texts"], chosen: Bool[np.ndarray, "problems texts"]
) -> Float[np.ndarray, "problems texts"]:
    """Weights of the chosen texts, on average 1: the texts of the class weigh as much as the others together."""
    weights = np.zeros(positive.shape)
    total = chosen.sum(1, keepdims=True)
    for side in (positive & chosen, ~positive & chosen):
        weights += side * total / (2 * np.maximum(1, side.sum(1, keepdims=True)))
    return weights
