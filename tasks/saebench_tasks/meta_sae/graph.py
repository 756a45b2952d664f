"""Which latents belong together: by a shared meta-latent, or by a latent of a smaller SAE near to both (post).

    meta graph        i — j   when some meta-latent is active on both
    cosine graph      i — j   when both have cosine > tau with one latent of the reference

tau is set so that the second graph has as nearly as possible as many edges as the first. Their overlap is
2 |both| / (|first| + |second|), which is the share of edges in common where they are equally many. Two graphs of these
sizes with nodes put together at random share 2 p q / (p + q), p and q the shares of all pairs that are edges.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from jaxtyping import Float

NODES = 8192
"""Latents looked at, drawn where there are more: the overlap among them estimates that among all."""


@dataclass(frozen=True)
class Overlap:
    """Two graphs on the same latents.

    Attributes:
        meta_edges, cosine_edges, both: numbers of edges.
        tau: of the cosine graph.
    """

    nodes: int
    meta_edges: int
    cosine_edges: int
    both: int
    tau: float

    @property
    def share(self) -> float | None:
        total = self.meta_edges + self.cosine_edges
        return 2 * self.both / total if total else None

    @property
    def chance(self) -> float | None:
        """What graphs of these sizes share on average when the latents of one are relabelled at random."""
        pairs, total = self.nodes * (self.nodes - 1) / 2, self.meta_edges + self.cosine_edges
        return 2 * self.meta_edges * self.cosine_edges / (pairs * total) if total else None


def overlap(active: Any, cosine: Float[np.ndarray, "nodes latents"]) -> Overlap:
    """The meta graph against the cosine graph of equal density.

    Args:
        active: scipy sparse (nodes, meta_latents), non-zero where a meta-latent is active.
        cosine: of every latent with every latent of the reference.
    """
    meta = _edges(active)
    tau, other = _dense_as(meta.nnz, cosine)
    both = meta.multiply(other).nnz
    return Overlap(len(cosine), meta.nnz // 2, other.nnz // 2, both // 2, tau)


def _edges(member: Any) -> Any:
    """Adjacency (nodes, nodes) of nodes that share a column; both directions of an edge, none to itself."""
    from scipy import sparse

    ones = sparse.csr_array(member != 0, dtype=np.float32)
    shared = sparse.csr_array(ones @ ones.T)
    shared.setdiag(0)
    shared.eliminate_zeros()
    shared.data[:] = 1
    return shared


def _dense_as(entries: int, cosine: np.ndarray) -> tuple[float, Any]:
    """tau and the cosine graph whose number of entries is nearest to that asked for.

    Searched from the largest cosine down in steps that double, so that no graph much denser than that is ever made.
    """
    from scipy import sparse

    values = np.unique(cosine)[::-1]

    def graph(rank: int) -> Any:
        """With the `rank` largest distinct cosines."""
        bound = values[rank - 1] if rank else np.inf
        return _edges(sparse.csr_array(cosine >= bound))

    low, step = 0, 1
    while low + step < len(values) and graph(low + step).nnz < entries:
        low, step = low + step, 2 * step
    high = min(low + step, len(values))
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if graph(middle).nnz < entries else (low, middle)
    best = min((low, high), key=lambda rank: abs(graph(rank).nnz - entries))
    tau = values[best] if best < len(values) else -1.0
    return float(tau), graph(best)
