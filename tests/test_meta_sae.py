"""meta_sae: planted atoms, the score against its formula, null models, and what it writes by hand."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from fakes import FakeContext, info
from meta_sae_samples import PARAMETERS, hierarchy, own, random_sae, recipe, single, with_decoder

from saebench_meta import measure
from saebench_meta.codes import Codes
from saebench_meta.errors import SaebenchError
from saebench_meta.matching import cosines, one_to_one
from saebench_meta.sae import SAE
from saebench_meta.task import Output
from saebench_meta.training.trainable import unit_rows as normalised
from saebench_tasks.meta_sae import build, decomposition, estimates, meta_sae
from saebench_tasks.meta_sae.omp import orthogonal_matching_pursuit
from saebench_tasks.meta_sae.rows import (
    GAUSSIAN,
    OWN,
    PERMUTED,
    Rows,
    batch_reconstructed,
    null_rows,
    squares,
    unit_rows,
)

MAIN = build.Setting(OWN, 1.0, 0)


def run(sae: SAE, limit: int | None = None, **parameters: Any) -> Output:
    ctx = single([sae], **parameters)
    ctx.limit = limit
    chosen = own({**PARAMETERS, **parameters}, "held_out", "seeds", "curve", "threshold", "latents")
    output = meta_sae(sae, ctx, **chosen)
    measure.check_output(meta_sae, output)
    return output


def all_rows(x: torch.Tensor) -> Rows:
    """Rows of one SAE, none held out."""
    n = len(x)
    return Rows(x, np.zeros(n, dtype=np.int64), np.arange(n), np.zeros(n, dtype=bool))


# -- what a meta-SAE finds


def test_the_atoms_of_a_planted_hierarchy_are_found() -> None:
    """Latents are sums of 3 of 24 atoms with weights from .7 to 1.3, in 36 dimensions, and of any norm."""
    sae, atoms = hierarchy(atoms=24, d_in=36, latents=600, k=3)
    ctx = single([sae], width=32, k=3, steps=300, lr=5e-3)
    found = build.train(unit_rows([sae], 0.1, 0), ctx, MAIN, ctx.recipes[0])
    cosine = cosines(atoms, found.sae.W_dec)
    matched = cosine[one_to_one(cosine)]
    assert len(matched) == 24 and (matched >= 0.95).mean() >= 0.9
    assert found.seen.explained is not None and found.seen.explained >= 0.95
    assert found.held_out_batch.explained is not None and found.held_out_batch.explained >= 0.95
    assert found.l0 == pytest.approx((3, 3), rel=0.1)


def against_random(latents: int, d_in: int, width: int) -> tuple[float, float]:
    """Variance explained of half of the rows of random latents by matching pursuit of 4 directions each: of a meta-SAE
    of the other half, and of random directions."""
    sae, k = random_sae(latents, d_in), 4
    fixed = normalised(torch.randn(width, d_in, generator=torch.Generator().manual_seed(5)))
    ctx = single([sae], width=width, k=k, steps=200, held_out=0.5)
    rows = unit_rows([sae], 0.5, 0)
    made = build.train(rows, ctx, MAIN, ctx.recipes[0])
    seen, held_out = rows.part(False).double(), rows.part(True).double()
    mean = seen.mean(0)
    learnt, random = (
        squares(held_out, mean + orthogonal_matching_pursuit(held_out - mean, dictionary, k)).explained
        for dictionary in (made.sae.unit_decoder(), fixed)
    )
    assert learnt is not None and random is not None
    return learnt, random


def test_on_rows_without_structure_its_dictionary_is_hardly_better_than_a_random_one() -> None:
    """Within .02 on held-out rows when both are coded the same way. With an encoder each they may differ by more,
    since a linear encoder is worth more to a dictionary learnt along with it."""
    learnt, random = against_random(latents=500, d_in=48, width=144)
    assert abs(learnt - random) <= 0.02 and random > 0.3


def test_without_structure_a_small_dictionary_learnt_of_many_rows_is_better_for_being_spread_out() -> None:
    """No more directions than dimensions: learnt ones are nearly orthogonal, random ones are not."""
    learnt, random = against_random(latents=2000, d_in=16, width=16)
    assert learnt > random + 0.02


# -- the score


def by_formula(x: np.ndarray, sae: SAE, k: int | None) -> float:
    """Variance explained, written out: by the threshold, or with the k · rows largest activations."""
    W_enc, b_enc, W_dec, b_dec = (t.numpy().astype(float) for t in (sae.W_enc, sae.b_enc, sae.W_dec, sae.b_dec))
    assert sae.threshold is not None
    pre = np.maximum(x @ W_enc + b_enc, 0)
    least = sae.threshold.numpy() if k is None else np.sort(pre.ravel())[-k * len(x)]
    f = np.where(pre > least if k is None else pre >= least, pre, 0)
    rebuilt = f @ W_dec + b_dec
    return 1 - ((x - rebuilt) ** 2).sum() / ((x - x.mean(0)) ** 2).sum()


def test_the_score_is_the_formula() -> None:
    sae = random_sae(120, 8)
    sae = replace(sae, W_dec=sae.W_dec * torch.linspace(0.1, 9, 120)[:, None] + 0.3)
    output = run(sae, held_out=0.2, width=20, k=3, steps=40)
    made, k = output.saes["meta_sae"], 3
    rows = unit_rows([sae], 0.2, 0)
    W = sae.W_dec.numpy().astype(float)
    unit = W / np.linalg.norm(W, axis=1, keepdims=True)
    seen, held_out = unit[~rows.held_out], unit[rows.held_out]
    assert len(held_out) == 24
    expected = {
        "variance_explained": by_formula(seen, made, None),
        "variance_explained_batch": by_formula(seen, made, k),
        "held_out": by_formula(held_out, made, k),
        "held_out_threshold": by_formula(held_out, made, None),
    }
    assert len({round(value, 4) for value in expected.values()}) == 4
    for name, value in expected.items():
        assert output.estimates[name].value == pytest.approx(value, abs=1e-6), name
    counts = (unit @ made.W_enc.numpy().astype(float) + made.b_enc.numpy() > made.threshold.numpy()).sum(1)  # type: ignore[union-attr]
    assert output.estimates["meta_latents_per_latent"].value == pytest.approx(counts.mean())
    for null in ("gaussian", "permuted"):
        above, own_score = output.estimates[f"above_{null}"].value, output.estimates["held_out"].value
        other = output.estimates[f"held_out_{null}"].value
        assert above is not None and own_score is not None and above == pytest.approx(own_score - other)


def test_batches_are_scored_as_batches() -> None:
    """The k · B largest of each batch of B: 2 rows with strong and 2 with weak activations."""
    meta = with_decoder(torch.eye(3))
    x = torch.tensor([[5.0, 4, 3], [6, 5, 4], [0.3, 0.2, 0.1], [0.1, 0.05, -1]])
    together, apart = (batch_reconstructed(meta, x, 1, size) for size in (4, 2))
    assert together.tolist() == [[5, 4, 0], [6, 5, 0], [0, 0, 0], [0, 0, 0]]
    expected = torch.tensor([[5.0, 0, 0], [6, 0, 0], [0.3, 0.2, 0], [0, 0, 0]])
    assert apart.tolist() != together.tolist()
    torch.testing.assert_close(apart[2:], expected[2:])


def test_intervals_are_of_held_out_rows_and_rows_that_are_all_alike_have_no_score() -> None:
    ctx, x = FakeContext(), torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.6, 0.8]])
    some = estimates.of_held_out(squares(x, 0.5 * x), ctx)  # type: ignore[arg-type]
    assert some.value == pytest.approx(1 - 0.75 / float((x - x.mean(0)).square().sum()))
    assert some.ci_low is not None and some.n == 3 and some.n_unit == "latents"
    alike = x[:1].expand(3, 2)
    assert estimates.of_seen(squares(alike, alike), ctx).value is None  # type: ignore[arg-type]
    nothing = squares(x[:0], x[:0])
    for estimate in (estimates.of_held_out(nothing, ctx), estimates.difference(nothing, nothing, ctx)):  # type: ignore[arg-type]
        assert estimate.value is None and estimate.reason == "no rows were held out"


# -- rows


def test_rows_have_norm_one_and_the_same_ones_are_held_out_every_time() -> None:
    a, b = random_sae(30, 5, 1), random_sae(10, 5, 2)
    b.W_dec[3] = 0
    rows = unit_rows([a, b], 0.25, seed=4)
    torch.testing.assert_close(rows.x.norm(dim=1), torch.ones(39))
    assert rows.held_out.sum() == 10 and len(rows.part(True)) == 10 and len(rows.part(False)) == 29
    assert rows.member.tolist() == [0] * 30 + [1] * 9
    assert rows.latent.tolist() == [*range(30), 0, 1, 2, 4, 5, 6, 7, 8, 9]
    torch.testing.assert_close(rows.x[33] * b.W_dec[4].norm(), b.W_dec[4])
    np.testing.assert_array_equal(rows.held_out, unit_rows([a, b], 0.25, seed=4).held_out)
    assert (rows.held_out != unit_rows([a, b], 0.25, seed=5).held_out).any()


def test_gaussian_rows_have_the_mean_and_covariance_of_the_rows() -> None:
    """And nothing else: the signs below are lost."""
    g = torch.Generator().manual_seed(0)
    signs = torch.randint(0, 2, (40_000, 2), generator=g) * 2.0 - 1
    x = signs @ torch.tensor([[1.0, 0.5, 0.0], [0.0, 1.0, -1.0]]) + torch.tensor([3.0, 0.0, -1.0])
    made = null_rows(x, GAUSSIAN, np.random.default_rng(0))
    torch.testing.assert_close(made.mean(0), x.mean(0), rtol=0, atol=0.03)
    torch.testing.assert_close(made.T.cov(), x.T.cov(), rtol=0, atol=0.04)
    assert len(made.unique(dim=0)) == len(x) and made.dtype == x.dtype
    fourth = ((made - made.mean(0)) ** 4).mean(0) / ((made - made.mean(0)) ** 2).mean(0) ** 2
    torch.testing.assert_close(fourth, torch.full((3,), 3.0), rtol=0, atol=0.15)


def test_permuted_rows_have_the_values_of_every_coordinate_and_no_covariance() -> None:
    x = torch.randn(4000, 1, generator=torch.Generator().manual_seed(0)).expand(-1, 3) * torch.tensor([1.0, 2.0, 3.0])
    made = null_rows(x, PERMUTED, np.random.default_rng(0))
    assert torch.equal(made.sort(dim=0).values, x.sort(dim=0).values)
    assert (made.T.corrcoef() - torch.eye(3)).abs().max() < 0.06


def test_nulls_are_trained_alike_on_as_many_rows() -> None:
    sae = random_sae(50, 6)
    ctx = single([sae], steps=2, seeds=2, curve=(0.5,))
    made = build.train_all(unit_rows([sae], 0.1, 0), ctx, {"seeds": 2, "curve": (0.5,)})
    kinds = [(t.setting.kind, t.sae.d_sae, t.setting.seed) for t in made]
    once = [(kind, 12, seed) for seed in (0, 1) for kind in (OWN, GAUSSIAN, PERMUTED)]
    assert kinds == [*once, (OWN, 6, 0), (GAUSSIAN, 6, 0)]
    assert {len(rows) for rows in ctx.trained} == {45} and len({t.recipe.tokens for t in made}) == 1
    assert torch.equal(ctx.trained[0], ctx.trained[3]) and torch.equal(ctx.trained[1], ctx.trained[7])
    assert not torch.equal(ctx.trained[0], ctx.trained[1]) and not torch.equal(ctx.trained[1], ctx.trained[2])
    assert not torch.equal(made[0].sae.W_dec, made[3].sae.W_dec)


# -- what it is made of, by hand


def by_hand() -> tuple[Rows, SAE]:
    """Four latents and three meta-latents: the axes of three dimensions, active above .5."""
    x = torch.tensor([[0.9, 0.6, 0.0], [0.0, 0.0, 1.0], [0.6, 0.9, 0.0], [0.4, 0.3, -1.0]])
    rows = replace(all_rows(x), latent=np.array([0, 1, 3, 4]))
    about = info(3, 3, activation="jumprelu")
    return rows, SAE(torch.eye(3), torch.zeros(3), torch.eye(3), torch.zeros(3), about, torch.full((3,), 0.5))


def test_a_decomposition_by_hand() -> None:
    rows, meta = by_hand()
    pairs = decomposition.decomposition(rows, meta.encode_sparse(rows.x))
    assert pairs[["latent", "meta_latent"]].to_numpy().tolist() == [[0, 0], [0, 1], [1, 2], [3, 1], [3, 0]]
    assert pairs["activation"].to_list() == pytest.approx([0.9, 0.6, 1.0, 0.9, 0.6])
    top = decomposition.top_latents(pairs, 4)
    assert top.to_numpy().tolist() == [[0, 2, "0 3"], [1, 2, "3 0"], [2, 1, "1"], [3, 0, ""]]


def test_at_most_twenty_latents_are_named_for_a_meta_latent() -> None:
    n = 25
    codes = Codes(torch.arange(n + 1), torch.zeros(n, dtype=torch.int32), torch.arange(n) + 1.0, 1)
    pairs = decomposition.decomposition(all_rows(torch.zeros(n, 2)), codes)
    ((_, latents, top),) = decomposition.top_latents(pairs, 1).to_numpy().tolist()
    assert (latents, top) == (25, " ".join(str(i) for i in range(24, 4, -1)))


def test_cosines_within_leave_out_the_row_itself() -> None:
    W = torch.tensor([[2.0, 0.0], [3.0, 4.0], [0.0, 1.0]])
    assert decomposition.within(W).tolist() == pytest.approx([0.6, 0.8, 0.8])
    assert len(decomposition.within(W[:1])) == 0
    assert decomposition.largest(W, torch.tensor([[0.0, -2.0], [1.0, 0.0]])).tolist() == pytest.approx([1, 0.6, 0])


def test_a_latent_beside_the_nearest_of_both_saes() -> None:
    rows, meta = by_hand()
    sae = with_decoder(torch.tensor([[0.9, 0.6, 0.0], [0.0, 0.0, 1.0], [0.0, 0.0, 0.0], [0.6, 0.9, 0.0]]))
    other = with_decoder(torch.tensor([[0.0, 5.0, 0.0], [2.0, 0.0, 0.0]]))
    pairs = decomposition.decomposition(rows, meta.encode_sparse(rows.x))
    table, cells = decomposition.beside([0], pairs, meta, sae, {"sae": sae, "reference": other})
    assert table["meta_latent"].dropna().to_list() == [0, 1] and table["rank"].to_list() == [1, 2, 3]
    norm = float(np.hypot(0.9, 0.6))
    assert table["meta_cosine"].dropna().to_list() == pytest.approx([0.9 / norm, 0.6 / norm])
    assert table["sae_latent"].to_list()[0] == 3 and 0 not in table["sae_latent"].to_list()
    assert table["sae_cosine"][0] == pytest.approx(1.08 / norm**2)
    assert table["reference_latent"].dropna().to_list() == [1, 0]
    assert table["reference_cosine"].dropna().to_list() == pytest.approx([0.9 / norm, 0.6 / norm])
    of_reference = cells[cells["nearest"].str.startswith("reference")]
    assert of_reference["cosine"].to_list() == pytest.approx([1, 0, 0, 1])
    assert of_reference["nearest"].to_list() == ["reference 1", "reference 0"] * 2


def test_latents_to_look_at_are_those_named_or_a_few_drawn() -> None:
    rows = replace(all_rows(torch.zeros(4, 2)), latent=np.array([0, 2, 3, 7]))
    ctx: Any = FakeContext()
    assert decomposition.chosen_latents((7, "2"), rows, ctx) == [7, 2]
    drawn = decomposition.chosen_latents((), rows, ctx)
    assert len(drawn) == 3 and set(drawn) <= {0, 2, 3, 7} and drawn == decomposition.chosen_latents((), rows, ctx)
    assert len(decomposition.chosen_latents((), rows, FakeContext(limit=1))) == 1  # type: ignore[arg-type]
    for wrong in (1, 8, "x", -1, 2.5):
        with pytest.raises(SaebenchError, match="is no latent with a direction: give numbers up to 7"):
            decomposition.chosen_latents((wrong,), rows, ctx)


def test_all_that_it_writes() -> None:
    sae = random_sae(60, 6)
    output = run(sae, width=10, k=2, curve=(0.5, 2.0), seeds=2, latents=(5, 59), threshold=0.6)
    trainings = output.tables["trainings"].data
    assert list(trainings["meta_latents"]) == [10] * 6 + [5, 5, 20, 20]
    assert trainings["variance_explained"][0] == output.estimates["variance_explained"].value
    assert trainings["held_out"][1] == output.estimates["held_out_gaussian"].value
    assert trainings["held_out"][2] == output.estimates["held_out_permuted"].value
    assert list(output.tables["decomposition"].data.columns) == ["latent", "meta_latent", "activation"]
    assert list(output.tables["meta_latents"].data.columns) == ["meta_latent", "latents", "top"]
    pairs = output.tables["decomposition"].data
    assert output.tables["meta_latents"].data["latents"].sum() == len(pairs)
    assert len(pairs) / 60 == pytest.approx(output.estimates["meta_latents_per_latent"].value)
    assert list(output.tables["examples"].data["latent"].unique()) == [5, 59]
    drawn = {f"latent_{i}" for i in (5, 59) if i in set(pairs["latent"])}
    assert drawn and set(output.figures) == {"widths", "max_cosines", "per_latent", *drawn}
    live = output.saes["meta_sae"].W_dec[sorted(pairs["meta_latent"].unique())]
    cosine = live @ normalised(sae.W_dec).T
    assert output.estimates["found_in_sae"].value == pytest.approx(float((cosine.amax(1) > 0.6).float().mean()))
    cosine = normalised(live) @ normalised(live).T - 2 * torch.eye(len(live))
    assert output.estimates["within"].value == pytest.approx(float(cosine.amax(1).mean()), abs=1e-6)
    assert output.estimates["dead_meta_latents"].value == pytest.approx(1 - len(live) / 10)
    said = " ".join(output.notes)
    assert "10 meta-latents of 60 latents (3 · d_in = 18;" in said and "54 rows trained on, 6 held out" in said
    own_held = trainings[(trainings["rows"] == OWN) & (trainings["meta_latents"] == 10)]["held_out"]
    spread = f"decoder rows {own_held.mean():.4f} ({own_held.min():.4f} to {own_held.max():.4f})"
    assert f"held_out over 2 training seeds, mean and range: {spread}; Gaussian rows" in said


def test_with_nothing_held_out_there_is_nothing_to_compare() -> None:
    output = run(random_sae(40, 6), held_out=0, curve=(2.0,), seeds=2)
    assert output.estimates["variance_explained"].n == 40
    for name in ("held_out", "held_out_threshold", "held_out_gaussian", "above_gaussian", "above_permuted"):
        assert output.estimates[name].value is None
    assert output.tables["trainings"].data["held_out"].isna().all()
    assert "widths" in output.figures and not any("training seeds" in note for note in output.notes)


def test_rows_of_zeros_are_left_out_and_said() -> None:
    sae = random_sae(40, 6)
    sae.W_dec[:3] = 0
    output = run(sae)
    assert not set(output.tables["decomposition"].data["latent"]) & {0, 1, 2}
    assert "3 without a direction are left out." in output.notes[0]


# -- what is trained


@pytest.mark.parametrize(
    ("d_in", "rows", "k", "width"), [(768, 49_152, 4, 2304), (64, 1024, 4, 192), (64, 256, 4, 64), (64, 12, 4, 5)]
)
def test_the_default_width(d_in: int, rows: int, k: int, width: int) -> None:
    assert build.default_width(d_in, rows, k) == width


def test_recipes_are_the_papers_where_it_is_asked_for() -> None:
    asked = {**PARAMETERS, "steps": 24_000, "lr": 1e-4, "seeds": 2, "curve": (0.5,), "held_out": 0.0}
    made = build.trains((info(768, 49_152),), asked, recipe)
    first = made[0]
    assert (first.architecture, first.d_sae, first.hyperparameters["k"]) == ("batchtopk", 2304, 4)
    assert (first.batch_size, first.tokens, first.lr, first.seed) == (4096, 24_000 * 4096, 1e-4, 0)
    assert round(first.tokens / 49_152) == 2000
    assert [r.d_sae for r in made] == [2304] * 6 + [1152] * 2 and [r.seed for r in made] == [0] * 3 + [1] * 3 + [0] * 2


def test_a_batch_is_all_training_rows_where_there_are_few() -> None:
    (first, *_) = build.trains((info(64, 256),), {**PARAMETERS, "steps": 7}, recipe)
    assert first.batch_size == 230 and first.steps == 7


@pytest.mark.parametrize(
    ("parameters", "said"),
    [
        ({"held_out": 0.6}, "held_out is 0.6 for a meta-SAE"),
        ({"held_out": -0.1}, "held_out is -0.1 for a meta-SAE"),
        ({"width": -1}, "width is -1 for a meta-SAE"),
        ({"seeds": 0}, "seeds must be at least 1"),
        ({"curve": (0.0,)}, "multiples of the width in curve positive"),
        ({"k": 0}, "k"),
    ],
)
def test_parameters_out_of_range_are_refused_before_the_run(parameters: dict[str, Any], said: str) -> None:
    with pytest.raises(SaebenchError, match=said):
        build.trains((info(8, 40),), {**PARAMETERS, **parameters}, recipe)


def test_a_threshold_that_is_no_cosine_is_refused() -> None:
    with pytest.raises(SaebenchError, match=r"meta_sae\.threshold is 1\.5"):
        run(random_sae(40, 6), threshold=1.5)


def test_an_sae_with_no_two_rows_to_train_on_is_refused() -> None:
    with pytest.raises(SaebenchError, match="cannot be trained on 1 decoder rows: give a wider SAE"):
        unit_rows([random_sae(2, 4)], 0.5, 0)


def test_the_metrics_have_no_better_direction() -> None:
    assert {m.better for m in meta_sae.metrics} == {"neither"} and all(m.why for m in meta_sae.metrics)
    assert isinstance(run(random_sae(30, 5)).tables["trainings"].data, pd.DataFrame)
