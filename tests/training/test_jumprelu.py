"""JumpReLU SAEs: straight-through gradients as in the source, a planted dictionary, the SAE that comes out."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch
from by_hand import BATCH, D_IN, D_SAE, assert_continues, assert_exports, assert_steps_agree, batches, made
from planted import planted, recovered, train
from torch import Tensor

from saebench_meta.training.selection import SPARSE_SHARE
from saebench_plugins.architectures.jumprelu import Jump

BANDWIDTH, COEFFICIENT = 0.2, 0.05


def gradients(p: Mapping[str, Tensor], x: Tensor, step: int) -> dict[str, Tensor]:
    """Worked out on paper; the rectangle kernel stands for the derivative of the step."""
    theta = p["threshold"].clamp_min(0)
    pre = x @ p["W_enc"].T + p["b_enc"]
    on = (pre > theta).double()
    kernel = ((pre - theta).abs() / BANDWIDTH < 0.5).double()
    f = pre * on
    d_x_hat = 2 * (f @ p["W_dec"] + p["b_dec"] - x) / (BATCH * D_IN)
    d_f = d_x_hat @ p["W_dec"].T
    penalty = COEFFICIENT * min(1.0, (step + 1) / 5) / BATCH
    return {
        "W_enc": (d_f * on).T @ x,
        "b_enc": (d_f * on).sum(0),
        "W_dec": f.T @ d_x_hat,
        "b_dec": d_x_hat.sum(0),
        "threshold": (-theta / BANDWIDTH * kernel * d_f - penalty / BANDWIDTH * kernel).sum(0),
    }


@pytest.mark.parametrize(("threshold", "sparse"), [(0.01, False), (1.0, False), (2.3, True)])
def test_ten_steps_agree_with_gradients_worked_out_by_hand(threshold: float, sparse: bool) -> None:
    xs = batches(10)
    trainer = made("jumprelu", xs, l0_coefficient=COEFFICIENT, l0_warmup=0.5, bandwidth=BANDWIDTH, threshold=threshold)
    l0 = assert_steps_agree(trainer, xs, gradients, unit=("W_dec",))
    assert min(l0) > 0
    assert (max(l0) < SPARSE_SHARE * D_SAE) == sparse
    assert (trainer.sae.parameters["threshold"] != threshold).float().mean() > 0.5


def test_the_jump_has_the_sources_gradients() -> None:
    pre = torch.tensor([[0.4, 0.96, 1.04, 2.0]], requires_grad=True)
    theta = torch.ones(4, requires_grad=True)
    f, on = Jump.apply(pre, theta, 0.1)
    assert torch.equal(f.detach(), torch.tensor([[0.0, 0.0, 1.04, 2.0]]))
    weights = torch.tensor([[3.0, 5.0, 7.0, 9.0]])
    ((f * weights).sum() + 2 * on.sum()).backward()
    assert torch.equal(pre.grad, torch.tensor([[0.0, 0.0, 7.0, 9.0]]))
    torch.testing.assert_close(theta.grad, torch.tensor([0.0, -10 * (5 + 2), -10 * (7 + 2), 0.0]))


def test_a_threshold_below_zero_counts_as_zero_and_is_taken_up_again() -> None:
    pre = torch.tensor([[-0.05, 0.03]], requires_grad=True)
    theta = torch.tensor([-0.5, -0.5], requires_grad=True)
    f, on = Jump.apply(pre, theta, 0.2)
    assert torch.equal(f.detach(), torch.tensor([[0.0, 0.03]]))
    on.sum().backward()
    torch.testing.assert_close(theta.grad, torch.tensor([-5.0, -5.0]))  # a step against it raises θ


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_it_finds_a_planted_dictionary(seed: int) -> None:
    x, truth = planted(32, 32, 0.05, 40_000, seed)
    settings = {"l0_coefficient": 0.1, "l0_warmup": 0.5, "bandwidth": 0.03}
    trainer = train("jumprelu", x, 1200, seed=seed, d_sae=96, lr=3e-3, decay=0.2, **settings)
    assert recovered(trainer.export().W_dec, truth) >= 0.9


def test_the_exported_sae_gives_the_codes_of_training() -> None:
    xs = batches(5)
    trainer = made("jumprelu", xs, l0_coefficient=COEFFICIENT, bandwidth=BANDWIDTH)
    for x in xs:
        trainer.step(x)
    p = trainer.sae.parameters
    pre = xs[0] * trainer.scale @ p["W_enc"].T + p["b_enc"]
    assert_exports(trainer, xs[0], pre * (pre > p["threshold"]))


def test_it_continues_from_a_checkpoint() -> None:
    assert_continues("jumprelu", l0_coefficient=COEFFICIENT, bandwidth=BANDWIDTH)
