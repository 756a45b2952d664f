"""Badges: every metric of a rerun must agree, over the same data, asked for in the same way."""

from __future__ import annotations

import shutil
from pathlib import Path

import board_records as samples
import pytest

from saebench_meta.compare import Comparison
from saebench_meta.errors import SaebenchError
from saebench_meta.leaderboard import reproduce as module
from saebench_meta.leaderboard.add import add
from saebench_meta.leaderboard.assemble import board
from saebench_meta.leaderboard.reproduce import LOADERS, agreement, check_openable, reproduce
from saebench_meta.leaderboard.results import REPRODUCED, place
from saebench_meta.leaderboard.rules import Bench
from saebench_meta.leaderboard.validate import check_results
from saebench_meta.plugins import registry
from saebench_meta.record import MetricResult, Record

BENCH = Bench(registry())


def rerun_gives(made: tuple[Record, bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the rerun write this record instead of running anything."""

    def run(file: Path, work: Path) -> None:
        samples.write(work / "sae" / "task" / "id", made[0].to_json().encode(), made[1])

    monkeypatch.setattr(module, "_run", run)


def changed(made: tuple[Record, bytes], **fields: object) -> tuple[Record, bytes]:
    return made[0].model_copy(update=fields), made[1]


def test_a_rerun_that_agrees_gives_a_badge(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = samples.make("a")
    folder = samples.put(tmp_path / "results", made)
    rerun_gives(changed(made, run=made[0].run.model_copy(update={"seconds": 7.0})), monkeypatch)
    rerun = reproduce(folder, tmp_path / "work", BENCH)
    assert set(rerun.agrees.values()) == {"equal"} and not rerun.differs
    checks = check_results(tmp_path / "results", BENCH)
    assert not checks.problems and checks.folders[0].reproduced is not None
    (row, _) = board(tmp_path / "results").rows
    assert row.badge == "reproduced"
    assert all(cell.badge == "reproduced" for cell in row.cells.values())


def test_one_metric_that_differs_gives_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = samples.make("a")
    folder = samples.put(tmp_path / "results", made)
    other = changed(samples.make("a", 0.7), id=made[0].id)
    rerun_gives(other, monkeypatch)
    rerun = reproduce(folder, tmp_path / "work", BENCH)
    assert set(rerun.differs) == {"error", "gain"} and rerun.agrees == {"share": "equal"}
    assert not (folder / REPRODUCED).exists()


def test_a_rerun_that_was_asked_something_else_gives_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = samples.make("a")
    folder = samples.put(tmp_path / "results", made)
    rerun_gives(changed(made, id=samples.sha("other")), monkeypatch)
    with pytest.raises(SaebenchError, match="another id"):
        reproduce(folder, tmp_path / "work", BENCH)


def test_a_checkout_with_changes_gives_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = samples.make("a")
    folder = samples.put(tmp_path / "results", made)
    rerun_gives(changed(made, versions=made[0].versions.model_copy(update={"dirty": True})), monkeypatch)
    with pytest.raises(SaebenchError, match="in no commit"):
        reproduce(folder, tmp_path / "work", BENCH)
    assert not (folder / REPRODUCED).exists()
    shutil.rmtree(tmp_path / "work")
    reproduce(folder, tmp_path / "work", BENCH, stamp=False)
    assert not (folder / REPRODUCED).exists()


def test_what_does_not_validate_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = samples.put(tmp_path / "results", samples.make("a", settings={"profile": "quick"}))
    monkeypatch.setattr(module, "_run", lambda *_: pytest.fail("it was run"))
    with pytest.raises(SaebenchError, match="does not validate"):
        reproduce(folder, tmp_path / "work", BENCH)


def test_only_loaders_that_are_named_open_anything(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record, _ = samples.make("a")
    check_openable(record, frozenset(LOADERS))
    with pytest.raises(SaebenchError, match="--allow-loaders"):
        check_openable(record, frozenset({"saelens"}))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a").write_text("a file of the SAE's name")
    with pytest.raises(SaebenchError, match="is a file or folder here"):
        check_openable(record, frozenset(LOADERS))
    assert "native" not in LOADERS  # its references are files on somebody's machine


@pytest.mark.parametrize(
    ("value", "again", "half", "verdict", "expected"),
    [
        (0.5, 0.5, 0.1, "untested", "equal"),
        (0.5, 0.5000004, 0.0, "untested", "equal"),
        (0.5, 0.501, 0.1, "untested", "within the noise"),  # a hundredth of the half-width
        (0.5, 0.52, 0.1, "untested", None),
        (0.5, 0.52, 0.1, "tie", "within the noise"),
        (0.5, 0.6, 0.0, "untested", None),
        (None, None, 0.0, "untested", "without a value"),
        (None, 0.5, 0.0, "untested", None),
        (0.5, None, 0.0, "untested", None),
    ],
)
def test_agreement(value: float | None, again: float | None, half: float, verdict: str, expected: str | None) -> None:
    def metric(v: float | None) -> MetricResult:
        limits = {} if v is None or not half else {"ci_low": v - half, "ci_high": v + half, "level": 0.95}
        return MetricResult(value=v, n=5, n_unit="documents", method="bootstrap", better="higher", unit="1", **limits)

    assert agreement(Comparison("m", metric(value), metric(again), None, None, verdict)) == expected  # type: ignore[arg-type]


@pytest.mark.slow
def test_a_real_record_is_run_again(tmp_path: Path) -> None:
    import subprocess
    import sys

    command = [
        "run",
        "--sae",
        "atlas:batchtopk-128",
        "--tasks",
        "core",
        "--tokens",
        "1024",
        "-o",
        str(tmp_path / "out"),
    ]
    subprocess.run([sys.executable, "-m", "saebench_meta.cli", *command], check=True, capture_output=True)
    bench = Bench(registry(), frozenset({"dirty"}))
    (where,) = add(tmp_path / "out", tmp_path / "results", bench).added
    rerun = reproduce(tmp_path / "results" / where, tmp_path / "work", bench)
    assert rerun.agrees.keys() == rerun.record.metrics.keys() and not rerun.differs
    assert place(rerun.record).as_posix() == where and (tmp_path / "results" / where / REPRODUCED).is_file()
