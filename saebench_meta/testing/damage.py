"""Damaged copies of an SAE's files, of which a loader may make one clear error and nothing else."""

from __future__ import annotations

import io
import os
import pickle
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MOST_BYTES = 64 << 20
"""Files of more bytes than this together are not copied."""


class Sabotage:
    """Unpickling this makes a folder."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.target),)


@dataclass(frozen=True)
class Damaged:
    """A copy of an SAE with one file damaged.

    Attributes:
        ref: what the loader takes.
        file: the file that is damaged.
        how: in words.
        trap: made if the file is unpickled.
    """

    ref: str
    file: Path
    how: str
    trap: Path


def files_of(ref: str) -> list[Path]:
    """The files of a reference that is a path, in a stable order; empty where it is none, or they are large."""
    path = Path(ref)
    files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else []
    return files if sum(p.stat().st_size for p in files) <= MOST_BYTES else []


def damaged_copies(ref: str, folder: Path) -> Iterator[Damaged]:
    """Every file of an SAE damaged in every way, one at a time, in copies below a folder."""
    source = Path(ref)
    for file in files_of(ref):
        inside = Path(file.name) if source.is_file() else Path(source.name) / file.relative_to(source)
        for number, (how, damage) in enumerate(DAMAGES.items()):
            place = folder / f"{len(list(folder.iterdir()))}-{number}"
            place.mkdir()
            copy = place / source.name
            shutil.copytree(source, copy) if source.is_dir() else shutil.copy(source, copy)
            trap = place / "unpickled"
            (place / inside).write_bytes(damage(file, trap))
            yield Damaged(str(copy), place / inside, how, trap)


def _pickled(file: Path, trap: Path) -> bytes:
    """A file of the same kind whose content makes a folder when it is unpickled."""
    match file.suffix:
        case ".npz" | ".npy":
            import numpy as np

            out = io.BytesIO()
            np.savez(out, W_enc=np.array([Sabotage(trap)], dtype=object))
            return out.getvalue()
        case ".pt" | ".pth" | ".bin" | ".ckpt":
            import torch

            out = io.BytesIO()
            torch.save({"W_enc": Sabotage(trap)}, out)
            return out.getvalue()
    return pickle.dumps(Sabotage(trap))


DAMAGES: Mapping[str, Callable[[Path, Path], bytes]] = {
    "empty": lambda file, trap: b"",  # noqa: ARG005
    "cut in half": lambda file, trap: file.read_bytes()[: file.stat().st_size // 2],  # noqa: ARG005
    "noise": lambda file, trap: bytes(range(256)) * 4,  # noqa: ARG005
    "a pickle that runs code": _pickled,
}
"""How a file can be damaged: in words -> `(sound file, folder that a pickle would make) -> bytes`."""
