"""Labelled sets for tests of probing: the pooled codes of `identity_sae` are what is written here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from fakes import FakeContext, identity_sae, labelled_set
from torch import Tensor

from saebench_meta.sae import SAE
from saebench_meta.task import Output
from saebench_tasks.sparse_probing import sparse_probing


def a_set(x: Tensor, label: Sequence[int], test: Sequence[bool], name: str = "toy:set") -> Any:
    """One token a text."""
    return labelled_set(x.float(), torch.arange(len(x)), label, test, name=name)


def noisy_set(
    *, classes: int = 3, per_class: int = 30, d: int = 8, noise: float = 1.0, seed: int = 0, name: str = "toy:set"
) -> Any:
    """Class c is higher in coordinate c; a third of each class is the test split."""
    g = torch.Generator().manual_seed(seed)
    label = torch.arange(classes * per_class) % classes
    x = torch.randn(len(label), d, generator=g) * noise
    x[torch.arange(len(label)), label] += 1
    return a_set(x, label.tolist(), [i // classes < per_class // 3 for i in range(len(label))], name)


def pure_set(classes: int = 3, per_class: int = 12, d: int = 8) -> Any:
    """Class c is coordinate c and nothing else."""
    label = [i % classes for i in range(classes * per_class)]
    return a_set(torch.eye(d)[label] * 2, label, [i < 4 * classes for i in range(len(label))])


def context(*sets: Any, seed: int = 0) -> FakeContext:
    return FakeContext(sets={one.name: one for one in sets}, seed=seed)


def run(sae: SAE, *sets: Any, seed: int = 0, **parameters: Any) -> Output:
    return sparse_probing(sae, context(*sets, seed=seed), **parameters)  # type: ignore[arg-type]


def score(output: Output, column: str) -> float:
    """The metric of that name, as its formula would give it."""
    assert output.documents is not None
    return float(np.mean(np.asarray(output.documents[column])))


def changed_latents(sae: SAE, order: Tensor, scale: Tensor) -> SAE:
    """Latents in another order, each code times a factor that its decoder row is divided by."""
    return replace(
        sae,
        W_enc=(sae.W_enc * scale)[:, order],
        b_enc=(sae.b_enc * scale)[order],
        W_dec=(sae.W_dec / scale[:, None])[order],
    )


__all__ = ["a_set", "changed_latents", "context", "identity_sae", "noisy_set", "pure_set", "run", "score"]
