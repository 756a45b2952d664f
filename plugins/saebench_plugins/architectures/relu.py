"""ReLU SAEs with an L1 penalty (Bricken et al. 2023; paper, equation 3 and A.2; hyperparameters of A.6).

    f     = relu(W_enc (x − b_dec) + b_enc)
    x_hat = W_decᵀ f + b_dec,   ‖w_i‖ = 1
    L     = ‖x − x_hat‖² / d_in + l1 · rise · ‖f‖₁

The unit norm keeps the penalty from being evaded by small codes and long directions. A.6's l1 of 8e-5 belongs to
activations as they are: with `scaling="rms"`, which multiplies them by s = 1/rms, an l1 of 8e-5 · s weighs the same;
`scaling="none"` takes the source's unchanged. That l1 rises over the first 5 % of the steps is from Anthropic's update
of April 2024, and keeps latents alive while directions are random; A.6 does not speak of it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from saebench_meta.training.kernels import decode, encode
from saebench_meta.training.selection import above
from saebench_meta.training.trainable import Exported, Loss, Moment, TrainableSAE
from saebench_plugins.architectures.start import numbers, rise, squared_error, untied

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

    from saebench_meta.training.recipe import Recipe


class ReLU(TrainableSAE):
    """Hyperparameters: `l1`, and `l1_warmup`, the share of the steps over which it rises from 0."""

    def __init__(
        self, recipe: Recipe, d_in: int, first: Float[Tensor, "batch d_in"], generator: torch.Generator
    ) -> None:
        self.settings, self.bfloat16 = numbers(recipe), recipe.precision == "bfloat16"
        self.parameters, self.state = untied(recipe, d_in, first, generator), {}

    def loss(self, x: Float[Tensor, "batch d_in"], moment: Moment) -> Loss:
        p = self.parameters
        encoded = encode(x, p["W_enc"], p["b_enc"], p["b_dec"], lambda pre: above(pre, 0.0), bfloat16=self.bfloat16)
        f = torch.relu(encoded.values)
        sse = squared_error(x, decode(f, encoded.support, p["W_dec"], p["b_dec"]))
        mse, l1 = sse / x.numel(), f.sum() / len(x)
        return Loss(
            total=mse + self.settings["l1"] * rise(moment, self.settings["l1_warmup"]) * l1,
            sse=sse.detach(),
            active=(f.detach() > 0).sum(),
            fired=encoded.fired(f),
            parts={"mse": mse.detach(), "l1": l1.detach()},
        )

    def export(self) -> Exported:
        p = {name: tensor.detach() for name, tensor in self.parameters.items()}
        return Exported(
            W_enc=p["W_enc"].T.contiguous(),
            b_enc=p["b_enc"] - p["W_enc"] @ p["b_dec"],
            W_dec=p["W_dec"],
            b_dec=p["b_dec"],
            activation="relu",
        )
