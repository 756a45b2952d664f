"""The linear probes of a set: one for each class and trial, on mean-pooled activations; no SAE is involved."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from saebench_meta import probes, seeds
from saebench_tasks.tpp import balance

if TYPE_CHECKING:
    from jaxtyping import Bool, Float
    from torch import Tensor

    from saebench_meta.context import Context
    from saebench_meta.labelled import Labelled

STRENGTHS = (0.1, 1.0, 10.0)
"""C that are tried, on activations scaled to a mean square of 1 a coordinate."""


@dataclass(frozen=True, eq=False)
class Trained:
    """The probes of a set.

    Attributes:
        train: the texts each trial trains and ranks on.
        W, b: `x @ W + b` above 0 says that a text is of the class, in the units of `x`.
        C: the strength chosen on the validation texts, one for the set.
    """

    train: Bool[np.ndarray, "trials texts"]
    W: Float[Tensor, "trials classes d_in"]
    b: Float[Tensor, "trials classes"]
    C: float


def trained(labelled: Labelled, ctx: Context, trials: int) -> Trained:
    """The probes of a set; made once a run, since no SAE or control changes them."""
    return ctx.memo(("tpp", "probes", labelled.name, trials), lambda: _train(labelled, ctx, trials))


def _train(labelled: Labelled, ctx: Context, trials: int) -> Trained:
    """Fits with every C, and keeps those with the smallest mean loss on the texts that the trials left out."""
    label, n_classes = labelled.label, len(labelled.classes)
    pool = ~labelled.test
    draws = [seeds.rng(ctx.seed, "tpp", "training texts", labelled.name, i) for i in range(trials)]
    train = np.stack([balance.draw(label, labelled.test, rng) for rng in draws])
    X = labelled.x[torch.from_numpy(pool).to(labelled.x.device)].double()
    mean = X.mean(0)
    scale = (X - mean).square().mean().sqrt().clamp_min(torch.finfo(torch.float64).tiny)
    Z = (X - mean) / scale
    y = torch.from_numpy(np.tile(label[pool] == np.arange(n_classes)[:, None], (trials, 1))).to(Z.device)
    fitted = _weights(label, train, n_classes)[:, pool].to(Z.device)
    held_out = _weights(label, ~train & pool, n_classes)[:, pool].to(Z.device)
    fits = [probes.fit(Z, y, C, fitted * train.sum(1).mean()) for C in STRENGTHS]
    best = int(np.argmin([float(probes.loss(fit, Z, y, held_out).mean()) for fit in fits]))
    W = (fits[best].W / scale).reshape(trials, n_classes, -1)
    return Trained(train, W, fits[best].b.reshape(trials, n_classes) - W @ mean, STRENGTHS[best])


def _weights(
    label: np.ndarray, chosen: Bool[np.ndarray, "trials texts"], n_classes: int
) -> Float[Tensor, "problems texts"]:
    return torch.from_numpy(np.concatenate([balance.weights(label, texts, n_classes) for texts in chosen]))
