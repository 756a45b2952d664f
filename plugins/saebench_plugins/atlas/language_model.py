"""The atlas language model: a GPT-Neo of four layers, trained from scratch on the atlas world.

Attention is local with a window of two tokens in the first two layers and global in the last two, and a city's
attribute is asked for at least five tokens after the city, so that up to the end of layer 1 a fact can only be held in
the residual stream at the city's own position (and the one after it).
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import GPTNeoConfig, GPTNeoForCausalLM, PreTrainedTokenizerFast

from saebench_plugins.atlas.lexicon import ASIDES, CITIES, CLAUSES, COMMON, OPENINGS, RELATIONS, City, vocabulary
from saebench_plugins.atlas.site import D_MODEL, SITE_LAYER
from saebench_plugins.atlas.world import Chooser, expand, is_held_out, stream

if TYPE_CHECKING:
    from jaxtyping import Int

logger = logging.getLogger(__name__)

SPECIAL = {"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>", "unk_token": "<unk>"}
CONTEXT = 128
"""Positions of the model; a document and its BOS fit."""


@dataclass(frozen=True)
class Recipe:
    """How the language model is trained.

    Attributes:
        steps: Optimizer steps.
        rows: Rows of `CONTEXT` tokens a step.
        lr: Peak learning rate of AdamW, which trains embeddings, biases and gains; after a linear warm-up and before a
            cosine decay to zero.
        muon_lr: The same of Muon, which trains the matrices of the blocks: it learns the facts in a third of the steps
            that AdamW needs.
        fact_weight: How much a fact's value weighs in the loss beside another word. Where a value stands, nothing else
            can, so that the best prediction stays the same.
        mixed: Share of the places after cities that are exchanged (`mixed_after_cities`).
        warmup: Steps of warm-up.
        weight_decay: Of both.
        clip: Largest norm of the gradient.
    """

    steps: int = 900
    rows: int = 16
    lr: float = 3e-3
    muon_lr: float = 0.02
    fact_weight: float = 4.0
    mixed: float = 0.5
    warmup: int = 50
    weight_decay: float = 0.01
    clip: float = 1.0


def make_tokenizer() -> PreTrainedTokenizerFast:
    """A word-level tokenizer of the whole lexicon that prepends BOS."""
    words = (*SPECIAL.values(), *vocabulary())
    backend = Tokenizer(WordLevel({word: i for i, word in enumerate(words)}, unk_token=SPECIAL["unk_token"]))
    backend.pre_tokenizer = Whitespace()
    bos = SPECIAL["bos_token"]
    backend.post_processor = TemplateProcessing(
        single=f"{bos} $A", pair=f"{bos} $A {bos} $B", special_tokens=[(bos, words.index(bos))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, model_max_length=CONTEXT, padding_side="right", add_bos_token=True, **SPECIAL
    )


def make_model(tokenizer: PreTrainedTokenizerFast, seed: int) -> GPTNeoForCausalLM:
    """A freshly initialised model; the only place where torch's global generator is seeded."""
    torch.manual_seed(seed)
    config = GPTNeoConfig(
        vocab_size=len(tokenizer),
        hidden_size=D_MODEL,
        num_layers=4,
        num_heads=4,
        attention_types=[[["local"], 2], [["global"], 2]],
        window_size=2,
        activation_function="gelu_pytorch_tanh",
        initializer_range=0.8 / D_MODEL**0.5,
        tie_word_embeddings=False,
        max_position_embeddings=CONTEXT,
        embed_dropout=0.0,
        attention_dropout=0.0,
        resid_dropout=0.0,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = GPTNeoForCausalLM(config)
    with torch.no_grad():  # GPT-Neo does not divide attention scores by √d_head; start as if it did
        for block in model.transformer.h:
            block.attn.attention.q_proj.weight /= (D_MODEL // config.num_heads) ** 0.5
    return model


def training_rows(tokenizer: PreTrainedTokenizerFast, seed: int) -> Iterator[Tensor]:
    """Endless rows of `CONTEXT` tokens, each a whole document filled up with the next ones, BOS before each."""
    vocab = tokenizer.get_vocab()
    texts = stream(seed, "train")
    while True:
        row: list[int] = []
        while len(row) < CONTEXT:
            row += [vocab[word] for word in (SPECIAL["bos_token"], *next(texts).words)]
        yield torch.tensor(row[:CONTEXT])


def share_of_peak(step: int, recipe: Recipe) -> float:
    """Of the learning rates: linear warm-up, then half a cosine down to zero."""
    warmup = min(1.0, (step + 1) / recipe.warmup)
    return warmup * 0.5 * (1 + math.cos(math.pi * step / recipe.steps))


def make_optimizers(model: GPTNeoForCausalLM, recipe: Recipe) -> list[tuple[torch.optim.Optimizer, float]]:
    """Muon for the matrices of the blocks and AdamW for the rest, each with its peak learning rate."""
    matrices = [p for p in model.transformer.h.parameters() if p.ndim == 2]
    chosen = {id(p) for p in matrices}
    rest = [p for p in model.parameters() if id(p) not in chosen]
    decay = recipe.weight_decay
    return [
        (torch.optim.Muon(matrices, lr=recipe.muon_lr, weight_decay=decay), recipe.muon_lr),
        (torch.optim.AdamW(rest, lr=recipe.lr, betas=(0.9, 0.98), weight_decay=decay, fused=True), recipe.lr),
    ]


@contextmanager
def mixed_after_cities(
    model: GPTNeoForCausalLM, ids: Int[Tensor, "rows positions"], cities: Tensor, share: float, order: torch.Generator
) -> Iterator[None]:
    """Exchange, at the site, what stands at the two positions after cities, so that it cannot tell which city it was.

    Local attention would carry a city's facts to the positions that see it, and the model would read them there. With
    a share of these positions exchanged in training, each with one that holds the same token at the same distance from
    another city, only the city's own position can be relied on. What is trained runs as it is, without this.
    """
    to, source = _exchange(ids, cities, share, order)

    def edit(_module: object, _inputs: object, output: Any) -> Any:
        x = output[0] if isinstance(output, tuple) else output
        mixed = x.flatten(0, 1).index_copy(0, to, x.flatten(0, 1)[source]).view_as(x)
        return (mixed, *output[1:]) if isinstance(output, tuple) else mixed

    handle = model.transformer.h[SITE_LAYER].register_forward_hook(edit)
    try:
        yield
    finally:
        handle.remove()


def _exchange(
    ids: Int[Tensor, "rows positions"], cities: Tensor, share: float, order: torch.Generator
) -> tuple[Int[Tensor, " chosen"], Int[Tensor, " chosen"]]:
    """Flat places, and from which place each is filled: a permutation among those of one token and one distance."""
    is_city = torch.isin(ids, cities)
    places, keys = [], []
    for distance in (1, 2):
        after = torch.zeros_like(is_city)
        after[:, distance:] = is_city[:, :-distance]
        found = after.flatten().nonzero().squeeze(1)
        found = found[torch.rand(len(found), generator=order).to(found.device) < share]
        places.append(found)
        keys.append(2 * ids.flatten()[found] + distance - 1)
    place, key = torch.cat(places), torch.cat(keys)
    shuffled = torch.randperm(len(key), generator=order).to(key.device)
    to = place[key.argsort(stable=True)]
    return to, place[shuffled[key[shuffled].argsort(stable=True)]]


def word_weights(tokenizer: PreTrainedTokenizerFast, recipe: Recipe) -> Tensor:
    """(vocabulary,) how much predicting each word weighs."""
    weights = torch.ones(len(tokenizer))
    values = sorted({city.attribute(relation) for city in CITIES for relation in RELATIONS})
    weights[tokenizer.convert_tokens_to_ids(values)] = recipe.fact_weight
    return weights


def train(model: GPTNeoForCausalLM, tokenizer: PreTrainedTokenizerFast, recipe: Recipe, seed: int) -> GPTNeoForCausalLM:
    """Train `model` in place on the world's stream `seed`, never seeing a document twice."""
    device = model.device
    rows = training_rows(tokenizer, seed)
    optimizers = make_optimizers(model, recipe)
    weights = word_weights(tokenizer, recipe).to(device)
    watched = fact_prompts(per_fact=1, seed=1)
    cities = torch.tensor(tokenizer.convert_tokens_to_ids([city.name for city in CITIES]), device=device)
    order = torch.Generator().manual_seed(seed)
    model.train()
    for step in range(recipe.steps):
        ids = torch.stack(list(islice(rows, recipe.rows))).to(device)
        with mixed_after_cities(model, ids, cities, recipe.mixed, order):
            logits = model(ids, use_cache=False).logits
        loss = cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten(), weight=weights)
        model.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(model.parameters(), recipe.clip)
        for optimizer, peak in optimizers:
            optimizer.param_groups[0]["lr"] = peak * share_of_peak(step, recipe)
            optimizer.step()
        if step % 100 == 0 or step == recipe.steps - 1:
            facts = fact_accuracy(model.eval(), tokenizer, watched)["all"]
            logger.info(
                "step %d of %d: weighted loss %.3f, facts %.1f %%", step, recipe.steps, loss.item(), 100 * facts
            )
            model.train()
    return model.eval()


def batches(
    tokenizer: PreTrainedTokenizerFast, texts: Sequence[str], rows: int = 64
) -> Iterator[tuple[Tensor, Tensor]]:
    """Padded ids and their boolean mask, both (rows, positions); one document a row, BOS first."""
    for start in range(0, len(texts), rows):
        encoded = tokenizer(list(texts[start : start + rows]), return_tensors="pt", padding=True)
        yield encoded["input_ids"], encoded["attention_mask"].bool()


@torch.no_grad()
def heldout_loss(model: GPTNeoForCausalLM, tokenizer: PreTrainedTokenizerFast, texts: Sequence[str]) -> float:
    """Mean cross-entropy in nats a word, over every word of every text (BOS is given, not predicted)."""
    total, count = 0.0, 0
    for ids, mask in batches(tokenizer, texts):
        ids, mask = ids.to(model.device), mask.to(model.device)
        logits = model(ids, attention_mask=mask.long(), use_cache=False).logits.float()
        targets = ids[:, 1:].masked_fill(~mask[:, 1:], -100)
        total += cross_entropy(logits[:, :-1].flatten(0, 1), targets.flatten(), reduction="sum").double().item()
        count += int(mask[:, 1:].sum())
    return total / count


def unigram_entropy(texts: Sequence[str]) -> float:
    """Entropy in nats of the texts' own word frequencies: the loss of the best model without context."""
    counts: dict[str, int] = {}
    for text in texts:
        for word in text.split():
            counts[word] = counts.get(word, 0) + 1
    total = sum(counts.values())
    return -sum(n / total * math.log(n / total) for n in counts.values())


@dataclass(frozen=True)
class FactPrompt:
    """A question about a city: the model is right if its arg-max after `text` is `answer`."""

    city: str
    relation: str
    text: str
    answer: str


def fact_prompts(per_fact: int = 3, seed: int = 0) -> list[FactPrompt]:
    """`per_fact` prompts for each city and relation, in frames that no training text has (`world.is_held_out`)."""
    chooser = Chooser(f"atlas/facts/{seed}")
    prompts = []
    for city in CITIES:
        for relation in RELATIONS:
            for _ in range(per_fact):
                frame = held_out_frame(city, chooser)
                clause = expand(chooser.choose(CLAUSES[relation]), {relation: ("",)}, chooser)
                text = f"{frame} {clause}".rstrip()
                prompts.append(FactPrompt(city.name, relation, text, city.attribute(relation)))
    return prompts


def held_out_frame(city: City, chooser: Chooser) -> str:
    """An opening that names the city and an aside, which the split `train` lacks together."""
    slots = {**COMMON, "city": (city.name,)}
    while True:
        opening, aside = (expand(chooser.choose(patterns), slots, chooser) for patterns in (OPENINGS, ASIDES))
        if is_held_out(opening, aside):
            return f"{opening} {aside}"


@torch.no_grad()
def fact_accuracy(
    model: GPTNeoForCausalLM, tokenizer: PreTrainedTokenizerFast, prompts: Sequence[FactPrompt]
) -> dict[str, float]:
    """Share of prompts answered right by arg-max over the whole vocabulary, by relation and over all (``"all"``)."""
    right: list[bool] = []
    answers = torch.tensor(tokenizer.convert_tokens_to_ids([prompt.answer for prompt in prompts]))
    for (ids, mask), truth in zip(
        batches(tokenizer, [prompt.text for prompt in prompts]), torch.split(answers, 64), strict=True
    ):
        logits = model(ids.to(model.device), use_cache=False).logits.cpu()
        last = mask.sum(1) - 1
        right += (logits[torch.arange(len(ids)), last].argmax(-1) == truth).tolist()
    shares = {"all": sum(right) / len(right)}
    for relation in RELATIONS:
        hits = [hit for hit, prompt in zip(right, prompts, strict=True) if prompt.relation == relation]
        shares[relation] = sum(hits) / len(hits)
    return shares
