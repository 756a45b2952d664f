"""Running `novel_latents` on a pair and a few activations in memory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pandas as pd
import pytest
import torch
from fakes import FakeContext, MemoryActivations
from torch import Tensor

from saebench_meta import measure, stats
from saebench_meta.sae import SAE
from saebench_meta.task import Output, Pair
from saebench_tasks.novel_latents import novel_latents, shown


@dataclass
class Context(FakeContext):
    """A context that makes intervals of sums kept by groups."""

    def groups(self, arrays: Any, statistic: Any, *, n: int, n_unit: str = "documents") -> stats.Estimate:
        return stats.from_groups(arrays, statistic, self.rng("groups"), n=n, n_unit=n_unit, resamples=50)


def held(d_in: int, *, tokens: int = 90, docs: int = 9, seed: int = 5) -> MemoryActivations:
    """Normal activations, documents of equal length."""
    x = torch.randn(tokens, d_in, generator=torch.Generator().manual_seed(seed))
    return MemoryActivations(x, torch.arange(tokens) * docs // tokens, docs, size=17)


def run(
    sae: SAE,
    reference: SAE,
    *,
    x: Tensor | None = None,
    limit: int | None = None,
    drawn: bool = False,
    **parameters: Any,
) -> Output:
    """The task's output, of normal activations unless `x` is given (a document a token); figures only if `drawn`."""
    activations = held(sae.d_in) if x is None else MemoryActivations(x, torch.arange(len(x)), len(x))
    with pytest.MonkeyPatch.context() as patch:
        if not drawn:
            patch.setattr(shown, "figures", lambda *_: {})
        output = novel_latents(Pair(sae, reference), Context(activations, limit=limit), **parameters)
    measure.check_output(novel_latents, output)
    return output


def latent_rows(output: Output) -> pd.DataFrame:
    """The table of latents, by latent."""
    return output.tables["latents"].data.set_index("latent").sort_index()


def novel_rows(output: Output) -> pd.DataFrame:
    """The novel latents, in the order of the table."""
    table = output.tables["latents"].data
    return table[table["novel"]]
