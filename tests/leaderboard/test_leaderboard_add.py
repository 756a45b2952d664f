"""Adding records: copied byte for byte to their place, once; what is there is never changed, what is unfit is said."""

from __future__ import annotations

from pathlib import Path

import board_records as samples
import pytest

from saebench_meta.errors import SaebenchError
from saebench_meta.leaderboard.add import Added, add
from saebench_meta.leaderboard.results import DOCUMENTS, RECORD, place
from saebench_meta.leaderboard.rules import Bench
from saebench_meta.leaderboard.validate import check_results
from saebench_meta.plugins import registry
from saebench_meta.record import Record


def bench(*allow: str) -> Bench:
    return Bench(registry(), frozenset(allow))


def run_folder(run: Path, made: tuple[Record, bytes], *, extra: str = "tables/latents.csv") -> Path:
    """A record as a run leaves it, with files that the leaderboard does not keep."""
    record, data = made
    task = f"{record.task.name}@{record.task.version}"
    folder = samples.write(run / record.subject.name / task / record.id[:12], record.to_json().encode(), data)
    (folder / extra).parent.mkdir(parents=True, exist_ok=True)
    (folder / extra).write_text("a,b\n")
    return folder


def files(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_a_run_is_copied_as_it_is_without_its_tables(tmp_path: Path) -> None:
    made = samples.make("a"), samples.make("b", 0.6, against="a")
    folders = [run_folder(tmp_path / "out", one) for one in made]
    done = add(tmp_path / "out", tmp_path / "results", bench())
    assert done.added == [place(record).as_posix() for record, _ in made] and not done.refused
    expected = {
        f"{place(record)}/{name}": (folder / name).read_bytes()
        for (record, _), folder in zip(made, folders, strict=True)
        for name in (RECORD, DOCUMENTS)
    }
    assert files(tmp_path / "results") == expected
    assert not check_results(tmp_path / "results", bench()).problems


def test_the_same_again_changes_nothing(tmp_path: Path) -> None:
    run_folder(tmp_path / "out", samples.make("a"))
    first = add(tmp_path / "out", tmp_path / "results", bench())
    before = {p: (p.stat().st_mtime_ns, p.stat().st_ino) for p in (tmp_path / "results").rglob("*")}
    again = add(tmp_path / "out", tmp_path / "results", bench())
    assert again == Added(kept=first.added)
    assert before == {p: (p.stat().st_mtime_ns, p.stat().st_ino) for p in (tmp_path / "results").rglob("*")}


def test_anothers_record_is_never_changed(tmp_path: Path) -> None:
    mine, data = samples.make("a")
    samples.put(tmp_path / "results", (mine, data))
    before = files(tmp_path / "results")
    later = mine.model_copy(update={"run": mine.run.model_copy(update={"seconds": 9.0})})
    folder = run_folder(tmp_path / "out", (later, data))
    done = add(tmp_path / "out", tmp_path / "results", bench())
    (refused,) = done.refused
    assert str(folder) in str(refused) and str(tmp_path / "results" / place(mine)) in str(refused)
    assert files(tmp_path / "results") == before


def test_one_record_can_be_added_by_its_folder_or_its_file(tmp_path: Path) -> None:
    folder = run_folder(tmp_path / "out", samples.make("a"))
    run_folder(tmp_path / "out", samples.make("b"))
    assert len(add(folder, tmp_path / "one", bench()).added) == 1
    assert add(folder / RECORD, tmp_path / "two", bench()).added == add(folder, tmp_path / "three", bench()).added


def test_families_and_unfinished_tasks_are_left_out_and_said(tmp_path: Path) -> None:
    record, data = samples.make("a")
    members = [s.model_copy(update={"role": "member"}) for s in record.subject.saes]
    family = record.subject.model_copy(update={"kind": "family", "saes": members})
    run_folder(tmp_path / "out", (record.model_copy(update={"subject": family}), data))
    failed = {"status": "failed", "reason": "out of memory", "metrics": {}, "artifacts": [], "id": samples.sha("f")}
    run_folder(tmp_path / "out", (record.model_copy(update=failed), data))
    done = add(tmp_path / "out", tmp_path / "results", bench())
    assert not done.added and not done.refused
    assert sorted(why.partition(":")[0] for why in done.left_out.values()) == [
        "it is of a family of SAEs, whose numbers are of no single one", "the task failed",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("settings", "word"), [({"profile": "quick"}, "quick"), ({"limit": 5, "partial": True}, "partial")]
)
def test_what_a_leaderboard_does_not_take_is_refused_unless_let_through(
    settings: dict[str, object], word: str, tmp_path: Path
) -> None:
    run_folder(tmp_path / "out", samples.make("a", settings=settings))
    done = add(tmp_path / "out", tmp_path / "results", bench())
    assert done.refused and not (tmp_path / "results").exists()
    assert len(add(tmp_path / "out", tmp_path / "results", bench(word)).added) == 1


def test_leftovers_of_a_killed_run_are_passed_over(tmp_path: Path) -> None:
    folder = run_folder(tmp_path / "out", samples.make("a"))
    (folder.parent / ".x.new-1234").mkdir()
    (folder.parent / ".x.new-1234" / RECORD).write_bytes(b"{")
    assert len(add(tmp_path / "out", tmp_path / "results", bench()).added) == 1


def test_a_folder_without_records_is_an_error_that_says_what_to_give(tmp_path: Path) -> None:
    with pytest.raises(SaebenchError, match="Give the folder a run wrote to"):
        add(tmp_path, tmp_path / "results", bench())


def test_results_that_cannot_be_written_are_an_error(tmp_path: Path) -> None:
    run_folder(tmp_path / "out", samples.make("a"))
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(SaebenchError, match="cannot be written"):
        add(tmp_path / "out", tmp_path / "file" / "results", bench())
