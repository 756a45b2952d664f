"""Shows a run's events: moving lines on a terminal, one plain line an event in a log, one JSON object for machines."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, Any

from saebench_meta.events import (
    Event,
    Notice,
    Progress,
    RunFinished,
    RunPlanned,
    TrainingStep,
    UnitFinished,
    UnitStarted,
)
from saebench_meta.tables import console, is_plain

if TYPE_CHECKING:
    from rich.console import Console

    from saebench_meta.plugins import Registry

Listener = Callable[[Event], None]

PLAIN_SECONDS = 10.0
"""In a log, progress within a unit is written at most this often."""
STATUS_STYLE = {"ok": "green", "kept": "cyan", "failed": "bold red", "skipped": "yellow"}


@contextmanager
def display(registry: Registry, *, as_json: bool = False) -> Iterator[None]:
    """Show the events of a run while the block runs: JSON on standard output, anything else on standard error."""
    if as_json:
        with _listening(registry, json_lines(sys.stdout)):
            yield
    elif is_plain(sys.stderr):
        with _listening(registry, PlainLines(sys.stderr)):
            yield
    else:
        with _moving(console(err=True)) as listener, _listening(registry, listener):
            yield


@contextmanager
def _listening(registry: Registry, listener: Listener) -> Iterator[None]:
    remove = registry.listen(Once(listener))
    try:
        yield
    finally:
        remove()


class Once:
    """Passes events on, the same notice only once."""

    def __init__(self, listener: Listener) -> None:
        self.listener = listener
        self._seen: set[tuple[str, str]] = set()

    def __call__(self, event: Event) -> None:
        if isinstance(event, Notice):
            if (event.level, event.message) in self._seen:
                return
            self._seen.add((event.level, event.message))
        self.listener(event)


def json_lines(stream: IO[str]) -> Listener:
    """One JSON object a line, as it happens."""

    def write(event: Event) -> None:
        stream.write(json.dumps(event.to_json(), ensure_ascii=False, allow_nan=False) + "\n")
        stream.flush()

    return write


def describe(event: Event) -> str:
    """An event as one plain line; empty for an event this version does not know."""
    match event:
        case RunPlanned(units, kept, skipped):
            return f"planned: {_count(units, 'unit')}, {kept} kept, {skipped} skipped"
        case UnitStarted(task, subject, index, total):
            return f"[{index}/{total}] {task} on {subject}: started"
        case Progress(what, done, total):
            return f"  {what}: {done}" + (f"/{total}" if total is not None else "")
        case TrainingStep(label, step, steps):
            return f"  {label}: step {step:,}/{steps:,}, {figures(event)}"
        case Notice(level, message):
            return f"{level}: {message}" if level != "info" else message
        case UnitFinished(task, subject, status, seconds, reason):
            took = f" in {seconds:.1f} s" if status in ("ok", "failed") else ""
            return f"{task} on {subject}: {status}{took}" + (f" ({reason})" if reason else "")
        case RunFinished(ok, kept, failed, skipped, seconds):
            return f"finished in {seconds:.1f} s: {ok} ok, {kept} kept, {failed} failed, {skipped} skipped"
    return ""


def figures(event: TrainingStep) -> str:
    """Loss, FVU, L0, dead share and speed in one short phrase."""
    fvu = "-" if event.fvu is None else f"{event.fvu:.4f}"
    speed = "" if event.tokens_per_second is None else f", {event.tokens_per_second:,.0f} tokens/s"
    return f"loss {event.loss:.4g}, FVU {fvu}, L0 {event.l0:.1f}, dead {event.dead_share:.1%}{speed}"


def _count(n: int, what: str) -> str:
    return f"{n} {what}" + ("" if n == 1 else "s")


class PlainLines:
    """One line an event; steps within a unit are thinned out by time, so that a log stays readable."""

    def __init__(self, stream: IO[str], clock: Callable[[], float] = time.monotonic) -> None:
        self.stream, self.clock = stream, clock
        self._told: dict[int | None, tuple[str, float]] = {}  # by worker, what it was at and when that was written

    def __call__(self, event: Event) -> None:
        if isinstance(event, Progress) and not self._due(event, event.what):
            return
        if isinstance(event, TrainingStep) and event.step < event.steps and not self._due(event, event.label):
            return
        if isinstance(event, UnitStarted):
            self._told.pop(event.worker, None)
        if line := describe(event):
            who = "" if event.worker is None else f"({event.worker}) "
            self.stream.write(f"{who}{line}\n")
            self.stream.flush()

    def _due(self, event: Event, what: str) -> bool:
        now = self.clock()
        before, last = self._told.get(event.worker, ("", 0.0))
        if what == before and now - last < PLAIN_SECONDS:
            return False
        self._told[event.worker] = what, now
        return True


@contextmanager
def _moving(console: Console) -> Iterator[Listener]:
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        SpinnerColumn,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )
    from rich.progress import Progress as Bars

    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Bars(*columns, console=console, transient=True) as bars:
        yield MovingLines(bars)


class MovingLines:
    """A moving line for each unit at work, under one for the run; a finished unit becomes a line that stays."""

    def __init__(self, bars: Any, clock: Callable[[], float] = time.monotonic) -> None:
        self.bars, self.clock = bars, clock
        self._told = clock()
        self._run: Any = None
        self._units: dict[int | None, _MovingUnit] = {}
        self._trainings: dict[tuple[int | None, str], Any] = {}

    def __call__(self, event: Event) -> None:
        match event:
            case RunPlanned(units):
                self._run = self.bars.add_task("all units", total=units)
            case UnitStarted(task, subject):
                label = f"{task} on {subject}"
                self._units[event.worker] = _MovingUnit(self.bars.add_task(label, total=None), label)
            case Progress(what, done, total):
                self._step(event, what, done, total)
            case TrainingStep():
                self._train(event)
            case UnitFinished(status=status):
                self._finish(event, status)
            case _:
                style = "yellow" if isinstance(event, Notice) and event.level == "warning" else None
                self._say(event, style)

    def _step(self, event: Event, what: str, done: int, total: int | None) -> None:
        unit = self._units.get(event.worker)
        if unit is None:
            return
        if what != unit.what:
            unit.what = what
            self.bars.reset(unit.bar, total=total, description=f"{unit.label}: {what}")
        self.bars.update(unit.bar, completed=done, total=total)

    def _train(self, event: TrainingStep) -> None:
        key = event.worker, event.label
        if key not in self._trainings:
            self._trainings[key] = self.bars.add_task(event.label, total=event.steps)
        if event.step < event.steps:
            self.bars.update(self._trainings[key], completed=event.step)
            if (now := self.clock()) - self._told >= PLAIN_SECONDS:  # a bar has no room for the figures
                self._told = now
                self._say(event, None)
        else:
            self.bars.remove_task(self._trainings.pop(key))
            self._say(event, STATUS_STYLE["ok"])

    def _finish(self, event: UnitFinished, status: str) -> None:
        if (unit := self._units.pop(event.worker, None)) is not None:
            self.bars.remove_task(unit.bar)
        if self._run is not None:
            self.bars.advance(self._run)
        self._say(event, STATUS_STYLE.get(status))

    def _say(self, event: Event, style: str | None) -> None:
        if line := describe(event):
            self.bars.console.print(line, style=style, markup=False, highlight=False, soft_wrap=True)


@dataclass(eq=False)
class _MovingUnit:
    """The moving line of a unit at work, and which of its steps the line shows."""

    bar: Any
    label: str
    what: str = ""
