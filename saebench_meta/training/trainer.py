"""One SAE in training: a step of the optimizer, and everything that a step changes.

    x ─ scaled ─► loss ─► gradients (averaged over processes) ─► parallel part removed ─► clipped ─► Adam ─► unit rows

All that a later step depends on is in `tensors()`: parameters, the optimizer's moments, the architecture's state, and
how long each latent has been silent. Restoring them continues a run bit for bit on a CPU.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from saebench_meta import seeds
from saebench_meta.errors import SaebenchError
from saebench_meta.models import strict_fp32
from saebench_meta.training.recipe import check_starts
from saebench_meta.training.trainable import (
    Exported,
    Loss,
    Moment,
    Processes,
    TrainableSAE,
    remove_parallel,
    unit_rows,
)

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

    from saebench_meta.hookspecs import Architecture
    from saebench_meta.sae import SAE
    from saebench_meta.training.recipe import Precision, Recipe

SCALE_ROWS = 65_536
"""Activations the scale is measured on, at most."""
BLOCK = 65_536
"""Numbers of a matrix that a CPU works on at a time where several passes follow each other."""


@dataclass(frozen=True)
class StepResult:
    """Detached figures of one step, over all processes; on the device, so that reading them is the caller's choice.

    Attributes:
        loss: total loss.
        sse, sst: Σ‖x − x_hat‖² and Σ‖x − x̄‖² over the batch: FVU = sse / sst.
        l0: mean active latents per token.
        dead: number of dead latents.
        parts: the architecture's own.
    """

    loss: Tensor
    sse: Tensor
    sst: Tensor
    l0: Tensor
    dead: Tensor
    parts: Mapping[str, Tensor]


class Trainer:
    """An SAE, its optimizer and its counters."""

    def __init__(
        self,
        architecture: Architecture,
        recipe: Recipe,
        first: Float[Tensor, "batch d_in"],
        *,
        start: SAE | None = None,
        processes: Processes | None = None,
    ) -> None:
        """Parameters and optimizer before the first step.

        Args:
            first: the whole first batch, unscaled, the same in every process; it sets the scale and starts `b_dec`.
            start: the SAE that training starts from, for an architecture that says so.

        Raises:
            SaebenchError: `start` is missing, or too much, or does not fit.
        """
        check_start(architecture, recipe, start, first.shape[1])
        self.recipe, self.processes = recipe, processes or Processes()
        self.d_in = first.shape[1]
        self.scale = scale_of(first) if recipe.scaling == "rms" else 1.0
        generator = seeds.generator(recipe.seed, "training", recipe.architecture)
        given = {} if start is None else {"start": start}
        self.sae: TrainableSAE = architecture.build(recipe, self.d_in, first * self.scale, generator, **given)
        self.optimizer = torch.optim.Adam(
            self.sae.parameters.values(),
            lr=recipe.lr,
            betas=(recipe.beta1, recipe.beta2),
            eps=recipe.eps,
            fused=True,
        )
        self.step_number = 0
        self.silent = torch.zeros(recipe.d_sae, dtype=torch.int64, device=first.device)
        """Tokens since each latent last fired."""

    def step(self, x: Float[Tensor, "batch d_in"]) -> StepResult:
        """One step on this process's rows of a batch, unscaled."""
        x = x * self.scale if self.scale != 1.0 else x
        tokens, seen = self.recipe.batch_size, self.step_number * self.recipe.batch_size
        dead = self.silent >= self.recipe.dead_window
        some = seen >= self.recipe.dead_window and (x.is_cuda or bool(dead.any()))
        moment = Moment(self.step_number, self.recipe.steps, seen, dead if some else None, self.processes)
        with precision(self.recipe.precision):
            loss = self.sae.loss(x, moment)
            torch.autograd.backward(loss.total)
        self._update()
        self.step_number += 1
        fired = self.processes.max(loss.fired.to(torch.uint8)).bool() if self.processes.count > 1 else loss.fired
        self.silent = torch.where(fired, 0, self.silent + tokens)
        return self._result(x, loss, dead)

    def _update(self) -> None:
        parameters = self.sae.parameters
        with torch.no_grad():
            if self.processes.count > 1:
                for tensor in parameters.values():
                    tensor.grad = self.processes.mean(_gradient(tensor))
            for name in self.sae.constrained:
                for gradient, rows in _blocks(_gradient(parameters[name]), parameters[name]):
                    remove_parallel(gradient, rows)
        if self.recipe.clip is not None:
            torch.nn.utils.clip_grad_norm_(list(parameters.values()), self.recipe.clip)
        for group in self.optimizer.param_groups:
            group["lr"] = self.recipe.learning_rate(self.step_number)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        with torch.no_grad():
            for name in self.sae.constrained:
                for (rows,) in _blocks(parameters[name]):
                    rows.copy_(unit_rows(rows))

    def _result(self, x: Tensor, loss: Loss, dead: Tensor) -> StepResult:
        p = self.processes
        rows = x.shape[0] * p.count
        mean = p.sum(x.sum(0)) / rows
        parts = {name: p.mean(value) for name, value in loss.parts.items()}
        return StepResult(
            loss=p.mean(loss.total.detach()),
            sse=p.sum(loss.sse),
            sst=p.sum((x - mean).square_().sum()),
            l0=p.sum(loss.active) / rows,
            dead=dead.sum(),
            parts=parts,
        )

    def finish(self, batches: Iterator[Float[Tensor, "batch d_in"]]) -> None:
        """What the architecture does after the last step, on batches of the feed."""
        with torch.no_grad(), precision(self.recipe.precision):
            self.sae.finish((x * self.scale for x in batches), self.processes)

    # -- what a checkpoint holds

    def tensors(self) -> dict[str, Tensor]:
        """Everything that later steps depend on, by name."""
        held = {f"parameter.{name}": tensor.detach() for name, tensor in self.sae.parameters.items()}
        held |= {f"state.{name}": tensor for name, tensor in self.sae.state.items()}
        for name, tensor in self.sae.parameters.items():
            for moment, value in self.optimizer.state.get(tensor, {}).items():
                held[f"adam.{name}.{moment}"] = value
        return held | {"silent": self.silent, "scale": torch.tensor(self.scale, dtype=torch.float64)}

    def restore(self, tensors: Mapping[str, Tensor], step_number: int) -> None:
        """Continue from what `tensors` gave after so many steps."""
        with torch.no_grad():
            for name, tensor in self.sae.parameters.items():
                tensor.copy_(tensors[f"parameter.{name}"])
        for name in self.sae.state:
            self.sae.state[name] = tensors[f"state.{name}"].to(self.silent.device).clone()
        for name, tensor in self.sae.parameters.items():
            start = f"adam.{name}."
            # The number of steps stays where the optimizer keeps it: with the tensors, since it is fused.
            found = {
                k.removeprefix(start): v.to(tensor.device).clone() for k, v in tensors.items() if k.startswith(start)
            }
            if found:
                self.optimizer.state[tensor] = found
        self.silent = tensors["silent"].to(self.silent.device).clone()
        self.scale, self.step_number = float(tensors["scale"]), step_number

    def export(self) -> Exported:
        """The SAE in units of the unscaled activations: `f / s`, `x_hat / s`, the same directions."""
        made, s = self.sae.export(), self.scale
        return replace(
            made,
            W_enc=made.W_enc.detach().clone(),
            b_enc=made.b_enc.detach() / s,
            W_dec=made.W_dec.detach().clone(),
            b_dec=made.b_dec.detach() / s,
            threshold=None if made.threshold is None else made.threshold.detach() / s,
        )


def check_start(architecture: Architecture, recipe: Recipe, start: SAE | None, d_in: int | None = None) -> None:
    """Refuse an SAE to start from where there must be none, none where there must be one, and one that does not fit.

    Raises:
        SaebenchError: as said.
    """
    check_starts(architecture, recipe, start is not None)
    if start is None:
        return
    if start.d_sae != recipe.d_sae or (d_in is not None and start.d_in != d_in):
        raise SaebenchError(
            f"'{start.info.name}' has {start.d_sae:,} latents of width {start.d_in}; its training is of "
            f"{recipe.d_sae:,} on activations of width {start.d_in if d_in is None else d_in}"
        )


def scale_of(x: Float[Tensor, "batch d_in"]) -> float:
    """What makes the mean square of activations 1 a dimension; 1 where they are all zero.

    Raises:
        SaebenchError: some are NaN or infinite.
    """
    mean_square = float(x[:SCALE_ROWS].double().square().mean())
    if not math.isfinite(mean_square):
        raise SaebenchError("activations to train on hold NaN or infinite values")
    return 1 / math.sqrt(mean_square) if mean_square > 0 else 1.0


def _blocks(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Blocks of rows small enough that what is worked out on them stays in a CPU's cache; all rows on a GPU."""
    rows = tensors[0].shape[0] if tensors[0].is_cuda else max(1, BLOCK // tensors[0].shape[1])
    return zip(*(torch.split(tensor, rows) for tensor in tensors), strict=True)


def _gradient(tensor: Tensor) -> Tensor:
    """Its gradient; zeros where the loss did not depend on it, so that every process and every step does the same."""
    if tensor.grad is None:
        tensor.grad = torch.zeros_like(tensor)
    return tensor.grad


@contextmanager
def precision(name: Precision) -> Iterator[None]:
    """`float32`: strict; `tf32`: tensor cores for float32 products; `bfloat16` is up to the architecture's kernels."""
    if name == "float32":
        with strict_fp32():
            yield
        return
    with strict_fp32():
        matmul = torch.backends.cuda.matmul
        if hasattr(matmul, "fp32_precision"):
            matmul.fp32_precision = "tf32"
        else:
            matmul.allow_tf32 = True
        yield
