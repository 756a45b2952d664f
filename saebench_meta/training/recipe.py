"""Everything that determines an SAE's weights besides the data it is trained on. No torch.

Durations are in tokens or in shares of the run, so that the same recipe means the same on a short run: a window of ten
million tokens is never reached in a run of two million (dead latents are then never revived).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from saebench_meta.errors import SaebenchError, did_you_mean
from saebench_meta.parameters import like
from saebench_meta.record import canonical_hash

if TYPE_CHECKING:
    from saebench_meta.hookspecs import Architecture

Precision = Literal["float32", "tf32", "bfloat16"]
Scaling = Literal["rms", "none"]
Start = Literal["mean", "zero"]
Hyperparameter = bool | int | float | str | tuple[float, ...]

DEAD_AFTER_TOKENS = 10_000_000
"""Gao et al. 2024: a latent silent for this many tokens is dead."""


class Recipe(BaseModel):
    """How an SAE is trained. `digest()` names the result; make one with `make_recipe`."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    architecture: str = Field(description="Name of the architecture, e.g. `batchtopk`.")
    architecture_version: int = Field(default=1, description="Of the architecture's code.")
    d_sae: int = Field(gt=0, description="Number of latents.")
    hyperparameters: dict[str, Hyperparameter] = Field(
        default_factory=dict, description="The architecture's own (k, l1, …)."
    )
    tokens: int = Field(gt=0, description="Activations seen, repeats included; rounded up to whole batches.")
    batch_size: int = Field(default=4096, gt=0, description="Activations a step, over all processes (paper, A.3).")
    lr: float = Field(default=3e-4, gt=0, description="Peak learning rate of Adam (paper, A.3).")
    beta1: float = Field(default=0.9, ge=0, lt=1, description="Adam's (paper, A.3).")
    beta2: float = Field(default=0.99, ge=0, lt=1, description="Adam's (paper, A.3).")
    eps: float = Field(default=1e-8, gt=0, description="Adam's.")
    warmup: float = Field(default=0.0, ge=0, le=1, description="Share of the steps over which the rate rises linearly.")
    decay: float = Field(default=0.0, ge=0, le=1, description="Share of the steps over which it falls linearly to 0.")
    clip: float | None = Field(default=None, gt=0, description="Largest norm of all gradients together.")
    dead_after: float = Field(
        default=0.02, gt=0, le=1, description="Share of the tokens without firing after which a latent is dead, …"
    )
    dead_after_tokens: int = Field(default=DEAD_AFTER_TOKENS, gt=0, description="… or this many tokens, if fewer.")
    scaling: Scaling = Field(
        default="rms", description="`rms`: activations scaled to a mean square of 1 a dimension, folded out again."
    )
    b_dec: Start = Field(default="mean", description="Where the decoder bias starts: the first batch's mean, or zero.")
    threshold_batches: int = Field(default=100, gt=0, description="Batches for the inference threshold (paper, eq. 8).")
    precision: Precision = Field(default="float32", description="Of matrix products; weights are float32 always.")
    seed: int = Field(default=0, ge=0, description="Of initialisation.")
    data_seed: int = Field(default=0, ge=0, description="Of the order of the data; shared by SAEs trained in one pass.")

    @field_validator("hyperparameters", mode="before")
    @classmethod
    def _tuples(cls, values: Mapping[str, Any]) -> dict[str, Any]:
        return {k: tuple(v) if isinstance(v, list) else v for k, v in sorted(values.items())}

    @property
    def steps(self) -> int:
        """Optimizer steps."""
        return math.ceil(self.tokens / self.batch_size)

    @property
    def dead_window(self) -> int:
        """Tokens without firing after which a latent counts as dead; at least one batch."""
        return max(self.batch_size, min(self.dead_after_tokens, round(self.dead_after * self.tokens)))

    def learning_rate(self, step: int) -> float:
        """The rate of a step (from 0): linear warm-up, constant, linear decay to 0 at the end."""
        rising = (step + 1) / (self.warmup * self.steps) if self.warmup else 1.0
        falling = (self.steps - step) / (self.decay * self.steps) if self.decay else 1.0
        return self.lr * min(1.0, rising, falling)

    def digest(self) -> str:
        """sha256 of the recipe."""
        return canonical_hash(self.model_dump(mode="json"))

    @property
    def label(self) -> str:
        """Short name: architecture, width, what sets the sparsity, seeds."""
        shown = "".join(
            f"-{name}{self.hyperparameters[name]:g}"
            for name in ("k", "l1", "l0_coefficient")
            if isinstance(self.hyperparameters.get(name), int | float)
        )
        order = f"d{self.data_seed}" if self.data_seed else ""
        return f"{self.architecture}-{self.d_sae}{shown}-s{self.seed}{order}"


def make_recipe(architecture: Architecture, name: str, **given: Any) -> Recipe:
    """A recipe with the architecture's defaults under what is given.

    Args:
        given: fields of `Recipe`, and the architecture's own hyperparameters by name, mixed.

    Raises:
        SaebenchError: an unknown name, or a value of the wrong kind or out of range.
    """
    own, fields = dict(architecture.hyperparameters), {**architecture.recipe}
    for key, value in given.items():
        if key in own:
            own[key] = _finite(like(own[key], value, f"{name}.{key}"), f"recipe of '{name}': {key}")
        elif key in Recipe.model_fields and key not in ("architecture", "architecture_version", "hyperparameters"):
            fields[key] = value
        else:
            known = [*own, *(f for f in Recipe.model_fields if f != "hyperparameters")]
            raise SaebenchError(f"architecture '{name}' has no setting '{key}'{did_you_mean(key, known)}")
    try:
        recipe = Recipe(architecture=name, architecture_version=architecture.version, hyperparameters=own, **fields)
    except ValidationError as e:
        first = e.errors()[0]
        raise SaebenchError(f"recipe of '{name}': {'.'.join(map(str, first['loc']))}: {first['msg']}") from e
    if architecture.check is not None and (problem := architecture.check(recipe)):
        raise SaebenchError(f"recipe of '{name}': {problem}")
    return recipe


def check_starts(architecture: Architecture, recipe: Recipe, given: bool) -> None:
    """Refuse an SAE to start from where there must be none, and none where there must be one.

    Args:
        given: whether there is one.

    Raises:
        SaebenchError: as said.
    """
    name = recipe.architecture
    if given and not architecture.starts:
        raise SaebenchError(f"architecture '{name}' starts from random weights: leave the SAE to start from out")
    if architecture.starts and not given:
        raise SaebenchError(f"architecture '{name}' starts from an SAE: give one (--start REF, or start= in a task)")
    if given and recipe.scaling != "none":
        raise SaebenchError(f"recipe of '{name}': an SAE to start from reads activations as they are: scaling=none")


def _finite(value: Any, where: str) -> Any:
    numbers = value if isinstance(value, tuple) else (value,)
    if any(isinstance(n, float) and not math.isfinite(n) for n in numbers):
        raise SaebenchError(f"{where} is {value}: give a finite number")
    return value
