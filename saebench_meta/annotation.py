"""Which generating features are on at every token of a sample, from the annotated characters of its documents.

    documents ─ tokenizer ─► tokens with their characters ┐
                                                          ├─► tokens × features
    documents ─ truth ─────► characters with their features ┘

A token is on for a feature where its characters overlap an annotated span of it. A token without characters of its own
is on for none.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence, Sized
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from scipy import sparse

from saebench_meta.errors import PluginError, SaebenchError

if TYPE_CHECKING:
    from jaxtyping import Int

    from saebench_meta.corpus import Sample
    from saebench_meta.models import LanguageModel
    from saebench_meta.resolve import ResolvedData
    from saebench_meta.worlds import KnownTruth, Span

T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class Truth:
    """The generating features of a sample.

    Attributes:
        features: their names.
        on: (tokens, features) bool, the evaluated tokens in the order of `activations()`.
    """

    features: tuple[str, ...]
    on: sparse.csr_array


def annotate(known: KnownTruth, data: ResolvedData, sample: Sample, model: LanguageModel) -> Truth:
    """The truth of a sample drawn from an annotated corpus.

    Raises:
        PluginError: annotations that do not fit the corpus or name features that are not there.
        SaebenchError: the tokenizer cannot tell which characters a token stands for.
    """
    features = tuple(known.features())
    split, revision = data.identity.split, data.identity.revision
    documents = data.loader.documents(data.rest, split=split, revision=revision, text_field=sample.sampling.text_field)
    wanted = [int(i) for i in sample.document_ids]
    texts = _chosen(documents, wanted, f"corpus '{data.ref}'")
    spans = _chosen(known.annotate(data.rest, split=split), wanted, f"the truth of '{known.model}'")
    ids, characters = _tokens(model, texts)
    rows, columns = [], []
    for document, places in enumerate(_places(sample, ids)):
        token, feature = overlapping(spans[document], characters[document][: len(places)], len(features))
        rows.append(places[token])
        columns.append(feature)
    row, column = np.concatenate(rows), np.concatenate(columns)
    evaluated = row >= 0
    row, column = row[evaluated], column[evaluated]
    shape = (sample.n_evaluated, len(features))
    on = sparse.coo_array((np.ones(len(row), dtype=bool), (row, column)), shape=shape).tocsr()
    return Truth(features, on)


def overlapping(
    spans: Sequence[Span], characters: Int[np.ndarray, "tokens 2"], n_features: int
) -> tuple[Int[np.ndarray, " pairs"], Int[np.ndarray, " pairs"]]:
    """Token numbers and feature numbers of a document, a pair for every feature that is on at a token; may repeat.

    Args:
        characters: first character of each token, and the one after its last.

    Raises:
        PluginError: a feature's number is not below `n_features`.
    """
    edges = np.array([span[:2] for span in spans], dtype=np.int64).reshape(-1, 2)
    first, end = characters[:, :1], characters[:, 1:]
    token, span = ((first < edges[:, 1]) & (end > edges[:, 0]) & (first < end)).nonzero()
    sizes = np.array([len(on) for *_, on in spans], dtype=np.int64)
    flat = np.array([i for *_, on in spans for i in on], dtype=np.int64)
    if flat.size and not 0 <= flat.min() <= flat.max() < n_features:
        raise PluginError(f"a span names feature {flat.max()} of {n_features}: features are numbered from 0")
    start = sizes.cumsum() - sizes
    count = sizes[span]
    within = np.arange(count.sum()) - np.repeat(count.cumsum() - count, count)
    return np.repeat(token, count), flat[np.repeat(start[span], count) + within]


def _chosen(items: Iterable[T], wanted: Sequence[int], what: str) -> list[T]:
    """The items of the given numbers, in that order.

    Raises:
        PluginError: there are not so many.
    """
    if isinstance(items, Sized) and hasattr(items, "__getitem__"):
        found: Any = items
        count = len(items)
    else:
        numbers = set(wanted)
        found, count = {}, 0
        for item in items:
            if count in numbers:
                found[count] = item
            count += 1
            if count > max(numbers, default=-1):
                break
    if count <= max(wanted, default=-1):
        raise PluginError(f"{what} has {count} documents, the sample is of {max(wanted) + 1} or more")
    return [found[i] for i in wanted]


def _tokens(model: LanguageModel, texts: list[str]) -> tuple[list[list[int]], list[Int[np.ndarray, "tokens 2"]]]:
    """Token ids of each text as `LanguageModel.tokenize` gives them, and the characters of each token."""
    options = {"add_special_tokens": False, "return_offsets_mapping": True, "verbose": False}
    try:
        encoded = model.tokenizer(texts, **options)
    except NotImplementedError as e:
        raise SaebenchError(
            f"the tokenizer of '{model.ref}' does not tell which characters a token stands for: "
            "add tokenizer.json to its folder, so that a fast tokenizer is used"
        ) from e
    characters = [np.array(pairs, dtype=np.int64).reshape(-1, 2) for pairs in encoded["offset_mapping"]]
    return [list(ids) for ids in encoded["input_ids"]], characters


def _places(sample: Sample, ids: Sequence[Sequence[int]]) -> list[Int[np.ndarray, " tokens"]]:
    """For each document, where its tokens stand among the evaluated tokens of the sample; −1 where not evaluated.

    BOS put before a row, or between documents in one row, is no token of a document.

    Raises:
        PluginError: the corpus does not give the documents that the sample was drawn from.
    """
    document = sample.document.numpy()
    real = document >= 0
    own = real.copy()
    if sample.sampling.prepend_bos:
        own[:, 0] = False
        in_order = document[real]
        starts = np.flatnonzero(real)[np.flatnonzero(np.diff(in_order, prepend=-1))]
        own.reshape(-1)[starts] = False
    evaluated = sample.evaluated.numpy()
    number = np.where(evaluated, evaluated.cumsum().reshape(evaluated.shape) - 1, -1)[own]
    token, owner = sample.tokens.numpy()[own], document[own]
    bounds = np.searchsorted(owner, np.arange(len(ids) + 1))
    for d, expected in enumerate(ids):
        found = token[bounds[d] : bounds[d + 1]]
        if not np.array_equal(found, expected[: len(found)]):
            raise PluginError(f"document {sample.document_ids[d]} of the corpus is not the one of the sample")
    return [number[bounds[d] : bounds[d + 1]] for d in range(len(ids))]
