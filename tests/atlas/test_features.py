"""Which features are on: by hand on known sentences, and complete over the world."""

from __future__ import annotations

from itertools import islice

import pytest

from saebench_plugins.atlas.lexicon import CITIES, KINDS, REVIEWS, TRAVEL, Theme
from saebench_plugins.atlas.truth import annotated, feature_names, raw_features, sentence_features
from saebench_plugins.atlas.world import documents, stream

LIMA = next(theme for theme in TRAVEL.themes if theme.name == "city:Lima")


def names_of(raw: str) -> str:
    """The feature that a raw feature belongs to."""
    return next(name for name in feature_names() if raw in name.split(" = "))


def test_features_of_words_by_hand() -> None:
    assert raw_features(TRAVEL, LIMA, False, ("opening", "city"), "Lima") == {
        *("word:Lima", "slot:travel.opening", "slot:travel.city", "kind:travel", "city:Lima", "city"),
        *("country:Peru", "language:Spanish", "currency:sol", "continent:South_America"),
    }
    assert raw_features(TRAVEL, LIMA, False, ("fact", "language_clause"), "people") == {
        *("word:people", "slot:travel.fact", "slot:travel.language_clause", "kind:travel"),
    }
    assert raw_features(TRAVEL, LIMA, False, ("event", "person"), "Anna") == {
        *("word:Anna", "slot:travel.event", "slot:person"),
    }
    negative = next(theme for theme in REVIEWS.themes if theme.name == "category:books sentiment:negative")
    assert raw_features(REVIEWS, negative, False, ("opinion",), "awful") == {
        *("word:awful", "slot:reviews.opinion", "kind:reviews", "sentiment:negative"),
    }
    assert raw_features(REVIEWS, negative, False, (), "the") == {"word:the", "kind:reviews"}


def test_words_of_a_theme_s_own_patterns_belong_to_it() -> None:
    code = next(kind for kind in KINDS if kind.name == "code")
    rust = next(theme for theme in code.themes if theme.name == "code:rust")
    assert raw_features(code, rust, True, (), "fn") == {"word:fn", "kind:code", "code:rust"}
    assert raw_features(code, rust, True, ("digit",), "8") == {"word:8", "slot:code.digit", "kind:code"}
    assert raw_features(code, Theme(), False, (), "fn") == {"word:fn", "kind:code"}


def test_features_that_coincide_are_one_and_others_are_not() -> None:
    assert len(set(feature_names())) == len(feature_names())
    assert names_of("word:Tokyo") == names_of("country:Japan") == names_of("language:Japanese")
    assert names_of("language:Spanish") == "language:Spanish"
    raw = [name for joined in feature_names() for name in joined.split(" = ")]
    assert len(raw) == len(set(raw))


def test_children_imply_their_parents_at_every_word() -> None:
    number = {raw: i for i, joined in enumerate(feature_names()) for raw in joined.split(" = ")}
    seen = 0
    for document in islice(stream(2, "evaluation"), 200):
        for sentence in document.sentences:
            for word, on in zip(sentence.words, sentence_features(sentence), strict=True):
                assert number[f"word:{word}"] in on
                for city in CITIES:
                    if number[f"word:{city.name}"] in on:
                        assert {number["city"], number[f"continent:{city.continent}"]} <= set(on)
                        seen += 1
    assert seen > 100


def test_no_two_features_are_on_at_the_same_words_of_a_corpus_that_has_them_often() -> None:
    places: dict[int, list[int]] = {}
    place = 0
    for spans in annotated(1500, 0, "evaluation"):
        for _, _, on in spans:
            place += 1
            for feature in on:
                places.setdefault(feature, []).append(place)
    often = [tuple(found) for found in places.values() if len(found) >= 100]
    assert len(often) > 300
    assert len(set(often)) == len(often)


@pytest.mark.parametrize("split", ["heldout", "evaluation"])
def test_spans_are_the_words_of_the_documents(split: str) -> None:
    texts = documents(30, 0, split)  # type: ignore[arg-type]
    for text, spans in zip(texts, annotated(30, 0, split), strict=True):  # type: ignore[arg-type]
        assert [text[start:end] for start, end, _ in spans] == text.split()
        assert all(on == tuple(sorted(set(on))) for _, _, on in spans)
