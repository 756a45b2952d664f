"""The eight labelled sets of the literature (paper, A.9.1): where they are, their classes, and how texts are chosen.

Sources, classes and sizes are those of the common suite, sae-bench 0.6.0: 2,000 texts of each class for training and
500 for testing. What differs is that nothing depends on chance or on the order of rows, and that no text is twice:

    rows ─ columns, clean-up ─► (class, group, text) ─ distinct, with one class ─ smallest hashes ─► train and test

The texts of a class are those with the smallest sha256, the same number from each group that it is balanced by. Where
a source has no test split, the smallest hashes are for training and the next ones for testing.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import PurePosixPath
from typing import Any

from saebench_meta.errors import BadFileError, UnknownNameError, did_you_mean
from saebench_meta.hookspecs import DataIdentity, LabelledSet
from saebench_plugins import hub, hub_data

SCHEME = "hub"
TRAIN, TEST = 2000, 500
"""Texts of each class."""
CODE_SKIPPED, CODE_LEAST, CODE_KEPT = 150, 384, 16_384
"""Characters of a program: left out at its beginning, where licences stand; at least left; at most kept."""
CODE_FILES = "data/train-0000*.parquet"
"""The first of the many files of the programs; more than enough of each language."""

Found = tuple[str, object, str]
"""Class, the group in it that it is balanced by, and text."""


@dataclass(frozen=True)
class HubSet:
    """One of the eight.

    Attributes:
        repository: its name on the hub.
        classes: names, in order.
        read: `(commit, split) -> (class, group, text)`; rows of other classes left out, texts cleaned up.
        splits: whether the source has a test split of its own; else texts are split by their hashes.
        groups: in each class, of equal size.
        enough: stop reading at so many distinct texts of each class; None reads the split to its end.
    """

    repository: str
    classes: tuple[str, ...]
    read: Callable[[str, str], Iterator[Found]]
    splits: bool = True
    groups: int = 1
    enough: int | None = None


# -- reading


def _columns(
    repository: str, text: str, label: str, classes: Mapping[Any, str], group: str | None = None
) -> Callable[[str, str], Iterator[Found]]:
    """Rows of a table with a column for each."""

    def read(commit: str, split: str) -> Iterator[Found]:
        for row in hub_data.rows(repository, split, commit, keep=True):
            name = classes.get(_field(row, label, repository))
            if name is not None:
                yield name, _field(row, group, repository) if group else None, _field(row, text, repository).strip()

    return read


def _field(row: Mapping[str, Any], column: str, repository: str) -> Any:
    if column not in row:
        raise BadFileError(f"data set '{repository}' has no field '{column}'{did_you_mean(column, list(row))}")
    return row[column]


def _professions(names: Mapping[int, str]) -> HubSet:
    repository = "LabHC/bias_in_bios"
    read = _columns(repository, "hard_text", "profession", names, "gender")
    return HubSet(repository, tuple(names.values()), read, groups=2)


AMAZON = "canrager/amazon_reviews_mcauley_1and5"
AMAZON_CATEGORIES = {
    1: "Toys_and_Games",
    2: "Cell_Phones_and_Accessories",
    3: "Industrial_and_Scientific",
    5: "Musical_Instruments",
    6: "Electronics",
}
AMAZON_RATINGS = {1.0: "1 star", 5.0: "5 stars"}
AG_NEWS = "fancyzhx/ag_news"
AG_TOPICS = {0: "World", 1: "Sports", 2: "Business", 3: "Sci/Tech"}

PROGRAMS = "codeparrot/github-code"
SUFFIXES = {
    ".c": "C",
    ".h": "C",
    ".py": "Python",
    ".html": "HTML",
    ".java": "Java",
    ".php": "PHP",
    ".php3": "PHP",
    ".php4": "PHP",
    ".php5": "PHP",
    ".phps": "PHP",
    ".phpt": "PHP",
}
"""What the data set itself tells languages by."""

SPEECHES = "Helsinki-NLP/europarl"
PAIRS = {"en": "en-fr", "fr": "fr-it", "de": "de-en", "es": "es-fr", "nl": "nl-pt"}
"""Language -> the aligned pair that its side is taken from."""


def _programs(commit: str, split: str) -> Iterator[Found]:
    for row in hub_data.rows(PROGRAMS, split, commit, files=CODE_FILES):
        language = row["language"] if "language" in row else SUFFIXES.get(PurePosixPath(row.get("path", "")).suffix)
        code = row["code"] if "code" in row else _field(row, "content", PROGRAMS)
        if language is not None and len(code) > CODE_SKIPPED + CODE_LEAST:
            yield language, None, code[CODE_SKIPPED : CODE_SKIPPED + CODE_KEPT]


def _speeches(commit: str, split: str) -> Iterator[Found]:
    """Languages in turn, so that reading ends when there are enough of all."""
    return chain.from_iterable(zip(*(_side(language, commit, split) for language in PAIRS), strict=False))


def _side(language: str, commit: str, split: str) -> Iterator[Found]:
    for row in hub_data.rows(f"{SPEECHES}:{PAIRS[language]}", split, commit):
        yield language, None, row["translation"][language].strip()


SETS: Mapping[str, HubSet] = {
    "bias-in-bios-1": _professions({0: "accountant", 1: "architect", 2: "attorney", 6: "dentist", 9: "filmmaker"}),
    "bias-in-bios-2": _professions({11: "journalist", 13: "nurse", 14: "painter", 18: "photographer", 19: "physician"}),
    "bias-in-bios-3": _professions({20: "poet", 21: "professor", 22: "psychologist", 25: "surgeon", 26: "teacher"}),
    "amazon-categories": HubSet(
        AMAZON,
        tuple(AMAZON_CATEGORIES.values()),
        _columns(AMAZON, "text", "category", AMAZON_CATEGORIES, "rating"),
        groups=2,
    ),
    "amazon-sentiment": HubSet(
        AMAZON, tuple(AMAZON_RATINGS.values()), _columns(AMAZON, "text", "rating", AMAZON_RATINGS)
    ),
    "github-code": HubSet(
        PROGRAMS, ("C", "Python", "HTML", "Java", "PHP"), _programs, splits=False, enough=TRAIN + TEST
    ),
    "ag-news": HubSet(AG_NEWS, tuple(AG_TOPICS.values()), _columns(AG_NEWS, "text", "label", AG_TOPICS)),
    "europarl": HubSet(SPEECHES, tuple(PAIRS), _speeches, splits=False, enough=TRAIN + TEST),
}


# -- choosing


class Pool:
    """The distinct texts of a split with the smallest hashes, of each class and group; at least `needed` of each.

    Attributes:
        kept: (class, group) -> hash -> text.
    """

    def __init__(self, needed: int) -> None:
        self.needed = needed
        self.kept: dict[tuple[str, object], dict[str, str]] = {}
        self._seen: Counter[str] = Counter()

    def add(self, name: str, group: object, text: str) -> None:
        own = self.kept.setdefault((name, group), {})
        digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
        if digest not in own:
            own[digest] = text
            self._seen[name] += 1
        if len(own) >= 8 * self.needed:  # half of the room is left for texts that turn out to have two classes
            self.kept[name, group] = {d: own[d] for d in sorted(own)[: 4 * self.needed]}

    def full(self, classes: Iterable[str], enough: int) -> bool:
        """Whether so many different texts of every class were added."""
        return all(self._seen[name] >= enough for name in classes)

    def ranked(self, name: str, excluded: set[str]) -> list[list[tuple[str, str]]]:
        """Of each group of a class, hashes and texts, the smallest hashes first."""
        groups = sorted((key for key in self.kept if key[0] == name), key=str)
        return [sorted((d, t) for d, t in self.kept[key].items() if d not in excluded) for key in groups]

    def ambiguous(self) -> set[str]:
        """Hashes of texts with more than one class, or in more than one group."""
        counts = Counter(digest for own in self.kept.values() for digest in own)
        return {digest for digest, n in counts.items() if n > 1}


def load(ref: str) -> LabelledSet:
    """One of the eight, such as `ag-news`, or `ag-news@COMMIT`.

    Raises:
        UnknownNameError: there is no such set.
        SaebenchError: its repository cannot be had; or it has too few texts of a class.
    """
    of, commit = _at(ref)
    pools = {split: _read(of, commit, split) for split in (("train", "test") if of.splits else ("train",))}
    two = set().union(*(pool.ambiguous() for pool in pools.values()))
    chosen: dict[str, list[tuple[int, str]]] = {"train": [], "test": []}
    for label, name in enumerate(of.classes):
        if not of.splits:
            own = _even(pools["train"].ranked(name, two), of, TRAIN + TEST)
            part = min(TRAIN, len(own) * TRAIN // (TRAIN + TEST))
            train, test = own[:part], own[part:]
        else:
            test = _even(pools["test"].ranked(name, two), of, TEST)
            tested = {digest for own in pools["test"].kept.values() for digest in own}
            train = _even(pools["train"].ranked(name, two | tested), of, TRAIN)
        if not train or not test:
            raise BadFileError(f"labelled set '{SCHEME}:{ref}': {of.repository} has no texts of class '{name}' left")
        for split, texts in (("train", train), ("test", test)):
            chosen[split] += [(label, text) for _, text in texts]
    return LabelledSet(
        of.classes,
        texts={split: tuple(text for _, text in own) for split, own in chosen.items()},
        labels={split: tuple(label for label, _ in own) for split, own in chosen.items()},
    )


def peek(ref: str) -> DataIdentity:
    """The set's name and the commit of its repository; the hub is asked once a process."""
    _, commit = _at(ref)
    return DataIdentity(f"{SCHEME}:{ref.partition('@')[0]}", commit)


def _at(ref: str) -> tuple[HubSet, str]:
    name, _, revision = ref.partition("@")
    if name not in SETS:
        raise UnknownNameError(f"the hub's labelled sets have no '{name}'{did_you_mean(name, list(SETS))}")
    of = SETS[name]
    return of, hub.commit_of(of.repository, revision or None, hub_data.CARD, "dataset")


def _read(of: HubSet, commit: str, split: str) -> Pool:
    pool = Pool((TRAIN + TEST) // of.groups)
    for number, (name, group, text) in enumerate(of.read(commit, split), 1):
        if text and name in of.classes:
            pool.add(name, group, text)
        if of.enough is not None and number % 1000 == 0 and pool.full(of.classes, of.enough):
            break
    return pool


def _even(groups: list[list[tuple[str, str]]], of: HubSet, size: int) -> list[tuple[str, str]]:
    """The first of each group, equally many of each, `size` together where there are so many."""
    if len(groups) < of.groups:
        return []
    each = min(size // of.groups, *(len(group) for group in groups))
    return sorted(pair for group in groups for pair in group[:each])
