"""The command line: what is typed, what is said when it is wrong, and what a run leaves behind."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import toy_plugin
from click.testing import CliRunner, Result
from record_samples import MODEL, data, metric, record, write

import saebench_meta
from saebench_meta.cli import run, saebench, schema
from saebench_meta.cli.cache import parse_size, size
from saebench_meta.cli.group import envvar_name
from saebench_meta.cli.options import spread
from saebench_meta.environment import commit_of, versions
from saebench_meta.plan import Plan, make_plan
from saebench_meta.plugins import Registry
from saebench_meta.settings import Settings
from saebench_meta.testing.declared import task_faults

REPOSITORY = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def registry(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Registry:
    """The toy plugin alone, and a folder of this test's own to stand in."""
    found = Registry()
    found.register(toy_plugin, "toy")
    monkeypatch.setattr("saebench_meta.plugins.registry", lambda: found)
    monkeypatch.chdir(tmp_path)
    return found


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Settings]:
    """Settings handed to the planner; the planner still runs."""
    seen: list[Settings] = []

    def keep(registry: Registry, settings: Settings) -> Plan:
        seen.append(settings)
        return make_plan(registry, settings)

    monkeypatch.setattr("saebench_meta.plan.make_plan", keep)
    return seen


def call(*arguments: str, **environment: str) -> Result:
    return CliRunner().invoke(saebench, list(arguments), env=environment)


def dry(*arguments: str, **environment: str) -> Result:
    done = call("run", "--dry-run", *arguments, **environment)
    assert done.exit_code == 0, done.output
    return done


def refused(*arguments: str, **environment: str) -> str:
    """What is said of a user's error: on standard error, without a traceback, exit code 2."""
    done = call(*arguments, **environment)
    assert done.exit_code == 2, done.output
    assert done.stdout == "" and done.stderr.startswith("error: ") and "Traceback" not in done.stderr
    return done.stderr


SAE = ("--sae", "toy:x-8")

# -- what is said when something is wrong


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["rum"], "no command is called 'rum'; did you mean 'run' or 'truth'?"),
        (["run", "--taks", "all"], "'--tasks'"),
        (["run"], "give either --sae (once or more) or --family"),
        (["run", *SAE, "--family", "toy:x-8", "toy:x-16"], "not both"),
        (["run", "--family", "toy:x-8"], "--family needs at least two SAEs"),
        (["run", *SAE, "--tasks", "toy_widht"], "no task is called 'toy_widht'; did you mean 'toy_width'"),
        (["run", *SAE, "--tasks", "toy_family"], "give --family"),
        (["run", "--sae", "nowhere.safetensors"], "neither a file or folder nor a reference"),
        (["run", *SAE, "-P", "toy_width=2"], "expected task.parameter=value"),
        (["run", *SAE, "-P", "toy_width.scael=2"], "has no parameter 'scael'; did you mean 'scale'?"),
        (["run", *SAE, "-P", "toy_width.scale=big"], "expected float"),
        (["run", *SAE, "--tasks", "toy_width", "-P", "toy_pear.x=2"], "which this run does not include"),
        (["run", *SAE, "--seed", "x"], "'--seed'"),
        (["run", *SAE, "--limit", "0"], "'--limit'"),
        (["run", *SAE, "--batch-size", "0"], "neither a whole number above 0 nor 'auto'"),
        (["run", *SAE, "--profile", "fast"], "'quick', 'default', 'paper'"),
        (["run", *SAE, "--config", "none.toml"], "'none.toml' does not exist"),
        (["tasks", "toy_widht"], "did you mean 'toy_width'"),
        (["saes", "gemma"], "no SAE in the catalogue matches 'gemma'"),
        (["plugins", "tyo"], "no plugin is called 'tyo'; did you mean 'toy'?"),
        (["show", "nowhere"], "'nowhere' does not exist"),
        (["check"], "give one of"),
        (["cache", "prune", "--max-bytes", "many"], "write e.g. 500MB or 2GiB"),
        (["cache", "prune", "--max-bytes", "1MB", "--all"], "not both"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_users_error_says_what_is_wrong(arguments: list[str], said: str) -> None:
    assert said in refused(*arguments)


def test_a_traceback_is_shown_when_asked_for() -> None:
    done = call("run", SAEBENCH_TRACEBACK="1")
    assert done.exit_code == 2 and "Traceback" in done.stderr and "error: give either" in done.stderr


def test_an_unexpected_exception_shows_its_traceback_and_where_to_take_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def explode(*_: Any) -> None:
        raise ZeroDivisionError("unthinkable")

    monkeypatch.setattr("saebench_meta.plan.make_plan", explode)
    done = call("run", *SAE)
    assert done.exit_code == 1
    assert "ZeroDivisionError: unthinkable" in done.stderr and "please report it" in done.stderr


def test_an_interruption_has_its_own_exit_code(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("saebench_meta.runner.execute", interrupt)
    done = call("run", *SAE)
    assert done.exit_code == 130 and "Traceback" not in done.stderr


# -- where settings come from


def test_a_family_may_follow_its_option_in_one_go(asked: list[Settings]) -> None:
    dry("--family", "toy:x-8", "toy:x-16", "toy:x-32", "--seed", "3")
    dry("--family", "toy:x-8", "--family", "toy:x-16", "--seed", "3", "--family=toy:x-32")
    assert asked[0].family == asked[1].family == ("toy:x-8", "toy:x-16", "toy:x-32")
    assert asked[0].saes == () and asked[0].seed == 3


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--family", "a", "b", "-o", "x"], ["--family", "a", "--family", "b", "-o", "x"]),
        (["--family=a", "b", "--json", "c"], ["--family=a", "--family", "b", "--json", "c"]),
        (["--sae", "a", "b"], ["--sae", "a", "b"]),
        (["--family"], ["--family"]),
    ],
)
def test_only_words_after_the_option_are_spread(words: list[str], expected: list[str]) -> None:
    assert spread(words, "--family") == expected


def config(tmp_path: Path, text: str) -> str:
    (tmp_path / "run.toml").write_text(text)
    return str(tmp_path / "run.toml")


def test_the_command_line_wins_over_the_environment_over_the_file_over_the_default(
    asked: list[Settings], tmp_path: Path
) -> None:
    file = config(tmp_path, '[run]\nsae = "toy:x-8"\nseed = 1\ncontext = 11\nthreads = 1\ntasks = ["toy_width"]\n')
    dry("--config", file, "--seed", "3", SAEBENCH_SEED="2", SAEBENCH_CONTEXT="22")
    (s,) = asked
    assert (s.seed, s.context, s.threads, s.tokens) == (3, 22, 1, None)
    assert s.saes == ("toy:x-8",) and s.tasks == ("toy_width",)


def test_every_option_can_come_from_the_environment(asked: list[Settings]) -> None:
    dry(
        SAEBENCH_SAE="toy:x-8 toy:x-16",
        SAEBENCH_CONFIG="",
        SAEBENCH_TASKS="toy_width,toy_p*",
        SAEBENCH_PARAMETER="toy_width.scale=2",
        SAEBENCH_FORCE="1",
        SAEBENCH_CACHE="0",
        SAEBENCH_CACHE_DIR="there",
        SAEBENCH_BATCH_SIZE="16",
        SAEBENCH_OUT="elsewhere",
    )
    (s,) = asked
    assert s.saes == ("toy:x-8", "toy:x-16") and s.parameters == {"toy_width": {"scale": 2}}
    assert s.force and not s.cache and s.batch_size == 16
    assert (s.cache_dir, s.out) == (Path("there"), Path("elsewhere"))


def test_a_bad_value_names_the_environment_variable_or_the_file_it_came_from(tmp_path: Path) -> None:
    assert "SAEBENCH_SEED" in refused("run", *SAE, SAEBENCH_SEED="x")
    file = config(tmp_path, '[run]\nprofile = "fast"\n')
    assert file in refused("run", *SAE, "--config", file)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[run]\nsede = 1\n", "[run] has no key 'sede'; did you mean 'seed'"),
        ("[runs]\nseed = 1\n", "no table is called 'runs'; did you mean 'run'?"),
        ('[run]\nseed = "1"\n', "[run] seed: expected a whole number, got '1'"),
        ("[run]\nseed = true\n", "[run] seed: expected a whole number, got True"),
        ("[run]\nforce = 1\n", "[run] force: expected true or false"),
        ("[run]\nsae = 1\n", "expected a text or a list of texts"),
        ('[run]\nparameter = ["a.b=1"]\n', "write a table instead, e.g. [parameters.core]"),
        ("seed = 1\n", "no table is called 'seed'"),
        ("run = 1\n", "'run' is a int, expected a table"),
        ("[run\n", "not a TOML file"),
        ("[parameters.toy_widht]\nscale = 1\n", "no task is called 'toy_widht'; did you mean 'toy_width'"),
    ],
)
def test_a_mistake_in_a_file_is_named_with_its_place(tmp_path: Path, text: str, said: str) -> None:
    message = refused("run", *SAE, "--config", config(tmp_path, text))
    assert said in message


def test_parameters_of_a_file_lie_under_typed_ones_and_only_those_of_chosen_tasks_count(
    asked: list[Settings], tmp_path: Path
) -> None:
    file = config(tmp_path, "[parameters.toy_width]\nscale = 2.0\nsizes = [3]\n[parameters.toy_failing]\n")
    dry(*SAE, "--config", file, "--tasks", "toy_width", "-P", "toy_width.scale=5")
    assert asked[0].parameters == {"toy_width": {"scale": 5, "sizes": [3]}}


def test_a_subject_on_the_command_line_replaces_one_of_the_other_kind_in_a_file(
    asked: list[Settings], tmp_path: Path
) -> None:
    file = config(tmp_path, '[run]\nfamily = ["toy:x-8", "toy:x-16"]\n')
    dry("--config", file, *SAE)
    assert (asked[0].saes, asked[0].family) == (("toy:x-8",), ())


def test_keys_of_a_file_may_be_written_as_the_options_are(asked: list[Settings], tmp_path: Path) -> None:
    dry(*SAE, "--config", config(tmp_path, '[run]\nbatch-size = 4\ntext-field = "body"\ncache = false\n'))
    assert (asked[0].batch_size, asked[0].text_field, asked[0].cache) == (4, "body", False)


# -- a run from a record


def test_settings_of_a_record_are_taken_below_what_is_typed(asked: list[Settings], tmp_path: Path) -> None:
    made = record(name="x-8", task="toy_width", model=MODEL, data=data(context=64, seed=7))
    made = made.model_copy(
        update={
            "task": made.task.model_copy(update={"parameters": {"scale": 2.0, "sizes": [4, 5]}}),
            "run": made.run.model_copy(update={"seed": 7, "limit": 9, "profile": "quick"}),
        }
    )
    folder = write(tmp_path, made)
    dry("--from-record", str(folder), "--limit", "5", "-P", "toy_width.scale=3")
    (s,) = asked
    assert s.saes == ("toy:x-8",) and s.tasks == ("toy_width",)
    assert s.parameters == {"toy_width": {"scale": 3, "sizes": [4, 5]}}
    assert (s.seed, s.limit, s.profile, s.dtype) == (7, 5, "quick", "bfloat16")
    assert (s.context, s.packing, s.tokens, s.corpus) == (64, "documents", 1024, "corpus.txt")
    dry("--from-record", str(folder), "--family", "toy:x-8", "toy:x-16", "--tasks", "toy_family")
    assert asked[1].saes == () and asked[1].family == ("toy:x-8", "toy:x-16") and asked[1].parameters == {}


def test_rerunning_a_record_finds_the_same_unit(tmp_path: Path) -> None:
    assert call("run", *SAE, "--tasks", "toy_width", "-P", "toy_width.sizes=3,4", "--seed", "2").exit_code == 0
    (file,) = (tmp_path / "out").rglob("record.json")
    assert "kept" in dry("--from-record", str(file)).stdout


def test_a_records_reference_that_cannot_be_found_says_where_it_came_from(tmp_path: Path) -> None:
    made = record(name="gone", task="toy_width")
    sae = made.subject.saes[0].model_copy(update={"ref": "nowhere.safetensors"})
    made = made.model_copy(update={"subject": made.subject.model_copy(update={"saes": [sae]})})
    message = refused("run", "--from-record", str(write(tmp_path, made)))
    assert "keeps only the last part of a local path" in message and "--sae" in message


# -- running


def test_a_dry_run_shows_each_unit_and_leaves_nothing_behind(tmp_path: Path) -> None:
    out = dry(*SAE, "--tasks", "all").stdout
    lines = {line.split()[0]: line for line in out.splitlines() if "@" in line}
    assert "to run" in lines["toy_width@1"]
    assert "skipped" in lines["toy_needy@1"] and "moonlight" in lines["toy_needy@1"]
    assert "permuted_columns" in dry("--sae", "toy:x-16", "--tasks", "toy_pair").stdout
    assert list(tmp_path.iterdir()) == []


def test_a_dry_run_for_machines_is_one_object_a_unit() -> None:
    units = [json.loads(line) for line in dry(*SAE, "--json").stdout.splitlines()]
    assert {u["task"]: u["status"] for u in units}["toy_width"] == "to run"
    assert all(len(u["id"]) == 64 for u in units)


def test_a_run_prints_the_table_what_was_skipped_and_the_report(tmp_path: Path) -> None:
    done = call("run", "--sae", "toy:x-16", "--tasks", "toy_w*,toy_p*,toy_n*,toy_family")
    assert done.exit_code == 2
    done = call("run", "--sae", "toy:x-16", "--tasks", "toy_w*,toy_p*,toy_n*,toy_fam*")
    assert done.exit_code == 0, done.output
    assert "width (latents)" in done.stdout and "census" in done.stdout and "permuted_columns" in done.stdout
    assert "toy_needy on toy-x-16: it needs 'moonlight'" in done.stdout
    assert "saebench run --family toy:x-16 OTHER_SAE --tasks toy_family" in done.stdout
    assert "report: out/report.html" in done.stdout.replace("\\", "/")
    page = (tmp_path / "out" / "report.html").read_text()
    assert "toy_width@1" in page and "moonlight" in page
    assert "planned:" in done.stderr and "toy_width on toy-x-16: ok" in done.stderr


def test_a_failed_task_is_exit_1_and_the_rest_is_there(tmp_path: Path) -> None:
    done = call("run", *SAE, "--tasks", "toy_failing,toy_width")
    assert done.exit_code == 1
    assert "toy_failing on toy-x-8: RuntimeError: it broke" in done.stdout
    assert "width (latents)" in done.stdout


def test_json_puts_events_and_nothing_else_on_standard_output(tmp_path: Path) -> None:
    done = call("run", *SAE, "--tasks", "toy_width", "--json")
    events = [json.loads(line)["event"] for line in done.stdout.splitlines()]
    assert events[0] == "RunPlanned" and events[-1] == "RunFinished" and "UnitFinished" in events
    assert done.stderr == "" and (tmp_path / "out" / "report.html").is_file()


def test_the_same_command_again_keeps_what_is_done() -> None:
    toy_plugin.CALLS.clear()
    assert call("run", *SAE, "--tasks", "toy_width").exit_code == 0
    done = call("run", *SAE, "--tasks", "toy_width")
    assert toy_plugin.CALLS == ["toy-x-8"]
    assert "kept" in done.stderr and "width (latents)" in done.stdout
    assert call("run", *SAE, "--tasks", "toy_width", "--force").exit_code == 0
    assert len(toy_plugin.CALLS) == 2


KEPT_WITHOUT_TORCH = """
import sys
sys.path.insert(0, sys.argv[1])
import toy_plugin, saebench_meta.plugins as plugins
found = plugins.Registry()
found.register(toy_plugin, "toy")
plugins.registry = lambda: found
from saebench_meta.cli import saebench
try:
    saebench(["run", "--sae", "toy:x-8", "--tasks", "toy_width"])
except SystemExit as e:
    assert e.code == 0, e.code
print([m for m in ("torch", "pandas", "numpy", "transformers", "altair") if m in sys.modules], file=sys.stderr)
"""


def test_a_run_in_which_everything_is_kept_imports_nothing_heavy(tmp_path: Path) -> None:
    assert call("run", *SAE, "--tasks", "toy_width").exit_code == 0
    command = [sys.executable, "-c", KEPT_WITHOUT_TORCH, str(Path(__file__).parent)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=120, check=False)
    assert done.stderr.splitlines()[-1] == "[]", done.stderr
    assert "width (latents)" in done.stdout


def test_the_report_failing_does_not_hide_the_results(tmp_path: Path) -> None:
    (tmp_path / "out" / "other").mkdir(parents=True)
    (tmp_path / "out" / "other" / "record.json").write_text("{")
    done = call("run", *SAE, "--tasks", "toy_width")
    assert done.exit_code == 0 and "width (latents)" in done.stdout
    assert "no report was written" in done.stderr and "record.json" in done.stderr


@pytest.mark.parametrize(
    ("reason", "typed"),
    [
        (
            "it needs documents: give --corpus (a file or a data set's name)",
            "--tasks toy_width --corpus CORPUS --seed 3 --out here",
        ),
        ("it needs a judge: give --judge NAME", "--tasks toy_width --judge NAME --corpus c.txt --seed 3 --out here"),
        ("nothing helps", None),
    ],
)
def test_what_to_type_follows_the_option_the_reason_names(registry: Registry, reason: str, typed: str | None) -> None:
    settings = Settings(saes=("toy:x-8",), tasks=("toy_width",), corpus="c.txt", seed=3, out=Path("here"))
    (unit,) = make_plan(registry, settings).units
    command = run.what_to_type(unit, reason, settings)
    assert command == (None if typed is None else f"saebench run --sae toy:x-8 {typed}")


# -- reading results


def test_show_prints_a_folder_and_one_record(tmp_path: Path) -> None:
    metrics = {"score": metric(), "detail": metric(0.5, main=False)}
    folder = write(tmp_path / "run", record(metrics=metrics))
    for path in (tmp_path / "run", folder, folder / "record.json"):
        out = call("show", str(path)).stdout
        assert "score (fraction)" in out and "[0.700, 0.800]" in out and "detail" not in out
    assert "detail" in call("show", str(folder), "--all").stdout
    assert json.loads(call("show", str(folder), "--json").stdout)["task"]["name"] == "toy_task"


def test_compare_prints_difference_verdict_and_why_there_is_no_test(tmp_path: Path) -> None:
    columns = {"role": ["sae"] * 30, "document": list(range(30)), "n": [1.0] * 30}
    for name, gain in (("a", 0.5), ("b", 0.0)):
        metrics = {"score": metric(of="s / n"), "count": metric(5.0, None, None)}
        documents = {**columns, "s": [i % 7 + gain * (1 + i % 2) for i in range(30)]}
        write(tmp_path / name, record(name=name, metrics=metrics), documents=documents)
    done = call("compare", str(tmp_path / "a"), str(tmp_path / "b"))
    assert done.exit_code == 0 and "A is better" in done.stdout and "no test: both are exact" in done.stdout
    plain = json.loads(call("compare", str(tmp_path / "a"), str(tmp_path / "b"), "--json").stdout)
    assert plain["metrics"]["score"]["difference"]["value"] == pytest.approx(0.75)


def test_report_writes_the_page_again(tmp_path: Path) -> None:
    write(tmp_path / "run", record())
    done = call("report", str(tmp_path / "run"))
    assert done.stdout.strip() == str(tmp_path / "run" / "report.html")


def test_an_old_code_page_does_not_end_a_command(tmp_path: Path) -> None:
    write(tmp_path / "run", record())
    command = [sys.executable, "-X", "utf8=0", "-m", "saebench_meta.cli", "show", str(tmp_path / "run")]
    environment = {**os.environ, "PYTHONIOENCODING": "latin-1"}
    done = subprocess.run(command, capture_output=True, env=environment, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert b"? score (fraction)" in done.stdout


# -- what there is


def test_tasks_lists_and_describes() -> None:
    out = call("tasks").stdout
    assert "toy_width@1" in out and "reference" in out and "documents" in out and "Number of latents." in out
    one = call("tasks", "toy_pair").stdout
    assert (
        "toy_pair@2: Ratio of widths." in one and "controls: permuted_columns" in one and "no better direction" in one
    )
    assert "-P toy_width.scale=1.0" in call("tasks", "toy_width").stdout
    assert json.loads(call("tasks", "toy_width", "--json").stdout)["parameters"][0]["name"] == "scale"


def test_plugins_lists_broken_ones_with_the_reason_and_exits_0(registry: Registry) -> None:
    import types

    registry.register(types.ModuleType("foreign"), "foreign")
    done = call("plugins")
    assert done.exit_code == 0
    assert "foreign (registered by hand)" not in done.stdout.splitlines()[0]
    assert "not used" in done.stdout and "has no `saebench_api`" in done.stdout
    assert "task: " in call("plugins", "toy").stdout


def test_a_slow_plugin_is_named(registry: Registry) -> None:
    registry.plugins[0].seconds = 1.5
    assert "took 1.50 s to import" in call("plugins").stdout


def test_saes_are_found_by_part_or_glob() -> None:
    assert call("saes", "x-1").stdout.count("toy:x-") == 1
    assert call("saes", "toy:*").stdout.count("toy:x-") == 3
    assert len(call("saes", "--json").stdout.splitlines()) == 3


def test_check_looks_at_an_sae() -> None:
    done = call("check", "toy:x-8")
    assert done.exit_code == 0, done.output
    assert "d sae" in done.stdout and "warning: " in done.stdout
    assert json.loads(call("check", "toy:x-8", "--json").stdout)["d_sae"] == 8


def test_check_with_a_sample_says_what_is_missing() -> None:
    assert "language model" in refused("check", "toy:x-8", "--sample")


def test_check_of_a_task_names_what_it_leaves_undone(registry: Registry) -> None:
    faults = task_faults(registry, registry.tasks["toy_needy"])
    assert "needs 'moonlight', which no installed plugin provides" in faults
    assert "no metric is marked `main=True`, so the short table is empty" in faults
    done = call("check", "--task", "toy_needy")
    assert done.exit_code == 1 and "moonlight" in done.stdout
    assert call("check", "--plugin", "toy").exit_code == 1


def test_a_task_that_keeps_the_rules_passes(registry: Registry) -> None:
    from saebench_meta.task import Metric, Output, task

    @task(
        "sound", version=1, controls=["random"],
        metrics=[Metric("m", "higher", "1", main=True, of="a / b", expects="trained>random", why="w", help="h")],
    )  # fmt: skip
    def sound(sae: Any, ctx: Any) -> Output:
        """Measures something."""
        return Output()

    assert task_faults(registry, sound) == []


# -- the rest


def test_the_schema_in_the_package_is_current() -> None:
    kept = Path(saebench_meta.__file__).parent / "schema" / "record-v1.json"
    assert call("schema").stdout == schema.text() == kept.read_text(), f"run `saebench schema > {kept}`"


def test_a_record_fits_the_schema() -> None:
    import jsonschema

    jsonschema.validate(json.loads(record(data=data(), model=MODEL).to_json()), json.loads(schema.text()))


def test_the_command_reference_is_current() -> None:
    kept = REPOSITORY / "docs" / "cli.md"
    made = [sys.executable, "-m", "saebench_meta.cli.reference"]  # afresh: click keeps a help option once it is made
    done = subprocess.run(made, capture_output=True, text=True, encoding="utf-8", check=True)
    assert kept.read_text("utf-8") == done.stdout, "run `python -m saebench_meta.cli.reference > docs/cli.md`"


def test_every_setting_has_an_option() -> None:
    options = {o.name for o in run.command.params}
    renamed = {"saes": "sae", "parameters": "parameter", "judge_options": "judge_option"}
    assert {renamed.get(name, name) for name in Settings.__dataclass_fields__} <= options


def test_every_option_has_an_environment_variable_named_after_it() -> None:
    """`--all` of `show` is SAEBENCH_SHOW_ALL, whatever its parameter is called in the code."""
    import click

    from saebench_meta.cli.reference import contexts

    for ctx in contexts(saebench):
        for option in (p for p in ctx.command.params if isinstance(p, click.Option)):
            if ctx.parent is None or option.name in ("json", "as_json", "cache_dir"):
                continue
            long = max(option.opts, key=len).strip("-").replace("-", "_").upper()
            assert envvar_name(ctx, option) == f"{ctx.auto_envvar_prefix}_{long}"


@pytest.mark.parametrize(
    ("text", "expected"), [("12", 12), ("500MB", 500_000_000), ("2GiB", 2 << 30), ("1.5 kb", 1500), ("0", 0)]
)
def test_sizes_are_read(text: str, expected: int) -> None:
    assert parse_size(text) == expected


def test_sizes_are_shown() -> None:
    assert [size(n) for n in (0, 999, 1500, 2 * 10**9, 3 * 10**12)] == [
        "0 bytes",
        "999 bytes",
        "1.5 kB",
        "2.0 GB",
        "3.0 TB",
    ]


def test_the_cache_is_shown_and_emptied_where_the_environment_says(tmp_path: Path) -> None:
    done = call("cache", "info", "--json", SAEBENCH_CACHE_DIR=str(tmp_path / "cache"))
    facts = json.loads(done.stdout)
    assert facts["root"] == str(tmp_path / "cache") and facts["bytes"] == 0
    assert "removed 0 entries" in call("cache", "prune", "--all", "--cache-dir", str(tmp_path / "cache")).stdout


def test_env_names_versions_and_plugins() -> None:
    facts = json.loads(call("env", "--json").stdout)
    assert facts["saebench_meta"] == saebench_meta.__version__ and facts["plugins"] == ["toy ((registered by hand) )"]


def git(folder: Path, *arguments: str) -> str:
    command = ["git", "-c", "user.name=t", "-c", "user.email=t@example.invalid", "-C", str(folder), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A repository with a package folder, committed."""
    root = tmp_path / "checkout"
    (root / "saebench_meta").mkdir(parents=True)
    (root / "saebench_meta" / "__init__.py").write_text("")
    git(tmp_path, "init", "-q", str(root))
    git(root, "add", ".")
    git(root, "commit", "-q", "-m", "first")
    return root


def test_the_commit_is_that_of_the_packages_own_checkout(checkout: Path) -> None:
    package = checkout / "saebench_meta"
    assert commit_of(package) == (git(checkout, "rev-parse", "HEAD"), False)
    commit_of.cache_clear()
    (checkout / "notes.txt").write_text("not of the package")
    assert commit_of(package)[1] is False
    commit_of.cache_clear()
    (package / "__init__.py").write_text("x = 1")
    assert commit_of(package)[1] is True


def test_a_package_inside_somebody_elses_repository_has_no_commit(checkout: Path) -> None:
    inside = checkout / "venv" / "lib" / "saebench_meta"
    inside.mkdir(parents=True)
    assert commit_of(inside) == (None, None)


def test_versions_name_torch_without_importing_it() -> None:
    script = "import sys, saebench_meta.environment as e; v = e.versions(); print(v.torch, 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.split() == [str(versions().torch), "False"]
