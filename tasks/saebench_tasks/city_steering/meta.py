"""The meta-SAE that takes cities apart: BatchTopK on the unit decoder rows of the SAE, as in the task `meta_sae`, but
on all rows, since nothing is scored on rows that are held out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from saebench_tasks.meta_sae.build import main_recipe

if TYPE_CHECKING:
    from saebench_meta.context import Context
    from saebench_meta.sae import SAE, SAEInfo
    from saebench_meta.training.recipe import Recipe

ORDER_BY = 16
"""Coordinates that rows are put in order by: enough to tell them apart."""


def trains(
    infos: tuple[SAEInfo, ...], parameters: Mapping[str, Any], recipe: Callable[..., Recipe]
) -> Sequence[Recipe]:
    """One meta-SAE of all rows, as wide as `meta_sae` makes it."""
    return [main_recipe(infos, {**parameters, "held_out": 0}, recipe)]


def meta_sae(sae: SAE, ctx: Context) -> SAE:
    """The meta-SAE of an SAE; controls are taken apart by one of their own, trained alike.

    Rows are put in an order of their own, so that the same rows in another order give the same meta-SAE.
    """
    import numpy as np

    (recipe,) = ctx.recipes
    rows = sae.unit_decoder().float()
    first = rows[:, :ORDER_BY].cpu().numpy()
    return ctx.train(recipe, rows=rows[np.lexsort(first.T[::-1])])
