"""Figures of the task."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from saebench_meta import charts
from saebench_meta.task import Figure
from saebench_tasks.stitching.census import KINDS, kinds
from saebench_tasks.stitching.link import phase_ends, whole_points

if TYPE_CHECKING:
    from collections.abc import Mapping

    from saebench_meta.stitching import Components, Path, Schedule
    from saebench_tasks.stitching.children import Together

PHASES = {"novel": "novel latents enter", "swapped": "components are swapped", "new": "leftovers leave"}
POINTS = 1000
"""Points drawn of a path."""
MANY = 100
"""Components from which on outliers are left out of the figure of swaps: the outer 1 % either way."""
FEATURES = ("features", "latents of the stitched SAE")
MSE = ("mse", "MSE (squared activation)")
L0 = ("l0", "L0 (active latents per token)")


def along(path: Path, steps: Schedule, beside: Path, beside_steps: Schedule, orders: tuple[str, str]) -> Figure:
    """MSE above L0 against the number of latents, phase by phase, and the same moves in the other order (figure 5)."""
    ends = phase_ends(steps)
    # Drawn first, lest it hides the other.
    frames, start = [points(beside, beside_steps, f"all, in {orders[1]} order", 0, beside_steps.steps)], 0
    for end, group in PHASES.items():
        frames.append(points(path, steps, group, start, ends[end]))
        start = ends[end]
    return Figure(
        "From the reference to this SAE",
        mse_above_l0(pd.concat(frames, ignore_index=True)),
        f"The stitched SAE after every move, in {orders[0]} order, where no component is half swapped; beside it the "
        f"same moves in {orders[1]} order.",
    )


def points(path: Path, steps: Schedule, group: str, start: int, stop: int) -> pd.DataFrame:
    """Points of a path at which no component is half swapped, evenly thinned."""
    at = start + np.flatnonzero(whole_points(steps)[start : stop + 1])
    at = at[np.unique(np.linspace(0, len(at) - 1, min(len(at), POINTS // 4)).round().astype(np.int64))]
    return pd.DataFrame({"group": group, "features": path.features[at], "mse": path.mse[at], "l0": path.l0[at]})


def mse_above_l0(data: pd.DataFrame) -> Any:
    """Two line charts with one x axis; columns `group`, `features`, `mse`, `l0`."""
    return charts.stacked([charts.line_path(data, x=FEATURES, y=y, group="group") for y in (MSE, L0)])


def swapped(table: pd.DataFrame) -> Figure:
    """Every component alone on S0 (figure 17)."""
    shown = table[["component", "kind", "dl0", "dmse_percent"]].dropna()
    inside = np.ones(len(shown), dtype=bool)
    for column in ("dl0", "dmse_percent"):
        if len(shown) >= MANY:
            low, high = np.quantile(shown[column], [0.005, 0.995])
            inside &= shown[column].between(low, high).to_numpy()
    chart = charts.scatter(
        shown[inside],
        x=("dl0", "change of L0 (latents per token)"),
        y=("dmse_percent", "change of MSE (% of the reference's)"),
        group="kind",
        rule_x=0.0,
        rule_y=0.0,
        tooltip=["component"],
    )
    return Figure(
        "Each component swapped alone on the reference",
        chart,
        f"Latents of the reference (left of the arrow) out, of this SAE in. {int((~inside).sum())} outliers not drawn.",
    )


def added(table: pd.DataFrame) -> Figure:
    """Cumulative adding in random order (figure 18)."""
    data = table.assign(group=table["latents"] + ", order " + table["order"].astype(str))
    chart = charts.lines(
        data,
        x=("share", "share of the latents that is added"),
        y=("dmse_percent", "change of MSE (% of the reference's)"),
        group="group",
        rule_y=0.0,
    )
    return Figure("Latents added in random order", chart, "Nothing is removed.")


def census(parts: Components) -> Figure:
    """How many components have how many latents, by kind."""
    sizes, kind = np.log2(parts.n_old + parts.n_new), kinds(parts)
    groups = {text: sizes[kind == text] for text in KINDS.values() if (kind == text).any()}
    counts = charts.histogram(groups or {"none": sizes}, bins=30, share_of=dict.fromkeys(groups, max(1, parts.n)))
    return Figure(
        "Sizes of components",
        charts.bars(counts, x="log2 of the latents of both SAEs in a component", y="share of the components"),
        "By kind: latents of the reference on the left of the arrow, of this SAE on the right.",
    )


def lifts(groups: Mapping[str, Together]) -> Figure:
    """How much more often than by chance pairs are active together."""
    values = {name: found.log2_lift[found.tested] for name, found in groups.items()}
    never = ", ".join(f"{int(np.isnan(v).sum())} of {len(v)} ({name})" for name, v in values.items())
    counts = charts.histogram(
        {name: v[~np.isnan(v)] for name, v in values.items()}, share_of={name: len(v) for name, v in values.items()}
    )
    return Figure(
        "Pairs of children of a split, and random pairs",
        charts.bars(counts, x="log2 of tokens in common over those expected by chance", y="share of pairs"),
        f"Not drawn are pairs that are never active together: {never}.",
    )
