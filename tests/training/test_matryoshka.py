"""Matryoshka SAEs against the dense formula, on planted dictionaries, and what prefixes are worth."""

from __future__ import annotations

import pytest
import torch
from by_hand import D_SAE, assert_continues, made
from by_hand import batches as drawn_batches
from dense import DenseLoss
from planted import planted, recovered, train
from test_topk import check_steps

from saebench_meta.errors import SaebenchError
from saebench_meta.training.recipe import make_recipe
from saebench_plugins.architectures import saebench_architectures


@pytest.mark.parametrize("k_aux", [3, 512])
@pytest.mark.parametrize("prefixes", [(1 / 8, 1 / 4, 1 / 2, 1.0), (1.0,)])
def test_steps_are_those_of_the_dense_formula(k_aux: int, prefixes: tuple[float, ...]) -> None:
    check_steps("matryoshka", k_aux, prefixes=list(prefixes))


def test_one_prefix_is_batchtopk() -> None:
    xs = drawn_batches(3)
    one = made("matryoshka", xs, k=4, prefixes=[1.0])
    start = {name: t.detach() for name, t in one.sae.parameters.items()}
    other = made("batchtopk", xs, start, k=4)
    for x in xs:
        one.step(x)
        other.step(x)
    for name, t in other.sae.parameters.items():
        torch.testing.assert_close(one.sae.parameters[name], t)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_planted_dictionary_is_found(seed: int) -> None:
    """With prefixes that can hold it: narrower ones are made to merge features that do not belong together."""
    x, truth = planted(32, 48, 0.06, 20_000, seed)
    trainer = train("matryoshka", x, 1000, seed=seed, d_sae=96, k=3, prefixes=[0.75, 1.0], lr=1e-2, decay=0.2)
    assert recovered(trainer.export().W_dec, truth) >= 0.9


def test_prefixes_rebuild_more_than_those_of_a_batchtopk_sae() -> None:
    x, _ = planted(16, 24, 0.1, 8000, seed=0)
    errors = {}
    for name in ("matryoshka", "batchtopk"):
        trainer = train(name, x, 300, d_sae=32, k=3, lr=1e-2, batch_size=128)
        p, scaled = trainer.sae.parameters, x[:1000] * trainer.scale
        pre = (scaled - p["b_dec"]) @ p["W_enc"].T + p["b_enc"]
        f = DenseLoss(trainer.recipe).codes(pre.detach())
        x_hat = (f[:, :8] @ p["W_dec"][:8] + p["b_dec"]).detach()
        errors[name] = float((scaled - x_hat).square().mean())
    assert errors["matryoshka"] < 0.8 * errors["batchtopk"]


def test_a_restored_run_continues_bit_by_bit() -> None:
    assert_continues("matryoshka", k=4, dead_after=0.3)


@pytest.mark.parametrize(
    "given, said",
    [
        ({"prefixes": [0.5]}, r"widths \[20\]; they must rise, and end at d_sae = 40"),
        ({"prefixes": [0.5, 0.25, 1.0]}, "they must rise"),
        ({"prefixes": [0.001, 1.0]}, "they must rise"),
        ({"prefixes": []}, "they must rise"),
        ({"k": 50}, "k is 50"),
    ],
)
def test_wrong_settings_are_refused(given: dict[str, object], said: str) -> None:
    with pytest.raises(SaebenchError, match=said):
        make_recipe(saebench_architectures()["matryoshka"], "matryoshka", d_sae=D_SAE, tokens=1000, **given)


def test_narrow_dictionaries_need_fewer_prefixes() -> None:
    with pytest.raises(SaebenchError, match="widths"):
        make_recipe(saebench_architectures()["matryoshka"], "matryoshka", d_sae=8, k=2, tokens=1000)
