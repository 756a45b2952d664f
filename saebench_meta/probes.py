"""Logistic probes, many at once.

For each problem, with labels y_i ∈ {−1, 1} and row weights r_i::

    F(w, b) = ½ ‖w‖² + C Σ_i r_i log(1 + exp(−y_i (w · x_i + b)))

as in scikit-learn's `LogisticRegression(C=C)`: the intercept is free, and larger C means less shrinkage. Newton's
method with step control, in float64: each step solves H p = ∇F, by a factorisation where a problem has rows of its own
and few columns, by preconditioned conjugate gradients where all problems share their rows. It ends when half the Newton
decrement ∇F · p is next to nothing, which near the optimum is how far F is from its minimum.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int
    from torch import Tensor

TOLERANCE = 1e-10
"""Largest half of the Newton decrement, as a share of 1 + F, at which a problem is solved."""
STEPS = 200
HALVINGS = 40
DIRECT_D = 256
"""Up to so many columns H is factored; beyond, conjugate gradients."""
CG_STEPS = 400
CG_TOLERANCE = 0.03
"""Residual of a Newton step by conjugate gradients, as a share of the gradient, in the preconditioner's norm."""
SUFFICIENT = 1e-4
"""Share of the fall of F that a step promises, by which it has to fall."""
ROUNDING = 1e-13
INTERCEPT = 1e-10
"""Added to the diagonal of H: the curvature of b, which is not shrunk, vanishes where every row is far on its side."""
RANK = 1e-14
"""Squared singular values of so small a share of the largest, a row, are rounding."""
BLOCK_ELEMENTS = 2**24
"""Entries of X that are worked on at once: 128 MB."""


@dataclass(frozen=True, eq=False)
class Probes:
    """One linear probe a problem: `w · x + b` above 0 says yes."""

    W: Float[Tensor, "problems d"]
    b: Float[Tensor, " problems"]

    def logits(self, X: Float[Tensor, "n d"] | Float[Tensor, "problems n d"]) -> Float[Tensor, "problems n"]:
        """`w · x + b` on rows that all problems share, or on each problem's own."""
        X = X.to(self.W)
        return _times(X, self.W) + self.b[:, None]


def fit(
    X: Float[Tensor, "n d"] | Float[Tensor, "problems n d"],
    y: Bool[Tensor, "problems n"],
    C: float | Float[Tensor, " problems"] = 1.0,
    weights: Float[Tensor, "problems n"] | None = None,
    start: Probes | None = None,
) -> Probes:
    """The probes that minimise F, one for each row of `y`; float64, on the device of `X`, always the same.

    Args:
        X: rows that all problems share, or each problem's own.
        y: labels.
        C: one for all problems, or one a problem.
        weights: r; a row with weight 0 is left out. All 1 unless given.
        start: where to start, such as the probes of the next smaller C.

    Raises:
        ValueError: a problem has rows of one label only, so that its intercept has no optimum; X, y, C or weights are
            not finite, or C is not above 0.
    """
    X = X.double()
    cost = _cost(X, y, C, weights)
    sign = torch.where(y, 1.0, -1.0).to(cost)
    if X.ndim == 2:
        return _fit_shared(X, sign, cost, start)
    size = max(1, BLOCK_ELEMENTS // max(1, X.shape[1] * X.shape[2]))
    first = _theta(start, len(y), X)
    blocks = [slice(at, at + size) for at in range(0, len(y), size)]
    theta = torch.cat([first[:0], *(_minimise(*_counted(X[s], sign[s], cost[s]), first[s]) for s in blocks)])
    return Probes(theta[:, :-1], theta[:, -1])


def loss(
    probes: Probes,
    X: Float[Tensor, "n d"] | Float[Tensor, "problems n d"],
    y: Bool[Tensor, "problems n"],
    weights: Float[Tensor, "problems n"],
) -> Float[Tensor, " problems"]:
    """Weighted mean of the log-loss, without the penalty: for choosing C on rows the probes were not fitted on."""
    margin = torch.where(y, 1.0, -1.0) * probes.logits(X)
    weights = weights.to(margin)
    return (weights * torch.nn.functional.softplus(-margin)).sum(1) / weights.sum(1)


def _cost(
    X: Tensor, y: Bool[Tensor, "problems n"], C: float | Float[Tensor, " problems"], weights: Tensor | None
) -> Float[Tensor, "problems n"]:
    """C r of every row, after a look at what was given."""
    rows = (len(y), X.shape[-2])
    if y.shape != rows or (X.ndim == 3 and len(X) != len(y)) or (weights is not None and weights.shape != rows):
        raise ValueError(f"probes: X {tuple(X.shape)}, y {tuple(y.shape)} and the weights do not fit together")
    r = torch.ones(rows, device=X.device, dtype=X.dtype) if weights is None else weights.to(X)
    cost = torch.as_tensor(C, device=X.device, dtype=X.dtype).reshape(-1, 1) * r
    if not (torch.isfinite(X).all() and torch.isfinite(cost).all() and (r >= 0).all()):
        raise ValueError("probes: X, C and weights must be finite, and weights not below 0")
    if len(y) and not ((cost * y).sum(1).gt(0).all() and (cost * ~y).sum(1).gt(0).all()):
        raise ValueError("probes: every problem needs rows of both labels, and C above 0")
    return cost


def _counted(
    X: Float[Tensor, "problems n d"], sign: Float[Tensor, "problems n"], cost: Float[Tensor, "problems n"]
) -> tuple[_Rows, Float[Tensor, "problems most"], Float[Tensor, "problems most"]]:
    """Rows, labels and costs without the rows of weight 0, as far as every problem has some."""
    most = int((cost > 0).sum(1).max())
    if most == X.shape[1]:
        return _Rows(X), sign, cost
    order = (cost > 0).to(torch.uint8).argsort(dim=1, descending=True, stable=True)[:, :most]
    rows = X[torch.arange(len(X), device=X.device)[:, None], order]
    return _Rows(rows), sign.gather(1, order), cost.gather(1, order)


def _theta(start: Probes | None, problems: int, X: Tensor) -> Float[Tensor, "problems d_plus_1"]:
    if start is None:
        return X.new_zeros(problems, X.shape[-1] + 1)
    return torch.cat([start.W, start.b[:, None]], dim=1).to(X)


def _fit_shared(X: Float[Tensor, "n d"], sign: Tensor, cost: Tensor, start: Probes | None) -> Probes:
    """In the rows' principal coordinates, where the diagonal of H is a good preconditioner.

    A rotation leaves ‖w‖ as it is, centring moves only b, and w has no part outside the span of the rows.
    """
    mean = X.mean(0)
    basis = _principal(X - mean)
    first = None
    if start is not None:
        W = start.W.to(X)
        first = Probes(W @ basis, start.b.to(X) + W @ mean)
    Z = (X - mean) @ basis
    theta = _minimise(_Rows(Z), sign, cost, _theta(first, len(sign), Z))
    W = theta[:, :-1] @ basis.T
    return Probes(W, theta[:, -1] - W @ mean)


def _principal(X: Float[Tensor, "n d"]) -> Float[Tensor, "d rank"]:
    """Orthonormal columns that span the rows: eigenvectors of the smaller of XᵀX and XXᵀ."""
    n, d = X.shape
    if d <= n:
        whole: tuple[Tensor, Tensor] = torch.linalg.eigh(X.T @ X)
        return whole[1]
    values, vectors = torch.linalg.eigh(X @ X.T)
    spanned: tuple[Tensor, Tensor] = torch.linalg.qr(X.T @ vectors[:, values > RANK * n * values.max()])
    return spanned[0]


def _times(X: Tensor, W: Float[Tensor, "problems d"]) -> Float[Tensor, "problems n"]:
    logits: Tensor = W @ X.T if X.ndim == 2 else torch.bmm(X, W[:, :, None]).squeeze(2)
    return logits


@dataclass(frozen=True, eq=False)
class _Rows:
    """Rows that all problems share, (n, d), or each problem's own, with a last column of ones that is not stored."""

    X: Tensor

    def taken(self, problems: Int[Tensor, " kept"]) -> _Rows:
        return self if self.X.ndim == 2 else _Rows(self.X[problems])

    def times(self, theta: Float[Tensor, "problems d_plus_1"]) -> Float[Tensor, "problems n"]:
        return _times(self.X, theta[:, :-1]) + theta[:, -1:]

    def gathered(self, r: Float[Tensor, "problems n"]) -> Float[Tensor, "problems d_plus_1"]:
        X = self.X
        sums = r @ X if X.ndim == 2 else torch.bmm(r[:, None], X).squeeze(1)
        return torch.cat([sums, r.sum(1, keepdim=True)], dim=1)

    def solved(
        self, curvature: Float[Tensor, "problems n"], gradient: Float[Tensor, "problems d_plus_1"]
    ) -> Float[Tensor, "problems d_plus_1"]:
        """H⁻¹ ∇F."""
        if self.X.ndim == 3 and self.X.shape[2] <= DIRECT_D:
            H = self.hessian(curvature)
            return torch.cholesky_solve(gradient[:, :, None], torch.linalg.cholesky(H)).squeeze(2)
        penalty = _penalty(gradient)

        def times(p: Tensor) -> Tensor:
            return penalty * p + self.gathered(curvature * self.times(p))

        diagonal = penalty + _Rows(self.X * self.X).gathered(curvature) + INTERCEPT
        return _conjugate_gradients(times, gradient, diagonal)

    def hessian(self, curvature: Float[Tensor, "problems n"]) -> Float[Tensor, "problems d_plus_1 d_plus_1"]:
        d = self.X.shape[2]
        weighted = self.X * curvature[:, :, None]
        H = self.X.new_empty(len(curvature), d + 1, d + 1)
        H[:, :d, :d] = weighted.transpose(1, 2) @ self.X
        H[:, d, :d] = H[:, :d, d] = weighted.sum(1)
        H[:, d, d] = curvature.sum(1)
        H.diagonal(dim1=1, dim2=2).add_(_penalty(H[:, 0]) + INTERCEPT)
        return H


def _penalty(like: Float[Tensor, "problems d_plus_1"]) -> Float[Tensor, " d_plus_1"]:
    """1 for every weight, 0 for the intercept."""
    penalty = like.new_ones(like.shape[1])
    penalty[-1] = 0
    return penalty


def _conjugate_gradients(
    times: Callable[[Tensor], Tensor], gradient: Float[Tensor, "problems d"], diagonal: Float[Tensor, "problems d"]
) -> Float[Tensor, "problems d"]:
    """H⁻¹ ∇F of every problem, until the residual is small; a problem that is done stands still."""
    solution, residual = torch.zeros_like(gradient), gradient
    along = gradient / diagonal
    size = (residual * along).sum(1)
    enough = CG_TOLERANCE**2 * size
    for _ in range(min(CG_STEPS, 2 * gradient.shape[1])):
        going = size > enough
        if not going.any():
            break
        product = times(along)
        step = torch.where(going, size / (along * product).sum(1), 0.0)[:, None]
        solution = solution + step * along
        residual = residual - step * product
        scaled = residual / diagonal
        before, size = size, torch.where(going, (residual * scaled).sum(1), size)
        along = torch.where(going[:, None], scaled + (size / before)[:, None] * along, along)
    return solution


@dataclass(frozen=True, eq=False)
class _State:
    """Problems on their way: where each is, (w, b), with its logits and its F."""

    sign: Float[Tensor, "problems n"]
    cost: Float[Tensor, "problems n"]
    theta: Float[Tensor, "problems d_plus_1"]
    z: Float[Tensor, "problems n"]
    F: Float[Tensor, " problems"]

    def taken(self, problems: Int[Tensor, " kept"]) -> _State:
        return _State(*(getattr(self, f.name)[problems] for f in fields(self)))

    def at(self, theta: Tensor, z: Tensor) -> _State:
        shrinkage = 0.5 * (theta[:, :-1] ** 2).sum(1)
        F = shrinkage + (self.cost * torch.nn.functional.softplus(-self.sign * z)).sum(1)
        return _State(self.sign, self.cost, theta, z, F)


def _minimise(
    rows: _Rows,
    sign: Float[Tensor, "problems n"],
    cost: Float[Tensor, "problems n"],
    theta: Float[Tensor, "problems d_plus_1"],
) -> Float[Tensor, "problems d_plus_1"]:
    """Newton's method from `theta` = (w, b); problems that are solved are put aside."""
    found = theta.clone()
    left = torch.arange(len(theta), device=theta.device)
    z = rows.times(theta)
    state = _State(sign, cost, theta, z, z[:, 0]).at(theta, z)
    for _ in range(STEPS):
        miss = torch.sigmoid(-state.sign * state.z)
        gradient = _penalty(theta) * state.theta - rows.gathered(state.cost * state.sign * miss)
        step = rows.solved(state.cost * miss * (1 - miss), gradient)
        decrement = (gradient * step).sum(1)
        going = decrement > 2 * TOLERANCE * (1 + state.F)
        if not going.any():
            break
        if going.sum() <= len(left) // 2:
            found[left] = state.theta
            kept = going.nonzero().squeeze(1)
            rows, left, state = rows.taken(kept), left[kept], state.taken(kept)
            step, decrement, going = step[kept], decrement[kept], going[kept]
        state, stuck = _stepped(rows, state, step, decrement, going)
        if stuck:
            break
    found[left] = state.theta
    return found


def _stepped(rows: _Rows, state: _State, step: Tensor, decrement: Tensor, going: Tensor) -> tuple[_State, bool]:
    """Along the step of each problem that is going, halved until F falls enough; whether nothing moved at all."""
    moved = rows.times(step)
    length = torch.where(going, 1.0, 0.0).to(step)
    for _ in range(HALVINGS):
        there = state.at(state.theta - length[:, None] * step, state.z - length[:, None] * moved)
        # Near the optimum F cannot fall by more than it is rounded by.
        most = state.F - SUFFICIENT * length * decrement + ROUNDING * (1 + state.F)
        far = most < there.F
        if not far.any():
            return there, torch.equal(there.theta, state.theta)
        length = torch.where(far, length / 2, length)
    return state, True
