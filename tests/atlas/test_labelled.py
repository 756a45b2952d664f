"""The eight labelled sets: balanced, apart, deterministic, and about what their labels say."""

from __future__ import annotations

import pytest

from saebench_plugins.atlas.labelled import LABELLED_SPLITS, PER_CLASS, SETS, examples
from saebench_plugins.atlas.lexicon import KINDS
from saebench_plugins.atlas.site import LABELLED
from saebench_plugins.atlas.world import split_of


def test_there_are_eight_and_their_classes_are_parts_of_themes() -> None:
    assert len(SETS) == 8
    assert tuple(SETS) == LABELLED
    labels = {label for kind in KINDS for theme in kind.themes for label in theme.parts}
    for recipe in SETS.values():
        assert {f"{recipe.part}:{value}" for value in recipe.classes} <= labels


@pytest.mark.parametrize("name", SETS)
def test_classes_are_balanced_and_splits_apart(name: str) -> None:
    drawn = {split: examples(name, split) for split in LABELLED_SPLITS}
    for split, (texts, labels) in drawn.items():
        assert len(texts) == len(labels) == len(set(texts))
        assert {labels.count(label) for label in range(len(SETS[name].classes))} == {PER_CLASS[split]}
    assert not set(drawn["train"][0]) & set(drawn["test"][0])
    assert {split_of(text) for text in drawn["train"][0]} == {"heldout"}
    assert {split_of(text) for text in drawn["test"][0]} == {"evaluation"}


def test_seeds_give_other_texts_and_the_same_seed_the_same() -> None:
    assert examples("topics", "test") == examples("topics", "test")
    assert examples("topics", "test", 1)[0] != examples("topics", "test")[0]


def test_sentiment_varies_within_categories_and_categories_within_sentiment() -> None:
    happy = {"brilliant", "wonderful", "excellent"}
    texts, labels = examples("categories", "train")
    for label in range(5):
        own = [text.split() for text, each in zip(texts, labels, strict=True) if each == label]
        with_happy_word = sum(bool(happy & set(words)) for words in own)
        assert 0 < with_happy_word < len(own)
