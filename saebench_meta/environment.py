"""What a number was made with: versions, the package's own commit, Python, machine. Imports no torch.

The commit is that of the checkout this package is installed from, never that of the folder the user stands in: a wheel
in a virtual environment inside somebody's repository has no commit.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

import saebench_meta

if TYPE_CHECKING:
    from saebench_meta.record import Versions

DISTRIBUTION = "saebench-meta"
OWN_FOLDERS = ("saebench_meta", "plugins", "tasks", "pyproject.toml")
GIT_SECONDS = 5


def versions() -> Versions:
    """Versions for a record; the GPU is named only if torch is imported already."""
    from saebench_meta.record import Versions

    commit, dirty = commit_of(Path(saebench_meta.__file__).resolve().parent)
    return Versions(
        saebench_meta=saebench_meta.__version__,
        commit=commit,
        dirty=dirty,
        python=platform.python_version(),
        torch=version_of("torch"),
        transformer_lens=version_of("transformer-lens"),
        platform=platform.platform(),
        gpu=_gpu(),
    )


def version_of(distribution: str) -> str | None:
    """The installed version of a distribution, read from its metadata."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


@lru_cache(maxsize=8)
def commit_of(package: Path) -> tuple[str | None, bool | None]:
    """Commit and dirty flag of the checkout a package folder stands in; (None, None) for an installed wheel.

    The checkout is only looked for directly above the package: a repository further up is somebody else's.
    """
    root = package.parent
    if not (root / ".git").exists():
        return _recorded_commit() if "site-packages" in package.parts else (None, None)
    commit = _git(root, "rev-parse", "HEAD")
    if commit is None:
        return None, None
    own = [name for name in OWN_FOLDERS if (root / name).exists()]
    status = _git(root, "status", "--porcelain", "--", *own)
    return commit, None if status is None else bool(status)


def _git(root: Path, *arguments: str) -> str | None:
    """Output of a git command that only reads; None if git is absent or refuses."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("GIT_")}
    command = ["git", "--no-optional-locks", "-C", str(root), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=GIT_SECONDS, env=environment)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _recorded_commit() -> tuple[str | None, bool | None]:
    """The commit an installer wrote down when it installed straight from a repository (PEP 610)."""
    try:
        text = metadata.distribution(DISTRIBUTION).read_text("direct_url.json")
    except metadata.PackageNotFoundError:
        return None, None
    commit = json.loads(text).get("vcs_info", {}).get("commit_id") if text else None
    return (commit, False) if commit else (None, None)


def _gpu() -> str | None:
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_available():
        return None
    return str(torch.cuda.get_device_name())
