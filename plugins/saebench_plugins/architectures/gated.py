"""Gated SAEs (Rajamanoharan et al. 2024a): which latents fire is decided apart from how strongly.

    pi    = W_gate (x − b_dec) + b_gate
    f     = [pi > 0] · relu(exp(r_mag) · W_gate (x − b_dec) + b_mag)
    x_hat = W_decᵀ f + b_dec,   ‖w_i‖ = 1
    L     = ‖x − x_hat‖² / d_in + l1 · rise · ‖relu(pi)‖₁ + ‖x − x_hat_frozen(relu(pi))‖² / d_in

The gate is a step, so it learns from the penalty and from a reconstruction of its own alone, through a decoder (W_dec
and b_dec) that this term does not move. Only the gate is penalised, so magnitudes do not shrink.

A gated SAE is exported as the JumpReLU SAE it equals: W_enc = exp(r_mag) W_gate, b_enc = b_mag and
θ = max(0, b_mag − exp(r_mag) b_gate). Defaults are A.6's of the paper, with which it shares the penalty, and like there
l1 depends on the scale of activations (see `relu`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from saebench_meta.training.kernels import decode, encode
from saebench_meta.training.selection import above
from saebench_meta.training.trainable import Exported, Loss, Moment, TrainableSAE
from saebench_plugins.architectures.start import centre, directions, numbers, per_latent, rise, squared_error

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

    from saebench_meta.training.recipe import Recipe


class Gated(TrainableSAE):
    """Hyperparameters: `l1`, and `l1_warmup`, the share of the steps over which it rises from 0."""

    def __init__(
        self, recipe: Recipe, d_in: int, first: Float[Tensor, "batch d_in"], generator: torch.Generator
    ) -> None:
        self.settings, self.bfloat16 = numbers(recipe), recipe.precision == "bfloat16"
        W_dec = directions(recipe, d_in, first, generator)
        self.parameters = {
            "W_gate": W_dec.detach().clone().requires_grad_(),
            "b_gate": per_latent(recipe, first),
            "r_mag": per_latent(recipe, first),
            "b_mag": per_latent(recipe, first),
            "W_dec": W_dec,
            "b_dec": centre(recipe, first),
        }
        self.state = {}

    def loss(self, x: Float[Tensor, "batch d_in"], moment: Moment) -> Loss:
        p, s = self.parameters, self.settings
        encoded = encode(x, p["W_gate"], p["b_gate"], p["b_dec"], lambda pre: above(pre, 0.0), bfloat16=self.bfloat16)
        pi, support = encoded.values, encoded.support
        r_mag, b_mag, b_gate = (encoded.per_latent(p[name]) for name in ("r_mag", "b_mag", "b_gate"))
        gate = torch.relu(pi)
        f = torch.relu(r_mag.exp() * (pi - b_gate) + b_mag) * (pi.detach() > 0)
        sse = squared_error(x, decode(f, support, p["W_dec"], p["b_dec"]))
        frozen = decode(gate, support, p["W_dec"].detach(), p["b_dec"].detach())
        mse, l1, aux = sse / x.numel(), gate.sum() / len(x), squared_error(x, frozen) / x.numel()
        return Loss(
            total=mse + s["l1"] * rise(moment, s["l1_warmup"]) * l1 + aux,
            sse=sse.detach(),
            active=(f.detach() > 0).sum(),
            fired=encoded.fired(f),
            parts={"mse": mse.detach(), "l1": l1.detach(), "aux": aux.detach()},
        )

    def export(self) -> Exported:
        p = {name: tensor.detach() for name, tensor in self.parameters.items()}
        r = p["r_mag"].exp()
        W_enc = r[:, None] * p["W_gate"]
        # Codes of the SAE are in these units already. θ is compared with them after b_dec has been subtracted, so the
        # subtraction moves b_enc alone.
        return Exported(
            W_enc=W_enc.T.contiguous(),
            b_enc=p["b_mag"] - W_enc @ p["b_dec"],
            W_dec=p["W_dec"],
            b_dec=p["b_dec"],
            activation="jumprelu",
            threshold=(p["b_mag"] - r * p["b_gate"]).clamp_min(0),
        )
