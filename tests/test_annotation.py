"""From annotated characters to tokens: whatever way documents were cut, a token has the features of its characters."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from saebench_meta.annotation import Truth, annotate, overlapping
from saebench_meta.corpus import Sample, Sampling, draw
from saebench_meta.errors import PluginError, SaebenchError
from saebench_meta.hookspecs import DataIdentity, DatasetLoader
from saebench_meta.models import LanguageModel
from saebench_meta.resolve import ResolvedData
from saebench_meta.worlds import KnownTruth

LETTERS = "abcdefgh"


class Letters:
    """A model whose tokens are the letters of a text: a is 3, b is 4, …; `#` is the special token 2, BOS is 1."""

    ref, n_ctx, bos_id, special_ids = "letters", 64, 1, frozenset({0, 1, 2})

    def tokenizer(self, texts: Sequence[str], **options: Any) -> dict[str, Any]:
        assert options["add_special_tokens"] is False and options["return_offsets_mapping"] is True
        return {
            "input_ids": self.tokenize(texts),
            "offset_mapping": [[(i, i + 1) for i in range(len(t))] for t in texts],
        }

    def tokenize(self, texts: Sequence[str]) -> list[list[int]]:
        return [[2 if c == "#" else LETTERS.index(c) + 3 for c in text] for text in texts]


@dataclass
class Corpus:
    """Documents, annotated by what letter stands at each character; streamed without a length where asked."""

    texts: list[str]
    streamed: bool = False

    def data(self) -> ResolvedData:
        def documents(ref: str, **_: Any) -> Any:
            return (t for t in self.texts) if self.streamed else self.texts

        identity = DataIdentity("letters", split="all")
        return ResolvedData("letters:x", "x", DatasetLoader(documents, lambda *_, **__: identity), identity)

    def truth(self) -> KnownTruth:
        def spans(ref: str, *, split: str | None) -> Iterator[list[Any]]:
            assert (ref, split) == ("x", "all")
            for text in self.texts:
                yield [(i, i + 1, (LETTERS.index(c),)) for i, c in enumerate(text) if c != "#"]

        return KnownTruth("letters", {}, ("letters",), lambda: LETTERS, spans)


def model() -> LanguageModel:
    return cast(LanguageModel, Letters())


def annotated(corpus: Corpus, **sampling: Any) -> tuple[Sample, Truth]:
    sample = draw(corpus.texts, model(), Sampling(**{"context": 64, **sampling}))
    return sample, annotate(corpus.truth(), corpus.data(), sample, model())


@given(
    st.lists(st.text("abcdefgh#", max_size=14), min_size=1, max_size=9),
    st.integers(2, 9),
    st.booleans(),
    st.booleans(),
    st.booleans(),
    st.integers(0, 3),
)
def test_every_token_has_the_feature_of_its_letter(
    texts: list[str], context: int, bos: bool, concat: bool, streamed: bool, seed: int
) -> None:
    packing = "concat" if concat else "documents"
    try:
        sample, truth = annotated(Corpus(texts, streamed), context=context, prepend_bos=bos, packing=packing, seed=seed)
    except SaebenchError as e:  # nothing to evaluate, or not one whole row
        assert not isinstance(e, PluginError)
        return
    tokens = sample.tokens[sample.evaluated].numpy()
    assert truth.features == tuple(LETTERS)
    assert truth.on.shape == (sample.n_evaluated, len(LETTERS)) and truth.on.dtype == bool
    assert np.array_equal(truth.on.toarray(), tokens[:, None] == np.arange(len(LETTERS)) + 3)


def test_a_part_of_a_sample_has_its_part_of_the_truth() -> None:
    corpus = Corpus(["abc", "de#f", "gh", "abcdefgh"])
    sample, whole = annotated(corpus, context=5, packing="concat")
    part = sample.limit_documents(2)
    truth = annotate(corpus.truth(), corpus.data(), part, model())
    assert 0 < truth.on.shape[0] < whole.on.shape[0]
    assert np.array_equal(truth.on.toarray(), whole.on.toarray()[: truth.on.shape[0]])


def test_a_token_is_on_where_its_characters_overlap_a_span() -> None:
    # " Paris" with its space, "," and a token without characters of its own.
    characters = np.array([[0, 6], [6, 7], [7, 7], [7, 12]])
    spans = [(1, 6, (2, 0)), (6, 7, ()), (5, 9, (1,)), (0, 0, (3,))]
    token, feature = overlapping(spans, characters, 4)
    assert sorted(zip(token.tolist(), feature.tolist(), strict=True)) == [(0, 0), (0, 1), (0, 2), (1, 1), (3, 1)]
    assert [len(x) for x in overlapping([], characters, 4)] == [0, 0]
    for wrong in (4, -1):
        with pytest.raises(PluginError, match="of 4: features are numbered from 0"):
            overlapping([(0, 2, (wrong,))], characters, 4)


def test_two_spans_of_one_feature_on_one_token_are_on_once() -> None:
    corpus = Corpus(["ab"])
    twice = replace(corpus.truth(), annotate=lambda ref, *, split: [[(0, 1, (0, 0)), (0, 2, (0,))]])
    sample = draw(corpus.texts, model(), Sampling(context=8))
    on = annotate(twice, corpus.data(), sample, model()).on
    assert on.toarray().tolist() == [[True, *[False] * 7]] * 2 and on.nnz == 2


@pytest.mark.parametrize("streamed", [False, True])
def test_annotations_that_do_not_fit_the_corpus_are_the_plugins_fault(streamed: bool) -> None:
    corpus = Corpus(["abc", "def"], streamed)
    sample = draw(corpus.texts, model(), Sampling(context=8))
    corpus.texts = ["abc"]
    with pytest.raises(PluginError, match="has 1 documents, the sample is of 2 or more"):
        annotate(corpus.truth(), corpus.data(), sample, model())
    corpus.texts = ["abd", "def"]
    with pytest.raises(PluginError, match="document 0 of the corpus is not the one of the sample"):
        annotate(corpus.truth(), corpus.data(), sample, model())


def test_a_tokenizer_that_knows_no_characters_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def slow(self: Letters, texts: Sequence[str], **_: Any) -> Any:
        raise NotImplementedError

    corpus = Corpus(["abc"])
    sample = draw(corpus.texts, model(), Sampling(context=8))
    monkeypatch.setattr(Letters, "tokenizer", slow)
    with pytest.raises(SaebenchError, match=r"add tokenizer\.json"):
        annotate(corpus.truth(), corpus.data(), sample, model())
