"""Records on disk: whole or absent, whatever happens, wherever it happens."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from pathlib import Path

import pytest
from record_factory import make_record

from saebench_meta import store
from saebench_meta.errors import BadFileError, SaebenchError
from saebench_meta.record import Record
from saebench_meta.store import Draft, Place, find_records, locked, put, read_valid

FORK = multiprocessing.get_context("fork")


def place(out: Path, identifier: str = "a" * 64) -> Place:
    return Place(out, "an/SAE: x", "core", 1, identifier)


def draft(text: str) -> Draft:
    made = Draft()
    made.add("tables/t.csv", f"a\n{text}\n".encode(), kind="table", title="t")
    made.add("documents.parquet", text.encode() * 100, kind="documents", title="d")
    made.add_file("figures/f.svg", b"<svg/>")
    return made


def write(where: Place, text: str) -> Path:
    files = draft(text)
    record = make_record(id=where.id, artifacts=files.artifacts, notes=[text])
    with locked(where):
        return put(where, record, files.files)


def test_a_record_is_read_back_as_written(tmp_path: Path) -> None:
    folder = write(place(tmp_path), "one")
    record = read_valid(folder, "a" * 64)
    assert record is not None and record.notes == ["one"]
    assert (folder / "tables/t.csv").read_text() == "a\none\n"
    assert folder.parent.parent.name == "an-SAE-x"


def test_a_second_write_replaces_the_first_as_a_whole(tmp_path: Path) -> None:
    write(place(tmp_path), "one")
    folder = write(place(tmp_path), "two")
    record = read_valid(folder)
    assert record is not None and record.notes == ["two"]
    assert [p.name for p in folder.parent.iterdir()] == [folder.name]


@pytest.mark.parametrize("damage", ["truncate", "missing", "flip", "id"])
def test_a_damaged_record_is_not_taken_for_whole(tmp_path: Path, damage: str) -> None:
    folder = write(place(tmp_path), "one")
    target = folder / "tables/t.csv"
    if damage == "truncate":
        (folder / "record.json").write_bytes((folder / "record.json").read_bytes()[:-20])
    elif damage == "missing":
        target.unlink()
    elif damage == "flip":
        target.write_text("a\nonf\n")
    assert read_valid(folder, "b" * 64 if damage == "id" else "a" * 64) is None


class Died(BaseException):
    """Stands for a process that stops: nothing in the product catches it."""


WRITE_POINTS = ("fsync", "rename", "replace", "mkdir", "open", "rmdir", "unlink")


def _run_until(where: Place, stop_at: int) -> int:
    """In a child: write 'two', and leave through `os._exit` at the stop_at-th write point; 0 when there was none."""
    seen = 0

    def counting(original):
        def wrapped(*args, **kwargs):
            nonlocal seen
            seen += 1
            if seen == stop_at:
                os._exit(77)
            return original(*args, **kwargs)

        return wrapped

    for name in WRITE_POINTS:
        setattr(os, name, counting(getattr(os, name)))
    write(where, "two")
    os._exit(0)


@pytest.mark.parametrize("existing", [False, True])
def test_a_crash_at_every_write_point_leaves_the_old_record_or_the_new(tmp_path: Path, existing: bool) -> None:
    points = 0
    for stop_at in range(1, 200):
        where = place(tmp_path / str(stop_at))
        if existing:
            write(where, "one")
        child = FORK.Process(target=_run_until, args=(where, stop_at))
        child.start()
        child.join()
        # What another process sees before any repair: a whole record or none, never a torn one.
        if where.folder.exists():
            assert read_valid(where.folder, where.id) is not None
        with locked(where):
            record = read_valid(where.folder, where.id)
        if existing:
            assert record is not None and record.notes in (["one"], ["two"])
        if child.exitcode == 0:
            assert record is not None and record.notes == ["two"]
            break
        points += 1
        write(where, "three")
        after = read_valid(where.folder, where.id)
        assert after is not None and after.notes == ["three"]
        assert [p.name for p in where.parent.iterdir()] == [where.folder.name]
    else:
        pytest.fail("never ran to its end")
    assert points >= 15


def _write_forever(where: Place) -> None:
    n = 0
    while True:
        write(where, f"round {n}")
        n += 1


@pytest.mark.parametrize("kill", range(3))
def test_a_killed_writer_leaves_a_whole_record(tmp_path: Path, kill: int) -> None:
    where = place(tmp_path)
    write(where, "before")
    child = FORK.Process(target=_write_forever, args=(where,))
    child.start()
    time.sleep(0.05 + 0.037 * kill)
    assert child.pid is not None
    os.kill(child.pid, signal.SIGKILL)
    child.join()
    with locked(where):
        record = read_valid(where.folder, where.id)
    assert record is not None
    write(where, "after")
    assert [p.name for p in where.parent.iterdir()] == [where.folder.name]


def _write_rounds(where: Place, mark: str) -> None:
    for n in range(20):
        write(where, f"{mark}{n}")


def test_two_processes_on_one_folder_do_not_disturb_each_other(tmp_path: Path) -> None:
    where, other = place(tmp_path), place(tmp_path, "b" * 64)
    children = [FORK.Process(target=_write_rounds, args=(w, m)) for w, m in ((where, "x"), (where, "y"), (other, "z"))]
    for child in children:
        child.start()
    for child in children:
        child.join()
        assert child.exitcode == 0
    record = read_valid(where.folder, where.id)
    assert record is not None and record.notes[0] in ("x19", "y19")
    assert read_valid(other.folder, other.id) is not None
    assert len(list(find_records(tmp_path))) == 2


def test_an_output_folder_that_cannot_be_written_is_an_error_before_anything_else(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SaebenchError, match="cannot be written"):
        store.check_writable(tmp_path / "file" / "out")


def test_a_full_disk_is_loud(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(place(tmp_path), "one")

    def full(fd: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write(place(tmp_path), "two")
    monkeypatch.undo()
    record = read_valid(place(tmp_path).folder)
    assert record is not None and record.notes == ["one"]


def test_finding_records_names_the_broken_one(tmp_path: Path) -> None:
    folder = write(place(tmp_path), "one")
    (folder / "record.json").write_text("{")
    with pytest.raises(BadFileError, match=r"record\.json: not valid JSON"):
        list(find_records(tmp_path))


def test_slug_never_escapes_its_folder() -> None:
    for name in ("../../etc/passwd", "/abs", "..", "", "a b/c:d", "x" * 300):
        made = store.slug(name)
        assert made and "/" not in made and not made.startswith(".") and len(made) <= 80


def test_records_are_typed(tmp_path: Path) -> None:
    assert isinstance(read_valid(write(place(tmp_path), "one")), Record)
