"""A capped, content-addressed cache of folders on disk, safe for several processes and for processes that are killed.

    <root>/activations/<key>/{manifest.json, …}     a finished entry; its manifest lists every file with its size
    <root>/activations/.tmp-<key>-…, .old-…          being made or removed; left over if their process was killed
    <root>/locks/<key>.lock                          held while an entry is made, opened or removed
    <root>/locks/<key>.use-….lock                    one for each user, held as long as it reads the entry

Locks belong to the operating system: they vanish with their process, however it ends. An entry that anybody uses is
never removed. The cache is optional: where it cannot hold something, the caller is told and goes on without.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import uuid
import weakref
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from filelock import BaseFileLock

MAX_BYTES = 20 << 30
MIN_FREE = 1 << 30
"""Free disk that writing to the cache always leaves."""
MANIFEST = "manifest.json"
FORMAT = 1


def default_root() -> Path:
    """`SAEBENCH_CACHE_DIR`, or the platform's folder for caches."""
    if named := os.environ.get("SAEBENCH_CACHE_DIR"):
        return Path(named).expanduser()
    import platformdirs

    return Path(platformdirs.user_cache_dir("saebench", appauthor=False))


def entry_key(content: Mapping[str, Any]) -> str:
    """sha256 of the canonical JSON of everything that determines an entry's content."""
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


@dataclass(frozen=True)
class EntryInfo:
    """One line of `saebench cache info`. `last_used` is in seconds since the epoch."""

    key: str
    bytes: int
    last_used: float
    in_use: bool


@dataclass(frozen=True)
class CacheInfo:
    """What the cache holds, the least recently used entry first."""

    root: Path
    max_bytes: int
    entries: tuple[EntryInfo, ...]

    @property
    def bytes(self) -> int:
        return sum(e.bytes for e in self.entries)


@dataclass(frozen=True)
class Pruned:
    """What `prune` did: entries and bytes removed, and entries kept because they are in use."""

    removed: int
    bytes: int
    in_use: int


class Entry:
    """A finished entry in use: it cannot be evicted until `close()`, garbage collection or the end of the process."""

    def __init__(self, folder: Path, marker: BaseFileLock) -> None:
        self.folder = folder
        self.meta: dict[str, Any] = _manifest(folder)["meta"]
        self._finalizer = weakref.finalize(self, _release, marker)

    def close(self) -> None:
        self._finalizer()


def _release(marker: BaseFileLock) -> None:
    marker.release()
    Path(marker.lock_file).unlink(missing_ok=True)


class Cache:
    """The cache below `root`, kept to `max_bytes` by removing what was used longest ago."""

    def __init__(self, root: Path | None = None, max_bytes: int = MAX_BYTES, *, min_free: int = MIN_FREE) -> None:
        self.root = Path(root) if root is not None else default_root()
        self.max_bytes, self.min_free = max_bytes, min_free
        self.folder, self.locks = self.root / "activations", self.root / "locks"

    # -- using

    def get(
        self,
        key: str,
        make: Callable[[Path], Mapping[str, Any]],
        *,
        size: int,
        notice: Callable[[str], None] | None = None,
    ) -> Entry | None:
        """The entry, made if it is not there. A second process that wants it meanwhile waits, then uses it.

        Args:
            make: writes the entry's files into the folder it is given; what it returns becomes `Entry.meta`.
            size: bytes the entry will take.
            notice: told why the cache is not used, when it is not.

        Returns:
            The entry, in use; None where there is no room for it or the folder cannot be written.
        """
        tell = notice or (lambda _: None)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self.locks.mkdir(parents=True, exist_ok=True)
            with self._lock(key):
                if not self._whole(key):
                    self._clear(key)
                    if (why := self._no_room(size)) is not None:
                        tell(f"activations are not cached: {why}")
                        return None
                    self._write(key, make)
                return self._open(key)
        except OSError as e:
            tell(f"activations are not cached: '{self.root}' cannot be used ({e.strerror or e})")
            return None

    def _lock(self, key: str, timeout: float = -1) -> BaseFileLock:
        from filelock import FileLock

        return FileLock(self.locks / f"{key}.lock", timeout=timeout)

    def _open(self, key: str) -> Entry:
        """Mark the entry as used. Call while its lock is held, so that nobody removes it in between."""
        from filelock import FileLock

        marker = FileLock(self.locks / f"{key}.use-{os.getpid()}-{uuid.uuid4().hex[:8]}.lock", thread_local=False)
        marker.acquire()
        with contextlib.suppress(PermissionError):  # a cache that somebody else owns can still be read
            os.utime(self.folder / key / MANIFEST)
        return Entry(self.folder / key, marker)

    def _write(self, key: str, make: Callable[[Path], Mapping[str, Any]]) -> None:
        staging = self.folder / f".tmp-{key}-{uuid.uuid4().hex[:8]}"
        staging.mkdir()
        try:
            meta = dict(make(staging))
            files = {p.name: p.stat().st_size for p in sorted(staging.iterdir())}
            for name in files:
                _sync(staging / name)
            (staging / MANIFEST).write_text(json.dumps({"format": FORMAT, "files": files, "meta": meta}))
            _sync(staging / MANIFEST)
            staging.rename(self.folder / key)
        finally:
            shutil.rmtree(staging, ignore_errors=True)

    def _whole(self, key: str) -> bool:
        """Whether the entry is there with every file at its size."""
        folder = self.folder / key
        try:
            manifest = _manifest(folder)
            return (
                manifest["format"] == FORMAT
                and "meta" in manifest
                and all((folder / name).stat().st_size == size for name, size in manifest["files"].items())
            )
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return False

    def _clear(self, key: str) -> None:
        """Remove a torn entry and what killed processes left of it. Call while its lock is held."""
        for path in (self.folder / key, *self.folder.glob(f".*-{key}-*")):
            shutil.rmtree(path, ignore_errors=True)

    # -- room

    def _no_room(self, size: int) -> str | None:
        """Make room for `size` bytes; why there is none, where there is none."""
        if size > self.max_bytes:
            return f"{_gib(size)} is more than the cache may hold ({_gib(self.max_bytes)})"
        self.prune(self.max_bytes - size)
        if (taken := self.info().bytes) + size > self.max_bytes:
            return f"{_gib(taken)} of the cache's {_gib(self.max_bytes)} is in use by other runs"
        if (free := shutil.disk_usage(self.folder).free) - size < self.min_free:
            return f"only {_gib(free)} of disk is free, {_gib(size)} is needed and {_gib(self.min_free)} is always left"
        return None

    def info(self) -> CacheInfo:
        """What the cache holds."""
        entries = sorted(self._entries(), key=lambda e: (e.last_used, e.key))
        return CacheInfo(self.root, self.max_bytes, tuple(entries))

    def prune(self, max_bytes: int | None = None) -> Pruned:
        """Remove the least recently used entries until `max_bytes` are left (None: the cache's cap; 0: all).

        Leftovers of killed processes go too; entries in use stay.
        """
        self._sweep()
        limit = self.max_bytes if max_bytes is None else max_bytes
        entries = self.info().entries
        left, removed, freed, in_use = sum(e.bytes for e in entries), 0, 0, 0
        for entry in entries:
            if left <= limit:
                break
            if self._evict(entry.key):
                left, removed, freed = left - entry.bytes, removed + 1, freed + entry.bytes
            else:
                in_use += 1
        return Pruned(removed, freed, in_use)

    def _entries(self) -> Iterator[EntryInfo]:
        if not self.folder.is_dir():
            return
        for folder in self.folder.iterdir():
            if not folder.name.startswith("."):
                with contextlib.suppress(OSError):  # removed by another process meanwhile
                    size = sum(p.stat().st_size for p in folder.iterdir())
                    used = (folder / MANIFEST if (folder / MANIFEST).exists() else folder).stat().st_mtime
                    yield EntryInfo(folder.name, size, used, self._in_use(folder.name))

    def _evict(self, key: str) -> bool:
        """Remove an entry unless it is in use or being made."""
        from filelock import Timeout

        try:
            with self._lock(key, timeout=0):
                if self._in_use(key):
                    return False
                old = self.folder / f".old-{key}-{uuid.uuid4().hex[:8]}"
                with contextlib.suppress(FileNotFoundError):
                    (self.folder / key).rename(old)
                shutil.rmtree(old, ignore_errors=True)
                return True
        except Timeout:
            return False

    def _in_use(self, key: str) -> bool:
        """Whether anybody holds one of the entry's markers; those of dead processes are removed."""
        held = [_held(path) for path in self.locks.glob(f"{key}.use-*.lock")]
        return any(held)

    def _sweep(self) -> None:
        """Remove leftovers whose key nobody is working on."""
        from filelock import Timeout

        if not self.folder.is_dir():
            return
        self.locks.mkdir(parents=True, exist_ok=True)
        for path in self.folder.glob(".*-*-*"):
            with contextlib.suppress(Timeout), self._lock(path.name.split("-")[1], timeout=0):
                shutil.rmtree(path, ignore_errors=True)


def _held(marker: Path) -> bool:
    from filelock import FileLock, Timeout

    lock = FileLock(marker, timeout=0)
    try:
        lock.acquire()
    except Timeout:
        return True
    lock.release()
    marker.unlink(missing_ok=True)
    return False


def _manifest(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / MANIFEST).read_text())
    return found


def _sync(path: Path) -> None:
    with path.open("rb+") as f:
        os.fsync(f.fileno())


def _gib(size: int) -> str:
    return f"{size / 2**30:.2f} GiB"
