"""What edits do to text that has nothing to do with the cities: KL(clean ‖ edited) of the next token, nats.

The text is rows of the sample that name none of the cities. A latent swap at all positions is made at every evaluated
token there; one that is made at the city, and meta-latent edits, where a latent of the source is on.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from saebench_meta.splice import kl_divergence

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int
    from torch import Tensor

    from saebench_meta.context import Context
    from saebench_meta.models import LanguageModel
    from saebench_tasks.city_steering.edits import Editor
    from saebench_tasks.city_steering.search import Searched


@dataclass(frozen=True, eq=False)
class Unrelated:
    """Rows of text, their activations and what the model predicts.

    Attributes:
        predictions: how many predictions count: of evaluated tokens.
    """

    tokens: Int[Tensor, "rows tokens"]
    evaluated: Bool[Tensor, "rows tokens"]
    x: Float[Tensor, "rows tokens d_in"]
    logits: Float[Tensor, "rows tokens vocab"]

    @property
    def predictions(self) -> int:
        return int(self.evaluated[:, 1:].sum())


def unrelated(ctx: Context, hook: str, city_tokens: frozenset[int], n_tokens: int) -> Unrelated | None:
    """The first rows of the sample without a city, of at most so many evaluated tokens; one at least, if any."""
    sample, lm = ctx.sample(), ctx.lm()
    free = ~torch.isin(sample.tokens, torch.tensor(sorted(city_tokens))).any(1)
    rows = free.nonzero().squeeze(1)
    sizes = sample.evaluated[rows].sum(1)
    rows = rows[: max(1, int((sizes.cumsum(0) <= n_tokens).sum()))]
    if not len(rows):
        return None
    longest = int(sample.lengths[rows].max())
    tokens, evaluated = sample.tokens[rows, :longest], sample.evaluated[rows, :longest]
    return Unrelated(tokens, evaluated.to(lm.device), lm.activations(tokens, hook), lm.logits(tokens))


@dataclass(frozen=True)
class Effects:
    """Sums of KL over the predictions of unrelated text, under the latent swap and the edit chosen to change all."""

    swap: float
    edit: float
    predictions: int


def effects(editor: Editor, text: Unrelated | None, done: Searched, lm: LanguageModel, hook: str) -> Effects | None:
    """Of a pair's edits; None where there is no such text."""
    if text is None:
        return None
    everything = done.found.directions[int(done.chosen.edit[-1])]
    swap, edit = swap_kl(lm, hook, text, editor), rebuilt_kl(lm, hook, text, editor, everything)
    return Effects(swap, edit, text.predictions)


def swap_kl(lm: LanguageModel, hook: str, text: Unrelated, editor: Editor) -> float:
    """Sum over the predictions, of the latent swap."""
    flat = text.x.flatten(0, 1)
    delta = editor.swap_delta(flat)
    if editor.positions != "all":
        delta = delta * editor.on(flat)[:, None]
    return _kl(lm, hook, text, delta.view_as(text.x))


def rebuilt_kl(lm: LanguageModel, hook: str, text: Unrelated, editor: Editor, direction: Tensor) -> float:
    """Sum over the predictions, of a meta-latent edit."""
    delta = editor.rebuilt_delta(text.x.flatten(0, 1), direction[None])[0]
    return _kl(lm, hook, text, delta.view_as(text.x))


def _kl(lm: LanguageModel, hook: str, text: Unrelated, delta: Float[Tensor, "rows tokens d_in"]) -> float:
    """Only rows in which something changes are run."""
    delta = delta * text.evaluated[..., None]
    rows = delta.abs().amax((1, 2)).nonzero().squeeze(1)
    if not len(rows):
        return 0.0
    edited = text.x[rows] + delta[rows]
    logits = lm.logits(text.tokens[rows.cpu()], hook=hook, edit=lambda _: edited)
    counted = text.evaluated[rows, 1:]
    found = kl_divergence(text.logits[rows, :-1][counted], logits[:, :-1][counted])
    return float(np.maximum(found.sum().item(), 0.0))
