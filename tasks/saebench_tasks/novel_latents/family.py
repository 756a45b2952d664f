"""The matrix of reconstruction ratios of every SAE of a family in every other (paper, figure 19): geometry only.

    R(a, b) = share of the latents of a with max_j cos(w_a,i, w_b,j) > theta

Nothing is said of an SAE in itself, where it is 1. Two means over the matrix: between SAEs of one width, such as seeds
of one recipe (paper: 94 %), and of each SAE in those of the next smaller width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations, pairwise, product
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from saebench_meta import charts
from saebench_meta.task import Figure, Table
from saebench_tasks.novel_latents.nearest import Matches, compare

if TYPE_CHECKING:
    from saebench_meta.context import Context
    from saebench_meta.sae import SAE
    from saebench_meta.stats import Estimate


@dataclass(frozen=True, eq=False)
class Cell:
    """SAE number `a` held against SAE number `b` of the family."""

    a: int
    b: int
    matches: Matches


def cells(saes: Sequence[SAE], ctx: Context) -> list[Cell]:
    """All ordered pairs; two share one pass over the cosines."""
    found = []
    pairs = list(combinations(range(len(saes)), 2))
    for a, b in ctx.track(pairs, "pairs of dictionaries", len(pairs)):
        forward, mirrored = compare(saes[a], saes[b], ctx)
        found += [Cell(a, b, forward), Cell(b, a, mirrored)]
    return sorted(found, key=lambda cell: (cell.a, cell.b))


def one_width(found: Sequence[Cell]) -> list[Cell]:
    """Pairs of SAEs of the same width."""
    widths = _widths(found)
    return [c for c in found if widths[c.a] == widths[c.b]]


def next_smaller(found: Sequence[Cell], *, mirrored: bool = False) -> list[Cell]:
    """Each SAE in those of the next smaller width; mirrored: each in those of the next larger."""
    widths = _widths(found)
    steps = {(wide, narrow) for narrow, wide in pairwise(sorted(set(widths.values())))}
    return [c for c in found if ((widths[c.b], widths[c.a]) if mirrored else (widths[c.a], widths[c.b])) in steps]


def _widths(found: Sequence[Cell]) -> dict[int, int]:
    return {c.a: c.matches.of for c in found}


def mean_ratio(chosen: Sequence[Cell], why: str, theta: float, ctx: Context) -> Estimate:
    """Mean over cells of the reconstruction ratio: a census, or a bootstrap over latents where `--limit` drew some.

    Args:
        why: the reason given where no cell is chosen.
    """
    if not chosen:
        return ctx.census(None, 0, n_unit="pairs", reason=why)
    above = [~c.matches.novel(theta) for c in chosen]
    if not any(c.matches.sampled for c in chosen):
        return ctx.census(float(np.mean([x.mean() for x in above])), len(chosen), n_unit="pairs")
    # Every cell weighs the same, whether more or fewer latents were drawn from it.
    total = sum(map(len, above))
    weighted = np.concatenate([x * (total / (len(x) * len(above))) for x in above])
    return replace(ctx.bootstrap(weighted), n_unit="latents")


def matrix(found: Sequence[Cell], names: Sequence[str], theta: float) -> pd.DataFrame:
    """One row a pair, an SAE with itself included but without numbers.

    Columns `sae`, `in`, their `width` and `width_in`, `reconstruction_ratio`, `mean_max_cosine`.
    """
    widths, by_place = _widths(found), {(c.a, c.b): c.matches for c in found}
    rows = []
    for (a, sae), (b, other) in product(enumerate(names), repeat=2):
        matches = by_place.get((a, b))
        numbers = (np.nan, np.nan) if matches is None else (1 - matches.novel(theta).mean(), matches.cosine.mean())
        rows.append([sae, other, widths[a], widths[b], *map(float, numbers)])
    columns = ["sae", "in", "width", "width_in", "reconstruction_ratio", "mean_max_cosine"]
    return pd.DataFrame(rows, columns=columns)


def shown(table: pd.DataFrame, theta: float) -> tuple[dict[str, Table], dict[str, Figure]]:
    """The matrix as a table and as a heatmap."""
    caption = f"Share of the latents of each row's SAE with a cosine above {theta:g} to some latent of the column's."
    chart = charts.heatmap(
        table,
        x=("in", "present in"),
        y=("sae", "latents of"),
        value=("reconstruction_ratio", "share of reconstruction latents"),
    )
    title = "Reconstruction latents of each SAE in each other"
    return {"reconstruction_ratios": Table(title, table, caption)}, {
        "reconstruction_ratios": Figure(title, chart, caption)
    }


def distinct(names: Sequence[str]) -> list[str]:
    """Names with their place in the family where two are alike."""
    return [n if list(names).count(n) == 1 else f"{n} ({i})" for i, n in enumerate(names, 1)]
