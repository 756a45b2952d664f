"""A world for autointerp that can be followed by hand: latents are words of a letter and a digit, such as `c4`.

A word's activation is 1 along its letter and 1 along its digit; all other tokens are at 0. Latent (letter, digit) fires
on that word and no other. There is a meta-latent for every letter and one for every digit, so that two meta-latents
tell which of the latents it is. Every document holds a tag of its own, by which its passages are known.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from fakes import FakeContext, MemoryActivations, info
from torch import Tensor

from saebench_meta.codes import Codes
from saebench_meta.corpus import PADDING, Sample, Sampling
from saebench_meta.judging import Answer, Request
from saebench_meta.sae import SAE
from saebench_meta.task import Output
from saebench_tasks.autointerp import autointerp

LETTERS, DIGITS = "abcdef", "012345"
NAMES = [letter + digit for letter in LETTERS for digit in DIGITS]
D_IN, F, BOS = len(LETTERS) + len(DIGITS), len(NAMES), 0
DOCUMENTS, WORDS = 120, 6
PARAMETERS: dict[str, Any] = {"held_out": 0.0, "length": 16, "fewest": 1}


@dataclass
class Tokenizer:
    names: Sequence[str]

    def decode(self, ids: Sequence[int]) -> str:
        return " ".join(self.names[i] for i in ids)


@dataclass
class GridModel:
    tokenizer: Tokenizer


def directions() -> Tensor:
    """A row a latent: its letter and its digit."""
    rows = torch.zeros(F, D_IN)
    for i in range(F):
        rows[i, i // len(DIGITS)] = rows[i, len(LETTERS) + i % len(DIGITS)] = 1
    return rows


def grid_sae() -> SAE:
    """Pre-activation 2 − 1.5 on a latent's own word, at most 1 − 1.5 on any other."""
    W = directions()
    return SAE(W.T.contiguous(), torch.full((F,), -1.5), W, torch.zeros(D_IN), info(D_IN, F, prepend_bos=True))


def grid_meta() -> SAE:
    """Letters, then digits: 1/√2 − .5 on rows that have it."""
    eye = torch.eye(D_IN)
    return SAE(eye, torch.full((D_IN,), -0.5), eye, torch.zeros(D_IN), info(D_IN, D_IN))


@dataclass
class GridContext(FakeContext):
    """See the module; `asked` are all requests in order."""

    answer: Callable[[Request], Answer] = lambda request: Answer(problem="refusal")
    control: str | None = None
    asked: list[Request] = field(default_factory=list)
    trainings: int = 0
    recipes: tuple[Any, ...] = (None,)
    name: str = "by hand"

    def codes(self, sae: SAE) -> Codes:
        return Codes.cat([sae.encode_sparse(chunk.x) for chunk in self.activations()])

    def train(self, recipe: Any, rows: Tensor) -> SAE:
        self.trainings += 1
        return grid_meta()

    def judge(self) -> GridContext:
        return self

    def ask(self, requests: Sequence[Request], what: str = "requests") -> list[Answer]:
        self.asked += requests
        return [self.answer(request) for request in requests]

    def of(self, purpose: str) -> list[Request]:
        return [request for request in self.asked if request.purpose == purpose]


def grid_context(
    answer: Callable[[Request], Answer], *, seed: int = 0, order: Sequence[int] = range(DOCUMENTS), **given: Any
) -> GridContext:
    """Documents of a tag and `WORDS` words with a full stop after each; `order` is theirs in the sample."""
    drawn = np.random.default_rng(seed).integers(0, F, (DOCUMENTS, WORDS))
    names = ["<bos>", *NAMES, ".", *(f"tag{d}" for d in range(DOCUMENTS))]
    stop, first_tag = 1 + F, 2 + F
    rows = [[BOS, first_tag + d, *(t for word in drawn[d] for t in (1 + int(word), stop))] for d in order]
    tokens = torch.tensor(rows)
    document = torch.arange(len(rows))[:, None].expand(tokens.shape).int()
    evaluated = tokens != BOS
    assert PADDING not in document
    lengths = torch.full((len(rows),), tokens.shape[1])
    ids = tuple(f"document {d}" for d in order)
    sample = Sample(tokens, lengths, document, evaluated, ids, Sampling(context=tokens.shape[1]))
    E = torch.zeros(len(names), D_IN)
    E[1 : 1 + F] = directions()
    held = MemoryActivations(E[tokens][evaluated], document[evaluated].long(), len(rows))
    return GridContext(held, sample, GridModel(Tokenizer(names)), seed=seed, answer=answer, **given)


def run(ctx: GridContext, sae: SAE | None = None, **parameters: Any) -> Output:
    return autointerp(sae or grid_sae(), ctx, **{**PARAMETERS, **parameters})  # type: ignore[arg-type]


# -- judges


def named(request: Request) -> str:
    """The explanation of a latent: its word. That of a meta-latent: the letters that the words of its latents share."""
    if request.purpose == "explain_latent":
        assert not request.options
        fired = {
            token.strip()
            for passage in request.facts["passages"]
            for token, f in zip(passage["tokens"], passage["activations"], strict=True)
            if f > 0
        }
        return " ".join(sorted(fired))
    words = [latent["explanation"] for latent in request.facts["latents"]]
    return "".join(sorted(set(words[0]).intersection(*words[1:])))


def perfect(seed: int = 0) -> Callable[[Request], Answer]:
    """Knows the world; draws among the options that a description fits, or among all where it fits none."""
    rng = np.random.default_rng(seed)

    def answer(request: Request) -> Answer:
        if not request.options:
            return Answer(text=named(request))
        if request.purpose == "choose_latent":
            fit = [i for i, text in enumerate(request.options) if f"«{request.facts['description']}»" in text]
        else:
            letters = set("".join(request.facts["descriptions"]))
            fit = [i for i, text in enumerate(request.options) if letters <= set(text)]
        return Answer(choice=int(rng.choice(fit or range(len(request.options)))))

    return answer


def with_more_latents(sae: SAE, rows: Sequence[Tensor], bias: Sequence[float]) -> SAE:
    """The SAE with further latents at its end, tied."""
    W = torch.stack(list(rows))
    about = sae.info.model_copy(update={"d_sae": sae.d_sae + len(rows)})
    return replace(
        sae,
        W_enc=torch.cat([sae.W_enc, W.T], dim=1),
        b_enc=torch.cat([sae.b_enc, torch.tensor(list(bias))]),
        W_dec=torch.cat([sae.W_dec, W]),
        info=about,
    )
