"""Gated SAEs: steps as in the formulas, a planted dictionary, the JumpReLU SAE that comes out."""

from __future__ import annotations

import pytest
import torch
from by_hand import D_SAE, assert_continues, assert_exports, assert_steps_agree, batches, made, of_loss
from planted import planted, recovered, train
from torch import Tensor

from saebench_meta import seeds
from saebench_meta.training.selection import SPARSE_SHARE

L1 = 0.02


def codes(p: dict[str, Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
    """What fires and how strongly, and the gate's own pre-activations."""
    projected = (x - p["b_dec"]) @ p["W_gate"].T
    pi = projected + p["b_gate"]
    return torch.relu(torch.exp(p["r_mag"]) * projected + p["b_mag"]) * (pi > 0), pi


def loss(p: dict[str, Tensor], x: Tensor, step: int) -> Tensor:
    f, pi = codes(p, x)
    gate = torch.relu(pi)
    frozen = gate @ p["W_dec"].detach() + p["b_dec"].detach()
    mse = ((x - f @ p["W_dec"] - p["b_dec"]) ** 2).mean()
    return mse + L1 * min(1.0, (step + 1) / 5) * gate.sum(1).mean() + ((x - frozen) ** 2).mean()


def uneven(gate: float) -> dict[str, Tensor]:
    """Parameters that are not all the same, so that gate and magnitude disagree."""
    g = seeds.generator(0, "uneven")
    return {
        "b_gate": gate + 0.2 * torch.randn(D_SAE, generator=g),
        "r_mag": 0.3 * torch.randn(D_SAE, generator=g),
        "b_mag": 0.5 * torch.randn(D_SAE, generator=g),
    }


@pytest.mark.parametrize(("gate", "sparse"), [(0.0, False), (-2.6, True)])
def test_ten_steps_agree_with_a_dense_float64_implementation(gate: float, sparse: bool) -> None:
    xs = batches(10)
    trainer = made("gated", xs, uneven(gate), l1=L1, l1_warmup=0.5)
    l0 = assert_steps_agree(trainer, xs, of_loss(loss), unit=("W_dec",))
    assert min(l0) > 0
    assert (max(l0) < SPARSE_SHARE * D_SAE) == sparse


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_it_finds_a_planted_dictionary(seed: int) -> None:
    x, truth = planted(64, 64, 0.03, 40_000, seed)
    trainer = train("gated", x, 1000, seed=seed, d_sae=80, l1=0.1, lr=3e-3, decay=0.2)
    assert recovered(trainer.export().W_dec, truth) >= 0.9


@pytest.mark.parametrize("gate", [0.0, -1.0])
def test_the_exported_sae_gives_the_codes_of_training(gate: float) -> None:
    xs = batches(5)
    trainer = made("gated", xs, uneven(gate), l1=L1)
    for x in xs:
        trainer.step(x)
    f, pi = codes(trainer.sae.parameters, xs[0] * trainer.scale)
    assert bool(((pi > 0) & (f == 0)).any())
    assert bool(((pi <= 0) & (torch.exp(trainer.sae.parameters["r_mag"]) * pi > -0.1)).any())
    assert_exports(trainer, xs[0], f)


def test_it_continues_from_a_checkpoint() -> None:
    assert_continues("gated", l1=L1)
