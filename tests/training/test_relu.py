"""ReLU SAEs: steps as in the formulas, a planted dictionary, the SAE that comes out."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from by_hand import BATCH, D_IN, D_SAE, assert_continues, assert_exports, assert_steps_agree, batches, made, of_loss
from planted import planted, recovered, train
from torch import Tensor

from saebench_meta.errors import SaebenchError
from saebench_meta.training.recipe import make_recipe
from saebench_meta.training.selection import SPARSE_SHARE
from saebench_plugins.architectures import saebench_architectures

L1 = 0.02


def loss(rise: Callable[[int], float]) -> Callable[..., Tensor]:
    def value(p: dict[str, Tensor], x: Tensor, step: int) -> Tensor:
        f = torch.relu((x - p["b_dec"]) @ p["W_enc"].T + p["b_enc"])
        x_hat = f @ p["W_dec"] + p["b_dec"]
        return ((x - x_hat) ** 2).mean() + L1 * rise(step) * f.abs().sum(1).mean()

    return value


@pytest.mark.parametrize("sparse", [False, True])
def test_ten_steps_agree_with_a_dense_float64_implementation(sparse: bool) -> None:
    xs = batches(10)
    start = {"b_enc": torch.full((D_SAE,), -2.2 if sparse else 0.0)}
    trainer = made("relu", xs, start, l1=L1, l1_warmup=0.5)
    l0 = assert_steps_agree(trainer, xs, of_loss(loss(lambda step: min(1.0, (step + 1) / 5))), unit=("W_dec",))
    assert min(l0) > 0
    assert (max(l0) < SPARSE_SHARE * D_SAE) == sparse


def test_it_starts_as_its_transpose_around_the_mean_of_the_first_batch() -> None:
    xs = batches(1)
    p = made("relu", xs).sae.parameters
    assert torch.equal(p["W_enc"], p["W_dec"])
    torch.testing.assert_close(p["W_dec"].norm(dim=1), torch.ones(D_SAE))
    torch.testing.assert_close(p["b_dec"].detach(), xs[0].mean(0) / xs[0].square().mean().sqrt())
    assert not made("relu", xs, b_dec="zero").sae.parameters["b_dec"].any()


def test_the_step_reports_what_it_computed() -> None:
    xs = batches(1)
    trainer = made("relu", xs, l1=L1, l1_warmup=0.0)
    p = {k: t.detach().clone() for k, t in trainer.sae.parameters.items()}
    x = xs[0] * trainer.scale
    f = torch.relu((x - p["b_dec"]) @ p["W_enc"].T + p["b_enc"])
    result = trainer.step(xs[0])
    torch.testing.assert_close(result.sse, ((f @ p["W_dec"] + p["b_dec"] - x) ** 2).sum())
    torch.testing.assert_close(result.l0, (f > 0).sum() / BATCH)
    torch.testing.assert_close(result.parts["mse"], result.sse / BATCH / D_IN)
    torch.testing.assert_close(result.parts["l1"], f.sum() / BATCH)
    torch.testing.assert_close(result.loss, result.parts["mse"] + L1 * result.parts["l1"])
    assert torch.equal(trainer.silent == 0, (f > 0).any(0))


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_it_finds_a_planted_dictionary(seed: int) -> None:
    x, truth = planted(64, 64, 0.03, 40_000, seed)
    trainer = train("relu", x, 800, seed=seed, d_sae=80, l1=0.02, lr=3e-3, decay=0.2)
    assert recovered(trainer.export().W_dec, truth) >= 0.9


def test_the_exported_sae_gives_the_codes_of_training() -> None:
    xs = batches(5)
    trainer = made("relu", xs, l1=L1)
    for x in xs:
        trainer.step(x)
    p = trainer.sae.parameters
    assert_exports(trainer, xs[0], torch.relu((xs[0] * trainer.scale - p["b_dec"]) @ p["W_enc"].T + p["b_enc"]))


def test_it_continues_from_a_checkpoint() -> None:
    assert_continues("relu", l1=L1)


def test_defaults_are_the_papers() -> None:
    recipe = make_recipe(saebench_architectures()["relu"], "relu", d_sae=8, tokens=1)
    assert (recipe.lr, recipe.beta1, recipe.beta2, recipe.batch_size) == (4e-4, 0.9, 0.99, 4096)
    assert recipe.hyperparameters["l1"] == 8e-5


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ({"l1": -1.0}, "l1 is .*; it must be from 0 to"),
        ({"l1_warmup": 1.5}, "l1_warmup is .*; it must be from 0 to"),
        ({"l1": float("nan")}, "l1 is nan: give a finite number"),
        ({"l1": float("inf")}, "l1 is inf: give a finite number"),
    ],
)
def test_hyperparameters_out_of_range_are_refused(setting: dict[str, float], said: str) -> None:
    with pytest.raises(SaebenchError, match=f"recipe of 'relu': {said}"):
        make_recipe(saebench_architectures()["relu"], "relu", d_sae=8, tokens=1, **setting)
