"""What the tasks train: recipes when the run is planned, meta-SAEs when it runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from saebench_meta.errors import SaebenchError
from saebench_tasks.meta_sae.rows import (
    GAUSSIAN,
    KINDS,
    OWN,
    Rows,
    Squares,
    batch_reconstructed,
    n_held_out,
    null_rows,
    squares,
)

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

    from saebench_meta.context import Context
    from saebench_meta.sae import SAE, SAEInfo
    from saebench_meta.training.recipe import Recipe

BATCH = 4096
"""Rows a step (paper, section 5); all of them where there are fewer."""
PER_D_IN = 3
"""Meta-latents per dimension: the paper's 2304 for d_in 768."""
ROWS_PER_META_LATENT = 4
"""At least so many latents for every meta-latent, where the SAE is narrow; the paper has 21."""


@dataclass(frozen=True)
class Setting:
    """One training: what on, how wide as a multiple of the main width, and its seed."""

    kind: str
    factor: float
    seed: int


@dataclass(frozen=True, eq=False)
class Trained:
    """A meta-SAE and how it did.

    Attributes:
        seen, held_out: of the rows it was trained on and of those it was not, by the inference threshold.
        seen_batch, held_out_batch: the same by batch-top-k, at equal sparsity.
        l0: active meta-latents a row by the threshold, on rows it was trained on and on held-out ones.
    """

    setting: Setting
    recipe: Recipe
    sae: SAE
    seen: Squares
    held_out: Squares
    seen_batch: Squares
    held_out_batch: Squares
    l0: tuple[float, float]


def settings(parameters: Mapping[str, Any]) -> Iterator[Setting]:
    """All trainings of `meta_sae`, in the order of its recipes: the main one first."""
    for seed in range(parameters["seeds"]):
        for kind in KINDS:
            yield Setting(kind, 1.0, seed)
    for factor in parameters["curve"]:
        for kind in (OWN, GAUSSIAN):
            yield Setting(kind, factor, 0)


def default_width(d_in: int, rows: int, k: int) -> int:
    """3 · d_in as in the paper; a quarter of the rows where that is fewer, lest meta-latents stand for single rows."""
    return min(PER_D_IN * d_in, max(k + 1, rows // ROWS_PER_META_LATENT))


def main_recipe(
    infos: Sequence[SAEInfo], parameters: Mapping[str, Any], recipe: Callable[..., Recipe], **given: Any
) -> Recipe:
    """A meta-SAE of the rows of these SAEs.

    Args:
        given: settings that take the place of the parameters'.

    Raises:
        SaebenchError: a parameter is out of range.
    """
    rows, share, k = sum(info.d_sae for info in infos), parameters["held_out"], parameters["k"]
    if not 0 <= share <= 0.5:
        raise SaebenchError(f"held_out is {share} for a meta-SAE: give a share of the rows from 0 to 0.5")
    if parameters["width"] < 0:
        raise SaebenchError(f"width is {parameters['width']} for a meta-SAE: give 0 for the default, or a number")
    seen = rows - n_held_out(rows, share)
    batch = max(1, min(BATCH, seen))
    asked = {
        "d_sae": parameters["width"] or default_width(infos[0].d_in, rows, k),
        "k": k,
        "lr": parameters["lr"],
        "batch_size": batch,
        "tokens": parameters["steps"] * batch,
    }
    if batch == seen:  # then every batch has the same smallest activation
        asked["threshold_batches"] = 1
    return recipe("batchtopk", **{**asked, **given})


def trains(
    infos: tuple[SAEInfo, ...], parameters: Mapping[str, Any], recipe: Callable[..., Recipe]
) -> Sequence[Recipe]:
    """Of `meta_sae`: one recipe a training, though rows of different kinds share theirs."""
    if parameters["seeds"] < 1 or any(factor <= 0 for factor in parameters["curve"]):
        raise SaebenchError("meta_sae: seeds must be at least 1, and multiples of the width in curve positive")
    main = main_recipe(infos, parameters, recipe)
    return [
        main_recipe(infos, parameters, recipe, d_sae=max(main_k(main) + 1, round(s.factor * main.d_sae)), seed=s.seed)
        for s in settings(parameters)
    ]


def trains_pair(
    infos: tuple[SAEInfo, ...], parameters: Mapping[str, Any], recipe: Callable[..., Recipe]
) -> Sequence[Recipe]:
    """Of `meta_sae_pair`: the meta-SAE of the SAE under test, and an encoder for other decoder rows."""
    main = main_recipe(infos[:1], parameters, recipe)
    shared = {name: getattr(main, name) for name in ("d_sae", "tokens", "lr", "batch_size", "threshold_batches")}
    return [main, recipe("encoder", k=parameters["k"], **shared)]


def trains_family(
    infos: tuple[SAEInfo, ...], parameters: Mapping[str, Any], recipe: Callable[..., Recipe]
) -> Sequence[Recipe]:
    """Of `meta_sae_family`: one meta-SAE of all members' rows."""
    return [main_recipe(infos, parameters, recipe)]


def main_k(recipe: Recipe) -> int:
    """Meta-latents a row, on average."""
    k: Any = recipe.hyperparameters["k"]
    return int(k)


def train(rows: Rows, ctx: Context, setting: Setting, recipe: Recipe, x: Tensor | None = None) -> Trained:
    """A meta-SAE of the training rows, scored on those and on the held-out ones.

    Args:
        x: what stands for the rows, such as those of a null model; themselves unless given.
    """
    seen, held_out = rows.part(False, x), rows.part(True, x)
    sae = named(ctx.train(recipe, rows=seen), setting)
    return scored(sae, setting, recipe, seen, held_out)


def scored(
    sae: SAE, setting: Setting, recipe: Recipe, seen: Float[Tensor, "seen d_in"], held_out: Float[Tensor, "held d_in"]
) -> Trained:
    """A meta-SAE with its errors on both parts of the rows."""

    def by_threshold(x: Tensor) -> tuple[Squares, float]:
        f = sae.encode_sparse(x)
        return squares(x, sae.decode(f)), f.nnz / max(1, f.n_tokens)

    def by_batch(x: Tensor) -> Squares:
        return squares(x, batch_reconstructed(sae, x, main_k(recipe), recipe.batch_size))

    (own, l0), (other, l0_held_out) = by_threshold(seen), by_threshold(held_out)
    return Trained(setting, recipe, sae, own, other, by_batch(seen), by_batch(held_out), l0=(l0, l0_held_out))


def named(sae: SAE, setting: Setting) -> SAE:
    """With a name that tells it from an SAE of activations."""
    return replace(sae, info=sae.info.model_copy(update={"name": f"meta-SAE {sae.info.name} of {setting.kind}"}))


def train_all(rows: Rows, ctx: Context, parameters: Mapping[str, Any]) -> list[Trained]:
    """All trainings of `meta_sae`. The nulls' rows are drawn once: seeds differ in training alone."""
    x = {kind: rows.x if kind == OWN else null_rows(rows.x, kind, ctx.rng(kind)) for kind in KINDS}
    todo = list(zip(settings(parameters), ctx.recipes, strict=True))
    return [
        train(rows, ctx, setting, recipe, x[setting.kind])
        for setting, recipe in ctx.track(todo, "meta-SAEs", len(todo))
    ]
