"""The meta-SAE that takes cities apart: BatchTopK on the unit decoder rows of the SAE, as in the task `meta_sae`, but
on all rows, since nothing is scored on rows that are held out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from saebench_meta.errors import SaebenchError

if TYPE_CHECKING:
    from saebench_meta.context import Context
    from saebench_meta.sae import SAE, SAEInfo
    from saebench_meta.training.recipe import Recipe

BATCH = 4096
"""Rows a step (paper, section 5); all of them where there are fewer."""
ORDER_BY = 16
"""Coordinates that rows are put in order by: enough to tell them apart."""


def trains(
    infos: tuple[SAEInfo, ...], parameters: Mapping[str, Any], recipe: Callable[..., Recipe]
) -> Sequence[Recipe]:
    """One meta-SAE: 3 · d_in wide (the paper's 2304 for 768), a quarter of the rows where that is fewer."""
    (info,), k = infos, parameters["k"]
    if parameters["width"] < 0 or parameters["steps"] < 1:
        raise SaebenchError(
            "city_steering: width must be 0 (the default) or a number of meta-latents, steps at least 1"
        )
    width = parameters["width"] or min(3 * info.d_in, max(k + 1, info.d_sae // 4))
    batch = min(BATCH, info.d_sae)
    return [
        recipe("batchtopk", d_sae=width, k=k, lr=parameters["lr"], batch_size=batch, tokens=batch * parameters["steps"])
    ]


def meta_sae(sae: SAE, ctx: Context) -> SAE:
    """The meta-SAE of an SAE; controls are taken apart by one of their own, trained alike.

    Rows are put in an order of their own, so that the same rows in another order give the same meta-SAE.
    """
    import numpy as np

    (recipe,) = ctx.recipes
    rows = sae.unit_decoder().float()
    first = rows[:, :ORDER_BY].cpu().numpy()
    return ctx.train(recipe, rows=rows[np.lexsort(first.T[::-1])])
