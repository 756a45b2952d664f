"""Which latents of two SAEs belong together, and in which order one becomes the other. Weights only.

S0 is the SAE one starts from ("old"), S1 the one that is stitched in ("new"). Latents are joined where the cosine of
their decoder directions is above theta; the connected subgraphs are what can be swapped (paper, section 4.2).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Literal

import numpy as np

from saebench_meta.geometry import Edges

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int

Order = Literal["cosine", "random"]

NOVEL, SWAP, LEFTOVER = 0, 1, 2
"""Phases of a schedule: novel latents of S1 enter; components are swapped; latents of S0 without neighbour leave."""
PHASES = ("novel", "swap", "leftover")


@dataclass(frozen=True, eq=False)
class Components:
    """Connected subgraphs of the bipartite graph, those with an edge; numbered by their first latent of S0.

    Attributes:
        old: (F0,) component of each latent of S0, −1 where it has no neighbour.
        new: (F1,) component of each latent of S1, −1 where it is novel.
        mean_cosine: (components,) mean cosine over the edges of each.
        n_edges: (components,)
    """

    old: Int[np.ndarray, " F0"]
    new: Int[np.ndarray, " F1"]
    mean_cosine: Float[np.ndarray, " components"]
    n_edges: Int[np.ndarray, " components"]

    @property
    def n(self) -> int:
        """Number of components."""
        return len(self.n_edges)

    @cached_property
    def n_old(self) -> Int[np.ndarray, " components"]:
        """Latents of S0 in each component."""
        return np.bincount(self.old[self.old >= 0], minlength=self.n)

    @cached_property
    def n_new(self) -> Int[np.ndarray, " components"]:
        """Latents of S1 in each component."""
        return np.bincount(self.new[self.new >= 0], minlength=self.n)

    @cached_property
    def _members(self) -> tuple[list[np.ndarray], list[np.ndarray]]:
        return _split(self.old, self.n_old), _split(self.new, self.n_new)

    def members(self, component: int) -> tuple[Int[np.ndarray, " old"], Int[np.ndarray, " new"]]:
        """Latents of S0 and of S1 in a component, ascending."""
        old, new = self._members
        return old[component], new[component]


def _split(component: np.ndarray, sizes: np.ndarray) -> list[np.ndarray]:
    order = np.argsort(component, kind="stable")
    return np.split(order[len(order) - int(sizes.sum()) :], np.cumsum(sizes)[:-1]) if len(sizes) else []


def components(edges: Edges, F0: int, F1: int) -> Components:
    """Connected subgraphs of the graph whose edges join latents of S1 (`edges.a`) with latents of S0 (`edges.b`)."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    graph = coo_array((np.ones(len(edges.a), dtype=np.int8), (edges.b, F0 + edges.a)), shape=(F0 + F1, F0 + F1))
    label = connected_components(graph, directed=False)[1]
    touched = np.zeros(F0 + F1, dtype=bool)
    touched[edges.b], touched[F0 + edges.a] = True, True
    first = np.unique(label[:F0][touched[:F0]], return_index=True)
    number = np.full(label.max(initial=-1) + 1, -1)
    number[first[0][np.argsort(first[1])]] = np.arange(len(first[0]))
    of = np.where(touched, number[label], -1).astype(np.int64)
    n, at = len(first[0]), of[edges.b]
    n_edges = np.bincount(at, minlength=n)
    mean = np.bincount(at, weights=edges.cosine, minlength=n) / np.maximum(1, n_edges)
    return Components(of[:F0], of[F0:], mean, n_edges)


@dataclass(frozen=True, eq=False)
class Schedule:
    """One latent a step: a latent of S1 enters, or a latent of S0 leaves. What is not named stays as it is at first.

    Attributes:
        latent: (steps,) its number in its own SAE.
        enters: (steps,) whether it is a latent of S1 that enters.
        phase: (steps,) `NOVEL`, `SWAP` or `LEFTOVER`.
        component: (steps,) which component is being swapped, −1 outside swaps.
        F0, F1: latents of S0 and S1.
    """

    latent: Int[np.ndarray, " steps"]
    enters: Bool[np.ndarray, " steps"]
    phase: Int[np.ndarray, " steps"]
    component: Int[np.ndarray, " steps"]
    F0: int
    F1: int

    @property
    def steps(self) -> int:
        """How many latents move."""
        return len(self.latent)

    def whole(self) -> Int[np.ndarray, " points"]:
        """Numbers of steps done, from 0, at which no component is half swapped."""
        last = np.ones(self.steps + 1, dtype=bool)
        last[1:-1] = (self.component[1:] != self.component[:-1]) | (self.component[1:] < 0)
        return np.flatnonzero(last)

    def after(self, steps: int) -> tuple[Int[np.ndarray, " old"], Int[np.ndarray, " new"]]:
        """The latents of S0 and of S1 that are there after so many steps, ascending."""
        done, enters = self.latent[:steps], self.enters[:steps]
        return np.setdiff1d(np.arange(self.F0), done[~enters]), np.sort(done[enters])


def schedule(
    parts: Components,
    max_cosine: Float[np.ndarray, " F1"],
    *,
    order: Order = "cosine",
    rng: np.random.Generator | None = None,
) -> Schedule:
    """From S0 to S1: novel latents enter, then components are swapped one by one, then S0's leftovers leave.

    Under `cosine` the most novel latent comes first and the component with the highest mean cosine (post, "Can we swap
    features between SAEs?"); under `random` the same moves come in random order within each phase. A component's
    latents of S0 leave before its latents of S1 enter.

    Args:
        max_cosine: of each latent of S1 with any of S0.
        rng: draws the random order.

    Raises:
        ValueError: a random order without `rng`.
    """
    novel, leftover = np.flatnonzero(parts.new < 0), np.flatnonzero(parts.old < 0)
    if order == "random":
        if rng is None:
            raise ValueError("schedule: a random order needs rng")
        novel, turn = rng.permutation(novel), rng.permutation(parts.n)
        leftover = rng.permutation(leftover)
    else:
        novel = novel[np.argsort(max_cosine[novel], kind="stable")]
        turn = np.argsort(-parts.mean_cosine, kind="stable")
    swaps = [_swap(*parts.members(c), c) for c in turn.tolist()]
    nothing = (np.zeros(0, dtype=np.int64),) * 3
    latent, enters, component = (np.concatenate(column) for column in zip(nothing, *swaps, strict=True))
    sizes = (len(novel), len(latent), len(leftover))
    return Schedule(
        latent=np.concatenate([novel, latent, leftover]).astype(np.int64),
        enters=np.concatenate([np.ones(sizes[0]), enters, np.zeros(sizes[2])]).astype(bool),
        phase=np.repeat(np.array([NOVEL, SWAP, LEFTOVER], dtype=np.int8), sizes),
        component=np.concatenate([np.full(sizes[0], -1), component, np.full(sizes[2], -1)]).astype(np.int64),
        F0=len(parts.old),
        F1=len(parts.new),
    )


def _swap(old: np.ndarray, new: np.ndarray, component: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    enters = np.repeat([0, 1], [len(old), len(new)])
    return np.concatenate([old, new]), enters, np.full(len(enters), component)


def only_add(latents: Int[np.ndarray, " steps"], F0: int, F1: int) -> Schedule:
    """Latents of S1 enter in the order given, and nothing leaves."""
    n = len(latents)
    return Schedule(
        np.asarray(latents, dtype=np.int64),
        np.ones(n, dtype=bool),
        np.full(n, NOVEL, dtype=np.int8),
        np.full(n, -1, dtype=np.int64),
        F0,
        F1,
    )
