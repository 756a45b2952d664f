"""The texts of a labelled set as a language model sees them: cut to its context, each once, in an order of their own.

    set ─ tokens, cut to the context ─ conflicts and repeats left out ─ `--limit` ─► texts in canonical order

The canonical order is that of the texts' hashes, so that nothing depends on the order of a file. Two texts count as
the same where their tokens are the same after cutting: the model cannot tell them apart, whatever follows.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from saebench_meta import seeds
from saebench_meta.corpus import TOKENIZE_AT_ONCE
from saebench_meta.errors import BadFileError, SaebenchError
from saebench_meta.hookspecs import LabelledSet

if TYPE_CHECKING:
    from saebench_meta.models import LanguageModel

TEST = "test"
"""The split that is only tested on; texts of every other one are to be split into training and validation."""
FEWEST = {"training": 4, TEST: 1}
"""Texts that each class must have in its part for training and validation, and in the test split."""
NO_TOKENS, TWO_LABELS, BOTH_SPLITS, REPEATED = "without tokens", "with two labels", "in both splits", "repeated"


@dataclass(frozen=True)
class Text:
    """One text: the hash of its whole wording, its tokens as they are evaluated, its class and its split."""

    digest: str
    ids: tuple[int, ...]
    label: int
    test: bool


@dataclass(frozen=True)
class Texts:
    """The texts of a set in canonical order, and how many were left out and why."""

    kept: tuple[Text, ...]
    dropped: Mapping[str, int]


def texts_of(found: LabelledSet, name: str, model: LanguageModel, length: int) -> Texts:
    """All texts of a set, the first `length` tokens of each, without those that cannot be used.

    Left out, and counted in `dropped`: texts without a token that could be evaluated; with two labels; in the test
    split and in another one (the test copy stays); repeats within a split (one copy stays).

    Raises:
        BadFileError: there are fewer than two classes, or too few texts of one.
    """
    if len(found.classes) < 2:
        raise BadFileError(f"labelled set '{name}' has one class, '{''.join(found.classes)}': give two or more")
    dropped: Counter[str] = Counter()
    same: dict[tuple[int, ...], list[Text]] = {}
    for text in _tokenised(found, model, length):
        if all(i in model.special_ids for i in text.ids):
            dropped[NO_TOKENS] += 1
        else:
            same.setdefault(text.ids, []).append(text)
    kept = []
    for copies in same.values():
        if len({text.label for text in copies}) > 1:
            dropped[TWO_LABELS] += len(copies)
            continue
        tested = [text for text in copies if text.test]
        dropped[BOTH_SPLITS] += len(copies) - len(tested) if tested else 0
        dropped[REPEATED] += len(tested or copies) - 1
        kept.append((tested or copies)[0])
    check_classes(kept, found.classes, name)
    return Texts(tuple(kept), {why: n for why, n in sorted(dropped.items()) if n})


def check_classes(texts: Sequence[Text], classes: Sequence[str], name: str, limit: int | None = None) -> None:
    """Refuse a set that no probe can be trained and tested on.

    Raises:
        BadFileError: a class has fewer texts than `FEWEST`.
        SaebenchError: it has them only without `limit`.
    """
    counts = Counter((text.label, text.test) for text in texts)
    for label, said in enumerate(classes):
        for part, fewest in FEWEST.items():
            if (n := counts[label, part == TEST]) < fewest:
                few = f"class '{said}' has {n} texts for {part}, at least {fewest} are needed"
                if limit is not None:
                    raise SaebenchError(f"labelled set '{name}' cut to --limit {limit}: {few}; give a larger --limit")
                raise BadFileError(f"labelled set '{name}': {few} (texts that are the same to the model count once)")


def cut(texts: Texts, limit: int, classes: Sequence[str], name: str, seed: int) -> Texts:
    """A seeded subset of `limit` texts, with the shares of classes and splits kept as far as whole texts allow.

    Raises:
        SaebenchError: too few texts of a class would be left.
    """
    if limit >= len(texts.kept):
        return texts
    strata: dict[tuple[int, bool], list[int]] = {}
    for i, text in enumerate(texts.kept):
        strata.setdefault((text.label, text.test), []).append(i)
    exact = {key: limit * len(members) / len(texts.kept) for key, members in sorted(strata.items())}
    sizes = {key: int(share) for key, share in exact.items()}
    for key in sorted(exact, key=lambda key: (sizes[key] - exact[key], key))[: limit - sum(sizes.values())]:
        sizes[key] += 1  # the largest remainders
    chosen: list[int] = []
    for (label, test), size in sizes.items():
        draw = seeds.rng(seed, "texts", name, classes[label], test)
        chosen += [strata[label, test][i] for i in draw.permutation(len(strata[label, test]))[:size]]
    kept = tuple(texts.kept[i] for i in sorted(chosen))
    check_classes(kept, classes, name, limit)
    return Texts(kept, texts.dropped)


def cut_by_profile(texts: Texts, least: int, classes: Sequence[str], name: str, seed: int) -> Texts:
    """As `cut`, to the first of `least`, twice that, and so on that leaves enough texts of every class."""
    while least < len(texts.kept):
        with contextlib.suppress(SaebenchError):
            return cut(texts, least, classes, name, seed)
        least *= 2
    return texts


def _tokenised(found: LabelledSet, model: LanguageModel, length: int) -> list[Text]:
    """Every text with its first tokens, in canonical order."""
    flat = [
        (hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest(), split == TEST, label, text)
        for split, texts in found.texts.items()
        for text, label in zip(texts, found.labels[split], strict=True)
    ]
    flat.sort()
    out: list[Text] = []
    for start in range(0, len(flat), TOKENIZE_AT_ONCE):
        block = flat[start : start + TOKENIZE_AT_ONCE]
        for (digest, test, label, _), ids in zip(block, model.tokenize([text for *_, text in block]), strict=True):
            out.append(Text(digest, tuple(ids[:length]), label, test))
    return out
