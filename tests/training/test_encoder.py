"""The encoder of a given BatchTopK SAE trained anew: with a decoder that stays as it is."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from fakes import identity_sae, tied_sae
from torch import Tensor
from toy import FACTS, NATIVE, PACE, StopError, stop_at, toy_data

from saebench_meta.errors import SaebenchError
from saebench_meta.sae import SAE
from saebench_meta.training import loop
from saebench_meta.training.feed import TensorFeed
from saebench_meta.training.loop import Pace
from saebench_meta.training.recipe import Recipe, make_recipe
from saebench_meta.training.run import Trained
from saebench_plugins.architectures import saebench_architectures

ARCHITECTURES = saebench_architectures()
D_IN, WIDTH, K = 10, 14, 3


def a_start(**changes: Any) -> SAE:
    """An encoder that has nothing to do with its decoder, rows of very different norms."""
    sae = tied_sae(D_IN, WIDTH, seed=3, bias=0.2, **changes)
    other = torch.randn(D_IN, WIDTH, generator=torch.Generator().manual_seed(9))
    norms = torch.logspace(-0.5, 0.5, WIDTH)
    return replace(sae, W_enc=other, W_dec=sae.W_dec * norms[:, None], b_dec=torch.full((D_IN,), 2.0))


def recipe(steps: int = 12, d_sae: int = WIDTH, **given: Any) -> Recipe:
    settings = {"d_sae": d_sae, "k": K, "batch_size": 32, "tokens": 32 * steps, "threshold_batches": 1, **given}
    return make_recipe(ARCHITECTURES["encoder"], "encoder", **settings)


def train(folder: Path, start: SAE | None, *, data: Tensor | None = None, **given: Any) -> Trained:
    settings = {"pace": PACE, **given}
    one = settings.pop("recipe", recipe())
    feed = TensorFeed(toy_data() if data is None else data, one.batch_size, 0)
    return loop.train(ARCHITECTURES, [one], feed, folder, FACTS, NATIVE, start=start, **settings)[0]


def kept(sae: SAE, x: Tensor) -> Tensor:
    """Codes by batch-top-k, as in training."""
    f = torch.relu(sae.preactivations(x))
    least = f.flatten().topk(K * len(x)).values[-1]
    return torch.where(f >= least, f, 0)


def mse(sae: SAE, x: Tensor) -> float:
    return float((x - sae.decode(kept(sae, x))).double().square().mean())


def test_the_decoder_is_the_same_bit_for_bit(tmp_path: Path) -> None:
    """Also of the SAE that is read back from its file."""
    start = a_start()
    made = train(tmp_path, start, recipe=recipe(40, lr=0.01))
    again = NATIVE.load(str(made.path), device="cpu", dtype=torch.float32)
    for sae in (made.sae, again):
        assert torch.equal(sae.W_dec, start.W_dec) and torch.equal(sae.b_dec, start.b_dec)
        assert not torch.equal(sae.W_enc, start.W_enc) and not torch.equal(sae.b_enc, start.b_enc)
        assert sae.info.activation == "jumprelu"


def test_steps_lower_the_error_down_to_that_of_the_best_codes(tmp_path: Path) -> None:
    """For an orthonormal dictionary the best encoder is the transpose: the largest projections are kept."""
    g = torch.Generator().manual_seed(0)
    basis = torch.linalg.qr(torch.randn(D_IN, D_IN, generator=g)).Q
    x = (torch.rand(512, D_IN, generator=g) < 0.25).float() * (1 + torch.rand(512, D_IN, generator=g)) @ basis + 3
    mean, W_enc = torch.full((D_IN,), 3.0), basis.T + 0.3 * torch.randn(D_IN, D_IN, generator=g)
    start = replace(tied_sae(D_IN, D_IN), W_dec=basis, W_enc=W_enc, b_enc=-mean @ W_enc, b_dec=mean)
    best = replace(start, W_enc=basis.T.contiguous(), b_enc=-basis @ mean)
    made = train(
        tmp_path, start, data=x, recipe=recipe(d_sae=D_IN, batch_size=512, tokens=512 * 400, lr=0.02, decay=0.5)
    )
    assert mse(best, x) < 0.02 and mse(made.sae, x) < mse(best, x) + 0.01 < 0.1 * mse(start, x)
    # At inference the threshold keeps about as many as in training.
    assert float((made.sae.encode(x) > 0).sum(1).float().mean()) == pytest.approx(K, rel=0.1)


def test_a_rate_of_nearly_nothing_leaves_the_encoder_as_it_was(tmp_path: Path) -> None:
    """So scale and shift are folded in and out again; figures are in units of the activations."""
    x, start = toy_data(32), a_start()
    made = train(tmp_path, start, data=x, recipe=recipe(1, lr=1e-30))
    torch.testing.assert_close((made.sae.W_enc, made.sae.b_enc), (start.W_enc, start.b_enc), rtol=1e-4, atol=1e-4)
    assert made.metrics["fvu"] == pytest.approx(mse(start, x) / float((x - x.mean(0)).square().mean()), rel=1e-4)
    assert made.metrics["l0"] == pytest.approx(float((kept(start, x) > 0).sum(1).float().mean()))
    smallest = kept(start, x)
    assert made.sae.threshold is not None
    torch.testing.assert_close(made.sae.threshold, smallest[smallest > 0].min().expand(WIDTH), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("factor", [1e-3, 1e3])
def test_training_means_the_same_at_any_scale_of_the_activations(tmp_path: Path, factor: float) -> None:
    start = a_start()
    scaled = replace(start, b_enc=start.b_enc * factor, b_dec=start.b_dec * factor)
    plain = train(tmp_path / "plain", start, recipe=recipe(20, lr=0.01))
    other = train(tmp_path / "scaled", scaled, data=toy_data() * factor, recipe=recipe(20, lr=0.01))
    torch.testing.assert_close(other.sae.W_enc, plain.sae.W_enc, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(other.sae.b_enc, plain.sae.b_enc * factor, rtol=1e-3, atol=1e-3 * factor)


def test_a_run_stopped_after_a_checkpoint_ends_with_the_same_bytes(tmp_path: Path) -> None:
    start = a_start()
    undisturbed = train(tmp_path / "one", start)
    every = Pace(log_every=1, checkpoint_steps=4, checkpoint_seconds=None)
    with pytest.raises(StopError):
        train(tmp_path / "two", start, pace=every, listeners=loop.Listeners(progress=stop_at(8)))
    assert train(tmp_path / "two", start, pace=every).path.read_bytes() == undisturbed.path.read_bytes()


@pytest.mark.parametrize(
    ("start", "settings", "said"),
    [
        (None, {}, "starts from an SAE: give one"),
        (a_start(), {"d_sae": 15}, "14 latents of width 10; its training is of 15"),
        (identity_sae(7), {}, "14 latents of width 7; its training is of 14 on activations of width 10"),
        (a_start(), {"scaling": "rms"}, "scaling=none"),
        (a_start(input_transform="layer_norm"), {}, "architecture 'encoder' cannot start from 'toy'"),
        (replace(a_start(), encoder=lambda z: z), {}, "architecture 'encoder' cannot start from 'toy'"),
    ],
)
def test_what_does_not_fit_is_refused(
    tmp_path: Path, start: SAE | None, settings: dict[str, Any], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(SAE, "content_hash", lambda self: "0" * 64)
    with pytest.raises(SaebenchError, match=said):
        train(tmp_path, start, recipe=recipe(**settings))


def test_k_out_of_range_is_refused() -> None:
    with pytest.raises(SaebenchError, match="k"):
        recipe(k=WIDTH + 1)
