"""The truth of the atlas world: which generating features are on at every word.

A feature is a choice of the generator that shows in the word it led to:

- ``word:dog``: the word itself;
- ``slot:animal``, ``slot:reviews.verdict``: the slots the word was drawn from, from the pattern inwards;
- ``kind:reviews``: the word belongs to that genre's own patterns or slots, not to those all genres share;
- ``category:books``, ``sentiment:negative``, ``profession:surgeon``, ``topic:sports``, ``code:rust``, …: the word is
  one that only this part of a theme brings;
- ``city``, and ``language:Spanish``, ``currency:euro``, ``continent:Asia``: the word names a city, and its facts.

Features that are on at exactly the same words, such as ``word:Tokyo`` and ``country:Japan``, are one feature with all
their names. Features form a hierarchy: ``word:Lima`` implies ``language:Spanish``, ``continent:South_America`` and
``city``.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from itertools import islice

from saebench_plugins.atlas.lexicon import CITIES, COMMON, KINDS, RELATIONS, Kind, Theme, is_slot
from saebench_plugins.atlas.world import Path, Sentence, Split, stream

_CITIES = {city.name: city for city in CITIES}
Spans = list[tuple[int, int, tuple[int, ...]]]
"""Of one text: start and end of each word in characters, and the numbers of the features that are on there."""


def raw_features(kind: Kind, theme: Theme, own_pattern: bool, path: Path, word: str) -> frozenset[str]:
    """The features of a word, before those that coincide are joined.

    Args:
        own_pattern: whether the sentence's pattern is the theme's own.
    """
    found = {f"word:{word}", *(f"slot:{_owned(kind, theme, slot)}" for slot in path)}
    for label, slots in theme.parts.items():
        if any(slot in slots for slot in path) or (own_pattern and not path):
            found.add(label)
    if not any(_is_common(kind, theme, slot) for slot in path):
        found.add(f"kind:{kind.name}")
    if word in _CITIES:
        found |= {"city", *(f"{relation}:{_CITIES[word].attribute(relation)}" for relation in RELATIONS)}
    return frozenset(found)


def _is_common(kind: Kind, theme: Theme, slot: str) -> bool:
    return slot in COMMON and slot not in kind.slots and slot not in theme.slots


def _owned(kind: Kind, theme: Theme, slot: str) -> str:
    return slot if _is_common(kind, theme, slot) else f"{kind.name}.{slot}"


@lru_cache(maxsize=1)
def feature_names() -> tuple[str, ...]:
    """Names of all features, in the order of their numbers; joined ones as ``a = b``."""
    return tuple(dict.fromkeys(_joined().values()))


@lru_cache(maxsize=1)
def _joined() -> Mapping[str, str]:
    """Raw feature -> name of the feature it is, the same for those that are on at the same words everywhere."""
    places: dict[str, list[int]] = defaultdict(list)
    for place, features in enumerate(_terminals()):
        for feature in features:
            places[feature].append(place)
    same: dict[tuple[int, ...], list[str]] = defaultdict(list)
    for feature in sorted(places):
        same[tuple(places[feature])].append(feature)
    return {feature: " = ".join(together) for together in same.values() for feature in together}


@lru_cache(maxsize=1)
def _numbers() -> Mapping[str, int]:
    order = {name: number for number, name in enumerate(feature_names())}
    return {raw: order[name] for raw, name in _joined().items()}


def _terminals() -> list[frozenset[str]]:
    """The features of every word that can be drawn, by every way of drawing it, in a fixed order."""
    found: dict[frozenset[str], None] = {}
    for kind in KINDS:
        for theme in kind.themes:
            slots = {**COMMON, **kind.slots, **theme.slots}
            for own_pattern, patterns in ((False, kind.patterns), (True, theme.patterns)):
                for path, word in _reachable(patterns, slots):
                    found[raw_features(kind, theme, own_pattern, path, word)] = None
    return list(found)


def _reachable(
    patterns: Iterable[str], slots: Mapping[str, tuple[str, ...]], path: Path = ()
) -> Iterator[tuple[Path, str]]:
    words: dict[str, None] = dict.fromkeys(word for pattern in patterns for word in pattern.split())
    for word in words:
        if is_slot(word):
            yield from _reachable(slots[word[1:-1]], slots, (*path, word[1:-1]))
        else:
            yield path, word


def sentence_features(sentence: Sentence) -> list[tuple[int, ...]]:
    """Numbers of the features that are on at each word of a sentence, ascending."""
    own = sentence.pattern in sentence.theme.patterns
    return [
        _word_features(sentence.kind.name, sentence.theme.name, own, path, word)
        for path, word in zip(sentence.paths, sentence.words, strict=True)
    ]


@lru_cache(maxsize=100_000)
def _word_features(kind: str, theme: str, own: bool, path: Path, word: str) -> tuple[int, ...]:
    numbers = _numbers()
    where, what = _by_name()[kind, theme]
    return tuple(sorted({numbers[raw] for raw in raw_features(where, what, own, path, word)}))


@lru_cache(maxsize=1)
def _by_name() -> Mapping[tuple[str, str], tuple[Kind, Theme]]:
    return {(kind.name, theme.name): (kind, theme) for kind in KINDS for theme in kind.themes}


def annotated(n: int, seed: int, split: Split) -> Iterator[Spans]:
    """The spans of the first `n` documents of a stream, in their order."""
    for document in islice(stream(seed, split), n):
        features = [on for sentence in document.sentences for on in sentence_features(sentence)]
        yield list(_spans(document.words, features))


def _spans(words: Sequence[str], features: Sequence[tuple[int, ...]]) -> Iterator[tuple[int, int, tuple[int, ...]]]:
    start = 0
    for word, on in zip(words, features, strict=True):
        yield start, start + len(word), on
        start += len(word) + 1
