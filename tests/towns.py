"""A language model of towns that can be followed by hand, and an SAE and a meta-SAE that are exact for it.

Dimensions are the values of the attributes, then one for each town. A town's activation is 2 on each of its values and
2 √a on its own dimension, any other word's is 0; a token's logits are the sum over it and all tokens before it, read
off on the values. The SAE has one latent a town, on by the town's own dimension, whose row has its values: code 2 √a.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from fakes import HOOK, FakeContext, info
from torch import Tensor

from saebench_meta import seeds
from saebench_meta.cities import Cities
from saebench_meta.sae import SAE

TOWNS = {
    "upton": {"river": "ash", "hill": "oak", "lake": "elm"},
    "downton": {"river": "birch", "hill": "yew", "lake": "fir"},
    "midton": {"river": "ash", "hill": "yew", "lake": "fir"},
}
CITIES = Cities(
    TOWNS,
    selection={a: (f"in {{city}} the {a} is", f"{{city}} has {a}") for a in ("river", "hill", "lake")},
    heldout={a: (f"near {{city}} the {a} was",) for a in ("river", "hill", "lake")},
)
BOS = 0


@dataclass
class TownModel:
    """See above. `wrong` are towns of which it says that they have the values of another."""

    cities: Cities = CITIES
    wrong: dict[str, str] = field(default_factory=dict)
    ref: str = "towns"
    bos_id: int = BOS
    device: str = "cpu"

    def __post_init__(self) -> None:
        facts = self.cities.facts
        self.values = list(dict.fromkeys(v for of in facts.values() for v in of.values()))
        frames = [f for split in ("selection", "heldout") for of in self.cities.frames(split).values() for f in of]
        words = " ".join([*facts, *self.values, *frames]).replace("{city}", "").split()
        self.ids = {word: 1 + i for i, word in enumerate(dict.fromkeys(words))}
        self.E = torch.zeros(1 + len(self.ids), len(self.values) + len(facts))
        self.U = torch.zeros(self.E.shape[1], len(self.E))
        for i, (town, of) in enumerate(facts.items()):
            if town in self.ids:
                says = facts[self.wrong.get(town, town)]
                self.E[self.ids[town], [self.values.index(v) for v in says.values()]] = 2
                self.E[self.ids[town], len(self.values) + i] = 2 * len(of) ** 0.5
        for i, value in enumerate(self.values):
            if value in self.ids:
                self.U[i, self.ids[value]] = 1

    def tokenize(self, texts: Sequence[str]) -> list[list[int]]:
        return [[self.ids[word] for word in text.split()] for text in texts]

    def activations(self, tokens: Tensor, hook: str) -> Tensor:
        assert hook == HOOK
        return self.E[tokens]

    def logits(self, tokens: Tensor, *, hook: str = HOOK, edit: Callable[[Tensor], Tensor] = lambda x: x) -> Tensor:
        assert hook == HOOK
        return edit(self.E[tokens]).cumsum(1) @ self.U

    def branches(self, tokens: Tensor, hook: str, x: Tensor, ends: Tensor) -> Tensor:
        return self.logits(tokens, hook=hook, edit=lambda _: x)[torch.arange(len(x)), ends]

    def directions(self, groups: Sequence[Sequence[str]]) -> Tensor:
        """A unit row for each group of values."""
        rows = torch.zeros(len(groups), self.E.shape[1])
        for row, group in zip(rows, groups, strict=True):
            row[[self.values.index(v) for v in group]] = 1
        return torch.nn.functional.normalize(rows, dim=1)

    def sae(self) -> SAE:
        """One latent a town."""
        facts = self.cities.facts
        W_dec = self.directions([list(of.values()) for of in facts.values()])
        W_enc = torch.zeros(self.E.shape[1], len(facts))
        W_enc[len(self.values) :] = torch.eye(len(facts))
        d_in = self.E.shape[1]
        about = info(d_in, len(facts), prepend_bos=True)
        return SAE(W_enc, torch.zeros(len(facts)), W_dec, torch.zeros(d_in), about)

    def meta_sae(self, groups: Sequence[Sequence[str]]) -> SAE:
        """One meta-latent for each group of values, on where a row has all of them: exact where groups divide towns."""
        W = self.directions(groups)
        whole = W.sum(1) / len(next(iter(self.cities.facts.values()))) ** 0.5
        d_in = self.E.shape[1]
        about = info(d_in, len(groups), activation="jumprelu")
        # off where a row has some of the group's values only; the values of a group that is whole rebuild it
        zeros = torch.zeros(len(groups))
        return SAE(W.T.contiguous(), zeros, W, torch.zeros(d_in), about, threshold=whole - 1e-3)


@dataclass
class TownContext(FakeContext):
    """With towns to ask for, and a meta-SAE that needs no training."""

    meta: SAE | None = None
    towns: Cities = CITIES
    recipes: tuple[Any, ...] = ("the meta-SAE",)
    rows: list[Tensor] = field(default_factory=list)

    def cities(self) -> Cities:
        return self.towns

    def generator(self, purpose: str) -> torch.Generator:
        return seeds.generator(self.seed, "city_steering", purpose)

    def train(self, recipe: Any, rows: Tensor) -> Any:
        self.rows.append(rows)
        return self.meta
