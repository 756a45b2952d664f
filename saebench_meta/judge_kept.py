"""Answers of judges in the cache: how many, how large, and their removal. No torch."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from saebench_meta.errors import SaebenchError
from saebench_meta.judge_cache import FILE, FOLDER, WAIT_SECONDS


@dataclass(frozen=True)
class KeptAnswers:
    """All of them. `answers` is None where their file cannot be read; `bytes` counts damaged files set aside, too."""

    path: Path
    answers: int | None
    bytes: int


def kept_answers(root: Path) -> KeptAnswers | None:
    """What a cache holds of answers below its root; None where it never held any."""
    path = root / FOLDER / FILE
    if not path.parent.is_dir():
        return None
    size = sum(f.stat().st_size for f in path.parent.iterdir() if f.is_file())
    try:
        with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as db:
            return KeptAnswers(path, db.execute("SELECT count(*) FROM answers").fetchone()[0], size)
    except sqlite3.Error:
        return KeptAnswers(path, None, size)


def remove_answers(root: Path) -> KeptAnswers | None:
    """Remove all of them, and files that were set aside; what was there.

    The file itself stays: a run may have it open.

    Raises:
        SaebenchError: a run is writing to it, or it cannot be written.
    """
    found = kept_answers(root)
    if found is None:
        return None
    try:
        if found.answers is not None:
            with closing(sqlite3.connect(found.path, timeout=WAIT_SECONDS, isolation_level=None)) as db:
                db.execute("DELETE FROM answers")
                db.execute("VACUUM")
        for aside in found.path.parent.glob(f"{FILE}.damaged-*"):
            aside.unlink()
    except (OSError, sqlite3.Error) as e:
        raise SaebenchError(
            f"the answers in '{found.path}' cannot be removed ({e}); wait for the run, or delete it"
        ) from e
    return found
