"""For a pair of cities: which edits change exactly which attributes.

The two cities differ in `a` of the attributes that the model answers right for both. Each of the 2^a − 1 subsets of
these asks for an edit after which the model answers as for the target within the subset, and as for the source on
everything else that it answers right for both. The margin of an edit for a subset is the smallest, over these
attributes, of the log-probability of the value wanted minus the largest of another value. The edit with the largest
margin on the selection prompts is chosen; the subset is reached if its margin on the held-out prompts is positive.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch.nn.functional import normalize, pad

if TYPE_CHECKING:
    from jaxtyping import Float, Int
    from torch import Tensor

    from saebench_meta.context import Context
    from saebench_meta.models import LanguageModel
    from saebench_meta.sae import SAE
    from saebench_tasks.city_steering.edits import CityLatents, Editor, Subsets
    from saebench_tasks.city_steering.prompts import Asked, Prompt

    Edit = Callable[[Tensor, Prompt], Float[Tensor, "edits t d_in"]]
    Answers = Sequence[Float[np.ndarray, "edits candidates"]]

TOKENS = 8192
"""Of one pass, over all edits."""


@dataclass(frozen=True)
class Pair:
    """Two cities, the attributes that the model answers right for both, and those of them in which they differ."""

    source: int
    target: int
    attributes: tuple[int, ...]
    differ: tuple[int, ...]

    @property
    def subsets(self) -> list[tuple[int, ...]]:
        """Of the attributes in which they differ, all but the empty one; the smallest first, the whole last."""
        return [s for size in range(1, len(self.differ) + 1) for s in combinations(self.differ, size)]


@dataclass(frozen=True, eq=False)
class Choice:
    """For each subset of a pair the edit chosen, and its margins.

    Attributes:
        edit: (subsets,) number of the edit.
        selection, heldout: (subsets,) its margin there, nats.
        logp: of each subset's edit, by attribute of the pair, the mean log-probabilities on held-out prompts.
    """

    edit: Int[np.ndarray, " subsets"]
    selection: Float[np.ndarray, " subsets"]
    heldout: Float[np.ndarray, " subsets"]
    logp: Answers

    @property
    def reached(self) -> np.ndarray:
        return np.asarray(self.heldout > 0)


@dataclass(frozen=True, eq=False)
class Searched:
    """What was found for a pair.

    Attributes:
        found: the edits.
        chosen, null: by meta-latent edits, and by as many random directions of the same norm.
        swap, rebuild: by attribute of the pair, log-probabilities on held-out prompts after the latent swap, and after
            the source's direction is rebuilt from all of its own meta-latents.
    """

    pair: Pair
    found: Subsets
    chosen: Choice
    null: Choice
    swap: Answers
    rebuild: Answers


def pairs(asked: Asked, most: int, rng: np.random.Generator) -> list[Pair]:
    """All ordered pairs of cities that differ in an attribute the model answers right for both; at most so many."""
    eligible = asked.eligible
    found = []
    for source in range(len(asked.cities)):
        for target in range(len(asked.cities)):
            both = (eligible[source] & eligible[target]).nonzero()[0]
            differ = tuple(int(a) for a in both if asked.right[source, a] != asked.right[target, a])
            if differ:
                found.append(Pair(source, target, tuple(map(int, both)), differ))
    if len(found) <= most:
        return found
    return [found[i] for i in sorted(rng.choice(len(found), most, replace=False))]


def wanted(asked: Asked, pair: Pair, changed: Sequence[Sequence[int]]) -> Int[np.ndarray, "subsets attributes"]:
    """Candidate to be answered, by subset and attribute of the pair."""
    return np.array(
        [[asked.right[pair.target if a in subset else pair.source, a] for a in pair.attributes] for subset in changed]
    )


def margins(logp: Answers, want: Int[np.ndarray, "subsets attributes"]) -> Float[np.ndarray, "edits subsets"]:
    """Smallest margin over the attributes, for each edit and subset."""
    by_attribute = []
    for a, values in enumerate(logp):
        n = values.shape[1]
        other = np.stack([np.delete(values, c, axis=1).max(1, initial=-np.inf) for c in range(n)], axis=1)
        by_attribute.append((values - other)[:, want[:, a]])
    return np.asarray(np.min(by_attribute, axis=0))


class Search:
    """Searches pairs with one SAE.

    Args:
        positions: where edits are made (`edits.POSITIONS`).
    """

    def __init__(self, sae: SAE, asked: Asked, latents: CityLatents, ctx: Context, positions: str) -> None:
        self.sae, self.asked, self.latents, self.ctx, self.positions = sae, asked, latents, ctx, positions
        self.lm: LanguageModel = ctx.lm()

    def editor(self, pair: Pair) -> Editor:
        from saebench_tasks.city_steering.edits import Editor

        return Editor(self.sae, self.latents, pair.source, pair.target, self.positions)

    def run(self, pair: Pair, found: Subsets) -> Searched:
        """Choose on the selection prompts, score on the held-out ones."""
        editor, n = self.editor(pair), len(found.directions)
        tried = torch.cat([found.directions, self._random(pair, n, found.directions)])
        want = wanted(self.asked, pair, pair.subsets)
        selection = margins(self.answers(pair, "selection", lambda x, p: editor.rebuilt(x, p, tried)), want)
        of_meta, of_null = selection[:n].argmax(0), n + selection[n:].argmax(0)
        used, place = np.unique(np.concatenate([[0], of_meta, of_null]), return_inverse=True)
        picked = tried[torch.from_numpy(used).to(tried.device)]
        heldout = self.answers(
            pair, "heldout", lambda x, p: torch.cat([editor.swap(x, p), editor.rebuilt(x, p, picked)])
        )
        rebuild, meta, null = np.split(1 + place, [1, 1 + len(want)])

        def choice(edits: np.ndarray, at: np.ndarray) -> Choice:
            each, logp = np.arange(len(want)), [values[at] for values in heldout]
            return Choice(edits % n, selection[edits, each], margins(logp, want)[each, each], logp)

        swap, kept = [values[:1] for values in heldout], [values[rebuild] for values in heldout]
        return Searched(pair, found, choice(of_meta, meta), choice(of_null, null), swap, kept)

    def _random(self, pair: Pair, n: int, like: Tensor) -> Float[Tensor, "n d_in"]:
        """Random directions, the same for every SAE and control of this width."""
        names = self.asked.cities
        generator = self.ctx.generator(f"directions for {names[pair.source]} to {names[pair.target]}")
        return normalize(torch.randn(n, like.shape[1], generator=generator), dim=1).to(like)

    def answers(self, pair: Pair, split: str, edit: Edit) -> Answers:
        """Mean log-probabilities of the candidates over the source's prompts, by attribute of the pair."""
        asked = self.asked
        prompts = list(asked.of(pair.source, split, pair.attributes))
        edited = [edit(x, prompt) for prompt, x in prompts]
        logits = self._logits([prompt.tokens for prompt, _ in prompts], edited)
        sums: dict[int, np.ndarray] = {}
        counts = dict.fromkeys(pair.attributes, 0)
        for (prompt, _), part in zip(prompts, torch.split(logits, [len(x) for x in edited]), strict=True):
            a = prompt.attribute
            logp = part.log_softmax(-1)[:, asked.ids[a].to(part.device)].double().cpu().numpy()
            sums[a], counts[a] = sums.get(a, 0) + logp, counts[a] + 1
        return [sums[a] / counts[a] for a in pair.attributes]

    def _logits(
        self, tokens: Sequence[Int[Tensor, " t"]], edited: Sequence[Float[Tensor, "edits t d_in"]]
    ) -> Float[Tensor, "rows vocab"]:
        """Logits after the last token of each prompt under each of its edits, prompts one after the other."""
        edits = [len(x) for x in edited]
        length, repeats = max(map(len, tokens)), torch.tensor(edits)
        padded = torch.stack([pad(t, (0, length - len(t))) for t in tokens]).repeat_interleave(repeats, 0)
        ends = torch.tensor([len(t) - 1 for t in tokens]).repeat_interleave(repeats)
        x = torch.cat([pad(part, (0, 0, 0, length - part.shape[1])) for part in edited])
        rows = max(1, min(TOKENS, self.ctx.batch_size or TOKENS) // length)
        parts = zip(*(torch.split(whole, rows) for whole in (padded, x, ends)), strict=True)
        hook = self.sae.info.site.hook
        return torch.cat([self.lm.branches(some, hook, activation, at) for some, activation, at in parts])
