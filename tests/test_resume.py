"""Real runs in processes of their own: rerun, killed, two at a time. On the built-in world, with the network off."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from saebench_meta.plugins import registry
from saebench_meta.record import Record
from saebench_meta.store import find_records

SAE = "atlas:batchtopk-256"
pytestmark = pytest.mark.timeout(1800)
LONGEST_SECONDS = 1500  # against a run that hangs; on an idle machine the longest takes about one minute
TASKS = "core,novel_latents,broken_latents"  # a pair, one that trains, and one that runs the model
KILLS = int(os.environ.get("SAEBENCH_TEST_KILLS", "3"))
SHORTER = ("-P", "broken_latents.worlds=toy:absorption-4")

RUNNER = """
import socket, sys
def refuse(*args, **kwargs):
    raise OSError("the network is off in this test")
socket.socket.connect = refuse
from saebench_meta.cli import saebench
code = 0
try:
    saebench(sys.argv[1:], prog_name="saebench")
except SystemExit as e:
    code = e.code or 0
heavy = sorted({"torch", "numpy", "transformer_lens", "transformers", "datasets", "pandas"} & set(sys.modules))
print("IMPORTED", *heavy, file=sys.stderr)
sys.exit(code)
"""


def start(out: Path, cache: Path, *more: str, tasks: str = TASKS) -> subprocess.Popen[str]:
    size = ["--profile", "quick", *(["--tokens", "2048"] if tasks == TASKS else [])]
    arguments = ["run", "--sae", SAE, "--tasks", tasks, "-o", str(out), *size, "--json", *SHORTER, *more]
    return subprocess.Popen(
        [sys.executable, "-c", RUNNER, *arguments],
        env={**os.environ, "SAEBENCH_CACHE_DIR": str(cache)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen[str]) -> tuple[list[dict[str, object]], str]:
    out, err = process.communicate(timeout=LONGEST_SECONDS)
    assert process.returncode == 0, err
    return [json.loads(line) for line in out.splitlines()], err


def records(out: Path) -> dict[str, Record]:
    return {r.task.name: r for _, r in find_records(out)}


def numbers(found: dict[str, Record]) -> dict[str, object]:
    return {name: r.metrics for name, r in found.items()}


@dataclass(frozen=True)
class Undisturbed:
    """One run that nobody disturbed: where it wrote, what it wrote to standard error, and how long it took."""

    out: Path
    cache: Path
    records: dict[str, Record]
    err: str
    milestones: list[str]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Undisturbed:
    out, cache = tmp_path_factory.mktemp("out"), tmp_path_factory.mktemp("cache")
    events, err = finish(start(out, cache))
    return Undisturbed(out, cache, records(out), err, list(dict.fromkeys(map(milestone, events))))


def milestone(event: dict[str, object]) -> str:
    """What a run has come to, whatever the time it took: the same in every run of the same command."""
    return f"{event['event']} {event.get('task', '')} {event.get('what', '')}"


def test_all_tasks_run_on_the_built_in_world_with_the_network_off(tmp_path: Path) -> None:
    finish(start(tmp_path / "out", tmp_path / "cache", tasks="all"))
    found = records(tmp_path / "out")
    alone = {name for name, task in registry().tasks.items() if task.subject != "family"}
    assert set(found) == alone  # a task of families has nothing to run on
    assert {r.status for r in found.values()} == {"ok"}


def test_what_a_run_leaves(undisturbed: Undisturbed) -> None:
    found = undisturbed.records
    assert set(found) == set(TASKS.split(","))
    assert {r.status for r in found.values()} == {"ok"}
    for m in found["core"].metrics.values():
        assert m.value is not None and (m.method == "census") == (m.ci_low is None)
        assert set(m.controls) == {"random", "permuted_rows", "oracle"}
    assert found["core"].metrics["explained_variance"].order is not None
    assert found["core"].metrics["explained_variance"].order.holds is True
    assert "torch" in undisturbed.err.split("IMPORTED")[1]


def test_the_same_command_again_imports_no_torch_and_computes_nothing(undisturbed: Undisturbed) -> None:
    stamps = {p: p.stat().st_mtime_ns for p in undisturbed.out.rglob("record.json")}
    events, err = finish(start(undisturbed.out, undisturbed.cache))
    assert {e["status"] for e in events if e["event"] == "UnitFinished"} == {"kept"}
    assert err.split("IMPORTED")[1].split() == []
    assert {p: p.stat().st_mtime_ns for p in undisturbed.out.rglob("record.json")} == stamps
    assert records(undisturbed.out) == undisturbed.records


def test_numbers_do_not_depend_on_whether_the_cache_was_warm(undisturbed: Undisturbed, tmp_path: Path) -> None:
    entries = list((undisturbed.cache / "activations").iterdir())
    assert len(entries) == 1
    finish(start(tmp_path / "warm", undisturbed.cache))
    assert list((undisturbed.cache / "activations").iterdir()) == entries
    finish(start(tmp_path / "none", tmp_path / "unused", "--no-cache"))
    assert numbers(records(tmp_path / "warm")) == numbers(undisturbed.records)
    assert numbers(records(tmp_path / "none")) == numbers(undisturbed.records)


def kill_at(process: subprocess.Popen[str], target: str, delay: float) -> bool:
    """SIGKILL a run a moment after it comes to a milestone; False if it ended before, since less was left to do."""
    assert process.stdout is not None
    for line in process.stdout:
        if milestone(json.loads(line)) == target:
            time.sleep(delay)
            process.send_signal(signal.SIGKILL)
            break
    process.communicate()
    return process.returncode == -signal.SIGKILL


def test_killed_runs_leave_no_torn_file_and_lose_no_record(undisturbed: Undisturbed, tmp_path: Path) -> None:
    """Kills are spread over what a run does; what is on disk after each is whole, and never becomes less."""
    out, cache = tmp_path / "out", tmp_path / "cache"
    done: dict[str, Record] = {}
    targets = undisturbed.milestones[:-1]  # after the last one the process is only leaving
    killed = 0
    for attempt in range(4 * KILLS):
        target = targets[int((killed + 0.5) / KILLS * len(targets))]
        killed += kill_at(start(out, cache), target, 0.013 * (attempt % 5))
        now = records(out) if out.exists() else {}
        assert all(now[name] == record for name, record in done.items())
        done = now
        if killed == KILLS:
            break
        if set(done) == set(undisturbed.records):
            shutil.rmtree(out)
            done = {}
    assert killed == KILLS
    finish(start(out, cache))
    assert numbers(records(out)) == numbers(undisturbed.records)
    leftovers = [p for p in out.rglob(".*") if ".new-" in p.name or ".old-" in p.name or p.suffix == ".tmp"]
    assert leftovers == []


def test_two_processes_share_a_folder_and_a_cache(undisturbed: Undisturbed, tmp_path: Path) -> None:
    both = [start(tmp_path / "out", tmp_path / "cache") for _ in range(2)]
    events = [event for process in both for event in finish(process)[0]]
    statuses = [e["status"] for e in events if e["event"] == "UnitFinished"]
    assert len([p for p in (tmp_path / "cache" / "activations").iterdir() if not p.name.startswith(".")]) == 1
    assert set(statuses) <= {"ok", "kept"} and statuses.count("ok") == len(undisturbed.records)
    assert numbers(records(tmp_path / "out")) == numbers(undisturbed.records)


def test_a_record_leads_back_to_itself(undisturbed: Undisturbed) -> None:
    for folder, record in find_records(undisturbed.out):
        command = ["run", "--from-record", str(folder), "-o", str(undisturbed.out), "--dry-run", "--json"]
        done = subprocess.run([sys.executable, "-c", RUNNER, *command], capture_output=True, text=True, check=True)
        planned = [json.loads(line) for line in done.stdout.splitlines()]
        assert [(p["id"], p["status"]) for p in planned] == [(record.id, "kept")]
