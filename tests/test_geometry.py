"""Largest cosines against the full matrix, worked out at once in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from saebench_meta import geometry
from saebench_meta.errors import SaebenchError
from saebench_meta.geometry import max_cosine, similarity


def rows(n: int, d: int, seed: int) -> torch.Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed))


def full(A: torch.Tensor, B: torch.Tensor) -> torch.Tensor:
    A, B = A.double(), B.double()
    return (A / A.norm(dim=1, keepdim=True)) @ (B / B.norm(dim=1, keepdim=True)).T


@pytest.mark.parametrize("block", [1, 3, 7, 64])
def test_blocks_of_any_size_find_the_maximum_of_the_full_matrix(block: int) -> None:
    A, B = rows(20, 5, 0), rows(13, 5, 1)
    values, nearest = max_cosine(A, B, block=block)
    expected = full(A, B).max(dim=1)
    torch.testing.assert_close(values, expected.values, atol=1e-12, rtol=0)
    assert torch.equal(nearest, expected.indices)


def test_hand_worked_angles() -> None:
    A = torch.tensor([[3.0, 4.0], [0.0, 2.0], [-1.0, 0.0]])
    B = torch.tensor([[5.0, 0.0], [0.0, 0.5]])
    values, nearest = max_cosine(A, B)
    assert values.tolist() == [0.8, 1.0, 0.0]
    assert nearest.tolist() == [1, 1, 1]


def test_a_zero_row_has_cosine_zero_on_either_side() -> None:
    values, _ = max_cosine(torch.tensor([[0.0, 0.0], [1.0, 0.0]]), torch.tensor([[1.0, 0.0]]))
    assert values.tolist() == [0.0, 1.0]
    values, nearest = max_cosine(torch.tensor([[1.0, 0.0]]), torch.tensor([[-1.0, 0.0], [0.0, 0.0]]))
    assert (values.tolist(), nearest.tolist()) == ([0.0], [1])


def test_all_cosines_negative_is_reported_as_it_is() -> None:
    values, nearest = max_cosine(torch.tensor([[1.0, 0.0]]), torch.tensor([[-1.0, 0.0], [-3.0, 4.0]]))
    assert (values.tolist(), nearest.tolist()) == ([-0.6], [1])


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 1000), st.floats(1e-30, 1e30))
def test_rescaling_rows_changes_nothing(seed: int, scale: float) -> None:
    A, B = rows(6, 4, seed), rows(5, 4, seed + 1)
    values, _ = max_cosine(A, B, block=2)
    scaled, _ = max_cosine(A.double() * scale, B.double() / scale, block=3)
    torch.testing.assert_close(values, scaled, atol=1e-6, rtol=0)


def test_half_precision_rows_are_compared_as_the_numbers_they_are() -> None:
    A, B = rows(8, 6, 2).bfloat16(), rows(9, 6, 3).bfloat16()
    torch.testing.assert_close(max_cosine(A, B)[0], full(A, B).amax(dim=1), atol=1e-12, rtol=0)


def test_shapes_that_do_not_fit_are_an_error() -> None:
    for A, B in ((torch.ones(2, 3), torch.ones(2, 4)), (torch.ones(2, 3), torch.ones(0, 3)), (torch.ones(3),) * 2):
        with pytest.raises(ValueError, match="do not fit"):
            max_cosine(A, B)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 12), st.integers(1, 9), st.integers(1, 5), st.integers(0, 1000), st.floats(-0.9, 0.9))
def test_similarity_is_the_full_matrix_from_both_sides(a: int, b: int, block: int, seed: int, theta: float) -> None:
    A, B = rows(a, 4, seed), rows(b, 4, seed + 1)
    cosines = full(A, B).numpy()
    found = similarity(A, B, theta, block=block)
    np.testing.assert_allclose(found.max_a, cosines.max(1), atol=1e-12)
    np.testing.assert_allclose(found.max_b, cosines.max(0), atol=1e-12)
    np.testing.assert_allclose(cosines[np.arange(a), found.nearest_a], cosines.max(1), atol=1e-12)
    np.testing.assert_allclose(cosines[found.nearest_b, np.arange(b)], cosines.max(0), atol=1e-12)
    above = np.argwhere(cosines > theta)
    assert np.array_equal(np.stack([found.edges.a, found.edges.b], 1), above)
    np.testing.assert_allclose(found.edges.cosine, cosines[cosines > theta], atol=1e-12)


def test_similarity_decides_ties_in_float64_and_the_same_for_rows_and_pairs() -> None:
    A = torch.tensor([[0.5, 0.5, 0.5, 0.5], [1.0, 1e-4, 0, 0], [1.0, 1e-4, 0, 1e-9]])
    B = torch.tensor([[1.0, 0, 0, 0], [1.0, 1e-4, 0, 0]])
    tied = similarity(A[:1], B[:1], 0.5)
    assert (tied.max_a.tolist(), len(tied.edges.a)) == ([0.5], 0)
    exact = float(full(A[1:2], B[:1]))
    assert 1 - 1e-8 < exact < 1  # float32 cannot tell it from 1
    assert sorted(zip(*(x.tolist() for x in _edges(A, B, exact)), strict=True)) == [(1, 1), (2, 1)]
    assert similarity(A, B, exact).nearest_a.tolist()[1:] == [1, 1]


def _edges(A: torch.Tensor, B: torch.Tensor, theta: float) -> tuple[np.ndarray, np.ndarray]:
    edges = similarity(A, B, theta).edges
    return edges.a, edges.b


def test_similarity_lists_no_pairs_unless_asked_and_not_too_many(monkeypatch: pytest.MonkeyPatch) -> None:
    A = torch.ones(5, 3)
    assert len(similarity(A, A).edges.a) == 0
    monkeypatch.setattr(geometry, "MAX_EDGES", 20)
    with pytest.raises(SaebenchError, match=r"more than 20 pairs .* above 0\.5"):
        similarity(A, A, 0.5)
