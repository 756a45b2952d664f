"""Largest cosines against the full matrix, worked out at once in float64."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from saebench_meta.geometry import max_cosine


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
