"""Which latents are active: from pre-activations straight to codes, without a dense matrix of codes between.

On a CPU, NumPy looks for places: it compares and searches masks in a fraction of the time torch takes there, and the k
largest of a row are found without putting the row in order. Elsewhere torch does both.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from saebench_meta.codes import Codes, places_of

if TYPE_CHECKING:
    import numpy as np
    from jaxtyping import Float, Int
    from torch import Tensor

    from saebench_meta.sae import ActivationName

GROUP = 16
"""Latents of which only the largest is looked at first; fewer where k is not small beside the number of latents."""
FEW = 512
"""Up to so many latents, all are looked at at once."""


def active_codes(
    pre: Float[Tensor, "tokens latents"],
    activation: ActivationName,
    *,
    k: int | None = None,
    threshold: Float[Tensor, " latents"] | None = None,
) -> Codes:
    """The codes of pre-activations: what `Codes.from_dense(activate(...))` gives. A NaN stays a NaN."""
    match activation:
        case "relu":
            return Codes.from_places(pre, places_of(~(pre <= 0)))
        case "jumprelu":
            assert threshold is not None
            return Codes.from_places(pre, places_of(~(pre <= threshold.clamp_min(0))))
        case "topk":
            assert k is not None
            if (places := top_places(pre, k)) is not None:
                return Codes.from_places(pre, places)
            top = pre.topk(k, dim=-1, sorted=False)
            return Codes.from_top(top.values, top.indices, pre.shape[1])


def top_places(pre: Float[Tensor, "tokens latents"], k: int) -> Int[Tensor, " nnz"] | None:
    """Where, in the flattened matrix, the k largest of each row are that are above 0; ascending.

    The k-th largest of the maxima of groups is no more than the k-th largest of all, and what lies below it is left out
    before anything is put in order.

    Returns:
        None where this cannot tell: on a GPU, in a dtype NumPy lacks, with NaNs, or with a tie for the last place.
    """
    import numpy as np
    import torch

    if pre.device.type != "cpu" or pre.dtype not in (torch.float32, torch.float64) or not pre.numel():
        return None
    x = pre.detach().contiguous().numpy()
    tokens, latents = x.shape
    best = _largest(_maxima(x, max(1, min(GROUP, latents // (2 * k))) if latents > FEW else 1), k)
    if np.isnan(best).any():
        return None
    above_zero = np.nextafter(np.zeros((), x.dtype), np.ones((), x.dtype))
    places = np.flatnonzero(x >= np.maximum(best[:, :1], above_zero))
    indptr = np.searchsorted(places, np.arange(tokens + 1) * latents)
    counts = np.diff(indptr)
    if counts.max() > k:
        rows, values = np.repeat(np.arange(tokens), counts), x.reshape(-1)[places]
        table = np.full((tokens, counts.max()), -np.inf, x.dtype)
        table[rows, np.arange(len(rows)) - indptr[rows]] = values
        places = places[values >= _largest(table, k)[rows, 0]]
        if len(places) > np.minimum(counts, k).sum():
            return None
    return torch.from_numpy(places)


def _maxima(x: Float[np.ndarray, "tokens latents"], size: int) -> Float[np.ndarray, "tokens groups"]:
    """The largest of each group of latents; those left over stand for themselves."""
    import numpy as np
    import torch

    groups = x.shape[1] // size
    if size == 1:
        return x
    # NumPy takes several times longer for this.
    whole = torch.from_numpy(x[:, : size * groups].reshape(len(x), size, groups)).amax(1).numpy()
    return whole if size * groups == x.shape[1] else np.concatenate([whole, x[:, size * groups :]], axis=1)


def _largest(x: Float[np.ndarray, "rows columns"], k: int) -> Float[np.ndarray, "rows k"]:
    """The k largest of each row, the smallest of these first, NaNs above all."""
    import numpy as np

    at = x.shape[1] - k
    return np.asarray(np.partition(x, at, axis=1)[:, at:])
