"""Which latents are active: the largest pre-activations of each token or of a whole batch, or all above a bound.

Choices are places in the flattened (batch, d_sae) matrix of pre-activations, in ascending order of rows. All are exact.
"""

from __future__ import annotations

import math
import threading
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.nn.functional import pad

if TYPE_CHECKING:
    from collections.abc import Sequence

    from jaxtyping import Bool, Float, Int
    from torch import Tensor

    from saebench_meta.training.trainable import Processes

SPARSE_SHARE = 0.04
"""Share of active entries above which dense products are faster: measured at d_in 768 (3 %) and 128 (8 %)."""
SAMPLE = 400
"""How many of the largest to expect among the pre-activations looked at to guess where the largest begin."""
MARGINS = (1.25, 2.5, math.inf)
"""How many candidates to ask for, as multiples of those wanted, one after the other until they suffice."""


def sizes_fixed(x: Tensor) -> bool:
    """Whether numbers of entries must not depend on values: on a GPU, where to read one is to wait for it."""
    return x.is_cuda


def top_per_row(pre: Float[Tensor, "batch d_sae"], k: int) -> Int[Tensor, " batch_k"]:
    """Places of the k largest of each row; some may be negative."""
    cols = pre.topk(k, dim=1, sorted=False).indices.sort(1).values
    return (cols + torch.arange(len(pre), device=pre.device)[:, None] * pre.shape[1]).view(-1)


def top_of_batch(pre: Float[Tensor, "batch d_sae"], k: int, processes: Processes) -> Int[Tensor, " nnz"]:
    """Places of the k·batch largest of the whole batch, over all processes, that are positive (paper, §6).

    Exact: a guess from a sample only narrows down where to look. Of equal values those at lower places are kept, in
    earlier processes first. All processes have equally many rows.
    """
    flat, n = pre.view(-1), k * len(pre) * processes.count
    if sizes_fixed(flat) and processes.count == 1:
        return flat.topk(min(n, len(flat)), sorted=False).indices.sort().values
    share = n / (len(flat) * processes.count)
    sample = processes.gather(flat[:: _stride(int(n / SAMPLE), pre.shape[1])]).view(-1)
    for margin in MARGINS:
        rank = math.ceil(margin * share * len(sample)) if margin < math.inf else len(sample)
        bound = float(sample.kthvalue(len(sample) - rank + 1).values) if rank < len(sample) else 0.0
        places = _places_above(flat, max(bound, 0.0))
        if not bound > 0 or int(processes.sum(torch.tensor(len(places), device=flat.device))) >= n:
            break
    return places[_strongest(flat.take(places), n, processes)]


def above(
    pre: Float[Tensor, "batch d_sae"], bound: float | Float[Tensor, " d_sae"], share: float = SPARSE_SHARE
) -> Int[Tensor, " nnz"] | Bool[Tensor, "batch d_sae"]:
    """Where `pre > bound`: places; a mask where they are more than `share` of all, and wherever sizes are fixed."""
    if sizes_fixed(pre):
        return pre > bound
    mask = _greater(pre, bound)
    if np.count_nonzero(mask) > share * mask.size:
        return torch.from_numpy(mask.copy())
    return torch.from_numpy(np.flatnonzero(mask))


def _stride(wanted: int, d_sae: int) -> int:
    """Steps in which to sample the flattened matrix, at least those wanted: they come past all latents alike."""
    stride = max(1, wanted)
    while math.gcd(stride, d_sae) > 1:
        stride += 1
    return stride


def _strongest(values: Float[Tensor, " candidates"], n: int, processes: Processes) -> Bool[Tensor, " candidates"]:
    """Which of this process's values are among the n largest of all processes, and positive."""
    own, width = len(values), int(processes.max(torch.tensor(len(values), device=values.device)))
    every = processes.gather(pad(values, (0, width - own))).view(-1)
    keep = every > 0
    if int(keep.sum()) > n:
        least = every.kthvalue(len(every) - n + 1).values
        keep = every > least
        keep[(every == least).nonzero().view(-1)[: n - int(keep.sum())]] = True
    return keep[processes.rank * width :][:own]


def _places_above(flat: Float[Tensor, " n"], bound: float) -> Int[Tensor, " places"]:
    if flat.is_cuda or flat.dtype == torch.bfloat16:
        return (flat > bound).nonzero().view(-1)
    return torch.from_numpy(np.flatnonzero(_greater(flat, bound)))


def _greater(x: Tensor, bound: float | Tensor) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """`x > bound` in memory that the next call takes again; numpy compares and finds several times faster."""
    x, mask = x.detach(), scratch("mask", x.shape, torch.bool).numpy()
    if x.dtype == torch.bfloat16:
        x = x.float()
    limit = bound.detach().to(x.dtype).numpy() if isinstance(bound, torch.Tensor) else x.numpy().dtype.type(bound)
    np.greater(x.numpy(), limit, out=mask)
    return mask


_held = threading.local()


def scratch(name: str, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """Memory of this thread on the CPU, taken again by the next call of that name: fresh pages cost a tenth of a step.

    As much as the largest call so far needed is held.
    """
    size = math.prod(shape)
    held: Tensor | None = _held.__dict__.get(f"{name} {dtype}")
    if held is None or held.numel() < size:
        held = _held.__dict__[f"{name} {dtype}"] = torch.empty(size, dtype=dtype)
    return held[:size].view(*shape)
