"""SAEs that runs have trained and keep in the cache: how many, how large, and their removal. No torch."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

FOLDER = "trained"
"""Folder of the cache that holds them, `<FOLDER>/<key>/<label>/`."""
FINISHED, LOCK = "training.json", ".lock"


@dataclass(frozen=True)
class Kept:
    """One of them. `label` is its recipe's, `bytes` its size, `finished` whether it was trained to the end."""

    path: Path
    label: str
    bytes: int
    finished: bool


def kept(root: Path) -> list[Kept]:
    """All of them below a cache's root, in the order of their names."""
    found = []
    for path in sorted(p for p in (root / FOLDER).glob("*/*") if p.is_dir()):
        size = sum(f.stat().st_size for f in path.rglob("*") if f.is_file())
        if any(f.name != LOCK for f in path.iterdir()):
            found.append(Kept(path, _label(path), size, (path / FINISHED).is_file()))
    return found


def remove(one: Kept) -> bool:
    """Remove it, unless a process trains it at the moment; whether it was removed."""
    from filelock import FileLock, Timeout

    lock = FileLock(one.path / LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return False
    try:
        for path in one.path.iterdir():
            if path.name != LOCK:  # another process may be waiting for this very file
                shutil.rmtree(path) if path.is_dir() else path.unlink()
    finally:
        lock.release()
    return True


def _label(path: Path) -> str:
    try:
        recipe = json.loads((path / "recipe.json").read_bytes())
        return f"{recipe['architecture']}, {recipe['d_sae']:,} latents, {recipe['tokens']:,} tokens"
    except (OSError, ValueError, KeyError, TypeError):
        return path.name
