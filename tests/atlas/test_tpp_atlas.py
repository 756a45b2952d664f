"""TPP's closed form on atlas: every class and size against encoding, zeroing, decoding, pooling and probing."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from saebench_meta.plan import make_plan
from saebench_meta.plugins import registry
from saebench_meta.sae import SAE
from saebench_meta.session import Session
from saebench_meta.settings import Settings
from saebench_meta.task_context import TaskContext
from saebench_tasks.tpp import ablation, probe, trial
from saebench_tasks.tpp.metrics import SIZES

SETS = ("atlas:topics", "atlas:tongues", "atlas:sentiment")


@pytest.fixture(scope="module")
def at_site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[TaskContext, SAE]]:
    out: Path = tmp_path_factory.mktemp("tpp")
    settings = Settings(
        saes=("atlas:batchtopk-256",), tasks=("tpp",), labelled=SETS, limit=100, cache=False, device="cpu", out=out
    )
    found = registry()
    unit = make_plan(found, settings).units[0]
    session = Session(found, settings)
    ctx = TaskContext(session, unit)
    yield ctx, session.sae(unit.subject.members[0], ctx.site)
    ctx.close()


@pytest.mark.parametrize("transform", ["none", "layer_norm"])
@pytest.mark.parametrize("name", SETS)
def test_closed_form_is_explicit_ablation(at_site: tuple[TaskContext, SAE], name: str, transform: str) -> None:
    ctx, sae = at_site
    labelled = ctx.labelled(name)
    if transform != "none":  # other codes, each token with a scale of its own
        scale = float(next(labelled.chunks(sae))[0].x.std(-1).mean())
        info = sae.info.model_copy(update={"input_transform": transform})
        sae = replace(sae, info=info, W_enc=sae.W_enc * scale, W_dec=sae.W_dec / scale)
    trained = probe.trained(labelled, ctx, 1)
    (found,) = trial.trials(labelled, sae, trained, ctx.seed, positive=True)
    assert min(map(len, found.latents)) > 20
    codes = trial.codes_on_test(labelled, labelled.scaled_codes(sae))
    bench = trial.bench_of(labelled, codes, ablation.effects(sae.W_dec, trained.W[0]), trained, 0)
    latents = ablation.padded([torch.from_numpy(own) for own in found.latents])
    taken = ablation.removed(ablation.columns(bench.codes, latents), bench.effect[latents], SIZES)
    n_tokens = torch.from_numpy(labelled.n_tokens)[:, None]
    for i, own in enumerate(found.latents):
        totals = torch.zeros(len(SIZES), labelled.n_texts, sae.d_in, dtype=torch.float64)
        for chunk, codes in labelled.chunks(sae):
            f, stats = codes.dense(), sae.transform(chunk.x)[1]
            error = chunk.x - sae.decode(f, stats)
            for total, n in zip(totals, SIZES, strict=True):
                f[:, own[:n]] = 0  # sizes ascend
                total.index_add_(0, chunk.document, (sae.decode(f, stats) + error).double())
        expected = (totals / n_tokens) @ trained.W[0].T + trained.b[0]
        torch.testing.assert_close(bench.logits - taken[i], expected[:, labelled.test], atol=1e-5, rtol=1e-5)
