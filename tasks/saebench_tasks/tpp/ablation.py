"""From pooled codes to what every ablation does to every probe, in closed form.

A probe reads the mean activation x̄ of a text. Ablating latents L with the SAE's error term kept takes Σ_{l∈L} f̄_l w_l
away from it, where f̄_l is the mean over the text's tokens of the latent's code (times the token's scale where the SAE
rescales tokens). So with probe directions P the logits after any ablation follow from one product::

    logit_j(L) = x̄ · P_j + b_j − Σ_{l∈L} f̄_l (w_l · P_j)

and no token is encoded, decoded or run through the model again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int
    from torch import Tensor

    from saebench_meta.codes import Codes


def effects(
    W_dec: Float[Tensor, "d_sae d_in"], directions: Float[Tensor, "classes d_in"]
) -> Float[Tensor, "d_sae classes"]:
    """w_l · P_j: what one unit of a latent adds to each probe's logit."""
    return W_dec.double() @ directions.T


def attribution(
    codes: Codes,
    contrast: Float[Tensor, "classes texts"],
    effect: Float[Tensor, "d_sae classes"],
    *,
    positive: bool = False,
) -> Float[Tensor, "classes d_sae"]:
    """(f̄_pos − f̄_neg)(w_l · P_j) of every latent for every class (paper, equation 11).

    Args:
        codes: pooled codes of all texts of the set.
        contrast: as of `balance.contrast`; 0 for texts that are not trained on.
        positive: only latents more active on the class than elsewhere count, as in the stock protocol.
    """
    difference = codes.t_matmul(contrast.T.contiguous())
    return (difference.clamp_min(0) if positive else difference).mul(effect).T


def ranked(attribution: Float[Tensor, " d_sae"], most: int) -> Int[Tensor, " latents"]:
    """The latents with the largest attribution, at most `most`; those that do not speak for the class are left out."""
    top = attribution.topk(min(most, len(attribution)))
    return top.indices[top.values > 0]


def taken(codes: Codes, texts: Bool[Tensor, " texts"]) -> Codes:
    """The rows of some texts."""
    kept = texts[codes.rows]
    indptr = torch.nn.functional.pad(codes.indptr.diff()[texts].cumsum(0), (1, 0))
    return replace(codes, indptr=indptr, cols=codes.cols[kept], values=codes.values[kept])


def columns(codes: Codes, latents: Int[Tensor, "sets latents"]) -> Float[Tensor, "sets latents texts"]:
    """The codes of some latents, dense and in the order given; only their own entries are read. −1 stands for none."""
    view = codes.by_latent
    wanted, place = torch.unique(latents, return_inverse=True)
    counts = torch.where(wanted < 0, 0, view.indptr.diff()[wanted])
    row = torch.repeat_interleave(torch.arange(len(wanted), device=codes.device), counts)
    first = view.indptr[wanted] - (counts.cumsum(0) - counts)
    entries = first[row] + torch.arange(len(row), device=codes.device)
    dense = torch.zeros(len(wanted), codes.n_tokens, dtype=torch.float64, device=codes.device)
    dense[row, view.tokens[entries]] = view.values[entries].double()
    return dense[place]


def removed(
    f: Float[Tensor, "sets latents texts"], effect: Float[Tensor, "sets latents classes"], sizes: Sequence[int]
) -> Float[Tensor, "sets sizes texts classes"]:
    """What ablating the first n latents of each set takes from the logits, for each n of `sizes`, which ascend.

    A size beyond the number of latents takes what all of them give.
    """
    ends = [min(n, f.shape[1]) for n in sizes]
    parts = [f[:, a:b].mT @ effect[:, a:b] for a, b in zip([0, *ends[:-1]], ends, strict=True)]
    return torch.stack(parts, dim=1).cumsum(1)


def padded(sets: Sequence[Int[Tensor, " latents"]]) -> Int[Tensor, "sets latents"]:
    """Sets of latents as rows, with −1 where one has fewer than another."""
    return torch.nn.utils.rnn.pad_sequence(list(sets), batch_first=True, padding_value=-1)
