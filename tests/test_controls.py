"""What each control keeps of the SAE under test, and what it breaks."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from fakes import MemoryActivations, identity_sae, tied_sae

from saebench_meta import controls
from saebench_meta.geometry import max_cosine
from saebench_meta.sae import SAE


def held(n: int = 600, d: int = 12, *, mean: float = 3.0, seed: int = 5) -> MemoryActivations:
    x = torch.randn(n, d, generator=torch.Generator().manual_seed(seed)) + mean
    return MemoryActivations(x, torch.arange(n) // 50, -(-n // 50))


def random_control(sae: SAE, activations: MemoryActivations, l0: float, seed: int = 0) -> SAE:
    return controls.random_sae(sae, activations, l0, torch.Generator().manual_seed(seed))


def mean_l0(sae: SAE, activations: MemoryActivations) -> float:
    return float(sae.encode_sparse(activations.x).l0().double().mean())


# -- random directions


@pytest.mark.parametrize("l0", [0.5, 4.0, 15.0, 30.0, 36.0])
def test_random_sae_has_the_l0_asked_for_even_where_most_latents_are_active(l0: float) -> None:
    activations = held()
    control = random_control(tied_sae(12, 40), activations, l0)
    assert mean_l0(control, activations) == pytest.approx(l0, abs=0.02)


def test_random_sae_matches_l0_on_data_with_a_large_mean() -> None:
    activations = held(mean=1000.0)
    assert mean_l0(random_control(tied_sae(12, 40), activations, 6.0), activations) == pytest.approx(6.0, abs=0.02)


@pytest.mark.parametrize("transform", ["center", "layer_norm", "norm_rescale"])
def test_random_sae_matches_l0_and_mean_in_the_saes_own_input_space(transform: str) -> None:
    activations, sae = held(), tied_sae(12, 40, input_transform=transform)
    control = random_control(sae, activations, 6.0)
    assert mean_l0(control, activations) == pytest.approx(6.0, abs=0.02)
    torch.testing.assert_close(control.b_dec, sae.transform(activations.x)[0].mean(0), atol=1e-5, rtol=1e-5)
    assert control.info.input_transform == transform


def test_random_sae_keeps_l0_within_a_few_percent_when_calibrated_on_a_subsample(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(controls, "CALIBRATION_TOKENS", 500)
    activations = held(4000)
    control = random_control(tied_sae(12, 40), activations, 6.0)
    assert mean_l0(control, activations) == pytest.approx(6.0, rel=0.05)
    assert "500 of 4000 tokens" in control.info.notes[0]


def test_random_sae_has_unit_directions_a_transposed_encoder_and_one_threshold() -> None:
    control = random_control(tied_sae(12, 40), held(), 5.0)
    torch.testing.assert_close(control.W_dec.norm(dim=1), torch.ones(40))
    ratio = control.W_enc / control.W_dec.T
    torch.testing.assert_close(ratio, torch.full_like(ratio, float(ratio.mean())), atol=1e-4, rtol=1e-4)
    assert control.threshold is not None
    assert control.threshold.unique().numel() == 1


def test_random_sae_has_the_code_scale_that_least_squares_gives() -> None:
    activations = held()
    control = random_control(tied_sae(12, 40), activations, 5.0)
    decoded = control.encode(activations.x).double() @ control.W_dec.double()
    target = activations.x.double() - control.b_dec.double()
    assert float((decoded * target).sum() / (decoded**2).sum()) == pytest.approx(1.0, abs=1e-4)


def test_random_sae_honours_the_info_and_says_what_it_is() -> None:
    sae = tied_sae(12, 40, prepend_bos=False, context_size=64, dataset="somewhere", activation="topk", k=7)
    control = random_control(sae, held(), 5.0)
    same = ("site", "d_in", "d_sae", "prepend_bos", "context_size", "input_transform")
    assert all(getattr(control.info, name) == getattr(sae.info, name) for name in same)
    assert (control.info.name, control.info.activation, control.info.k) == ("toy [random]", "jumprelu", None)
    assert control.info.dataset is None


def test_random_sae_is_the_same_for_the_same_seed_and_chunking_does_not_matter() -> None:
    sae, activations = tied_sae(12, 40), held()
    one = random_control(sae, activations, 5.0)
    whole = MemoryActivations(activations.x, activations.document, activations.n_docs, size=10_000)
    other = random_control(sae, whole, 5.0)
    for name in ("W_dec", "W_enc", "b_enc", "threshold"):
        torch.testing.assert_close(getattr(one, name), getattr(other, name), atol=1e-5, rtol=1e-5)
    assert not torch.equal(one.W_dec, random_control(sae, activations, 5.0, seed=1).W_dec)


def test_random_sae_of_an_sae_that_is_never_active_is_never_active() -> None:
    activations = held()
    control = random_control(tied_sae(12, 40), activations, 0.0)
    assert mean_l0(control, activations) == 0.0
    torch.testing.assert_close(control.reconstruct(activations.x)[0], activations.x.mean(0), atol=1e-5, rtol=1e-5)


def test_random_sae_rebuilds_less_than_the_identity_but_more_than_the_mean() -> None:
    activations = held()
    x = activations.x
    control = random_control(identity_sae(12), activations, 6.0)
    error = float(((x - control.reconstruct(x)) ** 2).sum())
    assert 0 < error < float(((x - x.mean(0)) ** 2).sum())


# -- decoder rows permuted


def test_row_permutation_keeps_codes_exactly_and_the_set_of_directions() -> None:
    sae, x = tied_sae(12, 40), held().x
    control = controls.permuted_rows(sae, np.random.default_rng(0))
    assert torch.equal(control.encode(x), sae.encode(x))
    assert sorted(control.W_dec.tolist()) == sorted(sae.W_dec.tolist())
    torch.testing.assert_close(max_cosine(control.W_dec, sae.W_dec)[0], torch.ones(40, dtype=torch.float64))
    assert control.info.name == "toy [permuted rows]"


@pytest.mark.parametrize("seed", range(5))
def test_row_permutation_leaves_no_row_in_place(seed: int) -> None:
    sae = tied_sae(12, 5)
    control = controls.permuted_rows(sae, np.random.default_rng(seed))
    assert (control.W_dec != sae.W_dec).any(dim=1).all()


def test_row_permutation_breaks_the_reconstruction() -> None:
    sae, x = identity_sae(12), held(mean=0.0).x
    control = controls.permuted_rows(sae, np.random.default_rng(0))
    assert float(((x - sae.reconstruct(x)) ** 2).sum()) == 0.0
    assert float(((x - control.reconstruct(x)) ** 2).sum()) > float((x**2).sum())


# -- decoder coordinates permuted


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_column_permutation_keeps_the_values_of_every_coordinate(dtype: torch.dtype) -> None:
    sae = tied_sae(12, 40).to(dtype=dtype)
    control = controls.permuted_columns(sae, np.random.default_rng(0))
    assert control.W_dec.dtype == dtype
    assert torch.equal(control.W_dec.float().sort(dim=0).values, sae.W_dec.float().sort(dim=0).values)
    assert not torch.equal(control.W_dec, sae.W_dec)


def test_column_permutation_destroys_the_cosines_and_keeps_the_codes() -> None:
    sae, x = tied_sae(64, 40), torch.randn(30, 64, generator=torch.Generator().manual_seed(1))
    control = controls.permuted_columns(sae, np.random.default_rng(0))
    assert float(max_cosine(control.W_dec, sae.W_dec)[0].max()) < 0.7
    assert torch.equal(control.encode(x), sae.encode(x))
    assert control.info.name == "toy [permuted columns]"


@pytest.mark.parametrize("make", [controls.permuted_rows, controls.permuted_columns])
def test_permutations_leave_the_original_alone_and_follow_their_seed(make: object) -> None:
    sae = tied_sae(12, 40)
    before = sae.W_dec.clone()
    one, again = make(sae, np.random.default_rng(3)), make(sae, np.random.default_rng(3))  # type: ignore[operator]
    assert torch.equal(sae.W_dec, before)
    assert torch.equal(one.W_dec, again.W_dec)
