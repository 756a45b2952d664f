"""Activations at a site on the evaluated tokens of a sample: one forward pass, then read as often as wanted.

Tokens come in canonical order, row by row as they stand in the sample, whatever the batch size was. They are written to
the cache as they are made, for later runs. Small samples are kept in memory besides; larger ones are read back
memory-mapped, and without a cache they are worked out again on every reading.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from saebench_meta.batches import BatchRunner
from saebench_meta.cache import Entry, entry_key
from saebench_meta.errors import SaebenchError

if TYPE_CHECKING:
    import torch
    from jaxtyping import Float, Int
    from torch import Tensor

    from saebench_meta.cache import Cache
    from saebench_meta.corpus import Batch, Sample
    from saebench_meta.models import LanguageModel

StoredAs = Literal["float32", "bfloat16"]
"""How activations lie on disk. Never float16: residual streams hold values beyond its range."""

MEMORY_LIMIT = 1 << 30
"""Bytes of activations kept in memory; `Activations.all` refuses more."""
CHUNK_TOKENS = 8192
BLOCK_TOKENS = 65_536
"""Evaluated tokens worked out, and written to one file, at a time."""
BATCH_TOKENS = {"cpu": 4096, "cuda": 32_768}
"""Tokens per forward pass under `auto`; halved on demand."""
FORMAT = 1
"""Part of every cache key: raise it when the same inputs would give other activations."""


@dataclass(frozen=True, eq=False)
class Chunk:
    """Activations of consecutive evaluated tokens.

    Attributes:
        x: (tokens, d_in) float32.
        document: (tokens,) int64 document number in the sample.
        token: (tokens,) int64 token id.
        row, position: (tokens,) int64, where each token stands in the sample.
    """

    x: Float[Tensor, "tokens d_in"]
    document: Int[Tensor, " tokens"]
    token: Int[Tensor, " tokens"]
    row: Int[Tensor, " tokens"]
    position: Int[Tensor, " tokens"]


class Store(Protocol):
    """Where activations lie: blocks of tokens in canonical order."""

    def blocks(self) -> Iterator[Float[Tensor, "tokens d_in"]]:
        """All tokens, in blocks of any size."""
        ...


class Activations:
    """Activations of a whole sample; iterate over it for chunks, as often as wanted.

    Attributes:
        sample: the sample they belong to.
        d_in: width.
    """

    def __init__(self, store: Store, sample: Sample, d_in: int, device: str | torch.device) -> None:
        self._store, self.sample, self.d_in, self._device = store, sample, d_in, device
        self._row, self._position = sample.evaluated.nonzero(as_tuple=True)
        self._mean: Tensor | None = None

    @property
    def n_tokens(self) -> int:
        return int(self._row.shape[0])

    @property
    def n_docs(self) -> int:
        return self.sample.n_docs

    @cached_property
    def documents(self) -> Int[Tensor, " tokens"]:
        """Document number of every token."""
        return self.sample.document[self._row, self._position].long()

    def __iter__(self) -> Iterator[Chunk]:
        return self.chunks()

    def chunks(self, size: int = CHUNK_TOKENS) -> Iterator[Chunk]:
        """Chunks of `size` tokens, the last one shorter."""
        import torch

        start = 0
        for x in _regrouped(self._store.blocks(), size):
            part = slice(start, start + len(x))
            row, position = self._row[part], self._position[part]
            token = self.sample.tokens[row, position]
            # A copy, so that work done in place on a chunk cannot reach what the next reader gets.
            x = x.to(self._device, torch.float32, copy=True)
            yield Chunk(x, self.documents[part], token, row, position)
            start += len(x)
        if start != self.n_tokens:
            raise RuntimeError(f"activations of {start} tokens were read, the sample has {self.n_tokens}")

    def mean(self) -> Float[Tensor, " d_in"]:
        """Mean activation over all tokens, in float64 on the CPU."""
        import torch

        if self._mean is None:
            total = torch.zeros(self.d_in, dtype=torch.float64)
            for x in self._store.blocks():
                total += x.sum(0, dtype=torch.float64).cpu()
            self._mean = total / max(1, self.n_tokens)
        return self._mean

    def all(self) -> Float[Tensor, "tokens d_in"]:
        """All activations at once.

        Raises:
            SaebenchError: they would take more than `MEMORY_LIMIT`; read them in chunks.
        """
        import torch

        if (size := self.n_tokens * self.d_in * 4) > MEMORY_LIMIT:
            raise SaebenchError(f"all activations at once would take {size / 2**30:.1f} GiB: use fewer --tokens")
        return torch.cat([c.x for c in self.chunks()])


def collect(
    model: LanguageModel,
    hook: str,
    sample: Sample,
    *,
    cache: Cache | None = None,
    memory_limit: int = MEMORY_LIMIT,
    batch_size: int | None = None,
    device: str | torch.device | None = None,
    stored_as: StoredAs = "float32",
    progress: Callable[[int, int], None] | None = None,
    notice: Callable[[str], None] | None = None,
) -> Activations:
    """Activations of the sample's evaluated tokens at a hook.

    Args:
        cache: where activations are kept for later runs, and read from when they exceed `memory_limit` bytes.
        batch_size: tokens per forward pass, padding included; None chooses, and halves when memory runs out.
        device: where chunks are handed over; the model's device unless given.
        stored_as: dtype on disk.
        progress: told evaluated tokens done and in all.
        notice: told in words about a smaller batch, or a cache that could not be used.

    Raises:
        SaebenchError: the hook is not the model's, or a single row does not fit in memory.
    """
    model.check_hook(hook)
    runner = BatchRunner(batch_size or auto_batch_size(model), notice)
    source = _Forward(model, hook, sample, runner, progress or (lambda _done, _total: None))
    d_in = source.probe()
    size = sample.n_evaluated * d_in * 4
    store: Store = (None if cache is None else _cached(cache, source, stored_as, notice)) or source
    if size <= memory_limit:
        store = _InMemory(store, sample.n_evaluated, d_in)
    elif store is source and notice is not None:
        notice(f"activations take {size / 2**30:.2f} GiB and are not cached: the model runs again at every reading")
    return Activations(store, sample, d_in, device or model.device)


def auto_batch_size(model: LanguageModel) -> int:
    """Tokens per forward pass when the user does not say."""
    return BATCH_TOKENS["cuda" if model.device.type == "cuda" else "cpu"]


# -- stores


class _Forward:
    """The language model itself: works the activations out at every reading."""

    def __init__(
        self,
        model: LanguageModel,
        hook: str,
        sample: Sample,
        runner: BatchRunner,
        progress: Callable[[int, int], None],
    ) -> None:
        self.model, self.hook, self.sample, self.runner, self.progress = model, hook, sample, runner, progress

    def probe(self) -> int:
        """Width of the activations."""
        return int(self.model.activations(self.sample.tokens[:1, :1], self.hook).shape[-1])

    def key(self, stored_as: StoredAs) -> Mapping[str, Any]:
        """What the activations depend on; the batch size and the device are not part of it."""
        m = self.model
        return {
            "format": FORMAT,
            "model": {"files": dict(m.files)} if m.files else {"ref": m.ref, "revision": m.revision},
            "processing": m.processing,
            "computed_in": str(m.dtype),
            "hook": self.hook,
            "sample": self.sample.content_hash(),
            "stored_as": stored_as,
        }

    def blocks(self) -> Iterator[Float[Tensor, "tokens d_in"]]:
        """Blocks of whole rows, about `BLOCK_TOKENS` evaluated tokens each, on the CPU."""
        done, total = 0, self.sample.n_evaluated
        for rows in _row_blocks(self.sample, BLOCK_TOKENS):
            yield self._block(rows, done, total)
            done += int(self.sample.evaluated[rows].sum())

    def _block(self, rows: Int[Tensor, " rows"], before: int, total: int) -> Float[Tensor, "tokens d_in"]:
        """Activations of consecutive rows: batches come sorted by length, their tokens go back to canonical order."""
        import torch

        counts = self.sample.evaluated[rows].sum(1)
        first, at = counts.cumsum(0) - counts, int(rows[0])
        out: list[Tensor] = []
        done = before

        def work(batch: Batch) -> None:
            nonlocal done
            x = self.model.activations(batch.tokens, self.hook)
            x = x[batch.evaluated.to(x.device)].cpu()
            if not out:
                out.append(torch.empty(int(counts.sum()), x.shape[1]))
            place = batch.rows - at
            for start, values in zip(first[place].tolist(), torch.split(x, counts[place].tolist()), strict=True):
                out[0][start : start + len(values)] = values
            done += len(x)
            self.progress(done, total)

        self.runner.run(self.sample, work, rows)
        return out[0]


class _InMemory:
    def __init__(self, source: Store, n_tokens: int, d_in: int) -> None:
        import torch

        self.x = torch.empty(n_tokens, d_in)
        start = 0
        for block in source.blocks():
            self.x[start : start + len(block)] = block
            start += len(block)

    def blocks(self) -> Iterator[Float[Tensor, "tokens d_in"]]:
        yield self.x


class _OnDisk:
    """Files of an entry of the cache, memory-mapped; the entry stays in use as long as this lives."""

    def __init__(self, entry: Entry) -> None:
        self.entry = entry

    def blocks(self) -> Iterator[Float[Tensor, "tokens d_in"]]:
        from safetensors import safe_open

        for name in self.entry.meta["files"]:
            with safe_open(self.entry.folder / name, framework="pt") as f:
                x = f.get_slice("x")
                n = x.get_shape()[0]
                for start in range(0, n, CHUNK_TOKENS):
                    yield x[start : min(n, start + CHUNK_TOKENS)].float()


def _cached(
    cache: Cache, source: _Forward, stored_as: StoredAs, notice: Callable[[str], None] | None
) -> _OnDisk | None:
    """The activations in the cache, written there while they are made; None where the cache has no room."""
    width = source.probe()

    def make(folder: Path) -> Mapping[str, Any]:
        import torch
        from safetensors import SafetensorError
        from safetensors.torch import save_file

        names = []
        for number, block in enumerate(source.blocks()):
            names.append(f"{number:05d}.safetensors")
            try:
                save_file({"x": block.to(getattr(torch, stored_as))}, folder / names[-1])
            except SafetensorError as e:  # a full disk: the cache says so and the run goes on without it
                raise OSError(str(e)) from e
        return {"files": names, "n_tokens": source.sample.n_evaluated, "d_in": width, "hook": source.hook}

    size = source.sample.n_evaluated * width * (4 if stored_as == "float32" else 2)
    entry = cache.get(entry_key(source.key(stored_as)), make, size=size, notice=notice)
    return None if entry is None else _OnDisk(entry)


# -- rows and blocks


def _row_blocks(sample: Sample, tokens: int) -> Iterator[Int[Tensor, " rows"]]:
    """Consecutive rows with about `tokens` evaluated tokens together."""
    import torch

    block = (sample.evaluated.sum(1).cumsum(0) - 1).clamp_min(0) // tokens
    start = 0
    for size in torch.unique_consecutive(block, return_counts=True)[1].tolist():
        yield torch.arange(start, start + size)
        start += size


def _regrouped(blocks: Iterator[Tensor], size: int) -> Iterator[Tensor]:
    """The same rows in pieces of exactly `size`, the last one shorter."""
    import torch

    if size < 1:
        raise ValueError(f"chunk size is {size}")
    held: list[Tensor] = []
    count = 0
    for block in blocks:
        for piece in torch.split(block, size):
            taken = piece[: size - count]
            held.append(taken)
            count += len(taken)
            if count == size:
                yield torch.cat(held) if len(held) > 1 else held[0]
                rest = piece[len(taken) :]
                held, count = [rest] if len(rest) else [], len(rest)
    if count:
        yield torch.cat(held)
