"""The stock protocol of sae-bench 0.6.0, so that old results can be compared. Its faults are kept.

As there: texts of one class against as many drawn from the others, in equal numbers from each, drawn anew for every
class and k, training and test apart; the k latents with the largest |difference of means|; scikit-learn's
`LogisticRegression` as it comes, but for 1,000 iterations, on codes that are not rescaled; no validation. At most 2,000
training and 500 test texts a class, as many for every class. The probe on activations is trained by AdamW (rate .01,
batches of 250, at most 100 epochs) and stopped early on the **test** texts, of which it keeps the best epoch.

Codes and activations are pooled as everywhere in this suite. That is what the peer's padding comes to: it pads on the
right of a causal model, sets BOS, EOS and padding to zero and leaves out positions whose activations sum to zero.
Its stream of random numbers is not reproduced; scores agree within the spread of its own seeds. There the probe on
all latents of the SAE is reported too; here as many random latents, fitted alike, are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from saebench_meta import seeds
from saebench_tasks.sparse_probing.examples import Examples, test_ids
from saebench_tasks.sparse_probing.probing import Outcome, Probed, ranks
from saebench_tasks.sparse_probing.selection import Chosen, choose, columns, random_latents

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int
    from torch import Tensor

    from saebench_meta.codes import Codes
    from saebench_meta.labelled import Labelled

VERSION = "sae-bench-0.6"
TRAIN, TEST = 2000, 500
"""Texts of a class: half of the peer's 4,000 and 1,000, the other half being negatives."""
ITERATIONS = 1000
RATE, BATCH, EPOCHS, PATIENCE = 1e-2, 250, 100, 10
DENSE = 0
"""Stands for the activations where draws are named by k."""


@dataclass(frozen=True, eq=False)
class Draw:
    """Texts of one probe, the class's first, and which are of the class."""

    texts: Int[np.ndarray, " drawn"]
    positive: Bool[np.ndarray, " drawn"]


@dataclass(frozen=True, eq=False)
class Sample:
    """The texts of a set that the protocol uses, by class and split."""

    labelled: Labelled
    train: tuple[Int[np.ndarray, " texts"], ...]
    test: tuple[Int[np.ndarray, " texts"], ...]
    seed: int

    def draws(self, c: int, k: int) -> tuple[Draw, Draw]:
        """Training and test texts of a class's probe; the same for every SAE, unlike the peer's."""
        rng = seeds.rng(self.seed, "sparse_probing", VERSION, self.labelled.name, c, k)
        return _draw(self.train, c, rng), _draw(self.test, c, rng)


def sample(labelled: Labelled, seed: int) -> Sample:
    """At most the peer's number of texts of each class, equally many; which ones, the order of their hashes says."""

    def of(split: Bool[np.ndarray, " texts"], most: int) -> tuple[Int[np.ndarray, " texts"], ...]:
        texts = [np.flatnonzero(split & (labelled.label == c)) for c in range(len(labelled.classes))]
        n = min(most, *(len(t) for t in texts))
        return tuple(t[:n] for t in texts)

    return Sample(labelled, of(~labelled.test, TRAIN), of(labelled.test, TEST), seed)


def _draw(classes: Sequence[Int[np.ndarray, " texts"]], c: int, rng: np.random.Generator) -> Draw:
    """A class against as many texts of the others: ⌈n / others⌉ of each, of which n."""
    n, others = len(classes[c]), [texts for other, texts in enumerate(classes) if other != c]
    each = -(-n // len(others))
    pool = np.concatenate([rng.permutation(texts)[:each] for texts in others])
    texts = np.concatenate([classes[c], rng.permutation(pool)[:n]])
    return Draw(texts, np.arange(len(texts)) < n)


def probe(labelled: Labelled, codes: Codes, ks: Sequence[int], seed: int, dense: Outcome) -> Probed:
    """Probes of every class and k, on the chosen latents and on random ones."""
    drawn, of = sample(labelled, seed), _examples(labelled)
    random = random_latents(codes, of, max(ks), seed)
    said = {kind: _Said(of, len(ks)) for kind in ("latents", "random")}
    chosen = []
    for i, k in enumerate(ks):
        for c in range(len(of.positive)):
            train, test = drawn.draws(c, k)
            best = choose(codes, _one(of, c, train), k, "mean_diff")
            for kind, latents in (("latents", best.latents), ("random", random[c : c + 1, :k])):
                X = columns(codes, latents)[0].float().cpu().numpy()
                said[kind].take(i, c, test, _logistic(X[train.texts], train.positive, X[test.texts]))
            chosen.append((k, best))
    last = [best for k, best in chosen if k == max(ks)]
    most = Chosen(*(np.concatenate([getattr(b, name) for b in last]) for name in ("latents", "difference", "score")))
    return Probed(of, said["latents"].outcome(), said["random"].outcome(), dense, most)


def probe_dense(labelled: Labelled, seed: int) -> Outcome:
    """The peer's probe on activations."""
    drawn, of = sample(labelled, seed), _examples(labelled)
    said = _Said(of, 1)
    for c, name in enumerate(of.classes):
        train, test = drawn.draws(c, DENSE)
        generator = seeds.generator(seed, "sparse_probing", VERSION, "activations", labelled.name, name)
        said.take(0, c, test, _stopped_early(labelled.x, train, test, generator))
    return said.outcome()


def _examples(labelled: Labelled) -> Examples:
    """Every class has a probe, in a set of two classes too; one split, without validation."""
    test = np.flatnonzero(labelled.test)
    return Examples(
        labelled.name,
        test_ids(labelled),
        labelled.classes,
        labelled.label == np.arange(len(labelled.classes))[:, None],
        ~labelled.test[None],
        np.zeros((1, labelled.n_texts), dtype=bool),
        test,
        labelled.label[test],
    )


def _one(of: Examples, c: int, train: Draw) -> Examples:
    """One class, with a draw as its training split."""
    mask = np.zeros((1, of.positive.shape[1]), dtype=bool)
    mask[0, train.texts] = True
    return replace(of, classes=of.classes[c : c + 1], positive=of.positive[c : c + 1], train=mask)


def _logistic(X: Float[np.ndarray, "train k"], y: np.ndarray, X_test: Float[np.ndarray, "test k"]) -> np.ndarray:
    """Logits of the test texts by the peer's probe."""
    from sklearn.linear_model import LogisticRegression

    return np.asarray(LogisticRegression(max_iter=ITERATIONS).fit(X, y).decision_function(X_test))


def _stopped_early(
    x: Float[Tensor, "texts d_in"], train: Draw, test: Draw, generator: torch.Generator
) -> Float[np.ndarray, " drawn"]:
    """Logits of the test texts at the epoch that was best on them."""
    x = x.detach()
    X, X_test = x[torch.as_tensor(train.texts)], x[torch.as_tensor(test.texts)]
    y, y_test = (torch.as_tensor(draw.positive, device=x.device) for draw in (train, test))
    bound = x.shape[1] ** -0.5
    start = (torch.rand(x.shape[1] + 1, generator=generator) * 2 - 1) * bound
    w, b = (part.clone().to(x.device).requires_grad_() for part in (start[:-1], start[-1]))
    optimizer = torch.optim.AdamW([w, b], lr=RATE)
    best, waited, logits = 0.0, 0, torch.zeros(len(X_test), device=x.device)
    for _ in range(EPOCHS):
        for batch in torch.split(torch.randperm(len(X), generator=generator).to(x.device), BATCH):
            with torch.enable_grad():
                wanted = y[batch].to(x.dtype)
                loss = torch.nn.functional.binary_cross_entropy_with_logits(X[batch] @ w + b, wanted)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        said = (X_test @ w + b).detach()
        accuracy = float(((said > 0) == y_test).double().mean())
        waited += 1
        if accuracy > best:
            best, waited, logits = accuracy, 0, said
        if waited >= PATIENCE:
            break
    return np.asarray(logits.double().cpu().numpy())


class _Said:
    """What probes say of the test texts they are asked about, gathered class by class."""

    def __init__(self, of: Examples, n_ks: int) -> None:
        shape = (n_ks, len(of.positive), len(of.test))
        self.right, self.ranked, self.asked = np.zeros(shape), np.zeros(shape), np.zeros(shape, dtype=bool)
        self.place = np.zeros(of.positive.shape[1], dtype=np.int64)
        self.place[of.test] = np.arange(len(of.test))

    def take(self, i: int, c: int, test: Draw, logits: Float[np.ndarray, " drawn"]) -> None:
        at = self.place[test.texts]
        self.asked[i, c, at] = True
        self.right[i, c, at] = (logits > 0) == test.positive
        self.ranked[i, c, at] = ranks(logits, test.positive)

    def outcome(self) -> Outcome:
        ks, classes, _ = self.right.shape
        nothing = np.full((ks, classes, 1), 1.0)
        return Outcome(self.right, self.ranked, self.asked, nothing, np.full(ks, np.nan))
