"""TopK and BatchTopK against the dense formulas, on planted dictionaries, and as tasks would read them."""

from __future__ import annotations

import pytest
import torch
from by_hand import D_SAE, assert_continues, assert_exports, assert_steps_agree, batches, made, of_loss
from dense import DenseLoss, make_dead
from planted import planted, recovered, train

from saebench_meta.errors import SaebenchError
from saebench_meta.training.recipe import make_recipe
from saebench_plugins.architectures import saebench_architectures

BOTH = ["topk", "batchtopk"]
DEAD = torch.arange(0, D_SAE, 3)


def check_steps(name: str, k_aux: int, **given: object) -> None:
    """Ten steps with AuxK on: a third of the latents are dead, by their bias, and some come back."""
    xs, low = batches(10), torch.zeros(D_SAE).index_fill_(0, DEAD, -1.5)
    trainer = made(name, xs, {"b_enc": low}, k=4, k_aux=k_aux, dead_after=0.2, **given)
    loss = DenseLoss(trainer.recipe)
    make_dead(trainer, DEAD)
    loss.silent[DEAD] = trainer.recipe.tokens
    l0 = assert_steps_agree(trainer, xs, of_loss(lambda p, x, _: loss(p, x)), ("W_dec",))
    assert loss.aux_steps == len(xs) and 0 < max(l0) <= 4
    assert trainer.silent.equal(loss.silent.long())


@pytest.mark.parametrize("name", BOTH)
@pytest.mark.parametrize("k_aux", [3, 512])
def test_steps_are_those_of_the_dense_formula(name: str, k_aux: int) -> None:
    check_steps(name, k_aux)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("name", BOTH)
def test_a_planted_dictionary_is_found(name: str, seed: int) -> None:
    x, truth = planted(32, 48, 0.06, 20_000, seed)
    trainer = train(name, x, 1000, seed=seed, d_sae=64, k=3, lr=3e-3, decay=0.2)
    assert recovered(trainer.export().W_dec, truth) >= 0.9


def test_topk_exports_its_codes() -> None:
    xs = batches(4)
    trainer = made("topk", xs, k=4)
    for x in xs:
        trainer.step(x)
    p, x = trainer.sae.parameters, xs[0] * trainer.scale
    pre = (x - p["b_dec"]) @ p["W_enc"].T + p["b_enc"]
    assert_exports(trainer, xs[0], DenseLoss(trainer.recipe).codes(pre))
    assert trainer.export().k == 4


def test_the_threshold_is_the_mean_smallest_activation_kept() -> None:
    xs = batches(4)
    trainer = made("batchtopk", xs, k=4)
    for x in xs:
        trainer.step(x)
    trainer.finish(iter(xs))
    p, smallest = trainer.sae.parameters, []
    for x in xs:
        pre = (x * trainer.scale - p["b_dec"]) @ p["W_enc"].T + p["b_enc"]
        f = DenseLoss(trainer.recipe).codes(pre.detach())
        smallest.append(f[f > 0].min())
    theta = torch.stack(smallest).mean()
    torch.testing.assert_close(trainer.sae.state["threshold"], theta)
    pre = (xs[0] * trainer.scale - p["b_dec"]) @ p["W_enc"].T + p["b_enc"]
    assert_exports(trainer, xs[0], pre * (pre > theta))


def test_a_threshold_without_positive_activations_is_zero() -> None:
    trainer = made("batchtopk", batches(2), {"b_enc": torch.full((D_SAE,), -100.0)}, k=4)
    trainer.finish(iter(batches(2)))
    assert trainer.export().threshold is not None and not trainer.export().threshold.any()  # type: ignore[union-attr]


def test_nothing_fires_and_a_step_is_still_finite() -> None:
    xs = batches(2)
    trainer = made("batchtopk", xs, {"b_enc": torch.full((D_SAE,), -100.0)}, k=4)
    found = trainer.step(xs[0])
    assert float(found.l0) == 0 and float(found.sse) > 0
    assert all(t.isfinite().all() for t in trainer.sae.parameters.values())


@pytest.mark.parametrize("name", BOTH)
def test_auxk_moves_dead_latents_and_nothing_else_does(name: str) -> None:
    xs, low = batches(1), torch.zeros(D_SAE).index_fill_(0, DEAD, -2.5)
    for aux in (0.0, 1 / 32):
        trainer = made(name, xs, {"b_enc": low}, k=1, aux=aux, tokens=10_000)
        before = trainer.sae.parameters["W_enc"].detach().clone()
        make_dead(trainer, DEAD)
        found = trainer.step(xs[0])
        moved = (trainer.sae.parameters["W_enc"].detach() != before).any(1)
        fired = trainer.silent == 0
        assert int(found.dead) == len(DEAD) and not fired[DEAD].any()
        assert moved[~fired].any() == (aux > 0) and moved[DEAD].any() == (aux > 0)


@pytest.mark.parametrize("name", BOTH)
def test_restored_runs_continue_bit_by_bit(name: str) -> None:
    assert_continues(name, k=4, dead_after=0.3)


@pytest.mark.parametrize("name", BOTH)
def test_bfloat16_learns_the_same_dictionary(name: str) -> None:
    x, truth = planted(16, 20, 0.08, 8000, seed=0)
    trainer = train(name, x, 500, d_sae=32, k=2, lr=1e-2, decay=0.2, precision="bfloat16", batch_size=128)
    assert recovered(trainer.export().W_dec, truth) >= 0.9


@pytest.mark.parametrize(
    "given, said",
    [
        ({"k": 0}, "k is 0; it must be from 1 to d_sae − 1 = 39"),
        ({"k": 40}, "k is 40"),
        ({"aux": -1.0}, "neither may be negative"),
        ({"k_aux": -1}, "neither may be negative"),
    ],
)
@pytest.mark.parametrize("name", BOTH)
def test_wrong_settings_are_refused(name: str, given: dict[str, object], said: str) -> None:
    with pytest.raises(SaebenchError, match=said):
        make_recipe(saebench_architectures()[name], name, d_sae=D_SAE, tokens=1000, **given)
