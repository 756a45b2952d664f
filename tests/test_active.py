"""Which latents are active: as the activation functions say, whatever the shape and however equal the values."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from saebench_meta import active
from saebench_meta.active import active_codes, top_places
from saebench_meta.codes import Codes
from saebench_meta.sae import ActivationName, activate

KINDS = ("spread", "mostly negative", "half of them 0", "many equal")


def made(kind: str, tokens: int, latents: int, seed: int) -> Tensor:
    x = torch.randn(tokens, latents, generator=torch.Generator().manual_seed(seed))
    match kind:
        case "mostly negative":
            return x - 2
        case "half of them 0":
            x[:, latents // 2 :] = 0
        case "many equal":
            return (3 * x).round()
    return x


def by_torch(pre: Tensor, k: int) -> Tensor:
    top = pre.topk(k, dim=-1)
    return torch.zeros_like(pre).scatter_(-1, top.indices, top.values.relu())


@given(st.sampled_from(KINDS), st.integers(1, 20), st.integers(1, 80), st.data())
def test_the_k_largest_above_0_are_found(kind: str, tokens: int, latents: int, data: st.DataObject) -> None:
    k = data.draw(st.integers(1, latents))
    pre = made(kind, tokens, latents, data.draw(st.integers(0, 999)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(active, "FEW", data.draw(st.sampled_from([0, 512])))
        places, codes = top_places(pre, k), active_codes(pre, "topk", k=k)
    expected = by_torch(pre, k)
    if places is None:
        kth = expected.where(expected > 0, torch.inf).amin(1)
        assert ((pre == kth[:, None]).sum(1) > 1).any()  # only a tie for the last place is left to torch
    else:
        assert torch.equal(codes.dense(), expected)
        assert torch.equal(activate(pre, "topk", k=k), expected)
        assert len(places) == (expected > 0).sum()
    assert torch.equal(codes.dense().sort(1).values, expected.sort(1).values)


@pytest.mark.parametrize("latents", [64, 513, 2048, 4100])
def test_wide_rows_are_narrowed_first(latents: int) -> None:
    pre = made("spread", 50, latents, 1)
    for k in (1, 16, latents // 3, latents):
        assert torch.equal(active_codes(pre, "topk", k=k).dense(), by_torch(pre, k))


def test_the_third_of_a_row_by_hand() -> None:
    pre = torch.tensor([[0.5, -1.0, 3.0, 2.0, 0.5], [-1.0, -2.0, 4.0, 0.0, -3.0]])
    places = top_places(pre, 2)
    assert places is not None
    assert places.tolist() == [2, 3, 7]
    assert top_places(pre, 3) is None  # two of .5 for the third place of the first row


@pytest.mark.parametrize("few", [0, 512])
@pytest.mark.parametrize("k", [1, 3])
def test_a_nan_is_left_to_torch_and_stays(few: int, k: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(active, "FEW", few)
    for place in range(40):
        pre = made("spread", 3, 40, 0)
        pre[1, place] = torch.nan
        assert top_places(pre, k) is None
        assert active_codes(pre, "topk", k=k).dense().isnan().sum() == 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("activation", ["relu", "jumprelu", "topk"])
def test_codes_are_those_of_the_activation_function(activation: ActivationName, dtype: torch.dtype) -> None:
    pre = made("spread", 30, 40, 2).to(dtype)
    pre[3] = 0
    threshold = torch.linspace(-1, 1, 40).to(dtype)
    codes = active_codes(pre, activation, k=5, threshold=threshold)
    f = activate(pre, activation, k=5, threshold=threshold)
    assert codes.values.dtype == dtype and torch.equal(codes.dense(), f)
    again = Codes.from_dense(f)
    assert torch.equal(codes.indptr, again.indptr) and torch.equal(codes.cols, again.cols)


def test_codes_of_no_tokens() -> None:
    assert active_codes(torch.zeros(0, 4), "topk", k=2).nnz == active_codes(torch.zeros(0, 4), "relu").nnz == 0


def test_the_smallest_positive_number_is_above_0() -> None:
    pre = torch.tensor([[5e-45, 0.0, -0.0, -1.0]])
    assert active_codes(pre, "topk", k=3).cols.tolist() == [0]
