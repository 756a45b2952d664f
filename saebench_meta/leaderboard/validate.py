"""`saebench leaderboard validate`: is every record under the results one that others may believe?

Checked from the outside in, and what fails early is not read further: the tree and the files' sizes, JSON, texts and
numbers whatever field they are in, the schema, what the record says of its making (`rules.py`), its numbers against its
own documents (`recompute.py`), its place, and the records against each other.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from saebench_meta.errors import BadFileError
from saebench_meta.leaderboard.badge import Reproduction, badge_faults, parse_badge
from saebench_meta.leaderboard.reading import Documents, parse_json, read_documents, read_limited
from saebench_meta.leaderboard.recompute import document_faults
from saebench_meta.leaderboard.results import (
    AT_ROOT,
    DOCUMENTS,
    MAX_BYTES,
    RECORD,
    REPRODUCED,
    place,
    record_folders,
)
from saebench_meta.leaderboard.rules import Bench, is_third_party, record_faults
from saebench_meta.leaderboard.texts import Fault, shown, value_faults
from saebench_meta.record import SCHEMA_VERSION, Record, canonical_hash

MAX_FAULTS = 12
"""Faults shown of one record: the first ones tell why it is refused."""


@dataclass(frozen=True)
class Problem:
    """Why a file is refused: where, which field, what is wrong and what to do."""

    file: str
    field: str
    reason: str

    def to_json(self) -> dict[str, str]:
        """As plain data, for `--json`."""
        return {"file": self.file, "field": self.field, "reason": self.reason}

    def __str__(self) -> str:
        return ": ".join(shown(part, 400) for part in (self.file, self.field, self.reason) if part)


@dataclass(frozen=True, eq=False)
class Checked:
    """One record's folder, looked at.

    Attributes:
        name: the folder as messages name it: relative to the results where it stands there.
        record: None where it could not be read.
        problems: why it is refused; empty if it is not.
        reproduced: what a maintainer's rerun gave, where there was one.
    """

    folder: Path
    name: str
    record: Record | None
    problems: tuple[Problem, ...]
    reproduced: Reproduction | None = None


@dataclass(frozen=True, eq=False)
class Checks:
    """All records under the results. `strays`: what stands there besides records."""

    folders: tuple[Checked, ...]
    strays: tuple[Problem, ...] = field(default=())

    @property
    def problems(self) -> tuple[Problem, ...]:
        return (*self.strays, *(p for c in self.folders for p in c.problems))

    @property
    def good(self) -> list[Checked]:
        return [c for c in self.folders if not c.problems]

    def to_json(self) -> dict[str, Any]:
        """As plain data, for `--json`."""
        problems = [p.to_json() for p in self.problems]
        return {"records": len(self.folders), "good": len(self.good), "problems": problems}


def check_results(results: Path, bench: Bench) -> Checks:
    """Every record under the results, and what else stands there.

    Raises:
        BadFileError: there is no such folder.
    """
    if results.is_symlink() or not results.is_dir():
        raise BadFileError(f"'{results}' is no folder. Name the leaderboard's results with --results.")
    checked = [check_folder(folder, bench, results=results) for folder in record_folders(results)]
    return Checks(tuple(_against_each_other(checked)), tuple(_strays(results)))


def check_paths(paths: Iterable[Path], bench: Bench, results: Path) -> Checks:
    """Only some records: their folders, files of theirs, or folders above them."""
    folders: dict[Path, None] = {}
    for path in paths:
        if path.is_file() or (path / RECORD).is_file():
            folders[path.parent if path.is_file() else path] = None
            continue
        found = sorted(p.parent for p in path.rglob(RECORD))
        if not found:
            raise BadFileError(f"'{path}' holds no {RECORD}. Give a record's folder, or one above it.")
        folders |= dict.fromkeys(found)
    root = results.resolve()
    checked = [
        check_folder(f.resolve(), bench, results=root) if f.resolve().is_relative_to(root) else check_folder(f, bench)
        for f in folders
    ]
    return Checks(tuple(_against_each_other(checked)))


def check_folder(folder: Path, bench: Bench, *, results: Path | None = None) -> Checked:
    """One record's folder.

    Args:
        results: the folder it should stand in by its own word; None for a record that is not on the leaderboard yet,
            whose folder may hold more than the leaderboard keeps.
    """
    name = str(folder) if results is None else folder.relative_to(results).as_posix()
    record: Record | None = None
    badge: Reproduction | None = None
    faults: list[tuple[str, Fault]] = [(f, fault) for f, fault in _files(folder)] if results is not None else []
    try:
        data = _read(folder, RECORD)
        record, found = _record(data)
        faults += [(RECORD, f) for f in found]
        if record is not None and not faults:
            faults += [(RECORD, f) for f in record_faults(record, bench)]
        if record is not None and not faults:
            faults += [(RECORD, f) for f in _documents(folder, record, bench)]
        if record is not None and results is not None:
            faults += [(RECORD, f) for f in _place(name, record)]
            badge, found = _badge(folder, record, data, bench)
            faults += [(REPRODUCED, f) for f in found]
    except _UnreadableError as e:
        faults.append((e.file, ("", e.reason)))
    problems = tuple(Problem(f"{name}/{file}", *fault) for file, fault in faults[:MAX_FAULTS])
    return Checked(folder, name, record, problems, badge)


class _UnreadableError(Exception):
    def __init__(self, file: str, reason: str) -> None:
        self.file, self.reason = file, reason
        super().__init__(reason)


def _read(folder: Path, file: str) -> bytes:
    try:
        return read_limited(folder / file, MAX_BYTES[file])
    except BadFileError as e:
        raise _UnreadableError(file, str(e)) from e


def _files(folder: Path) -> Iterator[tuple[str, Fault]]:
    for path in sorted(folder.iterdir()):
        if path.name not in MAX_BYTES:
            yield path.name, ("", f"does not belong here: a record is {', '.join(MAX_BYTES)} and nothing else")


def _record(data: bytes) -> tuple[Record | None, list[Fault]]:
    try:
        raw = parse_json(data)
    except BadFileError as e:
        raise _UnreadableError(RECORD, str(e)) from e
    version = raw.get("schema_version") if isinstance(raw, dict) else None
    if not isinstance(raw, dict) or version != SCHEMA_VERSION or isinstance(version, bool):
        known = f"this version of saebench-meta reads {SCHEMA_VERSION}"
        return None, [("schema_version", f"is {shown(repr(version), 40)}, and {known}: run again with this version")]
    faults = list(value_faults(raw))
    if faults:
        return None, faults
    try:
        return Record.model_validate_json(data, strict=True), []
    except ValidationError as e:
        found = [(".".join(str(p)[:60] for p in one["loc"]), _in_words(one["type"], one["msg"])) for one in e.errors()]
        return None, found[:MAX_FAULTS]


def _in_words(kind: str, message: str) -> str:
    unknown = "is no field of a record in this version of saebench-meta"
    return unknown if kind == "extra_forbidden" else f"does not fit the schema ({message})"


def _documents(folder: Path, record: Record, bench: Bench) -> Iterator[Fault]:
    listed = next((a for a in record.artifacts if a.kind == "documents"), None)
    there = (folder / DOCUMENTS).exists() or (folder / DOCUMENTS).is_symlink()
    if listed is None or not there:
        if there:
            yield "artifacts", f"does not list {DOCUMENTS}, which is there"
        elif listed is not None:
            yield "artifacts", f"lists {DOCUMENTS}, which is not there: add the record with its documents"
        return
    data = _read(folder, DOCUMENTS)
    if hashlib.sha256(data).hexdigest() != listed.sha256 or len(data) != listed.bytes:
        yield "artifacts", f"{DOCUMENTS} is not the file the run wrote: its hash or size differs"
        return
    yield from document_faults(record, documents_of(folder), intervals=bench.intervals)


def documents_of(folder: Path) -> Documents:
    """The per-document columns of a record's folder, by role."""
    try:
        return read_documents(folder / DOCUMENTS)
    except BadFileError as e:
        raise _UnreadableError(DOCUMENTS, str(e)) from e


def _place(name: str, record: Record) -> Iterator[Fault]:
    try:
        expected = place(record).as_posix()
    except ValueError:
        return  # said already: no SAE under test, or no hash of its weights
    if name != expected:
        yield "", f"stands in the wrong place: by its own word it belongs in {expected}. Use `saebench leaderboard add`"


def _badge(folder: Path, record: Record, data: bytes, bench: Bench) -> tuple[Reproduction | None, list[Fault]]:
    if not (folder / REPRODUCED).exists():
        return None, []
    try:
        raw = parse_json(_read(folder, REPRODUCED))
        if not isinstance(raw, dict):
            raise BadFileError("is no JSON object")
        faults = list(value_faults(raw))
        badge = None if faults else parse_badge(raw)
    except BadFileError as e:
        raise _UnreadableError(REPRODUCED, str(e)) from e
    return badge, faults if badge is None else list(badge_faults(badge, record, data, bench))


# -- the tree, and the records against each other


def _strays(results: Path) -> Iterator[Problem]:
    """Whatever is no folder where a folder should be, and links wherever they are."""
    for path in sorted(results.rglob("*")):
        inner = path.relative_to(results)
        if path.is_symlink():
            yield Problem(inner.as_posix(), "", "is a link, and links are not taken")
        elif len(inner.parts) < 4 and path.is_file() and inner.as_posix() not in AT_ROOT:
            yield Problem(inner.as_posix(), "", "does not belong here: records stand in SAE/TASK@VERSION/ID")
        elif len(inner.parts) == 4 and path.is_dir():
            yield Problem(inner.as_posix(), "", "is a folder, and a record's folder holds files only")
        elif len(inner.parts) == 3 and path.is_dir() and not (path / RECORD).is_file():
            yield Problem(inner.as_posix(), "", f"holds no {RECORD}")


def _against_each_other(checked: list[Checked]) -> Iterator[Checked]:
    """Ids stand once, and a task this installation does not know declares its metrics in one way."""
    ids: dict[str, str] = {}
    declared: dict[str, tuple[str, str]] = {}
    for one in checked:
        if one.record is None or one.problems:
            yield one
            continue
        faults = []
        if (first := ids.setdefault(one.record.id, one.name)) != one.name:
            faults.append(Problem(f"{one.name}/{RECORD}", "id", f"is the id of {first} too"))
        if is_third_party(one.record):
            task, facts = _declaration(one.record)
            if (known := declared.setdefault(task, (facts, one.name)))[0] != facts:
                reason = f"declares the metrics of {shown(task)} otherwise than {known[1]}: raise the task's version"
                faults.append(Problem(f"{one.name}/{RECORD}", "metrics", reason))
        yield one if not faults else Checked(one.folder, one.name, one.record, tuple(faults), one.reproduced)


def _declaration(record: Record) -> tuple[str, str]:
    facts = {n: [m.better, m.unit, m.of, m.order.expected if m.order else None] for n, m in record.metrics.items()}
    task = f"{record.task.plugin} {record.task.name}@{record.task.version}"
    return task, canonical_hash(json.loads(json.dumps(facts)))
