"""From documents to a sample of tokens: seeded drawing, cutting into rows, and which tokens count.

Every token knows the document it came from, under either packing, since documents are the unit of every interval. A
document's id is its index in the corpus, so that two samples of one corpus can be compared document by document.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import islice
from typing import TYPE_CHECKING, Any, Literal

from saebench_meta import seeds
from saebench_meta.errors import SaebenchError

if TYPE_CHECKING:
    from jaxtyping import Bool, Int
    from torch import Tensor

    from saebench_meta.models import LanguageModel

Packing = Literal["documents", "concat"]

SHUFFLE_BUFFER = 10_000
"""Documents of a stream held for shuffling: a document can be drawn at most this much before its turn."""
TOKENIZE_AT_ONCE = 64
PADDING = -1
"""Document number of padding."""


@dataclass(frozen=True)
class Sampling:
    """How documents are drawn and cut.

    Attributes:
        tokens: evaluated tokens wanted; drawing stops with the document that reaches them. None: no such limit.
        documents: most documents drawn. None: no such limit.
        context: tokens per row, BOS included.
        packing: `documents`: each document in rows of its own, the last of them shorter. `concat`: documents one after
            the other, BOS between them where it is prepended, in rows of exactly `context`, as SAEs are trained; what
            does not fill the last row is left out.
        prepend_bos: every row begins with BOS.
        seed: of the drawing, which is without replacement.
        split, text_field: of the corpus.
    """

    tokens: int | None = None
    documents: int | None = None
    context: int = 128
    packing: Packing = "documents"
    prepend_bos: bool = True
    seed: int = 0
    split: str | None = None
    text_field: str = "text"

    def __post_init__(self) -> None:
        for name in ("tokens", "documents"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise SaebenchError(f"{name} is {value}: give at least 1, or leave it out for no limit")
        if self.context < 1 + self.prepend_bos:
            raise SaebenchError(f"context is {self.context}: a row needs a token besides BOS")
        if self.packing not in ("documents", "concat"):
            raise SaebenchError(f"packing '{self.packing}' is unknown; it is 'documents' or 'concat'")


@dataclass(frozen=True, eq=False)
class Batch:
    """Some rows of a sample, cut to the longest of them.

    Attributes:
        rows: (batch,) row numbers in the sample.
        tokens, document, evaluated: as in the sample, (batch, longest row).
    """

    rows: Int[Tensor, " batch"]
    tokens: Int[Tensor, "batch tokens"]
    document: Int[Tensor, "batch tokens"]
    evaluated: Bool[Tensor, "batch tokens"]


@dataclass(frozen=True, eq=False)
class Sample:
    """Tokenised documents in rows padded on the right.

    Attributes:
        tokens: (rows, context) int64; 0 at padding.
        lengths: (rows,) int64 real tokens of each row.
        document: (rows, context) int32 document number in [0, n_docs); -1 at padding.
        evaluated: (rows, context): real tokens that are not special. Only these count in any measure.
        document_ids: index in the corpus of each document, as text.
        sampling: how it was drawn.
        skipped: documents drawn but left out because they hold no token that could be evaluated.
    """

    tokens: Int[Tensor, "rows context"]
    lengths: Int[Tensor, " rows"]
    document: Int[Tensor, "rows context"]
    evaluated: Bool[Tensor, "rows context"]
    document_ids: tuple[str, ...]
    sampling: Sampling
    skipped: int = 0

    @property
    def n_rows(self) -> int:
        return self.tokens.shape[0]

    @property
    def n_docs(self) -> int:
        return len(self.document_ids)

    @cached_property
    def n_evaluated(self) -> int:
        return int(self.evaluated.sum())

    def content_hash(self) -> str:
        """sha256 over what determines activations and where they belong: tokens, documents, evaluated positions."""
        digest = hashlib.sha256(repr((tuple(self.tokens.shape), self.document_ids)).encode())
        for tensor in (self.tokens, self.document, self.evaluated):
            digest.update(tensor.cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()

    def limit_documents(self, n: int) -> Sample:
        """The first `n` documents drawn. Their tokens keep all that stood before them in their rows."""
        import torch

        if n >= self.n_docs:
            return self
        keep = (self.document >= 0) & (self.document < n)
        rows = keep.any(1)
        keep = keep[rows]
        return replace(
            self,
            tokens=self.tokens[rows] * keep,
            lengths=keep.sum(1),
            document=torch.where(keep, self.document[rows], PADDING),
            evaluated=self.evaluated[rows] & keep,
            document_ids=self.document_ids[:n],
        )

    def batches(
        self,
        batch_size: int | None = None,
        *,
        tokens: int | None = None,
        rows: Int[Tensor, " chosen"] | None = None,
    ) -> Iterator[Batch]:
        """All rows, the longest first, so that little is padded and too large a batch shows at once.

        Args:
            batch_size: most rows in a batch.
            tokens: most tokens in a batch, padding included; a batch has one row at least.
            rows: only these rows.
        """
        order = self.lengths.argsort(descending=True, stable=True)
        if rows is not None:
            order = rows[self.lengths[rows].argsort(descending=True, stable=True)]
        start = 0
        while start < len(order):
            longest = max(1, int(self.lengths[order[start]]))
            size = min(batch_size or self.n_rows, max(1, tokens // longest) if tokens else self.n_rows)
            yield self.batch(order[start : start + size])
            start += size

    def batch(self, rows: Int[Tensor, " batch"]) -> Batch:
        """The given rows, cut to the longest of them."""
        width = int(self.lengths[rows].max())
        return Batch(rows, self.tokens[rows, :width], self.document[rows, :width], self.evaluated[rows, :width])


def draw(documents: Iterable[str], model: LanguageModel, sampling: Sampling) -> Sample:
    """Draw documents without replacement and cut them into rows.

    A corpus of known size is drawn from as a whole; a stream through a shuffle buffer of `SHUFFLE_BUFFER` documents.
    Documents added at the end of a corpus change neither the ids of those before nor the order among them.

    Raises:
        SaebenchError: no document, no text, a context longer than the model's, no BOS token where one is wanted.
    """
    rows = rows_for(model, sampling)
    for index, ids in tokenised(shuffled(documents, sampling.seed), model, sampling.text_field):
        rows.add(index, ids)
        if rows.full:
            break
    return rows.sample()


def rows_for(model: LanguageModel, sampling: Sampling, special: frozenset[int] | None = None) -> Rows:
    """Empty rows for a model's tokens.

    Args:
        special: ids that are never evaluated; the model's special tokens unless given.

    Raises:
        SaebenchError: a context longer than the model's, or no BOS token where one is wanted.
    """
    if sampling.context > model.n_ctx:
        raise SaebenchError(
            f"context {sampling.context} is longer than model '{model.ref}' takes: give --context {model.n_ctx} or less"
        )
    bos = model.bos_id if sampling.prepend_bos else None
    if sampling.prepend_bos and bos is None:
        raise SaebenchError(f"the SAE expects BOS before every context, but the tokenizer of '{model.ref}' has none")
    return Rows(sampling, bos, model.special_ids if special is None else special)


def tokenised(
    documents: Iterator[tuple[int, str]], model: LanguageModel, text_field: str = "text"
) -> Iterator[tuple[int, list[int]]]:
    """Documents with their token ids; no more than `TOKENIZE_AT_ONCE` are read ahead.

    Raises:
        SaebenchError: a document is not text.
    """
    while block := list(islice(documents, TOKENIZE_AT_ONCE)):
        for _, text in block:
            _check_text(text, text_field)
        for (index, _), ids in zip(block, model.tokenize([text for _, text in block]), strict=True):
            yield index, ids


def shuffled(documents: Iterable[str], seed: int) -> Iterator[tuple[int, str]]:
    """Documents with their index in the corpus, in seeded random order."""
    rng = seeds.rng(seed, "documents")
    if isinstance(documents, Sized):
        indexed: Any = (
            documents if isinstance(documents, Sequence) or hasattr(documents, "__getitem__") else [*documents]
        )
        # Sorting by one draw a document, instead of permuting, keeps the order when documents are added at the end.
        for index in rng.random(len(indexed)).argsort(kind="stable"):
            yield int(index), indexed[int(index)]
        return
    buffer: list[tuple[int, str]] = []
    for item in enumerate(documents):
        if len(buffer) < SHUFFLE_BUFFER:
            buffer.append(item)
            continue
        slot = int(rng.integers(SHUFFLE_BUFFER))
        yield buffer[slot]
        buffer[slot] = item
    for slot in rng.permutation(len(buffer)):
        yield buffer[int(slot)]


def _check_text(text: object, field: str) -> None:
    if not isinstance(text, str):
        raise SaebenchError(
            f"a document is {type(text).__name__}, not text (field '{field}'): "
            "name the field that holds the text with --text-field"
        )


class Rows:
    """Rows while they are filled, one document after the other.

    Attributes:
        rows: token ids of the rows that are full (under `documents`: closed).
        origins: of each of them, which document added (from 0, the skipped ones counted) it begins with, and at which
            of its tokens; under `concat` the same rows follow from there on.
        evaluated: tokens in `rows` that are not special.
        seen: documents added, the skipped ones counted.
    """

    def __init__(self, sampling: Sampling, bos: int | None, special: frozenset[int]) -> None:
        self.sampling, self.special = sampling, special
        self.start = [] if bos is None else [bos]
        self.rows: list[list[int]] = []
        self.owners: list[list[int]] = []
        self.origins: list[tuple[int, int]] = []
        self.ids: list[str] = []
        self.evaluated = self.skipped = self.seen = 0
        self._open: tuple[list[int], list[int]] = ([], [])
        self._origin = (0, 0)

    @property
    def full(self) -> bool:
        s = self.sampling
        return (s.tokens is not None and self.evaluated >= s.tokens) or (
            s.documents is not None and len(self.ids) >= s.documents
        )

    def add(self, index: int, ids: list[int], start: int = 0) -> None:
        """Put on a document, from its token `start` on; one without a token to evaluate is skipped."""
        self.seen += 1
        if all(i in self.special for i in ids):
            self.skipped += 1
            return
        number = len(self.ids)
        self.ids.append(str(index))
        put: Callable[[list[int], int, int], None] = (
            self._put_alone if self.sampling.packing == "documents" else self._put_on
        )
        put(ids, number, start)

    def end(self) -> None:
        """Leave out the row that is not full yet; the next document begins a new one."""
        self._open = ([], [])

    def _put_alone(self, ids: list[int], number: int, start: int) -> None:
        step = self.sampling.context - len(self.start)
        for at in range(start, len(ids), step):
            self._origin = (self.seen - 1, at)
            row = self.start + ids[at : at + step]
            self._close(row, [number] * len(row))

    def _put_on(self, ids: list[int], number: int, start: int) -> None:
        row, owner = self._open
        if row and len(row) < self.sampling.context:
            row.extend(self.start)
            owner.extend([number] * len(self.start))
        for at, token in enumerate(ids[start:], start):
            if len(row) == self.sampling.context:
                self._close(row, owner)
                row, owner = [], []
            if not row:
                self._origin = (self.seen - 1, at)
                row.extend(self.start)
                owner.extend([number] * len(self.start))
            row.append(token)
            owner.append(number)
        if len(row) == self.sampling.context:
            self._close(row, owner)
            row, owner = [], []
        self._open = (row, owner)

    def _close(self, row: list[int], owner: list[int]) -> None:
        self.rows.append(row)
        self.owners.append(owner)
        self.origins.append(self._origin)
        self.evaluated += sum(token not in self.special for token in row)

    def sample(self) -> Sample:
        import torch

        if not self.rows:
            raise SaebenchError(self.why_empty())
        width = self.sampling.context
        lengths = torch.tensor([len(row) for row in self.rows])
        tokens = torch.tensor([row + [0] * (width - len(row)) for row in self.rows])
        document = torch.tensor([o + [PADDING] * (width - len(o)) for o in self.owners], dtype=torch.int32)
        special = torch.tensor(sorted(self.special), dtype=torch.int64)
        evaluated = ~torch.isin(tokens, special) & (document >= 0)
        # A document that lies wholly in the last, incomplete row of `concat` is not part of the sample.
        n_docs = int(document.max()) + 1
        ids = tuple(self.ids[:n_docs])
        return Sample(tokens, lengths, document, evaluated, ids, self.sampling, self.skipped)

    def why_empty(self) -> str:
        """Why there is no row, for an error."""
        if not self.seen:
            return "the corpus has no documents: look at its path, --split and --text-field"
        if self.skipped == self.seen:
            return f"all {self.seen} documents of the corpus are empty (field '{self.sampling.text_field}')"
        return (
            f"{len(self.ids)} documents do not fill one row of {self.sampling.context} tokens: give a smaller --context"
        )
