"""Probes of one set: fitted on the training split, C chosen on validation, what they say of the test texts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from scipy.stats import rankdata

from saebench_meta import probes
from saebench_tasks.sparse_probing.examples import balanced
from saebench_tasks.sparse_probing.selection import CONSTANT, choose, columns, random_latents

if TYPE_CHECKING:
    from collections.abc import Sequence

    from jaxtyping import Bool, Float
    from torch import Tensor

    from saebench_meta.codes import Codes
    from saebench_meta.probes import Probes
    from saebench_tasks.sparse_probing.examples import Examples
    from saebench_tasks.sparse_probing.selection import Chosen, Selection

GRID = (0.03, 0.3, 3.0)
"""C to choose from for latents, ascending: each fit starts from the one before."""
DENSE_GRID = (0.001, 0.01, 0.1, 1.0, 10.0)
"""For the activations, which have many more coordinates."""


@dataclass(frozen=True, eq=False)
class Outcome:
    """What the probes of one kind say of the test texts of a set, mean over split seeds.

    Attributes:
        right: share of the split seeds whose probe is right about the text.
        ranked: share of the texts on the other side that the text is ranked rightly against, ties one half; its mean
            over the texts of either side is the AUC.
        asked: whether the probe is scored on the text.
        C: chosen, by split seed.
        spread: deviation of the balanced accuracy (mean over classes) over split seeds, NaN with one.
    """

    right: Float[np.ndarray, "ks classes test"]
    ranked: Float[np.ndarray, "ks classes test"]
    asked: Bool[np.ndarray, "ks classes test"]
    C: Float[np.ndarray, "ks classes splits"]
    spread: Float[np.ndarray, " ks"]


@dataclass(frozen=True, eq=False)
class Probed:
    """One set, probed.

    Attributes:
        latents, random: by number of latents.
        dense: of the activations, as if one k.
        chosen: the latents of `latents`.
    """

    examples: Examples
    latents: Outcome
    random: Outcome
    dense: Outcome
    chosen: Chosen


def probe_latents(
    codes: Codes, examples: Examples, ks: Sequence[int], selection: Selection, seed: int
) -> tuple[Outcome, Outcome, Chosen]:
    """Probes on the chosen latents and, with the C chosen for them, on as many random ones."""
    chosen = choose(codes, examples, max(ks), selection)
    problems = _Problems(examples, codes.device)
    X = _standardised(columns(codes, chosen.latents), problems)
    fits = [problems.best(X[..., :k].contiguous(), GRID) for k in ks]
    X_random = _standardised(columns(codes, random_latents(codes, examples, max(ks), seed)), problems)
    C = [fit[1] for fit in fits]
    again = [problems.fitted(X_random[..., :k].contiguous(), c) for k, c in zip(ks, C, strict=True)]
    return problems.outcome([fit[0] for fit in fits], C), problems.outcome(again, C), chosen


def probe_dense(x: Float[Tensor, "texts d_in"], examples: Examples) -> Outcome:
    """Probes on the activations, each coordinate over its deviation on the texts outside the test split."""
    problems = _Problems(examples, x.device)
    outside = x[problems.outside].double()
    mean = outside.mean(0)
    X = (x.double() - mean) / _deviation(((outside - mean) ** 2).mean(0), mean)
    logits, C = problems.best(X, DENSE_GRID)
    return problems.outcome([logits], [C])


class _Problems:
    """Every class with every split seed: labels, weights and texts of its probe."""

    def __init__(self, examples: Examples, device: torch.device) -> None:
        self.examples = examples
        c, s = (np.array(column) for column in zip(*examples.problems, strict=True))
        positive = examples.positive[c]
        outside = np.flatnonzero((examples.train | examples.validation).any(0))
        self.outside = torch.as_tensor(outside, device=device)
        self.test = torch.as_tensor(examples.test, device=device)
        self.y = torch.as_tensor(positive[:, outside], device=device)
        self.train, self.validation = (
            torch.as_tensor(balanced(positive, of[s])[:, outside], device=device)
            for of in (examples.train, examples.validation)
        )

    def best(
        self, X: Tensor, grid: Sequence[float]
    ) -> tuple[Float[Tensor, "problems test"], Float[Tensor, " problems"]]:
        """Logits of the test texts with the C of least loss on validation, and that C; the least of equal ones."""
        fitted: Probes | None = None
        outside, test = X[..., self.outside, :], X[..., self.test, :]
        least = torch.full((len(self.y),), torch.inf, dtype=torch.float64, device=X.device)
        chosen_C = torch.full_like(least, grid[0])
        logits = torch.zeros(len(self.y), len(self.test), dtype=torch.float64, device=X.device)
        for C in grid:
            fitted = probes.fit(outside, self.y, C, self.train, fitted)
            loss = probes.loss(fitted, outside, self.y, self.validation)
            better = loss < least
            least, chosen_C = torch.where(better, loss, least), torch.where(better, C, chosen_C)
            logits = torch.where(better[:, None], fitted.logits(test), logits)
        return logits, chosen_C

    def fitted(self, X: Tensor, C: Float[Tensor, " problems"]) -> Float[Tensor, "problems test"]:
        """Logits of the test texts with the C given."""
        outside, test = X[..., self.outside, :], X[..., self.test, :]
        return probes.fit(outside, self.y, C, self.train).logits(test)

    def outcome(self, logits: Sequence[Tensor], C: Sequence[Tensor]) -> Outcome:
        """Means over split seeds of what the logits say, a list entry a k."""
        shape = (len(logits), len(self.examples.positive), len(self.examples.train))
        said = torch.stack(list(logits)).cpu().numpy().reshape(*shape, -1)
        positive = self.examples.positive[:, self.examples.test]
        right = (said > 0) == positive[:, None]
        ranked = np.stack([ranks(said[:, c], positive[c]) for c in range(len(positive))], axis=1)
        sides = [right[:, c][..., side].mean(-1) for c, p in enumerate(positive) for side in (p, ~p)]
        by_split = np.mean(sides, axis=0)
        spread = by_split.std(1, ddof=1) if shape[2] > 1 else np.full(shape[0], np.nan)
        mean_ranked, mean_right = ranked.mean(2), right.mean(2)
        asked = np.ones(mean_right.shape, dtype=bool)
        return Outcome(mean_right, mean_ranked, asked, torch.stack(list(C)).cpu().numpy().reshape(shape), spread)


def ranks(logits: Float[np.ndarray, "*rest texts"], positive: Bool[np.ndarray, " texts"]) -> np.ndarray:
    """For every text the share of the texts on the other side that it is ranked rightly against, ties one half.

    Logits are rounded first, so that texts with equal codes are tied whatever the order of their sums.
    """
    rounded = np.round(logits, 9)
    everywhere = rankdata(rounded, axis=-1)
    out = np.empty(rounded.shape)
    for side, right_above in ((positive, True), (~positive, False)):
        below = everywhere[..., side] - rankdata(rounded[..., side], axis=-1)
        share = below / max(1, (~side).sum())
        out[..., side] = share if right_above else 1 - share
    return out


def _standardised(X: Float[Tensor, "problems texts k"], problems: _Problems) -> Float[Tensor, "problems texts k"]:
    """Each column minus its mean and over its deviation on the problem's training texts, so that scale is nothing."""
    chosen = (problems.train > 0).to(X)
    n = chosen.sum(1)[:, None]
    outside = X[:, problems.outside]
    mean = torch.einsum("pn,pnk->pk", chosen, outside) / n
    centred = outside - mean[:, None]
    variance = torch.einsum("pn,pnk->pk", chosen, centred**2) / n
    return (X - mean[:, None]) / _deviation(variance, mean)[:, None]


def _deviation(variance: Tensor, mean: Tensor) -> Tensor:
    """Its root; 1 for a column that is constant but for rounding, which a probe then has no use for."""
    return torch.where(variance > CONSTANT * mean**2, variance.sqrt(), 1.0)
