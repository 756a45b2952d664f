"""The canonical SAE against numbers worked out by hand and a plain float64 formula; what `inspect_sae` says of it."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import Tensor

from saebench_meta.sae import SAE, SAEInfo, Site

SITE = Site(model="m", hook="blocks.0.hook_resid_pre")
TRANSFORMS = ["none", "center", "layer_norm", "norm_rescale"]
ACTIVATIONS: list[dict[str, Any]] = [{"activation": "relu"}, {"activation": "jumprelu"}, {"activation": "topk", "k": 3}]


def info(d_in: int, d_sae: int, **fields: Any) -> SAEInfo:
    known: dict[str, Any] = {"name": "s", "site": SITE, "d_in": d_in, "d_sae": d_sae, "context_size": 64}
    return SAEInfo(**(known | fields))


def random_sae(seed: int = 0, d_in: int = 6, d_sae: int = 14, **fields: Any) -> SAE:
    g = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=g)

    threshold = normal(d_sae).abs() if fields.get("activation") == "jumprelu" else None
    W = (normal(d_in, d_sae), normal(d_sae) / 2, normal(d_sae, d_in), normal(d_in))
    return SAE(W[0], W[1], W[2], W[3], info(d_in, d_sae, **fields), threshold)


def sample(tokens: int = 9, d_in: int = 6, seed: int = 1) -> Tensor:
    return torch.randn(tokens, d_in, generator=torch.Generator().manual_seed(seed)) * 2 + 1


def plain_reconstruction(sae: SAE, x: Tensor) -> tuple[list[list[float]], list[list[float]]]:
    """Codes and x̂ by loops over Python floats, token by token: shares no line with the class."""
    i = sae.info
    W_enc, b_enc, W_dec, b_dec = (t.double().tolist() for t in (sae.W_enc, sae.b_enc, sae.W_dec, sae.b_dec))
    all_f, all_x = [], []
    for token in x.double().tolist():
        mean = sum(token) / i.d_in if i.input_transform in ("center", "layer_norm") else 0.0
        scale = 1.0
        if i.input_transform == "layer_norm":
            scale = math.sqrt(sum((v - mean) ** 2 for v in token) / (i.d_in - 1)) + 1e-5
        if i.input_transform == "norm_rescale":
            scale = math.sqrt(sum(v * v for v in token) / i.d_in)
        z = [(v - mean) / scale for v in token]
        pre = [b_enc[j] + sum(z[c] * W_enc[c][j] for c in range(i.d_in)) for j in range(i.d_sae)]
        f = [max(p, 0.0) for p in pre]
        if i.activation == "jumprelu":
            assert sae.threshold is not None
            f = [v if v > t else 0.0 for v, t in zip(f, sae.threshold.tolist(), strict=True)]
        if i.activation == "topk":
            least = sorted(f, reverse=True)[: i.k][-1]
            f = [v if v >= least else 0.0 for v in f]
        z_hat = [b_dec[c] + sum(f[j] * W_dec[j][c] for j in range(i.d_sae)) for c in range(i.d_in)]
        all_f.append(f)
        all_x.append([v * scale + mean for v in z_hat])
    return all_f, all_x


# -- activation functions and transforms by hand


def pre_reader(d: int, **fields: Any) -> SAE:
    """Identity weights: pre-activations are the input itself."""
    threshold = torch.tensor([1.0, 1.0, 1.0, -5.0][:d]) if fields.get("activation") == "jumprelu" else None
    return SAE(torch.eye(d), torch.zeros(d), torch.eye(d), torch.zeros(d), info(d, d, **fields), threshold)


def test_relu_by_hand() -> None:
    assert pre_reader(3).encode(torch.tensor([[-1.0, 0.0, 2.5]])).tolist() == [[0.0, 0.0, 2.5]]


def test_jumprelu_by_hand_is_strict_and_never_negative() -> None:
    sae = pre_reader(4, activation="jumprelu")
    x = torch.tensor([[0.5, 1.0, 1.25, -2.0], [2.0, -1.0, 0.0, 0.5]])
    assert sae.encode(x).tolist() == [[0.0, 0.0, 1.25, 0.0], [2.0, 0.0, 0.0, 0.5]]


def test_topk_by_hand_keeps_the_largest_and_drops_negatives() -> None:
    sae = pre_reader(4, activation="topk", k=2)
    x = torch.tensor([[4.0, 1.0, 3.0, 2.0], [-1.0, 5.0, -2.0, -3.0], [-1.0, -2.0, -3.0, -4.0]])
    assert sae.encode(x).tolist() == [[4.0, 0.0, 3.0, 0.0], [0.0, 5.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]]


@pytest.mark.parametrize("fields", ACTIVATIONS)
def test_a_nan_input_is_not_hidden_by_the_activation_function(fields: dict[str, Any]) -> None:
    x = sample()
    x[4, 2] = math.nan
    assert random_sae(**fields).encode(x)[4].isnan().any()


def test_transforms_by_hand() -> None:
    x = torch.tensor([[1.0, 2.0, 3.0, 6.0]])  # mean 3, unbiased variance (4 + 1 + 0 + 9) / 3, norm √50
    assert pre_reader(4, input_transform="none").transform(x)[0].tolist() == x.tolist()
    assert pre_reader(4, input_transform="center").transform(x)[0].tolist() == [[-2.0, -1.0, 0.0, 3.0]]
    std = math.sqrt(14 / 3) + 1e-5
    z, _ = pre_reader(4, input_transform="layer_norm").transform(x)
    assert z[0].tolist() == pytest.approx([-2 / std, -1 / std, 0.0, 3 / std], abs=1e-6)
    z, _ = pre_reader(4, input_transform="norm_rescale").transform(x)
    assert z[0].tolist() == pytest.approx([v * 2 / math.sqrt(50) for v in (1, 2, 3, 6)], abs=1e-6)
    assert float(z.norm()) == pytest.approx(2.0)  # √d_in


# -- invariants


@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("fields", ACTIVATIONS)
def test_codes_and_reconstruction_equal_the_plain_formula(fields: dict[str, Any], transform: str) -> None:
    sae, x = random_sae(**fields, input_transform=transform), sample()
    f, x_hat = plain_reconstruction(sae, x)
    assert torch.allclose(sae.encode(x).double(), torch.tensor(f, dtype=torch.float64), atol=1e-5)
    assert torch.allclose(sae.reconstruct(x).double(), torch.tensor(x_hat, dtype=torch.float64), atol=1e-4)


@pytest.mark.parametrize("transform", TRANSFORMS)
@given(values=st.lists(st.floats(-1e3, 1e3, width=32), min_size=5, max_size=5))
def test_the_inverse_undoes_the_transform(transform: str, values: list[float]) -> None:
    x = torch.tensor([values], dtype=torch.float64)
    z, stats = (sae := random_sae(d_in=5, input_transform=transform)).transform(x)
    expected = x
    if transform == "layer_norm":  # the 1e-5 stands in the division only, in the formats that use this
        mean, std = x.mean(), x.std()
        expected = mean + (x - mean) * std / (std + 1e-5)
    assert torch.allclose(sae.inverse(z, stats), expected, atol=1e-6, rtol=1e-9)


@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("value", [0.0, 3.0])
def test_a_token_of_equal_values_gives_finite_codes(transform: str, value: float) -> None:
    x = torch.full((1, 6), value)
    sae = random_sae(input_transform=transform)
    assert sae.encode(x).isfinite().all()
    assert torch.allclose(sae.inverse(*sae.transform(x)), x, atol=1e-6)


@pytest.mark.parametrize("fields", [ACTIVATIONS[0], ACTIVATIONS[1]])
@given(scales=st.lists(st.floats(0.1, 10), min_size=14, max_size=14))
def test_rescaling_each_latent_leaves_the_reconstruction(fields: dict[str, Any], scales: list[float]) -> None:
    sae, x, s = (
        random_sae(**fields).to(dtype=torch.float64),
        sample().double(),
        torch.tensor(scales, dtype=torch.float64),
    )
    threshold = None if sae.threshold is None else sae.threshold * s
    rescaled = replace(sae, W_enc=sae.W_enc * s, b_enc=sae.b_enc * s, W_dec=sae.W_dec / s[:, None], threshold=threshold)
    near = sae.preactivations(x) - (0 if sae.threshold is None else sae.threshold)
    assume(bool((near.abs() > 1e-9).all()))
    assert torch.allclose(rescaled.encode(x), sae.encode(x) * s, atol=1e-9)
    assert torch.allclose(rescaled.reconstruct(x), sae.reconstruct(x), atol=1e-9)


@pytest.mark.parametrize("fields", ACTIVATIONS)
@given(order=st.permutations(range(14)))
def test_the_order_of_latents_does_not_matter(fields: dict[str, Any], order: list[int]) -> None:
    sae, x, p = random_sae(**fields).to(dtype=torch.float64), sample().double(), torch.tensor(order)
    threshold = None if sae.threshold is None else sae.threshold[p]
    moved = replace(sae, W_enc=sae.W_enc[:, p], b_enc=sae.b_enc[p], W_dec=sae.W_dec[p], threshold=threshold)
    assert torch.allclose(moved.encode(x), sae.encode(x)[:, p], atol=1e-10)
    assert torch.allclose(moved.reconstruct(x), sae.reconstruct(x), atol=1e-10)


@pytest.mark.parametrize("k", [1, 3, 14])
def test_topk_keeps_k_positives_or_all_there_are(k: int) -> None:
    sae, x = random_sae(activation="topk", k=k), sample(50)
    positive = (sae.preactivations(x) > 0).sum(1)
    assert torch.equal((sae.encode(x) > 0).sum(1), positive.clamp_max(k))
    assert (sae.encode(x) >= 0).all()


def test_a_single_threshold_for_all_latents_works_as_batchtopk_needs_it() -> None:
    threshold = 1.25
    sae = replace(random_sae(activation="jumprelu", architecture="batchtopk"), threshold=torch.full((14,), threshold))
    pre = sae.preactivations(x := sample())
    expected = [[p if p > threshold else 0.0 for p in row] for row in pre.tolist()]
    assert sae.encode(x).tolist() == expected


def test_sparse_and_dense_codes_decode_to_the_same() -> None:
    sae, x = random_sae(), sample()
    assert torch.allclose(sae.decode(sae.encode_sparse(x)), sae.decode(sae.encode(x)), atol=1e-5)


def test_decoding_without_the_statistics_of_a_per_token_transform_is_an_error() -> None:
    sae = random_sae(input_transform="layer_norm")
    with pytest.raises(ValueError, match="stats"):
        sae.decode(sae.encode(sample()))


def test_a_foreign_encoder_replaces_weights_and_activation() -> None:
    sae = replace(random_sae(), encoder=lambda z: z[:, :1].abs().expand(-1, 14))
    assert torch.equal(sae.encode(x := sample()), x[:, :1].abs().expand(-1, 14))


def test_unit_decoder_has_norm_one_and_keeps_a_zero_row() -> None:
    W = torch.tensor([[3.0, 4.0], [0.0, 0.0]])
    sae = SAE(torch.zeros(2, 2), torch.zeros(2), W, torch.zeros(2), info(2, 2))
    assert torch.allclose(sae.unit_decoder(), torch.tensor([[0.6, 0.8], [0.0, 0.0]]))


def test_moving_to_another_dtype_takes_the_threshold_along() -> None:
    sae = random_sae(activation="jumprelu").to(dtype=torch.bfloat16)
    assert sae.threshold is not None
    assert {t.dtype for t in (sae.W_enc, sae.b_enc, sae.W_dec, sae.b_dec, sae.threshold)} == {torch.bfloat16}


# -- what is refused, and what names an SAE


@pytest.mark.parametrize("field", ["W_enc", "b_enc", "W_dec", "b_dec", "threshold"])
def test_a_wrong_shape_is_an_error_that_names_the_tensor(field: str) -> None:
    changed: dict[str, Any] = {field: torch.zeros(3, 3)}
    with pytest.raises(ValueError, match=f"{field} has shape"):
        replace(random_sae(activation="jumprelu"), **changed)


def test_jumprelu_without_threshold_is_an_error() -> None:
    with pytest.raises(ValueError, match="needs 'threshold'"):
        replace(random_sae(activation="jumprelu"), threshold=None)


@pytest.mark.parametrize("fields", [{"activation": "topk"}, {"activation": "topk", "k": 9}, {"k": 0}, {"width": 3}])
def test_impossible_info_is_an_error(fields: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        info(4, 8, **fields)


@pytest.mark.parametrize("field", ["W_enc", "b_enc", "W_dec", "b_dec", "threshold"])
def test_content_hash_changes_with_any_single_weight(field: str) -> None:
    sae = random_sae(activation="jumprelu")
    changed = getattr(sae, field).clone()
    changed.view(-1)[-1] += 1e-6
    assert not torch.equal(changed, getattr(sae, field))
    assert replace(sae, **{field: changed}).content_hash() != sae.content_hash()


def test_content_hash_follows_what_changes_codes_and_not_the_name() -> None:
    sae = random_sae()

    def renamed(**fields: Any) -> str:
        return replace(sae, info=sae.info.model_copy(update=fields)).content_hash()

    assert renamed(name="other", notes=("n",)) == sae.content_hash()
    assert renamed(input_transform="center") != sae.content_hash()
    assert renamed(prepend_bos=False) != sae.content_hash()
