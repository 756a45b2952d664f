"""What every move does: components swapped alone on S0 and in turn along the path, novel latents in turn."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from saebench_meta.stitching import SWAP, only_add
from saebench_meta.task import Table
from saebench_tasks.stitching.census import kinds
from saebench_tasks.stitching.link import phase_ends, whole_points

if TYPE_CHECKING:
    from collections.abc import Sequence

    from jaxtyping import Float, Int

    from saebench_meta.context import Context
    from saebench_meta.stats import Estimate
    from saebench_meta.stitching import Components, Path, Schedule, Swaps

ADDED = ("novel", "reconstruction")


@dataclass(frozen=True, eq=False)
class Turns:
    """Change of MSE and of L0 by every move of one phase, in turn; for swaps a move is a whole component.

    Attributes:
        moved: the latent or the component.
    """

    moved: Int[np.ndarray, " moves"]
    dmse: Float[np.ndarray, " moves"]
    dl0: Float[np.ndarray, " moves"]


def turns(path: Path, steps: Schedule) -> dict[str, Turns]:
    """The moves of each phase: `novel`, `swap` and `leftover`."""
    ends, whole = phase_ends(steps), whole_points(steps)
    bounds = {"novel": ("old", "novel"), "swap": ("novel", "swapped"), "leftover": ("swapped", "new")}
    found = {}
    for phase, (start, stop) in bounds.items():
        at = ends[start] + np.flatnonzero(whole[ends[start] : ends[stop] + 1])
        moved = (steps.component if phase == "swap" else steps.latent)[at[1:] - 1]
        found[phase] = Turns(moved, np.diff(path.mse[at]), np.diff(path.l0[at]))
    return found


def phases(found: dict[str, Turns], path: Path) -> Table:
    """One row a phase: what all of its moves do together, one on average, and in how many cases."""
    rows = []
    for phase, t in found.items():
        n = len(t.moved)
        percent = 100 * t.dmse / path.mse[0] if path.mse[0] > 0 else np.full(n, np.nan)
        rows.append(
            {
                "phase": phase,
                "moves": n,
                "dmse": t.dmse.sum(),
                "dmse_percent": percent.sum(),
                "dl0": t.dl0.sum(),
                **_spread("dmse_percent", percent),
                **_spread("dl0", t.dl0),
                "share_lower_mse": (t.dmse < 0).mean() if n else np.nan,
                "share_lower_l0": (t.dl0 < 0).mean() if n else np.nan,
            }
        )
    return Table(
        "Phases of the path",
        pd.DataFrame(rows),
        "Moves in turn: a novel latent enters, a component is swapped, a latent without counterpart leaves. Percent of "
        "the reference's MSE.",
    )


def _spread(name: str, values: np.ndarray) -> dict[str, float]:
    if not len(values):
        return {f"{name}_mean": np.nan, f"{name}_sd": np.nan, f"{name}_median": np.nan}
    return {f"{name}_mean": values.mean(), f"{name}_sd": values.std(), f"{name}_median": float(np.median(values))}


def estimates(found: dict[str, Turns], alone: Swaps, parts: Components, ctx: Context) -> dict[str, Estimate]:
    """Shares of moves by the sign of what they do."""
    novel, swap = found["novel"], found["swap"]

    def share(negative: np.ndarray, n_unit: str) -> Estimate:
        if not len(negative):
            return ctx.census(None, 0, n_unit=n_unit, reason=f"there are no {n_unit}")
        return ctx.census(float(negative.mean()), len(negative), n_unit=n_unit)

    def of_sums(sums: np.ndarray, sign: int) -> Estimate:
        if parts.n == 0:
            return share(np.zeros(0), "components")
        return ctx.groups([sums], lambda total: float((sign * total > 0).mean()), n=parts.n, n_unit="components")

    return {
        "novel_steps_lower_mse": share(novel.dmse < 0, "novel latents"),
        "swap_steps_lower_mse": share(swap.dmse < 0, "components"),
        "swap_steps_lower_l0": share(swap.dl0 < 0, "components"),
        "swaps_raise_mse": of_sums(alone.dsse, 1),
        "swaps_lower_l0": of_sums(alone.dactive, -1),
    }


def components_table(parts: Components, alone: Swaps, in_turn: Turns) -> pd.DataFrame:
    """One row a component, highest mean cosine first: what it does alone on S0, and in turn."""
    n = parts.n
    mse0 = alone.sse_old.sum() / max(1, alone.elements)
    percent = 100 / mse0 if mse0 > 0 else np.nan
    along_mse, along_l0 = np.zeros(n), np.zeros(n)
    along_mse[in_turn.moved], along_l0[in_turn.moved] = in_turn.dmse, in_turn.dl0
    dmse = alone.dsse[:, :n].sum(axis=0) / max(1, alone.elements)
    columns = {
        "component": np.arange(n),
        "kind": kinds(parts),
        "latents_S0": parts.n_old,
        "latents_S1": parts.n_new,
        "edges": parts.n_edges,
        "mean_cosine": parts.mean_cosine,
        "dmse": dmse,
        "dmse_percent": dmse * percent,
        "dl0": alone.dactive[:, :n].sum(axis=0) / max(1, alone.tokens.sum()),
        "dmse_in_turn": along_mse,
        "dmse_in_turn_percent": along_mse * percent,
        "dl0_in_turn": along_l0,
    }
    return pd.DataFrame(columns).sort_values("mean_cosine", ascending=False, kind="stable", ignore_index=True)


def path_table(path: Path, steps: Schedule) -> pd.DataFrame:
    """One row a number of steps done."""
    from saebench_meta.stitching import PHASES

    names = np.array(["start", *(PHASES[p] for p in steps.phase.tolist())], dtype=object)
    columns = {
        "step": np.arange(steps.steps + 1),
        "phase": names,
        "move": np.array(["", *np.where(steps.enters, "S1 in", "S0 out").tolist()], dtype=object),
        "latent": np.concatenate([[-1], steps.latent]),
        "component": np.concatenate([[-1], np.where(steps.phase == SWAP, steps.component, -1)]),
        "whole": whole_points(steps),
        "features": path.features,
        "mse": path.mse,
        "l0": path.l0,
    }
    return pd.DataFrame(columns)


def adding(novel: np.ndarray, F0: int, orders: int, rng: np.random.Generator) -> list[tuple[str, Schedule]]:
    """Novel latents, and apart from them reconstruction latents, added to S0 in random orders.

    Args:
        novel: (F1,) whether a latent is.
    """
    sets = zip(ADDED, (np.flatnonzero(novel), np.flatnonzero(~novel)), strict=True)
    return [
        (name, only_add(rng.permutation(latents), F0, len(novel)))
        for name, latents in sets
        for _ in range(orders)
        if len(latents)
    ]


def adding_table(names: Sequence[str], paths: Sequence[Path], limit: int) -> pd.DataFrame:
    """Change of MSE against the share added, at most `limit` rows an order."""
    frames, counts = [], dict.fromkeys(ADDED, 0)
    for name, path in zip(names, paths, strict=True):
        counts[name] += 1
        n = len(path.sse) - 1
        at = np.unique(np.linspace(0, n, min(n + 1, limit)).round().astype(np.int64))
        change = 100 * (path.mse[at] / path.mse[0] - 1) if path.mse[0] > 0 else np.full(len(at), np.nan)
        columns = {"latents": name, "order": counts[name], "added": at, "share": at / n, "dmse_percent": change}
        frames.append(pd.DataFrame(columns | {"l0": path.l0[at]}))
    empty = pd.DataFrame({"latents": [], "order": [], "added": [], "share": [], "dmse_percent": [], "l0": []})
    return pd.concat(frames, ignore_index=True) if frames else empty
