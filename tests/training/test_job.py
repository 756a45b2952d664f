"""`saebench train`, sweeps, and SAEs that a run trains for itself, on the built-in model."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result
from filelock import FileLock

from saebench_meta import variants
from saebench_meta.cli import saebench
from saebench_meta.errors import BadFileError, SaebenchError
from saebench_meta.events import Event, Notice, TrainingStep
from saebench_meta.hookspecs import hookimpl
from saebench_meta.plan import Plan, make_plan, trainings
from saebench_meta.plugins import Registry, registry
from saebench_meta.record import Record, canonical_hash
from saebench_meta.resolve import resolve_sae
from saebench_meta.runner import execute
from saebench_meta.sae import SAE
from saebench_meta.session import Session
from saebench_meta.settings import Settings
from saebench_meta.stats import census
from saebench_meta.task import Metric, Output, task
from saebench_meta.training.kept import kept
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


def test_the_decoder_of_an_sae_is_trained_by_its_reference(corpus: Path, tmp_path: Path) -> None:
    done = train(corpus, tmp_path, "--arch", "decoder", "--start", "atlas:batchtopk-128")
    assert done.exit_code == 0, done.output
    made, start = (resolve_sae(registry(), ref) for ref in (f"{tmp_path}/decoder-128-s0", "atlas:batchtopk-128"))
    assert made.info.name == "atlas-batchtopk-128-retrained" and made.info.activation == start.info.activation
    assert torch.equal(made.load().W_enc, start.load().W_enc)


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
        (("--arch", "topk", "--width", "8", "--k", "9"), "k is 9; it must be from 1 to d_sae − 1 = 7"),
        (("--arch", "topk", "--width", "8", "--k", "2", "--set", "warmpu=1"), "warmup"),
        (("--arch", "topk", "--width", "8", "--k", "2", "--set", "warmup=x"), "warmup"),
        (("--arch", "topk", "--width", "8", "--k", "2", "--set", "warmup"), "KEY=VALUE"),
        (("--arch", "topk", "--width", "8", "--k", "2", "--lr", "inf"), "lr"),
        (("--arch", "relu", "--width", "8", "--l1", "nan"), "finite"),
        (("--arch", "decoder", "--width", "8"), "'decoder' starts from an SAE: give one (--start REF"),
        (("--arch", "topk", "--k", "3", "--start", "atlas:batchtopk-128"), "'topk' starts from random weights"),
        (("--arch", "decoder", "--start", "atlas:batchtopk-128", "--set", "scaling=rms"), "scaling=none"),
    ],
)
def test_a_wrong_setting_is_told_before_anything_is_loaded(
    corpus: Path, tmp_path: Path, arguments: tuple[str, ...], said: str
) -> None:
    done = train(corpus, tmp_path / "out", *arguments)
    assert done.exit_code == 2 and said in done.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("option", "value", "said"),
    [("--device", "foo", "--device foo cannot be used here"), ("--out", "/dev/null/x", "cannot be written")],
)
def test_a_device_or_folder_that_cannot_be_used_is_told(
    corpus: Path, tmp_path: Path, option: str, value: str, said: str
) -> None:
    done = train(corpus, tmp_path, "--arch", "topk", "--width", "8", "--k", "2", option, value)
    assert done.exit_code == 2 and done.stderr.count("error: ") == 1 and said in done.stderr


def test_architectures_are_listed_with_their_settings() -> None:
    rows = [json.loads(line) for line in call("train", "--list", "--json").stdout.splitlines()]
    names = {"relu", "topk", "batchtopk", "matryoshka", "jumprelu", "gated", "tied", "decoder", "encoder"}
    assert {r["name"] for r in rows} == names
    assert next(r for r in rows if r["name"] == "relu")["l1"] == 8e-5


def test_saes_that_see_the_data_in_another_order_are_trained_in_a_pass_of_their_own(
    corpus: Path, tmp_path: Path
) -> None:
    sweep = tmp_path / "orders.toml"
    sweep.write_text('[[sweep]]\narch = "topk"\nwidth = 8\nk = 2\ndata_seed = [0, 1]\n')
    assert train(corpus, tmp_path, "--sweep", sweep).exit_code == 0
    both = [tmp_path / name for name in ("topk-8-k2-s0", "topk-8-k2-s0d1")]
    alone = train(corpus, tmp_path / "alone", "--arch", "topk", "--width", "8", "--k", "2", "--set", "data_seed=1")
    assert alone.exit_code == 0
    first, second = ((folder / "sae.safetensors").read_bytes() for folder in both)
    assert first != second == (tmp_path / "alone" / "topk-8-k2-s0d1" / "sae.safetensors").read_bytes()


def test_saes_that_share_a_label_are_told_apart(corpus: Path, tmp_path: Path) -> None:
    sweep = tmp_path / "rates.toml"
    sweep.write_text('[[sweep]]\narch = "topk"\nwidth = 8\nk = 2\nlr = [1e-3, 2e-3]\n')
    done = train(corpus, tmp_path / "out", "--sweep", sweep, "--json")
    events = [json.loads(line) for line in done.stdout.splitlines()]
    told = {e["label"] for e in events if e["event"] == "TrainingStep"}
    assert len(told) == 2 and told == {path.parent.name for path in (tmp_path / "out").glob("*/sae.safetensors")}


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
        ("arch = 'topk'", r"no \[\[sweep\]\] table"),
        ("[[sweeps]]\narch = 'topk'", "did you mean 'sweeps'"),
        ("[[sweep]\n", "TOML"),
        ("tokens = '1M'\n[[sweep]]\narch = 'topk'\nwidth = 64\nseed = []\n", "nothing to train"),
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
    assert again.subject.model_dump_json() == record.subject.model_dump_json()


def weights_of(cache: Path) -> Path:
    [found] = cache.glob("trained/*/*/sae.safetensors")
    return found


def hash_of_reference(record: Record) -> str:
    trained = record.subject.saes[1].trained
    assert trained is not None
    return trained.content_sha256


@pytest.mark.parametrize("damage", ["cut", "bit", "report", "checkpoint", "other recipe"])
def test_what_is_damaged_in_the_cache_is_trained_anew(short: None, corpus: Path, tmp_path: Path, damage: str) -> None:
    record, _ = run(registry(), settings(tmp_path, corpus))
    weights = weights_of(tmp_path / "cache")
    good, report = weights.read_bytes(), weights.with_name("training.json")
    if damage == "cut":
        weights.write_bytes(good[:1000])
    elif damage == "bit":
        weights.write_bytes(good[:-2] + bytes([good[-2] ^ 1]) + good[-1:])
    elif damage == "report":
        report.write_text("{")
    elif damage == "checkpoint":
        report.replace(weights.with_name("checkpoint.safetensors"))
    elif damage == "other recipe":
        digest = json.loads(report.read_text())["digest"]
        report.write_text(report.read_text().replace(digest, "0" * 64))
    again, events = run(registry(), settings(tmp_path, corpus, out=tmp_path / "elsewhere"))
    assert hash_of_reference(again) == hash_of_reference(record) and weights.read_bytes() == good
    assert any(isinstance(e, Notice) and "trained anew" in e.message for e in events)


def test_a_reference_is_of_the_model_in_the_precision_asked_for(short: None, corpus: Path, tmp_path: Path) -> None:
    for dtype in ("float32", "bfloat16"):
        record, _ = run(registry(), settings(tmp_path, corpus, dtype=dtype, out=tmp_path / dtype))
        reference = record.subject.saes[1].trained
        assert reference is not None and reference.data["activations"]["computed_in"] == f"torch.{dtype}"


def test_a_cache_that_cannot_be_written_costs_only_the_keeping(short: None, corpus: Path, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file, not a folder")
    record, events = run(registry(), settings(tmp_path, corpus))
    assert record.subject.saes[1].trained is not None
    assert any(isinstance(e, Notice) and "what is trained is not kept" in e.message for e in events)


def test_what_a_run_trains_is_told_without_paths_of_this_machine(short: None, corpus: Path, tmp_path: Path) -> None:
    record, _ = run(registry(), settings(tmp_path, corpus))
    reference = record.subject.saes[1].trained
    assert reference is not None and reference.info.dataset == corpus.name
    assert str(corpus.parent) not in record.to_json()


def test_a_corpus_that_is_evaluated_as_a_whole_leaves_nothing_to_train_on(
    short: None, corpus: Path, tmp_path: Path
) -> None:
    asked = settings(tmp_path, corpus, tokens=10**6)
    [result] = execute(registry(), make_plan(registry(), asked), asked).results
    assert result.status == "skipped" and "fewer --tokens" in str(result.reason)


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


def test_what_changes_a_reference_changes_the_records_id(corpus: Path, tmp_path: Path) -> None:
    def planned(**fields: Any) -> str:
        return make_plan(registry(), settings(tmp_path, corpus, **fields)).units[0].place.id

    assert planned() != planned(dtype="bfloat16") and planned() != planned(seed=1)
    assert planned() != planned(tokens=700)  # other documents are left out of its training
    asked = replace(settings(tmp_path, corpus), corpus=None)
    one, two = (make_plan(registry(), replace(asked, tokens=n)).units[0] for n in (600, 700))
    # The built-in corpus has a split for training: only the sample that is evaluated is another.
    assert one.subject.members[1].identity() == two.subject.members[1].identity()
    assert one.place.id != two.place.id


def test_a_record_with_a_trained_reference_can_be_planned_again(short: None, corpus: Path, tmp_path: Path) -> None:
    record, _ = run(registry(), settings(tmp_path, corpus))
    [path] = (tmp_path / "out").glob("*/*/*/record.json")
    done = call("run", "--from-record", path, "--corpus", corpus, "-o", tmp_path / "out", "--dry-run", "--json")
    assert done.exit_code == 0, done.stderr
    planned = json.loads(done.stdout.splitlines()[0])
    assert (planned["id"], planned["status"]) == (record.id, "kept")


def test_no_path_of_this_machine_is_in_a_record(short: None, corpus: Path, tmp_path: Path) -> None:
    asked = settings(tmp_path, corpus)
    record, _ = run(registry(), asked)
    assert record.subject.saes[1].info.dataset == corpus.name
    assert str(tmp_path) not in record.to_json() and str(corpus.parent) not in record.to_json()


def test_trained_saes_are_shown_and_removed_but_not_while_one_trains(short: None, corpus: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    run(registry(), settings(tmp_path, corpus))
    shown = call("cache", "info", "--cache-dir", cache)
    assert "batchtopk, 64 latents, 8,192 tokens" in shown.output
    [one] = kept(cache)
    assert one.finished and one.bytes > 4 * 2 * 64 * 128
    with FileLock(one.path / ".lock"):
        assert "removed 0 trained" in call("cache", "prune", "--trained", "--cache-dir", cache).output
    assert kept(cache) == [one]
    assert "removed 1 trained" in call("cache", "prune", "--trained", "--cache-dir", cache).output
    assert kept(cache) == [] and not list((cache / "trained").rglob("*.safetensors"))


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
    trained, on_the_oracle = record.trained
    assert trained.label == on_the_oracle.label == "batchtopk-32-k2-s0" and trained.recipe["tokens"] == 2048
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
