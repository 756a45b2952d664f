"""A plugin for tests: the built-in language model, a small corpus of its own, and as features its most frequent words.

The oracle reads token embeddings, in which a word is one direction: latent i fires where the embedding is word i's.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Any

from saebench_meta.hookspecs import (
    DataIdentity,
    DatasetLoader,
    ModelIdentity,
    ModelLoader,
    SAELoader,
    hookimpl,
)
from saebench_meta.worlds import KnownTruth
from saebench_plugins import atlas
from saebench_plugins.atlas import world

saebench_api = 1
NAME, HOOK, WORDS = "wordy", "hook_embed", 20


@lru_cache
def texts() -> tuple[str, ...]:
    return tuple(world.documents(120, 5, "evaluation"))


def documents(ref: str, **_: Any) -> tuple[str, ...]:
    return texts()


@lru_cache
def words() -> tuple[str, ...]:
    found = Counter(word for text in texts() for word in re.findall(r"\w+", text))
    return tuple(word for word, _ in found.most_common(WORDS))


def annotate(ref: str, *, split: str | None) -> Iterator[list[tuple[int, int, tuple[int, ...]]]]:
    number = {word: i for i, word in enumerate(words())}
    for text in texts():
        found = re.finditer(r"\w+", text)
        yield [(m.start(), m.end(), (number[m[0]],)) for m in found if m[0] in number]


@lru_cache
def model() -> Any:
    return atlas.load_model()


def load_sae(ref: str, *, device: str, dtype: Any) -> Any:
    """`oracle`, or another name: the oracle with its latents in reverse, the first half of them dead."""
    import torch

    from saebench_meta.sae import SAE, SAEInfo, Site

    # A word inside a text is one token, which holds the space before it where the tokenizer has such.
    ids = [model().tokenize([f"a {word}"])[0][-1] for word in words()]
    rows = model().activations(torch.tensor([ids]), HOOK)[0].to(device=device, dtype=dtype)
    info = SAEInfo(name=ref, site=Site(model=NAME, hook=HOOK), d_in=rows.shape[1], d_sae=WORDS, activation="jumprelu")
    W_enc, threshold = (rows / rows.square().sum(1, keepdim=True)).T, torch.full((WORDS,), 0.97)
    if ref != "oracle":
        rows, W_enc = rows.flip(0), W_enc.flip(1)
        threshold[: WORDS // 2] = 1e9
    zeros = torch.zeros(WORDS)
    return SAE(W_enc.contiguous(), zeros, rows.contiguous(), torch.zeros(info.d_in), info, threshold=threshold)


@hookimpl
def saebench_language_models() -> Mapping[str, ModelLoader]:
    def load(ref: str, **_: Any) -> Any:
        return model()

    return {NAME: ModelLoader(load, peek=lambda ref, *, revision: ModelIdentity(NAME))}


@hookimpl
def saebench_datasets() -> Mapping[str, DatasetLoader]:
    return {NAME: DatasetLoader(documents, peek=lambda ref, *, split, revision: DataIdentity(NAME))}


@hookimpl
def saebench_loaders() -> Mapping[str, SAELoader]:
    return {NAME: SAELoader(load_sae)}


@hookimpl
def saebench_truths() -> Mapping[str, KnownTruth]:
    return {NAME: KnownTruth(NAME, {HOOK: f"{NAME}:oracle"}, (NAME,), words, annotate)}
