"""A plugin package of a third party: installed without a network, found, and run through the command line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from saebench_meta import Codes, load_sae

PACKAGE = Path(__file__).parent / "third_party"


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `saebench-example-plugin` in it, as pip puts it there."""
    target = tmp_path_factory.mktemp("site")
    flags = ["--quiet", "--no-index", "--no-build-isolation", "--no-deps", "--disable-pip-version-check", "--target"]
    command = [sys.executable, "-m", "pip", "install", *flags, str(target), str(PACKAGE)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    return target


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A shipped SAE, written in the plugin's format."""
    sae = load_sae("atlas:batchtopk-128")
    path = tmp_path_factory.mktemp("npz") / "tiny.npz"
    weights = {name: getattr(sae, name).numpy() for name in ("W_enc", "b_enc", "W_dec", "b_dec")}
    np.savez(path, **weights, model=sae.info.site.model, hook=sae.info.site.hook)
    return path


def saebench(installed: Path, *arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join(p for p in (str(installed), os.environ.get("PYTHONPATH")) if p)
    environment = {**os.environ, "PYTHONPATH": path}
    command = [sys.executable, "-m", "saebench_meta.cli", *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment, cwd=cwd, timeout=500, check=False)


def test_it_is_listed_with_its_version_and_without_problems(installed: Path) -> None:
    done = saebench(installed, "plugins", "--json")
    assert done.returncode == 0, done.stderr
    listed = {p["name"]: p for p in map(json.loads, done.stdout.splitlines())}
    for name, kind, gives in (("example_npz", "SAE loader", "npz"), ("example_persistence", "task", "persistence")):
        plugin = listed[name]
        assert (plugin["distribution"], plugin["version"]) == ("saebench-example-plugin", "0.1.0")
        assert plugin["problems"] == []
        assert plugin["provides"][kind] == [gives]


def test_it_keeps_the_rules(installed: Path) -> None:
    done = saebench(installed, "check", "--plugin", "saebench-example-plugin", "--json")
    told = json.loads(done.stdout)
    assert told["faults"] == [] and done.returncode == 0
    assert {check["id"].partition(" ")[0] for check in told["checks"]} == {"plugin", "loader", "task"}
    assert sum(check["status"] == "ok" for check in told["checks"]) >= 20


def test_its_task_runs_on_its_sae(installed: Path, archive: Path, tmp_path: Path) -> None:
    arguments = ["--sae", f"npz:{archive}", "--tasks", "persistence", "--corpus", "atlas", "--limit", "20", "--json"]
    done = saebench(installed, "run", *arguments, "-o", str(tmp_path / "out"), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (path,) = (tmp_path / "out").rglob("record.json")
    record = json.loads(path.read_text())
    assert record["status"] == "ok"
    assert record["task"]["name"] == "persistence"
    kept = record["metrics"]["kept"]
    assert 0 < kept["ci_low"] <= kept["value"] <= kept["ci_high"] < 1
    assert kept["n"] == 20
    crowding = record["metrics"]["crowding"]
    assert (crowding["method"], crowding["n"]) == ("census", 128)
    assert set(kept["controls"]) == set(crowding["controls"]) == {"random", "oracle"}
    assert crowding["controls"]["random"]["value"] != crowding["value"]


def test_a_bare_path_finds_the_third_partys_loader_and_a_builtin_task_runs_on_it(
    installed: Path, archive: Path, tmp_path: Path
) -> None:
    arguments = ["--sae", str(archive), "--tasks", "core", "--corpus", "atlas", "--limit", "10", "--dry-run", "--json"]
    done = saebench(installed, "run", *arguments, "-o", str(tmp_path / "out"), cwd=tmp_path)
    assert done.returncode == 0, done.stderr


def test_a_file_that_is_no_archive_is_one_clear_error(installed: Path, tmp_path: Path) -> None:
    class Hostile:
        def __reduce__(self) -> tuple[object, ...]:
            return os.system, (f"touch {tmp_path / 'owned'}",)

    np.savez(tmp_path / "bad.npz", W_enc=np.array([Hostile()], dtype=object))
    arguments = ["--sae", f"npz:{tmp_path / 'bad.npz'}", "--tasks", "persistence", "-o", str(tmp_path / "out")]
    done = saebench(installed, "run", *arguments)
    assert done.returncode == 2
    assert "bad.npz" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "owned").exists()


# -- the task's own numbers, worked out by hand


def test_persistence_counts_latents_that_stay_on_within_a_document(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.syspath_prepend(str(PACKAGE))
    from saebench_example import persistence

    # Document 0: {0,1} {1} {1,2}; document 1: {1} {0}. From the last token of a document nothing goes on.
    f = torch.tensor([[1, 1, 0], [0, 1, 0], [0, 1, 1], [0, 1, 0], [1, 0, 0]], dtype=torch.float32)
    stayed, active = persistence.transitions(Codes.from_dense(f), torch.tensor([0, 0, 0, 1, 1]), n_docs=2)
    assert stayed.tolist() == [2, 0]
    assert active.tolist() == [3, 1]


def test_crowding_is_the_mean_largest_cosine(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.syspath_prepend(str(PACKAGE))
    from saebench_example import persistence

    # Cosines of rows: 0-1 is 0, 0-2 and 1-2 are 1/sqrt 2; lengths do not matter.
    rows = torch.tensor([[2.0, 0.0], [0.0, 1.0], [3.0, 3.0]])
    assert float(persistence.crowding(rows)) == pytest.approx(0.5**0.5)
