"""What identifies a build of atlas: its corpus, its files, and what it was built with."""

from __future__ import annotations

import hashlib
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from saebench_plugins.atlas.site import CORPUS_DOCUMENTS, CORPUS_SEED, MANIFEST
from saebench_plugins.atlas.world import documents, fingerprint


def corpus_card() -> dict[str, Any]:
    """What identifies the evaluation corpus, which is generated anew when it is asked for."""
    texts = documents(CORPUS_DOCUMENTS, CORPUS_SEED, "evaluation")
    return {
        "split": "evaluation",
        "seed": CORPUS_SEED,
        "documents": len(texts),
        "words": sum(len(text.split()) for text in texts),
        "sha256": fingerprint(texts),
    }


def built_with(device: str) -> dict[str, Any]:
    """Versions and hardware that the bytes of a build depend on."""
    packages = ("torch", "transformers", "tokenizers", "safetensors", "numpy", "scipy")
    return {
        "python": platform.python_version(),
        **{name: version(name) for name in packages},
        "device": device,
        "threads": torch.get_num_threads(),
        "machine": platform.machine(),
    }


def file_hashes(out: Path) -> dict[str, dict[str, Any]]:
    """Size and sha256 of every file below `out` but the manifest, by relative path."""
    files = sorted(path for path in out.rglob("*") if path.is_file() and path.name != MANIFEST)
    return {
        path.relative_to(out).as_posix(): {
            "bytes": path.stat().st_size,
            "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        }
        for path in files
    }
