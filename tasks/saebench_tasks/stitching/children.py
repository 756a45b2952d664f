"""Are the children of a split alternatives, or parts of one thing? How often pairs of them are active together.

A latent of S0 whose component holds it alone and several latents of S1 has split into these. If they are variants of
one concept, each on tokens of its own, two of them are together less often than by chance; if they span a subspace,
more often. By chance, given on how many of T tokens each is active, the number in common is hypergeometric::

    expected = n_a n_b / T      Jaccard = n_ab / (n_a + n_b − n_ab)      lift = n_ab / expected

p is exact and two-sided (twice the tail on the side of the observed number, at most 1) and corrected over all pairs
after Benjamini and Hochberg. Tokens are taken to be independent.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import pandas as pd
    from jaxtyping import Float, Int
    from scipy.sparse import csc_array

    from saebench_meta.context import Context
    from saebench_meta.stats import Estimate
    from saebench_meta.stitching import Components

LEVEL = 0.05
"""False discovery rate."""
MOST_IN_SPLIT, MOST = 50, 2000
"""Pairs looked at: of one split, and in all."""
BLOCK = 256
"""Pairs of columns multiplied at once."""
EXCLUDE, NEITHER, COOCCUR = "exclude", "neither", "co-occur"


@dataclass(frozen=True, eq=False)
class Pairs:
    """Pairs of latents of S1.

    Attributes:
        a, b: their numbers.
        component: the split, −1 for random pairs.
        of: how many there are, of which these are a sample where it is more.
    """

    a: Int[np.ndarray, " pairs"]
    b: Int[np.ndarray, " pairs"]
    component: Int[np.ndarray, " pairs"]
    of: int


@dataclass(frozen=True, eq=False)
class Together:
    """How often both latents of each pair are active.

    Attributes:
        n_a, n_b, n_ab: tokens on which one, the other and both are active.
        expected: n_a n_b / tokens.
        p, q: before and after correction; 1 where a latent is never active.
        tested: both latents are active somewhere.
    """

    pairs: Pairs
    n_a: Int[np.ndarray, " pairs"]
    n_b: Int[np.ndarray, " pairs"]
    n_ab: Int[np.ndarray, " pairs"]
    expected: Float[np.ndarray, " pairs"]
    p: Float[np.ndarray, " pairs"]
    q: Float[np.ndarray, " pairs"]

    @property
    def tested(self) -> np.ndarray:
        return (self.n_a > 0) & (self.n_b > 0)

    @property
    def verdict(self) -> np.ndarray:
        """`exclude`, `co-occur` or `neither` of each pair, as text."""
        found = np.where(self.n_ab < self.expected, EXCLUDE, COOCCUR).astype(object)
        return np.where(self.q <= LEVEL, found, NEITHER)

    @property
    def log2_lift(self) -> np.ndarray:
        """NaN where the two are never together."""
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.where(self.n_ab > 0, np.log2(self.n_ab / self.expected), np.nan)

    def share(self, verdict: str, ctx: Context) -> Estimate:
        """Share of the tested pairs with that verdict."""
        n = int(self.tested.sum())
        if n == 0:
            return ctx.census(None, 0, n_unit="pairs", reason="no pair of latents that are both active")
        return ctx.census(float((self.verdict[self.tested] == verdict).mean()), n, n_unit="pairs")


def of_splits(parts: Components, rng: np.random.Generator) -> Pairs:
    """Pairs of children of the same split; a seeded sample where a split, or all of them, have too many."""
    found, of = [], 0
    for c in np.flatnonzero((parts.n_old == 1) & (parts.n_new > 1)).tolist():
        children = parts.members(c)[1]
        a, b = np.triu_indices(len(children), 1)
        of += len(a)
        some = _some(len(a), MOST_IN_SPLIT, rng)
        found.append(np.stack([children[a[some]], children[b[some]], np.full(len(some), c)]))
    together = np.concatenate([np.zeros((3, 0), dtype=np.int64), *found], axis=1)
    a, b, component = together[:, _some(together.shape[1], MOST, rng)]
    return Pairs(a, b, component, of)


def _some(n: int, most: int, rng: np.random.Generator) -> Int[np.ndarray, " chosen"]:
    return np.arange(n) if n <= most else np.sort(rng.choice(n, most, replace=False))


def at_random(n: int, latents: int, rng: np.random.Generator) -> Pairs:
    """As many pairs of two different latents; none where there is one latent only."""
    n = n if latents > 1 else 0
    a = rng.integers(0, max(1, latents), n)
    b = (a + rng.integers(1, max(2, latents), n)) % max(1, latents)
    return Pairs(a, b, np.full(n, -1), n)


def together(pairs: Pairs, active: csc_array, latents: Int[np.ndarray, " columns"]) -> Together:
    """Counts and p of every pair.

    Args:
        active: (tokens, columns) activations.
        latents: the latent of each column, ascending.
    """
    from scipy.stats import false_discovery_control

    tokens, on = active.shape[0], active.astype(bool).astype(np.int64)
    counts = np.diff(active.indptr)
    a, b = np.searchsorted(latents, pairs.a), np.searchsorted(latents, pairs.b)
    n_ab = np.zeros(len(a), dtype=np.int64)
    for start in range(0, len(a), BLOCK):
        here = slice(start, start + BLOCK)
        n_ab[here] = (on[:, a[here]] * on[:, b[here]]).sum(axis=0)
    n_a, n_b = counts[a].astype(np.int64), counts[b].astype(np.int64)
    expected = n_a * n_b / max(1, tokens)
    p = two_sided(n_ab, n_a, n_b, tokens)
    tested, q = (n_a > 0) & (n_b > 0), np.ones(len(p))
    if tested.any():
        q[tested] = false_discovery_control(p[tested], method="bh")
    return Together(pairs, n_a, n_b, n_ab, expected, p, q)


def two_sided(
    n_ab: Int[np.ndarray, " pairs"], n_a: Int[np.ndarray, " pairs"], n_b: Int[np.ndarray, " pairs"], tokens: int
) -> Float[np.ndarray, " pairs"]:
    """Twice the hypergeometric tail on the side of the observed number, at most 1."""
    from scipy.stats import hypergeom

    fewer = n_ab < n_a * n_b / max(1, tokens)
    p = np.ones(len(n_ab))
    p[fewer] = hypergeom.cdf(n_ab[fewer], tokens, n_a[fewer], n_b[fewer])
    p[~fewer] = hypergeom.sf(n_ab[~fewer] - 1, tokens, n_a[~fewer], n_b[~fewer])
    return np.clip(2 * p, 0, 1)


def table(groups: dict[str, Together], parts: Components) -> pd.DataFrame:
    """One row a pair."""
    import pandas as pd

    frames = []
    for name, found in groups.items():
        pairs = found.pairs
        parent = np.array([parts.members(c)[0][0] if c >= 0 else -1 for c in pairs.component.tolist()], dtype=np.int64)
        columns = {
            "pairs": name,
            "parent": parent,
            "a": pairs.a,
            "b": pairs.b,
            "n_a": found.n_a,
            "n_b": found.n_b,
            "n_both": found.n_ab,
            "expected": found.expected,
            "jaccard": found.n_ab / np.maximum(1, found.n_a + found.n_b - found.n_ab),
            "log2_lift": found.log2_lift,
            "p": found.p,
            "q": found.q,
            "verdict": found.verdict,
        }
        frames.append(pd.DataFrame(columns))
    return pd.concat(frames, ignore_index=True)
