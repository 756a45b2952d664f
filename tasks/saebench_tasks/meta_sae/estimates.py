"""From errors of rows to estimates: exact over the rows trained on, with intervals over held-out ones."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from saebench_tasks.meta_sae.rows import explained

if TYPE_CHECKING:
    from saebench_meta.context import Context
    from saebench_meta.stats import Estimate
    from saebench_tasks.meta_sae.build import Trained
    from saebench_tasks.meta_sae.rows import Squares

NONE_HELD_OUT = "no rows were held out"
SAME = "the rows do not differ"


def of_main(main: Trained, ctx: Context) -> dict[str, Estimate]:
    """What all tasks report of their meta-SAE."""
    return {"variance_explained": of_seen(main.seen, ctx), "held_out": of_held_out(main.held_out_batch, ctx)}


def of_seen(squares: Squares, ctx: Context) -> Estimate:
    """Variance explained of all rows that it was trained on."""
    return ctx.census(squares.explained, len(squares.error), reason=None if squares.explained is not None else SAME)


def of_held_out(squares: Squares, ctx: Context) -> Estimate:
    """Variance explained of held-out rows, with a bootstrap over them; their mean row is held fixed."""
    n = len(squares.error)
    if n == 0:
        return ctx.census(None, 0, reason=NONE_HELD_OUT)
    return ctx.groups([squares.error, squares.deviation], explained, n=n, n_unit="latents")


def difference(squares: Squares, null: Squares, ctx: Context) -> Estimate:
    """Variance explained of held-out rows minus that of a null's; the two are resampled independently in pairs."""
    n = len(squares.error)
    if n == 0:
        return ctx.census(None, 0, reason=NONE_HELD_OUT)

    def ahead(*sums: float) -> float | None:
        own, other = explained(*sums[:2]), explained(*sums[2:])
        return None if own is None or other is None else own - other

    arrays = [squares.error, squares.deviation, null.error, null.deviation]
    return ctx.groups(arrays, ahead, n=n, n_unit="latents")


def share_above(cosine: np.ndarray, theta: float, ctx: Context) -> Estimate:
    """Share of meta-latents with a cosine above theta."""
    return mean(cosine > theta, "no meta-latent is active", ctx, n_unit="meta-latents")


def mean(values: np.ndarray, why: str, ctx: Context, n_unit: str = "latents") -> Estimate:
    """The mean of a census; none with a reason where there is nothing to average."""
    if not len(values):
        return ctx.census(None, 0, n_unit=n_unit, reason=why)
    return ctx.census(float(np.mean(values)), len(values), n_unit=n_unit)
