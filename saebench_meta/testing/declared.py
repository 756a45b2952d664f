"""Checks of what a task declares: what readers of its results need, told without running it."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import TYPE_CHECKING

from saebench_meta.testing.checks import Check, expect

if TYPE_CHECKING:
    from saebench_meta.plugins import Registry
    from saebench_meta.task import Metric, Task

BUILT_IN_NEEDS = ("activations", "lm", "reference", "judge", "labelled", "truth", "cities")


def declared_checks(task: Task, needs: Collection[str] = BUILT_IN_NEEDS) -> list[Check]:
    """Checks of a task's declaration.

    Args:
        needs: every need that somebody can meet.
    """
    rules = {"says what it measures": _summary, "its needs can be met": _needs, "its metrics are explained": _metrics}
    if "judge" in task.needs:
        rules["what it asks a judge is declared"] = _asks
    return [
        Check(f"task '{task.name}'", title, lambda rule=rule: _hold(rule(task, needs)))  # type: ignore[misc]
        for title, rule in rules.items()
    ]


def task_faults(registry: Registry, task: Task) -> list[str]:
    """What a task leaves undone that readers of its results need; empty if nothing."""
    needs = {*BUILT_IN_NEEDS, *registry.needs}
    return [fault for rule in (_summary, _metrics, _needs, _asks) for fault in rule(task, needs)]


def _hold(faults: Iterator[str]) -> None:
    found = list(faults)
    expect(not found, "; ".join(found))


def _summary(task: Task, _: Collection[str]) -> Iterator[str]:
    if not task.summary.strip():
        yield "the docstring's first line does not say what is measured"
    if type(task.version) is not int or task.version < 1:
        yield f"its `version` is {task.version!r}: give a whole number from 1"


def _needs(task: Task, needs: Collection[str]) -> Iterator[str]:
    yield from (f"needs '{n}', which no installed plugin provides" for n in task.needs if n not in needs)
    if task.subject == "pair" and "reference" not in task.needs:
        yield "its subject is a pair, but its needs do not name 'reference'"


def _asks(task: Task, _: Collection[str]) -> Iterator[str]:
    from saebench_meta.judges import prompt_hashes

    if "judge" not in task.needs:
        return
    if task.asks is None:
        yield "it asks a judge, but does not say how much (`asks`), so that no price can be told"
    if task.prompts is None:
        yield "it asks a judge, but does not show its prompts (`prompts`), so that records cannot hash them"
        return
    try:
        if not prompt_hashes(task):
            yield "`prompts` gives no prompt"
    except Exception as e:  # a third party's function may raise anything; it is reported, not hidden
        yield f"`prompts` fails: {type(e).__name__}: {e}"


def _metrics(task: Task, _: Collection[str]) -> Iterator[str]:
    if not any(m.main for m in task.metrics):
        yield "no metric is marked `main=True`, so the short table is empty"
    for metric in task.metrics:
        yield from _metric(task, metric)


def _metric(task: Task, metric: Metric) -> Iterator[str]:
    from saebench_meta.stats import parse_formula
    from saebench_meta.task import ORACLE

    if not metric.help:
        yield f"metric '{metric.name}' has no `help`"
    if metric.of is not None:
        try:
            parse_formula(metric.of)
        except ValueError as e:
            yield f"metric '{metric.name}': {e}"
    missing = set((metric.expects or "trained").split(">")) - {"trained", ORACLE, *task.controls}
    if missing:
        yield f"metric '{metric.name}' expects an order of {sorted(missing)}, which the task does not run"
    if metric.expects and not metric.why:
        yield f"metric '{metric.name}' does not say why that order is expected (`why`)"
