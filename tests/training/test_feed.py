"""Feeds: every batch a function of its number, every token once an epoch, nothing that is excluded."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from toy import NATIVE, PACE, same_sae, toy_recipe, train

from saebench_meta import seeds
from saebench_meta.corpus import Sampling, draw
from saebench_meta.errors import SaebenchError
from saebench_meta.models import LanguageModel, load_bridge
from saebench_meta.training.feed import TensorFeed
from saebench_meta.training.loop import Listeners
from saebench_meta.training.site_feed import SiteFeed, Source, site_feed
from saebench_meta.training.trainable import Processes

HOOK = "blocks.1.hook_resid_pre"


def of(rank: int, count: int) -> Processes:
    """What one of several processes knows of itself."""
    made = Processes()
    made.rank, made.count = rank, count
    return made


def numbers(n: int) -> Tensor:
    """Activations that are their own row number."""
    return torch.arange(float(n))[:, None]


def taken(feed: Any, n: int, start: int = 0, position: tuple[int, ...] = ()) -> list[Tensor]:
    return list(islice(feed.batches(start, position), n))


# -- a tensor


@given(st.integers(1, 40), st.integers(1, 25), st.integers(0, 9))
def test_every_row_is_seen_once_an_epoch(n: int, batch: int, start: int) -> None:
    feed = TensorFeed(numbers(n), batch, 0)
    steps = -(-3 * n // batch)
    seen = torch.cat(taken(feed, steps)).squeeze(1).tolist()
    for epoch in range(3):
        assert sorted(seen[epoch * n : (epoch + 1) * n]) == list(range(n))
    assert all(len(x) == batch for x in taken(feed, steps))
    again = TensorFeed(numbers(n), batch, 0)
    assert torch.equal(torch.cat(taken(again, 3, start)), torch.cat(taken(feed, start + 3)[start:]))


def test_the_order_follows_the_seed_and_the_epoch() -> None:
    a, b = (taken(TensorFeed(numbers(64), 64, seed), 2) for seed in (0, 1))
    assert not torch.equal(a[0], b[0]) and not torch.equal(a[0], a[1])


def test_processes_share_every_batch() -> None:
    whole = TensorFeed(numbers(50), 12, 3)
    parts = [TensorFeed(numbers(50), 12, 3, processes=of(rank, 3)) for rank in range(3)]
    for step, x in enumerate(taken(whole, 8)):
        shares = [taken(p, 1, step)[0] for p in parts]
        assert [len(s) for s in shares] == [4, 4, 4]
        assert torch.equal(torch.stack(shares, 1).flatten(0, 1), x)
    assert all(torch.equal(p.first(), whole.first()) for p in parts)
    with pytest.raises(SaebenchError, match="multiple of 3"):
        TensorFeed(numbers(50), 10, 3, processes=of(0, 3))


def test_a_tensor_is_named_by_its_content_and_by_what_orders_it() -> None:
    names = [
        TensorFeed(numbers(8), 4, 0).identity(),
        TensorFeed(numbers(8), 4, 1).identity(),
        TensorFeed(numbers(8), 2, 0).identity(),
        TensorFeed(numbers(9), 4, 0).identity(),
        TensorFeed(numbers(8), 4, 0, identity={"name": "x"}).identity(),
    ]
    assert all(a != b for i, a in enumerate(names) for b in names[:i])
    assert names[0] == TensorFeed(numbers(8), 4, 0, processes=of(0, 2)).identity()


def test_batches_are_float32_and_no_view_of_the_data() -> None:
    x = numbers(8).to(torch.bfloat16)
    (batch,) = taken(TensorFeed(x, 8, 0), 1)
    assert batch.dtype == torch.float32
    y = numbers(8)
    taken(TensorFeed(y, 8, 0), 1)[0].zero_()
    assert torch.equal(y, numbers(8))
    with pytest.raises(SaebenchError, match="no activations"):
        TensorFeed(torch.zeros(0, 3), 4, 0)


# -- a site


class Letters:
    """A model whose tokens are letters and whose activation at a token is (token, its position in the row).

    a is 3, b is 4, …; `#` is the special token 2, BOS is 1.
    """

    ref, revision, processing, dtype = "letters", None, "raw", torch.float32
    n_ctx, bos_id, special_ids, device = 64, 1, frozenset({0, 1, 2}), torch.device("cpu")

    def __init__(self) -> None:
        self.files: dict[str, str] = {}
        self.rows: list[tuple[int, ...]] = []
        self.most = 10**9

    def check_hook(self, hook: str) -> None:
        assert hook == HOOK

    def tokenize(self, texts: Iterable[str]) -> list[list[int]]:
        return [[2 if c == "#" else ord(c) - ord("a") + 3 for c in text] for text in texts]

    def activations(self, tokens: Tensor, hook: str) -> Tensor:
        if tokens.numel() > self.most:
            raise RuntimeError("out of memory")
        if tokens.numel() > 1:
            self.rows += map(tuple, tokens.tolist())
        return torch.stack([tokens.float(), torch.arange(tokens.shape[1]).expand_as(tokens).float()], -1)


def corpus(n: int, longest: int = 13) -> list[str]:
    """Documents of different lengths."""
    g = torch.Generator().manual_seed(n)
    lengths = torch.randint(1, longest + 1, (n,), generator=g).tolist()
    return ["".join(chr(97 + int(torch.randint(26, (1,), generator=g))) for _ in range(m)) for m in lengths]


def source(texts: list[str], model: Any = None, **given: Any) -> Source:
    settings = {"corpus": {"ref": "letters"}, "context": 6, **given}
    return Source(model or Letters(), HOOK, lambda: texts, **settings)


def letters(feed: Any, n: int, start: int = 0, position: tuple[int, ...] = ()) -> list[tuple[int, int]]:
    """(token, position) of so many batches."""
    return [(int(t), int(p)) for t, p in torch.cat(taken(feed, n, start, position)).tolist()]


def stream(texts: list[str], seed: int, epochs: int) -> list[list[tuple[int, int]]]:
    """(token, position in its row) of every evaluated token, epoch by epoch, worked out from whole samples."""
    out = []
    for epoch in range(epochs):
        sampling = Sampling(context=6, packing="concat", seed=seeds.derive(seed, "epoch", epoch))
        sample = draw(texts, Letters(), sampling)  # type: ignore[arg-type]
        rows, positions = sample.evaluated.nonzero(as_tuple=True)
        out.append(list(zip(sample.tokens[rows, positions].tolist(), positions.tolist(), strict=True)))
    return out


@given(st.integers(2, 30), st.integers(1, 7), st.integers(1, 5), st.integers(0, 4))
@settings(max_examples=40)
def test_blocks_are_the_tokens_of_the_corpus_epoch_after_epoch(n: int, batch: int, blocks: int, seed: int) -> None:
    texts = [*corpus(n), "abcdefgh"]
    feed = SiteFeed(source(texts), batch, seed, buffer_tokens=batch * blocks)
    size = batch * blocks
    epochs = stream(texts, seed, 1)
    needed = 2 * len(epochs[0]) // size + 2
    expected = [t for e in stream(texts, seed, 2 + needed * size // len(epochs[0])) for t in e]
    found = letters(feed, needed * blocks)
    for number in range(needed):
        assert Counter(found[number * size : (number + 1) * size]) == Counter(expected[number * size :][:size])


@given(st.integers(3, 25), st.integers(1, 6), st.integers(1, 4), st.integers(1, 30))
@settings(max_examples=40)
def test_a_feed_goes_on_from_any_step_as_if_it_had_never_stopped(n: int, batch: int, blocks: int, step: int) -> None:
    texts = [*corpus(n), "ab#defgh#"]
    make = lambda: SiteFeed(source(texts), batch, 0, buffer_tokens=batch * blocks)  # noqa: E731
    whole = make()
    found = letters(whole, step + 9)
    stopped = make()
    taken(stopped, step)
    position = stopped.position(step)
    assert letters(make(), 9, step, position) == found[step * batch :]
    assert letters(make(), 9, step) == found[step * batch :]
    assert letters(stopped, 9, step) == found[step * batch :]


def test_going_on_runs_the_model_on_no_block_before() -> None:
    texts = corpus(200)
    first = SiteFeed(source(texts), 4, 0, buffer_tokens=40)
    taken(first, 30)
    model = Letters()
    feed = SiteFeed(source(texts, model), 4, 0, buffer_tokens=40)
    taken(feed, 10, 30, first.position(30))
    assert 40 <= sum(t > 2 for row in model.rows for t in row) < 40 + 2 * 6


def test_a_block_in_use_is_not_made_again_for_a_second_reader() -> None:
    model = Letters()
    feed = SiteFeed(source(corpus(100), model), 4, 0, buffer_tokens=40)
    feed.first()
    before = len(model.rows)
    taken(feed, 10)
    taken(feed, 4, 3)
    assert len(model.rows) == before


def test_tokens_are_shuffled_within_a_block_by_the_seed() -> None:
    texts = ["abcdefghijklmnopqrstuvwxyz" * 4]
    a, b = (letters(SiteFeed(source(texts), 20, seed, buffer_tokens=80), 4) for seed in (0, 1))
    assert Counter(a) == Counter(b) and a != b
    assert sum(x < y for x, y in pairwise(a)) < 70


def test_excluded_documents_are_never_seen() -> None:
    texts = ["aaaa", "bbbb", "cccc", "dddd"] * 5
    exclude = frozenset(str(i) for i in range(20) if i % 4 in (1, 3))
    for feed in (
        SiteFeed(source(texts, exclude=exclude), 4, 0, buffer_tokens=8),
        site_feed(source(texts, exclude=exclude), 4, 0),
    ):
        assert {t for t, _ in letters(feed, 40)} == {3, 5}
    with pytest.raises(SaebenchError, match="all of it is excluded"):
        taken(SiteFeed(source(texts, exclude=frozenset(map(str, range(20)))), 4, 0), 1)


def test_special_tokens_are_trained_on_only_on_request() -> None:
    texts = ["ab#cd"] * 6
    assert {t for t, _ in letters(SiteFeed(source(texts), 4, 0, buffer_tokens=8), 6)} == {3, 4, 5, 6}
    every = letters(SiteFeed(source(texts, skip_special=False), 4, 0, buffer_tokens=8), 6)
    assert {t for t, _ in every} == {1, 2, 3, 4, 5, 6}


@pytest.mark.parametrize("count", [2, 3])
def test_processes_divide_the_documents(count: int) -> None:
    texts = [chr(97 + i) * 30 for i in range(12)]
    feeds = [
        SiteFeed(source(texts), 3 * count, 0, buffer_tokens=12 * count, processes=of(r, count)) for r in range(count)
    ]
    seen = [{t for t, _ in letters(feed, 24)} for feed in feeds]
    assert all(len(taken(feed, 1)[0]) == 3 for feed in feeds)
    assert sum(map(len, seen)) == len(set().union(*seen)) > count
    assert feeds[0].identity() != SiteFeed(source(texts), 3 * count, 0, buffer_tokens=12 * count).identity()


def test_a_forward_pass_that_runs_out_of_memory_is_halved() -> None:
    model, told = Letters(), []
    model.most = 13
    feed = SiteFeed(source(corpus(60), model, notice=told.append), 4, 0, buffer_tokens=60)
    assert letters(feed, 15) == letters(SiteFeed(source(corpus(60)), 4, 0, buffer_tokens=60), 15)
    assert told and "out of memory" in told[0]


def test_a_block_fits_the_memory_it_may_take() -> None:
    small = SiteFeed(source(corpus(60)), 4, 0, buffer_tokens=60, memory_limit=20 * 2 * 4)
    assert small.per_block == 5
    assert SiteFeed(source(corpus(60)), 4, 0, memory_limit=20 * 2 * 4, stored_as="bfloat16").per_block == 10
    assert SiteFeed(source(corpus(60)), 64, 0, buffer_tokens=60).per_block == 1


def test_a_small_corpus_is_kept_as_a_whole_and_a_large_one_is_not() -> None:
    texts = corpus(60)
    n = len(stream(texts, 0, 1)[0])
    whole, blocks = site_feed(source(texts), 4, 0), site_feed(source(texts), 4, 0, memory_limit=n * 8 - 1)
    assert isinstance(whole, TensorFeed) and isinstance(blocks, SiteFeed)
    assert whole.tokens_available == n and blocks.tokens_available is None
    found = torch.cat(taken(whole, n)).tolist()
    assert Counter(map(tuple, found[:n])) == Counter(stream(texts, 0, 1)[0])
    assert site_feed(source(texts), 4, 0, processes=of(1, 2)).first().tolist() == whole.first().tolist()


@pytest.mark.parametrize("texts", [[], ["", "##"], ["ab"]], ids=["none", "special", "short"])
@pytest.mark.parametrize("make", [SiteFeed, site_feed])
def test_a_corpus_without_a_row_is_refused(texts: list[str], make: Callable[..., Any]) -> None:
    with pytest.raises(SaebenchError, match=r"no document|are empty|do not fill one row"):
        taken(make(source(texts), 4, 0), 1)


@pytest.mark.parametrize(
    "position", [(0, 99, 0, 0), (0, 0, 0), (0, 0, 0, 7), (0, -1, 0, 0)], ids=["beyond", "short", "skip", "negative"]
)
def test_a_position_of_another_corpus_is_refused(position: tuple[int, ...]) -> None:
    feed = SiteFeed(source(corpus(20)), 4, 0, buffer_tokens=8)
    with pytest.raises(SaebenchError, match=r"position|no document 99"):
        taken(feed, 1, 10, position)


# -- documents read in the background


def test_reading_ahead_changes_nothing() -> None:
    texts = corpus(60)
    here, ahead = (SiteFeed(source(texts), 4, 0, buffer_tokens=24, ahead=a) for a in (False, True))
    assert letters(ahead, 40) == letters(here, 40)
    assert threading.active_count() < 5


def test_an_error_while_reading_ahead_comes_up_where_its_block_is_wanted() -> None:
    def documents() -> Iterator[Any]:
        yield from corpus(40)
        yield 7

    feed = SiteFeed(replace(source([]), documents=documents), 4, 0, buffer_tokens=16, ahead=True)
    with pytest.raises(SaebenchError, match="is int, not text"):
        taken(feed, 10**6)


# -- a real model


@pytest.fixture(scope="module")
def lm(stories_model_dir: Path) -> LanguageModel:
    return load_bridge(str(stories_model_dir), ref="stories", files={"model.safetensors": "0" * 64})


def test_batches_are_the_models_own_activations(lm: LanguageModel, stories: list[str]) -> None:
    """A row alone through the model gives the same; every token of every row is in its block once."""
    texts = [s[:200] for s in stories[:12]]
    feed = SiteFeed(Source(lm, HOOK, lambda: texts, {"ref": "stories"}, context=24), 16, 0, buffer_tokens=160)
    sampling = Sampling(context=24, packing="concat", seed=seeds.derive(0, "epoch", 0))
    sample = draw(texts, lm, sampling)
    alone = torch.cat(
        [lm.activations(t[None], HOOK)[0][e] for t, e in zip(sample.tokens, sample.evaluated, strict=True)]
    )
    found = torch.cat(taken(feed, 10))
    nearest = torch.cdist(found.double(), alone[:160].double()).min(1)
    assert nearest.values.max() < 1e-4 and sorted(nearest.indices.tolist()) == list(range(160))


def test_training_at_a_site_goes_on_bit_for_bit(lm: LanguageModel, stories: list[str], tmp_path: Path) -> None:
    def feed() -> SiteFeed:
        texts = [s[:200] for s in stories[:40]]
        return SiteFeed(Source(lm, HOOK, lambda: texts, {"ref": "stories"}, context=24), 32, 0, buffer_tokens=128)

    class StopError(Exception):
        pass

    def stop(label: str, line: Any) -> None:
        if line.step == 5:
            raise StopError

    pace = replace(PACE, checkpoint_steps=5)
    (whole,) = train(tmp_path / "whole", toy_recipe(), data=feed())
    with pytest.raises(StopError):
        train(tmp_path / "stopped", toy_recipe(), data=feed(), pace=pace, listeners=Listeners(progress=stop))
    (gone_on,) = train(tmp_path / "stopped", toy_recipe(), data=feed(), pace=pace)
    assert same_sae(gone_on.sae, whole.sae)
    assert same_sae(NATIVE.load(str(gone_on.path)), whole.sae)
