"""`compat="sae-bench-0.6"`: the protocol of the stock tool, faults included, so that its numbers can be compared.

What differs from ours: at most 2,000 training and 500 test texts a class. A probe is trained on its class and as many
texts drawn from the others, by AdamW (batch 16, 20 epochs, L1), and the epoch is kept that does best on the *test*
texts. Only latents more active on the class than elsewhere are ranked by it. The others' texts are drawn anew for every
accuracy. Masked positions (padding to 128 tokens, BOS) have the activation 0, which the SAE encodes too; ablating takes
their codes from the text's mean. Both protocols read the same pooled activations and codes.

A trial is one run of the tool: all of its draws, the first weights and the order of batches are another's.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from saebench_meta import seeds
from saebench_tasks.tpp import ablation
from saebench_tasks.tpp.metrics import SIZES
from saebench_tasks.tpp.probe import Trained
from saebench_tasks.tpp.trial import Leak, Trial, bench_of, codes_on_test, drops

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int
    from torch import Tensor

    from saebench_meta.codes import Codes
    from saebench_meta.context import Context
    from saebench_meta.labelled import Labelled
    from saebench_meta.sae import SAE

NAME = "sae-bench-0.6"
TRAIN_TEXTS, TEST_TEXTS = 2000, 500
"""Of each class: half of the tool's sizes, which count positives and negatives."""
CONTEXT = 128
"""Tokens, BOS included, that every text is padded to."""
EPOCHS, BATCH, LR, L1 = 20, 16, 1e-3, 1e-3


def sampled(labelled: Labelled, rng: np.random.Generator) -> tuple[Bool[np.ndarray, " texts"], ...]:
    """The training and the test texts of a trial."""
    found = []
    for split, most in ((~labelled.test, TRAIN_TEXTS), (labelled.test, TEST_TEXTS)):
        chosen = np.zeros(labelled.n_texts, dtype=bool)
        for c in range(len(labelled.classes)):
            chosen[rng.permutation(np.flatnonzero(split & (labelled.label == c)))[:most]] = True
        found.append(chosen)
    return tuple(found)


def problem(
    label: Int[np.ndarray, " texts"],
    texts: Bool[np.ndarray, " texts"],
    j: int,
    n_classes: int,
    rng: np.random.Generator,
) -> Int[np.ndarray, " drawn"]:
    """The texts of class j and as many of the others, equally many of each up to rounding, in random order."""
    own = np.flatnonzero(texts & (label == j))
    share = math.ceil(len(own) / (n_classes - 1))
    others = [rng.permutation(np.flatnonzero(texts & (label == c)))[:share] for c in range(n_classes) if c != j]
    return rng.permutation(np.concatenate([own, rng.permutation(np.concatenate(others))[: len(own)]]))


class Run:
    """Trial number i: its texts, the same for probes and ablations, and problems drawn from them."""

    def __init__(self, labelled: Labelled, seed: int, i: int, purpose: str) -> None:
        self.labelled = labelled
        self.train, self.test = sampled(labelled, seeds.rng(seed, "tpp", NAME, "texts", labelled.name, i))
        self.rng = seeds.rng(seed, "tpp", NAME, purpose, labelled.name, i)

    def problem(self, j: int, *, test: bool) -> Int[np.ndarray, " drawn"]:
        texts = self.test if test else self.train
        return problem(self.labelled.label, texts, j, len(self.labelled.classes), self.rng)

    def weights(self) -> Float[Tensor, "texts classes"]:
        """What test texts weigh in the accuracy of each probe: 1 over the size of a problem drawn now."""
        out = np.zeros((self.labelled.n_texts, len(self.labelled.classes)))
        for j in range(out.shape[1]):
            drawn = self.problem(j, test=True)
            out[drawn, j] = 1 / len(drawn)
        return torch.from_numpy(out[self.labelled.test])


def trained(labelled: Labelled, ctx: Context, n: int) -> Trained:
    """The probes of all trials, trained as the tool does; made once a run."""

    def make() -> Trained:
        runs = [Run(labelled, ctx.seed, i, "probes") for i in range(n)]
        generator = seeds.generator(ctx.seed, "tpp", NAME, "probes", labelled.name)
        fitted = [_fit(runs, j, generator) for j in range(len(labelled.classes))]
        W, b = (torch.stack(parts, dim=1).double() for parts in zip(*fitted, strict=True))
        return Trained(np.stack([run.train for run in runs]), W, b, math.nan)

    return ctx.memo(("tpp", NAME, labelled.name, n), make)


def _fit(
    runs: list[Run], j: int, generator: torch.Generator
) -> tuple[Float[Tensor, "trials d_in"], Float[Tensor, " trials"]]:
    """The probe of class j in every trial; the trials share steps, not texts."""
    x, own = runs[0].labelled.x, torch.from_numpy(runs[0].labelled.label == j).to(runs[0].labelled.x)
    rows, tests = (torch.from_numpy(np.stack([r.problem(j, test=t) for r in runs])) for t in (False, True))
    bound = x.shape[1] ** -0.5
    first = (torch.rand(len(runs), x.shape[1] + 1, generator=generator) * 2 - 1) * bound
    theta = first.to(x).clone().requires_grad_()
    steps = torch.optim.AdamW([theta], lr=LR)
    best, kept = torch.full((len(runs),), -1.0), first.to(x)
    for _ in range(EPOCHS):
        order = torch.rand(rows.shape, generator=generator).argsort(1)
        for batch in torch.split(rows.gather(1, order), BATCH, dim=1):
            theta.grad = _gradient(theta.detach(), x[batch], own[batch])
            steps.step()
        now = theta.detach()
        right = ((_logits(now, x[tests]) > 0) == own[tests].bool()).float().mean(1).cpu()
        better = right > best
        best = torch.where(better, right, best)
        kept = torch.where(better[:, None].to(x.device), now, kept)
    return kept[:, :-1], kept[:, -1]


def _logits(theta: Float[Tensor, "trials d_plus_1"], x: Float[Tensor, "trials n d"]) -> Float[Tensor, "trials n"]:
    return torch.einsum("rnd,rd->rn", x, theta[:, :-1]) + theta[:, -1:]


def _gradient(
    theta: Float[Tensor, "trials d_plus_1"], x: Float[Tensor, "trials n d"], own: Float[Tensor, "trials n"]
) -> Float[Tensor, "trials d_plus_1"]:
    """Of mean log-loss plus L1 ‖w‖₁."""
    wrong = (torch.sigmoid(_logits(theta, x)) - own) / own.shape[1]
    w = torch.einsum("rn,rnd->rd", wrong, x) + L1 * theta[:, :-1].sign()
    return torch.cat([w, wrong.sum(1, keepdim=True)], dim=1)


def trials(labelled: Labelled, sae: SAE, probes: Trained, seed: int) -> list[Trial]:
    """All trials of a set on an SAE; without random latents, which the tool has not."""
    codes = labelled.scaled_codes(sae)
    on_test, leak = codes_on_test(labelled, codes), leak_of(labelled, sae)
    runs = [Run(labelled, seed, i, "ablations") for i in range(len(probes.W))]
    return [_trial(codes, on_test, sae, leak, probes, i, run) for i, run in enumerate(runs)]


def leak_of(labelled: Labelled, sae: SAE) -> Leak:
    """What masked positions add to the codes of each test text."""
    z, stats = sae.transform(torch.zeros(1, sae.d_in, device=sae.device, dtype=sae.dtype))
    f = sae.encode(torch.zeros_like(z))[0].double()
    n = torch.from_numpy(labelled.n_tokens[labelled.test]).to(sae.device).double()
    return Leak((CONTEXT - n).clamp_min(0) / n, f if stats.scale is None else f * stats.scale[0].double())


def _trial(codes: Codes, on_test: Codes, sae: SAE, leak: Leak, probes: Trained, number: int, run: Run) -> Trial:
    effect = ablation.effects(sae.W_dec, probes.W[number].to(sae.device))
    bench = replace(bench_of(run.labelled, on_test, effect, probes, number), leak=leak)
    chosen = [ranked(row) for row in scores(codes, run, effect)]
    right, clean = bench.right, run.weights().to(sae.device)
    anew = torch.stack([torch.stack([run.weights() for _ in SIZES]) for _ in chosen]).to(sae.device)
    fallen = drops(right * clean - bench.still(chosen) * anew)
    return Trial((right * clean).mean(1).cpu().numpy(), fallen, (), tuple(own.cpu().numpy() for own in chosen))


def scores(codes: Codes, run: Run, effect: Float[Tensor, "d_sae classes"]) -> Float[Tensor, "classes d_sae"]:
    """Attribution on a problem of each class drawn from the training texts."""
    label, n_classes = run.labelled.label, effect.shape[1]
    contrast = np.zeros((n_classes, len(label)))
    for j in range(n_classes):
        drawn = run.problem(j, test=False)
        own = label[drawn] == j
        contrast[j, drawn] = np.where(own, 1 / own.sum(), -1 / (~own).sum())
    return ablation.attribution(codes, torch.from_numpy(contrast).to(effect.device), effect, positive=True)


def ranked(attribution: Float[Tensor, " d_sae"]) -> Int[Tensor, " latents"]:
    """The latents with the largest attribution, as many as have one other than 0.

    The tool counts those and then takes that many of all: where few help the probe, latents with attribution 0, which
    are less active on the class than elsewhere, come before those below 0.
    """
    order = attribution.argsort(descending=True, stable=True)
    return order[: min(max(SIZES), int(attribution.count_nonzero()))]
