"""Orthogonal matching pursuit of many vectors at once (Pati et al. 1993): k directions each, chosen greedily."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

CHUNK_ELEMENTS = 2**25
"""Products with the dictionary held at once."""


def orthogonal_matching_pursuit(
    x: Float[Tensor, "rows d_in"], dictionary: Float[Tensor, "latents d_in"], k: int
) -> Float[Tensor, "rows d_in"]:
    """The projection of every row on the k directions chosen for it.

    Each step adds the direction with the largest |cosine| to what is left, then fits all chosen ones by least squares;
    coefficients may be negative.

    Args:
        dictionary: rows of norm 1; rows of zeros are never chosen.

    Returns:
        float64.
    """
    import torch

    atoms = dictionary.double()
    steps = min(k, len(atoms))
    parts = [_pursue(chunk.double(), atoms, steps) for chunk in torch.split(x, max(1, CHUNK_ELEMENTS // len(atoms)))]
    return torch.cat(parts) if parts else x.double()


def _pursue(x: Tensor, atoms: Tensor, steps: int) -> Tensor:
    """Of one chunk. What is chosen is kept as an orthonormal basis, in which the fit is a projection."""
    import torch

    left, basis = x.clone(), torch.zeros(len(x), 0, x.shape[1], dtype=x.dtype, device=x.device)
    taken = torch.zeros(len(x), len(atoms), dtype=torch.bool, device=x.device)
    for _ in range(steps):
        best = (left @ atoms.T).abs().masked_fill(taken, -1).argmax(1)
        taken[torch.arange(len(x)), best] = True
        new = atoms[best]
        for _again in range(2):  # once more, since the first pass loses digits where atoms are nearly parallel
            new = new - torch.einsum("rs,rsd->rd", torch.einsum("rd,rsd->rs", new, basis), basis)
        norm = new.norm(dim=1, keepdim=True)
        new = torch.where(norm > 1e-10, new / norm.clamp_min(1e-300), 0)
        left = left - (left * new).sum(1, keepdim=True) * new
        basis = torch.cat([basis, new[:, None]], dim=1)
    return x - left
