"""Drawing, cutting and counting of documents."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from saebench_meta import corpus
from saebench_meta.corpus import PADDING, Sample, Sampling, draw, shuffled
from saebench_meta.errors import SaebenchError


class Letters:
    """A model whose tokens are the letters of a text: a is 3, b is 4, …; `#` is the special token 2, BOS is 1."""

    ref, n_ctx, bos_id, special_ids = "letters", 64, 1, frozenset({0, 1, 2})

    def tokenize(self, texts: Sequence[str]) -> list[list[int]]:
        return [[2 if c == "#" else ord(c) - ord("a") + 3 for c in text] for text in texts]


def drawn(documents: Any, /, **sampling: Any) -> Sample:
    return draw(documents, Letters(), Sampling(**{"context": 64, **sampling}))  # type: ignore[arg-type]


def rows(sample: Sample) -> set[tuple[int, ...]]:
    return {tuple(t[:n].tolist()) for t, n in zip(sample.tokens, sample.lengths, strict=True)}


def test_documents_are_cut_into_rows_that_begin_with_bos() -> None:
    sample = drawn(["abcde", "fg"], context=3)
    assert rows(sample) == {(1, 3, 4), (1, 5, 6), (1, 7), (1, 8, 9)}
    assert drawn(["abcde"], context=3, prepend_bos=False).tokens.tolist() == [[3, 4, 5], [6, 7, 0]]


def test_only_real_tokens_that_are_not_special_are_evaluated() -> None:
    sample = drawn(["a#b"], context=6)
    assert sample.tokens.tolist() == [[1, 3, 2, 4, 0, 0]]
    assert sample.evaluated.tolist() == [[False, True, False, True, False, False]]
    assert sample.document.tolist() == [[0, 0, 0, 0, PADDING, PADDING]]
    assert sample.n_evaluated == 2


def test_concat_fills_every_row_and_keeps_the_document_of_every_token() -> None:
    sample = drawn(["abc", "defgh"], context=4, packing="concat")
    names = sample.document_ids
    texts = {"0": [3, 4, 5], "1": [6, 7, 8, 9, 10]}
    stream = [1, *texts[names[0]], 1, *texts[names[1]]]
    got = sample.tokens.flatten().tolist()
    assert sample.lengths.tolist() == [4] * sample.n_rows
    assert [t for t in got if t > 1] == [t for t in stream if t > 1][: sum(t > 1 for t in got)]
    assert all(row[0] == 1 for row in sample.tokens.tolist())
    for token, document in zip(got, sample.document.flatten().tolist(), strict=True):
        assert token == 1 or token in texts[names[document]]
    assert not any(a == b == 1 for row in sample.tokens.tolist() for a, b in pairwise(row))


def test_concat_leaves_out_what_does_not_fill_a_row() -> None:
    sample = drawn(["abcdef"], context=4, packing="concat")
    assert sample.tokens.tolist() == [[1, 3, 4, 5], [1, 6, 7, 8]]
    assert drawn(["abcdefg"], context=4, packing="concat").tokens.tolist() == sample.tokens.tolist()
    with pytest.raises(SaebenchError, match="do not fill one row"):
        drawn(["ab"], context=8, packing="concat")


def test_drawing_stops_with_the_document_that_reaches_the_budget() -> None:
    texts = ["abcde"] * 50
    assert drawn(texts, tokens=11).n_docs == 3
    assert drawn(texts, tokens=10).n_docs == 2
    assert drawn(texts, documents=4).n_docs == 4
    assert drawn(texts, tokens=11, documents=2).n_docs == 2
    assert drawn(texts).n_docs == 50


def test_drawing_is_seeded_and_without_replacement() -> None:
    texts = [chr(97 + i) * 3 for i in range(20)]
    a, b, c = drawn(texts, documents=20), drawn(texts, documents=20), drawn(texts, documents=20, seed=1)
    assert a.content_hash() == b.content_hash() != c.content_hash()
    assert sorted(map(int, a.document_ids)) == list(range(20))
    for row, document in zip(a.tokens, a.document, strict=True):
        assert row[1] == int(a.document_ids[document[0]]) + 3


def test_documents_added_later_change_neither_ids_nor_the_order_of_those_before() -> None:
    short = [i for i, _ in shuffled(["x"] * 30, 5)]
    long = [i for i, _ in shuffled(["x"] * 47, 5)]
    assert [i for i in long if i < 30] == short


def test_a_stream_is_shuffled_without_losing_or_repeating(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(corpus, "SHUFFLE_BUFFER", 8)

    def stream() -> Iterator[str]:
        yield from (str(i) for i in range(100))

    a = list(shuffled(stream(), 0))
    assert a == list(shuffled(stream(), 0)) != list(shuffled(stream(), 1))
    assert sorted(i for i, _ in a) == list(range(100)) and all(str(i) == t for i, t in a)
    assert [i for i, _ in a] != list(range(100))


def test_a_stream_is_read_no_further_than_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(corpus, "SHUFFLE_BUFFER", 8)
    taken: list[int] = []

    def endless() -> Iterator[str]:
        while True:
            taken.append(1)
            yield "abc"

    assert drawn(endless(), tokens=6).n_docs == 2
    assert len(taken) <= 8 + corpus.TOKENIZE_AT_ONCE + 1


def test_documents_without_a_token_to_evaluate_are_skipped_and_counted() -> None:
    sample = drawn(["", "ab", "##", "c"])
    assert sample.skipped == 2 and sorted(sample.document_ids) == ["1", "3"]


@pytest.mark.parametrize(
    ("documents", "message"),
    [
        ([], "no documents"),
        (iter([]), "no documents"),
        (["", "#"], "all 2 documents"),
        ([{"t": 1}], "is dict, not text"),
    ],
)
def test_a_corpus_without_text_is_refused(documents: Any, message: str) -> None:
    with pytest.raises(SaebenchError, match=message):
        drawn(documents)


def test_bad_sampling_is_refused() -> None:
    for bad in ({"tokens": 0}, {"documents": 0}, {"context": 1}, {"packing": "other"}, {"context": 65}):
        with pytest.raises(SaebenchError):
            drawn(["abc"], **bad)
    model = Letters()
    model.bos_id = None  # type: ignore[assignment]
    with pytest.raises(SaebenchError, match="has none"):
        draw(["abc"], model, Sampling(context=8))  # type: ignore[arg-type]


words = st.lists(st.text("abcdefg#", min_size=0, max_size=30), min_size=1, max_size=12).filter(
    lambda texts: any(c != "#" for t in texts for c in t)
)


@given(words, st.integers(2, 9), st.booleans())
def test_every_letter_of_every_document_is_there_once(texts: list[str], context: int, bos: bool) -> None:
    sample = drawn(texts, context=context, prepend_bos=bos)
    for number, name in enumerate(sample.document_ids):
        kept = sample.tokens[(sample.document == number) & (sample.tokens != 1)].tolist()
        assert kept == Letters().tokenize([texts[int(name)]])[0]
    assert sample.n_evaluated == sum(c != "#" for i in sample.document_ids for c in texts[int(i)])


@given(words, st.integers(2, 9), st.integers(1, 7), st.sampled_from(["documents", "concat"]))
def test_batches_cover_every_row_once_and_hold_all_its_tokens(
    texts: list[str], context: int, size: int, packing: str
) -> None:
    try:
        sample = drawn(texts, context=context, packing=packing)
    except SaebenchError:
        return
    for batches in (list(sample.batches(size)), list(sample.batches(tokens=size * 3))):
        assert sorted(r for b in batches for r in b.rows.tolist()) == list(range(sample.n_rows))
        assert sum(int(b.evaluated.sum()) for b in batches) == sample.n_evaluated
        for b in batches:
            width = b.tokens.shape[1]
            assert width == int(sample.lengths[b.rows].max())
            assert torch.equal(b.tokens, sample.tokens[b.rows, :width])
    assert all(b.tokens.numel() <= size * 3 or len(b.rows) == 1 for b in sample.batches(tokens=size * 3))
    assert all(len(b.rows) <= size for b in sample.batches(size))


@pytest.mark.parametrize("packing", ["documents", "concat"])
def test_limiting_documents_keeps_the_first_drawn_as_they_were(packing: str) -> None:
    sample = drawn(["abcdefg", "hij", "klmno", "pq"], context=4, packing=packing)
    part = sample.limit_documents(2)
    assert part.document_ids == sample.document_ids[:2] and part.n_docs == 2
    assert part.n_evaluated == int((sample.evaluated & (sample.document < 2)).sum())
    for row in range(part.n_rows):
        n = int(part.lengths[row])
        assert torch.equal(part.tokens[row, :n], sample.tokens[row, :n])
        assert part.document[row, :n].max() < 2 and (part.document[row, n:] == PADDING).all()
        assert not part.evaluated[row, n:].any()
    assert sample.limit_documents(99) is sample


def test_the_content_hash_follows_the_content() -> None:
    sample = drawn(["abc", "def"], context=4)
    other = replace(sample, tokens=sample.tokens.flip(0))
    assert sample.content_hash() == replace(sample).content_hash() != other.content_hash()
    assert sample.content_hash() != replace(sample, evaluated=~sample.evaluated).content_hash()
