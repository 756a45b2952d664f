"""Matryoshka BatchTopK SAEs (Bussmann et al. 2025): every prefix of the dictionary has to reconstruct by itself.

    f         = as in a BatchTopK SAE, chosen once over all latents
    x_hat_m   = Σ_{i < m} f_i w_i + b_dec   for each nested width m
    L         = mean over m of ‖x − x_hat_m‖² / d_in + aux · AuxK of the whole dictionary

The widths are shares of d_sae; the source's are 1/16, 1/8, 1/4, 1/2 and all of it. Parts of the dictionary are decoded
once, and prefixes are their running sums, so that five reconstructions cost little more than one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from saebench_meta.training.kernels import decode_both
from saebench_meta.training.selection import top_of_batch
from saebench_meta.training.trainable import Exported, Loss, Moment, Processes, TrainableSAE
from saebench_plugins.architectures.start import squared_error, untied
from saebench_plugins.architectures.topk import encode_for, exported, smallest_kept, with_aux
from saebench_plugins.architectures.topk_settings import k_of, widths

if TYPE_CHECKING:
    from collections.abc import Iterator

    from jaxtyping import Float
    from torch import Tensor

    from saebench_meta.training.recipe import Recipe


class Matryoshka(TrainableSAE):
    """Hyperparameters: `k`, `aux` and `k_aux` as for BatchTopK; `prefixes`, the nested widths as shares of d_sae."""

    def __init__(
        self, recipe: Recipe, d_in: int, first: Float[Tensor, "batch d_in"], generator: torch.Generator
    ) -> None:
        self.recipe, self.k = recipe, k_of(recipe)
        self.widths = widths(recipe)
        self.parameters = untied(recipe, d_in, first, generator)
        self.state = {"threshold": torch.zeros((), device=first.device)}

    def loss(self, x: Float[Tensor, "batch d_in"], moment: Moment) -> Loss:
        p = self.parameters
        encoded = encode_for(p, self.recipe, x, moment, lambda pre: top_of_batch(pre, self.k, moment.processes))
        assert encoded.support is not None
        f = torch.relu(encoded.values)
        parts, e_hat = decode_both(f, encoded.support.split(self.widths), p["W_dec"], None, encoded.aux)
        x_hat = parts.view(len(x), len(self.widths), -1).cumsum(1) + p["b_dec"]
        every = squared_error(x[:, None], x_hat)
        whole = x_hat.detach()[:, -1]
        mse = every / (x.numel() * len(self.widths))
        return with_aux(mse, squared_error(x, whole), x - whole, e_hat, encoded, f, self.recipe, moment)

    def finish(self, batches: Iterator[Float[Tensor, "batch d_in"]], processes: Processes) -> None:
        self.state["threshold"] = smallest_kept(self.parameters, self.k, batches, processes)

    def export(self) -> Exported:
        return exported(self.parameters, "jumprelu", threshold=self.state["threshold"])
