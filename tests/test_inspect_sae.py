"""What `saebench check` says of an SAE: facts, certain oddities, figures on a sample against loops in float64."""

from __future__ import annotations

from dataclasses import astuple, replace
from typing import Any

import pytest
import torch
from test_sae import TRANSFORMS, plain_reconstruction, pre_reader, random_sae, sample

from saebench_meta.inspect_sae import inspect_reconstruction, inspect_sae, sample_warnings
from saebench_meta.sae import SAE, Site


def unit_sae(**fields: Any) -> SAE:
    sae = random_sae(**fields)
    return replace(sae, W_dec=sae.unit_decoder())


def test_inspection_repeats_info_and_finds_nothing_odd_in_a_sound_sae() -> None:
    found = inspect_sae(unit_sae(activation="topk", architecture="topk", k=3))
    assert (found.activation, found.d_in, found.d_sae, found.k, found.context_size) == ("topk", 6, 14, 3, 64)
    assert found.decoder_norm.median == pytest.approx(1.0)
    assert found.threshold is None
    assert found.warnings == ()


def test_inspection_of_rows_of_other_norms() -> None:
    W_dec = unit_sae().W_dec.clone()
    W_dec[3] *= 4
    W_dec[5] *= 0.5
    found = inspect_sae(replace(unit_sae(), W_dec=W_dec))
    assert astuple(found.decoder_norm) == pytest.approx((0.5, 1.0, 4.0))
    assert len(found.warnings) == 1 and "2 of 14 latents (3, 5)" in found.warnings[0]


def test_inspection_finds_repeated_and_zero_decoder_rows() -> None:
    W_dec = unit_sae().W_dec.clone()
    W_dec[[7, 9]] = W_dec[2].clone()
    W_dec[[0, 1]] = 0
    text = " ".join(inspect_sae(replace(unit_sae(), W_dec=W_dec)).warnings)
    assert "repeat an earlier row exactly for 2 of 14 latents (7, 9)" in text
    assert "all zero for 2 of 14 latents (0, 1)" in text


def test_only_latents_that_certainly_never_fire_are_called_dead() -> None:
    sae = unit_sae(activation="jumprelu")
    W_enc, b_enc, threshold = sae.W_enc.clone(), sae.b_enc.clone(), torch.full((14,), 1.0)
    W_enc[:, [2, 4, 6]] = 0
    b_enc[2], b_enc[4], b_enc[6], b_enc[8] = 0.5, 1.5, -1.0, -100.0
    odd = replace(sae, W_enc=W_enc, b_enc=b_enc, threshold=threshold)
    text = " ".join(inspect_sae(odd).warnings)
    assert "for 2 of 14 latents (2, 6): never active" in text
    assert "all zero for 1 of 14 latents (4): what they see" in text
    fired = (odd.encode(sample(2000)) != 0).any(0)
    assert fired[[2, 4, 6]].tolist() == [False, True, False]


def test_inspection_names_negative_thresholds_and_their_range() -> None:
    threshold = torch.linspace(-1, 12, 14)
    found = inspect_sae(replace(unit_sae(activation="jumprelu"), threshold=threshold))
    assert found.threshold is not None and (found.threshold.min, found.threshold.max) == (-1.0, 12.0)
    assert [w for w in found.warnings if "negative" in w and "1 of 14 latents (0)" in w]


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"context_size": None}, "context size"),
        ({"architecture": "topk", "k": 3}, "evaluated with relu"),
        ({"k": 50}, "training k (50)"),
        ({"site": Site(model="m", hook="transformer.h.3")}, "hook name"),
    ],
)
def test_odd_metadata_is_named(fields: dict[str, Any], said: str) -> None:
    warnings = inspect_sae(unit_sae(**fields)).warnings
    assert len(warnings) == 1 and said in warnings[0]


def test_fewer_latents_than_dimensions_is_named() -> None:
    assert "fewer latents" in inspect_sae(unit_sae(d_in=6, d_sae=4)).warnings[0]


def test_nothing_is_said_of_encoder_weights_that_a_foreign_encoder_does_not_use() -> None:
    sae = replace(unit_sae(), W_enc=torch.zeros(6, 14), encoder=torch.relu)
    found = inspect_sae(sae)
    assert found.foreign_encoder and found.warnings == ()


@pytest.mark.parametrize("transform", TRANSFORMS)
def test_reconstruction_figures_equal_loops_in_float64(transform: str) -> None:
    sae, x = random_sae(activation="topk", k=3, input_transform=transform), sample(40) + 100
    f, x_hat = plain_reconstruction(sae, x)
    found = inspect_reconstruction(sae, x)
    rows = x.double().tolist()
    mean = [sum(column) / len(rows) for column in zip(*rows, strict=True)]
    sse = sum((a - b) ** 2 for r, h in zip(rows, x_hat, strict=True) for a, b in zip(r, h, strict=True))
    sst = sum((a - m) ** 2 for r in rows for a, m in zip(r, mean, strict=True))
    assert found["explained_variance"] == pytest.approx(1 - sse / sst, rel=1e-4)
    assert found["l0"] == sum(v != 0 for row in f for v in row) / 40
    assert found["dead_share"] == sum(not any(column) for column in zip(*f, strict=True)) / 14
    assert found["tokens"] == 40


def test_a_perfect_sae_explains_everything_and_a_constant_sample_has_no_variance() -> None:
    identity = pre_reader(3)
    assert inspect_reconstruction(identity, torch.rand(5, 3))["explained_variance"] == 1.0
    assert inspect_reconstruction(identity, torch.ones(5, 3))["explained_variance"] is None


@pytest.mark.parametrize("shape", [(4, 5), (0, 6), (6,)])
def test_a_sample_the_sae_cannot_read_is_an_error(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="reads"):
        inspect_reconstruction(random_sae(), torch.zeros(shape))


def test_notes_a_user_must_not_overlook_are_warnings() -> None:
    notes = ("trained somewhere", "WARNING: no factor is there", "uncalibrated: no threshold")
    found = inspect_sae(random_sae(notes=notes))
    assert found.notes == notes[:1]
    assert set(notes[1:]) <= set(found.warnings)


def centred_sae(d_in: int = 64, d_sae: int = 200) -> SAE:
    """An SAE as training on centred activations leaves it: nothing along the all-ones direction, up to rounding."""
    sae = random_sae(d_in=d_in, d_sae=d_sae)
    W_dec = sae.W_dec - sae.W_dec.mean(1, keepdim=True)
    W_dec = W_dec / W_dec.norm(dim=1, keepdim=True)
    W_dec[:20] = random_sae(1, d_in=d_in, d_sae=20).unit_decoder()  # dead latents keep what they began with
    return replace(
        sae, W_enc=W_dec.T.contiguous(), b_enc=torch.full((d_sae,), -0.5), W_dec=W_dec, b_dec=torch.zeros(d_in)
    )


def test_an_sae_of_centred_activations_is_told_by_its_decoder() -> None:
    sae = centred_sae()
    assert [w for w in inspect_sae(sae).warnings if "--input-transform center" in w]
    named = replace(sae, info=sae.info.model_copy(update={"input_transform": "center"}))
    shifted = replace(sae, b_dec=torch.ones(64))
    for sound in (named, shifted, replace(sae, W_dec=random_sae(d_in=64, d_sae=200).unit_decoder())):
        assert not [w for w in inspect_sae(sound).warnings if "center" in w]


def test_an_sae_of_centred_activations_is_told_on_a_sample() -> None:
    sae, g = centred_sae(), torch.Generator().manual_seed(3)
    codes = torch.rand(300, 200, generator=g) * (torch.rand(300, 200, generator=g) < 0.02)
    x = 3 * codes @ sae.W_dec + 5 * torch.randn(300, 1, generator=g)
    facts = inspect_reconstruction(sae, x)
    centred = x - x.mean(1, keepdim=True)

    def error(seen: torch.Tensor) -> float:
        left = (seen - sae.decode(sae.encode(seen))).double()
        return float((left - left.mean(1, keepdim=True)).square().sum())

    assert facts["centred_error"] == pytest.approx(error(centred) / error(x))
    assert facts["centred_error"] is not None and facts["centred_error"] < 0.9
    assert "less error" in sample_warnings(facts)[0]
    assert sample_warnings(inspect_reconstruction(sae, centred)) == []
