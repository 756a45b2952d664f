"""What latents are made of: the meta-SAE of the task `meta_sae`, and what its meta-latents are explained from.

It is trained by the main recipe of that task, on the same rows, so that both tasks share one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from saebench_tasks.meta_sae.build import main_recipe
from saebench_tasks.meta_sae.decomposition import decomposition
from saebench_tasks.meta_sae.rows import unit_rows

if TYPE_CHECKING:
    import pandas as pd
    from jaxtyping import Bool

    from saebench_meta.context import Context
    from saebench_meta.sae import SAE, SAEInfo
    from saebench_meta.training.recipe import Recipe


def trains(
    infos: tuple[SAEInfo, ...], parameters: Mapping[str, Any], recipe: Callable[..., Recipe]
) -> Sequence[Recipe]:
    """The meta-SAE, as wide and as long as `meta_sae` makes it."""
    return [main_recipe(infos, parameters, recipe)]


@dataclass(frozen=True)
class Parts:
    """What latents are made of.

    Attributes:
        active: latent -> its meta-latents, the strongest first.
        listed: meta-latent -> the latents it is explained from, those it is strongest on first.
    """

    active: Mapping[int, tuple[int, ...]]
    listed: Mapping[int, tuple[int, ...]]


def parts(sae: SAE, ctx: Context, held_out: float, askable: Bool[np.ndarray, " d_sae"], most: int) -> Parts:
    """Train the meta-SAE and take all latents apart by its inference threshold.

    Args:
        askable: latents that can be explained; no other is listed.
        most: latents listed for a meta-latent.
    """
    rows = unit_rows([sae], held_out, ctx.seed)
    (recipe,) = ctx.recipes
    meta = ctx.train(recipe, rows=rows.part(False))
    pairs = decomposition(rows, meta.encode_sparse(rows.x))
    ranked = pairs[askable[pairs["latent"]]].sort_values(["activation", "latent"], ascending=[False, True])
    return Parts(_grouped(pairs, "latent", "meta_latent"), _grouped(ranked, "meta_latent", "latent", most))


def _grouped(pairs: pd.DataFrame, by: str, column: str, most: int | None = None) -> dict[int, tuple[int, ...]]:
    """The first values of a column for every value of another."""
    groups = pairs.groupby(by, sort=True).indices
    values = pairs[column].to_numpy()
    return {int(key): tuple(values[rows[:most]].tolist()) for key, rows in groups.items()}  # type: ignore[call-overload]
