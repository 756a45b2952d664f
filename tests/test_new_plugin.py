"""`saebench new plugin`: what comes out is clean, installs, and passes its own tests as it is."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

import saebench_meta
from saebench_meta.cli import saebench
from saebench_meta.errors import SaebenchError
from saebench_meta.scaffold import KINDS, TEMPLATES, Kind, files, names_of, write

ROOT = Path(__file__).parents[1]
LONGEST = {"loader": 35, "task": 40, "judge": 35, "architecture": 60}
"""Lines that are not blank."""
READY = tuple(kind for kind in KINDS if kind != "judge" or hasattr(saebench_meta, "JudgeLoader"))


def new(*arguments: str) -> Result:
    return CliRunner().invoke(saebench, ["new", "plugin", *arguments])


def made(folder: Path, name: str, *kinds: Kind) -> Path:
    write(folder / name, files(names_of(name), kinds))
    return folder / name


# -- names


@pytest.mark.parametrize(
    ("name", "module", "short"),
    [
        ("my-sae-task", "my_sae_task", "my_sae_task"),
        ("saebench-thing", "saebench_thing", "thing"),
        ("A.b__C", "a_b_c", "a_b_c"),
        ("saebench-class", "saebench_class", "saebench_class"),
        ("saebench-2", "saebench_2", "saebench_2"),
    ],
)
def test_a_name_gives_those_of_package_and_task(name: str, module: str, short: str) -> None:
    names = names_of(name)
    assert (names.distribution, names.module, names.short) == (name, module, short)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("3d-saes", "a letter first, e.g."),
        ("../../etc", "no package can be called"),
        ("a b", "no package can be called"),
        ("my-", "no package can be called"),
        ("é", "no package can be called"),
        ("x" * 41, "no package can be called"),
        ("class", "means something to Python"),
        ("json", "means something to Python"),
        ("torch", "installed here already"),
        ("saebench-meta", "installed here already"),
    ],
)
def test_a_name_that_cannot_be_is_refused(name: str, said: str) -> None:
    with pytest.raises(SaebenchError, match=said):
        names_of(name)


def test_a_name_that_a_plugin_offers_is_refused(tmp_path: Path) -> None:
    done = new("saebench-core", "-o", str(tmp_path / "x"))
    assert done.exit_code == 2 and "there is a task 'core' already, of plugin 'core'" in done.stderr
    assert not (tmp_path / "x").exists()
    assert new("saebench-core", "--loader", "-o", str(tmp_path / "x")).exit_code == 0  # no loader is called that


def test_a_folder_that_is_there_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    done = new("mine", "-o", str(tmp_path / "mine"))
    assert done.exit_code == 2 and "is there already" in done.stderr
    assert list((tmp_path / "mine").iterdir()) == []


def test_what_cannot_be_written_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(SaebenchError, match="cannot be written"):
        made(tmp_path / "file", "mine", "task")
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


# -- what comes out


def test_without_a_kind_it_is_a_task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    done = new("my-sae-task")
    assert done.exit_code == 0, done.output
    assert "saebench check --plugin my-sae-task" in done.stdout
    modules = {p.name for p in (tmp_path / "my-sae-task" / "my_sae_task").iterdir()}
    assert modules == {"__init__.py", "py.typed", "task.py"}


def test_every_file_of_a_package_is_there(tmp_path: Path) -> None:
    folder = made(tmp_path, "mine", *KINDS)
    found = {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}
    both = {f"{place}{kind}.py" for kind in KINDS for place in ("mine/", "tests/test_")}
    rest = {".gitignore", "LICENSE", "README.md", "docs/index.md", "pyproject.toml", ".github/workflows/test.yml"}
    assert found == both | rest | {"mine/__init__.py", "mine/py.typed", "tests/test_rules.py"}


@pytest.mark.parametrize("kind", KINDS)
def test_a_module_is_short(kind: Kind) -> None:
    text = files(names_of("mine"), [kind])[Path("mine", f"{kind}.py")]
    assert len([line for line in text.splitlines() if line.strip()]) <= LONGEST[kind]


@pytest.mark.skipif(importlib.util.find_spec("ruff") is None, reason="ruff is not installed")
@pytest.mark.parametrize("kinds", [*([kind] for kind in KINDS), list(KINDS)], ids=",".join)
def test_it_is_clean(kinds: list[Kind], tmp_path: Path) -> None:
    folder = made(tmp_path, "a-rather-long-name-for-a-plugin", *kinds)
    for command in (["check"], ["format", "--check"]):
        done = subprocess.run(
            [sys.executable, "-m", "ruff", *command, "--no-cache", "."],
            cwd=folder,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout
    text = "".join(p.read_text() for p in folder.rglob("*") if p.is_file())
    assert "{{" not in text.replace("${{ matrix.python }}", "") and "{%" not in text


def test_its_licence_is_this_projects() -> None:
    assert (TEMPLATES / "LICENSE.jinja").read_text() == (ROOT / "LICENSE").read_text()


def test_its_actions_are_pinned_as_this_projects() -> None:
    def pins(path: Path) -> set[str]:
        return set(re.findall(r"uses: (\S+@[0-9a-f]{40} # v\S+)", path.read_text()))

    own = set().union(*map(pins, (ROOT / ".github" / "workflows").glob("*.yml")))
    template = TEMPLATES / "github" / "workflows" / "test.yml.jinja"
    assert pins(template) <= own
    assert len(pins(template)) == template.read_text().count("uses:")


# -- installed


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    """A package with a plugin of every kind, installed; and an environment in which it is found."""
    folder = made(tmp_path_factory.mktemp("new"), "saebench-mine", *READY)
    target = tmp_path_factory.mktemp("site")
    flags = ["--quiet", "--no-index", "--no-build-isolation", "--no-deps", "--disable-pip-version-check", "--target"]
    command = [sys.executable, "-m", "pip", "install", *flags, str(target), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    path = os.pathsep.join(p for p in (str(target), os.environ.get("PYTHONPATH")) if p)
    return folder, {**os.environ, "PYTHONPATH": path}


@pytest.mark.slow
def test_its_own_tests_pass(package: tuple[Path, dict[str, str]]) -> None:
    folder, environment = package
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=580, check=False
    )
    assert done.returncode == 0, done.stdout
    passed = int(re.search(r"(\d+) passed", done.stdout)[1])  # type: ignore[index]
    assert passed > 10 * len(READY) - 5


@pytest.mark.slow
def test_it_keeps_the_rules(package: tuple[Path, dict[str, str]]) -> None:
    folder, environment = package
    command = [sys.executable, "-m", "saebench_meta.cli", "check", "--plugin", "saebench-mine", "--json"]
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=580, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    told = json.loads(done.stdout)
    assert told["faults"] == []
    assert {c["id"].partition(" ")[0] for c in told["checks"]} == {"plugin", *READY}
    assert sum(c["status"] == "ok" for c in told["checks"]) > 10 * len(READY) - 5
