"""Where records live on disk, and how they get there without ever being torn or lost.

    <out>/<subject-slug>/<task>@<version>/<id[:12]>/{record.json, tables/, figures/, transcripts/, documents.parquet}

A unit's files are written to a staging folder beside its place, synced, `record.json` last, and renamed into place as
a whole. A process killed at any point leaves either the old record, the new one, or leftovers that the next run mends
while it holds the unit's lock.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from saebench_meta.errors import BadFileError, SaebenchError
from saebench_meta.record import Artifact, Record, read_record

ID_CHARS = 12


def slug(name: str) -> str:
    """A file name from any reference: letters, digits, dots, dashes; never empty, never hidden."""
    text = re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.")
    return text[:80] or "sae"


@dataclass(frozen=True)
class Place:
    """Where one unit's record stands."""

    out: Path
    subject: str
    task: str
    version: int
    id: str

    @property
    def parent(self) -> Path:
        return self.out / slug(self.subject) / f"{self.task}@{self.version}"

    @property
    def folder(self) -> Path:
        return self.parent / self.id[:ID_CHARS]


@dataclass
class Draft:
    """Files of a record before they are in place: artifacts first, then `record.json`."""

    files: dict[str, bytes] = field(default_factory=dict)
    artifacts: list[Artifact] = field(default_factory=list)

    def add(self, path: str, data: bytes, *, kind: str, title: str, caption: str = "") -> None:
        """Add one artifact; `path` is relative to the record's folder."""
        self.files[path] = data
        self.artifacts.append(
            Artifact(
                path=path,
                kind=kind,  # type: ignore[arg-type]  # checked by the model
                title=title,
                caption=caption,
                sha256=hashlib.sha256(data).hexdigest(),
                bytes=len(data),
            )
        )

    def add_file(self, path: str, data: bytes) -> None:
        """Add a file that is a second form of an artifact (the SVG of a figure) and is not listed itself."""
        self.files[path] = data


def check_writable(out: Path) -> None:
    """Try the output folder before anything is loaded: create it, write, sync, rename, remove."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        probe = out / f".probe-{uuid.uuid4().hex}"
        write_synced(probe, b"x")
        probe.replace(probe.with_suffix(".moved"))
        probe.with_suffix(".moved").unlink()
    except OSError as e:
        raise SaebenchError(
            f"output folder '{out}' cannot be written: {e.strerror or e}. Pass another one with -o."
        ) from e


def write_synced(path: Path, data: bytes) -> None:
    """Write and fsync; the file may still be absent after a crash, so rename it into place afterwards."""
    with path.open("wb") as f:
        f.write(data)
        f.flush()
        os.fsync(f.fileno())


def sync_folder(path: Path) -> None:
    """Make renames and new names in a folder durable."""
    if os.name == "nt":  # folders cannot be opened for syncing there
        return
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def write_atomic(path: Path, data: bytes) -> None:
    """Replace one file as a whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.parent / f".{path.name}.{uuid.uuid4().hex}.tmp"
    try:
        write_synced(temporary, data)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    sync_folder(path.parent)


@contextmanager
def locked(place: Place) -> Iterator[None]:
    """Hold a unit: a second process waits here, then finds the finished record. Freed by the system if killed."""
    from filelock import FileLock

    locks = place.out / ".locks"
    locks.mkdir(parents=True, exist_ok=True)
    with FileLock(locks / f"{place.id[:32]}.lock"):
        recover(place)
        yield


def read_valid(folder: Path, expected_id: str | None = None) -> Record | None:
    """The record in a folder if it is whole: parses, has the id, and its artifacts are there with their hashes."""
    try:
        record = read_record(folder)
    except BadFileError:
        return None
    if expected_id is not None and record.id != expected_id:
        return None
    for artifact in record.artifacts:
        path = folder / artifact.path
        if not path.resolve().is_relative_to(folder.resolve()):
            return None
        try:
            data = path.read_bytes()
        except OSError:
            return None
        if artifact.kind == "figure" and not figure_svg(path).is_file():
            return None
        if hashlib.sha256(data).hexdigest() != artifact.sha256:
            return None
    return record


def figure_svg(spec: Path) -> Path:
    """The SVG that stands beside a figure's `NAME.vl.json`."""
    return spec.with_name(spec.name.removesuffix(".vl.json") + ".svg")


def put(place: Place, record: Record, files: Mapping[str, bytes]) -> Path:
    """Write a record and its files as one step. Call while the place is `locked`."""
    place.parent.mkdir(parents=True, exist_ok=True)
    staging = place.parent / f".{place.folder.name}.new-{uuid.uuid4().hex[:8]}"
    staging.mkdir()
    for path, data in files.items():
        target = staging / path
        target.parent.mkdir(parents=True, exist_ok=True)
        write_synced(target, data)
    write_synced(staging / "record.json", record.to_json().encode())
    for folder in {staging, *(p for p in staging.rglob("*") if p.is_dir())}:
        sync_folder(folder)
    if place.folder.exists():
        old = place.parent / f".{place.folder.name}.old-{uuid.uuid4().hex[:8]}"
        place.folder.rename(old)
        staging.rename(place.folder)
        sync_folder(place.parent)
        shutil.rmtree(old)
    else:
        staging.rename(place.folder)
        sync_folder(place.parent)
    return place.folder


def recover(place: Place) -> None:
    """Mend what a killed process left: finish a rename, bring an old record back, remove the rest."""
    if not place.parent.is_dir():
        return
    name = place.folder.name
    leftovers = [p for p in place.parent.iterdir() if p.name.startswith((f".{name}.new-", f".{name}.old-"))]
    if not place.folder.exists():
        candidates = sorted(leftovers, key=lambda p: (".new-" in p.name, p.stat().st_mtime), reverse=True)
        for candidate in candidates:
            if read_valid(candidate, place.id) is not None:
                candidate.rename(place.folder)
                sync_folder(place.parent)
                break
    for leftover in leftovers:
        if leftover.exists():
            shutil.rmtree(leftover)


def find_records(folder: Path) -> Iterator[tuple[Path, Record]]:
    """Every record below a folder, in a stable order; a file that is no valid record is an error that names it."""
    if not folder.exists():
        raise SaebenchError(f"'{folder}' does not exist. Give the folder a run wrote to (its -o).")
    for file in sorted(folder.rglob("record.json")):
        if any(part.startswith(".") for part in file.relative_to(folder).parts):
            continue
        yield file.parent, read_record(file)
