"""What the architectures have in common: where parameters start, how a coefficient rises, squared errors."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from saebench_meta.training.trainable import unit_rows

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

    from saebench_meta.training.recipe import Recipe
    from saebench_meta.training.trainable import Moment


def numbers(recipe: Recipe) -> dict[str, float]:
    """The hyperparameters that are numbers; switches are 0 or 1."""
    return {name: float(v) for name, v in recipe.hyperparameters.items() if isinstance(v, int | float)}


def directions(
    recipe: Recipe, d_in: int, first: Float[Tensor, "batch d_in"], generator: torch.Generator
) -> Float[Tensor, "d_sae d_in"]:
    """Random directions, rows of norm 1, on the device of the first batch."""
    rows = torch.randn(recipe.d_sae, d_in, generator=generator)
    return unit_rows(rows).to(first.device).requires_grad_()


def centre(recipe: Recipe, first: Float[Tensor, "batch d_in"]) -> Float[Tensor, " d_in"]:
    """Where `b_dec` starts: the mean of the first batch, or zero."""
    start = first.mean(0) if recipe.b_dec == "mean" else torch.zeros_like(first[0])
    return start.requires_grad_()


def per_latent(recipe: Recipe, first: Float[Tensor, "batch d_in"], value: float = 0.0) -> Float[Tensor, " d_sae"]:
    """A parameter with one value for each latent, the same at first."""
    return torch.full((recipe.d_sae,), value, device=first.device, requires_grad=True)


def untied(
    recipe: Recipe, d_in: int, first: Float[Tensor, "batch d_in"], generator: torch.Generator
) -> dict[str, Tensor]:
    """`W_dec` of random directions, `W_enc` equal to it, `b_enc` zero, `b_dec` as the recipe says."""
    W_dec = directions(recipe, d_in, first, generator)
    return {
        "W_enc": W_dec.detach().clone().requires_grad_(),
        "b_enc": per_latent(recipe, first),
        "W_dec": W_dec,
        "b_dec": centre(recipe, first),
    }


def rise(moment: Moment, share: float, after: float = 0.0) -> float:
    """0 during a share `after` of the steps, then linearly up to 1 over the next `share` of them."""
    since = moment.step + 1 - after * moment.steps
    if since <= 0:
        return 0.0
    return min(1.0, since / (share * moment.steps)) if share else 1.0


def squared_error(x: Float[Tensor, "batch d_in"], x_hat: Float[Tensor, "batch d_in"]) -> Float[Tensor, ""]:
    """Σ‖x − x_hat‖² over the batch."""
    return (x - x_hat).square().sum()
