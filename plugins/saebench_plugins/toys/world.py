"""Sparse features with known directions, of which some are on only together with others.

x = Σ_i m_i d_i,   m_i = magnitude_i · (1 + spread · u)  where feature i is on, u uniform in [−1, 1];  0 elsewhere
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from saebench_meta import seeds
from saebench_meta.errors import SaebenchError

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

Relation = tuple[int, tuple[int, ...]]
"""A parent, and its children: none of them is on without it."""

ROUNDS = 2000
"""Of the search for directions in superposition; 20 in 19 dimensions are then within 1e-6 of the bound."""


@dataclass(frozen=True)
class ToyWorld:
    """Features that fire independently, apart from what `pulled` and `given` say.

    Attributes:
        name: reference, `toy:…`.
        d_in: dimensions. Directions are orthogonal where there is room, else as nearly so as found.
        probabilities: of each feature to be on by itself.
        magnitudes: of each feature when it is on; their mean where they have a spread.
        pulled: a parent is on whenever one of its children is, and otherwise with its own probability.
        given: a child is on with its own probability where its parent is on, and never elsewhere. Parents come before
            those they are grandparents of.
        spread: half the width of the magnitudes' uniform distribution, as a share of their mean; below 1.
        seed: of the directions.
        source: where the world is described.
    """

    name: str
    d_in: int
    probabilities: tuple[float, ...]
    magnitudes: tuple[float, ...]
    pulled: tuple[Relation, ...] = ()
    given: tuple[Relation, ...] = ()
    spread: float = 0.0
    seed: int = 0
    source: str = ""

    def __post_init__(self) -> None:
        n = len(self.probabilities)
        if len(self.magnitudes) != n or n == 0:
            raise SaebenchError(f"world '{self.name}' has {n} probabilities and {len(self.magnitudes)} magnitudes")
        if not all(0 <= p <= 1 for p in self.probabilities) or not 0 <= self.spread < 1:
            raise SaebenchError(f"world '{self.name}': probabilities must be from 0 to 1, spread from 0 to below 1")
        for parent, children in (*self.pulled, *self.given):
            if parent in children or not set(range(n)).issuperset((parent, *children)):
                raise SaebenchError(f"world '{self.name}': {parent} ⇐ {children} is not of {n} features")

    @cached_property
    def features(self) -> tuple[str, ...]:
        """Names."""
        return tuple(f"feature {i}" for i in range(len(self.probabilities)))

    @cached_property
    def directions(self) -> Float[Tensor, "features d_in"]:
        """True unit directions, float32."""
        return spread_out(len(self.probabilities), self.d_in, self.seed)

    def sample(self, n: int, seed: int) -> tuple[Float[Tensor, "n d_in"], Float[Tensor, "n features"]]:
        """Activations, and the magnitude of every feature in each (0: off); the same seed draws the same."""
        import torch

        g = seeds.generator(seed, "world", self.name)
        size = (n, len(self.probabilities))
        on = torch.rand(size, generator=g) < torch.tensor(self.probabilities)
        for parent, children in self.given:
            on[:, children] &= on[:, [parent]]
        for parent, children in reversed(self.pulled):
            on[:, parent] |= on[:, children].any(1)
        magnitudes = on * torch.tensor(self.magnitudes)
        if self.spread:
            magnitudes *= 1 + self.spread * (2 * torch.rand(size, generator=g) - 1)
        return magnitudes @ self.directions, magnitudes


def spread_out(n: int, d_in: int, seed: int) -> Float[Tensor, "n d_in"]:
    """Unit directions whose largest |cosine| is as small as found: orthonormal where n ≤ d_in.

    Else by projecting in turn on matrices of cosines within the Welch bound √((n − d) / (d (n − 1))) and on those of
    rank d (Tropp et al. 2005, "Designing structured tight frames via an alternating projection method"). 20 directions
    in 19 dimensions reach the bound, ±1/19; many other sizes cannot.
    """
    import torch

    g = seeds.generator(seed, "directions")
    if n <= d_in:
        columns: Tensor = torch.linalg.qr(torch.randn(d_in, n, generator=g, dtype=torch.float64)).Q
        return columns.T.float().contiguous()
    v = torch.nn.functional.normalize(torch.randn(n, d_in, generator=g, dtype=torch.float64), dim=1)
    bound = math.sqrt((n - d_in) / (d_in * (n - 1)))
    for _ in range(ROUNDS):
        cosines = (v @ v.T).clamp(-bound, bound).fill_diagonal_(1)
        values, vectors = torch.linalg.eigh(cosines)
        v = torch.nn.functional.normalize(vectors[:, -d_in:] * values[-d_in:].clamp_min(0).sqrt(), dim=1)
    return v.float()
