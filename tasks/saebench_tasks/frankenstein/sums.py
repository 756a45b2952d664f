"""Squared errors and active latents of many dictionaries in one pass over the sample.

Every dictionary here is made of the members' codes, which are worked out once: a member's own decoder, a stage's, a
retrained one's. A stage only adds latents to the one before it, so what that one rebuilds is gone on from. The whole
pass costs two sparse decodes of all members and one of each retrained dictionary.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from saebench_tasks.core import reconstruct

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int
    from torch import Tensor

    from saebench_meta.codes import Codes
    from saebench_meta.context import Context
    from saebench_meta.sae import SAE
    from saebench_tasks.frankenstein.build import Stage


@dataclass(frozen=True, eq=False)
class Layer:
    """A dictionary as sums over members' codes: what the dictionary number `base` gives, and its own rows.

    Attributes:
        sae: whose bias and input transform it has.
        rows: by number of the member, (d_sae of the member, d_in): zero rows for latents that it does not have.
        has: by number of the member, which latents it has.
    """

    sae: SAE
    rows: Mapping[int, Float[Tensor, "latents d_in"]]
    has: Mapping[int, Bool[Tensor, " latents"]]
    base: int | None = None


@dataclass(frozen=True)
class Sums:
    """Of one dictionary, over the tokens of each document: Σ ‖x − x_hat‖² and Σ L0."""

    sse: Float[np.ndarray, " docs"]
    active: Float[np.ndarray, " docs"]


def layers(members: Sequence[SAE], made: Sequence[Stage], trained: Mapping[int, SAE]) -> list[Layer]:
    """The members, then the stages, then the retrained stages in their order."""
    own = [_layer(sae, members, {i: (np.arange(sae.d_sae), sae.W_dec)}) for i, sae in enumerate(members)]
    added = []
    for i, stage in enumerate(made, 1):
        part = {i: (stage.chosen[-1], stage.split(stage.sae.W_dec)[-1])}
        added.append(_layer(stage.sae, members, part, base=0 if i == 1 else len(members) + i - 2))
    again = [
        _layer(sae, members, dict(enumerate(zip(made[i].chosen, made[i].split(sae.W_dec), strict=True))))
        for i, sae in trained.items()
    ]
    return [*own, *added, *again]


def _layer(
    sae: SAE,
    members: Sequence[SAE],
    parts: Mapping[int, tuple[Int[np.ndarray, " chosen"], Float[Tensor, "chosen d_in"]]],
    base: int | None = None,
) -> Layer:
    import torch

    rows, has = {}, {}
    for i, (chosen, W_dec) in parts.items():
        index = torch.from_numpy(chosen).to(W_dec.device)
        rows[i] = W_dec.new_zeros(members[i].d_sae, sae.d_in).index_copy_(0, index, W_dec)
        has[i] = torch.zeros(members[i].d_sae, dtype=torch.bool, device=W_dec.device).index_fill_(0, index, True)
    return Layer(sae, rows, has, base)


def measure(members: Sequence[SAE], dictionaries: Sequence[Layer], ctx: Context) -> list[Sums]:
    """Sums of every dictionary over the whole sample."""
    n_docs = ctx.sample().n_docs
    found = [Sums(np.zeros(n_docs), np.zeros(n_docs)) for _ in dictionaries]
    together = zip(*(ctx.code_chunks(sae) for sae in members), strict=True)
    for parts in ctx.track(together, "all dictionaries"):
        chunk, codes = parts[0][0], [c for _, c in parts]
        x, document = chunk.x.to(members[0].device), chunk.document.cpu().numpy()
        for sums, (error, active) in zip(found, _errors(dictionaries, codes, x), strict=True):
            sums.sse[:] += np.bincount(document, weights=error, minlength=n_docs)
            sums.active[:] += np.bincount(document, weights=active, minlength=n_docs)
    return found


def _errors(
    dictionaries: Sequence[Layer], codes: Sequence[Codes], x: Float[Tensor, "tokens d_in"]
) -> list[tuple[Float[np.ndarray, " tokens"], Int[np.ndarray, " tokens"]]]:
    """‖x − x_hat‖² and active latents of each token, for each dictionary."""
    import torch

    sums: list[tuple[Tensor, Tensor]] = []
    found = []
    for layer in dictionaries:
        none = torch.zeros_like(x, dtype=layer.sae.dtype), torch.zeros(len(x), dtype=torch.int64, device=x.device)
        decoded, active = none if layer.base is None else sums[layer.base]
        for i, rows in layer.rows.items():
            decoded = decoded + codes[i].decode(rows)
            active = active.index_add(0, codes[i].rows, layer.has[i][codes[i].cols.long()].long())
        sums.append((decoded, active))
        error = (x.double() - reconstruct(layer.sae, x, decoded)).square().sum(1)
        found.append((error.cpu().numpy(), active.cpu().numpy()))
    return found


def deviation(ctx: Context) -> tuple[Float[np.ndarray, " docs"], Float[np.ndarray, " docs"]]:
    """Tokens of each document, and their Σ ‖x − x̄‖², x̄ the mean of the whole sample."""
    import torch

    activations, n_docs = ctx.activations(), ctx.sample().n_docs
    mean = torch.as_tensor(activations.mean()).double()
    tokens, sst = np.zeros(n_docs), np.zeros(n_docs)
    for chunk in activations:
        document = chunk.document.cpu().numpy()
        squares = (chunk.x.double() - mean.to(chunk.x.device)).square().sum(1)
        tokens += np.bincount(document, minlength=n_docs)
        sst += np.bincount(document, weights=squares.cpu().numpy(), minlength=n_docs)
    return tokens, sst
