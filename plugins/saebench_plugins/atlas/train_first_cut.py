"""A small, dense BatchTopK trainer: just enough for the built-in SAEs, until the suite's own trainer replaces it.

BatchTopK (Bussmann et al. 2024): over a batch of B tokens the k·B largest ReLU pre-activations are kept,

    pre   = (x − b_dec) W_enc + b_enc
    f     = BatchTopK(relu(pre))
    x_hat = f W_dec + b_dec
    loss  = mean‖x − x_hat‖² + (1/32) · AuxK,

with decoder rows of norm 1, the gradient's part along each row removed, and AuxK as in Gao et al. 2024 (appendix A.2):
the residual x − x_hat reconstructed from the largest pre-activations of the dead latents alone.  At inference a latent
is active above one threshold θ, the mean over batches of the smallest activation kept; it is measured once, on the
final weights, so that no moving average has to be corrected.  Durations are fractions of the run, because the usual
ones (10 million tokens until a latent counts as dead) never come about in a short one.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class BatchTopKRecipe:
    """How a BatchTopK SAE is trained.

    Attributes:
        d_sae: Number of latents.
        k: Mean number of active latents a token.
        steps: Optimizer steps.
        batch: Tokens a step.
        lr: Peak learning rate; constant after a warm-up over 1/20 of the steps, falling linearly to zero over the last
            fifth.
        dead_after: Share of the steps without firing after which a latent counts as dead.
        aux: Weight of AuxK.
        seed: Seeds initialisation and order of the data.
    """

    d_sae: int
    k: int = 4
    steps: int = 2500
    batch: int = 2048
    lr: float = 3e-3
    dead_after: float = 0.02
    aux: float = 1 / 32
    seed: int = 0


@dataclass(frozen=True)
class Dictionary:
    """A trained SAE in canonical form: ``f = relu(pre)·(pre > θ)`` with ``pre = x W_enc + b_enc``.

    Attributes:
        W_enc: (d_in, d_sae).
        b_enc: (d_sae,), with the subtraction of `b_dec` folded in.
        W_dec: (d_sae, d_in), rows of norm 1.
        b_dec: (d_in,).
        threshold: θ, in units of the activations.
    """

    W_enc: Tensor
    b_enc: Tensor
    W_dec: Tensor
    b_dec: Tensor
    threshold: float

    def encode(self, x: Tensor) -> Tensor:
        """Codes (tokens, d_sae) of activations (tokens, d_in)."""
        pre = x @ self.W_enc + self.b_enc
        return torch.relu(pre) * (pre > self.threshold)

    def decode(self, f: Tensor) -> Tensor:
        """Activations (tokens, d_in) from codes (tokens, d_sae)."""
        return f @ self.W_dec + self.b_dec


@dataclass(frozen=True)
class Quality:
    """How well a dictionary does on activations it was not trained on.

    Attributes:
        l0: Mean number of active latents a token.
        fvu: Fraction of variance unexplained, Σ‖x − x_hat‖² / Σ‖x − mean(x)‖².
        dead: Share of latents that never fire.
        tokens: Tokens measured.
    """

    l0: float
    fvu: float
    dead: float
    tokens: int


class _Parameters:
    """Weights in training; the encoder reads ``x − b_dec``."""

    def __init__(self, x: Tensor, recipe: BatchTopKRecipe, generator: torch.Generator) -> None:
        d_in = x.shape[1]
        directions = torch.randn(recipe.d_sae, d_in, generator=generator).to(x.device)
        self.W_dec = unit_rows(directions)
        self.W_enc = self.W_dec.T.clone()
        self.b_enc = torch.zeros(recipe.d_sae, device=x.device)
        self.b_dec = x.mean(0)
        for tensor in self.all():
            tensor.requires_grad_(True)

    def all(self) -> list[Tensor]:
        return [self.W_enc, self.b_enc, self.W_dec, self.b_dec]

    def relu_preactivations(self, x: Tensor) -> Tensor:
        return torch.relu((x - self.b_dec) @ self.W_enc + self.b_enc)


def unit_rows(matrix: Tensor) -> Tensor:
    """Rows scaled to norm 1."""
    return torch.nn.functional.normalize(matrix, dim=-1, eps=1e-12)


def batch_topk(activations: Tensor, k: int) -> Tensor:
    """Keep the ``k · batch`` largest entries of (batch, d_sae), zero the rest."""
    flat = activations.flatten()
    top = flat.topk(min(k * len(activations), flat.numel()), sorted=False)
    return torch.zeros_like(flat).scatter(0, top.indices, top.values).view_as(activations)


def row_topk(activations: Tensor, k: int) -> Tensor:
    """Keep the k largest entries of each row, zero the rest."""
    top = activations.topk(k, dim=-1, sorted=False)
    return torch.zeros_like(activations).scatter(-1, top.indices, top.values)


def auxk_loss(residual: Tensor, activations: Tensor, W_dec: Tensor, dead: Tensor) -> Tensor:
    """Mean‖e − e_hat‖² over tokens, e_hat being made of the largest d_in/2 dead latents of each token."""
    k_aux = min(residual.shape[1] // 2, int(dead.sum()))
    e_hat = row_topk(activations[:, dead], k_aux) @ W_dec[dead]
    return (residual.detach() - e_hat).pow(2).sum(-1).mean()


def learning_rate(step: int, recipe: BatchTopKRecipe) -> float:
    """Linear warm-up over 1/20 of the run, linear fall over the last fifth."""
    done = step / recipe.steps
    return recipe.lr * min(1.0, (step + 1) / max(1.0, recipe.steps / 20), (1 - done) / 0.2)


def shuffled_batches(x: Tensor, batch: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Endless batches of rows, in a new order each time all rows have been seen."""
    while True:
        for indices in torch.split(torch.randperm(len(x), generator=generator), batch):
            yield x[indices.to(x.device)]


def train_batch_topk(activations: Tensor, recipe: BatchTopKRecipe) -> Dictionary:
    """Train on activations (tokens, d_in), float32.

    They are scaled to a mean squared norm of d_in while training, so that the learning rate does not depend on the
    site, and the scale is folded into the result.
    """
    d_in = activations.shape[1]
    scale = math.sqrt(d_in / activations.pow(2).sum(-1).mean().item())
    x_all = activations * scale
    generator = torch.Generator().manual_seed(recipe.seed)
    weights = _Parameters(x_all, recipe, generator)
    optimizer = torch.optim.Adam(weights.all(), lr=recipe.lr, betas=(0.9, 0.99), fused=True)
    data = shuffled_batches(x_all, recipe.batch, generator)
    silent_since = torch.zeros(recipe.d_sae, device=x_all.device)
    for step in range(recipe.steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, recipe)
        dead = silent_since > recipe.dead_after * recipe.steps
        fired, error = _step(weights, optimizer, next(data), recipe, dead)
        silent_since = torch.where(fired, 0, silent_since + 1)
        if step % 500 == 0 or step == recipe.steps - 1:
            logger.info(
                "BatchTopK %d: step %d of %d, mean squared error %.4f a dimension, %d latents silent",
                recipe.d_sae, step, recipe.steps, error.item() / d_in, int(dead.sum()),
            )  # fmt: skip
    threshold = calibrate_threshold(weights, data, recipe.k)
    return _fold(weights, threshold, scale)


def _step(
    weights: _Parameters, optimizer: torch.optim.Optimizer, x: Tensor, recipe: BatchTopKRecipe, dead: Tensor
) -> tuple[Tensor, Tensor]:
    """One optimizer step; which latents fired (d_sae,), and the mean squared error summed over dimensions."""
    activations = weights.relu_preactivations(x)
    f = batch_topk(activations, recipe.k)
    residual = x - (f @ weights.W_dec + weights.b_dec)
    error = residual.pow(2).sum(-1).mean()
    loss = error
    if bool(dead.any()):
        loss = loss + recipe.aux * auxk_loss(residual, activations, weights.W_dec, dead)
    optimizer.zero_grad(set_to_none=True)
    torch.autograd.backward(loss)
    remove_parallel_gradient(weights.W_dec)
    torch.nn.utils.clip_grad_norm_(weights.all(), 1.0)
    optimizer.step()
    with torch.no_grad():
        weights.W_dec.copy_(unit_rows(weights.W_dec))
    return (f > 0).any(0), error.detach()


def remove_parallel_gradient(W_dec: Tensor) -> None:
    """Take out of each row's gradient its part along the row, which would only change the norm."""
    assert W_dec.grad is not None
    with torch.no_grad():
        W_dec.grad -= (W_dec.grad * W_dec).sum(-1, keepdim=True) * W_dec


@torch.no_grad()
def calibrate_threshold(weights: _Parameters, data: Iterator[Tensor], k: int, batches: int = 100) -> float:
    """θ: mean over batches of the smallest activation BatchTopK keeps."""
    minima = []
    for _ in range(batches):
        f = batch_topk(weights.relu_preactivations(next(data)), k)
        minima.append(f[f > 0].min())
    return float(torch.stack(minima).double().mean())


@torch.no_grad()
def _fold(weights: _Parameters, threshold: float, scale: float) -> Dictionary:
    """Canonical form in units of the unscaled activations: x·s in, x_hat/s out, the codes divided by s too."""
    b_enc = (weights.b_enc - weights.b_dec @ weights.W_enc) / scale
    return Dictionary(
        W_enc=weights.W_enc.detach().clone(),
        b_enc=b_enc.detach().clone(),
        W_dec=weights.W_dec.detach().clone(),
        b_dec=(weights.b_dec / scale).detach().clone(),
        threshold=threshold / scale,
    )


@torch.no_grad()
def measure(dictionary: Dictionary, activations: Tensor, chunk: int = 8192) -> Quality:
    """`Quality` on activations (tokens, d_in); sums in float64."""
    mean = activations.double().mean(0)
    active, unexplained, total = 0, 0.0, 0.0
    fired = torch.zeros(dictionary.W_dec.shape[0], dtype=torch.bool, device=activations.device)
    for x in torch.split(activations, chunk):
        f = dictionary.encode(x)
        active += int((f > 0).sum())
        fired |= (f > 0).any(0)
        unexplained += (x - dictionary.decode(f)).double().pow(2).sum().item()
        total += (x.double() - mean).pow(2).sum().item()
    tokens = len(activations)
    return Quality(l0=active / tokens, fvu=unexplained / total, dead=1 - fired.double().mean().item(), tokens=tokens)
