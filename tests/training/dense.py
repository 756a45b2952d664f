"""TopK, BatchTopK and Matryoshka SAEs written down again with dense matrices and plain operations.

What the tests of training and its benchmark compare with.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from saebench_meta.training.recipe import Recipe
from saebench_meta.training.trainer import Trainer


class DenseLoss:
    """The loss of an architecture of the TopK family, and its own count of how long latents have been silent."""

    def __init__(self, recipe: Recipe) -> None:
        self.recipe, self.settings = recipe, dict[str, Any](recipe.hyperparameters)
        self.silent = torch.zeros(recipe.d_sae)
        self.sse = math.nan
        self.aux_steps = 0

    def codes(self, pre: Tensor) -> Tensor:
        f, k = torch.relu(pre), self.settings["k"]
        if self.recipe.architecture == "topk":
            top = f.topk(k, dim=1)
            return torch.zeros_like(f).scatter(1, top.indices, top.values)
        top = f.flatten().topk(k * len(f), sorted=False)
        return torch.zeros_like(f).flatten().scatter(0, top.indices, top.values).view(f.shape)

    def __call__(self, p: Mapping[str, Tensor], x: Tensor) -> Tensor:
        """Of scaled activations; the latents that fire on them are counted."""
        s = self.settings
        pre = (x - p["b_dec"]) @ p["W_enc"].T + p["b_enc"]
        f = self.codes(pre)
        ends = [round(share * f.shape[1]) for share in s.get("prefixes", (1.0,))]
        errors = [x - (f[:, :m] @ p["W_dec"][:m] + p["b_dec"]) for m in ends]
        total = torch.stack([e.square().mean() for e in errors]).mean()
        dead = (self.silent >= self.recipe.dead_window).nonzero().view(-1)
        if len(dead):
            acts = torch.relu(pre[:, dead])
            top = acts.topk(min(s["k_aux"], len(dead)), dim=1)
            e_hat = torch.zeros_like(acts).scatter(1, top.indices, top.values) @ p["W_dec"][dead]
            total = total + s["aux"] * (errors[-1].detach() - e_hat).square().mean()
            self.aux_steps += 1
        self.silent = torch.where((f > 0).any(0), 0.0, self.silent + len(x))
        self.sse = float(errors[-1].detach().square().sum())
        return total


class DenseTrainer:
    """Starts where a trainer stands, with torch's fused Adam; `step` does what the trainer's does."""

    def __init__(self, trainer: Trainer) -> None:
        r = trainer.recipe
        self.scale, self.loss = trainer.scale, DenseLoss(r)
        self.p = {name: t.detach().clone().requires_grad_() for name, t in trainer.sae.parameters.items()}
        self.adam = torch.optim.Adam(self.p.values(), lr=r.lr, betas=(r.beta1, r.beta2), eps=r.eps, fused=True)

    def step(self, x: Tensor) -> float:
        """One step on unscaled activations; gives Σ‖x − x_hat‖², scaled."""
        self.loss(self.p, x * self.scale).backward()
        W_dec = self.p["W_dec"]
        with torch.no_grad():
            assert W_dec.grad is not None
            W_dec.grad -= (W_dec.grad * W_dec).sum(1, keepdim=True) * W_dec
            self.adam.step()
            self.adam.zero_grad()
            W_dec /= W_dec.norm(dim=1, keepdim=True)
        return self.loss.sse


def make_dead(trainer: Trainer, latents: Tensor) -> None:
    """Latents count as silent for longer than any window, in a run that is that old."""
    trainer.silent[latents] = trainer.recipe.tokens
    trainer.step_number = max(trainer.step_number, math.ceil(trainer.recipe.dead_window / trainer.recipe.batch_size))
