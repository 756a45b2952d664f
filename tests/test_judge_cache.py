"""Answers of judges are kept on disk: by all they depend on, at once, and through damage."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from saebench_meta.judge_cache import AnswerCache, answer_key
from saebench_meta.judging import Answer

FULL = Answer("3", 2, None, "judge-1", 10, 2, 0.5, left_out=("seed",))


def test_an_answer_comes_back_as_it_was_but_marked(tmp_path: Path) -> None:
    cache = AnswerCache(tmp_path / "deep" / "answers.sqlite")
    cache.put("a", FULL)
    cache.put("b", Answer("«words» of «any» kind\n", model="m"))
    assert cache.get("a") == Answer("3", 2, None, "judge-1", 10, 2, 0.5, cached=True, left_out=("seed",))
    assert cache.get("b") == Answer("«words» of «any» kind\n", model="m", cached=True)
    assert cache.get("c") is None


def test_it_is_there_for_the_next_process_without_closing(tmp_path: Path) -> None:
    AnswerCache(tmp_path / "answers.sqlite").put("a", FULL)
    found = AnswerCache(tmp_path / "answers.sqlite").get("a")
    assert found is not None
    assert found.choice == 2


@pytest.mark.parametrize("problem", ["timeout", "malformed", "empty", "server error", "rejected"])
def test_what_went_wrong_is_not_kept(tmp_path: Path, problem: str) -> None:
    cache = AnswerCache(tmp_path / "answers.sqlite")
    cache.put("a", Answer(problem=problem))
    assert cache.get("a") is None


def test_a_refusal_is_what_the_model_has_to_say(tmp_path: Path) -> None:
    cache = AnswerCache(tmp_path / "answers.sqlite")
    cache.put("a", Answer(problem="refusal"))
    assert cache.get("a") == Answer(problem="refusal", cached=True)


def test_the_key_depends_on_every_part_and_not_on_their_order() -> None:
    body = {"model": "m", "messages": [{"role": "user", "content": "x"}], "seed": 0}
    key = answer_key({"provider": "p", "body": body, "sample": 0})
    assert key == answer_key({"sample": 0, "provider": "p", "body": dict(reversed(body.items()))})
    others = [
        {"provider": "q", "body": body, "sample": 0},
        {"provider": "p", "body": body, "sample": 1},
        {"provider": "p", "body": body | {"seed": 1}, "sample": 0},
    ]
    assert len({key, *map(answer_key, others)}) == 4


# -- damage


@pytest.mark.parametrize("damage", [b"this is no database, and longer than a header" * 40, b"SQLite format 3\0"])
def test_a_damaged_file_is_moved_aside_with_a_warning(tmp_path: Path, damage: bytes) -> None:
    path, warned = tmp_path / "answers.sqlite", list[str]()
    path.write_bytes(damage * 200)
    cache = AnswerCache(path, warned.append)
    cache.put("a", FULL)
    assert AnswerCache(path).get("a") is not None
    assert len(warned) == 1
    assert "answers.sqlite.damaged-1" in warned[0]
    assert (tmp_path / "answers.sqlite.damaged-1").read_bytes() == damage * 200


def test_pages_overwritten_in_the_middle_are_noticed(tmp_path: Path) -> None:
    path, warned = tmp_path / "answers.sqlite", list[str]()
    cache = AnswerCache(path)
    for n in range(500):
        cache.put(f"key {n}", FULL)
    cache.close()
    data = bytearray(path.read_bytes())
    data[4096 : len(data) // 2] = os.urandom(len(data) // 2 - 4096)
    path.write_bytes(data)
    again = AnswerCache(path, warned.append)
    again.put("a", FULL)
    assert again.get("a") is not None
    assert "damaged" in warned[0]


@pytest.mark.parametrize("row", ["", "{", "[]", '{"choice": "3"}', '{"unknown": 1, "choice": {}}', '{"choice": 1.5}'])
def test_a_row_that_is_no_answer_counts_as_none(tmp_path: Path, row: str) -> None:
    cache = AnswerCache(tmp_path / "answers.sqlite")
    cache.put("a", FULL)
    with sqlite3.connect(tmp_path / "answers.sqlite") as db:
        db.execute("UPDATE answers SET answer = ?", (row,))
    assert cache.get("a") is None
    cache.put("a", FULL)
    assert cache.get("a") is not None


def test_a_place_that_cannot_be_written_is_told_and_lived_with(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    warned: list[str] = []
    cache = AnswerCache(tmp_path / "file" / "answers.sqlite", warned.append)
    cache.put("a", FULL)
    assert cache.get("a") is not None  # in memory, for this run
    assert len(warned) == 1
    assert "are not kept" in warned[0]


def test_a_closed_cache_is_an_empty_one(tmp_path: Path) -> None:
    cache = AnswerCache(tmp_path / "answers.sqlite")
    cache.put("a", FULL)
    cache.close()
    assert cache.get("a") is None


# -- several at once

WRITER = """
import sys
from pathlib import Path
from saebench_meta.judge_cache import AnswerCache
from saebench_meta.judging import Answer
cache = AnswerCache(Path(sys.argv[1]))
for n in range(int(sys.argv[3])):
    cache.put(f"{sys.argv[2]} {n}", Answer("3", 2))
    print(n, flush=True)
"""


def writer(path: Path, name: str, n: int) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", WRITER, str(path), name, str(n)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def test_processes_write_side_by_side(tmp_path: Path) -> None:
    path = tmp_path / "answers.sqlite"
    writers = [writer(path, name, 150) for name in "ab"]
    assert [w.communicate(timeout=60)[0].count("\n") for w in writers] == [150, 150]
    cache = AnswerCache(path)
    assert all(cache.get(f"{name} {n}") is not None for name in "ab" for n in range(150))


def test_what_was_put_survives_a_kill(tmp_path: Path) -> None:
    path = tmp_path / "answers.sqlite"
    with writer(path, "a", 100_000) as process:
        assert process.stdout is not None
        last = next(int(line) for line in process.stdout if int(line) >= 40)
        process.send_signal(signal.SIGKILL)
    warned: list[str] = []
    cache = AnswerCache(path, warned.append)
    assert all(cache.get(f"a {n}") is not None for n in range(last + 1))
    assert warned == []


def test_threads_share_it(tmp_path: Path) -> None:
    cache = AnswerCache(tmp_path / "answers.sqlite")

    def write(name: int) -> None:
        for n in range(50):
            cache.put(f"{name} {n}", Answer("x"))

    threads = [threading.Thread(target=write, args=(name,)) for name in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(cache.get(f"{name} {n}") for name in range(4) for n in range(50))
