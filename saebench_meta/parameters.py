"""Parameters of tasks: a task's own defaults, what formats of SAEs ask for, what the user says, in that order."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from saebench_meta.errors import SaebenchError, did_you_mean

if TYPE_CHECKING:
    from saebench_meta.subjects import SubjectPlan
    from saebench_meta.task import Task


def task_parameters(task: Task, given: Mapping[str, Any]) -> dict[str, Any]:
    """The task's defaults with the user's values over them, each of the default's type."""
    known = {p.name: p for p in task.parameters}
    values = {p.name: p.default for p in task.parameters}
    for name, value in given.items():
        if name not in known:
            raise SaebenchError(f"task '{task.name}' has no parameter '{name}'{did_you_mean(name, list(known))}")
        values[name] = like(values[name], value, f"-P {task.name}.{name}")
    return values


def format_parameters(task: Task, subject: SubjectPlan) -> dict[str, Any]:
    """What the formats of all members agree a task's parameters are by default."""
    said = [
        {k.partition(".")[2]: v for k, v in m.loader.parameters.items() if k.partition(".")[0] == task.name}
        for m in subject.members
    ]
    return {k: v for k, v in said[0].items() if all(k in other and other[k] == v for other in said)}


def format_notices(task: Task, subject: SubjectPlan, given: Mapping[str, Any]) -> Iterator[str]:
    """One sentence a parameter that a format sets and the user does not."""
    schemes = ", ".join(sorted({m.scheme for m in subject.members}))
    for name, value in format_parameters(task, subject).items():
        if name not in given:
            yield f"{task.name}.{name} is {value} for {schemes} SAEs; -P {task.name}.{name}=… changes it"


def like(default: Any, value: Any, where: str) -> Any:
    if default is None or (
        isinstance(value, type(default)) and not (isinstance(value, bool) ^ isinstance(default, bool))
    ):
        return value
    if isinstance(default, float) and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if isinstance(default, tuple) and isinstance(value, list | str | int | float):
        items = value if isinstance(value, list) else [v for v in str(value).split(",") if v]
        return tuple(like(default[0], _number(v), where) if default else v for v in items)
    raise SaebenchError(f"{where}={value!r}: expected {type(default).__name__}, e.g. {default!r}")


def _number(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    for kind in (int, float):
        try:
            return kind(value)
        except ValueError:
            continue
    return value
