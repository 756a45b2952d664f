"""Activations of a sample: order, storage, and running out of memory."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from saebench_meta import activations
from saebench_meta.activations import Activations, auto_batch_size, collect
from saebench_meta.batches import BatchRunner, is_out_of_memory
from saebench_meta.cache import Cache
from saebench_meta.corpus import Batch, Sample, Sampling, draw
from saebench_meta.errors import SaebenchError
from saebench_meta.models import LanguageModel, load_bridge

HOOK = "blocks.2.hook_resid_post"


@pytest.fixture(scope="module")
def lm(stories_model_dir: Path) -> LanguageModel:
    return load_bridge(str(stories_model_dir), ref="stories", files={"model.safetensors": "0" * 64})


@pytest.fixture(scope="module")
def sample(lm: LanguageModel, stories: list[str]) -> Sample:
    return draw([s[: 40 + 37 * (i % 9)] for i, s in enumerate(stories[:60])], lm, Sampling(tokens=900, context=48))


@pytest.fixture(scope="module")
def reference(lm: LanguageModel, sample: Sample) -> torch.Tensor:
    """One row at a time, in the order of the sample."""
    found = []
    for row, evaluated, n in zip(sample.tokens, sample.evaluated, sample.lengths.tolist(), strict=True):
        found.append(lm.activations(row[None, :n], HOOK)[0][evaluated[:n]])
    return torch.cat(found)


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(activations, "BLOCK_TOKENS", 200)
    monkeypatch.setattr(activations, "CHUNK_TOKENS", 64)


@pytest.mark.parametrize("batch_size", [1, 100, 333, 100_000])
def test_order_and_values_do_not_depend_on_the_batch_size(
    lm: LanguageModel, sample: Sample, reference: torch.Tensor, batch_size: int
) -> None:
    found = collect(lm, HOOK, sample, batch_size=batch_size)
    torch.testing.assert_close(found.all(), reference, atol=1e-5, rtol=0)


def test_every_token_knows_where_it_stands(lm: LanguageModel, sample: Sample) -> None:
    found = collect(lm, HOOK, sample)
    chunks = list(found.chunks(100))
    assert [len(c.x) for c in chunks[:-1]] == [100] * (len(chunks) - 1)
    token, row, position, document = (
        torch.cat([getattr(c, name) for c in chunks]) for name in ("token", "row", "position", "document")
    )
    assert torch.equal(torch.stack([row, position], 1), sample.evaluated.nonzero())
    assert torch.equal(token, sample.tokens[row, position])
    assert torch.equal(document, sample.document[row, position].long()) and torch.equal(document, found.documents)
    assert document.dtype == torch.int64 and (found.n_tokens, found.n_docs, found.d_in) == (
        sample.n_evaluated,
        sample.n_docs,
        64,
    )
    assert not set(token.tolist()) & lm.special_ids


def test_the_mean_is_that_of_all_tokens_in_double_precision(
    lm: LanguageModel, sample: Sample, reference: torch.Tensor
) -> None:
    mean = collect(lm, HOOK, sample).mean()
    assert mean.dtype == torch.float64
    torch.testing.assert_close(mean, reference.double().mean(0), atol=1e-6, rtol=0)


@pytest.mark.usefixtures("small_blocks")
def test_the_cache_gives_the_same_numbers_without_running_the_model_again(
    lm: LanguageModel, sample: Sample, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = collect(lm, HOOK, sample).all()
    cache = Cache(tmp_path, min_free=0)
    cold = collect(lm, HOOK, sample, cache=cache, memory_limit=0)
    assert len(list((tmp_path / "activations").glob("*/*.safetensors"))) > 2
    assert torch.equal(cold.all(), plain) and torch.equal(cold.all(), plain)
    assert cache.info().entries[0].in_use

    ran: list[int] = []
    real = LanguageModel.activations
    monkeypatch.setattr(LanguageModel, "activations", lambda *a: ran.append(a[1].numel()) or real(*a))
    warm = collect(lm, HOOK, sample, cache=cache, memory_limit=0)
    assert torch.equal(warm.all(), plain) and max(ran, default=0) <= 1, "only the width is probed"
    torch.testing.assert_close(warm.mean(), cold.mean(), atol=0, rtol=0)


def test_bfloat16_on_disk_is_another_entry_and_rounds(lm: LanguageModel, sample: Sample, tmp_path: Path) -> None:
    cache = Cache(tmp_path, min_free=0)
    exact = collect(lm, HOOK, sample, cache=cache, memory_limit=0).all()
    rounded = collect(lm, HOOK, sample, cache=cache, memory_limit=0, stored_as="bfloat16")
    assert torch.equal(rounded.all(), exact.bfloat16().float()) and len(cache.info().entries) == 2


@pytest.mark.usefixtures("small_blocks")
def test_without_a_cache_the_model_runs_again_and_says_so(
    lm: LanguageModel, sample: Sample, reference: torch.Tensor, tmp_path: Path
) -> None:
    for cache in (None, Cache(tmp_path, max_bytes=10)):
        said: list[str] = []
        found = collect(lm, HOOK, sample, cache=cache, memory_limit=0, notice=said.append)
        assert "at every reading" in said[-1]
        for _ in range(2):
            torch.testing.assert_close(found.all(), reference, atol=1e-5, rtol=0)


def test_work_in_place_on_a_chunk_does_not_reach_the_next_reader(lm: LanguageModel, sample: Sample) -> None:
    found = collect(lm, HOOK, sample)
    before = found.all()
    for chunk in found:
        chunk.x.zero_()
    assert torch.equal(found.all(), before)


def test_all_at_once_is_refused_when_too_large(
    lm: LanguageModel, sample: Sample, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = collect(lm, HOOK, sample)
    monkeypatch.setattr(activations, "MEMORY_LIMIT", 1000)
    with pytest.raises(SaebenchError, match="at once"):
        found.all()


def test_the_order_of_documents_moves_nothing_of_any_document(lm: LanguageModel, stories: list[str]) -> None:
    texts = [s[:150] for s in stories[:6]]
    a = collect(lm, HOOK, draw(texts, lm, Sampling(context=32)))
    b = collect(lm, HOOK, draw(texts, lm, Sampling(context=32, seed=3)))
    assert a.sample.document_ids != b.sample.document_ids

    def of(found: Activations, name: str) -> torch.Tensor:
        return found.all()[found.documents == found.sample.document_ids.index(name)]

    for name in a.sample.document_ids:
        torch.testing.assert_close(of(a, name), of(b, name), atol=1e-5, rtol=0)


def test_progress_counts_evaluated_tokens(lm: LanguageModel, sample: Sample) -> None:
    seen: list[tuple[int, int]] = []
    collect(lm, HOOK, sample, batch_size=200, progress=lambda done, total: seen.append((done, total)))
    assert seen == sorted(seen) and seen[-1] == (sample.n_evaluated, sample.n_evaluated) and len(seen) > 2


def test_a_wrong_hook_is_refused_before_anything_runs(lm: LanguageModel, sample: Sample) -> None:
    with pytest.raises(SaebenchError, match="layers 0 to 4"):
        collect(lm, "blocks.9.hook_resid_post", sample)


# -- running out of memory


def test_out_of_memory_halves_the_batch_and_says_so(
    lm: LanguageModel, sample: Sample, reference: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, said = LanguageModel.activations, []

    def limited(self: LanguageModel, tokens: torch.Tensor, hook: str) -> torch.Tensor:
        if tokens.numel() > 150:
            raise torch.OutOfMemoryError("CUDA out of memory (pretended)")
        return real(self, tokens, hook)

    monkeypatch.setattr(LanguageModel, "activations", limited)
    found = collect(lm, HOOK, sample, batch_size=500, notice=said.append)
    torch.testing.assert_close(found.all(), reference, atol=1e-5, rtol=0)
    assert 1 <= len(said) <= 4 and all("out of memory: batches are now" in s for s in said)


def test_each_row_is_done_once_when_memory_runs_out_midway(sample: Sample) -> None:
    done: list[int] = []
    failures: Iterator[bool] = iter([False, True, True, False, True])

    def work(batch: Batch) -> None:
        if len(batch.rows) > 1 and next(failures, False):
            raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory")
        done.extend(batch.rows.tolist())

    runner = BatchRunner(400)
    runner.run(sample, work)
    assert sorted(done) == list(range(sample.n_rows)) and runner.tokens < 200


def test_a_single_row_too_large_is_the_users_to_mend(sample: Sample) -> None:
    def never(batch: Batch) -> None:
        raise torch.OutOfMemoryError("out of memory")

    with pytest.raises(SaebenchError, match="single row"):
        BatchRunner(1000).run(sample, never)


def test_other_errors_pass_through(sample: Sample) -> None:
    def broken(batch: Batch) -> None:
        raise RuntimeError("shapes do not match")

    with pytest.raises(RuntimeError, match="shapes"):
        BatchRunner(1000).run(sample, broken)
    assert not is_out_of_memory(ValueError("out of memory"))


def test_the_batch_size_is_a_positive_number(lm: LanguageModel, sample: Sample) -> None:
    assert auto_batch_size(lm) >= 1
    with pytest.raises(SaebenchError, match="batch size"):
        collect(lm, HOOK, sample, batch_size=-1)


@pytest.mark.parametrize("sizes", [[], [5], [1, 2, 3, 4], [7, 0, 1, 12], [4, 4]])
@pytest.mark.parametrize("size", [1, 4, 100])
def test_regrouping_keeps_every_token_in_order(sizes: list[int], size: int) -> None:
    whole = torch.arange(sum(sizes)).float()[:, None]
    pieces: list[Any] = list(activations._regrouped(iter(torch.split(whole, sizes)) if sizes else iter([]), size))
    assert [len(p) for p in pieces[:-1]] == [size] * (len(pieces) - 1)
    assert not sizes or torch.equal(torch.cat(pieces), whole)
    assert all(len(p) for p in pieces)
