"""JumpReLU SAEs with an L0 penalty (Rajamanoharan et al. 2024b; paper, equation 10; hyperparameters of A.3).

    f     = pre · [pre > θ],   pre = W_enc x + b_enc
    x_hat = W_decᵀ f + b_dec,   ‖w_i‖ = 1
    L     = ‖x − x_hat‖² / d_in + l0_coefficient · rise · ‖f‖₀

As in the source, `b_dec` is not subtracted before encoding. Steps have no gradient; in its place, with the rectangle
K(u) = [|u| < ½] and a bandwidth ε (the source's equations 11 and 12),

    ∂f/∂θ = −(θ/ε) K((pre − θ)/ε),   ∂‖f‖₀/∂θ = −(1/ε) K((pre − θ)/ε),   ∂f/∂pre = [pre > θ],   ∂‖f‖₀/∂pre = 0.

θ itself is the parameter, in float32, where the source's is log θ: a step in log θ moves θ in proportion to itself,
and one that starts small stays there (a planted dictionary, 1000 steps: from .01 to .02 by log θ, to .2 by θ itself).
Below 0 it counts as 0, and the penalty's gradient takes it up again. θ starts at 1, as in the BatchTopK repository,
which also scales activations to 1 a dimension; a start that lets nearly everything through ends far too dense.

The bandwidth is in units of the scaled activations. Few pre-activations fall within .001 of θ when batches are small:
with 256 tokens, 2000 steps found 91 and 100 % of the planted features (two seeds) with thresholds still near 1; a
bandwidth of .03 and an l0_coefficient of .1 found all. Take a wider one for short runs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from saebench_meta.training.kernels import decode, encode
from saebench_meta.training.selection import above
from saebench_meta.training.trainable import Exported, Loss, Moment, TrainableSAE
from saebench_plugins.architectures.start import numbers, per_latent, rise, squared_error, untied

if TYPE_CHECKING:
    from jaxtyping import Bool, Float
    from torch import Tensor

    from saebench_meta.training.recipe import Recipe


class JumpReLU(TrainableSAE):
    """Hyperparameters: `l0_coefficient`; `l0_warmup`, the share of the steps over which it rises from 0; `bandwidth` ε;
    `threshold`, where θ starts."""

    def __init__(
        self, recipe: Recipe, d_in: int, first: Float[Tensor, "batch d_in"], generator: torch.Generator
    ) -> None:
        self.settings, self.bfloat16 = numbers(recipe), recipe.precision == "bfloat16"
        self.parameters, self.state = untied(recipe, d_in, first, generator), {}
        self.parameters["threshold"] = per_latent(recipe, first, self.settings["threshold"])

    def loss(self, x: Float[Tensor, "batch d_in"], moment: Moment) -> Loss:
        p, s = self.parameters, self.settings
        least = p["threshold"].detach().clamp_min(0) - s["bandwidth"] / 2
        encoded = encode(x, p["W_enc"], p["b_enc"], None, lambda pre: above(pre, least), bfloat16=self.bfloat16)
        f, on = Jump.apply(  # type: ignore[no-untyped-call]
            encoded.values, encoded.per_latent(p["threshold"]), s["bandwidth"]
        )
        sse = squared_error(x, decode(f, encoded.support, p["W_dec"], p["b_dec"]))
        mse, l0 = sse / x.numel(), on.sum() / len(x)
        return Loss(
            total=mse + s["l0_coefficient"] * rise(moment, s["l0_warmup"]) * l0,
            sse=sse.detach(),
            active=on.detach().sum(),
            fired=encoded.fired(f),
            parts={"mse": mse.detach(), "l0": l0.detach()},
        )

    def export(self) -> Exported:
        p = {name: tensor.detach() for name, tensor in self.parameters.items()}
        return Exported(
            W_enc=p["W_enc"].T.contiguous(),
            b_enc=p["b_enc"],
            W_dec=p["W_dec"],
            b_dec=p["b_dec"],
            activation="jumprelu",
            threshold=p["threshold"].clamp_min(0),
        )


class Jump(torch.autograd.Function):
    """Codes, and 1 where a latent is active, of pre-activations and a threshold that broadcasts against them."""

    @staticmethod
    def forward(ctx: Any, pre: Tensor, threshold: Tensor, bandwidth: float) -> tuple[Tensor, Tensor]:
        theta = threshold.clamp_min(0)
        on = pre > theta
        ctx.save_for_backward(theta, on, _near(pre, theta, bandwidth))
        ctx.bandwidth = bandwidth
        return pre * on, on.to(pre.dtype)

    @staticmethod
    def backward(ctx: Any, d_f: Tensor, d_on: Tensor) -> tuple[Tensor, Tensor, None]:
        theta, on, near = ctx.saved_tensors
        d_theta = -(theta * d_f + d_on) * near / ctx.bandwidth
        return d_f * on, d_theta if theta.shape == near.shape else d_theta.sum(0), None


def _near(pre: Tensor, theta: Tensor, bandwidth: float) -> Bool[Tensor, "..."]:
    """Within half a bandwidth of θ. A pre-activation of exactly 0 stands for one that was not looked at."""
    return ((pre - theta).abs() < bandwidth / 2) & (pre != 0)
