"""`saebench tasks`: what can be measured, and what each task needs."""

from __future__ import annotations

import inspect
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from saebench_meta.cli.output import columns, json_line

if TYPE_CHECKING:
    from saebench_meta.task import Metric, Task


@click.command("tasks")
@click.argument("name", required=False)
@click.option("--json", "as_json", is_flag=True, envvar="SAEBENCH_JSON", help="One task a line.")
def command(name: str | None, as_json: bool) -> None:
    """List the tasks, or describe the one called NAME."""
    from saebench_meta.plugins import registry

    found = registry().tasks
    if as_json:
        for task in [found[name]] if name else [found[n] for n in sorted(found)]:
            json_line(_plain(task))
    elif name:
        click.echo(describe(found[name]))
    else:
        click.echo(_listing([found[n] for n in sorted(found)]))


def _listing(tasks: list[Task]) -> str:
    heads = ("task", "subject", "needs", "main metrics", "--limit counts", "what it measures")
    rows = [
        (
            f"{t.name}@{t.version}",
            f"{t.subject} (with {t.part_of})" if t.part_of else t.subject,
            ", ".join(t.needs) or "-",
            ", ".join(m.name for m in t.metrics if m.main) or "-",
            t.limit_unit,
            t.summary,
        )
        for t in tasks
    ]
    if not rows:
        return "no tasks are installed; `saebench plugins` says what was found"
    return columns(rows, heads) + "\n\n`saebench tasks NAME` describes one, with its parameters and metrics."


def describe(task: Task) -> str:
    """Docstring, parameters and metrics of a task, for reading."""
    from saebench_meta.judges import prompt_hashes

    parts = [
        f"{task.name}@{task.version}: {task.summary}",
        *([rest] if (rest := (inspect.getdoc(task.function) or "").partition("\n")[2].strip("\n")) else []),
        "\n".join(
            [
                f"subject: {task.subject}",
                *([f"part of: {task.part_of}, and run with it"] if task.part_of else []),
                f"needs: {', '.join(task.needs) or 'nothing but the SAE'}",
                f"controls: {', '.join(task.controls) or 'none'}",
                f"--limit counts: {task.limit_unit}",
                *([f"source: {task.source}"] if task.source else []),
                *(f"prompt {name}: sha256 {digest[:12]}" for name, digest in prompt_hashes(task).items()),
            ]
        ),
        "parameters:\n" + _indented(_parameters(task)),
        "metrics:\n" + _indented("\n".join(_metric(m) for m in task.metrics)),
    ]
    return "\n\n".join(parts)


def _parameters(task: Task) -> str:
    lines = [
        f"-P {task.name}.{p.name}={p.default!r}  ({p.annotation}{_in_profiles(task, p.name)})" for p in task.parameters
    ]
    return "\n".join(lines) or "none"


def _in_profiles(task: Task, parameter: str) -> str:
    return "".join(f"; {name}: {v[parameter]!r}" for name, v in task.profiles.items() if parameter in v)


def _metric(metric: Metric) -> str:
    direction = {"higher": "higher is better", "lower": "lower is better", "neither": "no better direction"}
    line = f"{metric.name} ({metric.unit}; {direction[metric.better]}{'; main' if metric.main else ''})"
    order = f"  expected order of controls: {metric.expects.replace('>', ' > ')}" if metric.expects else ""
    details = [
        f"  {metric.help}" if metric.help else "",
        f"  = {metric.of}, over sums of per-document columns" if metric.of else "",
        order if order else "  no expected order of controls",
        f"  because: {metric.why}" if metric.why else "",
    ]
    return "\n".join([line, *(d for d in details if d)])


def _indented(text: str) -> str:
    return "\n".join(f"  {line}" for line in text.splitlines())


def _plain(task: Task) -> dict[str, Any]:
    from saebench_meta.judges import prompt_hashes

    return {
        "name": task.name,
        "version": task.version,
        "subject": task.subject,
        "part_of": task.part_of,
        "needs": list(task.needs),
        "controls": list(task.controls),
        "limit_unit": task.limit_unit,
        "summary": task.summary,
        "source": task.source,
        "prompts": prompt_hashes(task),
        "parameters": [asdict(p) for p in task.parameters],
        "profiles": {name: dict(values) for name, values in task.profiles.items()},
        "metrics": [asdict(m) for m in task.metrics],
    }
