"""`saebench run`: plan, show or execute, and say how it went."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from saebench_meta.cli.config import RECORD
from saebench_meta.cli.options import DEFAULT, RunCommand, run_options, settings_of
from saebench_meta.cli.output import columns, json_line

if TYPE_CHECKING:
    from saebench_meta.plan import Plan, Unit
    from saebench_meta.plugins import Registry
    from saebench_meta.runner import RunResult
    from saebench_meta.settings import Settings

TASK_FAILED = 1
CHOICES = [
    "model",
    "revision",
    "hook",
    "corpus",
    "split",
    "text_field",
    "data_revision",
    "labelled",
    "context",
    "packing",
    "tokens",
    "judge",
    "judge_options",
    "max_cost",
    "profile",
    "seed",
    "limit",
    "dtype",
    "out",
]
"""Settings that a command to type next must repeat, so that it means the same data."""

EPILOG = (
    "Every option may also stand in the environment (--batch-size is SAEBENCH_BATCH_SIZE; several values separated by "
    "spaces) or, under its long name, in the [run] table of the --config file. The command line wins over the "
    "environment, that over the file, that over --from-record."
)


@click.command(
    "run",
    cls=RunCommand,
    context_settings={"auto_envvar_prefix": "SAEBENCH"},
    epilog=EPILOG,
)
@run_options
@click.pass_context
def command(ctx: click.Context, /, **options: Any) -> int:
    """Run tasks on SAEs and write one record each.

    What is finished in the output folder is kept; the same command again runs only the rest.

    \b
    saebench run --sae atlas:batchtopk-256 --tasks all
    saebench run --family A B C --tasks "novel_*" -P novel_latents.threshold=0.4
    """
    settings = settings_of(ctx, options)
    from saebench_meta.plugins import registry

    found = registry()
    plan = _plan(ctx, found, settings)
    if options["dry_run"]:
        show_plan(plan, settings, as_json=options["json"])
        return 0
    return _execute(found, plan, settings, as_json=options["json"])


def _plan(ctx: click.Context, registry: Registry, settings: Settings) -> Plan:
    from saebench_meta.errors import SaebenchError
    from saebench_meta.plan import make_plan

    try:
        return make_plan(registry, settings)
    except SaebenchError as e:
        if RECORD not in ctx.meta:
            raise
        raise type(e)(
            f"{e}\nThe settings come from {ctx.meta[RECORD]}, and a record keeps only the last part of a local path: "
            "give --sae, --family, --reference, --model, --corpus or --labelled to say where those files are."
        ) from e


def _execute(registry: Registry, plan: Plan, settings: Settings, *, as_json: bool) -> int:
    from saebench_meta.progress import display
    from saebench_meta.runner import execute

    with display(registry, as_json=as_json):
        outcome = execute(registry, plan, settings)
    report = _report(outcome, settings)
    if not as_json:
        _print_outcome(outcome, settings, report)
    return TASK_FAILED if outcome.count("failed") else 0


def _report(outcome: RunResult, settings: Settings) -> Path | None:
    """Write the page; another record in the folder that cannot be read must not hide this run's results."""
    from saebench_meta.errors import SaebenchError
    from saebench_meta.report import write_report

    if not any(r.folder for r in outcome.results):
        return None
    skipped = {r.unit.label: r.reason or "" for r in outcome.results if r.status == "skipped"}
    try:
        return write_report(settings.out, skipped=skipped)
    except (SaebenchError, OSError) as e:
        click.echo(f"warning: no report was written: {e}", err=True)
        return None


def _print_outcome(outcome: RunResult, settings: Settings, report: Path | None) -> None:
    from saebench_meta.tables import console, print_reasons, print_records

    out = console()
    print_records(out, [r.record for r in outcome.results if r.status in ("ok", "kept") and r.record is not None])
    for status in ("failed", "skipped"):
        chosen = [r for r in outcome.results if r.status == status]
        print_reasons(out, status, {r.unit.label: _with_command(r.unit, r.reason or "", settings) for r in chosen})
    if report is not None:
        out.print(f"\nreport: {report}", markup=False, soft_wrap=True)


def _with_command(unit: Unit, reason: str, settings: Settings) -> str:
    """The reason, and the command that mends it where the reason names an option."""
    typed = what_to_type(unit, reason, settings)
    return f"{reason}\n    {typed}" if typed else reason


def what_to_type(unit: Unit, reason: str, settings: Settings) -> str | None:
    """The command for one skipped unit, with the option its reason asks for; None if it names none."""
    asked = re.search(r"--([a-z][a-z-]+)(?: ([A-Z]+))?", reason)
    if asked is None:
        return None
    ref = unit.subject.members[0].ref
    option, value = f"--{asked[1]}", asked[2] or asked[1].upper()
    words = ["saebench", "run", "--sae", ref, "--tasks", unit.task.name, option, value]
    if option == "--family":
        words = ["saebench", "run", option, ref, "OTHER_SAE", "--tasks", unit.task.name]
    for name in CHOICES:
        chosen = getattr(settings, name)
        if isinstance(chosen, dict):
            words += [word for key, value in chosen.items() for word in ("-J", f"{key}={value}")]
        elif chosen != getattr(DEFAULT, name) and f"--{name.replace('_', '-')}" != option:
            for value in chosen if isinstance(chosen, tuple) else (chosen,):
                words += [f"--{name.replace('_', '-')}", str(value)]
    return shlex.join(words)


# -- dry run


def show_plan(plan: Plan, settings: Settings, *, as_json: bool) -> None:
    """The units in the order in which they would run; nothing is loaded."""
    from saebench_meta.judge_costs import units_estimate
    from saebench_meta.plan import describe, trainings
    from saebench_meta.runner import kept_record
    from saebench_meta.variants import in_words

    lines: list[tuple[str, ...]] = []
    trained: dict[str, float] = {}
    asking: list[Unit] = []
    for unit in plan.units:
        status = "skipped" if unit.unmet else "kept" if kept_record(unit, settings) else "to run"
        if as_json:
            json_line({"event": "UnitPlanned", "status": status, **describe(unit, settings)})
        lines.append(_plan_line(unit, status))
        if status == "to run":
            trained.update(trainings(unit, settings))
            asking += [] if unit.judge is None else [unit]
    if as_json:
        if total := units_estimate(asking):
            json_line({"event": "JudgePlanned", **total.to_json()})
        return
    click.echo(columns(lines, ("task", "subject", "status", "tokens", "controls", "why")))
    sets = dict.fromkeys(one.name for unit in plan.units for one in unit.labelled)
    if sets:
        click.echo(f"labelled sets: {', '.join(sets)}")
    for line in _judge_lines(asking):
        click.echo(line)
    for label, seconds in trained.items():
        click.echo(f"trains {label}: about {in_words(seconds)}, unless it is in the cache")
    for notice in plan.notices:
        click.echo(notice)


def _judge_lines(units: list[Unit]) -> list[str]:
    """What units will ask their judge, each and together."""
    from saebench_meta.judge_costs import units_estimate

    lines = []
    for unit in units:
        assert unit.judge is not None
        expected = units_estimate([unit])
        how_much = "it does not say how much" if expected is None else expected.in_words(unit.judge)
        lines.append(f"asks judge {unit.judge.name}: {unit.label}: {how_much}")
    total = units_estimate(units)
    if len(units) > 1 and total is not None and units[0].judge is not None:
        lines.append(f"asks judge {units[0].judge.name}, all together: {total.in_words(units[0].judge)}")
    return lines


def _plan_line(unit: Unit, status: str) -> tuple[str, ...]:
    tokens = str(unit.inputs.sampling["tokens"]) if unit.inputs else "-"
    task = f"{unit.task.name}@{unit.task.version}"
    return task, unit.subject.name, status, tokens, ",".join(unit.controls) or "-", unit.unmet or ""
