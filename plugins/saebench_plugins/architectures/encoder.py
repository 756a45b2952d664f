"""The encoder of a BatchTopK SAE trained anew; its decoder stays as it is (paper, figure 23).

    f     = the k · batch largest of  (x − b_dec) W_encᵀ + b_enc
    x_hat = Σ f_i w_i + b_dec
    L     = ‖x − x_hat‖² / d_in + AuxK,   over W_enc and b_enc only

It asks how well a dictionary that was not trained for these activations does with the best encoder there is for it,
such as a meta-SAE whose decoder rows were replaced by the latents of another SAE. Training starts from the given SAE's
encoder. Activations enter as s · x, with s such that their mean square is 1 a dimension, so that a learning rate means
the same for every SAE; s is folded out again.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from saebench_meta.errors import SaebenchError
from saebench_meta.training.selection import top_of_batch
from saebench_meta.training.trainable import Exported, Loss, Moment, Processes, TrainableSAE
from saebench_meta.training.trainer import scale_of
from saebench_plugins.architectures.topk import exported, smallest_kept, sparse_loss
from saebench_plugins.architectures.topk_settings import k_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from jaxtyping import Float
    from torch import Tensor

    from saebench_meta.sae import SAE
    from saebench_meta.training.recipe import Recipe


class Encoder(TrainableSAE):
    """Hyperparameters: those of BatchTopK; starts from an SAE."""

    constrained = ()

    def __init__(
        self,
        recipe: Recipe,
        d_in: int,  # noqa: ARG002
        first: Float[Tensor, "batch d_in"],
        generator: torch.Generator,  # noqa: ARG002
        *,
        start: SAE,
    ) -> None:
        """As `TrainableSAE`.

        Raises:
            SaebenchError: the SAE transforms each token, or has an encoder of its own kind.
        """
        if start.info.input_transform != "none" or start.encoder is not None:
            raise SaebenchError(
                f"architecture 'encoder' cannot start from '{start.info.name}': it trains encoders of the form "
                "x W_enc + b_enc, of SAEs that read activations as they are"
            )
        self.recipe, self.k, self.start = recipe, k_of(recipe), start.to(first.device, torch.float32)
        scale = torch.tensor(scale_of(first), device=first.device)
        W_enc = self.start.W_enc.detach().T.contiguous()
        b_enc = self.start.b_enc.detach() + W_enc @ self.start.b_dec.detach()
        self.parameters = {"W_enc": W_enc.clone().requires_grad_(), "b_enc": (b_enc * scale).requires_grad_()}
        self.state = {"scale": scale, "threshold": torch.zeros((), device=first.device)}

    @property
    def all(self) -> dict[str, Tensor]:
        """What is trained, and the decoder, in units of the scaled activations."""
        fixed = {"W_dec": self.start.W_dec.detach(), "b_dec": self.start.b_dec.detach() * self.state["scale"]}
        return {**self.parameters, **fixed}

    def loss(self, x: Float[Tensor, "batch d_in"], moment: Moment) -> Loss:
        s = self.state["scale"]
        found = sparse_loss(
            self.all, self.recipe, x * s, moment, lambda pre: top_of_batch(pre, self.k, moment.processes)
        )
        return replace(found, sse=found.sse / s**2)

    def finish(self, batches: Iterator[Float[Tensor, "batch d_in"]], processes: Processes) -> None:
        scaled = (x * self.state["scale"] for x in batches)
        self.state["threshold"] = smallest_kept(self.all, self.k, scaled, processes)

    def export(self) -> Exported:
        s = self.state["scale"]
        made = exported(self.all, "jumprelu", threshold=self.state["threshold"] / s)
        return replace(made, b_enc=made.b_enc / s, b_dec=self.start.b_dec.detach())
