"""The decoder of a given SAE trained anew: against least squares, and with an encoder that stays as it is."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from fakes import identity_sae, tied_sae
from torch import Tensor
from toy import FACTS, NATIVE, PACE, TOY, StopError, stop_at, toy_data

from saebench_meta.errors import SaebenchError
from saebench_meta.sae import SAE
from saebench_meta.training import loop
from saebench_meta.training.feed import TensorFeed
from saebench_meta.training.loop import Pace
from saebench_meta.training.recipe import Recipe, make_recipe
from saebench_meta.training.run import OtherTrainingError, Trained
from saebench_plugins.architectures import saebench_architectures

ARCHITECTURES = {**saebench_architectures(), "toy": TOY}
D_IN, WIDTH = 10, 14


def a_start(**changes: Any) -> SAE:
    """Rows of very different norms, a bias, and codes that are often zero."""
    sae = tied_sae(D_IN, WIDTH, seed=3, bias=-1.0, **changes)
    norms = torch.logspace(-1, 1, WIDTH)
    return replace(sae, W_dec=sae.W_dec * norms[:, None], W_enc=sae.W_enc / norms, b_dec=torch.full((D_IN,), 0.5))


def jumprelu_start() -> SAE:
    sae = a_start()
    info = sae.info.model_copy(update={"activation": "jumprelu"})
    return replace(sae, info=info, threshold=torch.linspace(0, 2, WIDTH))


def recipe(steps: int = 12, d_sae: int = WIDTH, **given: Any) -> Recipe:
    settings = {"d_sae": d_sae, "batch_size": 32, "tokens": 32 * steps, "threshold_batches": 1, **given}
    return make_recipe(ARCHITECTURES["decoder"], "decoder", **settings)


def train(folder: Path, start: SAE | None, *, data: Tensor | None = None, **given: Any) -> Trained:
    settings = {"pace": PACE, **given}
    one = settings.pop("recipe", recipe())
    feed = TensorFeed(toy_data() if data is None else data, one.batch_size, 0)
    return loop.train(ARCHITECTURES, [one], feed, folder, FACTS, NATIVE, start=start, **settings)[0]


def mse(sae: SAE, x: Tensor) -> float:
    return float((x - sae.reconstruct(x)).double().square().mean())


def least_squares(sae: SAE, x: Tensor) -> Tensor:
    """(F + 1, d_in): the rows, then the bias, with which the SAE's codes rebuild its inputs best."""
    z = sae.transform(x)[0]
    codes = torch.cat([sae.encode(x), torch.ones(len(x), 1)], dim=1).double()
    return torch.linalg.lstsq(codes, z.double(), driver="gelsd").solution


@pytest.mark.parametrize("transform", ["none", "layer_norm"])
def test_in_the_limit_it_is_the_least_squares_decoder(tmp_path: Path, transform: str) -> None:
    """Every step sees all of the data, so that there is no noise in the gradients."""
    x, start = toy_data(128), a_start(input_transform=transform)
    long = recipe(batch_size=128, tokens=128 * 600, lr=0.05, decay=0.9)
    made = train(tmp_path, start, data=x, recipe=long).sae
    best = least_squares(start, x)
    z = start.transform(x)[0]
    error = float((z - start.encode(x) @ made.W_dec - made.b_dec).double().square().sum())
    codes = torch.cat([start.encode(x), torch.ones(len(x), 1)], dim=1).double()
    least = float((z.double() - codes @ best).square().sum())
    assert error == pytest.approx(least, rel=1e-3)
    active = (start.encode(x) > 0).sum(0) > WIDTH
    found, expected = made.W_dec[active].double(), best[:-1][active]
    torch.testing.assert_close(found, expected, rtol=0.05, atol=0.05 * float(expected.abs().max()))


def test_a_few_steps_lower_the_error(tmp_path: Path) -> None:
    x, start = toy_data(), a_start()
    assert mse(train(tmp_path, start, recipe=recipe(60, lr=0.01)).sae, x) < 0.9 * mse(start, x)


def test_a_rate_of_nearly_nothing_leaves_the_sae_as_it_was(tmp_path: Path) -> None:
    start = a_start()
    made = train(tmp_path, start, recipe=recipe(1, lr=1e-30)).sae
    torch.testing.assert_close((made.W_dec, made.b_dec), (start.W_dec, start.b_dec), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    "start",
    [
        a_start(),
        a_start(activation="topk", k=3),
        a_start(input_transform="layer_norm"),
        jumprelu_start(),
    ],
    ids=["relu", "topk", "layer_norm", "jumprelu"],
)
def test_codes_are_the_same_bit_for_bit(tmp_path: Path, start: SAE) -> None:
    """Also of the SAE that is read back from its file."""
    x = toy_data(seed=1)
    made = train(tmp_path, start)
    again = NATIVE.load(str(made.path), device="cpu", dtype=torch.float32)
    for sae in (made.sae, again):
        assert torch.equal(sae.encode(x), start.encode(x))
        assert not torch.equal(sae.W_dec, start.W_dec) and not torch.equal(sae.b_dec, start.b_dec)
    kept = ("activation", "k", "input_transform", "architecture", "d_sae", "site", "prepend_bos")
    assert [getattr(made.sae.info, n) for n in kept] == [getattr(start.info, n) for n in kept]
    assert made.sae.info.notes[-1] == "decoder retrained on 384 activations of toys, encoder as it was"


def test_an_encoder_of_its_own_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its hash stands in for the one that a loader's encoder gives."""
    start = replace(a_start(), encoder=lambda z: z.abs().cumsum(1)[:, :1].expand(-1, WIDTH))
    monkeypatch.setattr(SAE, "content_hash", lambda self: str(float(self.W_dec.sum())))
    held: list[SAE] = []
    form = replace(NATIVE, save=lambda sae, path: held.append(sae) or path)
    feed = TensorFeed(toy_data(), 32, 0)
    made = loop.train(ARCHITECTURES, [recipe()], feed, tmp_path, FACTS, form, start=start, pace=PACE)[0]
    assert made.sae.encoder is start.encoder and held == [made.sae]
    assert mse(made.sae, toy_data()) < mse(start, toy_data())


def test_figures_of_the_training_are_in_units_of_the_activations(tmp_path: Path) -> None:
    """At a rate of nearly nothing, FVU and L0 are those of the SAE on the batches."""
    x, start = toy_data(32), a_start(input_transform="layer_norm")
    made = train(tmp_path, start, data=x, recipe=recipe(1, lr=1e-30))
    fvu = mse(start, x) / float((x - x.mean(0)).square().mean())
    assert made.metrics["fvu"] == pytest.approx(fvu, rel=1e-4)
    assert made.metrics["l0"] == pytest.approx(float((start.encode(x) > 0).sum(1).float().mean()))


def test_latents_that_never_fire_keep_their_rows(tmp_path: Path) -> None:
    start = replace(a_start(), b_enc=torch.full((WIDTH,), -1e6))
    made = train(tmp_path, start).sae
    torch.testing.assert_close(made.W_dec, start.W_dec)
    assert not torch.equal(made.b_dec, start.b_dec)


# -- interruptions


def test_a_run_stopped_after_every_checkpoint_ends_with_the_same_bytes(tmp_path: Path) -> None:
    start = a_start(input_transform="layer_norm")
    undisturbed = train(tmp_path / "one", start)
    every = Pace(log_every=1, checkpoint_steps=4, checkpoint_seconds=None)
    for step in (4, 8):
        with pytest.raises(StopError):
            train(tmp_path / "two", start, pace=every, listeners=loop.Listeners(progress=stop_at(step)))
    again = train(tmp_path / "two", start, pace=every)
    assert again.path.read_bytes() == undisturbed.path.read_bytes()


def test_a_folder_with_a_training_from_another_sae_is_refused(tmp_path: Path) -> None:
    train(tmp_path, a_start())
    with pytest.raises(OtherTrainingError, match="from another SAE"):
        train(tmp_path, replace(a_start(), b_dec=torch.zeros(D_IN)))
    assert train(tmp_path, a_start()).training.feed["start"] == a_start().content_hash()


# -- what is refused


@pytest.mark.parametrize(
    ("start", "settings", "said"),
    [
        (None, {}, "starts from an SAE: give one"),
        (a_start(), {"d_sae": 15}, "14 latents of width 10; its training is of 15"),
        (identity_sae(7), {}, "14 latents of width 7; its training is of 14 on activations of width 10"),
        (a_start(), {"scaling": "rms"}, "scaling=none"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_written(
    tmp_path: Path, start: SAE | None, settings: dict[str, Any], said: str
) -> None:
    with pytest.raises(SaebenchError, match=said):
        train(tmp_path, start, recipe=recipe(**settings))
    assert not list(tmp_path.iterdir())


def test_other_architectures_take_no_sae_to_start_from(tmp_path: Path) -> None:
    other = make_recipe(TOY, "toy", d_sae=WIDTH, batch_size=32, tokens=320)
    with pytest.raises(SaebenchError, match="'toy' starts from random weights"):
        train(tmp_path, a_start(), recipe=other)


def test_codes_in_another_precision_are_refused() -> None:
    with pytest.raises(SaebenchError, match="worked out in float32"):
        recipe(precision="tf32")
