"""Cosines between the decoder directions of two dictionaries, without ever keeping the whole matrix of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from saebench_meta.errors import SaebenchError

if TYPE_CHECKING:
    import numpy as np
    from jaxtyping import Float, Int
    from torch import Tensor

BLOCK = 4096
"""Rows per block: one block of cosines is then 64 MiB in float32."""
MARGIN = 1e-5
"""How far a float32 cosine may be from the exact one: pairs this near a threshold are decided in float64."""
MAX_EDGES = 20_000_000
"""Pairs of latents kept at once: half a gigabyte."""


@dataclass(frozen=True, eq=False)
class Edges:
    """Pairs of rows of two matrices, ordered by (a, b), with the cosine between them."""

    a: Int[np.ndarray, " edges"]
    b: Int[np.ndarray, " edges"]
    cosine: Float[np.ndarray, " edges"]


@dataclass(frozen=True, eq=False)
class Similarity:
    """How the rows of two matrices A and B lie to each other.

    Attributes:
        max_a, nearest_a: largest cosine of every row of A with any row of B, and which row that is.
        max_b, nearest_b: the same the other way round.
        edges: all pairs whose cosine is above the threshold asked for. A row of A has an edge exactly when `max_a` is
            above the threshold, and so for B.
    """

    max_a: Float[np.ndarray, " latents_a"]
    nearest_a: Int[np.ndarray, " latents_a"]
    max_b: Float[np.ndarray, " latents_b"]
    nearest_b: Int[np.ndarray, " latents_b"]
    edges: Edges


def similarity(
    A: Float[Tensor, "latents_a d_in"],
    B: Float[Tensor, "latents_b d_in"],
    theta: float | None = None,
    *,
    block: int = BLOCK,
) -> Similarity:
    """Nearest rows in both directions, and the pairs above a threshold, in one pass over blocks of cosines.

    The search runs in float32 on the device of `A`; what was found, and every pair near the threshold, is worked out
    again in float64. A zero row has cosine 0 with everything.

    Args:
        theta: pairs with a cosine strictly above it are listed; None lists none.

    Raises:
        ValueError: the shapes do not fit.
        SaebenchError: more than `MAX_EDGES` pairs lie above theta.
    """
    import numpy as np
    import torch

    _check_shapes("similarity", A, B, block)
    rows, directions = _directions(A, block), _directions(B.to(A.device), block)
    best_a, best_b = _Best(len(A), A.device), _Best(len(B), A.device)
    pairs: list[Tensor] = []
    for a in range(0, len(A), block):
        for b in range(0, len(B), block):
            cosine = rows[a : a + block] @ directions[b : b + block].T
            best_a.see(cosine, a, b, dim=1)
            best_b.see(cosine, b, a, dim=0)
            if theta is not None:
                pairs.append((cosine > theta - MARGIN).nonzero().cpu() + torch.tensor([a, b]))
                if sum(map(len, pairs)) > MAX_EDGES:
                    raise SaebenchError(
                        f"more than {MAX_EDGES:,} pairs of latents have a cosine above {theta:g}: "
                        "give a larger threshold"
                    )
    edges = _edges(A, B, torch.cat(pairs) if pairs else torch.zeros(0, 2, dtype=torch.int64), theta, block)
    max_a = _paired_cosine(A, B, best_a.index, block).cpu().numpy()
    max_b = _paired_cosine(B.to(A.device), A, best_b.index, block).cpu().numpy()
    nearest_a, nearest_b = best_a.index.cpu().numpy(), best_b.index.cpu().numpy()
    by_b = np.lexsort((edges.a, edges.b))
    _sharpen(max_a, nearest_a, edges.a, edges.b, edges.cosine)
    _sharpen(max_b, nearest_b, edges.b[by_b], edges.a[by_b], edges.cosine[by_b])
    return Similarity(max_a, nearest_a, max_b, nearest_b, edges)


def _directions(W: Float[Tensor, "rows d_in"], block: int) -> Float[Tensor, "rows d_in"]:
    """Unit rows in float32, of which only a block at a time is in float64."""
    import torch

    parts = [_unit(part).float() for part in torch.split(W, block)]
    return torch.cat(parts) if parts else W.float()


class _Best:
    """The largest value seen of every row, and where."""

    def __init__(self, n: int, device: object) -> None:
        import torch

        self.value = torch.full((n,), -torch.inf, device=device)  # type: ignore[call-overload]
        self.index = torch.zeros(n, dtype=torch.int64, device=device)  # type: ignore[call-overload]

    def see(self, cosine: Tensor, start: int, other: int, dim: int) -> None:
        """A block of cosines, whose rows (or columns) start at `start` and whose other side starts at `other`."""
        import torch

        top = cosine.max(dim=dim)
        here = slice(start, start + len(top.values))
        better = top.values > self.value[here]
        self.value[here] = torch.where(better, top.values, self.value[here])
        self.index[here] = torch.where(better, top.indices + other, self.index[here])


def _edges(A: Tensor, B: Tensor, pairs: Tensor, theta: float | None, block: int) -> Edges:
    """The pairs whose exact cosine is above theta, in order."""
    import numpy as np
    import torch

    pairs = pairs[torch.from_numpy(np.lexsort((pairs[:, 1].numpy(), pairs[:, 0].numpy())))]
    cosine = torch.zeros(len(pairs), dtype=torch.float64)
    for start in range(0, len(pairs), block):
        a, b = pairs[start : start + block].T
        cosine[start : start + block] = (_unit(A[a.to(A.device)]).cpu() * _unit(B[b.to(B.device)]).cpu()).sum(1)
    cosine = cosine.clamp(-1, 1)
    keep = cosine > (2.0 if theta is None else theta)
    a, b = pairs[keep].T.numpy()
    return Edges(a, b, cosine[keep].numpy())


def _sharpen(best: np.ndarray, nearest: np.ndarray, row: np.ndarray, other: np.ndarray, cosine: np.ndarray) -> None:
    """Of rows that have edges, take the best of those, exact as they are; rows come in ascending order."""
    import numpy as np

    order = np.lexsort((other, -cosine, row))
    rows, first = np.unique(row[order], return_index=True)
    best[rows], nearest[rows] = cosine[order][first], other[order][first]


def _check_shapes(name: str, A: Tensor, B: Tensor, block: int) -> None:
    if A.ndim != 2 or B.ndim != 2 or A.shape[1] != B.shape[1] or B.shape[0] == 0 or block < 1:
        raise ValueError(f"{name}: shapes {tuple(A.shape)} and {tuple(B.shape)} with block {block} do not fit")


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
    _check_shapes("max_cosine", A, B, block)
    best = _Best(A.shape[0], A.device)
    for b in range(0, B.shape[0], block):
        directions = _unit(B[b : b + block].to(A.device)).float()
        for a in range(0, A.shape[0], block):
            best.see(_unit(A[a : a + block]).float() @ directions.T, a, b, dim=1)
    return _paired_cosine(A, B, best.index, block), best.index


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
