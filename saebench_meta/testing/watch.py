"""Sees what a piece of code does to the machine: programs, connections, pickles, files written."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from saebench_meta.testing.checks import expect

FORBIDDEN: tuple[str, ...] = ("pickle.", "subprocess.", "socket.", "shutil.", "os.system", "os.exec")
FORBIDDEN += ("os.posix_spawn", "os.fork", "os.mkdir", "os.remove", "os.rename", "os.rmdir", "os.link", "os.symlink")
_seen: list[str] = []
_watch: list[bool] = []


def _audit(event: str, arguments: tuple[Any, ...]) -> None:
    if not any(_watch):
        return
    if event.startswith(FORBIDDEN) or (event == "open" and _is_writing(*arguments)):
        _seen.append(f"{event} {arguments!r:.200}")


def _is_writing(path: object, mode: str | None, flags: int) -> bool:
    changes = bool(set(mode or "") & set("wax+")) or bool(flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))
    return changes and ".pyc" not in str(path)  # the first import of a module is kept


@contextmanager
def nothing_is_run() -> Iterator[None]:
    """While this lasts, Python code may only read.

    Raises:
        FaultError: something was unpickled, started or connected to, or a file or folder was written, made or removed.
    """
    if not _watch:
        sys.addaudithook(_audit)  # there is no way to remove it
        _watch.append(False)
    _watch[0] = True
    try:
        yield
    finally:
        _watch[0] = False
        found, _seen[:] = list(_seen), []
    expect(not found, f"reading a file must do nothing else; it did: {'; '.join(found[:3])}")
