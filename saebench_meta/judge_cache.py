"""Answers of judges on disk, so that nothing is asked and paid twice.

One SQLite file, safe between processes and threads. An answer is committed as soon as it is there, so a process that is
killed loses none. The cache is optional: where it cannot hold something, the user is told once and the run goes on.
"""

from __future__ import annotations

import contextlib
import sqlite3
import threading
import warnings
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from saebench_meta.cache import default_root, entry_key
from saebench_meta.judging import Answer

if TYPE_CHECKING:
    from pydantic import TypeAdapter

FOLDER, FILE = "judge", "answers.sqlite"
WAIT_SECONDS = 30.0
"""How long a process waits for another that is writing."""
LASTING = (None, "refusal")
"""Problems of answers that are kept: none, and that the model declined, which is what it has to say."""
SIDECARS = ("", "-wal", "-shm")
TABLE = "CREATE TABLE IF NOT EXISTS answers (key TEXT PRIMARY KEY, answer TEXT NOT NULL) WITHOUT ROWID"


def default_path() -> Path:
    """Where answers are kept: below the folder of the other caches."""
    return default_root() / FOLDER / FILE


def answer_key(content: Mapping[str, Any]) -> str:
    """The key of an answer: a hash of all that it depends on.

    For a server: provider, base URL, model, the full body of the request, and the sample.
    """
    return entry_key(content)


class AnswerCache:
    """Answers by key.

    Args:
        path: the SQLite file; made if it is not there.
        warn: told, once each, what keeps the cache from working.
    """

    def __init__(self, path: Path | None = None, warn: Callable[[str], None] | None = None) -> None:
        self.path = Path(path) if path is not None else default_path()
        self._warn, self._warned = warn or warnings.warn, False
        self._lock = threading.RLock()
        self._db = self._open()

    def get(self, key: str) -> Answer | None:
        """The answer kept under a key, marked as cached; None where there is none that can be read."""
        found = self._run("SELECT answer FROM answers WHERE key = ?", (key,))
        if not found:
            return None
        try:
            answer = _answers().validate_json(found[0][0], strict=True)
        except ValueError:
            return None
        from dataclasses import replace

        return replace(answer, cached=True)

    def put(self, key: str, answer: Answer) -> None:
        """Keep an answer; it is on disk when this returns. What went wrong is not kept, so that it is asked again."""
        if answer.problem in LASTING:
            text = _answers().dump_json(answer).decode()
            self._run("INSERT OR REPLACE INTO answers VALUES (?, ?)", (key, text))

    def close(self) -> None:
        """Close the file; what is asked of the cache afterwards is answered as if it were empty."""
        with self._lock:
            self._db.close()
            self._db = _memory()

    def _run(self, statement: str, values: tuple[str, ...]) -> list[Any]:
        with self._lock:
            try:
                return self._db.execute(statement, values).fetchall()
            except sqlite3.OperationalError as e:  # no room, no permission, or a writer that holds on for too long
                self._tell(f"answers of the judge are not all kept: '{self.path}' cannot be used ({e})")
                return []
            except sqlite3.DatabaseError:
                self._db.close()
                self._db = self._open()
                return []

    # -- the file

    def _open(self) -> sqlite3.Connection:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            try:
                return _connect(self.path)
            except sqlite3.OperationalError:
                raise
            except sqlite3.DatabaseError:
                return self._renew()
        except (OSError, sqlite3.Error) as e:
            self._tell(f"answers of the judge are not kept: '{self.path}' cannot be used ({e})")
            return _memory()

    def _renew(self) -> sqlite3.Connection:
        """Move a damaged file aside and begin a new one, unless another process has done so meanwhile."""
        from filelock import FileLock

        with FileLock(self.path.with_name(f"{self.path.name}.lock"), timeout=WAIT_SECONDS):
            try:
                return _connect(self.path)
            except sqlite3.DatabaseError:
                aside = self._aside()
                for end in SIDECARS:
                    with contextlib.suppress(FileNotFoundError):
                        self.path.with_name(self.path.name + end).replace(aside.with_name(aside.name + end))
                self._tell(f"the judge's answers in '{self.path}' were damaged; moved to '{aside.name}', begun anew")
                return _connect(self.path)

    def _aside(self) -> Path:
        n = 1
        while (aside := self.path.with_name(f"{self.path.name}.damaged-{n}")).exists():
            n += 1
        return aside

    def _tell(self, message: str) -> None:
        if not self._warned:
            self._warned = True
            self._warn(message)


def _connect(path: Path) -> sqlite3.Connection:
    """A connection to a whole file with the table in it.

    Raises:
        sqlite3.DatabaseError: the file is damaged, or none of ours; its subclass OperationalError: it cannot be used.
    """
    db = sqlite3.connect(path, timeout=WAIT_SECONDS, isolation_level=None, check_same_thread=False)
    try:
        db.execute("PRAGMA journal_mode=WAL")
        db.execute("PRAGMA synchronous=NORMAL")
        db.execute(TABLE)
        if (state := db.execute("PRAGMA quick_check(1)").fetchone()[0]) != "ok":
            raise sqlite3.DatabaseError(state)
        db.execute("SELECT key, answer FROM answers LIMIT 0")
    except BaseException:
        db.close()
        raise
    return db


def _memory() -> sqlite3.Connection:
    db = sqlite3.connect(":memory:", isolation_level=None, check_same_thread=False)
    db.execute(TABLE)
    return db


@cache
def _answers() -> TypeAdapter[Answer]:
    from pydantic import TypeAdapter

    return TypeAdapter(Answer)
