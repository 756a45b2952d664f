"""Several processes share the units of a run (`--jobs`): who gets what, the same results, and processes that die."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import toy_plugin

from saebench_meta.errors import SaebenchError
from saebench_meta.events import Event, UnitFinished, UnitStarted
from saebench_meta.plan import make_plan
from saebench_meta.plugins import Registry
from saebench_meta.runner import RunResult, execute
from saebench_meta.settings import Settings
from saebench_meta.workers import JUDGED, Queue, device_of, threads_of

DEADLY = """
import os, signal, time
from saebench_meta.events import Progress
from saebench_meta.stats import census
from saebench_meta.task import Metric, Output, task

HEARD = []

from saebench_meta.hookspecs import hookimpl

saebench_api = 1

@hookimpl
def saebench_event(event):
    HEARD.append(event)

def width(name, **how):
    return task(name, version=1, metrics=[Metric("width", better="neither", unit="latents")], controls=(), **how)

@width("deadly")
def deadly(sae, ctx):
    \"\"\"Kills its process, unless the SAE is the smallest.\"\"\"
    if sae.d_sae > 8:
        os.kill(os.getpid(), signal.SIGKILL)
    return Output(estimates={"width": census(sae.d_sae, sae.d_sae)})

@width("judged", needs=["judge"])
def judged(sae, ctx):
    \"\"\"Kills the process that holds the purse.\"\"\"
    os.kill(os.getpid(), signal.SIGKILL)

@width("telling")
def telling(sae, ctx):
    \"\"\"Says in which process it ran.\"\"\"
    list(ctx.track(range(2), f"pid {os.getpid()}", 2))
    if HEARD:
        raise RuntimeError("a plugin was told of an event in the process that runs the units")
    return Output(estimates={"width": census(sae.d_sae, sae.d_sae)})

@width("slow")
def slow(sae, ctx):
    \"\"\"Tells of itself for a minute.\"\"\"
    for _ in ctx.track(range(600), f"pid {os.getpid()}", 600):
        time.sleep(0.1)
    return Output(estimates={"width": census(sae.d_sae, sae.d_sae)})

@width("writing")
def writing(sae, ctx):
    \"\"\"Cannot write its record: a file is where the folder should be.\"\"\"
    ctx._unit.place.parent.parent.mkdir(parents=True, exist_ok=True)
    ctx._unit.place.parent.write_text("in the way")
    return Output(estimates={"width": census(sae.d_sae, sae.d_sae)})

@hookimpl
def saebench_tasks():
    return [deadly, judged, slow, telling, writing]
"""


def unit(task: str, subject: str, *, kind: str = "sae", part_of: str | None = None, judge: bool = False) -> Any:
    return SimpleNamespace(
        task=SimpleNamespace(name=task, part_of=part_of),
        subject=SimpleNamespace(kind=kind, name=subject),
        judge=object() if judge else None,
    )


def taken(queue: Queue, group: str | None) -> tuple[str, str, str] | None:
    found = queue.next(group)
    return None if found is None else (found[0], found[1].task.name, found[1].subject.name)


def test_a_process_stays_with_a_task_and_its_parts_and_the_judges_units_come_first() -> None:
    units = [unit("core", "a"), unit("tpp", "a"), unit("ask", "a", judge=True), unit("core", "b")]
    units += [unit("tpp_family", "a+b", kind="family", part_of="tpp"), unit("other", "a", judge=True)]
    queue = Queue(units)
    assert taken(queue, None) == (JUDGED, "ask", "a")
    assert taken(queue, None) == ("core", "core", "a")
    assert taken(queue, JUDGED) == (JUDGED, "other", "a")
    assert taken(queue, "core") == ("core", "core", "b")
    assert taken(queue, "core") == ("tpp", "tpp", "a")
    assert taken(queue, "tpp") == ("tpp", "tpp_family", "a+b")
    assert taken(queue, "tpp") is None and queue.empty()


def test_a_process_without_work_takes_over_the_last_unit_on_one_sae() -> None:
    names = "abcd"
    queue = Queue([*(unit("core", n) for n in names), unit("core_family", "all", kind="family", part_of="core"),
                   *(unit("ask", n, judge=True) for n in names)])  # fmt: skip
    assert taken(queue, None) == (JUDGED, "ask", "a") and taken(queue, None) == ("core", "core", "a")
    assert taken(queue, None) == ("core", "core", "d")  # a third process; nobody helps with the judge's
    assert [taken(queue, "core") for _ in range(3)] == [
        ("core", "core", "b"), ("core", "core", "c"), ("core", "core_family", "all")
    ]  # fmt: skip
    assert taken(queue, None) is None and not queue.empty()
    assert taken(queue, JUDGED) == (JUDGED, "ask", "b")


def test_one_task_on_two_saes_is_work_for_two_processes() -> None:
    queue = Queue([unit("core", "a"), unit("core", "b")])
    assert [taken(queue, None) for _ in range(2)] == [("core", "core", "a"), ("core", "core", "b")]


def test_a_familys_unit_is_left_to_the_process_that_did_its_members() -> None:
    queue = Queue([unit("core", "a"), unit("core_family", "all", kind="family", part_of="core")])
    assert taken(queue, None) == ("core", "core", "a")
    assert taken(queue, None) is None
    assert taken(queue, "core") == ("core", "core_family", "all")


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Registry]:
    """The toy plugin and the deadly one, as packages that other processes find too."""
    (tmp_path / "deadly_plugin.py").write_text(DEADLY)
    for name, module in (("toy", "toy_plugin"), ("deadly", "deadly_plugin")):
        info = tmp_path / f"{name}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[saebench_meta]\n{name} = {module}\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    from saebench_meta import plugins

    plugins.registry.cache_clear()
    yield plugins.registry()
    plugins.registry.cache_clear()


def go(registry: Registry, out: Path, *tasks: str, **fields: Any) -> tuple[RunResult, list[Event]]:
    saes = ("toy:x-8", "toy:x-16", "toy:x-32")
    settings = Settings(**{"saes": saes, "tasks": tasks, "out": out, "jobs": 2, **fields})
    events: list[Event] = []
    remove = registry.listen(events.append)
    try:
        return execute(registry, make_plan(registry, settings), settings), events
    finally:
        remove()


def test_the_units_are_shared_and_every_event_names_its_process(installed: Registry, tmp_path: Path) -> None:
    result, events = go(installed, tmp_path / "out", "telling", "toy_width")
    assert [r.status for r in result.results] == ["ok"] * 6
    assert [r.unit.label for r in result.results] == [f"{t} on toy-x-{w}" for w in (8, 16, 32)
                                                      for t in ("telling", "toy_width")]  # fmt: skip
    assert all(r.record is not None and r.folder is not None for r in result.results)
    started, ended = ([e for e in events if isinstance(e, kind)] for kind in (UnitStarted, UnitFinished))
    assert sorted(e.index for e in started) == list(range(1, 7)) and len(ended) == 6
    assert {e.worker for e in started} == {1, 2} == {e.worker for e in ended}
    said = [json.dumps(e.to_json()) for e in events if type(e).__name__ == "Progress"]
    assert any("pid" in line and '"worker": ' in line for line in said)
    again, events = go(installed, tmp_path / "out", "telling", "toy_width")
    assert [r.status for r in again.results] == ["kept"] * 6 and {e.worker for e in events} == {None}
    assert [r.record for r in again.results] == [r.record for r in result.results]


def test_a_process_that_dies_takes_only_its_unit_with_it(installed: Registry, tmp_path: Path) -> None:
    result, _ = go(installed, tmp_path / "out", "deadly", "telling", "toy_width")
    ends = {r.unit.label: (r.status, r.reason) for r in result.results}
    assert len(ends) == 9
    for width in (16, 32):
        status, reason = ends.pop(f"deadly on toy-x-{width}")
        assert status == "failed" and reason is not None and "SIGKILL" in reason and "fewer --jobs" in reason
    assert set(ends.values()) == {("ok", None)}


@pytest.mark.parametrize(("max_cost", "asked"), [(1.0, 1), (None, 3)])
def test_a_purse_that_is_lost_is_not_filled_anew(
    installed: Registry, tmp_path: Path, max_cost: float | None, asked: int
) -> None:
    result, events = go(installed, tmp_path / "out", "judged", "toy_width", judge="lexical", max_cost=max_cost)
    ends = {r.unit.label: (r.status, str(r.reason)) for r in result.results}
    lost = [reason for label, (status, reason) in ends.items() if label.startswith("judged") and status == "failed"]
    assert len(lost) == 3 and sum("SIGKILL" in reason for reason in lost) == asked
    assert sum("--max-cost" in reason for reason in lost) == 3 - asked
    assert sum(isinstance(e, UnitStarted) and e.task == "judged" for e in events) == asked
    assert sum(status == "ok" for status, _ in ends.values()) == 3


def test_after_a_failure_nothing_new_is_begun_where_the_user_says_so(installed: Registry, tmp_path: Path) -> None:
    result, _ = go(installed, tmp_path / "out", "toy_failing", fail_fast=True)
    assert 1 <= len(result.results) <= 2 and {r.status for r in result.results} == {"failed"}
    assert {r.reason for r in result.results} == {"RuntimeError: it broke"}


def test_what_ends_a_run_in_one_process_ends_it_in_several(installed: Registry, tmp_path: Path) -> None:
    with pytest.raises(SaebenchError, match=r"the record of writing on toy-x-.* cannot be written"):
        go(installed, tmp_path / "out", "writing", "toy_width")


RUN = """
import sys
from saebench_meta.cli import saebench

if __name__ == "__main__":
    saebench(sys.argv[1:], prog_name="saebench")
"""


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return "zombie" not in Path(f"/proc/{pid}/status").read_text(errors="replace")


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="looks for processes in /proc")
def test_the_others_end_with_the_first_process_and_record_no_failure(installed: Registry, tmp_path: Path) -> None:
    (tmp_path / "run.py").write_text(RUN)
    command = [sys.executable, "run.py", "run", "--sae", "toy:x-8", "--sae", "toy:x-16", "--tasks", "slow,toy_width",
               "--jobs", "2", "--json", "-o", "out"]  # fmt: skip
    path = os.pathsep.join([str(tmp_path), str(Path(__file__).parent)])
    environment = {**os.environ, "PYTHONPATH": path}
    first = subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, text=True)
    assert first.stdout is not None
    pid = next(int(event["what"].split()[1]) for event in map(json.loads, first.stdout) if "pid" in str(event))
    assert pid != first.pid and alive(pid)
    first.kill()
    first.wait()
    first.stdout.close()
    until = time.monotonic() + 60
    while alive(pid):
        assert time.monotonic() < until, "the process goes on alone"
        time.sleep(0.1)
    assert not list((tmp_path / "out").glob("*/slow@1/*/record.json"))


@pytest.mark.parametrize(
    ("threads", "given", "cores", "expected"),
    [(None, None, 8, 4), (None, "6", 8, 3), (None, "1", 8, 1), (None, "6,2", 8, 4), (5, "1", 8, 5)],
)
def test_each_process_has_its_share_of_the_threads(
    threads: int | None, given: str | None, cores: int, expected: int
) -> None:
    assert threads_of(Settings(threads=threads, jobs=2), given, cores) == expected


@pytest.mark.parametrize(
    ("device", "device_map", "gpus", "expected"),
    [
        ("auto", None, 0, ["auto"] * 3), ("cuda", None, 1, ["cuda"] * 3), ("cpu", None, 2, ["cpu"] * 3),
        ("auto", None, 2, ["cuda:0", "cuda:1", "cuda:0"]), ("cuda:1", None, 2, ["cuda:1"] * 3),
        ("auto", "balanced", 2, ["auto"] * 3),
    ],
)  # fmt: skip
def test_several_gpus_are_taken_in_turn(device: str, device_map: Any, gpus: int, expected: list[str]) -> None:
    settings = Settings(device=device, device_map=device_map)
    assert [device_of(settings, number, gpus) for number in (1, 2, 3)] == expected


def test_a_plugin_of_this_process_alone_is_told_of(tmp_path: Path) -> None:
    here = Registry()
    here.register(toy_plugin)
    with pytest.raises(SaebenchError, match=r"cannot plan this run: .*Install plugins as packages"):
        go(here, tmp_path / "out", "toy_width")


def test_settings_refuse_no_process() -> None:
    with pytest.raises(SaebenchError, match="jobs is 0"):
        Settings(jobs=0)


def test_two_processes_give_what_one_gives(tmp_path: Path) -> None:
    from saebench_meta.plugins import registry

    values = []
    for jobs in (1, 2):
        settings = Settings(
            family=("atlas:batchtopk-128", "atlas:batchtopk-256"),
            tasks=("core", "novel_latents"),
            profile="quick",
            tokens=2048,
            jobs=jobs,
            out=tmp_path / str(jobs),
            cache_dir=tmp_path / f"cache-{jobs}",
        )
        result = execute(registry(), make_plan(registry(), settings), settings)
        assert result.count("ok") == len(result.results) == 4
        values.append([(r.unit.place.id, r.record.metrics, r.record.notes) for r in result.results if r.record])
    assert values[0] == values[1]
