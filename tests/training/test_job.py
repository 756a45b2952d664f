"""`saebench train`, sweeps, and SAEs that a run trains for itself, on the built-in model."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result

from saebench_meta import variants
from saebench_meta.cli import saebench
from saebench_meta.errors import BadFileError, SaebenchError
from saebench_meta.events import Event, Notice, TrainingStep
from saebench_meta.hookspecs import hookimpl
from saebench_meta.plan import Plan, make_plan, trainings
from saebench_meta.plugins import Registry, registry
from saebench_meta.record import Record, canonical_hash
from saebench_meta.runner import execute
from saebench_meta.sae import SAE
from saebench_meta.session import Session
from saebench_meta.settings import Settings
from saebench_meta.stats import census
from saebench_meta.task import Metric, Output, task
from saebench_meta.training.sweep import count, read_sweep, recipe
from saebench_plugins.atlas import world

HOOK = "blocks.1.hook_resid_post"


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("corpus") / "texts.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in world.documents(80, 5, "train")))
    return path


def call(*arguments: str | Path) -> Result:
    return CliRunner().invoke(saebench, [*map(str, arguments)], standalone_mode=False)


def train(corpus: Path, out: Path, *more: str | Path) -> Result:
    site = ["--model", "atlas", "--hook", HOOK, "--corpus", corpus, "--tokens", "4k", "--batch-size", "512", "-o", out]
    return call("train", *site, *more)


# -- the command


def test_what_is_trained_can_be_run_and_is_kept(corpus: Path, tmp_path: Path) -> None:
    one = ("--arch", "batchtopk", "--width", "24", "--k", "3")
    first = train(corpus, tmp_path, *one)
    assert first.exit_code == 0, first.output
    folder = tmp_path / "batchtopk-24-k3-s0"
    assert f"saebench run --sae {folder}" in first.output
    weights = (folder / "sae.safetensors").read_bytes()
    again = train(corpus, tmp_path, *one)
    assert "step" not in again.stderr and (folder / "sae.safetensors").read_bytes() == weights
    anew = train(corpus, tmp_path, *one, "--force", "--json")
    events = [json.loads(line) for line in anew.stdout.splitlines()]
    assert [e["event"] for e in events if e["event"] in ("TrainingStep", "TrainingFinished")][-1] == "TrainingFinished"
    assert (folder / "sae.safetensors").read_bytes() == weights
    found = call("check", folder, "--json")
    facts = json.loads(found.stdout)
    assert (facts["site"], facts["d_sae"], facts["k"], facts["context_size"]) == (f"atlas/{HOOK}", 24, 3, 128)


def test_a_dry_run_shows_recipes_and_touches_nothing(corpus: Path, tmp_path: Path) -> None:
    sweep = tmp_path / "sweep.toml"
    sweep.write_text(
        '[[sweep]]\narch = "topk"\nwidth = [8, 16]\nk = 2\n[[sweep]]\narch = "relu"\nwidth = [8, 16]\nl1 = 1e-4\n'
    )
    shown = train(corpus, tmp_path / "out", "--sweep", sweep, "--dry-run")
    named = [line.split()[0] for line in shown.output.splitlines()[1:5]]
    assert named == ["topk-8-k2-s0", "topk-16-k2-s0", "relu-8-l10.0001-s0", "relu-16-l10.0001-s0"]
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--arch", "batchtopk"), "--width is missing"),
        (("--arch", "batchtopq", "--width", "8"), "batchtopk"),
        (("--arch", "topk", "--width", "8", "--k", "9"), "k"),
        (("--arch", "topk", "--width", "8", "--k", "2", "--set", "warmpu=1"), "warmup"),
        (("--arch", "topk", "--width", "8", "--k", "2", "--set", "warmup=x"), "warmup"),
        (("--arch", "topk", "--width", "8", "--k", "2", "--set", "warmup"), "KEY=VALUE"),
    ],
)
def test_a_wrong_setting_is_told_before_anything_is_loaded(
    corpus: Path, tmp_path: Path, arguments: tuple[str, ...], said: str
) -> None:
    done = train(corpus, tmp_path / "out", *arguments)
    assert done.exit_code == 2 and said in done.stderr
    assert not (tmp_path / "out").exists()


def test_architectures_are_listed_with_their_settings() -> None:
    rows = [json.loads(line) for line in call("train", "--list", "--json").stdout.splitlines()]
    assert {r["name"] for r in rows} == {"relu", "topk", "batchtopk", "matryoshka", "jumprelu", "gated", "tied"}
    assert next(r for r in rows if r["name"] == "relu")["l1"] == 8e-5


# -- sweeps


@pytest.mark.parametrize(("text", "expected"), [("500k", 500_000), ("2M", 2_000_000), ("1.5B", 1_500_000_000), (7, 7)])
def test_tokens_are_read(text: str | int, expected: int) -> None:
    assert count(text) == expected


@pytest.mark.parametrize("text", ["", "M", "-1", "1.5", "0", "2Q", "nan", True])
def test_what_is_no_number_of_tokens_is_refused(text: Any) -> None:
    with pytest.raises(SaebenchError, match="number of tokens"):
        count(text)


def test_a_sweep_is_every_combination_of_its_lists(tmp_path: Path) -> None:
    path = tmp_path / "sweep.toml"
    path.write_text(
        'tokens = "1M"\n[[sweep]]\narch = ["topk", "batchtopk"]\nwidth = 64\nk = [2, 4]\nseed = [0, 1]\n'
        '[[sweep]]\narch = "relu"\nwidth = 32\nl1 = 0.01\ntokens = "2M"\n'
    )
    made = read_sweep(registry(), path, {"lr": 0.5, "seed": 9})
    assert [r.label for r in made[:3]] == ["topk-64-k2-s0", "topk-64-k2-s1", "topk-64-k4-s0"]
    assert len(made) == 9 and {r.lr for r in made} == {0.5}
    assert (made[-1].tokens, made[-1].seed, made[0].tokens) == (2_000_000, 9, 1_000_000)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("arch = 'topk'", "sweep"),
        ("[[sweeps]]\narch = 'topk'", "sweep"),
        ("[[sweep]\n", "TOML"),
        ("tokens = '1M'\n[[sweep]]\narch = 'topk'\nwidth = 64\nseed = [1, 1]\n", "twice"),
    ],
)
def test_a_bad_sweep_file_is_refused(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "sweep.toml"
    path.write_text(text)
    with pytest.raises((BadFileError, SaebenchError), match=said):
        read_sweep(registry(), path, {})


# -- a missing reference


def settings(tmp_path: Path, corpus: Path, **fields: Any) -> Settings:
    common: dict[str, Any] = {"saes": ("atlas:batchtopk-128",), "tasks": ("novel_latents",), "tokens": 600}
    common |= {"corpus": str(corpus), "out": tmp_path / "out", "cache_dir": tmp_path / "cache"}
    return Settings(**(common | fields))


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(variants, "REFERENCE_TOKENS", 8192)


def run(found: Registry, asked: Settings) -> tuple[Record, list[Event]]:
    events: list[Event] = []
    remove = found.listen(events.append)
    try:
        result = execute(found, make_plan(found, asked), asked)
    finally:
        remove()
    assert result.results[0].status == "ok", result.results[0].reason
    record = result.results[0].record
    assert record is not None
    return record, events


def test_a_missing_reference_is_trained_once_and_said_so(short: None, corpus: Path, tmp_path: Path) -> None:
    record, events = run(registry(), settings(tmp_path, corpus))
    reference = record.subject.saes[1]
    assert reference.ref == "trained:batchtopk-64-k4-s0" and reference.trained is not None
    assert reference.info.d_sae == 64 and reference.info.activation == "jumprelu"
    assert any(isinstance(e, TrainingStep) for e in events)
    again, events = run(registry(), settings(tmp_path, corpus, out=tmp_path / "elsewhere"))
    assert again.subject.saes[1].trained is not None
    assert again.subject.saes[1].trained.content_sha256 == reference.trained.content_sha256
    assert again.id == record.id and again.metrics == record.metrics
    assert not any(isinstance(e, TrainingStep) for e in events)
    assert any(isinstance(e, Notice) and "in the cache" in e.message for e in events)


def test_a_reference_never_sees_what_is_evaluated(short: None, corpus: Path, tmp_path: Path) -> None:
    asked = settings(tmp_path, corpus)
    [unit] = make_plan(registry(), asked).units
    training = unit.subject.members[1].training
    assert training is not None and training.excludes_sample
    session = Session(registry(), asked)
    evaluated = session.site(training.inputs).sample.document_ids
    feed = session.trained_for(training).training.feed["activations"]
    assert evaluated and feed["exclude"] == canonical_hash(sorted(evaluated))
    [atlas] = make_plan(registry(), replace(asked, corpus=None)).units
    training = atlas.subject.members[1].training
    assert training is not None and not training.excludes_sample and training.data.identity.split == "train"


def test_the_budget_decides_and_what_to_type_is_said(corpus: Path, tmp_path: Path) -> None:
    def unmet(budget: float) -> str | None:
        return make_plan(registry(), settings(tmp_path, corpus, tasks=("novel*",), train_budget=budget)).units[0].unmet

    assert unmet(60.0) is None
    assert "--reference" in str(unmet(0.0)) and "would take" not in str(unmet(0.0))
    assert "would take about" in str(unmet(0.001)) and "--train-budget" in str(unmet(0.001))
    plan: Plan = make_plan(registry(), settings(tmp_path, corpus))
    [(label, seconds)] = trainings(plan.units[0], settings(tmp_path, corpus))
    assert label == "batchtopk-64-k4-s0" and 5 < seconds < 3600
    assert "--train-budget 0" in plan.notices[0]


# -- a task that trains


@task(
    "toy_rows",
    version=1,
    metrics=[Metric("explained", better="neither", unit="fraction", main=True)],
    controls=(),
    trains=lambda infos, parameters, recipe: [
        recipe("batchtopk", d_sae=infos[0].d_in // 4, k=int(parameters["k"]), tokens=2048, batch_size=256)
    ],
)
def toy_rows(sae: SAE, ctx: Any, *, k: int = 2, honest: bool = True) -> Output:
    """Variance of decoder rows that an SAE of them explains."""
    [wanted] = ctx.recipes
    if not honest:
        wanted = wanted.model_copy(update={"seed": 99})
    rows = sae.unit_decoder()
    meta = ctx.train(wanted, rows=rows)
    error = (rows - meta.reconstruct(rows)).square().sum() / (rows - rows.mean(0)).square().sum()
    return Output(estimates={"explained": census(1 - float(error), sae.d_sae)})


class Rows:
    """A plugin with that task."""

    saebench_api = 1

    @staticmethod
    @hookimpl
    def saebench_tasks() -> list[Any]:
        return [toy_rows]


@pytest.fixture
def with_rows() -> Registry:
    from saebench_plugins import architectures, atlas, native

    made = Registry()
    for plugin in (architectures, atlas, native, Rows):
        assert made.register(plugin).problems == []
    return made


def test_a_task_trains_what_it_declared(with_rows: Registry, corpus: Path, tmp_path: Path) -> None:
    asked = settings(tmp_path, corpus, tasks=("toy_rows",))
    plan = make_plan(with_rows, asked)
    assert [r.label for r in plan.units[0].trains] == ["batchtopk-32-k2-s0"]
    other = make_plan(with_rows, settings(tmp_path, corpus, tasks=("toy_rows",), parameters={"toy_rows": {"k": 3}}))
    assert other.units[0].place.id != plan.units[0].place.id
    record, _ = run(with_rows, asked)
    [trained] = record.trained
    assert trained.label == "batchtopk-32-k2-s0" and trained.recipe["tokens"] == 2048
    value = record.metrics["explained"].value
    assert value is not None and 0 < value < 1
    again, events = run(with_rows, settings(tmp_path, corpus, tasks=("toy_rows",), out=tmp_path / "more"))
    assert again.trained == record.trained and not any(isinstance(e, TrainingStep) for e in events)


def test_a_training_nobody_declared_is_refused(with_rows: Registry, corpus: Path, tmp_path: Path) -> None:
    asked = settings(tmp_path, corpus, tasks=("toy_rows",), parameters={"toy_rows": {"honest": False}})
    result = execute(with_rows, make_plan(with_rows, asked), asked)
    assert result.results[0].status == "failed" and "without declaring" in str(result.results[0].reason)


def test_without_a_cache_the_training_leaves_nothing(with_rows: Registry, corpus: Path, tmp_path: Path) -> None:
    record, _ = run(with_rows, settings(tmp_path, corpus, tasks=("toy_rows",), cache=False))
    assert record.trained and not (tmp_path / "cache").exists()


def test_a_recipe_needs_architecture_width_and_tokens() -> None:
    with pytest.raises(SaebenchError, match="--arch"):
        recipe(registry(), {"width": 8, "tokens": 100})
    made = recipe(registry(), {"arch": "topk", "width": 8, "k": 2, "tokens": "1k", "batch-size": 10})
    assert (made.d_sae, made.batch_size, made.steps) == (8, 10, 100)
    assert torch.equal(torch.tensor([made.learning_rate(s) for s in (0, 99)]), torch.full((2,), made.lr))
