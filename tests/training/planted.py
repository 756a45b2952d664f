"""A planted dictionary: activations that are sparse nonnegative sums of known directions, and how many of them an SAE
found. For tests and benchmarks of training."""

from __future__ import annotations

from typing import Any

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from saebench_meta import seeds
from saebench_meta.training.recipe import make_recipe
from saebench_meta.training.trainable import unit_rows
from saebench_meta.training.trainer import Trainer
from saebench_plugins.architectures import saebench_architectures

SAME = 0.95
"""Cosine from which on a latent counts as the feature."""


def planted(d_in: int, features: int, firing: float, n: int, seed: int) -> tuple[Tensor, Tensor]:
    """Activations (n, d_in), and the true unit directions (features, d_in).

    Each feature is on with probability `firing`, independently, with a strength uniform in [0.5, 1.5].
    """
    g = seeds.generator(seed, "planted")
    truth = unit_rows(torch.randn(features, d_in, generator=g))
    on = torch.rand(n, features, generator=g) < firing
    return (on * (0.5 + torch.rand(n, features, generator=g))) @ truth, truth


def recovered(W_dec: Tensor, truth: Tensor) -> float:
    """Share of the true directions whose own latent (one latent a feature, best assignment) has cosine ≥ .95."""
    cosines = unit_rows(truth) @ unit_rows(W_dec.detach()).T
    rows, columns = linear_sum_assignment(-cosines.numpy())
    return float((cosines[rows, columns] >= SAME).float().mean())


def train(name: str, x: Tensor, steps: int, *, seed: int = 0, **given: Any) -> Trainer:
    """A built-in architecture after `steps` steps (of 256 activations unless `batch_size` is given) over shuffled
    passes of `x`, finished."""
    batch = given.setdefault("batch_size", 256)
    architecture = saebench_architectures()[name]
    recipe = make_recipe(architecture, name, tokens=steps * batch, seed=seed, **given)
    g = seeds.generator(seed, "order")
    passes = -(-steps * batch // x.shape[0])
    order = torch.cat([torch.randperm(x.shape[0], generator=g) for _ in range(passes)])
    trainer = Trainer(architecture, recipe, x[order[:batch]])
    for step in range(steps):
        trainer.step(x[order[step * batch : (step + 1) * batch]])
    trainer.finish(x[i : i + batch] for i in range(0, batch * recipe.threshold_batches, batch) if i + batch <= len(x))
    return trainer
