"""Whether the residual at a city's own position carries its facts: two interventions that should make the model answer
for another city.

For a pair of cities (from, to) and a prompt about `from`, the residual at the city's position after a layer is

- ``neutral patch``: replaced by the mean residual of `to` at its own position in sentences that state no fact;
- ``mean difference``: shifted by that mean for `to` minus that for `from`.

The score is the share of pairs, among those whose answers differ, in which the arg-max becomes the answer for `to`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import GPTNeoForCausalLM, PreTrainedTokenizerFast

from saebench_plugins.atlas.language_model import FactPrompt, batches
from saebench_plugins.atlas.lexicon import ASIDES, CITIES, COMMON, NEUTRAL, OPENINGS, RELATIONS, City
from saebench_plugins.atlas.world import Chooser, expand

Intervention = Literal["neutral patch", "mean difference"]


@dataclass(frozen=True)
class Swap:
    """A prompt about one city that should be answered for another."""

    prompt: FactPrompt
    to: City


def neutral_sentences(city: City, n: int = 20) -> list[str]:
    """Sentences that name a city and state none of its facts."""
    chooser = Chooser(f"atlas/neutral/{city.name}")
    slots = {**COMMON, "city": (city.name,)}
    patterns = [f"{chooser.choose(OPENINGS)} {chooser.choose(ASIDES)} {chooser.choose(NEUTRAL)} ." for _ in range(n)]
    return [expand(pattern, slots, chooser) for pattern in patterns]


@contextmanager
def block_output(model: GPTNeoForCausalLM, layer: int, edit: Any) -> Iterator[None]:
    """Pass the residual stream after block `layer` through `edit(residual) -> residual`."""

    def hook(_module: Any, _inputs: Any, output: Any) -> Any:
        return (edit(output[0]), *output[1:]) if isinstance(output, tuple) else edit(output)

    handle = model.transformer.h[layer].register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


@torch.no_grad()
def city_means(model: GPTNeoForCausalLM, tokenizer: PreTrainedTokenizerFast, layer: int) -> dict[str, Tensor]:
    """Mean residual (d_model,) after block `layer` at each city's own position in its neutral sentences."""
    means: dict[str, Tensor] = {}
    for city in CITIES:
        ((ids, mask),) = batches(tokenizer, neutral_sentences(city))
        kept: list[Tensor] = []
        with block_output(model, layer, lambda x, kept=kept: (kept.append(x), x)[1]):
            model(ids.to(model.device), attention_mask=mask.long().to(model.device), use_cache=False)
        is_city = ids == tokenizer.convert_tokens_to_ids(city.name)
        means[city.name] = kept[0][is_city.to(model.device)].mean(0)
    return means


def swaps(prompts: Sequence[FactPrompt], per_prompt: int = 3, seed: int = 0) -> list[Swap]:
    """`per_prompt` other cities for each prompt, whose answer to it differs."""
    chooser = Chooser(f"atlas/swaps/{seed}")
    return [
        Swap(prompt, chooser.choose([c for c in CITIES if c.attribute(prompt.relation) != prompt.answer]))
        for prompt in prompts
        for _ in range(per_prompt)
    ]


@torch.no_grad()
def swap_rate(
    model: GPTNeoForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    pairs: Sequence[Swap],
    layer: int,
    intervention: Intervention,
) -> dict[str, float]:
    """Share of `pairs` answered for the other city, by relation."""
    means = city_means(model, tokenizer, layer)
    hits: dict[str, list[bool]] = {relation: [] for relation in RELATIONS}
    for start in range(0, len(pairs), 64):
        part = pairs[start : start + 64]
        ((ids, mask),) = batches(tokenizer, [swap.prompt.text for swap in part])
        names = torch.tensor(tokenizer.convert_tokens_to_ids([swap.prompt.city for swap in part]))
        at = (ids == names[:, None]).int().argmax(1)
        rows = torch.arange(len(part))
        target = torch.stack([means[swap.to.name] for swap in part])
        source = torch.stack([means[swap.prompt.city] for swap in part])

        def edit(x: Tensor, at: Tensor = at, rows: Tensor = rows, new: Tensor = target, old: Tensor = source) -> Tensor:
            x = x.clone()
            x[rows, at] = new if intervention == "neutral patch" else x[rows, at] + new - old
            return x

        with block_output(model, layer, edit):
            logits = model(ids.to(model.device), use_cache=False).logits.cpu()
        answers = logits[rows, mask.sum(1) - 1].argmax(-1).tolist()
        wanted = tokenizer.convert_tokens_to_ids([swap.to.attribute(swap.prompt.relation) for swap in part])
        for swap, answer, want in zip(part, answers, wanted, strict=True):
            hits[swap.prompt.relation].append(answer == want)
    return {relation: sum(h) / len(h) for relation, h in hits.items()}
