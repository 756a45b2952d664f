"""What is written down of a training while it goes on: one line of figures an interval, in `metrics.jsonl`.

Figures are added up on the device and read once an interval, since reading stalls a GPU.
"""

from __future__ import annotations

import json
import math
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from saebench_meta.errors import BadFileError, SaebenchError
from saebench_meta.training.checkpoint import Interval

if TYPE_CHECKING:
    from saebench_meta.training.recipe import Recipe
    from saebench_meta.training.trainer import StepResult

FILE_NAME = "metrics.jsonl"
NEVER = 2**53
"""A step that no run comes to."""
PART = "part."


@dataclass(frozen=True)
class Figures:
    """Means over an interval of steps.

    Attributes:
        step, tokens: steps made and activations seen, at the interval's end.
        loss: total loss.
        fvu: Σ‖x − x_hat‖² / Σ‖x − x̄‖² over the interval; None where the activations do not vary.
        l0: active latents per token.
        dead_share: share of latents that are dead.
        lr: learning rate of the last step.
        tokens_per_second: speed; of all SAEs trained in one pass together.
        parts: the architecture's own.
    """

    step: int
    tokens: int
    loss: float
    fvu: float | None
    l0: float
    dead_share: float
    lr: float
    tokens_per_second: float
    parts: dict[str, float] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


class Sums:
    """Figures of the steps since the last reading, added up on the device."""

    def __init__(self, device: torch.device, interval: Interval | None = None) -> None:
        interval = interval or Interval()
        self.steps = interval.steps
        self._dtype = torch.float32 if device.type == "mps" else torch.float64
        self._sums = {name: torch.tensor(v, dtype=self._dtype, device=device) for name, v in interval.sums.items()}
        self._broken = torch.tensor(NEVER, device=device)

    def add(self, result: StepResult, step: int) -> None:
        """Add the figures of a step."""
        values = {"loss": result.loss, "sse": result.sse, "sst": result.sst, "l0": result.l0, "dead": result.dead}
        for name, value in (values | {PART + k: v for k, v in result.parts.items()}).items():
            value = value.to(self._dtype)
            self._sums[name] = value + self._sums[name] if name in self._sums else value
        self._broken = torch.where(result.loss.isfinite(), self._broken, self._broken.clamp_max(step))
        self.steps += 1

    def read(self) -> Interval:
        """The sums, read from the device.

        Raises:
            SaebenchError: the loss of a step was NaN or infinite, or activations were.
        """
        *values, broken = torch.stack([*self._sums.values(), self._broken.to(self._dtype)]).tolist()
        sums = dict(zip(self._sums, values, strict=True))
        if not math.isfinite(sums.get("sst", 0.0)):
            raise SaebenchError(
                f"activations of step {int(broken)} are NaN or infinite: look at the model, its --dtype and --hook"
            )
        if broken < NEVER:
            raise SaebenchError(
                f"the loss of step {int(broken)} is NaN or infinite: lower the learning rate, or clip the gradients"
            )
        return Interval(steps=self.steps, sums=sums)


def figures(interval: Interval, recipe: Recipe, step: int, tokens_per_second: float) -> Figures:
    """Means of an interval that ends after `step` steps."""
    sums, n = interval.sums, interval.steps
    return Figures(
        step=step,
        tokens=step * recipe.batch_size,
        loss=sums["loss"] / n,
        fvu=sums["sse"] / sums["sst"] if sums["sst"] > 0 else None,
        l0=sums["l0"] / n,
        dead_share=sums["dead"] / n / recipe.d_sae,
        lr=recipe.learning_rate(step - 1),
        tokens_per_second=tokens_per_second,
        parts={name.removeprefix(PART): total / n for name, total in sums.items() if name.startswith(PART)},
    )


class MetricsFile:
    """Lines of figures. On going on it is cut back to a step, since later lines will be written again."""

    def __init__(self, folder: Path, step: int) -> None:
        self.path = folder / FILE_NAME
        kept = _lines(self.path, step)
        self._file = self.path.open("rb+" if self.path.exists() else "wb+")
        self._file.truncate(kept)
        self._file.seek(kept)

    def write(self, line: Figures) -> None:
        self._file.write(json.dumps(line.to_json(), allow_nan=False).encode() + b"\n")
        self._file.flush()

    def sync(self) -> None:
        """Have everything on the disk: a checkpoint is about to count on it."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()


def last_line(folder: Path) -> Figures:
    """The last figures of a folder's file.

    Raises:
        BadFileError: there are none.
    """
    path = folder / FILE_NAME
    try:
        return Figures(**json.loads(path.read_bytes().splitlines()[-1]))
    except (OSError, IndexError, ValueError, TypeError) as e:
        raise BadFileError(f"'{path}' does not end with a line of figures: remove it and train anew") from e


def _lines(path: Path, step: int) -> int:
    """Length in bytes of the whole lines up to a step."""
    length = 0
    if path.is_file():
        with path.open("rb") as file:
            for line in file:
                if not line.endswith(b"\n") or _step(line) > step:
                    break
                length += len(line)
    return length


def _step(line: bytes) -> float:
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return math.inf
