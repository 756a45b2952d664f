"""The table of scenarios: trained end to end, kept runs not made again, verdicts, pictures."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from saebench_meta.errors import BadFileError, SaebenchError
from saebench_plugins.toys.named import WORLDS
from saebench_tasks.broken_latents import figures, table
from saebench_tasks.broken_latents.kinds import KINDS, Scores
from saebench_tasks.broken_latents.scenarios import POST, SCENARIOS
from saebench_tasks.broken_latents.table import RUNS, Job, identity, jobs_for, kept, recipe_of, verdict

COMMAND = ("--scenarios", "absorption-*", "--seeds", "1", "--l1", "0.01", "--no-figures")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two scenarios of one seed, through the command."""
    out = tmp_path_factory.mktemp("table")
    table.main([*COMMAND, "--out", str(out)])
    return out


@pytest.fixture
def out(made: Path, tmp_path: Path) -> Path:
    """A copy of its runs."""
    (tmp_path / RUNS).write_bytes((made / RUNS).read_bytes())
    return tmp_path


@pytest.fixture
def asked(made: Path, monkeypatch: pytest.MonkeyPatch) -> list[Job]:
    """Jobs that are run anew; instead of being trained they get the scores of the runs above."""
    jobs: list[Job] = []
    known = {run["scenario"]: run for run in map(json.loads, lines(made))}

    def run(job: Job) -> dict[str, Any]:
        jobs.append(job)
        return {**known[job.scenario], "id": identity(job)}

    monkeypatch.setattr(table, "run", run)
    return jobs


def lines(out: Path) -> list[str]:
    return (out / RUNS).read_text().splitlines()


def scores(out: Path) -> dict[str, Scores]:
    return {run["scenario"]: Scores.from_json(run["scores"]) for run in map(json.loads, lines(out))}


def test_an_untied_sae_absorbs_a_parent_into_its_child(made: Path) -> None:
    untied = scores(made)["absorption-untied"]
    assert sorted(untied.kinds) == ["absorbed", "absorbing", "exact", "exact"]
    assert all(SCENARIOS["absorption-untied"].shows(untied).values())
    assert untied.fvu < 1e-3


def test_a_tied_sae_has_no_absorbed_latent(made: Path) -> None:
    tied = scores(made)["absorption-tied"]
    assert tied.count("absorbed", "absorbing") == 0
    assert tied.features_of("exact") >= {2, 3}
    np.testing.assert_allclose(tied.encoder, tied.decoder, atol=1e-5)


def test_the_tables_say_what_the_runs_say(made: Path) -> None:
    runs, summary = pd.read_csv(made / "runs.csv"), pd.read_csv(made / "table.csv")
    assert runs.scenario.tolist() == summary.scenario.tolist() == ["absorption-untied", "absorption-tied"]
    assert (runs[list(KINDS)].sum(axis=1) == 4).all()
    row = summary.iloc[0]
    assert (row["seeds that show it"], row.verdict) == ("0.01: 1/1", "held")
    assert row.latents == "1.0 absorbed, 2.0 exact, 1.0 absorbing"
    clauses = pd.read_csv(made / "clauses.csv")
    assert (clauses[clauses.scenario == "absorption-untied"].share == 1).all()
    rows = (made / "table.md").read_text().splitlines()
    assert len(rows) == 4 and all(row.count("|") == rows[0].count("|") for row in rows)


def test_the_loss_is_level_when_training_ends(made: Path) -> None:
    runs = pd.read_csv(made / "runs.csv")
    assert (runs.loss_last / runs.loss_level - 1).abs().max() < 0.1


def test_finished_runs_are_not_made_again(made: Path, out: Path, asked: list[Job]) -> None:
    table.main([*COMMAND, "--out", str(out)])
    assert asked == []
    assert lines(out) == lines(made)


def test_a_run_that_was_cut_short_is_made_again_alone(made: Path, out: Path, asked: list[Job]) -> None:
    (out / RUNS).write_text((out / RUNS).read_text()[:-100])
    table.main([*COMMAND, "--out", str(out)])
    assert [job.scenario for job in asked] == ["absorption-tied"]
    assert lines(out) == lines(made)


def test_other_seeds_are_added_to_those_there_are(out: Path, asked: list[Job]) -> None:
    table.main([*COMMAND, "--out", str(out), "--seeds", "2"])
    assert {job.seed for job in asked} == {1}
    assert len(lines(out)) == 4
    assert pd.read_csv(out / "table.csv")["seeds that show it"].iloc[0] == "0.01: 2/2"


def test_a_damaged_file_of_runs_is_named(tmp_path: Path) -> None:
    path = tmp_path / RUNS
    path.write_text('{"id": "a"}\n{"no": 1}\n')
    with pytest.raises(BadFileError, match="line 2"):
        kept(path)


def test_an_unknown_scenario_is_answered_with_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(SaebenchError, match="did you mean 'narrow-tied'"):
        table.main(["--out", str(tmp_path), "--scenarios", "narow-tied"])


@pytest.mark.parametrize(
    ("shares", "expected"),
    [
        ([0.8, 0.9, 0.0], "held"),
        ([1.0, 0.7, 0.0], "in part"),
        ([0.5, 0.0, 0.0], "in part"),
        ([0.4, 0.4, 0.4], "not"),
        ([1.0], "held"),
        ([0.7], "in part"),
    ],
)
def test_verdicts(shares: list[float], expected: str) -> None:
    assert verdict(shares) == expected


def test_everything_that_matters_is_in_a_runs_identity() -> None:
    job = Job("absorption-tied", 0.01, 0)
    others = [
        replace(job, seed=1),
        replace(job, value=0.1),
        replace(job, longer=2),
        Job("absorption-untied", 0.01, 0),
        Job("wide-tied", 0.01, 0),
        Job("wide-parent-tied", 0.01, 0),
    ]
    assert len({identity(j) for j in (job, *others)}) == 7


def test_l1_and_lambda_of_the_post_are_divided_by_the_dimensions() -> None:
    recipe = recipe_of(Job("superposed-ortho", 0.01, 3))[1]
    assert recipe.hyperparameters["l1"] == pytest.approx(0.01 / 19)
    assert recipe.hyperparameters["ortho"] == pytest.approx(10_000 / 19)
    assert (recipe.seed, recipe.data_seed, recipe.scaling) == (3, 3, "none")
    assert recipe_of(Job("superposed-ortho", 0.01, 3, longer=4))[1].steps == 4 * recipe.steps


def test_quick_takes_the_middle_value_and_two_seeds() -> None:
    jobs = jobs_for(["narrow-tied", "topk-absorption-4"], 10, (), True, 1)
    assert [(j.scenario, j.value, j.seed) for j in jobs] == [
        ("narrow-tied", 0.1, 0),
        ("narrow-tied", 0.1, 1),
        ("topk-absorption-4", 2, 0),
        ("topk-absorption-4", 2, 1),
    ]


def test_every_scenario_of_the_post_has_three_values_and_every_recipe_can_be_made() -> None:
    assert len(POST) == 15 and all(len(s.values) >= 3 for s in SCENARIOS.values())
    for scenario in SCENARIOS.values():
        assert scenario.world in WORLDS
        recipe = recipe_of(Job(scenario.name, scenario.values[0], 0))[1]
        assert (recipe.d_sae, recipe.architecture) == (scenario.d_sae, scenario.architecture)


def walk(spec: Any, visit: Callable[[dict[str, Any]], None]) -> None:
    if isinstance(spec, dict):
        visit(spec)
        for value in spec.values():
            walk(value, visit)
    elif isinstance(spec, list):
        for value in spec:
            walk(value, visit)


def test_the_picture_shows_every_cosine_and_a_histogram_of_every_live_latent(made: Path) -> None:
    untied = scores(made)["absorption-untied"]
    f = np.abs(np.random.default_rng(0).standard_normal((500, 4)))
    spec = figures.picture(untied, f, {"0+1": np.full(4, 0.77)}, "a title", tied=False).to_dict()
    values = [v for rows in spec["datasets"].values() for v in rows]
    shown = [v["value"] for v in values if "value" in v]
    for wanted in (untied.encoder, untied.decoder, np.array([0.77])):
        assert all(any(abs(c - x) <= 0.006 for c in shown) for x in wanted.ravel())
    assert {v["group"] for v in values if "group" in v} == {f"{j} {kind}" for j, kind in enumerate(untied.kinds)}
    titles: list[Any] = []
    walk(spec, lambda part: titles.append(part.get("title")))
    assert "a title" in titles and "encoder: cosine with feature" in titles


def test_a_dead_sae_has_a_picture_too(made: Path) -> None:
    tied = scores(made)["absorption-tied"]
    dead = replace(tied, kinds=("dead",) * 4)
    spec = figures.picture(dead, np.zeros((5, 4)), {}, "dead", tied=True).to_dict()
    assert "encoder: cosine with feature" not in json.dumps(spec)
