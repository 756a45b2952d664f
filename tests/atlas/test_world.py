"""The generator: deterministic, closed over its vocabulary, true to its facts, with disjoint splits."""

from __future__ import annotations

import random
import re
from collections import Counter
from itertools import islice

import pytest

from saebench_plugins.atlas.lexicon import CITIES, KINDS, RELATIONS, vocabulary
from saebench_plugins.atlas.world import (
    HELD_OUT_FRAMES,
    MAX_WORDS,
    MIN_WORDS,
    Chooser,
    Split,
    derive,
    documents,
    fingerprint,
    generate,
    is_held_out,
    split_of,
    stream,
)


def test_same_seed_gives_the_same_documents_whatever_the_global_generator() -> None:
    random.seed(1)
    first = documents(20, 3, "heldout")
    random.seed(2)
    assert documents(20, 3, "heldout") == first
    assert documents(10, 3, "heldout") == first[:10]


def test_seeds_and_splits_give_different_documents() -> None:
    streams = [documents(100, seed, split) for seed in (0, 1) for split in ("train", "heldout", "evaluation")]
    texts = [text for drawn in streams for text in drawn]
    assert len(set(texts)) == len(texts)


def test_a_text_belongs_to_one_split_only() -> None:
    for split in ("train", "heldout", "evaluation"):
        assert {split_of(text) for text in documents(50, 9, split)} == {split}


def test_documents_have_the_promised_length() -> None:
    lengths = [len(text.split()) for text in documents(500, 4)]
    assert min(lengths) >= MIN_WORDS
    assert max(lengths) <= MAX_WORDS


def test_documents_use_only_the_vocabulary_and_nearly_all_of_it() -> None:
    seen = {word for text in documents(1500, 5) for word in text.split()}
    assert seen <= set(vocabulary())
    assert len(seen) > 0.95 * len(vocabulary())


def test_every_word_is_one_token_however_text_is_split() -> None:
    assert [word for word in vocabulary() if re.findall(r"\w+|[^\w\s]+", word) != [word]] == []
    assert len(vocabulary()) >= 1500


def test_facts_table_is_large_and_its_cities_unique() -> None:
    assert len({city.name for city in CITIES}) == len(CITIES) >= 40
    of_country = {city.country: (city.currency, city.continent) for city in CITIES}
    assert all(of_country[city.country] == (city.currency, city.continent) for city in CITIES)


def test_relations_do_not_share_values() -> None:
    values = [{city.attribute(relation) for city in CITIES} for relation in RELATIONS]
    assert len(set.union(*values)) == sum(len(v) for v in values)


def test_attribute_words_are_used_for_nothing_else() -> None:
    attributes = {city.attribute(relation) for city in CITIES for relation in RELATIONS}
    others = set(vocabulary([kind for kind in KINDS if kind.name != "travel"]))
    assert not attributes & others


def test_stated_facts_are_true_and_far_from_their_city() -> None:
    table = {city.name: city for city in CITIES}
    values = {city.attribute(relation) for city in CITIES for relation in RELATIONS}
    stated = 0
    for document in islice(stream(6, "train"), 500):
        for sentence in document.sentences:
            if sentence.kind.name != "travel":
                continue
            city = table[sentence.theme.name.removeprefix("city:")]
            for position, word in enumerate(sentence.words):
                if word in values:
                    stated += 1
                    assert word in {city.attribute(relation) for relation in RELATIONS}
                    assert position - sentence.words.index(city.name) >= 5
    assert stated > 500


def test_kinds_occur_as_often_as_their_weights_say() -> None:
    counts = Counter(document.kind.name for document in islice(stream(7, "train"), 1500))
    for kind in KINDS:
        assert counts[kind.name] / 1500 == pytest.approx(kind.weight / sum(k.weight for k in KINDS), abs=0.05)


def test_paths_tell_from_which_slots_every_word_was_drawn() -> None:
    slots = {"who": ("the {animal}", "she"), "animal": ("cat",)}
    drawn = {tuple(derive("{who} sleeps", slots, Chooser(str(seed)))) for seed in range(20)}
    assert drawn == {
        (("the", ("who",)), ("cat", ("who", "animal")), ("sleeps", ())),
        (("she", ("who",)), ("sleeps", ())),
    }


def test_the_training_split_lacks_the_held_out_frames_and_the_others_have_them() -> None:
    def frames(split: Split) -> list[bool]:
        found = []
        for document in islice(stream(8, split), 400):
            for sentence in document.sentences:
                opening, aside = (
                    " ".join(w for w, path in zip(sentence.words, sentence.paths, strict=True) if path[:1] == (slot,))
                    for slot in ("opening", "aside")
                )
                if opening:
                    found.append(is_held_out(opening, aside))
        return found

    train, heldout = frames("train"), frames("heldout")
    assert len(train) > 1000
    assert not any(train)
    assert sum(heldout) / len(heldout) == pytest.approx(1 / HELD_OUT_FRAMES, abs=0.02)


def test_sentences_that_are_left_out_add_nothing_to_the_surprisal() -> None:
    rates = {}
    for all_frames in (True, False):
        drawn = [generate(str(i), all_frames=all_frames) for i in range(300)]
        rates[all_frames] = sum(d.surprisal for d in drawn) / sum(len(d.words) for d in drawn)
    assert rates[False] == pytest.approx(rates[True], rel=0.01)


def test_surprisal_of_uniform_and_weighted_choices() -> None:
    chooser = Chooser("any")
    chooser.choose("abcd")
    assert chooser.surprisal == pytest.approx(1.3862943611)
    chooser = Chooser("any")
    drawn = chooser.choose_weighted("ab", (3, 1))
    assert chooser.surprisal == pytest.approx({"a": 0.2876820724, "b": 1.3862943611}[drawn])


def test_fingerprint_tells_order_apart() -> None:
    assert fingerprint(["a", "b"]) != fingerprint(["b", "a"])
