"""The activation cache: sharing, eviction, torn entries and killed processes."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path

import pytest

from saebench_meta.cache import MANIFEST, Cache, entry_key

A, B, C = (entry_key({"n": n}) for n in "abc")


def writer(size: int = 100, calls: list[Path] | None = None) -> Callable[[Path], dict[str, int]]:
    def make(folder: Path) -> dict[str, int]:
        if calls is not None:
            calls.append(folder)
        (folder / "data").write_bytes(b"x" * size)
        return {"size": size}

    return make


def put(cache: Cache, key: str, size: int = 100) -> None:
    entry = cache.get(key, writer(size), size=size)
    assert entry is not None
    entry.close()


def age(cache: Cache, key: str, moment: float) -> None:
    os.utime(cache.folder / key / MANIFEST, (moment, moment))


def keys(cache: Cache) -> list[str]:
    return [e.key for e in cache.info().entries]


def test_the_key_depends_on_content_and_not_on_order() -> None:
    assert entry_key({"a": 1, "b": [2]}) == entry_key({"b": [2], "a": 1}) != entry_key({"a": 1, "b": [3]})


def test_an_entry_is_made_once_and_then_reused(tmp_path: Path) -> None:
    calls: list[Path] = []
    for _ in range(2):
        entry = Cache(tmp_path).get(A, writer(calls=calls), size=100)
        assert entry is not None and entry.meta == {"size": 100}
        assert (entry.folder / "data").read_bytes() == b"x" * 100
    assert len(calls) == 1


@pytest.mark.parametrize("harm", ["missing", "short", "manifest", "no manifest"])
def test_a_torn_entry_is_made_again(tmp_path: Path, harm: str) -> None:
    cache = Cache(tmp_path)
    put(cache, A)
    folder = cache.folder / A
    match harm:
        case "missing":
            (folder / "data").unlink()
        case "short":
            (folder / "data").write_bytes(b"x")
        case "manifest":
            (folder / MANIFEST).write_text('{"files"')
        case "no manifest":
            (folder / MANIFEST).unlink()
    entry = cache.get(A, writer(), size=100)
    assert entry is not None and (entry.folder / "data").stat().st_size == 100


def test_the_least_recently_used_entry_goes_first(tmp_path: Path) -> None:
    cache = Cache(tmp_path, max_bytes=1500)
    for moment, key in enumerate((A, B)):
        put(cache, key, 500)
        age(cache, key, 1000 + moment)
    put(cache, A, 500)  # used again
    put(cache, C, 500)
    assert set(keys(cache)) == {A, C}


def test_an_entry_in_use_is_never_removed(tmp_path: Path) -> None:
    cache, other = Cache(tmp_path), Cache(tmp_path)
    entry = cache.get(A, writer(), size=100)
    put(cache, B)
    assert entry is not None
    pruned = other.prune(0)
    assert (pruned.removed, pruned.in_use) == (1, 1) and keys(cache) == [A]
    assert [e.in_use for e in cache.info().entries] == [True]
    entry.close()
    assert other.prune(0).removed == 1 and keys(cache) == [] and cache.info().bytes == 0


def test_an_entry_that_is_let_go_of_is_free_again(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    entry = cache.get(A, writer(), size=100)
    assert cache.info().entries[0].in_use
    del entry
    assert not cache.info().entries[0].in_use and not list(cache.locks.glob("*.use-*"))


def test_what_does_not_fit_is_refused_with_a_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    cache = Cache(tmp_path, max_bytes=1000)
    assert cache.get(A, writer(2000), size=2000, notice=said.append) is None
    held = cache.get(A, writer(600), size=600)
    assert cache.get(B, writer(600), size=600, notice=said.append) is None
    assert held is not None
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(0, 0, (1 << 30) + 50))
    assert Cache(tmp_path).get(C, writer(), size=100, notice=said.append) is None
    assert ["more than the cache may hold" in said[0], "in use" in said[1], "of disk is free" in said[2]] == [True] * 3
    assert keys(cache) == [A]


def test_a_folder_that_cannot_be_used_is_told_and_done_without(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    said: list[str] = []
    assert Cache(tmp_path / "file").get(A, writer(), size=100, notice=said.append) is None
    assert "cannot be used" in said[0]


def test_an_error_while_making_leaves_nothing(tmp_path: Path) -> None:
    cache = Cache(tmp_path)

    def broken(folder: Path) -> dict[str, int]:
        (folder / "data").write_bytes(b"x")
        raise KeyError("from the model")

    with pytest.raises(KeyError):
        cache.get(A, broken, size=1)
    assert list(cache.folder.iterdir()) == []
    put(cache, A)


PROCESS = """
import sys, time
from pathlib import Path
from saebench_meta.cache import Cache
root, key, what = sys.argv[1:]
def make(folder):
    (folder / "data").write_bytes(b"x" * 100)
    if what == "hang while making":
        print("ready", flush=True)
        time.sleep(600)
    time.sleep(0.5)
    with open(Path(root) / "made", "a") as f:
        f.write("1")
    return {}
entry = Cache(Path(root)).get(key, make, size=100)
print("ready", flush=True)
if what != "leave":
    time.sleep(600)
"""


def start(root: Path, key: str, what: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", PROCESS, str(root), key, what]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def ready(process: subprocess.Popen[str]) -> None:
    assert process.stdout is not None and process.stdout.readline() == "ready\n"


def kill(process: subprocess.Popen[str]) -> None:
    process.send_signal(signal.SIGKILL)
    process.communicate()


def test_two_processes_make_one_entry(tmp_path: Path) -> None:
    processes = [start(tmp_path, A, "leave") for _ in range(2)]
    assert [p.communicate()[0] for p in processes] == ["ready\n"] * 2
    assert (tmp_path / "made").read_text() == "1"
    assert keys(Cache(tmp_path)) == [A]


def test_another_process_keeps_an_entry_in_use_until_it_is_killed(tmp_path: Path) -> None:
    process, cache = start(tmp_path, A, "hold"), Cache(tmp_path)
    try:
        ready(process)
        assert cache.prune(0).in_use == 1 and keys(cache) == [A]
    finally:
        kill(process)
    assert cache.prune(0).removed == 1 and keys(cache) == []


def test_leftovers_of_a_killed_process_are_removed(tmp_path: Path) -> None:
    process, cache = start(tmp_path, A, "hang while making"), Cache(tmp_path)
    try:
        ready(process)
        cache.prune(0)
        assert len(list(cache.folder.glob(".tmp-*"))) == 1, "still being made"
    finally:
        kill(process)
    cache.prune(0)
    assert list(cache.folder.iterdir()) == []
    put(cache, A)
