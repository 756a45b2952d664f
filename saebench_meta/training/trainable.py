"""What an architecture gives the loop: parameters, a loss for a batch, what to do around the optimizer's step, an SAE.

The loop owns data, scaling, optimizer, learning rate, dead latents, checkpoints and processes; an architecture owns its
mathematics. Losses are **means over tokens and dimensions** (`‖x − x_hat‖² / d_in`, averaged over the batch): the
coefficients of the sources (paper, A.3 and A.6) are for this.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from jaxtyping import Bool, Float
    from torch import Tensor

    from saebench_meta.sae import SAE
    from saebench_meta.training.recipe import Recipe


class Processes:
    """The processes that train together; one, unless started by `torchrun`. A batch is split over them by rows."""

    def __init__(self) -> None:
        on = torch.distributed.is_available() and torch.distributed.is_initialized()
        self.count: int = torch.distributed.get_world_size() if on else 1
        self.rank: int = torch.distributed.get_rank() if on else 0

    def sum(self, x: Tensor) -> Tensor:
        """The sum over all processes; `x` itself when there is one."""
        return self._reduce(x, torch.distributed.ReduceOp.SUM) if self.count > 1 else x

    def mean(self, x: Tensor) -> Tensor:
        return self.sum(x) / self.count if self.count > 1 else x

    def max(self, x: Tensor) -> Tensor:
        return self._reduce(x, torch.distributed.ReduceOp.MAX) if self.count > 1 else x

    def min(self, x: Tensor) -> Tensor:
        return self._reduce(x, torch.distributed.ReduceOp.MIN) if self.count > 1 else x

    def gather(self, x: Tensor) -> Tensor:
        """(processes, …): a tensor of equal shape from every process, in their order."""
        if self.count == 1:
            return x[None]
        parts = [torch.empty_like(x) for _ in range(self.count)]
        torch.distributed.all_gather(parts, x.contiguous())
        return torch.stack(parts)

    @staticmethod
    def _reduce(x: Tensor, how: Any) -> Tensor:
        x = x.clone()
        torch.distributed.all_reduce(x, op=how)
        return x


@dataclass(frozen=True)
class Moment:
    """Where a run stands when a loss is asked for.

    Attributes:
        step: number of the step, from 0.
        steps: steps of the whole run.
        tokens: activations seen before this step, over all processes.
        dead: (d_sae,) latents that have been silent for the recipe's window; None where there are certainly none. On a
            GPU it may also be all False, because looking would stall it.
        processes: those that train together.
    """

    step: int
    steps: int
    tokens: int
    dead: Bool[Tensor, " d_sae"] | None = None
    processes: Processes = field(default_factory=Processes)


@dataclass(frozen=True)
class Loss:
    """What a batch gives.

    Attributes:
        total: scalar with a graph; its gradient is taken. A mean over this process's rows.
        sse: detached scalar, Σ‖x − x_hat‖² over this process's rows (the reconstruction as it is in training).
        active: detached scalar, number of active latents over this process's rows.
        fired: (d_sae,) which latents were active on any of them.
        parts: detached scalars by name (`mse`, `l1`, `aux`, …), for the metrics file.
    """

    total: Float[Tensor, ""]
    sse: Float[Tensor, ""]
    active: Float[Tensor, ""]
    fired: Bool[Tensor, " d_sae"]
    parts: dict[str, Float[Tensor, ""]] = field(default_factory=dict)


@dataclass(frozen=True)
class Exported:
    """The trained SAE in canonical form (`saebench_meta.sae`), in the units it was trained in.

    Attributes:
        start: the SAE that this one is but for `W_dec` and `b_dec`: its encoder, whatever it is, is kept.
    """

    W_enc: Float[Tensor, "d_in d_sae"]
    b_enc: Float[Tensor, " d_sae"]
    W_dec: Float[Tensor, "d_sae d_in"]
    b_dec: Float[Tensor, " d_in"]
    activation: str
    threshold: Float[Tensor, " d_sae"] | None = None
    k: int | None = None
    start: SAE | None = None


class TrainableSAE:
    """Base of trainable SAEs. Subclasses set `parameters` (and `state`) and give `loss` and `export`.

    Attributes:
        parameters: by name, float32 leaves that require gradients. `W_enc` and `W_dec` are both (d_sae, d_in), rows
            contiguous by latent.
        state: by name, tensors that change in training without a gradient (running maxima, thresholds); checkpointed.
        constrained: names of parameters whose rows have norm 1: the gradient's part along each row is removed before
            the optimizer's step, and rows are scaled back to norm 1 after it (paper, A.2).
    """

    parameters: dict[str, Tensor]
    state: dict[str, Tensor]
    constrained: tuple[str, ...] = ("W_dec",)

    def __init__(
        self, recipe: Recipe, d_in: int, first: Float[Tensor, "batch d_in"], generator: torch.Generator
    ) -> None:
        """Parameters before the first step.

        Args:
            first: the first batch, scaled, whole (not only this process's rows); on the device to train on.
            generator: on the CPU; draws are moved to the device, so that devices agree.

        A subclass whose `Architecture` says `starts` also takes `start: SAE`.
        """
        raise NotImplementedError

    def loss(self, x: Float[Tensor, "batch d_in"], moment: Moment) -> Loss:
        """Loss of this process's rows of a batch."""
        raise NotImplementedError

    def finish(self, batches: Iterator[Float[Tensor, "batch d_in"]], processes: Processes) -> None:
        """After the last step, with the recipe's `threshold_batches` more batches at hand; e.g. sets a threshold."""

    def export(self) -> Exported:
        """The SAE as it is now, detached, on the device it was trained on."""
        raise NotImplementedError


def unit_rows(matrix: Float[Tensor, "rows d"]) -> Float[Tensor, "rows d"]:
    """Rows scaled to norm 1; zero rows stay zero."""
    return torch.nn.functional.normalize(matrix, dim=-1, eps=1e-12)


def remove_parallel(gradient: Float[Tensor, "rows d"], rows: Float[Tensor, "rows d"]) -> None:
    """Take out of each row's gradient, in place, its part along the row (of norm 1), which only changes the norm."""
    gradient.addcmul_((gradient * rows).sum(-1, keepdim=True), rows, value=-1)
