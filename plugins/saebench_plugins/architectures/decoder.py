"""The decoder of a given SAE, trained anew; its encoder stays as it is (stitching post, "Frankenstein's SAE").

    z     = transform(x),  f = codes of the SAE, in whatever way it encodes
    z_hat = Σ f_i w_i + b_dec
    L     = ‖z − z_hat‖² / d_in,   over W_dec and b_dec only

The norms of rows are free: elsewhere they are held at 1 because the encoder can make up for them, and codes that are
fixed cannot. The same holds for the scale of the activations, which the codes belong to: what is trained is therefore
w_i / ‖w_i at the start‖ and s · b_dec, with s such that the mean square of z is 1, so that a learning rate means the
same for every SAE. The codes enter as s · ‖w_i at the start‖ · f_i.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from saebench_meta.training.kernels import Support, decode
from saebench_meta.training.trainable import Exported, Loss, Moment, TrainableSAE
from saebench_meta.training.trainer import scale_of

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

    from saebench_meta.sae import SAE
    from saebench_meta.training.recipe import Recipe


class Decoder(TrainableSAE):
    """No hyperparameters; starts from an SAE."""

    constrained = ()

    def __init__(
        self,
        recipe: Recipe,  # noqa: ARG002
        d_in: int,  # noqa: ARG002
        first: Float[Tensor, "batch d_in"],
        generator: torch.Generator,  # noqa: ARG002
        *,
        start: SAE,
    ) -> None:
        self.start = start.to(first.device, torch.float32)
        norms = self.start.W_dec.detach().norm(dim=1)
        self.norms = torch.where(norms > 0, norms, 1)
        scale = torch.tensor(scale_of(self.start.transform(first)[0]), device=first.device)
        self.parameters = {
            "W_dec": (self.start.W_dec.detach() / self.norms[:, None]).requires_grad_(),
            "b_dec": (self.start.b_dec.detach() * scale).requires_grad_(),
        }
        self.state = {"scale": scale}

    def loss(self, x: Float[Tensor, "batch d_in"], moment: Moment) -> Loss:  # noqa: ARG002
        s = self.state["scale"]
        with torch.no_grad():
            z, stats = self.start.transform(x)
            codes = self.start.encode_sparse(x)
            support = Support(codes.rows, codes.cols.long(), codes.indptr[:-1], codes.n_latents)
            f = codes.values * (s * self.norms).index_select(0, support.cols)
        z_hat = decode(f, support, self.parameters["W_dec"], self.parameters["b_dec"])
        squares = (z * s - z_hat).square().sum(1)
        mse = squares.sum() / z.numel()
        token_scale = 1.0 if stats.scale is None else stats.scale.squeeze(1)
        return Loss(
            total=mse,
            sse=(squares.detach() * (token_scale / s) ** 2).sum(),
            active=torch.tensor(codes.nnz, device=x.device),
            fired=codes.counts() > 0,
            parts={"mse": mse.detach()},
        )

    def export(self) -> Exported:
        start = self.start
        return Exported(
            W_enc=start.W_enc,
            b_enc=start.b_enc,
            W_dec=self.parameters["W_dec"].detach() * self.norms[:, None],
            b_dec=self.parameters["b_dec"].detach() / self.state["scale"],
            activation=start.info.activation,
            threshold=start.threshold,
            k=start.info.k,
            start=start,
        )
