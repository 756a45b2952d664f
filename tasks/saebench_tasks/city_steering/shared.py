"""Do latents of cities that have a value in common, such as the country, have meta-latents in common more than chance?

Over pairs of cities that have different latents, in a table of two by two:

    a  share the value and a meta-latent      b  share the value only
    c  share a meta-latent only               d  share neither             OR = (a + ½)(d + ½) / ((b + ½)(c + ½))

with Haldane's and Anscombe's half in every cell, so that an empty one leaves a number. Pairs are not independent, and
cities that have one latent in common have all its meta-latents in common: so it is latents, with all their cities, that
are taken away one at a time for the interval (jackknife of log OR, which for pairs is rather too wide than too narrow;
Efron & Stein 1981), and latents whose meta-latents are exchanged for what chance gives (the quadratic assignment
procedure; Krackhardt 1988).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch.nn.functional import normalize

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int

    from saebench_meta.sae import SAE
    from saebench_tasks.city_steering.edits import CityLatents

ANY = "any"
"""In place of an attribute: pairs that share at least one of them."""
PERMUTATIONS = 1000
LEVEL = 0.95
SAME = 1e-12
"""Nearer than that, an odds ratio is the observed one again."""
FEWEST = 4
"""Different latents, below which nothing is said."""


@dataclass(frozen=True)
class Odds:
    """For one attribute, the counts and what follows from them.

    Attributes:
        attribute: its name, or `ANY`.
        both, value_only, meta_only, neither: a, b, c and d.
        odds_ratio, low, high: with its interval at 95 %. NaN where there is nothing to compare, since all pairs or none
            share the value, or a meta-latent; the interval is NaN where this is so once some one latent is away.
        null_low, null_high: the middle 95 % of the odds ratios with meta-latents exchanged.
        p: share of these that are at least as large, the observed one counted in. NaN like the odds ratio.
    """

    attribute: str
    both: int
    value_only: int
    meta_only: int
    neither: int
    odds_ratio: float
    low: float
    high: float
    null_low: float
    null_high: float
    p: float


def shared(
    facts: Sequence[Mapping[str, str]], found: CityLatents, meta: SAE, sae: SAE, rng: np.random.Generator
) -> list[Odds]:
    """For every attribute and for any of them; nothing where the cities have too few different latents.

    Args:
        facts: attribute -> value, of each city.
    """
    sets = [tuple(sorted(row)) for row, u in zip(found.latents.tolist(), found.directions, strict=True) if u.any()]
    kept = [city for city, u in enumerate(found.directions) if u.any()]
    groups = list(dict.fromkeys(sets))
    if len(groups) < FEWEST:
        return []
    rows = normalize(sae.W_dec[torch.tensor(groups)], dim=-1)
    on = (meta.encode(rows.flatten(0, 1).to(meta.W_dec)) > 0).view(*rows.shape[:2], -1).any(1).double()
    one, two = np.triu_indices(len(groups), 1)
    shares = (on @ on.T > 0).cpu().numpy()
    member = np.array([[own == group for group in groups] for own in sets], dtype=np.int64)
    orders = np.array([rng.permutation(len(groups)) for _ in range(PERMUTATIONS)])
    exchanged = shares[orders[:, one], orders[:, two]]
    same = {name: same_value([facts[city][name] for city in kept]) for name in facts[0]}
    same[ANY] = np.any(list(same.values()), axis=0)
    total = np.outer(member.sum(0), member.sum(0))[one, two]
    return [
        odds(name, (member.T @ alike.astype(np.int64) @ member)[one, two], total, shares[one, two], exchanged)
        for name, alike in same.items()
    ]


def same_value(values: Sequence[str]) -> Bool[np.ndarray, "cities cities"]:
    """Which pairs have the same."""
    _, codes = np.unique(values, return_inverse=True)
    return np.asarray(codes[:, None] == codes)


def counts(
    alike: Int[np.ndarray, " pairs"], total: Int[np.ndarray, " pairs"], shares: Bool[np.ndarray, "*any pairs"]
) -> Int[np.ndarray, "*any 4"]:
    """a, b, c, d of pairs of cities.

    Args:
        alike, total: of each pair of latents, how many pairs of cities share the value, and how many there are.
        shares: which pairs of latents share a meta-latent.
    """
    a, meta = shares @ alike, shares @ total
    return np.stack([a, alike.sum() - a, meta - a, total.sum() - alike.sum() - meta + a], axis=-1)


def log_odds(cells: Int[np.ndarray, "*any 4"]) -> Float[np.ndarray, "*any"]:
    """log OR, with a half in every cell; NaN where a row or column is empty."""
    a, b, c, d = np.moveaxis(cells, -1, 0)
    empty = (a + b) * (c + d) * (a + c) * (b + d) == 0
    return np.where(empty, np.nan, np.log((a + 0.5) * (d + 0.5) / ((b + 0.5) * (c + 0.5))))


def odds(
    name: str,
    alike: Int[np.ndarray, " pairs"],
    total: Int[np.ndarray, " pairs"],
    shares: Bool[np.ndarray, " pairs"],
    exchanged: Bool[np.ndarray, "permutations pairs"],
) -> Odds:
    """One attribute's odds ratio, its interval and its place among exchanged meta-latents; pairs are of latents."""
    cells = counts(alike, total, shares)
    observed, half = float(log_odds(cells)), jackknife(alike, total, shares)
    null = log_odds(counts(alike, total, exchanged))
    middle = np.quantile(null, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    p = (1 + (null >= observed - SAME).sum()) / (1 + len(null)) if np.isfinite(observed) else np.nan
    ratio, low, high, null_low, null_high = np.exp([observed, observed - half, observed + half, *middle]).tolist()
    a, b, c, d = cells.tolist()
    return Odds(name, a, b, c, d, ratio, low, high, null_low, null_high, float(p))


def jackknife(
    alike: Int[np.ndarray, " pairs"], total: Int[np.ndarray, " pairs"], shares: Bool[np.ndarray, " pairs"]
) -> float:
    """Half the width of the interval of log OR, each of the latents being left out once."""
    from scipy.stats import t

    n = round((1 + np.sqrt(1 + 8 * len(shares))) / 2)
    one, two = np.triu_indices(n, 1)
    kept = [(one != i) & (two != i) for i in range(n)]
    left = np.array([log_odds(counts(alike[i], total[i], shares[i])) for i in kept])
    return float(t.ppf((1 + LEVEL) / 2, n - 1) * np.sqrt((n - 1) / n * np.square(left - left.mean()).sum()))
