"""Steps of folding that several loaders share, in place or block by block: a second copy of a matrix is never made."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

BLOCK = 1 << 19
"""Values of a matrix held in float64 at once."""


def left_product(b: Float[Tensor, " rows"], W: Float[Tensor, "rows cols"]) -> Float[Tensor, " cols"]:
    """`b @ W` in float64: what encoding loses when `b_dec` is no longer subtracted."""
    import torch

    total = torch.zeros(W.shape[1], dtype=torch.float64)
    step = max(1, BLOCK // max(1, W.shape[1]))
    for start in range(0, W.shape[0], step):
        total += b[start : start + step].double() @ W[start : start + step].double()
    return total


def fold_decoder_norms(
    W_enc: Float[Tensor, "d_in d_sae"], b_enc: Float[Tensor, " d_sae"], W_dec: Float[Tensor, "d_sae d_in"]
) -> None:
    """W_enc·n, b_enc·n, W_dec/n with n = ‖w_i‖, in place; a row of zeros stays as it is."""
    import torch

    step = max(1, BLOCK // max(1, W_dec.shape[1]))
    norms = torch.cat([rows.double().norm(dim=1) for rows in torch.split(W_dec, step)])
    norms[norms == 0] = 1
    W_enc.mul_(norms.to(W_enc.dtype))
    b_enc.mul_(norms.to(b_enc.dtype))
    W_dec.div_(norms.to(W_dec.dtype)[:, None])
