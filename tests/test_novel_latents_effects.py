"""Novel latents, measured on activations: a planted pair worked out by hand, brute force, invariances, the limit."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from fakes import info, tied_sae
from hypothesis import given, settings
from hypothesis import strategies as st
from novel_pairs import held, latent_rows, run

from saebench_meta.codes import Codes
from saebench_meta.sae import SAE
from saebench_meta.stitching import PairSample
from saebench_meta.task import Output, Pair
from saebench_tasks.novel_latents import lookup, novel_latents
from saebench_tasks.novel_latents.lookup import moments, r_squared, values_at
from saebench_tasks.novel_latents.nearest import Matches
from saebench_tasks.novel_latents.roc import Cuts

SILENT = -100.0
X = torch.tensor([[2.0, 1.0, 1.0], [1.0, 2.0, -1.0], [-1.0, -1.0, 3.0]])
"""Tokens, a document each; Σ max(0, x)² is 5, 5 and 10 by coordinate, Σ x² is 6, 6 and 11."""


def reading(axes: list[int], gains: list[float], biases: list[float], b_dec: list[float]) -> SAE:
    """Latent i reads `gains[i]` times coordinate `axes[i]` and writes along it."""
    W = torch.eye(3)[axes]
    b_enc = torch.tensor(biases)
    return SAE((W * torch.tensor(gains)[:, None]).T.contiguous(), b_enc, W, torch.tensor(b_dec), info(3, len(axes)))


def planted(b_dec: float = 0.0) -> tuple[SAE, SAE]:
    """S0 rebuilds half of coordinate 0. S1 has three twins of its latent and three novel ones, one silent of each.

    With e the residual of S0 on tokens where a latent fires, Σ(e − f)² − Σe² of latents 0 to 3:
    e = x/2, f = x/4: (1/16 − 1/4)·5; f = 3x/2: (1 − 1/4)·5; e = x, f = x: −5; f = 3x: (4 − 1)·10.
    """
    reference = reading([0], [0.5], [0.0], [0.0, 0.0, 0.0])
    sae = reading([0, 0, 1, 2, 0, 1], [0.25, 1.5, 1.0, 3.0, 1.0, 1.0], [0, 0, 0, 0, SILENT, SILENT], [0, b_dec, 0])
    return sae, reference


DSSE = [-15 / 16, 15 / 4, -5.0, 30.0, 0.0, 0.0]
SSE = (0.25 * 5 + 1) + 6 + 11
"""Of S0: half of coordinate 0 where it is positive, all of it elsewhere, all of the other two."""


def effects(output: Output) -> dict[str, dict[str, int]]:
    return output.tables["effects"].data.set_index("group").to_dict("index")


def test_the_planted_pair_gives_the_table_worked_out_by_hand() -> None:
    output = run(*planted(), x=X)
    found = latent_rows(output)
    assert found["delta_mse"].tolist() == pytest.approx([d / 9 for d in DSSE], abs=1e-6)
    assert found["delta_mse_relative"].tolist() == pytest.approx([d / SSE for d in DSSE], abs=1e-6)
    assert found["active_tokens"].tolist() == [2, 2, 2, 2, 0, 0]
    assert found["novel"].tolist() == [False, False, True, True, False, True]
    sides = {"latents": 3, "lower": 1, "raise": 1, "unchanged": 0, "silent": 1, "silent_lower": 0, "silent_raise": 0}
    assert effects(output) == {"novel": sides, "reconstruction": sides}
    assert output.estimates["novel_lower_mse"].value == 0.5
    assert output.estimates["reconstruction_raise_mse"].value == 0.5
    # cosines of those that raise are 1 and 0, of those that lower 1 and 0: half of the pairs, ties counted half
    assert output.estimates["auc"].value == 0.5
    assert output.estimates["youden_theta"].value is None
    assert "no theta beats chance" in str(output.estimates["youden_theta"].reason)


def test_latents_that_do_not_fire_move_the_bias_only_and_are_counted_apart() -> None:
    """δ = (0, ½·0.4, 0): −2 δ·Σe + 3‖δ‖² with Σe = 2 in that coordinate."""
    output = run(*planted(b_dec=0.4), x=X)
    silent = latent_rows(output).loc[[4, 5], "delta_mse"]
    assert silent.tolist() == pytest.approx([(-2 * 0.2 * 2 + 3 * 0.04) / 9] * 2, abs=1e-6)
    assert {name: row["silent_lower"] for name, row in effects(output).items()} == {"novel": 1, "reconstruction": 1}
    assert effects(output)["novel"]["lower"] == 1
    assert "2 of the latents looked at fire on none" in output.notes[1]


def test_mse_where_a_latent_is_active_and_where_not_against_brute_force() -> None:
    sae, reference = tied_sae(6, 14, seed=1, bias=-0.8), tied_sae(6, 9, seed=2)
    output, x = run(sae, reference), held(6).x
    fires = sae.encode(x) > 0
    found = latent_rows(output)
    for side, one in (("sae", sae), ("reference", reference)):
        error = ((x - one.decode(one.encode(x))) ** 2).mean(1)
        for latent in range(14):
            on = fires[:, latent]
            assert found.loc[latent, f"mse_active_{side}"] == pytest.approx(float(error[on].mean()), rel=1e-5)
            assert found.loc[latent, f"mse_inactive_{side}"] == pytest.approx(float(error[~on].mean()), rel=1e-5)
    novel = found[found["novel"]]
    rises = {side: novel[f"mse_active_{side}"] - novel[f"mse_inactive_{side}"] for side in ("sae", "reference")}
    estimates, table = output.estimates, output.tables["inactive_active"].data.set_index("dictionary")
    for side, rise in rises.items():
        assert estimates[f"mse_rise_{side}"].value == pytest.approx(rise.mean())
        assert table.loc[side, "difference"] == pytest.approx(rise.mean())
    assert estimates["mse_rise_gap"].value == pytest.approx((rises["reference"] - rises["sae"]).mean())
    assert estimates["mse_rise_gap"].ci_low is not None and estimates["mse_rise_gap"].n_unit == "documents"


def test_intervals_hold_their_values_where_latents_fire_in_few_documents() -> None:
    """A resample without a rare latent says nothing of it: dropping it would shift the statistic."""
    sae, reference = tied_sae(5, 60, seed=1, bias=-1.9), tied_sae(5, 5, seed=2, bias=0.0)
    output = run(sae, reference, threshold=0.5)
    assert latent_rows(output)["active_tokens"].median() < 4
    for name in SAMPLED:
        found = output.estimates[name]
        assert found.ci_low is not None and found.ci_high is not None and found.value is not None, name
        assert found.ci_low <= found.value <= found.ci_high, name


def test_a_latent_that_is_always_on_has_no_tokens_to_compare_with() -> None:
    always = reading([1], [1.0], [50.0], [0.0] * 3)
    output = run(always, planted()[1], x=X)
    assert output.tables["inactive_active"].data["novel_latents"].tolist() == [0, 0]
    assert output.estimates["mse_rise_gap"].value is None
    assert "inactive on others" in str(output.estimates["mse_rise_gap"].reason)


# -- activation similarity


def test_single_entries_are_looked_up_as_in_the_dense_matrix() -> None:
    f = torch.relu(torch.randn(20, 7, generator=torch.Generator().manual_seed(3)) - 0.5)
    f[4] = 0
    tokens, latents = (t.flatten() for t in torch.meshgrid(torch.arange(20), torch.arange(7), indexing="ij"))
    shuffled = torch.randperm(140, generator=torch.Generator().manual_seed(4))
    found = values_at(Codes.from_dense(f), tokens[shuffled], latents[shuffled])
    assert torch.equal(found, f.flatten()[shuffled])
    assert not values_at(Codes.from_dense(torch.zeros(20, 7)), tokens, latents).any()


@pytest.mark.parametrize("transform", ["none", "norm_rescale"])
def test_activation_cosines_are_those_of_the_dense_codes(transform: str) -> None:
    sae, reference = (tied_sae(6, n, seed=n, bias=-1.0, input_transform=transform) for n in (14, 9))
    pair, activations = Pair(sae, reference), held(6)
    matches = Matches(np.array([2, 5, 13]), 14, np.zeros(3), np.array([8, 0, 8]))
    sample = PairSample.of(pair, activations.x, activations.document, chunk=17)
    found = lookup.products(sample, matches)
    scale = sae.transform(activations.x)[1].scale
    f1, f0 = (s.encode(activations.x).double() * (1 if scale is None else scale.double()) for s in (sae, reference))
    for i, (a, b) in enumerate(((2, 8), (5, 0), (13, 8))):
        in_group = (activations.document == 4).double()
        assert found.cross[4, i] == pytest.approx(float((f1[:, a] * f0[:, b] * in_group).sum()), abs=1e-6)
        expected = float(f1[:, a] @ f0[:, b] / (f1[:, a].norm() * f0[:, b].norm()))
        assert lookup.activation_cosine(*(s.sum(0) for s in found.arrays))[i] == pytest.approx(expected, abs=1e-6)


def test_a_dictionary_against_itself_fires_together_with_itself() -> None:
    sae = tied_sae(6, 14)
    output = run(sae, sae)
    assert latent_rows(output)["activation_cosine"].tolist() == pytest.approx([1.0] * 14)
    # all alike: no spread to correlate
    assert output.estimates["activation_r2"].value is None


def test_silent_latents_have_no_activation_cosine() -> None:
    assert latent_rows(run(*planted(), x=X))["activation_cosine"].isna().tolist() == [
        False,
        False,
        False,
        False,
        True,
        True,
    ]


def test_r_squared_of_sums_is_the_squared_correlation() -> None:
    x, y = np.array([0.6, 0.7, 0.8, 0.9]), np.array([0.1, 0.5, 0.2, 0.4])
    sums = [a.sum() for a in moments(x, y)]
    assert r_squared(*sums) == pytest.approx(np.corrcoef(x, y)[0, 1] ** 2)
    assert r_squared(*(a[:2].sum() for a in moments(x, y))) is None


# -- the cosine as predictor


def test_roc_of_four_latents_by_hand() -> None:
    """Raising: .9, .6; lowering: .6, .2. Pairs won: 1 + 1 + ½ + 1 of 4; J is largest with .2 called novel."""
    roc = Cuts(np.array([0.9, 0.6, 0.6, 0.2])).roc(np.array([1, 1, 0, 0], bool), np.array([0, 0, 1, 1], bool))
    assert roc is not None
    assert (roc.auc, roc.youden) == (pytest.approx(3.5 / 4), 0.2)
    assert (roc.tpr[0], roc.fpr[0], roc.tpr[-1], roc.fpr[-1]) == (1, 1, 0, 0)


@given(st.integers(0, 10_000))
def test_roc_agrees_with_an_independent_implementation(seed: int) -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(seed)
    cosine, raises = rng.integers(0, 8, 40) / 8, rng.random(40) < 0.5
    cut = Cuts(cosine).roc(raises, ~raises)
    assert cut is not None
    assert cut.auc == pytest.approx(metrics.roc_auc_score(raises, cosine))
    fpr, tpr, _ = metrics.roc_curve(raises, cosine)
    if cut.youden is None:
        assert max(tpr - fpr) == pytest.approx(0)
    else:
        above = cosine > cut.youden
        assert above[raises].mean() - above[~raises].mean() == pytest.approx(max(tpr - fpr))


# -- invariances and the limit


SAMPLED = ("novel_lower_mse", "reconstruction_raise_mse", "auc", "youden_theta", "mse_rise_gap", "activation_r2")


def both_ways() -> tuple[SAE, SAE]:
    """A pair of which some latents raise the MSE and some lower it."""
    return tied_sae(5, 16, seed=1), tied_sae(5, 5, seed=2, bias=0.0)


@settings(max_examples=12)
@given(st.integers(0, 10_000))
def test_order_of_latents_changes_no_number(seed: int) -> None:
    sae, reference = both_ways()
    order = torch.randperm(16, generator=torch.Generator().manual_seed(seed))
    moved = replace(sae, W_enc=sae.W_enc[:, order], b_enc=sae.b_enc[order], W_dec=sae.W_dec[order])
    before, after = run(sae, reference, threshold=0.6), run(moved, reference, threshold=0.6)
    for name in SAMPLED:
        assert before.estimates[name].value is not None
        assert after.estimates[name].value == pytest.approx(before.estimates[name].value, abs=1e-6), name
    assert effects(after) == effects(before)


def test_a_limited_run_reports_the_same_of_the_latents_it_names() -> None:
    sae, reference = tied_sae(5, 30, seed=1), tied_sae(5, 20, seed=2)
    whole, limited = run(sae, reference), run(sae, reference, limit=10)
    part = latent_rows(limited)
    assert len(part) == 10
    assert part.equals(latent_rows(whole).loc[part.index])
    assert sum(row["latents"] for row in effects(limited).values()) == 10
    assert "10 of 30 latents" in limited.notes[0]


def test_tables_and_figures_of_the_sources_are_there_with_titles() -> None:
    output = run(*both_ways(), threshold=0.6, drawn=True)
    assert set(output.tables) == {"latents", "effects", "inactive_active", "ratio_over_theta"}
    names = {"max_cosine", "ratio_over_theta", "delta_mse", "roc", "inactive_active", "activation_cosine"}
    assert set(output.figures) == names
    for figure in output.figures.values():
        spec = figure.chart.to_dict()
        encoding = spec.get("encoding") or spec["layer"][0]["encoding"]
        assert encoding["x"]["title"] and encoding["y"]["title"]


def test_where_nothing_fires_every_sampled_number_says_why_it_is_missing() -> None:
    silent = tied_sae(4, 12, bias=SILENT)
    output = run(silent, tied_sae(4, 8, seed=2), drawn=True)
    for name in SAMPLED:
        estimate = output.estimates[name]
        assert estimate.value is None, name
        assert any(word in str(estimate.reason) for word in ("fire", "active")), name
    assert set(output.figures) == {"max_cosine", "ratio_over_theta"}
    assert not math.isnan(output.tables["latents"].data["delta_mse"].sum())


def test_the_controls_are_those_that_break_pairing_or_geometry() -> None:
    assert novel_latents.controls == ("random", "permuted_rows", "permuted_columns")
    assert (novel_latents.limit_unit, novel_latents.needs) == ("latents", ("reference", "activations"))
