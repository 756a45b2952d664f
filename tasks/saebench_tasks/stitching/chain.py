"""A family, stitched pair by pair in the order given (paper, figure 5)."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from saebench_meta.task import Figure, Pair, Table
from saebench_tasks.stitching.effects import turns
from saebench_tasks.stitching.link import ENDS, Link, link, phase_ends
from saebench_tasks.stitching.shown import mse_above_l0, points

if TYPE_CHECKING:
    from jaxtyping import Float

    from saebench_meta.context import Context
    from saebench_meta.stats import Estimate
    from saebench_meta.task import Family

COLUMNS = tuple(f"{what}_{end}" for what in ("sse", "active") for end in ENDS)


@dataclass(frozen=True, eq=False)
class Chain:
    """Links by the names of their SAEs, `S0 → S1`."""

    links: dict[str, Link]

    def sums(self) -> dict[str, Float[np.ndarray, "docs links"]]:
        """Sums over each document, a column a link; without documents that have no tokens."""
        columns = {
            name: np.stack([found.documents[name] for found in self.links.values()], axis=1)
            for name in ("tokens", *COLUMNS)
        }
        measured = ~np.isnan(columns["tokens"]).any(axis=1)
        return {name: column[measured] for name, column in columns.items()}


def chain(family: Family, ctx: Context, theta: float) -> Chain:
    """Every SAE of the family against the one before it."""
    pairs = [Pair(sae, reference) for reference, sae in pairwise(family.saes)]
    found = {}
    for i, pair in enumerate(ctx.track(pairs, "links"), 1):
        name = f"{pair.reference.info.name} → {pair.sae.info.name}"
        # Seeds of one width may bear one name.
        found[f"{i}: {name}"] = link(pair, ctx, theta, "stitching_family")
    return Chain(found)


def estimates(found: Chain, ctx: Context) -> dict[str, Estimate]:
    """Means over the links, with intervals over documents."""
    sums, n = found.sums(), len(found.links)

    def mean(whole: str, before: str, after: str) -> Estimate:
        columns = [sums[name] for name in (whole, before, after)]
        return ctx.groups(columns, _mean_change, n=len(columns[0]), n_unit="documents")

    novel, swaps = ("sse_old", "sse_novel"), ("sse_novel", "sse_swapped")
    twice = [_falls(one, *novel) and _falls(one, *swaps) for one in found.links.values()]
    return {
        "links": ctx.census(n, n, n_unit="links"),
        "mse_change_novel_mean": mean("sse_old", *novel),
        "mse_change_swaps_mean": mean("sse_old", *swaps),
        "l0_change_novel_mean": mean("tokens", "active_old", "active_novel"),
        "l0_change_swaps_mean": mean("tokens", "active_novel", "active_swapped"),
        "links_improved_twice": ctx.census(float(np.mean(twice)), n, n_unit="links"),
    }


def _mean_change(whole: np.ndarray, before: np.ndarray, after: np.ndarray) -> float | None:
    """(after − before) / whole, mean over the links."""
    return float(((after - before) / whole).mean()) if (whole > 0).all() else None


def _falls(found: Link, before: str, after: str) -> bool:
    return bool(np.nansum(found.documents[after]) < np.nansum(found.documents[before]))


def table(found: Chain) -> Table:
    """One row a link."""
    rows = []
    for name, one in found.links.items():
        path, ends = one.path, phase_ends(one.schedule)
        at = [ends[end] for end in ENDS]
        mse, l0 = path.mse[at], path.l0[at]
        percent = 100 * np.diff(mse) / mse[0] if mse[0] > 0 else np.full(3, np.nan)
        row = {
            "link": name,
            "latents_S0": one.schedule.F0,
            "latents_S1": one.schedule.F1,
            "novel": ends["novel"],
            "components": one.parts.n,
            "leftovers": one.schedule.steps - ends["swapped"],
            **{f"mse_{end}": value for end, value in zip(ENDS, mse, strict=True)},
            **{f"l0_{end}": value for end, value in zip(ENDS, l0, strict=True)},
        }
        phases = zip(("novel", "swaps", "leftovers"), percent, turns(path, one.schedule).values(), strict=True)
        for phase, change, moves in phases:
            row[f"dmse_{phase}_percent"] = change
            row[f"{phase}_lower_mse"] = (moves.dmse < 0).mean() if len(moves.dmse) else np.nan
        rows.append(row)
    return Table(
        "Links",
        pd.DataFrame(rows),
        "Each SAE of the family against the one before it. MSE and L0 at the ends of phases; changes in percent of the "
        "narrower SAE's MSE; shares of the moves of a phase that lower MSE in turn.",
    )


def figure(found: Chain) -> Figure:
    """MSE above L0 against the number of latents, a line a link."""
    frames = [points(one.path, one.schedule, name, 0, one.schedule.steps) for name, one in found.links.items()]
    return Figure(
        "From SAE to SAE",
        mse_above_l0(pd.concat(frames, ignore_index=True)),
        "The stitched SAE after every move, where no component is half swapped: novel latents enter, components are "
        "swapped, latents of the narrower SAE without counterpart leave.",
    )
