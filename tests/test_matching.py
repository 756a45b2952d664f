"""Matching latents and features, by hand and under what must not change anything."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import sparse

from saebench_meta.matching import Firing, classification, cosines, firing, matched_f1, mcc, one_to_one, uniqueness

# Six tokens; latent 0 is feature 1 but for one token, latent 1 is feature 0 with one token too many, latent 2 is dead.
FIRED = np.array([[1, 1, 0, 0, 0, 0], [0, 0, 1, 1, 1, 0], [0, 0, 0, 0, 0, 0]], dtype=bool).T
ON = np.array([[0, 0, 1, 1, 0, 0], [1, 1, 0, 0, 0, 1], [0, 0, 0, 0, 0, 0]], dtype=bool).T


def table(seed: int, tokens: int = 40, latents: int = 6, features: int = 5) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.random((tokens, latents)) < 0.3, rng.random((tokens, features)) < 0.4


# -- directions


def test_cosines_by_hand() -> None:
    a, b = torch.tensor([[3.0, 4.0], [0.0, 0.0]]), torch.tensor([[1.0, 0.0], [0.0, -2.0], [-6.0, -8.0]])
    assert cosines(a, b) == pytest.approx(np.array([[0.6, -0.8, -1.0], [0.0, 0.0, 0.0]]))
    assert cosines(1e-30 * a, b) == pytest.approx(cosines(a, b))


def test_the_pairing_takes_the_largest_sum_and_not_the_largest_entry() -> None:
    rows, columns = one_to_one(np.array([[0.9, 0.8], [0.8, 0.1]]))
    assert (rows.tolist(), columns.tolist()) == ([0, 1], [1, 0])
    rows, columns = one_to_one(np.array([[0.1], [0.5], [0.3]]))
    assert (rows.tolist(), columns.tolist()) == ([1], [0])


def test_mcc_by_hand() -> None:
    features = torch.eye(3)
    latents = torch.tensor([[0.0, -2.0, 0.0], [0.6, 0.0, 0.8]])
    assert mcc(latents, features) == pytest.approx((1 + 0.8) / 2)
    assert mcc(features, latents) == pytest.approx((1 + 0.8) / 2)
    # Both latents are nearest to feature 0: one of them has to take another.
    assert mcc(torch.tensor([[1.0, 0.0], [0.8, 0.6]]), torch.eye(2)) == pytest.approx((1 + 0.6) / 2)
    with pytest.raises(ValueError, match="0 latents"):
        mcc(torch.zeros(0, 3), features)


@given(st.integers(0, 999), st.integers(0, 999))
def test_mcc_does_not_change_with_order_sign_or_scale(seed: int, other: int) -> None:
    g = torch.Generator().manual_seed(seed)
    latents, features = torch.randn(7, 4, generator=g), torch.randn(5, 4, generator=g)
    g = torch.Generator().manual_seed(other)
    scale = torch.randn(7, 1, generator=g)
    moved = (scale * latents)[torch.randperm(7, generator=g)]
    assert mcc(moved, features[torch.randperm(5, generator=g)]) == pytest.approx(mcc(latents, features))


def test_uniqueness_counts_the_features_that_latents_are_nearest_to() -> None:
    cosine = np.array([[0.9, 0.1], [-0.8, 0.2], [0.1, 0.3], [0.7, 0.6]])
    assert uniqueness(cosine) == 2 / 4
    with pytest.raises(ValueError, match="no latents"):
        uniqueness(np.zeros((0, 2)))


# -- firing


def test_counts_and_shares_by_hand() -> None:
    found = firing(FIRED, ON)
    assert found.n == 6
    assert found.latents.tolist() == [2, 3, 0] and found.features.tolist() == [2, 3, 0]
    assert found.both.tolist() == [[0, 2, 0], [2, 0, 0], [0, 0, 0]]
    assert found.precision == pytest.approx(np.array([[0, 1, 0], [2 / 3, 0, 0], [0, 0, 0]]))
    assert found.recall == pytest.approx(np.array([[0, 2 / 3, 0], [1, 0, 0], [0, 0, 0]]))
    assert found.f1 == pytest.approx(np.array([[0, 4 / 5, 0], [4 / 5, 0, 0], [0, 0, 0]]))
    assert found.accuracy == pytest.approx(np.array([[2 / 6, 5 / 6, 4 / 6], [5 / 6, 0, 3 / 6], [4 / 6, 3 / 6, 1]]))


@given(st.integers(0, 999), st.integers(0, 40))
def test_counts_are_the_same_sparse_dense_and_in_parts(seed: int, cut: int) -> None:
    fired, on = table(seed)
    whole = firing(fired, on)
    values = fired * np.random.default_rng(seed).normal(size=fired.shape)  # any activation that is not 0 fires
    for a, b in ((sparse.csr_array(values), sparse.csr_array(on)), (sparse.csr_array(fired), on), (values, 5.0 * on)):
        parts = firing(a[:cut], b[:cut]) + firing(a[cut:], b[cut:])
        for one in (firing(a, b), parts):
            assert one.n == whole.n == 40
            assert np.array_equal(one.both, whole.both)
            assert np.array_equal(one.latents, whole.latents) and np.array_equal(one.features, whole.features)


def test_more_tokens_than_a_byte_can_count() -> None:
    ones = sparse.csr_array(np.ones((1000, 1), dtype=np.uint8))
    assert firing(ones, ones).both.tolist() == [[1000]]
    assert firing(ones.toarray(), ones.toarray()).both.tolist() == [[1000]]


def test_tables_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="6 tokens of latents and 5 of features"):
        firing(FIRED, ON[:5])
    with pytest.raises(ValueError, match="cannot be added"):
        firing(FIRED, ON) + firing(FIRED[:, :2], ON)
    with pytest.raises(ValueError, match="classification"):
        classification(firing(FIRED, ON), np.zeros((2, 2)))


# -- matched F1


def test_matched_f1_by_hand() -> None:
    matched = matched_f1(firing(FIRED, ON))
    assert matched.latents.tolist() == [1, 0] and matched.features.tolist() == [0, 1]
    assert matched.counted.tolist() == [True, True, False]
    assert matched.f1 == pytest.approx(np.array([0.8, 0.8, 0]))
    assert matched.mean == pytest.approx(0.8)


def test_a_feature_without_a_latent_counts_as_nothing_found() -> None:
    matched = matched_f1(firing(FIRED[:, :1], ON))
    assert matched.features.tolist() == [1]
    assert matched.mean == pytest.approx(0.8 / 2)


def test_a_pair_that_never_fires_together_is_none() -> None:
    matched = matched_f1(firing(FIRED[:, :1], ON[:, :1]))
    assert len(matched.latents) == 0 and matched.mean == 0


def test_rare_features_neither_count_nor_take_a_latent() -> None:
    fired = np.array([[1, 1, 1, 0, 0, 0]], dtype=bool).T
    on = np.array([[1, 1, 0, 0, 0, 0], [1, 1, 1, 1, 0, 0]], dtype=bool).T
    assert matched_f1(firing(fired, on), min_count=2).mean == pytest.approx((6 / 7) / 2)
    assert matched_f1(firing(fired, on), min_count=3).mean == pytest.approx(6 / 7)
    none = matched_f1(firing(fired, on), min_count=5)
    assert none.mean is None and len(none.latents) == 0


@given(st.integers(0, 999), st.integers(0, 999))
def test_matched_f1_does_not_change_with_the_order_of_latents_features_and_tokens(seed: int, other: int) -> None:
    fired, on = table(seed)
    rng = np.random.default_rng(other)
    tokens, latents, features = (rng.permutation(n) for n in (40, 6, 5))
    before, after = (
        matched_f1(firing(fired, on)),
        matched_f1(firing(fired[tokens][:, latents], on[tokens][:, features])),
    )
    assert after.mean == pytest.approx(before.mean)


@given(st.integers(0, 999))
def test_no_other_one_to_one_match_has_a_larger_mean_f1(seed: int) -> None:
    found = firing(*table(seed))
    matched = matched_f1(found)
    rng = np.random.default_rng(seed)
    for _ in range(20):
        latents = rng.permutation(6)[:5]
        assert found.f1[latents, np.arange(5)].mean() <= matched.f1.mean() + 1e-12


# -- each latent as a detector of its nearest feature


def test_classification_by_hand() -> None:
    found = Firing(np.array([[2, 1], [0, 3]]), np.array([4, 3]), np.array([2, 6]), 10)
    cosine = np.array([[-0.9, 0.5], [-0.95, 0.1]])  # both are nearest to feature 0, by |cosine|
    assert classification(found, cosine) == pytest.approx(
        {"precision": (2 / 4 + 0) / 2, "recall": (1 + 0) / 2, "f1": (4 / 6 + 0) / 2, "accuracy": (8 / 10 + 5 / 10) / 2}
    )


@given(st.integers(0, 999))
def test_classification_does_not_change_with_the_order_of_latents_and_features(seed: int) -> None:
    fired, on = table(seed)
    rng = np.random.default_rng(seed)
    cosine = rng.uniform(-1, 1, (6, 5))
    latents, features = rng.permutation(6), rng.permutation(5)
    moved = classification(firing(fired[:, latents], on[:, features]), cosine[latents][:, features])
    assert moved == pytest.approx(classification(firing(fired, on), cosine))
