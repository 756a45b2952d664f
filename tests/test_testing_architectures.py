"""Every rule for architectures is broken by one made for it; a sound one keeps them all."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import pytest
import torch

from saebench_meta.hookspecs import Architecture
from saebench_meta.testing import FaultError, attempt_all, check_architecture
from saebench_meta.testing.architectures import CHECKS, architecture_checks
from saebench_meta.training.trainable import Exported, Loss, Moment
from saebench_plugins.architectures.relu import ReLU

SOUND = Architecture(ReLU, hyperparameters={"l1": 1e-3, "l1_warmup": 0.0}, summary="sound")


def built_by(cls: type[ReLU], **changes: Any) -> Architecture:
    return replace(SOUND, build=cls, **changes)


class Double(ReLU):
    """Parameters in float64."""

    def __init__(self, recipe: Any, d_in: int, first: torch.Tensor, generator: torch.Generator) -> None:
        super().__init__(recipe, d_in, first, generator)
        self.parameters = {name: t.detach().double().requires_grad_() for name, t in self.parameters.items()}


class NotANumber(ReLU):
    """A loss of NaN where latents are dead."""

    def loss(self, x: torch.Tensor, moment: Moment) -> Loss:
        made = super().loss(x, moment)
        return made if moment.dead is None else replace(made, total=made.total / torch.zeros(()) * 0)


class Climbing(ReLU):
    """The error is raised, not lowered."""

    def loss(self, x: torch.Tensor, moment: Moment) -> Loss:
        made = super().loss(x, moment)
        return replace(made, total=-made.total)


class ZeroRow(ReLU):
    """A latent that is never active has a decoder row of norm 0, and keeps it."""

    def __init__(self, recipe: Any, d_in: int, first: torch.Tensor, generator: torch.Generator) -> None:
        super().__init__(recipe, d_in, first, generator)
        with torch.no_grad():
            self.parameters["W_dec"][0] = 0
            self.parameters["b_enc"][0] = -1e3


class Global(ReLU):
    """Starts from the global generator."""

    def __init__(self, recipe: Any, d_in: int, first: torch.Tensor, generator: torch.Generator) -> None:
        super().__init__(recipe, d_in, first, generator)
        self.parameters["b_enc"] = (0.01 * torch.randn(recipe.d_sae)).requires_grad_()


class Forgetful(ReLU):
    """Counts its steps where no checkpoint sees it."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.count = itertools.count(1)

    def loss(self, x: torch.Tensor, moment: Moment) -> Loss:
        made = super().loss(x, moment)
        return replace(made, total=made.total / next(self.count) + self.parameters["b_enc"].sum() / next(self.count))


class Negated(ReLU):
    """Gives the decoder with its sign turned."""

    def export(self) -> Exported:
        made = super().export()
        return replace(made, W_dec=-made.W_dec)


def refuses_with_an_error(recipe: Any) -> str | None:
    if recipe.hyperparameters["l1"] < 0:
        raise ValueError("negative")
    return None


BROKEN = {
    "says what it is": replace(SOUND, summary=" "),
    "its check refuses odd values in words": replace(SOUND, check=refuses_with_an_error),
    "parameters are float32 leaves": built_by(Double),
    "loss and gradients are finite": built_by(NotANumber),
    "training lowers the error": built_by(Climbing),
    "constrained rows have norm 1": built_by(ZeroRow),
    "the same recipe gives the same weights": built_by(Global),
    "it continues from a checkpoint": built_by(Forgetful),
    "the exported SAE rebuilds": built_by(Negated),
    "saved and loaded it is the same": built_by(ZeroRow),
}


def test_every_rule_has_an_architecture_that_breaks_it() -> None:
    assert set(BROKEN) == set(CHECKS)


def test_a_sound_architecture_keeps_every_rule() -> None:
    check_architecture(SOUND, l1=2e-3)


@pytest.mark.parametrize("rule", BROKEN)
def test_a_broken_architecture_breaks_its_rule(rule: str) -> None:
    checks = [check for check in architecture_checks("mine", BROKEN[rule]) if check.title == rule]
    (outcome,) = attempt_all(checks)
    assert outcome.status == "fault" and outcome.reason


def test_all_that_is_broken_is_named_at_once() -> None:
    with pytest.raises(FaultError) as caught:
        check_architecture(replace(built_by(Climbing), summary=""), name="mine")
    for rule in ("says what it is", "training lowers the error"):
        assert f"architecture 'mine': {rule}: " in str(caught.value)
