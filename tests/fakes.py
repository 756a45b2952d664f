"""Small stand-ins for what a task is given: SAEs made by hand, activations in memory, a context without a run."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from saebench_meta import stats
from saebench_meta.sae import SAE, SAEInfo, Site

HOOK = "blocks.1.hook_resid_pre"


@dataclass(frozen=True)
class Chunk:
    x: Tensor
    document: Tensor


@dataclass(frozen=True)
class MemoryActivations:
    """Activations of `len(x)` tokens, in chunks of `size`."""

    x: Tensor
    document: Tensor
    n_docs: int
    size: int = 64

    @property
    def n_tokens(self) -> int:
        return len(self.x)

    def __iter__(self) -> Iterator[Chunk]:
        for start in range(0, len(self.x), self.size):
            yield Chunk(self.x[start : start + self.size], self.document[start : start + self.size])

    def mean(self) -> Tensor:
        return self.x.double().mean(0)


def info(d_in: int, d_sae: int, **changes: Any) -> SAEInfo:
    site = Site(model="toy", hook=HOOK)
    return SAEInfo(**{"name": "toy", "site": site, "d_in": d_in, "d_sae": d_sae, **changes})


def tied_sae(d_in: int, d_sae: int, *, seed: int = 0, bias: float = -0.5, **changes: Any) -> SAE:
    """Random unit rows, encoder their transpose, relu."""
    W = torch.randn(d_sae, d_in, generator=torch.Generator().manual_seed(seed))
    W = W / W.norm(dim=1, keepdim=True)
    return SAE(W.T.contiguous(), torch.full((d_sae,), bias), W, torch.zeros(d_in), info(d_in, d_sae, **changes))


def identity_sae(d_in: int, **changes: Any) -> SAE:
    """relu(x) and relu(−x): x_hat is x exactly."""
    eye = torch.eye(d_in)
    W_enc = torch.cat([eye, -eye], dim=1)
    zeros = torch.zeros(2 * d_in)
    return SAE(W_enc, zeros, W_enc.T.contiguous(), torch.zeros(d_in), info(d_in, 2 * d_in, **changes))


def constant_sae(value: Tensor, d_sae: int = 3, **changes: Any) -> SAE:
    """No latent is ever active; x_hat is `value`."""
    d_in = len(value)
    W = torch.zeros(d_in, d_sae)
    return SAE(W, torch.full((d_sae,), -1.0), W.T.contiguous(), value, info(d_in, d_sae, **changes))


@dataclass
class FakeContext:
    """What a session would hand over, without one."""

    held: MemoryActivations | None = None
    texts: Any = None
    model: Any = None
    limit: int | None = None
    seed: int = 0
    batch_size: int | None = None
    warnings: list[str] = field(default_factory=list)
    remembered: dict[tuple[object, ...], Any] = field(default_factory=dict)
    made: list[tuple[object, ...]] = field(default_factory=list)
    sets: dict[str, Any] = field(default_factory=dict)

    def rng(self, purpose: str) -> np.random.Generator:
        return np.random.default_rng([self.seed, *purpose.encode()])

    def activations(self) -> Any:
        return self.held

    def sample(self) -> Any:
        return self.texts

    def lm(self) -> Any:
        return self.model

    @property
    def labelled_sets(self) -> tuple[str, ...]:
        return tuple(self.sets)

    def labelled(self, name: str) -> Any:
        return self.sets[name]

    def code_chunks(self, sae: SAE) -> Iterator[tuple[Any, Any]]:
        for chunk in self.activations():
            yield chunk, sae.encode_sparse(chunk.x)

    def memo(self, key: tuple[object, ...], make: Callable[[], Any]) -> Any:
        if key not in self.remembered:
            self.made.append(key)
            self.remembered[key] = make()
        return self.remembered[key]

    def warn(self, message: str) -> None:
        self.warnings.append(message)

    def track(self, items: Iterable[Any], what: str, total: int | None = None) -> Iterable[Any]:
        return items

    def bootstrap(self, values: Any, statistic: Any = None) -> stats.Estimate:
        return stats.bootstrap(values, self.rng("bootstrap"), statistic)

    def groups(self, arrays: Any, statistic: Any, *, n: int, n_unit: str = "documents") -> stats.Estimate:
        return stats.from_groups(arrays, statistic, self.rng("groups"), n=n, n_unit=n_unit, resamples=50)

    def proportion(self, successes: int, trials: int, *, n_unit: str) -> stats.Estimate:
        return stats.proportion(successes, trials, n_unit=n_unit)

    def census(
        self, value: float | None, n: int, *, n_unit: str = "latents", reason: str | None = None
    ) -> stats.Estimate:
        return stats.census(value, n, n_unit=n_unit, reason=reason)

    def latents(self, n_latents: int) -> Sequence[int]:
        if self.limit is None or self.limit >= n_latents:
            return range(n_latents)
        return sorted(int(i) for i in self.rng("latents").choice(n_latents, self.limit, replace=False))


def labelled_set(
    x: Tensor, document: Tensor, label: Sequence[int], test: Sequence[bool], *, name: str = "toy:set", size: int = 64
) -> Any:
    """A labelled set of the given tokens; `document` is each one's text, ascending from 0 with none left out."""
    from saebench_meta.labelled import Labelled

    n_tokens = torch.bincount(document, minlength=len(label)).numpy()
    classes = tuple(f"class {i}" for i in range(max(label) + 1))
    held = MemoryActivations(x, document, len(label), size)
    ids = tuple(str(100 + i) for i in range(len(label)))
    return Labelled(name, classes, np.array(label), np.array(test), n_tokens, lambda: held, ids=ids)


@dataclass
class ToyModel:
    """x_t = E[token_t]; logits_t = (x_t + half of all x before it) U: causal, and small enough to follow by hand."""

    E: Tensor
    U: Tensor
    passes: int = 0

    @property
    def vocab_size(self) -> int:
        return self.U.shape[1]

    def logits(self, tokens: Tensor, *, hook: str | None = None, edit: Callable[[Tensor], Tensor] | None = None) -> Any:
        self.passes += 1
        assert (hook is None) == (edit is None) and hook in (None, HOOK)
        x = self.E[tokens]
        x = x if edit is None else edit(x)
        return (x + 0.5 * (x.cumsum(1) - x)) @ self.U


BOS = 0


def toy_context(
    lengths: Sequence[int], *, d: int = 6, vocab: int = 11, seed: int = 0, mean: float = 0.0
) -> FakeContext:
    """Documents of the given lengths, each a row of its own after BOS, with a toy model and its activations."""
    from saebench_meta.corpus import PADDING, Sample, Sampling

    g = torch.Generator().manual_seed(seed)
    model = ToyModel(torch.randn(vocab, d, generator=g) + mean, torch.randn(d, vocab, generator=g))
    context = 1 + max(lengths)
    tokens = torch.randint(1, vocab, (len(lengths), context), generator=g)
    tokens[:, 0] = BOS
    real = torch.arange(context) < 1 + torch.tensor(lengths)[:, None]
    document = torch.where(real, torch.arange(len(lengths))[:, None], PADDING).int()
    evaluated = real & (tokens != BOS)
    sample = Sample(
        tokens * real,
        real.sum(1),
        document,
        evaluated,
        tuple(str(100 + i) for i in range(len(lengths))),
        Sampling(context=context),
    )
    held = MemoryActivations(model.E[sample.tokens][evaluated], document[evaluated].long(), len(lengths), size=7)
    return FakeContext(held, sample, model)
