"""What a run shows: plain lines in a log, JSON for machines, moving lines on a terminal, and no notice twice."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from typing import Any

import pytest

from saebench_meta import tables
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
from saebench_meta.plugins import Registry
from saebench_meta.progress import MovingLines, Once, PlainLines, describe, display, json_lines

RUN: list[Event] = [
    RunPlanned(2, 0, 1),
    Notice("warning", "documents are short"),
    UnitStarted("core", "wide", 1, 2),
    Progress("activations", 1, 4),
    Progress("activations", 2, 4),
    Notice("warning", "documents are short"),
    UnitFinished("core", "wide", "ok", 1.25),
    UnitFinished("novel", "wide", "skipped", 0.0, "it needs a reference"),
    RunFinished(1, 0, 0, 1, 1.5),
]


def played(events: list[Event], listener: Any) -> None:
    once = Once(listener)
    for event in events:
        once(event)


def test_a_log_has_one_line_an_event_and_a_notice_once() -> None:
    stream = io.StringIO()
    played(RUN, PlainLines(stream, clock=lambda: 0.0))
    assert stream.getvalue().splitlines() == [
        "planned: 2 units, 0 kept, 1 skipped",
        "warning: documents are short",
        "[1/2] core on wide: started",
        "  activations: 1/4",
        "core on wide: ok in 1.2 s",
        "novel on wide: skipped (it needs a reference)",
        "finished in 1.5 s: 1 ok, 0 kept, 0 failed, 1 skipped",
    ]


def test_a_log_goes_on_telling_of_long_work_now_and_then() -> None:
    now = [0.0]
    stream = io.StringIO()
    lines = PlainLines(stream, clock=lambda: now[0])
    for step in range(30):
        now[0] = float(step)
        lines(Progress("training", step, None))
    assert stream.getvalue().splitlines() == ["  training: 0", "  training: 10", "  training: 20"]


def test_json_is_one_object_a_line_with_every_field() -> None:
    stream = io.StringIO()
    played(RUN, json_lines(stream))
    found = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert [f["event"] for f in found].count("Notice") == 1
    assert found[-2] == {
        "event": "UnitFinished",
        "task": "novel",
        "subject": "wide",
        "status": "skipped",
        "seconds": 0.0,
        "reason": "it needs a reference",
        "record": None,
    }


def test_the_same_message_at_another_level_is_another_notice() -> None:
    heard: list[Event] = []
    played([Notice("info", "x"), Notice("warning", "x"), Notice("info", "x")], heard.append)
    assert heard == [Notice("info", "x"), Notice("warning", "x")]


def test_an_event_of_a_later_version_is_passed_over() -> None:
    class Later(Event):
        pass

    stream = io.StringIO()
    PlainLines(stream)(Later())
    assert describe(Later()) == stream.getvalue() == ""


def test_moving_lines_show_work_and_leave_one_line_a_unit() -> None:
    from rich.console import Console
    from rich.progress import Progress as Bars

    stream = io.StringIO()
    with Bars(console=Console(file=stream, force_terminal=True, width=100), auto_refresh=False) as bars:
        lines = MovingLines(bars)
        for event in RUN[:5]:
            lines(event)
        total, unit = bars.tasks
        assert (total.completed, total.total) == (0, 2)
        assert (unit.completed, unit.total, unit.description) == (2, 4, "core on wide: activations")
        for event in RUN[6:]:
            lines(event)
        assert [t.completed for t in bars.tasks] == [2]
    assert "core on wide: ok in 1.2 s" in stream.getvalue()


def by_two(events: list[Event]) -> list[Event]:
    """The same of every unit in two processes at once, each event of the first followed by that of the second."""
    return [replace(e, worker=worker) for e in events for worker in (1, 2)]


def test_several_processes_have_a_moving_line_each() -> None:
    from rich.console import Console
    from rich.progress import Progress as Bars

    with Bars(console=Console(file=io.StringIO(), force_terminal=True, width=100), auto_refresh=False) as bars:
        lines = MovingLines(bars)
        lines(RUN[0])
        for event in by_two([UnitStarted("core", "wide", 1, 2), Progress("activations", 1, 4), step(100), step(200)]):
            lines(event)
        lines(Progress("codes", 3, 4, worker=2))
        shown = {t.description: t.completed for t in bars.tasks}
        assert len(bars.tasks) == 5 and shown["core on wide: activations"] == 1 and shown["core on wide: codes"] == 3
        lines(UnitFinished("core", "wide", "ok", 1.0, worker=1))
        assert "core on wide: codes" in {t.description for t in bars.tasks} and len(bars.tasks) == 4


def test_in_a_log_each_process_is_told_of_by_its_number() -> None:
    stream = io.StringIO()
    lines = PlainLines(stream, clock=lambda: 0.0)
    for event in by_two([*RUN[2:5], Progress("codes", 1, 2), RUN[6]]):
        lines(event)
    assert stream.getvalue().splitlines()[::2] == [
        "(1) [1/2] core on wide: started", "(1)   activations: 1/4", "(1)   codes: 1/2", "(1) core on wide: ok in 1.2 s"
    ]  # fmt: skip
    assert [line[:3] for line in stream.getvalue().splitlines()] == ["(1)", "(2)"] * 4


def test_json_names_the_process_only_where_there_are_several() -> None:
    assert "worker" not in RUN[2].to_json() and replace(RUN[2], worker=2).to_json()["worker"] == 2


def test_brackets_in_a_message_are_no_markup() -> None:
    from rich.console import Console
    from rich.progress import Progress as Bars

    stream = io.StringIO()
    with Bars(console=Console(file=stream, width=100), auto_refresh=False) as bars:
        MovingLines(bars)(Notice("warning", "field [bold]x[/nothing] is odd"))
    assert "[bold]x[/nothing]" in stream.getvalue()


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_output_is_plain_without_a_terminal_and_where_the_user_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    assert tables.is_plain(io.StringIO())
    assert not tables.is_plain(Terminal())
    monkeypatch.setenv("NO_COLOR", "1")
    assert tables.is_plain(Terminal())


@pytest.mark.parametrize("as_json", [True, False])
def test_nothing_with_escape_sequences_reaches_a_pipe(as_json: bool, capsys: pytest.CaptureFixture[str]) -> None:
    registry = Registry()
    with display(registry, as_json=as_json):
        for event in RUN:
            registry.emit(event)
    registry.emit(RunFinished(9, 9, 9, 9, 9.0))
    out, err = capsys.readouterr()
    assert "\x1b" not in out + err
    lines = (out if as_json else err).splitlines()
    assert (err if as_json else out) == ""
    assert len(lines) == (8 if as_json else 7)
    assert all(json.loads(line)["event"] for line in lines) if as_json else lines[0].startswith("planned")


def step(number: int, fvu: float | None = 0.25) -> TrainingStep:
    return TrainingStep("topk-8-k2-s0", number, 300, 0.5, fvu, 2.0, 0.125, 10_000.0)


def test_a_training_is_a_bar_with_a_line_of_figures_now_and_then() -> None:
    from rich.console import Console
    from rich.progress import Progress as Bars

    stream, now = io.StringIO(), [0.0]
    with Bars(console=Console(file=stream, force_terminal=True, width=120), auto_refresh=False) as bars:
        lines = MovingLines(bars, clock=lambda: now[0])
        lines(step(100))
        assert [(t.description, t.completed, t.total) for t in bars.tasks] == [("topk-8-k2-s0", 100, 300)]
        assert "FVU" not in stream.getvalue()
        now[0] = 11.0
        lines(step(200, None))
        assert "step 200/300, loss 0.5, FVU -, L0 2.0, dead 12.5%, 10,000 tokens/s" in stream.getvalue()
        lines(step(300))
        assert bars.tasks == [] and "step 300/300" in stream.getvalue()


def test_in_a_log_the_last_step_of_a_training_is_always_told() -> None:
    stream, now = io.StringIO(), [0.0]
    lines = PlainLines(stream, clock=lambda: now[0])
    for number in (100, 200, 300):
        lines(step(number))
    assert [line.split(",")[0].split()[-1] for line in stream.getvalue().splitlines()] == ["100/300", "300/300"]
