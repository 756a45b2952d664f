"""The BatchTopK trainer on data whose dictionary is known."""

from __future__ import annotations

import pytest
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from saebench_plugins.atlas.train_first_cut import (
    BatchTopKRecipe,
    auxk_loss,
    batch_topk,
    measure,
    remove_parallel_gradient,
    train_batch_topk,
)

D_IN, FEATURES, ACTIVE = 32, 48, 3


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def planted() -> tuple[Tensor, Tensor]:
    """Activations (tokens, d_in) made of a known dictionary (features, d_in), three features a token on average."""
    generator = torch.Generator().manual_seed(0)
    dictionary = torch.nn.functional.normalize(torch.randn(FEATURES, D_IN, generator=generator), dim=-1)
    active = torch.rand(20_000, FEATURES, generator=generator) < ACTIVE / FEATURES
    strength = 1 + torch.rand(20_000, FEATURES, generator=generator)
    return (active * strength) @ dictionary + 0.7, dictionary


def test_trainer_recovers_a_planted_dictionary(planted: tuple[Tensor, Tensor]) -> None:
    x, truth = planted
    learnt = train_batch_topk(x, BatchTopKRecipe(d_sae=FEATURES, k=ACTIVE, steps=1200, batch=1024, lr=2e-3))
    cosines = truth @ learnt.W_dec.T
    rows, columns = linear_sum_assignment(-cosines.numpy())
    assert cosines[rows, columns].mean() > 0.95
    quality = measure(learnt, x)
    assert quality.l0 == pytest.approx(ACTIVE, rel=0.1)
    assert quality.fvu < 0.1
    torch.testing.assert_close(learnt.W_dec.norm(dim=-1), torch.ones(FEATURES))


def test_training_is_deterministic(planted: tuple[Tensor, Tensor]) -> None:
    recipe = BatchTopKRecipe(d_sae=16, k=2, steps=20, batch=256)
    first, second = (train_batch_topk(planted[0][:2000], recipe) for _ in range(2))
    assert torch.equal(first.W_enc, second.W_enc)
    assert first.threshold == second.threshold


def test_scale_of_the_data_does_not_change_what_is_learnt(planted: tuple[Tensor, Tensor]) -> None:
    recipe = BatchTopKRecipe(d_sae=16, k=2, steps=20, batch=256)
    x = planted[0][:2000]
    small, large = train_batch_topk(x, recipe), train_batch_topk(8 * x, recipe)
    torch.testing.assert_close(small.W_dec, large.W_dec)
    torch.testing.assert_close(8 * small.encode(x), large.encode(8 * x), rtol=1e-3, atol=1e-3)
    assert measure(small, x).fvu == pytest.approx(measure(large, 8 * x).fvu, rel=1e-3)


def test_batch_topk_keeps_the_largest_of_the_batch_not_of_each_row() -> None:
    activations = torch.tensor([[5.0, 4.0, 3.0], [1.0, 2.0, 0.5]])
    assert batch_topk(activations, 1).tolist() == [[5.0, 4.0, 0.0], [0.0, 0.0, 0.0]]


def test_auxk_sees_dead_latents_only() -> None:
    residual = torch.tensor([[2.0, 0.0], [0.0, 2.0]])
    W_dec = torch.eye(2)
    activations = torch.tensor([[2.0, 0.0], [9.0, 2.0]])
    dead = torch.tensor([False, True])
    assert auxk_loss(residual, activations, W_dec, dead).item() == pytest.approx(2.0)


def test_parallel_gradient_is_removed() -> None:
    W_dec = torch.tensor([[0.6, 0.8]], requires_grad=True)
    W_dec.grad = torch.tensor([[1.0, 1.0]])
    remove_parallel_gradient(W_dec)
    assert (W_dec.grad * W_dec).sum().item() == pytest.approx(0.0, abs=1e-6)


def test_measure_counts_dead_latents_and_unexplained_variance() -> None:
    from saebench_plugins.atlas.train_first_cut import Dictionary

    x = torch.tensor([[1.0, 0.0], [3.0, 0.0], [2.0, 1.0], [2.0, -1.0]])
    sees_first_axis = Dictionary(
        W_enc=torch.tensor([[1.0, -1.0], [0.0, 0.0]]), b_enc=torch.zeros(2), W_dec=torch.eye(2), b_dec=torch.zeros(2),
        threshold=0.5,
    )  # fmt: skip
    quality = measure(sees_first_axis, x)
    assert quality.l0 == 1.0
    assert quality.dead == 0.5
    assert quality.fvu == pytest.approx(2 / 4)
