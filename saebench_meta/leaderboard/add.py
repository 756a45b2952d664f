"""`saebench leaderboard add`: copy the records of a run folder that validate. What is there is never changed."""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from saebench_meta.errors import SaebenchError
from saebench_meta.leaderboard.results import DOCUMENTS, RECORD, place
from saebench_meta.leaderboard.rules import Bench
from saebench_meta.leaderboard.validate import Checked, Problem, check_folder
from saebench_meta.store import sync_folder, write_synced


@dataclass(frozen=True)
class Added:
    """What became of the records of a run folder.

    Attributes:
        added, kept: places under the results: new, and there already with the same bytes.
        left_out: record -> why it has no place on a leaderboard (a family's, or not finished).
        refused: what is wrong with the others.
    """

    added: list[str] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)
    refused: list[Problem] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """As plain data, for `--json`."""
        refused = [p.to_json() for p in self.refused]
        return {"added": self.added, "kept": self.kept, "left_out": self.left_out, "refused": refused}


def add(run: Path, results: Path, bench: Bench) -> Added:
    """Copy every record below a run folder, or one record, to its place under the results.

    Raises:
        SaebenchError: there is no record, or the results cannot be written.
    """
    folders = list(_folders(run))
    if not folders:
        raise SaebenchError(f"'{run}' holds no {RECORD}. Give the folder a run wrote to (its -o), or one record.")
    done = Added()
    for folder in folders:
        checked = check_folder(folder, bench)
        if checked.record is not None and (why := _no_place(checked)):
            done.left_out[str(folder)] = why
        elif checked.problems or checked.record is None:
            done.refused.extend(checked.problems)
        else:
            _take(checked, results, done)
    return done


def _folders(run: Path) -> Iterator[Path]:
    if run.is_file():
        yield run.parent
        return
    for file in sorted(run.rglob(RECORD)):
        if not any(part.startswith(".") for part in file.relative_to(run).parts):
            yield file.parent


def _no_place(checked: Checked) -> str | None:
    """Why a sound record is of no use to a leaderboard."""
    record = checked.record
    assert record is not None
    if record.status != "ok":
        return f"the task {record.status}: {record.reason or 'no reason given'}"
    if record.subject.kind == "family":
        return "it is of a family of SAEs, whose numbers are of no single one: there is no row for it"
    return None


def _take(checked: Checked, results: Path, done: Added) -> None:
    assert checked.record is not None
    where = place(checked.record).as_posix()
    files = {name: (checked.folder / name).read_bytes() for name in _files(checked)}
    target = results / where
    if not target.exists():
        _copy(files, target)
        done.added.append(where)
    elif all((target / n).is_file() and (target / n).read_bytes() == data for n, data in files.items()):
        done.kept.append(where)
    else:
        reason = (
            f"another record of the same settings is there already, in {target}: what is on the leaderboard is never "
            "changed. Run `saebench compare` on the two if you want to know whether they agree"
        )
        done.refused.append(Problem(f"{checked.name}/{RECORD}", "id", reason))


def _files(checked: Checked) -> list[str]:
    assert checked.record is not None
    return [RECORD, *([DOCUMENTS] if any(a.kind == "documents" for a in checked.record.artifacts) else [])]


def _copy(files: dict[str, bytes], target: Path) -> None:
    """All files or none: written beside the place, then renamed into it."""
    staging = target.parent / f".{target.name}.new-{uuid.uuid4().hex[:8]}"
    try:
        staging.mkdir(parents=True)
        for name, data in files.items():
            write_synced(staging / name, data)
        staging.rename(target)
        sync_folder(target.parent)
    except OSError as e:
        shutil.rmtree(staging, ignore_errors=True)
        raise SaebenchError(f"'{target}' cannot be written: {e.strerror or e}") from e
