"""Every component swapped on S0 alone: its latents of S0 out, its latents of S1 in (paper, figure 17).

With e the residual of S0, g_t = Σ_in f w − Σ_out f w what the swap adds to token t's reconstruction, s the scale, and
δ = β(b1 − b0) how far the bias moves (paper, equation 5: β = n_in / (F0 − n_out + n_in))::

    ‖e − g − s δ‖² − ‖e‖² = −2 e·g + ‖g‖² + 2 s g·δ − 2 s e·δ + s²‖δ‖²

‖g‖² is taken apart only on tokens where several latents of one component are active.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from saebench_meta.stitching.additions import Sums
from saebench_meta.stitching.graph import Components
from saebench_meta.stitching.sample import PairChunk, PairSample, products, residual, squared_norms, stacked, times

if TYPE_CHECKING:
    import numpy as np
    from jaxtyping import Float, Int
    from torch import Tensor

BLOCK_ELEMENTS = 2**24
"""Numbers of g worked out at once."""


@dataclass(frozen=True, eq=False)
class Swaps:
    """Sums over the tokens of each group of documents, in float64.

    Attributes:
        elements: tokens × d_in of the whole sample.
        dsse: change of S0's Σ‖x − x̂‖² when the component alone is swapped.
        dactive: change of the number of active latents, summed over tokens.
        tokens, sse_old: of all tokens of the group, under S0.
    """

    elements: int
    dsse: Float[np.ndarray, "groups components"]
    dactive: Float[np.ndarray, "groups components"]
    tokens: Float[np.ndarray, " groups"]
    sse_old: Float[np.ndarray, " groups"]


def swaps(sample: PairSample, parts: Components) -> Swaps:
    """Every component swapped by itself on S0, exactly."""
    import torch

    s1, s0 = sample.pair.sae, sample.pair.reference
    made = _Swapping(sample, parts)
    for block in sample.blocks():
        made.see(block)
    change, active, along = made.sums["components"][:, : parts.n].unbind(-1)
    tokens, sse_old, e_drift, scale_squared = made.sums["tokens"].squeeze(1).unbind(-1)
    beta = torch.from_numpy(parts.n_new / (s0.d_sae - parts.n_old + parts.n_new)).to(s1.device)
    drift = s1.b_dec.double() - s0.b_dec.double()
    shift = beta**2 * (drift @ drift) * scale_squared[:, None] - 2 * beta * e_drift[:, None]
    dsse = change + 2 * beta * along + shift
    return Swaps(sample.elements, *(a.cpu().numpy() for a in (dsse, active, tokens, sse_old)))


class _Swapping:
    """Sums by component: change without the bias, active latents, D·Σ s g."""

    def __init__(self, sample: PairSample, parts: Components) -> None:
        import numpy as np
        import torch

        W = stacked(sample.pair)
        self.sample, self.W, self.n = sample, W, max(1, parts.n)
        self.component = torch.from_numpy(np.concatenate([parts.old, parts.new])).to(W.device)
        self.square = squared_norms(W)
        self.drift = sample.pair.sae.b_dec.double() - sample.pair.reference.b_dec.double()
        self.along = products(W, self.drift)
        self.sums = Sums(sample.n_groups, W.device)

    def see(self, block: PairChunk) -> None:
        """Add a block."""
        import torch

        s1, s0 = self.sample.pair.sae, self.sample.pair.reference
        decoded, of_old = block.old.dots(s0.W_dec)
        e = residual(block, decoded, s0.b_dec)
        of_entries = torch.cat([of_old(e), block.new.dots(s1.W_dec)[1](e)]).double()
        token = torch.cat([block.old.rows, block.new.rows])
        latent = torch.cat([block.old.cols.long(), block.new.cols.long() + s0.d_sae])
        c = torch.cat([-block.old.values, block.new.values])
        group, scale = self.sample.group(block), block.scale
        inside = self.component[latent] >= 0
        token, latent, c = token[inside], latent[inside], c[inside]
        component, double = self.component[latent], c.double()
        active = torch.where(latent < s0.d_sae, -1.0, 1.0).double()
        per_entry = (-2 * double * of_entries[inside], active, times(double, scale, token) * self.along[latent])
        self.sums.add("components", group[token], torch.stack(per_entry, 1), component, self.n)
        self._squares(group, token, latent, c, component)
        error = torch.linalg.vecdot(e, e).double()
        along = times((e @ self.drift.to(e)).double(), scale)
        ones = torch.ones_like(error)
        self.sums.add("tokens", group, torch.stack([ones, error, along, times(times(ones, scale), scale)], 1))

    def _add_squares(self, group: Tensor, place: Tensor, squares: Tensor) -> None:
        import torch

        columns = (squares, torch.zeros_like(squares), torch.zeros_like(squares))
        self.sums.add("components", group[place // self.n], torch.stack(columns, 1), place % self.n, self.n)

    def _squares(
        self,
        group: Int[Tensor, " tokens"],
        token: Int[Tensor, " nnz"],
        latent: Int[Tensor, " nnz"],
        c: Float[Tensor, " nnz"],
        component: Int[Tensor, " nnz"],
    ) -> None:
        """Add ‖g_t‖² of every component and token on which some latent of it is active."""
        import torch
        from torch.nn import functional

        place, order = (token * self.n + component).sort()
        place, sizes = torch.unique_consecutive(place, return_counts=True)
        starts = sizes.cumsum(0) - sizes
        alone = sizes == 1
        one = order[starts[alone]]
        self._add_squares(group, place[alone], c[one].double().square() * self.square[latent[one]])
        place, sizes, starts = place[~alone], sizes[~alone], starts[~alone]
        rows = max(1, BLOCK_ELEMENTS // self.W.shape[1])
        for lo in range(0, len(place), rows):
            part = slice(lo, lo + rows)
            entries = order[torch.repeat_interleave(starts[part], sizes[part]) + _counted(sizes[part])]
            g = functional.embedding_bag(
                latent[entries],
                self.W,
                sizes[part].cumsum(0) - sizes[part],
                mode="sum",
                per_sample_weights=c[entries].to(self.W),
            )
            self._add_squares(group, place[part], torch.linalg.vecdot(g, g).double())


def _counted(sizes: Int[Tensor, " bags"]) -> Int[Tensor, " nnz"]:
    """0, 1, … within each bag."""
    import torch

    total = torch.arange(int(sizes.sum()), device=sizes.device)
    return total - torch.repeat_interleave(sizes.cumsum(0) - sizes, sizes)
