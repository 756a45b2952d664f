"""One trial of one set: latents ranked on its training texts, ablated on all test texts, and what the probes then say.

With A_ij(n) the accuracy of probe j on its own problem with the first n latents of class i ablated, and A_j without::

    intended(n)   = mean_i   (A_i − A_ii(n))
    unintended(n) = mean_i≠j (A_j − A_ij(n))
    S(n)          = intended(n) − unintended(n)

Accuracies are sums over test texts of w_jt (`balance`), so each of these is a sum of one number a text.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from saebench_meta import seeds
from saebench_tasks.tpp import ablation, balance
from saebench_tasks.tpp.metrics import SIZES

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int
    from torch import Tensor

    from saebench_meta.codes import Codes
    from saebench_meta.labelled import Labelled
    from saebench_meta.sae import SAE
    from saebench_tasks.tpp.probe import Trained

BLOCK_ELEMENTS = 2**23
"""Codes of ablated latents held at once: 64 MB."""
RANDOM_SETS = 4
"""Random sets of latents drawn for each class in each trial."""


@dataclass(frozen=True, eq=False)
class Drops:
    """What ablations take from the probes' accuracies, as sums over test texts.

    Attributes:
        intended, unintended: what each test text adds to the two means.
        cells: A_j − A_ij(n).
    """

    intended: Float[np.ndarray, "texts sizes"]
    unintended: Float[np.ndarray, "texts sizes"]
    cells: Float[np.ndarray, "ablated probed sizes"]

    @property
    def score(self) -> Float[np.ndarray, " sizes"]:
        """S(n)."""
        return np.asarray((self.intended - self.unintended).sum(0))


@dataclass(frozen=True, eq=False)
class Trial:
    """One trial of one set.

    Attributes:
        accuracy: what each test text adds to the mean accuracy of the probes without ablation.
        ranked: with the latents of each class ablated.
        random: with as many random latents ablated, once for each draw.
        latents: the ranked latents of each class.
    """

    accuracy: Float[np.ndarray, " texts"]
    ranked: Drops
    random: tuple[Drops, ...]
    latents: tuple[Int[np.ndarray, " latents"], ...]


@dataclass(frozen=True, eq=False)
class Leak:
    """Codes of masked positions that are ablated too, as in the stock protocol.

    Attributes:
        share: masked positions of each text over its evaluated tokens.
        f: the code of a masked position, whose activation is 0.
    """

    share: Float[Tensor, " texts"]
    f: Float[Tensor, " d_sae"]


@dataclass(frozen=True, eq=False)
class Bench:
    """What the ablations of a trial are measured on: test texts with their codes, and the probes' logits there."""

    codes: Codes
    effect: Float[Tensor, "d_sae classes"]
    logits: Float[Tensor, "texts classes"]
    own: Bool[Tensor, "texts classes"]
    leak: Leak | None = None

    @property
    def right(self) -> Bool[Tensor, "texts classes"]:
        """Which probes are right without ablation."""
        return (self.logits > 0) == self.own

    def still(self, sets: Sequence[Int[Tensor, " latents"]]) -> Bool[Tensor, "sets sizes texts classes"]:
        """Which are right with the first n latents of a set ablated, for every set and n."""
        most = max(1, BLOCK_ELEMENTS // max(1, self.codes.n_tokens * max(map(len, sets))))
        return torch.cat([self._still(sets[at : at + most]) for at in range(0, len(sets), most)])

    def _still(self, sets: Sequence[Int[Tensor, " latents"]]) -> Bool[Tensor, "sets sizes texts classes"]:
        latents = ablation.padded(sets)
        f = ablation.columns(self.codes, latents)
        if self.leak is not None:
            f = f + (self.leak.f[latents] * (latents >= 0))[:, :, None] * self.leak.share
        return (self.logits - ablation.removed(f, self.effect[latents], SIZES) > 0) == self.own


def drops(falls: Float[Tensor, "ablated sizes texts probed"]) -> Drops:
    """From what each text adds to A_j − A_ij(n)."""
    added, n = falls.cpu().numpy(), len(falls)
    intended = np.einsum("nstn->ts", added)
    unintended = added.sum(axis=(0, 3)).T - intended
    return Drops(intended / n, unintended / (n * (n - 1)), added.sum(axis=2).transpose(0, 2, 1))


def trials(labelled: Labelled, sae: SAE, trained: Trained, seed: int, *, positive: bool) -> list[Trial]:
    """All trials of a set on an SAE, from one product of its pooled codes with `W_dec P`."""
    codes, device = labelled.scaled_codes(sae), sae.device
    n_trials, n_classes, _ = trained.W.shape
    effect = ablation.effects(sae.W_dec, trained.W.flatten(0, 1).to(device))
    contrast = balance.contrast(labelled.label, trained.train, n_classes)
    scores = ablation.attribution(codes, torch.from_numpy(contrast).to(device), effect, positive=positive)
    weights = torch.from_numpy(balance.weights(labelled.label, labelled.test, n_classes)).T[labelled.test].to(device)
    on_test = codes_on_test(labelled, codes)
    found = []
    for i, columns in enumerate(torch.arange(len(scores), device=device).chunk(n_trials)):
        bench = bench_of(labelled, on_test, effect[:, columns], trained, i)
        train = torch.from_numpy(trained.train[i]).to(device)
        active = torch.bincount(codes.cols[train[codes.rows]], minlength=codes.n_latents).nonzero().squeeze(1)
        chosen = [ablation.ranked(row, max(SIZES)) for row in scores[columns]]
        rng = seeds.rng(seed, "tpp", "random latents", labelled.name, i)
        found.append(_trial(bench, weights, chosen, active, rng))
    return found


def codes_on_test(labelled: Labelled, codes: Codes) -> Codes:
    """The codes of the test texts."""
    return ablation.taken(codes, torch.from_numpy(labelled.test).to(codes.device))


def bench_of(
    labelled: Labelled, codes: Codes, effect: Float[Tensor, "d_sae classes"], trained: Trained, number: int
) -> Bench:
    """The bench of a trial: all test texts of the set, with their codes."""
    test, label = (torch.from_numpy(a).to(codes.device) for a in (labelled.test, labelled.label))
    W, b = trained.W[number].to(codes.device), trained.b[number].to(codes.device)
    logits = labelled.x.to(codes.device)[test].double() @ W.T + b
    own = label[test][:, None] == torch.arange(len(b), device=codes.device)
    return Bench(codes, effect, logits, own)


def _trial(
    bench: Bench,
    weights: Float[Tensor, "texts classes"],
    chosen: list[Int[Tensor, " latents"]],
    active: Int[Tensor, " latents"],
    rng: np.random.Generator,
) -> Trial:
    def drawn(size: int) -> Int[Tensor, " latents"]:
        return active[torch.from_numpy(rng.permutation(len(active))[:size]).to(active.device)]

    right = bench.right * weights
    random = [drawn(len(own)) for _ in range(RANDOM_SETS) for own in chosen]
    still = bench.still([*chosen, *random]) * weights
    ranked, *others = (drops(right - part) for part in torch.split(still, len(chosen)))
    return Trial(right.mean(1).cpu().numpy(), ranked, tuple(others), tuple(own.cpu().numpy() for own in chosen))
