"""What is built is whole: three packages, their data, and a command that works from the wheel alone."""

from __future__ import annotations

import ast
import importlib
import importlib.metadata as metadata
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
SOURCES = {
    "saebench_meta": ROOT / "saebench_meta",
    "saebench_plugins": ROOT / "plugins" / "saebench_plugins",
    "saebench_tasks": ROOT / "tasks" / "saebench_tasks",
}

needs_make = pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def modules() -> Iterator[tuple[str, Path]]:
    """Every module of the three packages: dotted name and file."""
    for package, folder in SOURCES.items():
        for file in sorted(folder.rglob("*.py")):
            parts = [package, *file.relative_to(folder).with_suffix("").parts]
            yield ".".join(p for p in parts if p != "__init__"), file


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built with the installed back end: no isolation, no network."""
    folder = tmp_path_factory.mktemp("wheel")
    flags = ["--quiet", "--no-index", "--no-build-isolation", "--no-deps", "--disable-pip-version-check"]
    command = [sys.executable, "-m", "pip", "wheel", *flags, "--wheel-dir", str(folder), str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="session")
def contents(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


def test_the_wheels_top_level_names_are_the_three_packages(contents: set[str]) -> None:
    top = {name.partition("/")[0] for name in contents}
    assert top == {*SOURCES, f"saebench_meta-{PROJECT['project']['version']}.dist-info"}


def test_the_wheel_holds_every_file_of_the_packages(contents: set[str]) -> None:
    for package, folder in SOURCES.items():
        files = {f for f in folder.rglob("*") if f.is_file() and "__pycache__" not in f.parts}
        assert {f"{package}/{f.relative_to(folder).as_posix()}" for f in files} <= contents


def test_the_wheel_is_typed_and_carries_its_data_and_licence(contents: set[str]) -> None:
    assert {f"{package}/py.typed" for package in SOURCES} <= contents
    for pattern in (
        r"saebench_plugins/atlas/data/.+\.safetensors",
        r"saebench_plugins/cities/cities\.json",
        r"saebench_meta/schema/.+\.json",
        r"saebench_meta/templates/.+",
        r"saebench_meta-.+\.dist-info/licenses/LICENSE",
    ):
        assert any(re.fullmatch(pattern, name) for name in contents), pattern


def test_the_licence_is_apache_2() -> None:
    text = (ROOT / "LICENSE").read_text()
    assert text.split()[:4] == ["Apache", "License", "Version", "2.0,"]
    assert "END OF TERMS AND CONDITIONS" in text


def test_the_version_is_said_once_everywhere() -> None:
    import saebench_meta

    version = PROJECT["project"]["version"]
    assert saebench_meta.__version__ == metadata.version("saebench-meta") == version
    assert f"\nversion: {version}\n" in (ROOT / "CITATION.cff").read_text()


@pytest.mark.slow
def test_the_wheel_alone_runs_a_task(wheel: Path, tmp_path: Path) -> None:
    target, elsewhere = tmp_path / "site", tmp_path / "elsewhere"
    elsewhere.mkdir()
    flags = ["--quiet", "--no-index", "--no-deps", "--disable-pip-version-check", "--target", str(target)]
    subprocess.run([sys.executable, "-m", "pip", "install", *flags, str(wheel)], check=True, timeout=300)
    # The dependencies come from this environment, the package must not: an editable install's path is taken away.
    script = (
        f"import sys; repository, target = {str(ROOT)!r}, {str(target)!r}\n"
        "sys.path[:] = [p for p in sys.path if not p.startswith(repository) or 'site-packages' in p]\n"
        "sys.meta_path[:] = [f for f in sys.meta_path if 'editable' not in repr(f).lower()]\n"
        "import saebench_meta, saebench_plugins, saebench_tasks\n"
        "for m in (saebench_meta, saebench_plugins, saebench_tasks): assert m.__file__.startswith(target), m.__file__\n"
        "from saebench_meta.cli import main\nmain()"
    )
    arguments = ["run", "--sae", "atlas:batchtopk-128", "--tasks", "core", "--limit", "20", "-o", "out"]
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments],
        cwd=elsewhere,
        env={**os.environ, "PYTHONPATH": str(target)},
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    (record,) = (elsewhere / "out").rglob("record.json")
    assert json.loads(record.read_text())["status"] == "ok"


# -- imports and dependencies


@pytest.mark.parametrize("name", [name for name, _ in modules()])
def test_every_module_imports(name: str) -> None:
    if not name.endswith("__main__"):
        importlib.import_module(name)


def test_entry_points_name_modules_that_exist() -> None:
    points = {
        e.name: e.value
        for e in metadata.entry_points(group="saebench_meta")
        if e.dist and e.dist.name == "saebench-meta"
    }
    assert points == PROJECT["project"]["entry-points"]["saebench_meta"]
    known = {name for name, _ in modules()}
    assert set(points.values()) <= known


def imported() -> dict[str, set[str]]:
    """Top-level name of everything imported from outside -> the modules that do."""
    found: dict[str, set[str]] = {}
    for name, file in modules():
        for node in ast.walk(ast.parse(file.read_text())):
            names: list[str] = []
            if isinstance(node, ast.Import):
                names = [a.name for a in node.names]
            elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
                names = [node.module]
            for top in {n.partition(".")[0] for n in names} - set(sys.stdlib_module_names) - set(SOURCES):
                found.setdefault(top, set()).add(name)
    return found


def distributions_of(top: str) -> set[str]:
    return {canonical(d) for d in metadata.packages_distributions().get(top, [top])}


def declared(*extras: str) -> set[str]:
    project = PROJECT["project"]
    lines = [*project["dependencies"], *(line for e in extras for line in project["optional-dependencies"][e])]
    return {canonical(re.split(r"[\s<>=!~\[;]", line)[0]) for line in lines}


def test_everything_imported_is_declared() -> None:
    allowed = declared("saelens")
    missing = {top: by for top, by in imported().items() if not distributions_of(top) & allowed}
    assert missing == {}


# Used without an import of its own: pandas writes parquet with pyarrow, Altair renders through vl-convert, and datasets
# reads .zst files, as which the Pile comes, with zstandard.
INDIRECT = {"pyarrow", "vl-convert-python", "zstandard"}


def test_everything_declared_is_used() -> None:
    used = {d for top in imported() for d in distributions_of(top)}
    assert declared() - INDIRECT <= used


@pytest.mark.parametrize("name", ["constraints.txt", "constraints-saelens.txt"])
def test_constraints_pin_every_dependency_and_begin_with_torch(name: str) -> None:
    lines = (ROOT / name).read_text().splitlines()
    assert re.fullmatch(r"torch==[\d.]+", lines[0])
    pins = [line for line in lines if line and not line.startswith("#")]
    assert all(re.fullmatch(r"[a-z0-9-]+==[\w.]+", pin) for pin in pins)
    pinned = {pin.partition("==")[0] for pin in pins}
    assert len(pinned) == len(pins)
    wanted = declared("dev", "saelens") if "saelens" in name else declared("dev")
    assert wanted | {"hatchling", "editables"} <= pinned


def test_no_file_names_a_package_index() -> None:
    for name in ("Makefile", "pyproject.toml", "constraints.txt", "constraints-saelens.txt", ".ci/run"):
        assert not re.search(r"https?://", (ROOT / name).read_text()), name


# -- make


def make(*arguments: str, venv: Path) -> subprocess.CompletedProcess[str]:
    command = ["make", "--no-print-directory", f"VENV={venv}", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)


def python_that(tmp_path: Path, condition: str) -> Path:
    """An interpreter that fails when its code holds a word."""
    script = tmp_path / "python"
    script.write_text(f'#!/bin/sh\ncase "$2" in *{condition}*) exit 1;; esac\nexec "{sys.executable}" "$@"\n')
    script.chmod(0o755)
    return script


@needs_make
@pytest.mark.parametrize(
    ("condition", "message"),
    [
        ("version_info", "is not Python 3.11 or newer"),
        ("ensurepip", "cannot make virtual environments: its modules venv and ensurepip are missing. Install them"),
    ],
)
def test_make_says_what_to_install(tmp_path: Path, condition: str, message: str) -> None:
    done = make("demo", f"PYTHON={python_that(tmp_path, condition)}", venv=tmp_path / "venv")
    assert done.returncode != 0
    assert message in done.stderr
    assert not (tmp_path / "venv").exists()


@needs_make
def test_make_says_that_there_is_no_python(tmp_path: Path) -> None:
    done = make("demo", f"PYTHON={tmp_path / 'nothing'}", venv=tmp_path / "venv")
    assert done.returncode != 0
    assert f"No Python 3.11 or newer was found at {tmp_path / 'nothing'}" in done.stderr


@needs_make
@pytest.mark.parametrize("target", ["demo", "test", "check", "bench"])
def test_make_installs_torch_first_and_alone(tmp_path: Path, target: str) -> None:
    done = make("-n", target, venv=tmp_path / "venv")
    assert done.returncode == 0, done.stderr
    installs = [line for line in done.stdout.splitlines() if " -m pip install " in line]
    assert installs[0].split()[-1] == "torch"
    assert all("-c constraints.txt" in line for line in installs)
    assert any("[dev]" in line for line in installs) == (target != "demo")


@needs_make
def test_one_variable_chooses_the_torch_build(tmp_path: Path) -> None:
    done = make("-n", "demo", "TORCH_INDEX=file:///builds", venv=tmp_path / "venv")
    with_index = [line for line in done.stdout.splitlines() if "--index-url" in line]
    assert len(with_index) == 1
    assert with_index[0].endswith('--no-deps --index-url "file:///builds" torch')
