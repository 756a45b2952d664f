"""Broken latents: the task on activations made by hand and on the built-in world, toy recipes, AUC of the dip."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from fakes import FakeContext, MemoryActivations, identity_sae, info, tied_sae, toy_context

import saebench_meta
from saebench_meta import measure
from saebench_meta.corpus import Sample, Sampling
from saebench_meta.errors import SaebenchError
from saebench_meta.plugins import registry
from saebench_meta.record import Record
from saebench_meta.sae import SAEInfo
from saebench_meta.task import Output
from saebench_meta.training.recipe import Recipe, make_recipe
from saebench_meta.worlds import open_world
from saebench_tasks.broken_latents import auc, broken_latents, peaks, toys
from saebench_tasks.broken_latents.kinds import score
from saebench_tasks.broken_latents.scenarios import SCENARIOS
from saebench_tasks.broken_latents.table import Job

N, WORDS = 400, 5
"""Tokens of the sample, and the words they are drawn from."""


class Words:
    """A tokenizer of five words."""

    def decode(self, ids: list[int]) -> str:
        return " ".join(["bos", "ant", "bee", "cow", "dog", "elk"][i] for i in ids)


def by_word(levels: list[list[float]], seed: int = 0) -> FakeContext:
    """Four documents of 100 tokens; on word w, latent j of `identity_sae` is active at about `levels[j][w - 1]`."""
    g = torch.Generator().manual_seed(seed)
    rows, context = 4, 1 + N // 4
    tokens = torch.randint(1, WORDS + 1, (rows, context), generator=g)
    tokens[:, 0] = 0
    document = torch.arange(rows)[:, None].expand(rows, context).int()
    evaluated = tokens != 0
    sample = Sample(tokens, evaluated.sum(1) + 1, document, evaluated, ("a", "b", "c", "d"), Sampling(context=context))
    mean = torch.tensor(levels).T[tokens[evaluated] - 1]
    x = mean * (1 + 0.03 * torch.randn(mean.shape, generator=g))
    held = MemoryActivations(x, document[evaluated].long(), rows)
    return FakeContext(held, sample, SimpleNamespace(tokenizer=Words()))


def run(sae: Any, ctx: FakeContext, **parameters: Any) -> Output:
    output = broken_latents(sae, ctx, **{"architecture": "none", **parameters})
    measure.check_output(broken_latents, output)
    return output


def values(output: Output) -> dict[str, float | None]:
    return {name: estimate.value for name, estimate in output.estimates.items()}


LEVELS = [
    [1, 5, 5, 0, 0],  # weakly on ants, strongly on bees and cows
    [4, 4, 4, 0, 0],
    [0, 0, 0, 0, 2],
    [0, 0, 0, 0, 0],
]


def test_metrics_of_four_latents_of_which_one_has_two_peaks() -> None:
    """The other four latents of the SAE are active where these are negative: nowhere."""
    found = values(run(identity_sae(4), by_word(LEVELS)))
    assert found["multimodality"] == pytest.approx(1 / 3)
    assert (found["tested"], found["untested"]) == (3, 5)
    assert found["mean_peaks"] == pytest.approx(4 / 3)
    assert found["median_valley"] == pytest.approx(1, abs=0.01)
    assert 0 < found["median_dip"] < 0.05  # type: ignore[operator]
    assert all(found[m.name] is None for m in toys.METRICS)


def test_the_table_names_the_latent_and_where_its_peaks_are() -> None:
    output = run(identity_sae(4), by_word(LEVELS))
    table = output.tables["latents"].data
    assert table["latent"].tolist()[0] == 0 and sorted(table["latent"]) == [0, 1, 2]
    low, high = map(float, table["peaks"][0].split())
    assert (low, high) == pytest.approx((1, 5), rel=0.05)
    assert " " not in table["peaks"][1]
    active = table.set_index("latent")["active"]
    assert active[0] == active[1] == table["looked_at"][0]


def test_examples_quote_tokens_of_each_peak_between_marks() -> None:
    ctx = by_word(LEVELS)
    examples = run(identity_sae(4), ctx).tables["examples"].data
    assert set(examples["latent"]) == {0}
    assert [t.split("«")[1].split("»")[0] for t in examples["text"][examples["peak"] == "low"]] == ["ant"] * 3
    assert {t.split("«")[1].split("»")[0] for t in examples["text"][examples["peak"] == "high"]} <= {"bee", "cow"}
    for quoted, document in zip(examples["text"], examples["document"], strict=True):
        words = quoted.replace("«", " ").replace("»", " ").split()
        row = ctx.texts.tokens["abcd".index(document)].tolist()
        ids = [["bos", "ant", "bee", "cow", "dog", "elk"].index(w) for w in words]
        assert any(row[i : i + len(ids)] == ids for i in range(len(row)))
        assert len(words) <= 12 + 1 + 4


def test_no_text_is_kept_where_none_is_asked_for() -> None:
    output = run(identity_sae(4), by_word(LEVELS), examples=0)
    assert set(output.tables) == {"latents"} and set(output.figures) == {"p_values"}


def test_without_a_tokenizer_token_numbers_are_quoted() -> None:
    ctx = by_word(LEVELS)
    ctx.model = SimpleNamespace(tokenizer=None)
    text = run(identity_sae(4), ctx).tables["examples"].data["text"][0]
    assert "«1»" in text


def test_figures_are_counted_beforehand_and_have_titles() -> None:
    figures = run(identity_sae(4), by_word(LEVELS)).figures
    assert set(figures) == {"p_values", "activations"}
    p = figures["p_values"].chart.to_dict()
    (rows,) = p["datasets"].values()
    assert sum(row["count"] for row in rows) == 3
    spec = figures["activations"].chart.to_dict()
    (rows,) = spec["datasets"].values()
    assert {row["group"] for row in rows} == {"latent 0"} and len(rows) <= 50
    assert spec["encoding"]["x"]["title"] == "activation"


def test_order_and_scale_of_latents_change_no_metric() -> None:
    ctx = toy_context([60, 90, 80, 70])
    sae = tied_sae(6, 24, bias=-0.2)
    order, scale = torch.randperm(24), 2.0 ** torch.randint(-3, 4, (24,))
    changed = replace(
        sae,
        W_enc=(sae.W_enc * scale)[:, order],
        b_enc=(sae.b_enc * scale)[order],
        W_dec=(sae.W_dec / scale[:, None])[order],
    )
    one, other = (values(run(which, ctx, least=20, examples=0)) for which in (sae, changed))
    assert one["tested"] is not None and one["tested"] > 5
    assert {k: pytest.approx(v, abs=1e-6) if v is not None else None for k, v in one.items()} == other


def test_an_sae_that_is_hardly_active_has_no_share_and_says_why() -> None:
    output = run(tied_sae(6, 5, bias=-100.0), toy_context([9, 5]))
    found = output.estimates
    assert found["multimodality"].value is None and "often enough" in str(found["multimodality"].reason)
    assert (found["tested"].value, found["untested"].value) == (0, 5)
    assert len(output.tables["latents"].data) == 0
    assert "5 were active on none" in output.notes[0]


@pytest.mark.parametrize(
    "parameters", [{"level": 0.0}, {"level": 1.0}, {"most": 20}, {"least": 3}, {"examples": -1}, {"toy_seeds": 0}]
)
def test_parameters_out_of_range_are_refused(parameters: dict[str, Any]) -> None:
    with pytest.raises(SaebenchError, match=next(iter(parameters))):
        run(identity_sae(4), by_word(LEVELS), **parameters)


def test_metrics_say_why_no_order_of_controls_is_expected() -> None:
    assert all(m.why and m.help and m.expects is None for m in broken_latents.metrics)
    assert broken_latents.controls == ("random",)
    assert {m.name for m in broken_latents.metrics if m.better != "neither"} == {
        m.name for m in toys.METRICS if m.name != "toy_dead"
    }


# -- toy worlds


DEFAULTS = {p.name: p.default for p in broken_latents.parameters}


def recipes(subject: SAEInfo, **parameters: Any) -> list[Recipe]:
    def recipe(name: str, **settings: Any) -> Recipe:
        return make_recipe(registry().architectures[name], name, **settings)

    return toys.recipes((subject,), {**DEFAULTS, **parameters}, recipe)


def test_every_architecture_that_can_be_trained_has_a_recipe_for_every_toy_world() -> None:
    known = registry().architectures
    starting = {name for name, made in known.items() if made.starts}  # from an SAE, which no world has to give
    assert set(toys.SETTINGS) == set(known) - starting
    for name in toys.SETTINGS:
        made = recipes(info(4, 8), architecture=name, worlds=tuple(toys.TOYS), toy_seeds=2)
        assert len(made) == 2 * len(toys.TOYS)
        assert {r.architecture for r in made} == {name}
        assert [r.d_sae for r in made[::2]] == [toy.d_sae for toy in toys.TOYS.values()]
        assert [r.seed for r in made[:2]] == [0, 1]


def test_toy_worlds_are_as_wide_as_their_settings_say() -> None:
    for ref, toy in toys.TOYS.items():
        assert open_world(registry(), ref).directions.shape[1] == toy.d_in
    assert set(DEFAULTS["worlds"]) <= set(toys.TOYS)


@pytest.mark.parametrize(
    ("architecture", "asked", "trained"),
    [
        ("batchtopk", "", "batchtopk"),
        ("standard", "", "relu"),
        ("matryoshka_batchtopk", "", "matryoshka"),
        ("relu", "tied", "tied"),
        ("relu", "none", None),
        ("transcoder", "", None),
        ("random", "", None),
        ("random", "tied", None),
        ("oracle", "tied", None),
    ],
)
def test_what_is_put_through_toy_worlds(architecture: str, asked: str, trained: str | None) -> None:
    subject = info(4, 8, architecture=architecture)
    assert toys.architecture_of(subject, asked) == trained
    assert {r.architecture for r in recipes(subject, architecture=asked)} == ({trained} if trained else set())


@pytest.mark.parametrize(
    ("parameters", "said"),
    [({"architecture": "reluu"}, "did you mean 'relu'"), ({"worlds": ("toy:absorption-5",)}, "toy:absorption-4")],
)
def test_names_without_settings_are_refused(parameters: dict[str, Any], said: str) -> None:
    with pytest.raises(SaebenchError, match=said):
        recipes(info(4, 8, architecture="relu"), **parameters)


# -- whole runs


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trainings of twenty steps."""
    monkeypatch.setattr(toys, "TOYS", {ref: replace(toy, steps=20) for ref, toy in toys.TOYS.items()})


def record_of(tmp_path: Path, **settings: Any) -> tuple[Record, Path]:
    made = saebench_meta.run(
        "atlas:batchtopk-128",
        tasks="broken_latents",
        out=tmp_path / "out",
        cache_dir=tmp_path / "cache",
        tokens=4096,
        **settings,
    )
    assert not made.failed and not made.skipped
    (record,) = made.records
    (folder,) = (tmp_path / "out").glob("*/broken_latents@1/*")
    return record, folder


def test_on_the_built_in_world_the_whole_task_runs(short: None, tmp_path: Path) -> None:
    record, folder = record_of(tmp_path)
    metrics = record.metrics
    assert metrics["tested"].value + metrics["untested"].value == 128  # type: ignore[operator]
    assert metrics["multimodality"].value > metrics["multimodality"].controls["random"].value  # type: ignore[operator]
    assert metrics["toy_exact"].controls["random"].reason == "a control has no recipe"
    assert [t.recipe["architecture"] for t in record.trained] == ["batchtopk", "batchtopk"]
    toy = pd.read_csv(folder / "tables" / "toys.csv")
    assert toy["world"].tolist() == list(DEFAULTS["worlds"])
    kinds = toy[["dead", "duplicate", "absorbed", "exact", "inexact", "absorbing", "combination", "mixed"]]
    assert kinds.sum(axis=1).tolist() == [4, 5]
    assert metrics["toy_exact"].value == pytest.approx(toy["exact"].sum() / 9)
    assert metrics["toy_dead"].value == pytest.approx(toy["dead"].sum() / 9)
    pairs = toy["matched_f1"] * [4, 5]
    assert metrics["toy_matched_f1"].value == pytest.approx(pairs.sum() / 9)
    quoted = pd.read_csv(folder / "tables" / "examples.csv")
    assert quoted["text"].str.contains("«").all()
    assert not any(text in (folder / "record.json").read_text() for text in quoted["text"])


def test_the_toy_worlds_are_part_of_the_plan_and_can_be_left_out(tmp_path: Path) -> None:
    from saebench_meta.plan import describe, make_plan
    from saebench_meta.settings import Settings

    def trains(**parameters: Any) -> list[str]:
        settings = Settings(
            saes=("atlas:batchtopk-128",),
            tasks=("broken_latents",),
            out=tmp_path,
            parameters={"broken_latents": parameters},
        )
        (unit,) = make_plan(registry(), settings).units
        json.dumps(told := describe(unit, settings))
        return [t["label"] for t in told["trains"]]

    assert trains() == ["batchtopk-4-k1-s0", "batchtopk-5-k1-s0"]
    assert trains(worlds="toy:independent-4", toy_seeds=2) == ["batchtopk-8-k1-s0", "batchtopk-8-k1-s1d1"]
    assert trains(architecture="none") == []
    assert trains(architecture="tied")[0].startswith("tied-4-l1")


# -- latents whose kind is known


@pytest.fixture(scope="module")
def small_parent(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    """The tied SAE of the post with feature 12 on whenever 5 or 7 is: world and SAE."""
    name = "small-parent-tied"
    job = Job(name, SCENARIOS[name].values[1], 0)
    return auc.trained(job, 0.0, tmp_path_factory.mktemp("saes"))


def test_the_tied_sae_of_the_post_has_several_peaks_where_it_mixes_features(small_parent: tuple[Any, Any]) -> None:
    world, sae = small_parent
    kinds = score(sae, world).kinds
    x = world.sample(4096, 5)[0]
    made = peaks.collect([sae.encode_sparse(x)], 5, 4096, 1000, np.random.default_rng(0))
    found = peaks.find(made, 50, 0.05, np.random.default_rng(0))
    assert found.latent.tolist() == [0, 1, 2, 3, 4]
    assert kinds.count("exact") == 3
    assert found.several.tolist() == [kind != "exact" for kind in kinds]
    assert all((len(at) > 1) == several for at, several in zip(found.peaks, found.several, strict=True))


def test_one_sae_gives_a_row_for_every_latent_and_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = "small-parent-tied"
    short = {**SCENARIOS[name].settings, "steps": 20}
    monkeypatch.setitem(SCENARIOS, name, replace(SCENARIOS[name], settings=short))  # type: ignore[arg-type]
    rows = pd.DataFrame(auc.latents(Job(name, 0.1, 0), 0.3, tmp_path))
    assert len(rows) == 5 and set(auc.WAYS) <= set(rows.columns)
    assert rows[list(auc.WAYS)].to_numpy().max() <= 0.25
    assert set(rows["kind"]) <= {"dead", "mixed", "exact", "inexact", "combination", "duplicate", "absorbed"}
    again = pd.DataFrame(auc.latents(Job(name, 0.1, 0), 0.3, tmp_path))
    pd.testing.assert_frame_equal(rows, again)


def test_the_auc_is_the_share_of_pairs_in_the_right_order() -> None:
    assert auc.auc(np.array([3.0, 5.0]), np.array([1.0, 3.0, 4.0])) == pytest.approx((1.5 + 3) / 6)
    assert np.isnan(auc.auc(np.zeros(0), np.ones(3)))


def test_the_aucs_table_has_intervals_and_leaves_out_small_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(auc, "RESAMPLES", 40)
    rng, n = np.random.default_rng(0), 200
    kinds = rng.choice(["mixed", "exact", "dead"], n)
    rows = pd.DataFrame({way: (kinds == "mixed") * 0.05 + 0.1 * rng.random(n) for way in auc.WAYS})
    rows = rows.assign(kind=kinds, p=rng.random(n), scenario="s", architecture="tied", world="w", spread=0.0)
    rows = rows.assign(seed=np.arange(n) // 10)
    (first, *_) = auc.by_way(rows).to_dict("records")
    assert first["low"] < first["auc"] < first["high"]
    assert first["auc"] == pytest.approx(1 - 0.5**2 / 2, abs=0.05)
    groups = auc.by_group(rows)
    assert groups["by"].tolist() == ["all", "architecture", "world", "spread", "kind"]
    assert groups["group"].tolist() == ["all", "tied", "w", "0.0", "mixed"]
    assert set(groups["n_sound"]) == {(kinds == "exact").sum()}
    assert set(groups["n_broken"]) == {(kinds == "mixed").sum()}
    assert groups["found_broken"][0] == pytest.approx((rows.p[kinds == "mixed"] <= 0.05).mean())
