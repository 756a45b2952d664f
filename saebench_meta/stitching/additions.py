"""What each latent of S1 does when it alone is added to S0 (paper, figure 4; post, "Can we add features"), all at once.

With e the residual of S0, s the tokens' scale, f and w the latent's codes and direction, and the bias moving by
δ = (b1 − b0)/(F0 + 1) (paper, equation 5)::

    ‖e − f w − s δ‖² − ‖e‖² = −2 f w·e + f²‖w‖² + 2 s f w·δ − 2 s δ·e + s²‖δ‖²

The products w·e of all latents with the tokens on which they are active are the gradient of one sparse decode.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from saebench_meta.stitching.sample import PairChunk, PairSample, products, residual, squared_norms, times

if TYPE_CHECKING:
    import numpy as np
    import torch
    from jaxtyping import Float
    from torch import Tensor


@dataclass(frozen=True, eq=False)
class Additions:
    """Sums over the tokens of each group of documents, in float64.

    Attributes:
        elements: tokens × d_in of the whole sample; Σ‖x − x̂‖² over it is an MSE.
        dsse: change of S0's Σ‖x − x̂‖² when the latent alone is added.
        count: tokens on which the latent is active.
        err_old, err_new: Σ‖x − x̂‖² of S0 and of S1 over the tokens on which it is active.
        tokens, sse_old, sse_new: of all tokens of the group.
    """

    elements: int
    dsse: Float[np.ndarray, "groups F1"]
    count: Float[np.ndarray, "groups F1"]
    err_old: Float[np.ndarray, "groups F1"]
    err_new: Float[np.ndarray, "groups F1"]
    tokens: Float[np.ndarray, " groups"]
    sse_old: Float[np.ndarray, " groups"]
    sse_new: Float[np.ndarray, " groups"]


class Sums:
    """Sums over groups of documents in float64, by name."""

    def __init__(self, groups: int, device: torch.device) -> None:
        self._groups, self._device = groups, device
        self._sums: dict[str, Tensor] = {}

    def add(self, name: str, group: Tensor, values: Tensor, column: Tensor | None = None, width: int = 1) -> None:
        """Add `values`, one number or one row of numbers each, where (group, column) say; one column if none is given.

        A name always comes with the same width and the same length of rows.
        """
        import torch

        if name not in self._sums:
            shape = (self._groups * width, *values.shape[1:])
            self._sums[name] = torch.zeros(shape, dtype=torch.float64, device=self._device)
        place = group if column is None else group * width + column
        self._sums[name].index_add_(0, place, values.double())

    def __getitem__(self, name: str) -> Tensor:
        """(groups, width, …)."""
        found = self._sums[name]
        return found.view(self._groups, -1, *found.shape[1:])


def additions(sample: PairSample) -> Additions:
    """Every latent of S1 added to S0 by itself, exactly; costs about as much as decoding S0 once and S1 twice."""
    s1, s0 = sample.pair.sae, sample.pair.reference
    delta = (s1.b_dec.double() - s0.b_dec.double()) / (s0.d_sae + 1)
    sums = Sums(sample.n_groups, s1.device)
    square = squared_norms(s1.W_dec)
    for block in sample.blocks():
        _see(sums, sample, block, square, delta)
    change, first, count, err_old, err_new = sums["latents"].unbind(-1)
    tokens, sse_old, sse_new, e_delta, scale_squared = sums["tokens"].squeeze(1).unbind(-1)
    shift = (delta @ delta) * scale_squared - 2 * e_delta
    dsse = change + 2 * first * products(s1.W_dec, delta) + shift[:, None]
    arrays = (dsse, count, err_old, err_new, tokens, sse_old, sse_new)
    return Additions(sample.elements, *(a.cpu().numpy() for a in arrays))


def _see(sums: Sums, sample: PairSample, block: PairChunk, square: Tensor, delta: Tensor) -> None:
    """Sums of a block: by latent the change without the bias, Σ s f, tokens, errors; by group errors, bias terms."""
    import torch

    s1, s0 = sample.pair.sae, sample.pair.reference
    e0 = residual(block, block.old.decode(s0.W_dec), s0.b_dec)
    decoded, along = block.new.dots(s1.W_dec)
    e1 = residual(block, decoded, s1.b_dec)
    group, scale = sample.group(block), block.scale
    error0, error1 = (torch.linalg.vecdot(e, e).double() for e in (e0, e1))
    rows, cols, f = block.new.rows, block.new.cols.long(), block.new.values.double()
    change = f * (f * square[cols] - 2 * along(e0).double())
    per_entry = (change, times(f, scale, rows), torch.ones_like(f), error0[rows], error1[rows])
    sums.add("latents", group[rows], torch.stack(per_entry, 1), cols, s1.d_sae)
    drift = times((e0 @ delta.to(e0)).double(), scale)
    ones = torch.ones_like(error0)
    per_token = (ones, error0, error1, drift, times(times(ones, scale), scale))
    sums.add("tokens", group, torch.stack(per_token, 1))
