"""TopK SAEs (Gao et al. 2024; paper, equation 9) and BatchTopK SAEs (paper, §6; hyperparameters of A.3).

    f     = the largest of relu(W_enc (x − b_dec) + b_enc): k of each token, or k·batch of the whole batch
    x_hat = W_decᵀ f + b_dec,   ‖w_i‖ = 1
    L     = ‖x − x_hat‖² / d_in + aux · ‖e − e_hat‖² / d_in,   e = x − x_hat, not differentiated

`e_hat` decodes, without b_dec, the `k_aux` largest relu'd pre-activations of latents that are dead (A.2; fewer where
fewer are dead or positive). The error is not divided by its variance: the paper's ‖e − ê‖² as it stands. At inference a
BatchTopK SAE is a JumpReLU SAE whose threshold is the mean, over batches, of the smallest activation kept (equation 8).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from saebench_meta.training.kernels import Encoded, decode_both, encode
from saebench_meta.training.selection import top_of_batch, top_per_row
from saebench_meta.training.trainable import Exported, Loss, Moment, Processes, TrainableSAE
from saebench_plugins.architectures.start import squared_error, untied
from saebench_plugins.architectures.topk_settings import k_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from jaxtyping import Float
    from torch import Tensor

    from saebench_meta.training.recipe import Recipe


class TopK(TrainableSAE):
    """Hyperparameters: `k` latents a token; `aux`, the coefficient of AuxK, and `k_aux`, its dead latents a token."""

    def __init__(
        self, recipe: Recipe, d_in: int, first: Float[Tensor, "batch d_in"], generator: torch.Generator
    ) -> None:
        self.recipe, self.k = recipe, k_of(recipe)
        self.parameters, self.state = untied(recipe, d_in, first, generator), {}

    def loss(self, x: Float[Tensor, "batch d_in"], moment: Moment) -> Loss:
        return sparse_loss(self.parameters, self.recipe, x, moment, lambda pre: top_per_row(pre, self.k))

    def export(self) -> Exported:
        return exported(self.parameters, "topk", k=self.k)


class BatchTopK(TrainableSAE):
    """Hyperparameters: `k` latents a token on average; `aux` and `k_aux` as for TopK."""

    def __init__(
        self, recipe: Recipe, d_in: int, first: Float[Tensor, "batch d_in"], generator: torch.Generator
    ) -> None:
        self.recipe, self.k = recipe, k_of(recipe)
        self.parameters = untied(recipe, d_in, first, generator)
        self.state = {"threshold": torch.zeros((), device=first.device)}

    def loss(self, x: Float[Tensor, "batch d_in"], moment: Moment) -> Loss:
        choose = lambda pre: top_of_batch(pre, self.k, moment.processes)  # noqa: E731
        return sparse_loss(self.parameters, self.recipe, x, moment, choose)

    def finish(self, batches: Iterator[Float[Tensor, "batch d_in"]], processes: Processes) -> None:
        self.state["threshold"] = smallest_kept(self.parameters, self.k, batches, processes)

    def export(self) -> Exported:
        return exported(self.parameters, "jumprelu", threshold=self.state["threshold"])


def sparse_loss(
    p: Mapping[str, Tensor],
    recipe: Recipe,
    x: Float[Tensor, "batch d_in"],
    moment: Moment,
    choose: Callable[[Tensor], Tensor],
) -> Loss:
    """The loss of latents chosen by `choose`, with AuxK where latents are dead."""
    encoded = encode_for(p, recipe, x, moment, choose)
    f = torch.relu(encoded.values)
    x_hat, e_hat = decode_both(f, encoded.support, p["W_dec"], p["b_dec"], encoded.aux)
    sse = squared_error(x, x_hat)
    return with_aux(sse / x.numel(), sse, x - x_hat.detach(), e_hat, encoded, f, recipe, moment)


def encode_for(
    p: Mapping[str, Tensor],
    recipe: Recipe,
    x: Float[Tensor, "batch d_in"],
    moment: Moment,
    choose: Callable[[Tensor], Tensor],
) -> Encoded:
    """Pre-activations at the chosen places, and those of dead latents where the recipe has a use for them."""
    s: Mapping[str, Any] = recipe.hyperparameters
    dead, k_aux = (moment.dead, s["k_aux"]) if s["aux"] else (None, 0)
    bfloat16 = recipe.precision == "bfloat16"
    return encode(x, p["W_enc"], p["b_enc"], p["b_dec"], choose, dead=dead, k_aux=k_aux, bfloat16=bfloat16)


def with_aux(
    mse: Float[Tensor, ""],
    sse: Float[Tensor, ""],
    e: Float[Tensor, "batch d_in"],
    e_hat: Float[Tensor, "batch d_in"] | None,
    encoded: Encoded,
    f: Tensor,
    recipe: Recipe,
    moment: Moment,
) -> Loss:
    """The whole loss: `mse`, and AuxK for the detached error `e`."""
    total, parts = mse, {"mse": mse.detach()}
    if e_hat is not None and moment.dead is not None:
        # On a GPU there may be no dead latents: then there is nothing to add, though e_hat is there.
        aux = moment.dead.any() * squared_error(e, e_hat) / e.numel()
        coefficient: Any = recipe.hyperparameters["aux"]
        total, parts = mse + coefficient * aux, {**parts, "aux": aux.detach()}
    return Loss(total=total, sse=sse.detach(), active=(f.detach() > 0).sum(), fired=encoded.fired(f), parts=parts)


def smallest_kept(
    p: Mapping[str, Tensor], k: int, batches: Iterator[Float[Tensor, "batch d_in"]], processes: Processes
) -> Float[Tensor, ""]:
    """Mean over batches of the smallest positive activation kept (paper, equation 8); 0 where none ever is."""
    least = []
    for x in batches:
        choose = lambda pre: top_of_batch(pre, k, processes)  # noqa: E731
        f = encode(x, p["W_enc"], p["b_enc"], p["b_dec"], choose).values
        kept = f.masked_fill(f <= 0, torch.inf)
        least.append(processes.min(kept.min() if len(kept) else f.new_tensor(torch.inf)))
    every = torch.stack(least) if least else p["b_dec"].new_full((1,), torch.inf)
    some = every.isfinite()
    return every.where(some, 0).sum() / some.sum().clamp_min(1)


def exported(
    p: Mapping[str, Tensor], activation: str, *, threshold: Float[Tensor, ""] | None = None, k: int | None = None
) -> Exported:
    """In canonical form, which encodes x itself: the shift by b_dec is in the bias."""
    W_enc, b_enc = p["W_enc"].detach(), p["b_enc"].detach()
    return Exported(
        W_enc=W_enc.T.contiguous(),
        b_enc=b_enc - W_enc @ p["b_dec"].detach(),
        W_dec=p["W_dec"].detach(),
        b_dec=p["b_dec"].detach(),
        activation=activation,
        threshold=None if threshold is None else threshold.expand(len(b_enc)).clone(),
        k=k,
    )
