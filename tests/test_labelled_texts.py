"""Labelled sets at a site: pooled activations and codes against brute force, and what they must not depend on."""

from __future__ import annotations

import hashlib
import random
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from fakes import HOOK, labelled_set, tied_sae
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from saebench_meta.activations import collect
from saebench_meta.cache import Cache
from saebench_meta.corpus import Sampling
from saebench_meta.errors import BadFileError, SaebenchError
from saebench_meta.hookspecs import LabelledSet
from saebench_meta.labelled import Labelled, labelled_at
from saebench_meta.labelled_texts import BOTH_SPLITS, NO_TOKENS, REPEATED, TWO_LABELS, cut, cut_by_profile, texts_of
from saebench_meta.models import LanguageModel, load_bridge
from saebench_meta.sae import SAE

TOLERANCE = 1e-5


# -- pooling, by hand


def tokens(sizes: list[int], d_in: int = 6, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Activations of texts of the given sizes, and the text of each token."""
    x = torch.randn(sum(sizes), d_in, generator=torch.Generator().manual_seed(seed))
    return x, torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))


def made(sizes: list[int], size: int = 64) -> tuple[Labelled, Tensor, Tensor]:
    x, document = tokens(sizes)
    n = len(sizes)
    return labelled_set(x, document, [i % 2 for i in range(n)], [i < n // 2 for i in range(n)], size=size), x, document


@given(st.lists(st.integers(1, 9), min_size=2, max_size=12), st.integers(1, 30), st.integers(1, 9), st.integers(0, 2))
def test_pooled_activations_and_codes_are_the_means_of_each_text_however_tokens_come_in_chunks(
    sizes: list[int], size: int, part: int, kind: int
) -> None:
    found, x, document = made(sizes, size)
    sae = tied_sae(6, 10, bias=-0.2) if kind else tied_sae(6, 10, activation="topk", k=3)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("saebench_meta.sae.CACHED", 0)
        patch.setattr("saebench_meta.sae.MIN_CHUNK", part)
        patch.setattr("saebench_meta.codes.DENSE_POOL", 16 if kind < 2 else 0)
        found.codes(sae)
    own = [document == i for i in range(len(sizes))]
    torch.testing.assert_close(found.x, torch.stack([x[rows].mean(0) for rows in own]))
    codes = sae.encode(x)
    torch.testing.assert_close(found.codes(sae).dense(), torch.stack([codes[rows].mean(0) for rows in own]))
    parts = list(found.chunks(sae))
    torch.testing.assert_close(torch.cat([chunk.x for chunk, _ in parts]), x)
    torch.testing.assert_close(torch.cat([part.dense() for _, part in parts]), codes)
    numbers = [set(chunk.document.tolist()) for chunk, _ in parts]
    assert sum(map(len, numbers)) == len(set().union(*numbers)) == len(sizes)  # whole texts at a time


@pytest.mark.parametrize("dense", [0, 16])
@pytest.mark.parametrize("transform", ["none", "center", "layer_norm", "norm_rescale"])
def test_scaled_codes_times_a_decoder_row_is_what_ablating_the_latent_takes_from_the_mean(
    transform: str, dense: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("saebench_meta.codes.DENSE_POOL", dense)
    found, x, document = made([3, 1, 5, 2])
    sae = tied_sae(6, 8, bias=-0.1, input_transform=transform)
    _, stats = sae.transform(x)
    f = sae.encode(x)
    before = sae.inverse(f @ sae.W_dec + sae.b_dec, stats)
    for latent in range(8):
        without = f.clone()
        without[:, latent] = 0
        taken = before - sae.inverse(without @ sae.W_dec + sae.b_dec, stats)
        expected = torch.stack([taken[document == i].mean(0) for i in range(4)])
        mine = found.scaled_codes(sae).dense()[:, latent : latent + 1] * sae.W_dec[latent]
        torch.testing.assert_close(mine, expected, rtol=1e-4, atol=1e-5)
    same = torch.equal(found.scaled_codes(sae).dense(), found.codes(sae).dense())
    assert same == (transform in ("none", "center"))


def test_codes_are_worked_out_once_for_all_saes_that_share_an_encoder(monkeypatch: pytest.MonkeyPatch) -> None:
    found, _, _ = made([4] * 6)
    sae, passes = tied_sae(6, 8), []
    encode = SAE.encode_sparse
    monkeypatch.setattr(SAE, "encode_sparse", lambda self, x: passes.append(len(x)) or encode(self, x))
    permuted = replace(sae, W_dec=sae.W_dec.flip(0))
    assert found.codes(sae) is found.codes(permuted) is found.scaled_codes(sae)
    assert sum(passes) == 24
    found.codes(tied_sae(6, 8, seed=1))
    assert sum(passes) == 48


def test_the_least_recently_used_codes_go_when_they_are_too_large_together(monkeypatch: pytest.MonkeyPatch) -> None:
    found, _, _ = made([4] * 6)
    first, second = tied_sae(6, 8, bias=0.0), tied_sae(6, 8, bias=0.0, seed=1)
    kept = found.codes(first)
    monkeypatch.setattr("saebench_meta.labelled.POOLED_LIMIT", kept.nbytes)
    newer = found.codes(second)
    assert found.codes(second) is newer
    assert found.codes(first) is not kept


# -- texts


WORDS: dict[str, int] = {}


def words(**changes: Any) -> Any:
    """A model whose tokens are words; `<eos>` is special."""

    def tokenize(texts: list[str]) -> list[list[int]]:
        return [[0 if w == "<eos>" else WORDS.setdefault(w, len(WORDS) + 2) for w in t.split()] for t in texts]

    return SimpleNamespace(
        **{"ref": "words", "n_ctx": 32, "bos_id": 1, "special_ids": frozenset({0, 1}), "tokenize": tokenize, **changes}
    )


def a_set(
    train: list[tuple[str, int]], test: list[tuple[str, int]], classes: tuple[str, ...] = ("a", "b")
) -> LabelledSet:
    parts = {"train": train, "test": test}
    return LabelledSet(
        classes,
        texts={split: tuple(text for text, _ in own) for split, own in parts.items()},
        labels={split: tuple(label for _, label in own) for split, own in parts.items()},
    )


def numbered(n: int, split: str) -> list[tuple[str, int]]:
    return [(f"{split} {i} {'ab'[i % 2]}", i % 2) for i in range(n)]


def test_what_cannot_be_used_is_left_out_and_counted() -> None:
    train = [*numbered(8, "train"), ("both", 0), ("twice", 1), ("twice", 1), ("torn", 0), ("torn", 1), ("", 0)]
    test = [*numbered(4, "test"), ("both", 0), ("<eos> <eos>", 1), ("x torn", 0), ("x torn", 1)]
    texts = texts_of(a_set(train, test), "set", words(), 9)
    assert texts.dropped == {BOTH_SPLITS: 1, NO_TOKENS: 2, REPEATED: 1, TWO_LABELS: 4}
    assert len(texts.kept) == 8 + 1 + 4 + 1
    assert [t.test for t in texts.kept if t.ids == tuple(words().tokenize(["both"])[0])] == [True]


def test_texts_that_are_the_same_as_far_as_the_model_reads_count_as_the_same() -> None:
    train = [*numbered(8, "train"), ("a licence b", 0), ("a licence c", 0)]
    test = [*numbered(4, "test"), ("a licence d", 0)]
    longer, shorter = (texts_of(a_set(train, test), "set", words(), length) for length in (3, 2))
    assert longer.dropped == {} and len(longer.kept) == 15
    assert shorter.dropped[BOTH_SPLITS] == 2


@pytest.mark.parametrize(
    ("train", "test", "classes", "message"),
    [
        (numbered(8, "train"), numbered(1, "test"), ("a", "b"), "class 'b' has 0 texts for test, at least 1"),
        (numbered(6, "train"), numbered(4, "test"), ("a", "b"), "class 'a' has 3 texts for training, at least 4"),
        ([("x", 0)] * 8, [("y", 0)], ("only",), "has one class, 'only'"),
    ],
)
def test_a_set_that_no_probe_can_be_tested_on_is_refused(
    train: list[tuple[str, int]], test: list[tuple[str, int]], classes: tuple[str, ...], message: str
) -> None:
    with pytest.raises(BadFileError, match=message):
        texts_of(a_set(train, test, classes), "set", words(), 9)


@given(st.integers(20, 60), st.integers(0, 3))
def test_a_limit_keeps_the_shares_of_classes_and_splits_and_is_seeded(limit: int, seed: int) -> None:
    train = [(f"t {i}", int(i % 3 == 0)) for i in range(60)]  # 40 and 20
    whole = texts_of(a_set(train, [(f"e {i}", i % 2) for i in range(20)]), "set", words(), 9)
    part = cut(whole, limit, ("a", "b"), "set", seed)
    assert len(part.kept) == limit and set(part.kept) <= set(whole.kept)
    for label, test, size in ((0, False, 40), (1, False, 20), (0, True, 10), (1, True, 10)):
        found = sum((t.label, t.test) == (label, test) for t in part.kept)
        assert abs(found - size * limit / 80) < 1
    assert cut(whole, limit, ("a", "b"), "set", seed) == part
    assert cut(whole, limit, ("a", "b"), "set", seed + 1) != part
    assert cut(whole, 80, ("a", "b"), "set", seed) is whole


def test_too_small_a_limit_says_so() -> None:
    whole = texts_of(a_set(numbered(20, "train"), numbered(10, "test")), "set", words(), 9)
    with pytest.raises(SaebenchError, match=r"cut to --limit 6: class 'a' has 2 texts for training.*larger --limit"):
        cut(whole, 6, ("a", "b"), "set", 0)


def test_a_profiles_texts_are_doubled_until_every_class_has_enough() -> None:
    train = [(f"t {i}", int(i % 10 == 0)) for i in range(100)]  # 90 and 10
    whole = texts_of(a_set(train, [(f"e {i}", int(i % 10 == 0)) for i in range(20)]), "set", words(), 9)
    found = cut_by_profile(whole, 15, ("a", "b"), "set", 3)
    assert len(found.kept) == 60 and found == cut(whole, 60, ("a", "b"), "set", 3)
    assert cut_by_profile(whole, 80, ("a", "b"), "set", 3) == cut(whole, 80, ("a", "b"), "set", 3)
    assert cut_by_profile(whole, 500, ("a", "b"), "set", 3) is whole


# -- through a real model


@pytest.fixture(scope="module")
def lm(stories_model_dir: Path) -> LanguageModel:
    return load_bridge(str(stories_model_dir), ref="stories")


@pytest.fixture(scope="module")
def sentences(stories: list[str]) -> LabelledSet:
    found = sorted(
        {sentence.strip() for story in stories[:60] for sentence in story.split(".") if 8 < len(sentence) < 100}
    )
    rows = [(text, i % 2) for i, text in enumerate(random.Random(0).sample(found, 90))]
    return a_set(rows[:60], rows[60:])


def at(lm: LanguageModel, found: LabelledSet, *, batch_size: int | None = None, **sampling: Any) -> Labelled:
    settings = Sampling(**{"context": 64, **sampling})
    return labelled_at(found, "set", lm, settings, lambda sample: collect(lm, HOOK, sample, batch_size=batch_size))


def own_sae(lm: LanguageModel) -> SAE:
    return tied_sae(lm.d_model, 96, bias=-0.2)


def numbers(found: Labelled, sae: SAE) -> dict[str, tuple[Tensor, Tensor, int, bool]]:
    """Pooled activations, pooled codes, label and split of every text, by its hash."""
    codes = found.codes(sae).dense()
    facts = zip(found.x, codes, found.label.tolist(), found.test.tolist(), strict=True)
    return dict(zip(found.ids, facts, strict=True))


def test_a_text_is_pooled_as_if_it_went_through_the_model_alone(lm: LanguageModel, sentences: LabelledSet) -> None:
    found, sae = at(lm, sentences), own_sae(lm)
    assert lm.bos_id is not None
    by_id = numbers(found, sae)
    for split, texts in sentences.texts.items():
        for text, label in zip(texts[:12], sentences.labels[split], strict=False):
            ids = lm.tokenize([text])[0][:63]
            x = lm.activations(torch.tensor([[lm.bos_id, *ids]]), HOOK)[0, 1:]
            x = x[[i not in lm.special_ids for i in ids]]
            pooled, codes, said, test = by_id[hashlib.sha256(text.encode()).hexdigest()[:16]]
            torch.testing.assert_close(pooled, x.mean(0), rtol=0, atol=TOLERANCE)
            torch.testing.assert_close(codes, sae.encode(x).mean(0), rtol=0, atol=TOLERANCE)
            assert (said, test) == (label, split == "test")


CHANGES = ("order", "batch of one row", "large batch", "longer rows", "fewer neighbours")


@pytest.mark.parametrize("change", CHANGES)
def test_nothing_but_the_text_moves_its_numbers(lm: LanguageModel, sentences: LabelledSet, change: str) -> None:
    sae, other, options = own_sae(lm), sentences, {}
    rows = {s: list(zip(sentences.texts[s], sentences.labels[s], strict=True)) for s in ("train", "test")}
    if change == "order":
        other = a_set(rows["train"][::-1], random.Random(1).sample(rows["test"], len(rows["test"])))
    elif change == "fewer neighbours":
        other = a_set(rows["train"][::2] + rows["train"][1:20:2], rows["test"][:9])
    else:
        options = {"batch of one row": {"batch_size": 1}, "large batch": {"batch_size": 1 << 20}}.get(
            change, {"context": 200}
        )
    base, moved = at(lm, sentences), at(lm, other, **options)
    expected, mine = numbers(base, sae), numbers(moved, sae)
    assert (set(mine) == set(expected)) == (change != "fewer neighbours") and set(mine) <= set(expected)
    assert (base.content_hash == moved.content_hash) == (change in CHANGES[:3])
    for key, (x, codes, label, test) in mine.items():
        torch.testing.assert_close(x, expected[key][0], rtol=0, atol=TOLERANCE)
        torch.testing.assert_close(codes, expected[key][1], rtol=0, atol=TOLERANCE)
        assert (label, test) == expected[key][2:]


def test_long_texts_are_cut_to_the_context(lm: LanguageModel, sentences: LabelledSet) -> None:
    found = at(lm, sentences, context=6)
    assert int(found.n_tokens.max()) == 5
    assert found.n_tokens.sum() < at(lm, sentences).n_tokens.sum()


def test_every_text_goes_through_the_model_once_also_in_later_runs(
    lm: LanguageModel, sentences: LabelledSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows: list[int] = []
    forward = LanguageModel.activations

    def counted(self: LanguageModel, batch: Tensor, hook: str) -> Tensor:
        rows.append(len(batch) if batch.shape[1] > 1 else 0)  # not the probe for the width
        return forward(self, batch, hook)

    monkeypatch.setattr(LanguageModel, "activations", counted)
    cache = Cache(tmp_path, min_free=0)
    for _ in range(2):
        found = labelled_at(
            sentences, "set", lm, Sampling(context=64), lambda sample: collect(lm, HOOK, sample, cache=cache)
        )
        assert found.x.shape == (90, lm.d_model) and found.codes(own_sae(lm)).n_tokens == 90
        assert sum(rows) == 90


def test_labels_and_splits_follow_the_canonical_order(lm: LanguageModel, sentences: LabelledSet) -> None:
    found = at(lm, sentences)
    assert list(found.ids) == sorted(found.ids) and found.n_texts == 90
    assert np.bincount(found.label).tolist() == [45, 45] and int(found.test.sum()) == 30
    assert found.classes == ("a", "b") and found.dropped == {}
