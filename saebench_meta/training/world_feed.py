"""Fresh samples of a world to train on: no activation is ever seen twice."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch

from saebench_meta import seeds
from saebench_meta.training.feed import Position, share
from saebench_meta.training.trainable import Processes

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

    from saebench_meta.worlds import World


class WorldFeed:
    """Batch after batch drawn from a world; which activations a batch holds depends on the seed and its number only."""

    def __init__(
        self,
        world: World,
        batch_size: int,
        seed: int,
        *,
        version: int = 1,
        device: str | torch.device = "cpu",
        processes: Processes | None = None,
    ) -> None:
        """Draw from `world`.

        Args:
            version: of the world's loader.
            device: where batches go.

        Raises:
            SaebenchError: a batch that processes cannot share equally.
        """
        self.processes = processes or Processes()
        share(batch_size, self.processes)
        self.world, self.seed, self.version = world, seed, version
        self._batch_size, self._device = batch_size, torch.device(device)

    @property
    def d_in(self) -> int:
        return self.world.directions.shape[1]

    @property
    def device(self) -> torch.device:
        return self._device

    @property
    def batch_size(self) -> int:
        return self._batch_size

    @property
    def tokens_available(self) -> None:
        return None

    def first(self) -> Float[Tensor, "batch d_in"]:
        return self._batch(0).to(self.device)

    def batches(self, start: int = 0, position: Position = ()) -> Iterator[Float[Tensor, "rows d_in"]]:  # noqa: ARG002
        step = start
        while True:
            yield self._batch(step)[self.processes.rank :: self.processes.count].to(self.device)
            step += 1

    def position(self, step: int) -> Position:  # noqa: ARG002
        return ()

    def identity(self) -> dict[str, Any]:
        return {
            "seed": self.seed,
            "batch_size": self.batch_size,
            "world": {"ref": self.world.name, "version": self.version},
        }

    def _batch(self, step: int) -> Float[Tensor, "batch d_in"]:
        x, _ = self.world.sample(self.batch_size, seeds.derive(self.seed, "world", step))
        return x.float()
