"""Hartigan's dip test: does a sample have more than one mode?

Hartigan and Hartigan, "The dip test of unimodality", Annals of Statistics 13 (1985). The dip of a sample is the largest
difference between its distribution function F_n and the unimodal one (convex up to a mode, concave after it) for which
that is smallest. Of all unimodal distributions the uniform one is taken for the hardest to tell, so p is the share of
uniform samples of the same size with a dip at least as large: for other unimodal distributions the test says "several
modes" more rarely than its level.

The libraries that offer the dip are under the GPL, which this package is not; its convex and concave parts are two
isotonic regressions of `scipy`. The tests compare it with a linear program for the definition, and with `diptest`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from scipy.optimize import isotonic_regression

if TYPE_CHECKING:
    from jaxtyping import Float, Int

DRAWS, SEED = 200_000, 0
"""Uniform samples of each size that `NULL` was found with: `python -m saebench_tasks.broken_latents.dip`. The rows from
200 on were made of the same samples with `diptest`, which is faster and gave the first two rows alike."""
SIZES = (50, 100, 200, 500, 1000, 2000)
LEVELS = (0.99, 0.95, 0.9, 0.8, 0.7, 0.5, 0.3, 0.2, 0.1, 0.05, 0.02, 0.01, 0.005, 0.001)
NULL = (
    (0.2219, 0.2496, 0.2669, 0.2905, 0.3095, 0.3454, 0.3873, 0.4157, 0.4586, 0.4959, 0.5408, 0.5710, 0.6005, 0.6601),
    (0.2284, 0.2566, 0.2742, 0.2980, 0.3177, 0.3546, 0.3976, 0.4268, 0.4709, 0.5108, 0.5585, 0.5908, 0.6212, 0.6878),
    (0.2333, 0.2620, 0.2799, 0.3044, 0.3242, 0.3618, 0.4057, 0.4355, 0.4815, 0.5218, 0.5702, 0.6037, 0.6347, 0.7049),
    (0.2379, 0.2671, 0.2848, 0.3098, 0.3300, 0.3679, 0.4127, 0.4431, 0.4894, 0.5309, 0.5808, 0.6168, 0.6499, 0.7186),
    (0.2405, 0.2695, 0.2875, 0.3125, 0.3332, 0.3713, 0.4163, 0.4470, 0.4934, 0.5348, 0.5848, 0.6181, 0.6502, 0.7178),
    (0.2425, 0.2718, 0.2898, 0.3150, 0.3349, 0.3737, 0.4190, 0.4497, 0.4969, 0.5390, 0.5886, 0.6237, 0.6563, 0.7272),
)
"""√n · dip that a share LEVELS of uniform samples of size SIZES exceeds."""
MIN_P = 1e-16


def dip(values: Float[np.ndarray, " n"]) -> float:
    """The dip of a sample: 0 where all values are equal, otherwise from 1/(2n) to 1/4.

    The modal interval is narrowed from the whole range until the greatest convex minorant and the least concave
    majorant of F_n on it lie no further apart than the dip found outside it (the authors' theorem 6).
    """
    x, counts = np.unique(np.asarray(values, dtype=np.float64), return_counts=True)
    upto = counts.cumsum().astype(np.float64)
    below = upto - counts
    first, last, found = 0, len(x) - 1, 1.0
    while first < last:
        here = slice(first, last + 1)
        convex, concave = (first + convex_vertices(x[here], y[here]) for y in (below, -upto))
        G, L = np.interp(x[here], x[convex], below[convex]), np.interp(x[here], x[concave], upto[concave])
        low, high, apart = modal_interval(convex, concave, L - G, first)
        if apart <= found:
            break
        outside = (upto[first:low] - G[: low - first], L[high - first + 1 :] - below[high + 1 : last + 1])
        found = max(found, *(part.max(initial=0) for part in outside))
        if (low, high) == (first, last):
            break
        first, last = low, high
    return found / (2 * max(1, len(values))) if len(x) > 1 else 0.0


def convex_vertices(x: Float[np.ndarray, " n"], y: Float[np.ndarray, " n"]) -> Int[np.ndarray, " vertices"]:
    """Vertices of the greatest convex function below the points: its slopes are the isotonic regression of theirs."""
    widths = np.diff(x)
    return np.asarray(isotonic_regression(np.diff(y) / widths, weights=widths).blocks, dtype=np.int64)


def modal_interval(
    convex: Int[np.ndarray, " vertices"],
    concave: Int[np.ndarray, " others"],
    gap: Float[np.ndarray, " n"],
    first: int,
) -> tuple[int, int, float]:
    """Where minorant and majorant are furthest apart: from a vertex of the one to the next of the other, and the gap.

    Args:
        convex, concave: their vertices.
        gap: majorant less minorant at the points from `first` on.
    """
    at_convex, at_concave = gap[convex - first], gap[concave - first]
    if at_convex.max() > at_concave.max():
        low = convex[at_convex.argmax()]
        return int(low), int(concave[concave >= low][0]), float(at_convex.max())
    high = concave[at_concave.argmax()]
    return int(convex[convex <= high][-1]), int(high), float(at_concave.max())


def p_values(dips: Float[np.ndarray, " samples"], n: Int[np.ndarray, " samples"]) -> Float[np.ndarray, " samples"]:
    """Share of uniform samples of size n that have a dip at least as large.

    √n · dip has a limit, which its quantiles approach linearly in 1/√n. Between two levels, log p is linear in
    n · dip²; beyond the last it goes on as between .005 and .001, as a Gaussian tail does.
    """
    root = 1 / np.sqrt(np.asarray(n, dtype=np.float64))
    sizes = 1 / np.sqrt(SIZES)
    quantiles = np.stack([np.interp(root, sizes[::-1], column[::-1]) for column in np.array(NULL).T], axis=1)
    z, at = (np.asarray(dips) / root) ** 2, quantiles**2
    log_p = np.log(LEVELS)
    k = (z[:, None] >= at).sum(1).clip(1, len(LEVELS) - 1)
    rows = np.arange(len(z))
    low = np.where(z > at[:, -1], LEVELS.index(0.005), k - 1)
    slope = (log_p[k] - log_p[low]) / (at[rows, k] - at[rows, low])
    p = np.exp(log_p[k] + slope * (z - at[rows, k]))
    return np.where(z < at[:, 0], 1.0, p.clip(MIN_P, 1))


def null_quantiles(n: int, draws: int, seed: int) -> Float[np.ndarray, " levels"]:
    """√n · dip that a share LEVELS of uniform samples of size n exceeds."""
    rng = np.random.default_rng([seed, n])
    dips = np.array([dip(rng.random(n)) for _ in range(draws)])
    return np.asarray(np.quantile(dips, 1 - np.array(LEVELS)) * np.sqrt(n))


if __name__ == "__main__":
    import sys

    for size in SIZES:
        row = ", ".join(f"{q:.4f}" for q in null_quantiles(size, DRAWS, SEED))
        sys.stdout.write(f"    ({row}),\n")
        sys.stdout.flush()
