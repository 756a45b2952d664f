"""Cross-entropy at points of the way: the stitched SAE of each is spliced into the language model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from saebench_tasks.stitching.link import phase_ends, weights_of, whole_points

if TYPE_CHECKING:
    import pandas as pd

    from saebench_meta.context import Context
    from saebench_meta.sae import SAE
    from saebench_meta.splice import Baselines, Losses
    from saebench_meta.stitching import Path, Schedule
    from saebench_meta.task import Pair


@dataclass(frozen=True, eq=False)
class Point:
    """A stitched SAE on the way, spliced.

    Attributes:
        step: latents that have moved.
        phase: which phase it is in or ends.
        losses: with it in place of the activations.
    """

    step: int
    phase: str
    losses: Losses


def at_points(
    pair: Pair, ctx: Context, steps: Schedule, n: int, n_tokens: int
) -> tuple[Baselines, dict[str, Point], list[Point]]:
    """Losses at S0, with all novel latents (`novel`) and at S1 by name, and at all n points in their order."""
    from saebench_meta import splice

    base = splice.baselines(pair.sae, ctx, n_tokens)
    ends, made = phase_ends(steps), {}
    for step in chosen_steps(steps, n):
        phase = next(name for name, last in ends.items() if step <= last)
        made[step] = Point(step, phase, _losses(pair, ctx, steps, step, base, n_tokens))
    return base, {name: made[ends[name]] for name in ("old", "novel", "new")}, list(made.values())


def chosen_steps(steps: Schedule, n: int) -> list[int]:
    """n points at which no component is half swapped: both ends, all novel latents, and evenly between these."""
    ends = phase_ends(steps)
    fixed = {ends["old"], ends["novel"], ends["new"]}
    first = (n - 2) // 2
    inside = [*_between(ends["old"], ends["novel"], first), *_between(ends["novel"], ends["swapped"], n - 3 - first)]
    whole = np.flatnonzero(whole_points(steps))
    return sorted(fixed | {int(whole[np.searchsorted(whole, step, side="right") - 1]) for step in inside})


def _between(start: int, stop: int, n: int) -> list[int]:
    """n places inside a range, evenly apart."""
    return [int(at) for at in np.linspace(start, stop, n + 2)[1:-1].round()]


def stitched_at(pair: Pair, steps: Schedule, step: int) -> SAE:
    """The SAE after so many steps: the parents themselves at both ends."""
    from saebench_meta.stitching.stitched import stitch

    if step in (0, steps.steps):
        return pair.sae if step else pair.reference
    old, new = steps.after(step)
    return stitch([(pair.reference, old), (pair.sae, new)], name=f"step {step} of {steps.steps}")


def _losses(pair: Pair, ctx: Context, steps: Schedule, step: int, base: Baselines, n_tokens: int) -> Losses:
    from saebench_meta import splice

    def losses() -> Losses:
        return splice.spliced(stitched_at(pair, steps, step), ctx, base)

    weights = weights_of(pair.reference) if step == 0 else None
    # Every control has the same reference.
    return losses() if weights is None else ctx.memo(("stitching splice", weights, n_tokens), losses)


def columns(base: Baselines, named: dict[str, Point]) -> dict[str, np.ndarray]:
    """Sums per document; NaN where a document has no prediction that counts."""
    sums = {"predictions": base.predictions, "loss_clean": base.clean, "loss_zero": base.zero, "loss_mean": base.mean}
    sums |= {f"loss_{name}": point.losses.loss for name, point in named.items()}
    return {name: np.where(base.predictions > 0, column, np.nan) for name, column in sums.items()}


def table(base: Baselines, points: list[Point], path: Path) -> pd.DataFrame:
    """One row a point."""
    import pandas as pd

    n = max(1, int(base.predictions.sum()))
    clean, zero, mean = (float(sums.sum()) / n for sums in (base.clean, base.zero, base.mean))

    def row(point: Point) -> dict[str, Any]:
        at, ce = point.step, float(point.losses.loss.sum()) / n
        return {
            "step": at,
            "phase": point.phase,
            "latents_S0": path.n_old[at],
            "latents_S1": path.n_new[at],
            "features": path.features[at],
            "mse": path.mse[at],
            "l0": path.l0[at],
            "ce": ce,
            "ce_recovered_zero": (zero - ce) / (zero - clean) if zero > clean else np.nan,
            "ce_recovered_mean": (mean - ce) / (mean - clean) if mean > clean else np.nan,
            "kl": float(point.losses.kl.sum()) / n,
        }

    return pd.DataFrame([row(point) for point in points])
