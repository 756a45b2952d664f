"""Sparse codes against the dense matrices they stand for."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from saebench_meta.codes import Codes
from saebench_meta.sae import SAE, SAEInfo, Site


@st.composite
def matrices(draw: Any, *, min_tokens: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    """Small sparse matrices of integers, so that every sum below is exact: empty rows and columns come up often."""
    tokens, latents = draw(st.integers(min_tokens, 9)), draw(st.integers(1, 7))
    values = draw(
        st.lists(st.sampled_from([0, 0, 0, 1, 2, 3, -4]), min_size=tokens * latents, max_size=tokens * latents)
    )
    return torch.tensor(values, dtype=dtype).reshape(tokens, latents)


def whole_numbers(rows: int, columns: int, seed: int = 0) -> Tensor:
    return torch.randint(-5, 6, (rows, columns), generator=torch.Generator().manual_seed(seed)).double()


def same(codes: Codes, dense: Tensor) -> None:
    """The codes are this matrix, and are stored as the class promises."""
    assert torch.equal(codes.dense(), dense)
    assert codes.indptr.dtype == torch.int64 and codes.cols.dtype == torch.int32
    assert codes.indptr[0] == 0 and codes.indptr[-1] == codes.nnz == int((dense != 0).sum())
    for t in range(codes.n_tokens):
        row = codes.cols[codes.indptr[t] : codes.indptr[t + 1]].tolist()
        assert row == sorted(set(row))


def test_a_matrix_worked_out_by_hand() -> None:
    codes = Codes.from_dense(torch.tensor([[0.0, 2.0, 0.0], [0.0, 0.0, 0.0], [1.0, 0.0, 3.0]]))
    assert codes.indptr.tolist() == [0, 1, 1, 3]
    assert codes.cols.tolist() == [1, 0, 2]
    assert codes.values.tolist() == [2.0, 1.0, 3.0]
    assert codes.rows.tolist() == [0, 2, 2]
    assert codes.l0().tolist() == [1, 0, 2]
    assert codes.counts().tolist() == [1, 1, 1]
    assert codes.decode(torch.tensor([[1.0], [10.0], [100.0]])).tolist() == [[20.0], [0.0], [301.0]]
    assert codes.t_matmul(torch.tensor([[1.0], [10.0], [100.0]])).tolist() == [[100.0], [2.0], [300.0]]
    assert codes.nbytes == 4 * 8 + 3 * 4 + 3 * 4


@given(matrices())
def test_dense_to_codes_and_back(f: Tensor) -> None:
    same(Codes.from_dense(f), f)


@given(matrices())
def test_a_transposed_view_gives_the_same_codes_as_its_copy(f: Tensor) -> None:
    same(Codes.from_dense(f.T), f.T.contiguous())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_values_keep_their_dtype(dtype: torch.dtype) -> None:
    f = torch.tensor([[0.0, 1.5], [2.25, 0.0]], dtype=dtype)
    codes = Codes.from_dense(f)
    assert codes.values.dtype == dtype
    same(codes, f)
    assert torch.equal(codes.decode(torch.eye(2)), f.float())
    assert torch.equal(codes.t_matmul(torch.eye(2)), f.float().T)


@given(st.lists(matrices(), min_size=1, max_size=4))
def test_cat_stacks_tokens(parts: list[Tensor]) -> None:
    width = max(p.shape[1] for p in parts)
    dense = [torch.nn.functional.pad(p, (0, width - p.shape[1])) for p in parts]
    same(Codes.cat([Codes.from_dense(p) for p in dense]), torch.cat(dense))


def test_cat_of_nothing_needs_the_number_of_latents() -> None:
    same(Codes.cat([], n_latents=3), torch.zeros(0, 3))
    with pytest.raises(ValueError, match="n_latents"):
        Codes.cat([])


def test_cat_of_different_widths_is_an_error() -> None:
    with pytest.raises(ValueError, match="different numbers of latents"):
        Codes.cat([Codes.from_dense(torch.ones(1, 2)), Codes.from_dense(torch.ones(1, 3))])


@given(matrices(), st.integers(-11, 11), st.integers(-11, 11))
def test_slices_are_those_of_the_matrix(f: Tensor, start: int, stop: int) -> None:
    same(Codes.from_dense(f)[start:stop], f[start:stop])
    same(Codes.from_dense(f)[start:], f[start:])
    same(Codes.from_dense(f)[:stop], f[:stop])


@given(matrices(), st.integers(0, 9))
def test_a_slice_of_a_slice_still_multiplies_rightly(f: Tensor, cut: int) -> None:
    part, dense = Codes.from_dense(f)[cut:][:-1], f[cut:][:-1]
    W, E = whole_numbers(f.shape[1], 3), whole_numbers(dense.shape[0], 3)
    assert torch.equal(part.decode(W), dense @ W)
    assert torch.equal(part.t_matmul(E), dense.T @ E)


def test_a_slice_with_a_step_is_an_error() -> None:
    with pytest.raises(ValueError, match="step"):
        Codes.from_dense(torch.ones(4, 2))[::2]


@given(matrices())
def test_products_are_those_of_the_matrix(f: Tensor) -> None:
    codes = Codes.from_dense(f)
    W, E = whole_numbers(f.shape[1], 4), whole_numbers(f.shape[0], 4, seed=1)
    assert torch.equal(codes.decode(W), f @ W)
    assert torch.equal(codes.t_matmul(E), f.T @ E)


@given(matrices())
def test_dots_are_the_products_of_the_entries_with_their_rows(f: Tensor) -> None:
    codes = Codes.from_dense(f)
    W, E = whole_numbers(f.shape[1], 4), whole_numbers(f.shape[0], 4, seed=1)
    decoded, dots = codes.dots(W)
    assert torch.equal(decoded, f @ W) and not decoded.requires_grad
    assert torch.equal(dots(E), (E @ W.T)[f != 0])


def test_products_with_a_matrix_of_the_wrong_height_are_errors() -> None:
    codes = Codes.from_dense(torch.ones(3, 2))
    for rows in (1, 4):
        with pytest.raises(ValueError, match=f"{rows} rows for 2 latents"):
            codes.decode(torch.ones(rows, 5))
    for rows in (2, 4):
        with pytest.raises(ValueError, match=f"{rows} rows for 3 tokens"):
            codes.t_matmul(torch.ones(rows, 5))


@given(matrices())
def test_columns_first_view_lists_every_entry_by_latent(f: Tensor) -> None:
    view = Codes.from_dense(f).by_latent
    for j in range(f.shape[1]):
        where = slice(int(view.indptr[j]), int(view.indptr[j + 1]))
        tokens = f[:, j].nonzero().squeeze(1)
        assert view.tokens[where].tolist() == tokens.tolist()
        assert torch.equal(view.values[where], f[tokens, j])


@given(matrices(), st.data())
def test_pool_is_the_mean_over_each_documents_tokens(f: Tensor, data: Any) -> None:
    f = f.abs()
    n_docs = 4
    documents = torch.tensor(
        data.draw(st.lists(st.integers(0, 3), min_size=len(f), max_size=len(f))), dtype=torch.int64
    )
    expected = torch.zeros(n_docs, f.shape[1], dtype=f.dtype)
    for doc in range(n_docs):
        if len(mine := f[documents == doc]):
            expected[doc] = mine.sum(0) / len(mine)
    same(Codes.from_dense(f).pool(documents, n_docs), expected)


def test_pool_with_many_documents_does_not_overflow_int32_numbers() -> None:
    n_latents, n_docs = 100_000, 30_000  # their product is above 2³¹
    codes = Codes(torch.tensor([0, 1, 2]), torch.tensor([7, 99_999], dtype=torch.int32), torch.ones(2), n_latents)
    pooled = codes.pool(torch.tensor([0, n_docs - 1], dtype=torch.int32), n_docs)
    assert pooled.cols.tolist() == [7, 99_999]
    assert pooled.rows.tolist() == [0, n_docs - 1]


@pytest.mark.parametrize(
    ("documents", "problem"), [([0], "1 document numbers for 2"), ([0, 3], "lie in"), ([-1, 0], "lie in")]
)
def test_pool_with_impossible_document_numbers_is_an_error(documents: list[int], problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        Codes.from_dense(torch.ones(2, 2)).pool(torch.tensor(documents), 3)


@given(matrices(), st.data())
def test_select_by_number_is_indexing_in_any_order(f: Tensor, data: Any) -> None:
    chosen = data.draw(st.lists(st.integers(0, f.shape[1] - 1), unique=True))
    numbers = torch.tensor(chosen, dtype=torch.int64)
    same(Codes.from_dense(f).select(numbers), f[:, numbers])


@given(matrices(), st.data())
def test_select_by_mask_keeps_the_order(f: Tensor, data: Any) -> None:
    mask = torch.tensor(data.draw(st.lists(st.booleans(), min_size=f.shape[1], max_size=f.shape[1])))
    same(Codes.from_dense(f).select(mask), f[:, mask])


@pytest.mark.parametrize(
    ("chosen", "problem"),
    [([0, 1, 0], "twice"), ([0, -1], "lie in"), ([3], "lie in"), ([True, False], "2 entries for 3")],
)
def test_select_of_what_cannot_be_chosen_is_an_error(chosen: list[int], problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        Codes.from_dense(torch.ones(2, 3)).select(torch.tensor(chosen))


@given(matrices())
def test_statistics_are_those_of_the_matrix(f: Tensor) -> None:
    codes = Codes.from_dense(f)
    assert codes.l0().tolist() == (f != 0).sum(1).tolist()
    assert codes.counts().tolist() == (f != 0).sum(0).tolist()
    assert torch.equal(codes.density(), (f != 0).double().sum(0) / max(1, len(f)))
    assert torch.equal(codes.sums(), f.sum(0))
    assert torch.equal(codes.sums(power=2), (f**2).sum(0))


def test_sums_do_not_lose_small_values_beside_large_ones() -> None:
    f = torch.tensor([[1e8], *[[1.0]] * 100])
    assert Codes.from_dense(f).sums().item() == 1e8 + 100  # in float32 it would stay at 1e8


@pytest.mark.parametrize("shape", [(0, 3), (1, 1), (1, 5), (4, 3)])
def test_a_matrix_of_zeros_goes_through_every_operation(shape: tuple[int, int]) -> None:
    tokens, latents = shape
    codes = Codes.from_dense(torch.zeros(shape))
    same(codes, torch.zeros(shape))
    assert torch.equal(codes.decode(torch.ones(latents, 2)), torch.zeros(tokens, 2))
    assert torch.equal(codes.t_matmul(torch.ones(tokens, 2)), torch.zeros(latents, 2))
    same(codes.pool(torch.zeros(tokens, dtype=torch.int64), 2), torch.zeros(2, latents))
    same(codes.select(torch.arange(latents - 1)), torch.zeros(tokens, latents - 1))
    same(Codes.cat([codes, codes]), torch.zeros(2 * tokens, latents))
    assert codes.density().tolist() == [0.0] * latents


def integer_sae(**info: Any) -> SAE:
    """Weights of whole numbers: products are exact, so that no rounding hides behind a tolerance."""
    d_in, d_sae = 5, 11
    return SAE(
        W_enc=whole_numbers(d_in, d_sae, 2).float(),
        b_enc=whole_numbers(1, d_sae, 3)[0].float(),
        W_dec=whole_numbers(d_sae, d_in, 4).float(),
        b_dec=torch.zeros(d_in),
        threshold=torch.full((d_sae,), 12.0),
        info=SAEInfo(
            name="whole", site=Site(model="m", hook="blocks.0.hook_resid_pre"), d_in=d_in, d_sae=d_sae, **info
        ),
    )


@pytest.mark.parametrize("info", [{}, {"activation": "jumprelu"}, {"activation": "topk", "k": 3}])
def test_encode_sparse_does_not_depend_on_the_chunk(info: dict[str, Any]) -> None:
    sae = integer_sae(**info)
    x = whole_numbers(23, 5, 5).float()
    dense = sae.encode(x)
    assert 0 < int((dense != 0).sum()) < dense.numel()
    for chunk in (1, 7, 23, 1000):
        same(sae.encode_sparse(x, chunk=chunk), dense)


def test_a_nan_among_the_top_is_not_lost() -> None:
    sae = integer_sae(activation="topk", k=3)
    x = whole_numbers(4, 5, 5).float()
    x[2, 0] = torch.nan
    assert sae.encode_sparse(x)[2:3].values.isnan().all()
    same(sae.encode_sparse(x)[:2], sae.encode(x[:2]))


def test_encode_sparse_of_no_tokens_is_empty() -> None:
    same(integer_sae().encode_sparse(torch.zeros(0, 5)), torch.zeros(0, 11))
