"""Probes: scikit-learn's optimum on rows of every kind, weights, starts, what is refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from saebench_meta import probes

KINDS = ("random", "separable", "collinear", "constant column", "columns of all scales", "rows all alike")


def rows(kind: str, n: int, d: int, seed: int) -> tuple[Tensor, Tensor]:
    """One problem: X (n, d) and y (n,), both labels among them."""
    g = torch.Generator().manual_seed(seed)
    X = torch.randn(n, d, generator=g, dtype=torch.float64)
    y = X[:, 0] + torch.randn(n, generator=g) > 0
    match kind:
        case "separable":
            y = X[:, 0] > 0
        case "collinear":
            X = torch.cat([X, X @ torch.randn(d, d, generator=g, dtype=torch.float64)], dim=1)
        case "constant column":
            X[:, -1], X[:, d // 2] = 3.0, 0.0
        case "columns of all scales":
            X *= 10.0 ** torch.randint(-4, 3, (d,), generator=g)
        case "rows all alike":
            X = torch.ones(n, d, dtype=torch.float64)
    y[:2] = torch.tensor([True, False])
    return X, y


def F(w: np.ndarray, b: float, X: np.ndarray, y: np.ndarray, C: float, r: np.ndarray | float = 1.0) -> float:
    margin = (2 * y - 1) * (X @ w + b)
    return float(0.5 * w @ w + C * (r * np.logaddexp(0, -margin)).sum())


def excess(found: probes.Probes, i: int, X: Tensor, y: Tensor, C: float, r: Tensor | None = None) -> float:
    """F of a probe over that of scikit-learn's, as a share of 1 + F."""
    weight = np.ones(len(y)) if r is None else r.numpy()
    theirs = LogisticRegression(C=C, tol=1e-10, max_iter=20_000).fit(X.numpy(), y.numpy(), sample_weight=weight)
    least = F(theirs.coef_[0], float(theirs.intercept_[0]), X.numpy(), y.numpy(), C, weight)
    return (F(found.W[i].numpy(), float(found.b[i]), X.numpy(), y.numpy(), C, weight) - least) / (1 + least)


@settings(max_examples=20)
@given(
    st.sampled_from(KINDS), st.integers(4, 80), st.integers(1, 30), st.sampled_from([1e-3, 0.1, 1.0, 30.0]),
    st.booleans(), st.integers(0, 10_000),
)  # fmt: skip
def test_loss_is_as_low_as_that_of_scikit_learn(kind: str, n: int, d: int, C: float, shared: bool, seed: int) -> None:
    X, y = rows(kind, n, d, seed)
    found = probes.fit(X if shared else X[None], y[None], C)
    assert excess(found, 0, X, y, C) < 1e-8


@pytest.mark.parametrize("shared", [True, False])
def test_many_problems_at_once_are_what_each_is_alone(shared: bool) -> None:
    X, _ = rows("random", 60, 8, 0)
    kinds = [rows(kind, 60, 8, i) for i, kind in enumerate(("random", "separable", "constant column"))]
    y, C = torch.stack([y for _, y in kinds]), torch.tensor([0.01, 1.0, 50.0])
    own = X if shared else torch.stack([X for X, _ in kinds])
    together = probes.fit(own, y, C)
    for i in range(3):
        of = X if shared else own[i]
        assert excess(together, i, of, y[i], float(C[i])) < 1e-8
        alone = probes.fit(of if shared else of[None], y[i : i + 1], float(C[i]))
        assert torch.allclose(together.W[i], alone.W[0], atol=1e-4)


@pytest.mark.parametrize(("n", "d"), [(40, 300), (400, 300)])
def test_many_columns_with_shared_rows_and_with_own(n: int, d: int) -> None:
    assert d > probes.DIRECT_D
    X, y = rows("columns of all scales", n, d, 3)
    for given_as in (X, X[None]):
        assert excess(probes.fit(given_as, y[None], 1.0), 0, X, y, 1.0) < 1e-8


def test_separable_rows_end_with_finite_probes_that_separate() -> None:
    X, _ = rows("separable", 200, 3, 0)
    y = X[:, 0] > 0
    for given_as in (X, X[None]):
        found = probes.fit(given_as, y[None], 1e6)
        assert bool(torch.isfinite(found.W).all())
        assert bool(((found.logits(X) > 0) == y).all())


def test_weights_count_rows_and_zero_leaves_them_out() -> None:
    X, y = rows("random", 50, 4, 1)
    r = torch.randint(0, 3, (50,), generator=torch.Generator().manual_seed(0)).double()
    r[:2] = 1
    times = r.long()
    repeated = probes.fit(X.repeat_interleave(times, 0), y.repeat_interleave(times)[None], 0.7)
    for given_as in (X, X[None]):
        weighted = probes.fit(given_as, y[None], 0.7, r[None])
        assert torch.allclose(weighted.W, repeated.W, atol=1e-5)
        assert torch.allclose(weighted.b, repeated.b, atol=1e-5)
    assert excess(probes.fit(X, y[None], 0.7, r[None]), 0, X, y, 0.7, r) < 1e-8


def test_the_optimum_does_not_depend_on_the_start() -> None:
    X, y = rows("random", 80, 5, 2)
    far = probes.Probes(torch.full((1, 5), 20.0, dtype=torch.float64), torch.tensor([-30.0], dtype=torch.float64))
    for given_as in (X, X[None]):
        fresh, started = probes.fit(given_as, y[None]), probes.fit(given_as, y[None], start=far)
        assert torch.allclose(fresh.W, started.W, atol=1e-4)
        assert excess(started, 0, X, y, 1.0) < 1e-8


def test_problems_are_worked_on_in_blocks_with_the_same_result(monkeypatch: pytest.MonkeyPatch) -> None:
    problems = [rows("random", 30, 3, i) for i in range(5)]
    X, y = torch.stack([X for X, _ in problems]), torch.stack([y for _, y in problems])
    whole = probes.fit(X, y)
    monkeypatch.setattr(probes, "BLOCK_ELEMENTS", 2 * 30 * 3)
    assert torch.allclose(probes.fit(X, y).W, whole.W, atol=1e-6)


def test_no_problem_gives_no_probe() -> None:
    found = probes.fit(torch.zeros(0, 4, 2), torch.zeros(0, 4, dtype=torch.bool))
    assert found.W.shape == (0, 2)


def test_labels_that_nothing_tells_apart_leave_the_intercept_at_their_odds() -> None:
    X, y = torch.zeros(10, 2), torch.arange(10) < 3
    for given_as in (X, X[None]):
        found = probes.fit(given_as, y[None], 100.0)
        assert float(found.b[0]) == pytest.approx(np.log(3 / 7), abs=1e-4)
        assert torch.equal(found.W, torch.zeros(1, 2, dtype=torch.float64))


def test_logits_and_loss_by_hand() -> None:
    found = probes.Probes(torch.tensor([[2.0, -1.0]], dtype=torch.float64), torch.tensor([0.5], dtype=torch.float64))
    X = torch.tensor([[1.0, 1.0], [0.0, 3.0]])
    assert found.logits(X).tolist() == found.logits(X[None]).tolist() == [[1.5, -2.5]]
    y, r = torch.tensor([[True, True]]), torch.tensor([[3.0, 1.0]])
    expected = (3 * np.log1p(np.exp(-1.5)) + np.log1p(np.exp(2.5))) / 4
    assert float(probes.loss(found, X, y, r)[0]) == pytest.approx(expected)


BOTH = torch.tensor([[True, False, True]])


@pytest.mark.parametrize(
    ("X", "y", "C", "weights", "message"),
    [
        (torch.ones(3, 1), torch.ones(1, 3, dtype=torch.bool), 1.0, None, "both labels"),
        (torch.ones(3, 1), BOTH, 1.0, torch.tensor([[1.0, 0.0, 1.0]]), "both labels"),
        (torch.ones(3, 1), BOTH, 0.0, None, "both labels"),
        (torch.full((3, 1), torch.nan), BOTH, 1.0, None, "finite"),
        (torch.ones(3, 1), BOTH, 1.0, torch.tensor([[1.0, 1.0, -1.0]]), "not below 0"),
        (torch.ones(4, 1), BOTH, 1.0, None, "fit together"),
        (torch.ones(2, 3, 1), BOTH, 1.0, None, "fit together"),
    ],
)
def test_what_has_no_optimum_is_refused(X: Tensor, y: Tensor, C: float, weights: Tensor | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        probes.fit(X, y, C, weights)
