"""Activations to train on, in shuffled batches.

Which rows a batch holds depends on the feed and the batch's number only: a run that goes on after an interruption, or
beside others, sees what an undisturbed one sees. With several processes each gets its own rows of every batch.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol

import torch

from saebench_meta import seeds
from saebench_meta.errors import SaebenchError
from saebench_meta.training.trainable import Processes

if TYPE_CHECKING:
    from jaxtyping import Float, Int
    from torch import Tensor

Position = tuple[int, ...]
"""Where in its source a feed stands, for a checkpoint; empty where the number of the batch says it."""


class Feed(Protocol):
    """Where activations come from."""

    @property
    def d_in(self) -> int:
        """Width of the activations."""
        ...

    @property
    def device(self) -> torch.device:
        """Where batches lie, and so where SAEs are trained."""
        ...

    @property
    def batch_size(self) -> int:
        """Activations in a batch, over all processes."""
        ...

    @property
    def tokens_available(self) -> int | None:
        """Distinct activations; None when nobody has counted them."""
        ...

    def first(self) -> Float[Tensor, "batch d_in"]:
        """The whole first batch, the same in every process."""
        ...

    def batches(self, start: int = 0, position: Position = ()) -> Iterator[Float[Tensor, "rows d_in"]]:
        """This process's rows of every batch from number `start` on, float32, without end.

        Args:
            position: what `position(start)` gave, where another feed of the same identity has been there before.
        """
        ...

    def position(self, step: int) -> Position:
        """Where batch `step` begins; for a step that `batches` has come to, or the one after."""
        ...

    def identity(self) -> dict[str, Any]:
        """What of the data determines the batches, as JSON."""
        ...


class TensorFeed:
    """Rows of a tensor, each once an epoch, in a new order every epoch; batches run on over the ends of epochs."""

    def __init__(
        self,
        x: Float[Tensor, "tokens d_in"],
        batch_size: int,
        seed: int,
        *,
        device: str | torch.device | None = None,
        identity: Mapping[str, Any] | None = None,
        processes: Processes | None = None,
    ) -> None:
        """Feed the rows of `x`.

        Args:
            device: where batches go; that of `x` unless given.
            identity: what names `x`; a hash of it unless given.

        Raises:
            SaebenchError: no rows, or a batch that processes cannot share equally.
        """
        if x.ndim != 2 or not x.numel():
            raise SaebenchError(f"there are no activations to train on: the tensor's shape is {tuple(x.shape)}")
        self.processes = processes or Processes()
        share(batch_size, self.processes)
        self.x, self._batch_size, self.seed = x, batch_size, seed
        self._device = torch.device(device) if device is not None else x.device
        self._named = identity
        self._orders: dict[int, Int[Tensor, " tokens"]] = {}

    @property
    def d_in(self) -> int:
        return self.x.shape[1]

    @property
    def device(self) -> torch.device:
        return self._device

    @property
    def batch_size(self) -> int:
        return self._batch_size

    @property
    def tokens_available(self) -> int:
        return self.x.shape[0]

    def first(self) -> Float[Tensor, "batch d_in"]:
        return self._rows(self._members(0))

    def batches(self, start: int = 0, position: Position = ()) -> Iterator[Float[Tensor, "rows d_in"]]:  # noqa: ARG002
        step = start
        while True:
            yield self._rows(self._members(step)[self.processes.rank :: self.processes.count])
            step += 1

    def position(self, step: int) -> Position:  # noqa: ARG002
        return ()

    def identity(self) -> dict[str, Any]:
        return {"seed": self.seed, "batch_size": self.batch_size, "activations": dict(self._named or self._hashed)}

    @cached_property
    def _hashed(self) -> dict[str, Any]:
        x = self.x.detach().cpu().contiguous()
        return {"shape": list(x.shape), "sha256": hashlib.sha256(x.view(torch.uint8).numpy().tobytes()).hexdigest()}

    def _rows(self, members: Int[Tensor, " rows"]) -> Float[Tensor, "rows d_in"]:
        return self.x[members.to(self.x.device)].to(self.device, torch.float32)

    def _members(self, step: int) -> Int[Tensor, " batch"]:
        """Row numbers of a batch: a stretch of all epochs' orders one after the other."""
        n = self.x.shape[0]
        begin, end = step * self.batch_size, (step + 1) * self.batch_size
        return torch.cat(
            [self._order(e)[max(0, begin - e * n) : end - e * n] for e in range(begin // n, (end - 1) // n + 1)]
        )

    def _order(self, epoch: int) -> Int[Tensor, " tokens"]:
        if epoch not in self._orders:
            self._orders = {e: order for e, order in self._orders.items() if e >= epoch - 1}
            generator = seeds.generator(self.seed, "order", epoch)
            self._orders[epoch] = torch.randperm(self.x.shape[0], generator=generator)
        return self._orders[epoch]


def share(batch_size: int, processes: Processes) -> int:
    """Rows of a batch for each process.

    Raises:
        SaebenchError: they cannot be shared equally.
    """
    if batch_size < 1 or batch_size % processes.count:
        raise SaebenchError(
            f"a batch of {batch_size} cannot be shared equally by {processes.count} processes: "
            f"give a batch size that is a multiple of {processes.count}"
        )
    return batch_size // processes.count
