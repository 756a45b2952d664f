"""Activations of a language model at a hook, made while an SAE is trained on them.

    documents, shuffled ─► rows of `context` tokens ─► activations of a block of tokens ─► shuffled in it ─► batches

A block is a fixed number of evaluated tokens, in the order of the corpus, epoch after epoch; nothing is carried over
from one block to the next, so a run goes on at any block without running the model on those before. Every evaluated
token is seen once an epoch, except those of an epoch's last row where that is not full.

The documents of the next block are read and tokenised in the background on request. The model itself runs in the
loop's own thread: one device does the same work either way, and the precision of products is a setting of the process.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import astuple, dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import torch

from saebench_meta import seeds
from saebench_meta.activations import MEMORY_LIMIT, StoredAs, auto_batch_size
from saebench_meta.batches import BatchRunner
from saebench_meta.corpus import Rows, Sample, Sampling, rows_for, shuffled, tokenised
from saebench_meta.errors import SaebenchError, UnmetNeedError
from saebench_meta.record import canonical_hash
from saebench_meta.training.feed import Feed, Position, TensorFeed, share
from saebench_meta.training.trainable import Processes

if TYPE_CHECKING:
    from jaxtyping import Float, Int
    from torch import Tensor

    from saebench_meta.corpus import Batch
    from saebench_meta.models import LanguageModel

BUFFER_TOKENS = 2**18
"""Evaluated tokens shuffled together, over all processes."""

T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class Source:
    """Where activations come from.

    Attributes:
        model, hook: language model and hook name.
        documents: opens the corpus, always in the same order; called anew for every epoch.
        corpus: what names the corpus, as JSON (its reference and revision, or the hash of its file).
        context: tokens per row, BOS included.
        prepend_bos: every row begins with BOS, and BOS stands between documents.
        exclude: ids (index in the corpus, as text) of documents that are left out, such as those an SAE is judged on.
        skip_special: special tokens are not trained on.
        text_field: of the corpus, for error messages.
        forward_tokens: tokens per forward pass; None chooses, and halves when memory runs out.
        notice: told in words about a smaller forward pass.
    """

    model: LanguageModel
    hook: str
    documents: Callable[[], Iterable[str]]
    corpus: Mapping[str, Any]
    context: int = 128
    prepend_bos: bool = True
    exclude: frozenset[str] = frozenset()
    skip_special: bool = True
    text_field: str = "text"
    forward_tokens: int | None = None
    notice: Callable[[str], None] | None = None

    def identity(self) -> dict[str, Any]:
        """What determines which activations there are, as JSON."""
        m = self.model
        return {
            "model": {"files": dict(m.files)} if m.files else {"ref": m.ref, "revision": m.revision},
            "processing": m.processing,
            "computed_in": str(m.dtype),
            "hook": self.hook,
            "corpus": dict(self.corpus),
            "context": self.context,
            "prepend_bos": self.prepend_bos,
            "exclude": canonical_hash(sorted(self.exclude)),
            "skip_special": self.skip_special,
        }

    def rows(self) -> Rows:
        """Empty rows to put documents in."""
        sampling = Sampling(context=self.context, packing="concat", prepend_bos=self.prepend_bos)
        return rows_for(self.model, sampling, None if self.skip_special else frozenset())

    def drawn(self, seed: int, start: int = 0, step: int = 1) -> Iterator[tuple[int, list[int]]]:
        """Index in the corpus and token ids of every `step`-th document from number `start` on, in seeded order."""
        order = shuffled(self.documents(), seed)
        kept = ((index, text) for index, text in order if str(index) not in self.exclude)
        return tokenised(islice(kept, start, None, step), self.model, self.text_field)

    def forward(self, part: _Part, slots: Int[Tensor, " tokens"], out: Float[Tensor, "tokens d_in"]) -> None:
        """Work out a part's activations: that of its token i goes to row `slots[i]` of `out`."""
        counts = part.sample.evaluated.sum(1)
        first = counts.cumsum(0) - counts - part.skip
        slots, size = slots.to(out.device), len(slots)

        def work(batch: Batch) -> None:
            # Rows are equally long, so batches hold consecutive rows.
            x = self.model.activations(batch.tokens, self.hook)
            x = x[batch.evaluated.to(x.device)].to(out)
            begin = int(first[batch.rows[0]])
            low, high = max(0, -begin), min(len(x), size - begin)
            out.index_copy_(0, slots[begin + low : begin + high], x[low:high])

        BatchRunner(self.forward_tokens or auto_batch_size(self.model), self.notice).run(part.sample, work, part.rows)


@dataclass(frozen=True)
class Place:
    """Where a block begins: its first row begins at a token of a document of an epoch, and its first evaluated tokens
    belong to the block before. Documents are numbered in the epoch's order, those of this process."""

    epoch: int = 0
    document: int = 0
    token: int = 0
    skip: int = 0


class _Document(NamedTuple):
    epoch: int
    number: int
    name: int
    """Index in the corpus."""
    ids: list[int]


@dataclass(frozen=True, eq=False)
class _Part:
    """Tokens of a block: those evaluated in some consecutive rows of a sample.

    Attributes:
        rows: numbers of the rows.
        skip: evaluated tokens of the sample before the first of the block.
        after: where the next block begins.
    """

    sample: Sample
    rows: Int[Tensor, " rows"]
    skip: int
    after: Place


class SiteFeed:
    """Activations at a site, block by block."""

    def __init__(
        self,
        source: Source,
        batch_size: int,
        seed: int,
        *,
        buffer_tokens: int = BUFFER_TOKENS,
        memory_limit: int = MEMORY_LIMIT,
        stored_as: StoredAs = "float32",
        ahead: bool | None = None,
        processes: Processes | None = None,
    ) -> None:
        """Feed a source's activations.

        Args:
            buffer_tokens: evaluated tokens in a block, over all processes; rounded down to whole batches.
            memory_limit: most bytes of a block in each process.
            stored_as: dtype of a block; batches are float32 always.
            ahead: documents of the next block are read in the background; on a GPU unless given.

        Raises:
            SaebenchError: the hook, the context or BOS are not the model's.
        """
        self.source, self._batch_size, self.seed, self.stored_as = source, batch_size, seed, stored_as
        self.processes = processes or Processes()
        source.model.check_hook(source.hook)
        source.rows()
        self._d_in = int(source.model.activations(torch.zeros(1, 1, dtype=torch.int64), source.hook).shape[-1])
        self.rows = share(batch_size, self.processes)
        fits = memory_limit // (self._d_in * (4 if stored_as == "float32" else 2))
        self.per_block = max(1, min(buffer_tokens // batch_size, fits // self.rows))
        """Batches in a block."""
        self._ahead = source.model.device.type == "cuda" if ahead is None else ahead
        self._tokenizing = threading.Lock()
        self._places = {0: Place()}
        self._kept: tuple[int, Tensor] | None = None

    @property
    def d_in(self) -> int:
        return self._d_in

    @property
    def device(self) -> torch.device:
        return self.source.model.device

    @property
    def batch_size(self) -> int:
        return self._batch_size

    @property
    def tokens_available(self) -> None:
        return None

    def identity(self) -> dict[str, Any]:
        return {
            "seed": self.seed,
            "batch_size": self.batch_size,
            "activations": self.source.identity(),
            "batches_per_block": self.per_block,
            "stored_as": self.stored_as,
            "processes": self.processes.count,
        }

    def first(self) -> Float[Tensor, "batch d_in"]:
        with closing(self.batches()) as batches:
            return self.processes.gather(next(batches)).flatten(0, 1)

    def position(self, step: int) -> Position:
        place: Position = astuple(self._places[step // self.per_block])
        return place

    def batches(self, start: int = 0, position: Position = ()) -> Generator[Float[Tensor, "rows d_in"]]:
        if position:
            self._places[start // self.per_block] = self._checked(position)
        return self._batches(start)

    def _batches(self, start: int) -> Generator[Float[Tensor, "rows d_in"]]:
        wanted, at = divmod(start, self.per_block)
        known = max(n for n in self._places if n <= wanted)
        read = self._parts(self._places[known])
        with closing(_ahead(read) if self._ahead else read) as parts:
            for number, part in enumerate(parts, known):
                self._places[number + 1] = part.after
                if number >= wanted:
                    block = self._block(number, part)
                    for x in torch.split(block, self.rows)[at:]:
                        yield x.float()
                    at = 0

    def _checked(self, position: Position) -> Place:
        if len(position) != 4 or min(position) < 0 or position[3] > self.source.context:
            raise SaebenchError(f"position {position} is none of this corpus: train anew")
        return Place(*position)

    # -- documents

    def documents(self, start: Place) -> Iterator[_Document]:
        """This process's documents with their token ids, in a new order every epoch, without end.

        Raises:
            SaebenchError: the corpus ends before the place.
        """
        p, epoch, number = self.processes, start.epoch, start.document
        while True:
            start_at = p.rank + number * p.count
            tokens = self.source.drawn(seeds.derive(self.seed, "epoch", epoch), start_at, p.count)
            found = False
            while (item := self._next(tokens)) is not None:
                yield _Document(epoch, number, *item)
                number, found = number + 1, True
            if not found:
                raise SaebenchError(
                    f"the corpus has no document {number} for process {p.rank} of {p.count}: it is too small, all of "
                    "it is excluded, or it is not the one of the checkpoint"
                )
            epoch, number = epoch + 1, 0

    def _next(self, tokens: Iterator[tuple[int, list[int]]]) -> tuple[int, list[int]] | None:
        # Tokenizers are not made for two threads, and a second reader may be at work in the background.
        with self._tokenizing:
            return next(tokens, None)

    def _parts(self, start: Place) -> Generator[_Part]:
        """The rows of one block after the other, from a place on."""
        documents = self.documents(start)
        held: list[_Document] = []
        while True:
            filling = _Filling(self.source.rows(), self.rows * self.per_block + start.skip, start.token)
            for document in held:
                filling.add(document)
            while not filling.full:
                filling.add(next(documents))
            part, row = filling.part(start.skip)
            yield part
            # The next block's first row may be this one's last.
            held, start = filling.added[filling.rows.origins[row][0] :], part.after

    # -- activations

    def _block(self, number: int, part: _Part) -> Float[Tensor, "tokens d_in"]:
        """Activations of a block in the order of its batches; the last one made is kept."""
        if self._kept is None or self._kept[0] != number:
            self._kept = None
            size = self.rows * self.per_block
            generator = seeds.generator(self.seed, "block", number, self.processes.rank)
            slots = torch.randperm(size, generator=generator)
            out = torch.empty(size, self.d_in, dtype=getattr(torch, self.stored_as), device=self.device)
            self.source.forward(part, slots, out)
            self._kept = number, out
        return self._kept[1]


@dataclass
class _Filling:
    """A block's rows while they are filled.

    Attributes:
        need: evaluated tokens wanted.
        token: where in the first document the first row begins.
        added: the documents put on.
    """

    rows: Rows
    need: int
    token: int
    added: list[_Document] = field(default_factory=list)
    _before: int = 0
    """Rows there were when the epoch began."""

    @property
    def full(self) -> bool:
        return self.rows.evaluated >= self.need

    def add(self, document: _Document) -> None:
        if self.added and document.epoch != self.added[-1].epoch:
            self.rows.end()
            first = self.added[0]
            whole = first.epoch < self.added[-1].epoch or (first.number, self.token) == (0, 0)
            if whole and len(self.rows.rows) == self._before:
                raise SaebenchError(self.rows.why_empty())
            self._before = len(self.rows.rows)
        self.rows.add(document.name, document.ids, 0 if self.added else self.token)
        self.added.append(document)

    def part(self, skip: int) -> tuple[_Part, int]:
        """The block, and the number of its last row."""
        sample = self.rows.sample()
        ends = sample.evaluated.sum(1).cumsum(0)
        first, last = int((ends <= skip).sum()), int((ends < self.need).sum())
        document, token = self.rows.origins[last]
        used = self.need - int(ends[last - 1]) if last else self.need
        after = Place(self.added[document].epoch, self.added[document].number, token, used)
        return _Part(sample, torch.arange(first, last + 1), skip, after), last


def site_feed(source: Source, batch_size: int, seed: int, *, memory_limit: int = MEMORY_LIMIT, **options: Any) -> Feed:
    """A feed of a source: in memory as a whole where `memory_limit` bytes hold it, block by block otherwise.

    Args:
        options: as `SiteFeed` takes them.

    Raises:
        SaebenchError: as `SiteFeed`; or the corpus does not fill one row.
        UnmetNeedError: what is left of it after `Source.exclude` does not.
    """
    blocks = SiteFeed(source, batch_size, seed, memory_limit=memory_limit, **options)
    width = blocks.d_in * (4 if blocks.stored_as == "float32" else 2)
    rows = source.rows()
    for index, ids in source.drawn(seeds.derive(seed, "epoch", 0)):
        rows.add(index, ids)
        if rows.evaluated * width > memory_limit:
            return blocks
    if source.exclude and not rows.rows:
        raise UnmetNeedError(
            "an SAE has to be trained on documents that are not evaluated, and the corpus has too few of them: give "
            "fewer --tokens, a larger --corpus, or the SAE itself (--reference)"
        )
    sample = rows.sample()
    x = torch.empty(sample.n_evaluated, blocks.d_in, dtype=getattr(torch, blocks.stored_as), device=blocks.device)
    source.forward(_Part(sample, torch.arange(sample.n_rows), 0, Place()), torch.arange(len(x)), x)
    named = {**source.identity(), "stored_as": blocks.stored_as}
    return TensorFeed(x, batch_size, seed, identity=named, processes=blocks.processes)


def _ahead(items: Iterator[T]) -> Generator[T]:
    """The same items, the next one made in the background while this one is used; its errors come up in its place."""
    with ThreadPoolExecutor(1, "feed") as background:
        coming = background.submit(next, items, None)
        while (item := coming.result()) is not None:
            coming = background.submit(next, items, None)
            yield item
