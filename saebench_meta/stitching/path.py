"""The error of every SAE on the way from S0 to S1, exactly, in one pass over the sample.

A latent that moves changes the residual only of tokens on which it is active, so the way is walked token by token: each
token's active latents in the order in which they move, each changing the token's running residual and its norm::

    r ← r − c w       c = f for a latent of S1 that enters, −f for one of S0 that leaves

Blocks of tokens do their first moves together, then their second ones, and so on. The residual starts without any
change of the bias; what the bias adds needs two sums only. With b0 + β(b1 − b0) the bias after a step (paper, equation
5: β = |L1| / (|L0| + |L1|)), D = b1 − b0 and s the tokens' scale::

    Σ‖r − s β D‖² = Σ‖r‖² − 2 β D·Σ s r + β²‖D‖² Σ s²
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from saebench_meta.stitching.graph import Schedule
from saebench_meta.stitching.sample import PairChunk, PairSample, products, residual, stacked, times

if TYPE_CHECKING:
    import numpy as np
    from jaxtyping import Float, Int
    from torch import Tensor

BLOCK_ELEMENTS = 2**17
"""Tokens × d_in of a block on a CPU: residuals and directions then stay in its cache."""


@dataclass(frozen=True, eq=False)
class Path:
    """What the stitched SAE is after every number of steps, from 0 on.

    Attributes:
        sse: Σ‖x − x̂‖² over the sample.
        active: active latents, summed over tokens.
        n_old, n_new: latents of S0 and of S1 that are there.
        tokens, elements: of the sample.
    """

    sse: Float[np.ndarray, " points"]
    active: Int[np.ndarray, " points"]
    n_old: Int[np.ndarray, " points"]
    n_new: Int[np.ndarray, " points"]
    tokens: int
    elements: int

    @property
    def mse(self) -> Float[np.ndarray, " points"]:
        """Mean over tokens and dimensions."""
        return self.sse / max(1, self.elements)

    @property
    def l0(self) -> Float[np.ndarray, " points"]:
        """Active latents per token."""
        return self.active / max(1, self.tokens)

    @property
    def features(self) -> Int[np.ndarray, " points"]:
        """Latents of the stitched SAE."""
        features: np.ndarray = self.n_old + self.n_new
        return features


def walk(sample: PairSample, schedules: Sequence[Schedule]) -> list[Path]:
    """The path of each schedule, every one starting at S0; the sample is read once for all of them."""
    import torch

    s1, s0 = sample.pair.sae, sample.pair.reference
    W = stacked(sample.pair)
    walks = [_Walk(schedule, W) for schedule in schedules]
    drift = s1.b_dec.double() - s0.b_dec.double()
    start = torch.zeros(3, dtype=torch.float64, device=W.device)
    latents = torch.zeros(len(W), 2, dtype=torch.float64, device=W.device)
    for block in sample.blocks(None if W.is_cuda else BLOCK_ELEMENTS):
        e = residual(block, block.old.decode(s0.W_dec), s0.b_dec)
        error = torch.linalg.vecdot(e, e).double()
        along = times((e @ drift.to(e)).double(), block.scale)
        squared = times(times(torch.ones_like(error), block.scale), block.scale)
        start += torch.stack([error, along, squared]).sum(1)
        entries = _entries(block, s0.d_sae)
        f = times(entries.f.double(), block.scale, entries.token)
        latents.index_add_(0, entries.latent, torch.stack([torch.ones_like(f), f], 1))
        for one in walks:
            one.see(e, error, entries)
    count, first = latents.unbind(1)
    moved = first * products(W, drift)
    return [one.path(sample, start, count, moved, float(drift @ drift)) for one in walks]


@dataclass(frozen=True, eq=False)
class _Entries:
    """Active latents of a block: those of S0, then those of S1, numbered after them."""

    token: Int[Tensor, " nnz"]
    latent: Int[Tensor, " nnz"]
    f: Float[Tensor, " nnz"]


def _entries(block: PairChunk, F0: int) -> _Entries:
    import torch

    old, new = block.old, block.new
    latents = torch.cat([old.cols.long(), new.cols.long() + F0])
    return _Entries(torch.cat([old.rows, new.rows]), latents, torch.cat([old.values, new.values]))


class _Walk:
    """Changes of Σ‖r‖² by step, for one schedule."""

    def __init__(self, schedule: Schedule, W: Tensor) -> None:
        import torch

        self.schedule, self.W = schedule, W
        self.moved = torch.from_numpy(schedule.latent + schedule.F0 * schedule.enters).to(W.device)
        self.sign = torch.from_numpy(2.0 * schedule.enters - 1).to(W)
        self.step_of = torch.full((len(W),), -1, dtype=torch.int64, device=W.device)
        self.step_of[self.moved] = torch.arange(len(self.moved), device=W.device)
        self.change = torch.zeros(len(self.moved), dtype=torch.float64, device=W.device)

    def see(self, e: Float[Tensor, "tokens d_in"], error: Float[Tensor, " tokens"], entries: _Entries) -> None:
        """Walk a block with residuals `e` under S0, of squared norms `error`.

        Tokens are sorted by how many moves they make and entries by turn, so that every turn is a slice of each.
        """
        import torch

        token, latent, f, step = entries.token, entries.latent, entries.f, self.step_of[entries.latent]
        if len(self.moved) < len(self.W):
            there = step >= 0
            token, latent, f, step = token[there], latent[there], f[there], step[there]
        if not len(step):
            return
        order = (token * len(self.moved) + step).argsort()
        token = token[order]
        moves = torch.bincount(token, minlength=len(e))
        moves, by_moves = moves.sort(descending=True)
        place = torch.empty_like(by_moves)
        place[by_moves] = torch.arange(len(e), device=e.device)
        sizes = torch.empty_like(moves)
        sizes[by_moves] = moves
        turn = torch.arange(len(token), device=e.device) - (sizes.cumsum(0) - sizes)[token]
        at_turn = torch.bincount(turn)
        ends = at_turn.cumsum(0)
        by_turn = torch.empty_like(order)
        by_turn[(ends - at_turn)[turn] + place[token]] = order
        step = step[by_turn]
        norms = self._norms(e[by_moves], latent[by_turn], (f[by_turn] * self.sign[step])[:, None], ends.tolist())
        norms = torch.cat([error[by_moves], norms.double()])
        # The norm before a move stands one turn earlier: turns lie one after the other, the residuals' own first.
        back = torch.cat([moves.new_tensor([len(e)]), at_turn[:-1]]).repeat_interleave(at_turn)
        before = norms[torch.arange(len(e), len(norms), device=e.device) - back]
        self.change.index_add_(0, step, norms[len(e) :] - before)

    def _norms(
        self,
        r: Float[Tensor, "tokens d_in"],
        latent: Int[Tensor, " nnz"],
        c: Float[Tensor, "nnz 1"],
        ends: list[int],
    ) -> Float[Tensor, " nnz"]:
        """‖r‖² after every move; `r` is used up."""
        import torch

        norms = torch.empty(len(latent), dtype=r.dtype, device=r.device)
        w, start = torch.empty_like(r), 0
        for end in ends:
            here, rows = r[: end - start], w[: end - start]
            torch.index_select(self.W, 0, latent[start:end], out=rows)
            here.addcmul_(rows, c[start:end], value=-1)
            torch.linalg.vector_norm(here, dim=1, out=norms[start:end])
            start = end
        return norms.square_()

    def path(self, sample: PairSample, start: Tensor, count: Tensor, moved: Tensor, drift: float) -> Path:
        """Sums after every number of steps; `moved` is D·Σ s f w of every latent."""
        import numpy as np

        schedule, sign = self.schedule, self.sign.double()

        def running(first: float, changes: Tensor) -> np.ndarray:
            return np.concatenate([[first], first + np.cumsum(changes.cpu().numpy())])

        sse0, along0, scale_squared = start.tolist()
        enters = schedule.enters.astype(np.int64)
        n_old = schedule.F0 - np.concatenate([[0], np.cumsum(1 - enters)])
        n_new = np.concatenate([[0], np.cumsum(enters)])
        beta = n_new / np.maximum(1, n_old + n_new)
        along = running(along0, -sign * moved[self.moved])
        sse = running(sse0, self.change) - 2 * beta * along + beta**2 * drift * scale_squared
        active0 = float(count[: schedule.F0].sum())
        active = np.rint(running(active0, sign * count[self.moved])).astype(np.int64)
        return Path(sse, active, n_old, n_new, sample.n_tokens, sample.elements)
