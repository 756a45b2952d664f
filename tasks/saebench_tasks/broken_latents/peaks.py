"""Activation peaks: the distribution of each latent's activations, and whether it has more than one.

For a latent with activations f > 0 on the sample, of which at most `most` are looked at, drawn by token::

    u  = log(f / max f)            where f > FLOOR · max f
    D  = dip(u + RESOLUTION · ε)   ε standard normal, one a token
    q  = p of the dip test after Benjamini and Hochberg, over the latents with `least` such activations or more

- In logarithms, because D was compared for both on toy worlds (`auc`), and does not depend on a latent's scale.
- Above a floor: a ReLU latent responds a little to nearly everything. Cut there, at 0 or at a JumpReLU's threshold, a
  density that falls from its edge has one mode, and the test finds one.
- With noise: in a toy world a latent fires at 16.6, 16.7 and 16.9 and nothing between, which are modes, but not ones
  anybody would tell apart. A normal distribution added to a unimodal one leaves it unimodal (Ibragimov 1956), so the
  level of the test holds, and peaks within a few times RESOLUTION of each other become one.

A dip says whether, not where. Where there are several peaks, they are the maxima of a kernel density of u that stand
out from their surroundings by PROMINENCE of their height and hold MASS of the activations; the valley between the two
highest is the size of the effect.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
from scipy.ndimage import gaussian_filter1d
from scipy.signal import find_peaks
from scipy.stats import false_discovery_control

from saebench_tasks.broken_latents.dip import dip, p_values

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from jaxtyping import Bool, Float, Int

    from saebench_meta.codes import Codes

FLOOR = 0.05
"""Share of a latent's largest activation below which an activation is not looked at."""
RESOLUTION = 0.05
"""Standard deviation of what is added to log activations: 5 %."""
GRID = 256
PROMINENCE = 0.2
"""Share of a peak's height that separates it from the next higher one."""
MASS = 0.03
"""Share of the activations between a peak's valleys."""
HELD = 1 << 22
"""Activations kept before those that are too many are dropped."""


@dataclass(frozen=True, eq=False)
class Firings:
    """Positive activations of every latent: all, or those on the tokens that come first in a random order.

    Attributes:
        indptr: those of latent j are `indptr[j]:indptr[j + 1]`.
        tokens: their tokens, numbered as in `Context.activations`.
        values: the activations.
        total: tokens each latent is active on.
        n_tokens: of the sample.
    """

    indptr: Int[np.ndarray, " latents_plus_1"]
    tokens: Int[np.ndarray, " kept"]
    values: Float[np.ndarray, " kept"]
    total: Int[np.ndarray, " latents"]
    n_tokens: int

    def of(self, latent: int) -> tuple[Int[np.ndarray, " n"], Float[np.ndarray, " n"]]:
        """Tokens and activations of a latent, without those below the floor."""
        part = slice(self.indptr[latent], self.indptr[latent + 1])
        tokens, values = self.tokens[part], self.values[part].astype(np.float64)
        keep = values > FLOOR * values.max(initial=0)
        return tokens[keep], values[keep]


@dataclass(eq=False)
class Reservoir:
    """For every latent the activations with the lowest ranks, of all that are added."""

    n_latents: int
    most: int
    n_ranks: int
    parts: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = field(default_factory=list)
    held: int = 0
    room: int = HELD

    @cached_property
    def bound(self) -> Int[np.ndarray, " latents"]:
        """Of each latent, the rank from which on an activation comes too late."""
        return np.full(self.n_latents, self.n_ranks)

    def add(
        self, latents: Int[np.ndarray, " n"], ranks: Int[np.ndarray, " n"], values: Float[np.ndarray, " n"]
    ) -> None:
        """Keep what has a rank low enough."""
        early = ranks < self.bound[latents]
        self.parts.append((latents[early], ranks[early], values[early]))
        self.held += int(early.sum())
        if self.held > self.room:
            self.pruned()
            self.room = max(HELD, 2 * self.held)

    def pruned(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Latents (ascending), ranks (ascending within a latent) and values of what is kept."""
        latents, ranks, values = (np.concatenate(c) for c in zip(*self.parts, strict=True))
        order = np.lexsort((ranks, latents))
        latents, ranks, values = latents[order], ranks[order], values[order]
        starts = np.searchsorted(latents, np.arange(self.n_latents))
        place = np.arange(len(latents)) - starts[latents]
        last = place == self.most - 1
        self.bound[latents[last]] = ranks[last]
        keep = place < self.most
        self.parts = [(latents[keep], ranks[keep], values[keep])]
        self.held = int(keep.sum())
        return self.parts[0]


def collect(chunks: Iterable[Codes], d_sae: int, n_tokens: int, most: int, rng: np.random.Generator) -> Firings:
    """At most `most` positive activations of every latent, on tokens in an order that is the same for all latents.

    Infinite ones count as active and are not looked at.

    Args:
        chunks: codes of consecutive tokens.
        n_tokens: tokens in all chunks.
    """
    order = rng.permutation(n_tokens)
    rank = np.empty_like(order)
    rank[order] = np.arange(n_tokens)
    kept, total, start = Reservoir(d_sae, most, n_tokens), np.zeros(d_sae, dtype=np.int64), 0
    for codes in chunks:
        on = codes.values > 0
        latents, rows, values = (t[on].cpu().numpy() for t in (codes.cols, codes.rows, codes.values.float()))
        total += np.bincount(latents, minlength=d_sae)
        finite = np.isfinite(values)
        kept.add(latents[finite], rank[start + rows[finite]], values[finite])
        start += codes.n_tokens
    latents, ranks, values = kept.pruned()
    return Firings(np.searchsorted(latents, np.arange(d_sae + 1)), order[ranks], values, total, n_tokens)


@dataclass(frozen=True, eq=False)
class Peaks:
    """The latents with activations enough to be tested.

    Attributes:
        latent: their numbers, ascending.
        n: activations looked at.
        dip, p, q: of the test; q after the correction for many tests.
        peaks: of each, activations at which its density has a peak, ascending; only the highest, where the test does
            not find several.
        valley: 1 − density in the valley / at the lower of the two highest peaks; 0 where there is one peak.
        several: whether the test finds several.
        of: latents of the dictionary.
    """

    latent: Int[np.ndarray, " tested"]
    n: Int[np.ndarray, " tested"]
    dip: Float[np.ndarray, " tested"]
    p: Float[np.ndarray, " tested"]
    q: Float[np.ndarray, " tested"]
    peaks: tuple[Float[np.ndarray, " peaks"], ...]
    valley: Float[np.ndarray, " tested"]
    several: Bool[np.ndarray, " tested"]
    of: int

    @cached_property
    def strongest(self) -> Int[np.ndarray, " tested"]:
        """Places in these arrays, by falling evidence: q, then the dip."""
        return np.lexsort((self.latent, -self.dip, self.q))


def find(
    firings: Firings,
    least: int,
    level: float,
    rng: np.random.Generator,
    track: Callable[[Sequence[int]], Iterable[int]] = iter,
) -> Peaks:
    """Test every latent with `least` activations above the floor, or more, at a false discovery rate `level`.

    Args:
        track: is given the latents and gives them back, such as with progress shown.
    """
    noise = RESOLUTION * rng.standard_normal(firings.n_tokens)
    latents, counts, dips = [], [], []
    for latent in track(np.flatnonzero(np.diff(firings.indptr) >= least).tolist()):
        tokens, values = firings.of(latent)
        if len(values) >= least:
            latents.append(latent)
            counts.append(len(values))
            dips.append(dip(np.log(values / values.max()) + noise[tokens]))
    n, found = np.array(counts, dtype=np.int64), np.array(dips, dtype=np.float64)
    p = p_values(found, n)
    q = np.asarray(false_discovery_control(p, method="bh")) if len(p) else p
    several = q <= level
    placed = [modes(firings.of(latent)[1], many=bool(many)) for latent, many in zip(latents, several, strict=True)]
    places, valleys = tuple(at for at, _ in placed), np.array([valley for _, valley in placed])
    return Peaks(np.array(latents, dtype=np.int64), n, found, p, q, places, valleys, several, len(firings.total))


def modes(values: Float[np.ndarray, " n"], *, many: bool) -> tuple[Float[np.ndarray, " peaks"], float]:
    """Activations at which the density of their logarithms has a maximum, and the valley between the two highest.

    Args:
        many: False for the highest only.
    """
    at, density = density_of(np.log(values))
    if not many:
        return np.exp(at[[density.argmax()]]), 0.0
    found, about = find_peaks(density, prominence=0)
    steps = zip(about["left_bases"], about["right_bases"], strict=True)
    mass = np.array([density[a : b + 1].sum() for a, b in steps]) / density.sum()
    apart = about["prominences"] / density[found]
    keep = (apart >= PROMINENCE) & (mass >= MASS)
    found, apart = found[keep], apart[keep]
    highest = np.argsort(-density[found], kind="stable")
    return np.exp(at[found]), float(apart[highest[1]]) if len(found) > 1 else 0.0


def density_of(u: Float[np.ndarray, " n"]) -> tuple[Float[np.ndarray, " grid"], Float[np.ndarray, " grid"]]:
    """Gaussian kernel density on a grid; bandwidth by Silverman's rule of thumb, halved, and not below RESOLUTION."""
    spread = min(u.std(), float(np.subtract(*np.quantile(u, (0.75, 0.25)))) / 1.34)
    width = max(RESOLUTION, 0.45 * spread * len(u) ** -0.2)
    bounds = (float(u.min()) - 4 * width, float(u.max()) + 4 * width)
    counts, edges = np.histogram(u, GRID, bounds)
    step = edges[1] - edges[0]
    density = gaussian_filter1d(counts / (len(u) * step), width / step, mode="constant")
    return edges[:-1] + step / 2, density
