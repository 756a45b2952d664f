"""Which cities and values are single tokens, the prompts made of them, and what the model answers unedited.

A city must be one token where it stands in every prompt, a value one token after every prompt. The answer to several
prompts of one attribute is the candidate value with the largest mean log-probability. A city and an attribute are
eligible when that is the right value on the selection prompts.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch

from saebench_meta.cities import SLOT, SPLITS, Cities
from saebench_meta.errors import UnmetNeedError

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int
    from torch import Tensor

    from saebench_meta.models import LanguageModel

ROWS = 64
"""Prompts of one length run together."""


@dataclass(frozen=True, eq=False)
class Prompt:
    """A question about a city.

    Attributes:
        city, attribute: their numbers.
        tokens: with BOS where the SAE has it.
        at: position of the city.
        bos: whether the first token is BOS.
    """

    city: int
    attribute: int
    split: str
    tokens: Int[Tensor, " tokens"]
    at: int
    bos: bool


@dataclass(frozen=True, eq=False)
class Asked:
    """All prompts, and what the model makes of them.

    Attributes:
        cities: names of the cities that are single tokens.
        attributes: names.
        candidates: of each attribute, the values that are single tokens.
        ids: of each attribute, the tokens of its candidates.
        right: (cities, attributes) number of the right candidate; -1 where it is no single token.
        prompts: of all of these cities.
        x: activation of each prompt, (tokens, d_in).
        logp: split -> attribute -> (cities, candidates) mean log-probability over the prompts, unedited.
        city_tokens: tokens that name one of them.
        left_out: cities that are not single tokens.
    """

    cities: tuple[str, ...]
    attributes: tuple[str, ...]
    candidates: tuple[tuple[str, ...], ...]
    ids: tuple[Int[Tensor, " candidates"], ...]
    right: Int[np.ndarray, "cities attributes"]
    prompts: tuple[Prompt, ...]
    x: tuple[Float[Tensor, "tokens d_in"], ...]
    logp: Mapping[str, tuple[Float[np.ndarray, "cities candidates"], ...]]
    city_tokens: frozenset[int]
    left_out: tuple[str, ...]

    def right_on(self, split: str) -> Bool[np.ndarray, "cities attributes"]:
        """Where the unedited model gives the right value."""
        answers = np.stack([logp.argmax(1) for logp in self.logp[split]], axis=1)
        return np.asarray((answers == self.right) & (self.right >= 0))

    @property
    def eligible(self) -> Bool[np.ndarray, "cities attributes"]:
        return self.right_on("selection")

    def of(self, city: int, split: str, attributes: Iterable[int]) -> Iterator[tuple[Prompt, Float[Tensor, "t d_in"]]]:
        """Prompts of a city with their activations."""
        wanted = set(attributes)
        for prompt, x in zip(self.prompts, self.x, strict=True):
            if (prompt.city, prompt.split) == (city, split) and prompt.attribute in wanted:
                yield prompt, x


def ask(lm: LanguageModel, cities: Cities, hook: str, prepend_bos: bool) -> Asked:
    """Make the prompts and run the unedited model on them.

    Raises:
        UnmetNeedError: fewer than two cities are single tokens.
    """
    split_up = _Tokens(lm)
    places = {city: split_up.places(city, cities) for city in cities.facts}
    usable = tuple(city for city, found in places.items() if found is not None)
    if len(usable) < 2:
        raise UnmetNeedError(f"model '{lm.ref}' has {len(usable)} of {len(places)} cities as single tokens")
    values = [_candidates(split_up, cities, usable, attribute) for attribute in cities.attributes]
    right = [
        [list(found).index(v) if (v := cities.facts[city][a]) in found else -1 for a, found in _zip(cities, values)]
        for city in usable
    ]
    bos = [lm.bos_id] if prepend_bos and lm.bos_id is not None else []
    prompts = tuple(
        Prompt(c, a, split, torch.tensor([*bos, *ids]), len(bos) + at, bool(bos))
        for c, city in enumerate(usable)
        for (a, split), asked in (places[city] or {}).items()
        for ids, at in asked
    )
    tokens = tuple(torch.tensor(list(found.values()), dtype=torch.long) for found in values)
    x, logp = _run(lm, hook, prompts, tokens, len(usable))
    return Asked(
        usable,
        cities.attributes,
        tuple(tuple(found) for found in values),
        tokens,
        np.array(right),
        prompts,
        x,
        logp,
        frozenset(int(p.tokens[p.at]) for p in prompts),
        tuple(city for city in places if city not in usable),
    )


def _zip(cities: Cities, values: Sequence[Mapping[str, int]]) -> Iterator[tuple[str, Mapping[str, int]]]:
    return zip(cities.attributes, values, strict=True)


class _Tokens:
    """What texts are as tokens."""

    def __init__(self, lm: LanguageModel) -> None:
        self.lm = lm

    def next_token(self, before: str, after: str) -> int | None:
        """The one token by which the second text is longer than the first; None if it is not."""
        one, two = self.lm.tokenize([before, after])
        return two[-1] if two[:-1] == one else None

    def places(self, city: str, cities: Cities) -> dict[tuple[int, str], list[tuple[list[int], int]]] | None:
        """By number of the attribute and split, tokens of each prompt and where the city stands in it; None where the
        city is not one token in one of them.
        """
        found: dict[tuple[int, str], list[tuple[list[int], int]]] = defaultdict(list)
        for split in SPLITS:
            for a, attribute in enumerate(cities.attributes):
                for frame in cities.frames(split)[attribute]:
                    before, _, after = frame.partition(SLOT)
                    ids, named, lead = self.lm.tokenize([f"{before}{city}{after}", f"{before}{city}", before.rstrip()])
                    if named[:-1] != lead or ids[: len(named)] != named:
                        return None
                    found[a, split].append((ids, len(lead)))
        return dict(found)


def _candidates(tokens: _Tokens, cities: Cities, usable: Sequence[str], attribute: str) -> dict[str, int]:
    """The values of an attribute that are one and the same token after each of its prompts, with the token."""
    prompts = [frame.replace(SLOT, usable[0]) for split in SPLITS for frame in cities.frames(split)[attribute]]
    found: dict[str, int] = {}
    for value in dict.fromkeys(cities.facts[city][attribute] for city in usable):
        ids = {tokens.next_token(prompt, f"{prompt} {value}") for prompt in prompts}
        if len(ids) == 1 and (only := ids.pop()) is not None and only not in found.values():
            found[value] = only
    return found


def _run(
    lm: LanguageModel, hook: str, prompts: Sequence[Prompt], ids: Sequence[Tensor], n_cities: int
) -> tuple[tuple[Tensor, ...], dict[str, tuple[np.ndarray, ...]]]:
    """Activations of every prompt, and mean log-probabilities of the candidates by split and attribute."""
    x: list[Tensor | None] = [None] * len(prompts)
    sums = {split: tuple(np.zeros((n_cities, len(tokens))) for tokens in ids) for split in SPLITS}
    counts = {split: np.zeros((n_cities, len(ids))) for split in SPLITS}
    for rows in _same_length(prompts):
        tokens = torch.stack([prompts[i].tokens for i in rows])
        seen: list[Tensor] = []
        logp = lm.logits(tokens, hook=hook, edit=partial(_kept, seen))[:, -1].log_softmax(-1).cpu()
        for i, activation, row in zip(rows, seen[0], logp, strict=True):
            p, x[i] = prompts[i], activation
            sums[p.split][p.attribute][p.city] += row[ids[p.attribute]].double().numpy()
            counts[p.split][p.city, p.attribute] += 1
    means = {split: tuple(total / counts[split][:, [a]] for a, total in enumerate(sums[split])) for split in SPLITS}
    return tuple(t for t in x if t is not None), means


def _kept(seen: list[Tensor], x: Tensor) -> Tensor:
    """No edit: an activation is looked at in passing."""
    seen.append(x)
    return x


def _same_length(prompts: Sequence[Prompt]) -> Iterator[list[int]]:
    """Numbers of prompts of one length, some at a time: nothing is padded."""
    by_length: dict[int, list[int]] = defaultdict(list)
    for i, prompt in enumerate(prompts):
        by_length[len(prompt.tokens)].append(i)
    for rows in by_length.values():
        for start in range(0, len(rows), ROWS):
            yield rows[start : start + ROWS]
