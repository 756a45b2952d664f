"""The core table: formulae against float64 loops, invariances, what counts, what is null, the exact ends of scales."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fakes import HOOK, FakeContext, constant_sae, identity_sae, info, tied_sae, toy_context
from hypothesis import given, settings
from hypothesis import strategies as st

from saebench_meta import controls, measure, stats
from saebench_meta.errors import SaebenchError
from saebench_meta.record import MetricResult
from saebench_meta.sae import SAE, Site
from saebench_meta.stats import Estimate
from saebench_meta.task import Output
from saebench_tasks.core import core

LENGTHS = [9, 1, 5, 7, 3, 8, 6]
D = 6


def values(output: Output) -> dict[str, Estimate]:
    """Every metric's estimate, by the same way as the harness."""
    measure.check_output(core, output)
    return {m.name: measure.estimate(m, output, core, 0) for m in core.metrics}


def numbers(output: Output) -> dict[str, float | None]:
    """Every metric's value; a handful of resamples, since the interval is not looked at."""
    columns, given = output.documents or {}, output.estimates
    rng = np.random.default_rng(0)
    return {
        m.name: (stats.from_documents(m.of, columns, rng, resamples=2) if m.of else given[m.name]).value
        for m in core.metrics
    }


def run(sae: SAE, ctx: FakeContext, **parameters: Any) -> Output:
    return core(sae, ctx, **parameters)


# -- formulae


def test_a_case_small_enough_to_work_out_by_hand() -> None:
    """Four tokens in two documents: x = (2,0), (0,1) and (−1,0), (0,3); latents read e1, e2 and nothing."""
    ctx = toy_context([2, 2], d=2)
    ctx.held = replace(ctx.held, x=torch.tensor([[2.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.0, 3.0]]))
    W = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
    b_enc = torch.tensor([0.0, 0.0, -50.0])
    found = numbers(run(SAE(W.T.contiguous(), b_enc, W, torch.tensor([0.5, 0.0]), info(2, 3)), ctx))
    # x_hat = (2.5,0), (0.5,1), (0.5,0), (0.5,3): squared errors 0.25, 0.25, 2.25, 0.25
    assert found["l0"] == pytest.approx((1 + 1 + 0 + 1) / 4)
    assert found["mse"] == pytest.approx(3.0 / 8)
    # mean (0.25, 1): squared deviations 4.0625, 0.0625, 2.5625, 4.0625
    assert found["nmse"] == pytest.approx(3.0 / 10.75)
    assert found["explained_variance"] == pytest.approx(1 - 3.0 / 10.75)
    cosines = [1.0, 1 / 1.25**0.5, -1.0, 3 / 9.25**0.5]
    assert found["cosine"] == pytest.approx(sum(cosines) / 4)
    assert found["dead_fraction"] == pytest.approx(1 / 3)


@pytest.mark.parametrize("transform", ["none", "center", "layer_norm", "norm_rescale"])
def test_errors_agree_with_a_float64_loop_on_data_with_a_large_mean(transform: str) -> None:
    ctx = toy_context(LENGTHS * 4, mean=1000.0)
    x32 = ctx.activations().x
    sae = tied_sae(D, 12, bias=0.0, input_transform=transform)
    if transform == "none":
        sae = replace(sae, b_dec=x32.mean(0), b_enc=-(sae.W_dec @ x32.mean(0)))
    found = numbers(run(sae, ctx))
    token, x = sae.transform(x32)[1], x32.double()
    f = torch.cat([codes.dense() for _, codes in ctx.code_chunks(sae)]).double()
    mean, sse, sst = x.mean(0), 0.0, 0.0
    for t in range(len(x)):
        z_hat = f[t] @ sae.W_dec.double() + sae.b_dec.double()
        z_hat = z_hat if token.scale is None else z_hat * token.scale[t].double()
        x_hat = z_hat if token.shift is None else z_hat + token.shift[t].double()
        sse += float(((x[t] - x_hat) ** 2).sum())
        sst += float(((x[t] - mean) ** 2).sum())
    assert found["mse"] == pytest.approx(sse / x.numel(), rel=1e-6)
    assert found["nmse"] == pytest.approx(sse / sst, rel=1e-6)
    assert found["explained_variance"] == pytest.approx(1 - sse / sst, rel=1e-6, abs=1e-6)


def test_cross_entropies_are_ratios_of_the_columns() -> None:
    output = run(tied_sae(D, 10), toy_context(LENGTHS))
    found, columns = numbers(output), {k: np.nansum(v) for k, v in (output.documents or {}).items() if k != "document"}
    n = sum(LENGTHS)
    assert columns["predictions"] == n
    for name in ("clean", "zero", "mean", "spliced"):
        assert found[f"ce_{name}"] == pytest.approx(columns[f"loss_{name}"] / n)
    assert None not in (found["ce_spliced"], found["ce_clean"])
    assert found["ce_degradation"] == pytest.approx(found["ce_spliced"] - found["ce_clean"])


# -- the exact ends of the scale


def trained_toy(lengths: list[int] = LENGTHS) -> FakeContext:
    """A toy model whose predictions are right, so that ablations hurt it: texts repeat one token, U predicts that."""
    ctx = toy_context(lengths, mean=0.5)
    ctx.texts.tokens[:, 1:] = torch.where(ctx.texts.evaluated[:, 1:], ctx.texts.tokens[:, 1:2], 0)
    ctx.model.E = torch.nn.functional.normalize(ctx.model.E, dim=1)
    ctx.model.U = ctx.model.E.T * 6
    x = ctx.model.E[ctx.texts.tokens][ctx.texts.evaluated]
    ctx.held = replace(ctx.held, x=x)
    return ctx


def test_identity_recovers_all_and_the_constant_saes_recover_nothing() -> None:
    ctx = trained_toy()
    identity = numbers(run(identity_sae(D), ctx))
    assert (identity["ce_recovered_zero"], identity["ce_recovered_mean"]) == pytest.approx((1, 1), abs=1e-6)
    assert (identity["mse"], identity["explained_variance"]) == (0.0, 1.0)
    assert identity["kl"] == pytest.approx(0, abs=1e-6)
    zero = numbers(run(constant_sae(torch.zeros(D)), ctx))
    assert zero["ce_recovered_zero"] == pytest.approx(0, abs=1e-6)
    assert (zero["l0"], zero["dead_fraction"], zero["cosine"]) == (0.0, 1.0, 0.0)
    mean = numbers(run(constant_sae(ctx.activations().mean().float()), ctx))
    assert mean["ce_recovered_mean"] == pytest.approx(0, abs=1e-6)
    assert mean["explained_variance"] == pytest.approx(0, abs=1e-6)


def test_an_ablation_that_does_no_harm_leaves_nothing_to_recover_and_says_so() -> None:
    ctx = trained_toy()
    ctx.model.U = -ctx.model.U  # always wrong: replacing the activation by 0 can only help
    found = values(run(tied_sae(D, 10), ctx))
    assert found["ce_recovered_zero"].value is None
    assert "loss_zero - loss_clean is -" in str(found["ce_recovered_zero"].reason)
    assert found["ce_zero"].value is not None


def test_activations_that_never_vary_have_no_explained_variance() -> None:
    ctx = toy_context(LENGTHS)
    ctx.held = replace(ctx.held, x=torch.ones_like(ctx.activations().x))
    found = values(run(tied_sae(D, 10), ctx))
    assert found["explained_variance"].value is None
    assert found["mse"].value is not None


# -- what counts


def test_documents_outside_the_cross_entropy_budget_count_for_reconstruction_only() -> None:
    output = run(tied_sae(D, 10), toy_context(LENGTHS), ce_tokens=15)
    found = values(output)
    assert (found["ce_clean"].n, found["kl"].n, found["ce_recovered_mean"].n) == (3, 3, 3)
    assert (found["l0"].n, found["explained_variance"].n) == (7, 7)
    assert f"{sum(LENGTHS[:3])} predictions in 3 documents" in " ".join(output.notes)
    whole = values(run(tied_sae(D, 10), toy_context(LENGTHS), ce_tokens=0))
    assert whole["ce_clean"].n == 7


def test_documents_carry_the_ids_of_the_sample() -> None:
    output = run(tied_sae(D, 10), toy_context(LENGTHS))
    assert output.documents is not None
    assert list(output.documents["document"]) == [str(100 + i) for i in range(7)]  # type: ignore[arg-type]


def test_a_loss_that_overflows_is_null_and_does_not_drop_out_unseen() -> None:
    ctx = toy_context(LENGTHS)
    found = values(run(constant_sae(torch.full((D,), float("nan"))), ctx))
    assert found["ce_spliced"].value is None
    assert found["ce_spliced"].n == 7
    assert found["mse"].value is None
    assert found["ce_clean"].value is not None


def test_a_negative_budget_is_refused() -> None:
    with pytest.raises(SaebenchError, match="ce_tokens"):
        run(tied_sae(D, 10), toy_context(LENGTHS), ce_tokens=-5)


# -- invariances


def same(one: Output, other: Output, tolerance: float = 1e-5) -> None:
    a, b = numbers(one), numbers(other)
    for name in a:
        close = a[name] == b[name] if None in (a[name], b[name]) else a[name] == pytest.approx(b[name], abs=tolerance)
        assert close, name


@settings(max_examples=6)
@given(st.integers(0, 10_000))
def test_scores_do_not_move_with_the_order_or_the_scale_of_latents(seed: int) -> None:
    g = torch.Generator().manual_seed(seed)
    sae, ctx = tied_sae(D, 10), toy_context(LENGTHS)
    order, scale = torch.randperm(10, generator=g), torch.rand(10, generator=g) * 10 + 0.1
    changed = replace(
        sae,
        W_enc=(sae.W_enc * scale)[:, order],
        b_enc=(sae.b_enc * scale)[order],
        W_dec=(sae.W_dec / scale[:, None])[order],
    )
    same(run(sae, ctx), run(changed, ctx))


@settings(max_examples=6)
@given(st.integers(1, 20))
def test_scores_do_not_move_with_the_size_of_chunks_or_the_padding(size: int) -> None:
    sae, ctx = tied_sae(D, 10), toy_context(LENGTHS)
    before = run(sae, ctx)
    other = toy_context(LENGTHS)
    other.held = replace(other.held, size=size)
    pad = torch.zeros(len(LENGTHS), size)
    other.texts = replace(
        other.texts,
        tokens=torch.cat([other.texts.tokens, pad.long()], 1),
        document=torch.cat([other.texts.document, pad.int() - 1], 1),
        evaluated=torch.cat([other.texts.evaluated, pad.bool()], 1),
    )
    same(before, run(sae, other))


# -- controls, tables, figures


def test_the_orders_declared_hold_for_an_sae_that_rebuilds_well() -> None:
    ctx = trained_toy(LENGTHS * 5)
    sae = identity_sae(D)
    random = controls.random_sae(sae, ctx.held, 6.0, torch.Generator().manual_seed(0))
    rows = controls.permuted_rows(sae, np.random.default_rng(0))
    outputs = {"trained": run(sae, ctx), "random": run(random, ctx), "permuted_rows": run(rows, ctx)}
    results: dict[str, MetricResult] = measure.measure(core, outputs, 0)
    for metric in core.metrics:
        if metric.expects is not None:
            order = results[metric.name].order
            assert order is not None and order.holds, metric.name
    assert results["l0"].controls["permuted_rows"].value == results["l0"].value
    # Ten different tokens only: the threshold falls among equal activations, which it can but take or leave together.
    assert results["l0"].controls["random"].value == pytest.approx(6.0, abs=0.3)
    assert results["ce_clean"].controls["random"].value == results["ce_clean"].value


def test_every_metric_says_what_it_is_and_why_an_order_is_expected_or_not() -> None:
    assert [m.name for m in core.metrics if m.main] == ["l0", "mse", "explained_variance", "ce_recovered_mean"]
    for metric in core.metrics:
        assert metric.help and metric.why and metric.unit
        assert metric.of is None or stats.parse_formula(metric.of)
    assert {m.name for m in core.metrics if m.expects is None and m.better != "neither"} == {"dead_fraction"}


def test_figures_are_small_titled_and_count_every_token_and_latent() -> None:
    ctx = toy_context(LENGTHS)
    output = run(tied_sae(D, 10), ctx)
    assert set(output.figures) == {"l0", "latent_density"}
    for figure in output.figures.values():
        spec = figure.chart.to_dict()
        (rows,) = spec["datasets"].values()
        assert len(rows) <= 100
        assert spec["encoding"]["x"]["title"] and spec["encoding"]["y"]["title"]
    (rows,) = output.figures["l0"].chart.to_dict()["datasets"].values()
    assert sum(row["count"] for row in rows) == sum(LENGTHS)
    assert sum(row["share"] for row in rows) == pytest.approx(1)


def test_figures_of_an_sae_that_is_never_active_are_drawn() -> None:
    output = run(constant_sae(torch.zeros(D)), toy_context(LENGTHS))
    assert "3 of 3 latents are active on none" in output.figures["latent_density"].caption


def test_quantile_table_runs_from_the_smallest_to_the_largest() -> None:
    table = run(tied_sae(D, 10), toy_context(LENGTHS)).tables["quantiles"].data
    assert table["quantile"].tolist() == [0, 0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99, 1]
    assert (table.diff().iloc[1:] >= 0).all().all()


# -- a real language model


@pytest.fixture(scope="module")
def real(stories_model_dir: Path, stories: list[str]) -> FakeContext:
    from saebench_meta.activations import collect
    from saebench_meta.corpus import Sampling, draw
    from saebench_meta.models import load_bridge

    lm = load_bridge(str(stories_model_dir), ref="stories")
    sample = draw(stories[:40], lm, Sampling(documents=12, context=96))
    return FakeContext(collect(lm, "blocks.2.hook_resid_pre", sample), sample, lm)


def real_info(sae: SAE) -> SAE:
    site = Site(model="stories", hook="blocks.2.hook_resid_pre")
    assert sae.info.site.hook == HOOK
    return replace(sae, info=sae.info.model_copy(update={"site": site}))


def test_on_a_real_model_identity_recovers_1_zero_0_and_mean_0(real: FakeContext) -> None:
    """Tolerance 1e-6: float32 losses of some thousand predictions, summed in float64."""
    d = real.model.d_model
    identity = numbers(run(real_info(identity_sae(d)), real))
    assert identity["ce_recovered_zero"] == pytest.approx(1, abs=1e-6)
    assert identity["ce_recovered_mean"] == pytest.approx(1, abs=1e-6)
    zero = numbers(run(real_info(constant_sae(torch.zeros(d))), real))
    assert zero["ce_recovered_zero"] == pytest.approx(0, abs=1e-6)
    mean = torch.as_tensor(real.activations().mean()).float()
    found = numbers(run(real_info(constant_sae(mean)), real))
    assert found["ce_recovered_mean"] == pytest.approx(0, abs=1e-6)
    assert found["explained_variance"] == pytest.approx(0, abs=1e-6)
    assert found["ce_clean"] is not None and found["ce_mean"] is not None and found["ce_zero"] is not None
    assert found["ce_clean"] < 2.5 < min(found["ce_mean"], found["ce_zero"])


def test_on_a_real_model_a_random_sae_stands_between_the_mean_and_the_identity(real: FakeContext) -> None:
    sae = real_info(identity_sae(real.model.d_model))
    random = controls.random_sae(sae, real.activations(), 32.0, torch.Generator().manual_seed(0))
    found = numbers(run(random, real))
    assert found["l0"] == pytest.approx(32.0, rel=0.02)
    assert found["explained_variance"] is not None and found["ce_recovered_mean"] is not None
    assert 0 < found["explained_variance"] < 1
    assert found["ce_recovered_mean"] < 1
