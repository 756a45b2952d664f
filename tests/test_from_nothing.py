"""The tutorial: an empty folder, a package of one's own, a run, a row on a leaderboard."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SAE = "atlas:batchtopk-256"
LOOK = ("--allow", "quick,dirty")
SECONDS = 1200  # against a command that hangs; the run takes about one minute on an idle machine

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


class User:
    """Somebody who types commands in a folder that holds nothing."""

    def __init__(self, root: Path) -> None:
        self.folder, self.site = root / "empty", root / "site"
        self.folder.mkdir()
        path = os.pathsep.join(p for p in (str(self.site), os.environ.get("PYTHONPATH")) if p)
        self.environment = {**os.environ, "PYTHONPATH": path, "SAEBENCH_CACHE_DIR": str(root / "cache")}

    def saebench(self, *arguments: str) -> str:
        return self.types(sys.executable, "-m", "saebench_meta.cli", *arguments)

    def types(self, *command: str) -> str:
        done = subprocess.run(
            command,
            cwd=self.folder,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=SECONDS,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout


def test_from_an_empty_folder_to_a_row_with_the_new_tasks_column(tmp_path: Path) -> None:
    user = User(tmp_path)
    user.saebench("new", "plugin", "my-sae-task")
    flags = ["--quiet", "--no-index", "--no-build-isolation", "--no-deps", "--disable-pip-version-check"]
    user.types(sys.executable, "-m", "pip", "install", *flags, "--target", str(user.site), "./my-sae-task")
    user.saebench(
        *("run", "--sae", SAE, "--tasks", "all", "-o", "out", "--profile", "quick", "--tokens", "2048"),
        *("-P", "broken_latents.worlds=toy:absorption-4"),
    )
    user.saebench("leaderboard", "add", "out", "--results", "board/results", *LOOK)
    user.saebench("leaderboard", "build", "--results", "board/results", *LOOK)

    board = json.loads((user.folder / "board" / "leaderboard.json").read_text())
    (row,) = [r for r in board["rows"] if r["kind"] == "sae"]
    assert row["name"] == "atlas-batchtopk-256"
    (column,) = [c for c in board["columns"] if c["key"] == "my_sae_task@1.reuse"]
    assert column["plugin"].startswith("my-sae-task:") and column["unit"] == "activations" and column["main"]
    cell = row["cells"]["my_sae_task@1.reuse"]
    assert cell["low"] < cell["value"] < cell["high"] and cell["value"] >= 1 and cell["n"] > 10
    # Beside it stand the built-in tasks that one SAE can have.
    built_in = "core novel_latents stitching meta_sae autointerp sparse_probing tpp city_steering broken_latents"
    assert set(built_in.split()) <= {c["task"] for c in board["columns"]}
    assert "reuse" in (user.folder / "board" / "table.md").read_text()
    assert "my_sae_task@1" in (user.folder / "board" / "site" / "data" / "board.js").read_text()
