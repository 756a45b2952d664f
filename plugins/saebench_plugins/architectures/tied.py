"""Tied SAEs, and a loss that makes latents orthogonal to activations on which they fire weakly (the post on tied SAEs).

    h     = σ(W (x − b))
    x_hat = Wᵀ h + b
    L     = ‖x − x_hat‖² / d_in + l1 · rise · ‖h‖₁ + L_aux
    L_aux = ortho · share / (B K) · Σ_i Σ_j [h_ij ≤ τ_j] cos²(x_i − b, w_j)
    τ_j   = share · ortho_peak · (largest h_j of the last 50 batches, this one included)

σ is ReLU, or with `jumprelu` the JumpReLU of threshold τ_j, which has no gradient in τ; the largest h_j is that of the
ReLU. `share` is 0 for the first `ortho_delay` of the steps, then rises to 1 over the next `ortho_warmup` (the post: 50M
and 50M of 150M samples). Latents that never fire have τ = 0 and are drawn away from all activations.

The post's λ of 10,000 belongs to activations as they are and an error summed over dimensions. As errors here are means,
`ortho` = λ / d_in weighs the same, and λ s² / d_in with `scaling="rms"`, where s is the scale. In the post's example
(20 orthogonal features, 5 latents, feature 12 on whenever 5 or 7 is; d_in 50, so ortho 200, or 50 when scaled) it finds
features 4 to 8 at cosine 1, and without the loss mixes 5 and 7 (.90 and .83), with rows of W of norm 1 or free alike.
Rows are kept at norm 1 by default, like decoders of the other architectures: a free row gains nothing from being short,
because the tie shortens what it rebuilds too.

cos² takes one pass over the pre-activations: ⟨x − b, w⟩ is one already.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from saebench_meta.training.kernels import Encoded, decode, encode
from saebench_meta.training.selection import above
from saebench_meta.training.trainable import Exported, Loss, Moment, TrainableSAE
from saebench_plugins.architectures.start import centre, directions, numbers, rise, squared_error

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

    from saebench_meta.training.recipe import Recipe

WINDOW = 50
"""Batches over which the largest activation is looked for (the post)."""


class Tied(TrainableSAE):
    """Hyperparameters: `l1` and `l1_warmup`, the share of the steps over which it rises; `ortho` (0: off),
    `ortho_delay`, `ortho_warmup`, `ortho_peak`; `jumprelu`; `unit_norm`, whether rows of W keep norm 1."""

    def __init__(
        self, recipe: Recipe, d_in: int, first: Float[Tensor, "batch d_in"], generator: torch.Generator
    ) -> None:
        self.settings, self.bfloat16 = numbers(recipe), recipe.precision == "bfloat16"
        self.constrained = ("W",) if self.settings["unit_norm"] else ()
        self.parameters = {"W": directions(recipe, d_in, first, generator), "b_dec": centre(recipe, first)}
        self.state = {
            "maxima": torch.zeros(WINDOW, recipe.d_sae, device=first.device),
            "tau": torch.zeros(recipe.d_sae, device=first.device),
        }

    def loss(self, x: Float[Tensor, "batch d_in"], moment: Moment) -> Loss:
        W, b_dec, s = self.parameters["W"], self.parameters["b_dec"], self.settings
        share = rise(moment, s["ortho_warmup"], s["ortho_delay"])
        weight = s["ortho"] * share
        encoded = encode(
            x,
            W,
            torch.zeros_like(W.detach()[:, 0]),
            b_dec,
            (lambda pre: torch.ones_like(pre, dtype=torch.bool)) if weight else (lambda pre: above(pre, 0.0)),
            bfloat16=self.bfloat16,
        )
        h = torch.relu(encoded.values)
        self._follow(encoded, h, moment, share)
        if s["jumprelu"]:
            h = h.masked_fill(h.detach() <= encoded.per_latent(self.state["tau"]), 0)
        sse = squared_error(x, decode(h, encoded.support, W, b_dec))
        mse, l1 = sse / x.numel(), h.sum() / len(x)
        total = mse + s["l1"] * rise(moment, s["l1_warmup"]) * l1
        parts = {"mse": mse.detach(), "l1": l1.detach()}
        if weight:
            ortho = weak_cosines(x - b_dec, W, encoded.values, h.detach() <= self.state["tau"])
            total, parts["ortho"] = total + weight * ortho, ortho.detach()
        return Loss(total, sse.detach(), (h.detach() > 0).sum(), encoded.fired(h), parts)

    def _follow(self, encoded: Encoded, h: Tensor, moment: Moment, share: float) -> None:
        """Bring the largest activations of the window, and τ, up to this batch."""
        if not (self.settings["ortho"] or self.settings["jumprelu"]):
            return
        h, maxima = h.detach(), self.state["maxima"]
        if encoded.support is None:
            largest = h.amax(0)
        else:
            largest = torch.zeros_like(maxima[0]).scatter_reduce_(0, encoded.support.cols, h, "amax")
        maxima[moment.step % WINDOW] = moment.processes.max(largest)
        self.state["tau"] = share * self.settings["ortho_peak"] * maxima.amax(0)

    def export(self) -> Exported:
        W, b_dec = self.parameters["W"].detach(), self.parameters["b_dec"].detach()
        jumps = bool(self.settings["jumprelu"])
        return Exported(
            W_enc=W.T.contiguous(),
            b_enc=-(W @ b_dec),
            W_dec=W,
            b_dec=b_dec,
            activation="jumprelu" if jumps else "relu",
            threshold=self.state["tau"] if jumps else None,
        )


def weak_cosines(
    centred: Float[Tensor, "batch d_in"],
    W: Float[Tensor, "d_sae d_in"],
    products: Float[Tensor, "batch d_sae"],
    weak: Float[Tensor, "batch d_sae"],
) -> Float[Tensor, ""]:
    """Mean over tokens and latents of cos²(x − b, w_j) where latent j is weak, 0 elsewhere.

    Args:
        products: ⟨x_i − b, w_j⟩.
    """
    tiny = torch.finfo(W.dtype).tiny
    squares = products.square() / centred.square().sum(1, keepdim=True).clamp_min(tiny)
    return (squares / W.square().sum(1).clamp_min(tiny)).masked_fill(~weak, 0).mean()
