"""The nearest direction of the other dictionary, and the shares of latents that have none near: geometry only.

A ratio over a whole dictionary is a census. Where `--limit` drew some latents it is a sample of latents.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from saebench_meta.geometry import similarity

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int

    from saebench_meta.context import Context
    from saebench_meta.sae import SAE
    from saebench_meta.stats import Estimate


@dataclass(frozen=True, eq=False)
class Matches:
    """The nearest direction of the other dictionary for latents of one.

    Attributes:
        latent: which latents were looked at, ascending.
        of: how many the dictionary has.
        cosine: m_i, float64.
        nearest: the latent of the other dictionary.
    """

    latent: Int[np.ndarray, " latents"]
    of: int
    cosine: Float[np.ndarray, " latents"]
    nearest: Int[np.ndarray, " latents"]

    def novel(self, theta: float) -> Bool[np.ndarray, " latents"]:
        """m_i ≤ theta."""
        return self.cosine <= theta

    @property
    def sampled(self) -> bool:
        """Whether only some latents were looked at."""
        return len(self.latent) < self.of


def compare(sae: SAE, reference: SAE, ctx: Context) -> tuple[Matches, Matches]:
    """Matches of `sae` in `reference` and of `reference` in `sae`, of all latents or those of `--limit`."""
    found = similarity(sae.W_dec, reference.W_dec)
    return _chosen(found.max_a, found.nearest_a, ctx), _chosen(found.max_b, found.nearest_b, ctx)


def _chosen(cosine: np.ndarray, nearest: np.ndarray, ctx: Context) -> Matches:
    latent = np.asarray(ctx.latents(len(cosine)), dtype=np.int64)
    return Matches(latent, len(cosine), cosine[latent], nearest[latent])


def share_novel(matches: Matches, theta: float, ctx: Context) -> Estimate:
    """Share of latents with m_i ≤ theta: a census over the dictionary, a proportion where only some were drawn."""
    novel, n = int(matches.novel(theta).sum()), len(matches.latent)
    return ctx.proportion(novel, n, n_unit="latents") if matches.sampled else ctx.census(novel / n, n)


def mean_cosine(matches: Matches, ctx: Context) -> Estimate:
    """Mean of m_i: a census over the dictionary, a bootstrap over latents where only some were drawn."""
    if matches.sampled:
        return replace(ctx.bootstrap(matches.cosine), n_unit="latents")
    return ctx.census(float(matches.cosine.mean()), len(matches.latent))


def ratio_over_theta(matches: Matches, thetas: Sequence[float]) -> Float[np.ndarray, " thetas"]:
    """Share of latents with m_i ≤ theta for every theta."""
    return np.searchsorted(np.sort(matches.cosine), thetas, side="right") / len(matches.cosine)
