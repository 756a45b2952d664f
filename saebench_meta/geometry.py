"""Cosines between the decoder directions of two dictionaries, without ever keeping the whole matrix of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jaxtyping import Float, Int
    from torch import Tensor

BLOCK = 4096
"""Rows per block: one block of cosines is then 64 MiB in float32."""


def max_cosine(
    A: Float[Tensor, "latents_a d_in"], B: Float[Tensor, "latents_b d_in"], *, block: int = BLOCK
) -> tuple[Float[Tensor, " latents_a"], Int[Tensor, " latents_a"]]:
    """Largest cosine of every row of `A` with any row of `B`, and which row of `B` it is (paper, equation 6).

    The search runs in float32, `block × block` cosines at a time, on the device of `A`; the cosine with the row that
    was found is then worked out again in float64, so that comparing it with a threshold does not hang on rounding.
    A zero row has no direction: its cosine with everything is 0.

    Returns:
        (values, argmax): float64 in [−1, 1] and int64, both of shape (latents_a,).

    Raises:
        ValueError: if `B` has no rows, the widths differ or `block` is not positive.
    """
    import torch

    if A.ndim != 2 or B.ndim != 2 or A.shape[1] != B.shape[1] or B.shape[0] == 0 or block < 1:
        raise ValueError(f"max_cosine: shapes {tuple(A.shape)} and {tuple(B.shape)} with block {block} do not fit")
    nearest = torch.zeros(A.shape[0], dtype=torch.int64, device=A.device)
    best = torch.full((A.shape[0],), -torch.inf, device=A.device)
    for b in range(0, B.shape[0], block):
        directions = _unit(B[b : b + block].to(A.device)).float()
        for a in range(0, A.shape[0], block):
            top = (_unit(A[a : a + block]).float() @ directions.T).max(dim=1)
            here = slice(a, a + block)
            better = top.values > best[here]
            best[here] = torch.where(better, top.values, best[here])
            nearest[here] = torch.where(better, top.indices + b, nearest[here])
    return _paired_cosine(A, B, nearest, block), nearest


def _unit(W: Float[Tensor, "rows d_in"]) -> Float[Tensor, "rows d_in"]:
    """Rows scaled to norm 1, in float64. Divided by the largest entry first, lest the norm of tiny rows underflow."""
    import torch

    W = W.double()
    largest = W.abs().amax(dim=1, keepdim=True)
    W = W / torch.where(largest > 0, largest, 1)
    norm = W.norm(dim=1, keepdim=True)
    return W / torch.where(norm > 0, norm, 1)


def _paired_cosine(
    A: Float[Tensor, "rows d_in"], B: Float[Tensor, "latents_b d_in"], index: Int[Tensor, " rows"], block: int
) -> Float[Tensor, " rows"]:
    """Cosine of each row of `A` with row `index` of `B`, in float64."""
    import torch

    values = torch.zeros(A.shape[0], dtype=torch.float64, device=A.device)
    for start in range(0, A.shape[0], block):
        here = slice(start, start + block)
        partners = B[index[here].to(B.device)].to(A.device)
        values[here] = (_unit(A[here]) * _unit(partners)).sum(dim=1)
    return values.clamp(-1, 1)
