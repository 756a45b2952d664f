"""A plugin's fault stays with it: it is named with its reason, and everything else works."""

from __future__ import annotations

import importlib
import importlib.metadata as metadata
import json
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from saebench_meta import hookspecs
from saebench_meta.errors import PluginError, UnknownNameError
from saebench_meta.events import Notice
from saebench_meta.plugins import Registry

HEAD = """
from saebench_meta import SAELoader, hookimpl
from saebench_meta.task import Metric, Output, task
saebench_api = 1

def make(name):
    @task(name, version=1, metrics=[Metric("m", better="neither", unit="1", main=True)], controls=[])
    def function(sae, ctx):
        "A task."
        return Output(estimates={"m": ctx.census(1.0, 1)})
    return function
"""
FINE = HEAD + "@hookimpl\ndef saebench_tasks():\n    return [make('fine')]\n"
TWIN = HEAD + (
    "@hookimpl\ndef saebench_tasks():\n    return [make('twin'), make('only_in_NAME')]\n"
    "@hookimpl\ndef saebench_loaders():\n    return {'twin': SAELoader(print)}\n"
)

BROKEN = {
    "needs_a_missing_library": (
        "import no_such_library_at_all\n",
        "ModuleNotFoundError: No module named 'no_such_library",
    ),
    "has_a_syntax_error": ("def f(:\n", "SyntaxError"),
    "leaves_the_program": ("raise SystemExit(3)\n", "import failed: SystemExit: 3"),
    "misspelt": (
        HEAD + "@hookimpl\ndef saebench_task():\n    return []\n",
        "'saebench_task', which is no hook; did you mean",
    ),
    "unmarked": (
        HEAD + "def saebench_tasks():\n    return []\n",
        "'saebench_tasks' is not marked: put `@saebench_meta.hookimpl`",
    ),
    "foreign": (
        HEAD + "saebench_api = 99\n",
        "was written for plugin API 99; this version of saebench-meta speaks API 1",
    ),
    "without_api": ("x = 1\n", "has no `saebench_api`"),
    "raises": (
        HEAD + "@hookimpl\ndef saebench_tasks():\n    raise RuntimeError('no licence')\n",
        "RuntimeError: no licence",
    ),
    "gives_a_number": (
        HEAD + "@hookimpl\ndef saebench_loaders():\n    return 3\n",
        "saebench_loaders failed: TypeError",
    ),
    "gives_strings": (
        HEAD + "@hookimpl\ndef saebench_tasks():\n    return ['core']\n",
        "expected a Task (made by @task), got str",
    ),
    "wants_an_argument": (HEAD + "@hookimpl\ndef saebench_tasks(model):\n    return []\n", "model"),
    "bad_metric": (HEAD + "Metric('a b', better='higher', unit='1')\n", "metric name 'a b' is not an identifier"),
}


def install(folder: Path, name: str, code: str, entry_points: dict[str, str] | None = None) -> None:
    """What installing a distribution with one module leaves in a folder."""
    (folder / f"{name}.py").write_text(code)
    info = folder / f"{name}-1.0.dist-info"
    info.mkdir()
    info.joinpath("METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    lines = "\n".join(f"{k} = {v}" for k, v in (entry_points or {name: name}).items())
    info.joinpath("entry_points.txt").write_text(f"[saebench_meta]\n{lines}\n")


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder on the import path to install plugins in; `fine` is in it."""
    install(tmp_path, "fine", FINE)
    monkeypatch.syspath_prepend(str(tmp_path))
    before = set(sys.modules)
    yield tmp_path
    for name in {p.stem for p in tmp_path.glob("*.py")} & (set(sys.modules) - before):
        del sys.modules[name]


def found_in(folder: Path) -> Registry:
    importlib.invalidate_caches()
    registry = Registry()
    registry.discover(e for d in metadata.distributions(path=[str(folder)]) for e in d.entry_points)
    return registry


def problems(registry: Registry, name: str) -> list[str]:
    return next(p for p in registry.plugins if p.name == name).problems


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_plugin_is_named_with_its_reason_and_the_rest_works(site: Path, name: str) -> None:
    code, reason = BROKEN[name]
    install(site, name, code)
    registry = found_in(site)
    (problem,) = problems(registry, name)
    assert reason in problem
    assert problems(registry, "fine") == []
    assert list(registry.tasks) == ["fine"]


def test_two_plugins_claiming_one_name_are_both_named_and_neither_is_used(site: Path) -> None:
    for name in ("twin_a", "twin_b"):
        install(site, name, TWIN.replace("NAME", name))
    registry = found_in(site)
    assert sorted(registry.tasks) == ["fine", "only_in_twin_a", "only_in_twin_b"]
    assert "twin" not in registry.loaders
    for mine, other in (("twin_a", "twin_b"), ("twin_b", "twin_a")):
        assert any(f"task 'twin' is also claimed by plugin '{other}' ({other})" in p for p in problems(registry, mine))
        assert any(f"SAE loader 'twin' is also claimed by plugin '{other}'" in p for p in problems(registry, mine))
    with pytest.raises(
        PluginError, match=r"task 'twin' is claimed by plugins 'twin_a' \(twin_a\) and 'twin_b' \(twin_b\)"
    ):
        registry.tasks["twin"]


def test_two_entry_points_for_one_module_disturb_nobody(site: Path) -> None:
    install(site, "doubled", HEAD, {"once": "doubled", "twice": "doubled"})
    registry = found_in(site)
    assert problems(registry, "once") == []
    assert len(problems(registry, "twice")) == 1
    assert list(registry.tasks) == ["fine"]


def test_what_a_plugin_gave_before_it_failed_is_kept(site: Path) -> None:
    install(
        site, "half", HEAD + "@hookimpl\ndef saebench_tasks():\n    yield make('first')\n    raise OSError('gone')\n"
    )
    registry = found_in(site)
    assert sorted(registry.tasks) == ["fine", "first"]
    assert problems(registry, "half") == ["saebench_tasks failed: OSError: gone"]


def test_a_hook_that_fails_leaves_the_plugins_other_hooks_working(site: Path) -> None:
    code = FINE.replace("'fine'", "'other'") + "@hookimpl\ndef saebench_loaders():\n    raise OSError('gone')\n"
    install(site, "partly", code)
    registry = found_in(site)
    assert "other" in registry.tasks
    assert problems(registry, "partly") == ["saebench_loaders failed: OSError: gone"]


def test_an_unknown_name_is_answered_with_the_nearest(site: Path) -> None:
    with pytest.raises(UnknownNameError, match="no task is called 'fin'; did you mean 'fine'"):
        found_in(site).tasks["fin"]


def test_a_disabled_plugin_is_not_even_imported(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(site, "noisy", "raise RuntimeError('imported')\n")
    monkeypatch.setenv("SAEBENCH_DISABLE_PLUGINS", "noisy")
    assert [p.name for p in found_in(site).plugins] == ["fine"]


def test_a_slow_import_is_marked(site: Path) -> None:
    install(site, "sleepy", "import time; time.sleep(0.31)\n" + HEAD)
    sleepy = next(p for p in found_in(site).plugins if p.name == "sleepy")
    assert sleepy.slow
    assert sleepy.seconds >= 0.3


def test_provenance_is_kept(site: Path) -> None:
    owner = found_in(site).tasks.owner("fine")
    assert (owner.name, owner.module, owner.distribution, owner.version) == ("fine", "fine", "fine", "1.0")
    assert owner.provides == {"task": ["fine"]}


# -- events


def module_with(function: Any) -> ModuleType:
    module = ModuleType("listening")
    module.saebench_api = 1  # type: ignore[attr-defined]
    module.saebench_event = hookspecs.hookimpl(function)  # type: ignore[attr-defined]
    return module


def test_a_failing_listener_is_logged_once_and_disturbs_nobody(caplog: pytest.LogCaptureFixture) -> None:
    def saebench_event(event: Any) -> None:
        raise ValueError("broken listener")

    registry, seen = Registry(), []
    registry.register(module_with(saebench_event))
    registry.listen(seen.append)
    with caplog.at_level(logging.ERROR):
        for message in ("one", "two"):
            registry.emit(Notice("info", message))
    assert [e.message for e in seen] == ["one", "two"]
    assert len([r for r in caplog.records if "listening" in r.getMessage()]) == 1


def test_a_listener_that_is_removed_hears_no_more() -> None:
    registry, seen = Registry(), []
    remove = registry.listen(seen.append)
    registry.emit(Notice("info", "heard"))
    remove()
    registry.emit(Notice("info", "missed"))
    assert [e.message for e in seen] == ["heard"]


def test_every_collecting_hook_fills_some_list() -> None:
    hooks = {n for n, f in vars(hookspecs).items() if hasattr(f, "saebench_meta_spec")}
    assert hooks - {"saebench_event", "saebench_samples"} == set(Registry()._collectors())


# -- through the command line


def saebench(*arguments: str, path: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "saebench_meta.cli", *arguments]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(path), os.environ.get("PYTHONPATH", "")])}
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120, check=False)


def test_the_command_lists_every_broken_plugin_with_its_reason(tmp_path: Path) -> None:
    install(tmp_path, "fine", FINE)
    for name, (code, _) in BROKEN.items():
        install(tmp_path, name, code)
    done = saebench("plugins", "--json", path=tmp_path)
    assert done.returncode == 0, done.stderr
    listed = {p["name"]: p for p in map(json.loads, done.stdout.splitlines())}
    for name, (_, reason) in BROKEN.items():
        assert reason in " ".join(listed[name]["problems"])
    assert listed["fine"]["problems"] == listed["core"]["problems"] == []

    shown = saebench("plugins", path=tmp_path)
    assert shown.returncode == 0, shown.stderr
    for name in BROKEN:
        assert name in shown.stdout
    tasks = saebench("tasks", "--json", path=tmp_path)
    assert {"fine", "core", "novel_latents"} <= {t["name"] for t in map(json.loads, tasks.stdout.splitlines())}


def test_a_name_that_two_claim_is_explained_when_asked_for(tmp_path: Path) -> None:
    for name in ("twin_a", "twin_b"):
        install(tmp_path, name, TWIN.replace("NAME", name))
    done = saebench(
        "run", "--sae", "atlas:batchtopk-128", "--tasks", "twin", "-o", str(tmp_path / "out"), path=tmp_path
    )
    assert done.returncode == 2
    assert "'twin_a' (twin_a) and 'twin_b' (twin_b)" in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr
