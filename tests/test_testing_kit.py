"""How checks are found, excused, told and run: as functions, on the command line and under pytest."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest import SkipTest

import numpy as np
import pytest
import torch
import toy_plugin
from click.testing import CliRunner
from test_docs import example

from saebench_meta.cli import saebench
from saebench_meta.errors import PluginError, SaebenchError, UnknownNameError
from saebench_meta.hookspecs import hookimpl
from saebench_meta.plugins import Registry
from saebench_meta.testing import Check, FaultError, Samples, attempt_all, battery
from saebench_meta.testing.checks import clear_error, own_randomness
from saebench_meta.testing.watch import nothing_is_run


@pytest.fixture
def toys() -> Registry:
    found = Registry()
    found.register(toy_plugin, "toy")
    return found


# -- finding


def test_a_battery_is_of_everything_that_a_plugin_offers(toys: Registry) -> None:
    checks = battery("toy", registry=toys)
    assert len({check.id for check in checks}) == len(checks)
    assert {check.of.partition(" ")[0] for check in checks} == {"plugin", "loader", "task"}
    assert {check.of for check in battery("toy", kinds=("loader",), registry=toys)} == {"loader 'toy'"}


def test_a_plugin_that_is_not_there_is_told(toys: Registry) -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'toy'"):
        battery("toys", registry=toys)


def test_a_name_that_two_plugins_claim_is_a_fault_of_the_plugin_and_not_tried(toys: Registry) -> None:
    twin = ModuleType("twin")
    vars(twin).update(saebench_api=1, saebench_loaders=hookimpl(lambda: {"toy": toy_plugin.load}))
    toys.register(twin)
    checks = battery("toy", registry=toys)
    assert not any(check.of.startswith("loader") for check in checks)
    (registered,) = attempt_all(check for check in checks if check.title == "is registered without problems")
    assert registered.status == "fault" and "also claimed" in registered.reason


# -- samples


def test_a_plugin_names_what_it_is_tried_with() -> None:
    _, found = example("samples")
    outcomes = {o.id: o for o in attempt_all(battery("example_samples", kinds=("loader",), registry=found))}
    assert {o.id.partition(": ")[2] for o in outcomes.values() if o.status == "skip"} == {
        "peek agrees with load",
        "peek imports no torch",
        "recognises its own files only",
        "saved and loaded it is the same",
    }
    assert [o for o in outcomes.values() if o.status == "fault"] == []


def test_samples_of_another_type_are_a_fault(tmp_path: Path) -> None:
    module, found = ModuleType("odd"), Registry()
    vars(module).update(saebench_api=1, saebench_samples=hookimpl(lambda folder: ["a.npz"]))
    info = found.register(module)
    with pytest.raises(PluginError, match="saebench_samples of plugin 'odd' gives a list, expected Samples"):
        found.samples(info, tmp_path)


def test_a_rule_that_does_not_hold_for_a_reason_is_not_tried(toys: Registry) -> None:
    samples = Samples(exempt={"loader 'toy': says what*": "toys say nothing"})
    checks = battery("toy", samples, kinds=("loader",), registry=toys)
    (outcome,) = attempt_all(check for check in checks if check.title == "says what it is")
    assert (outcome.status, outcome.reason) == ("skip", "toys say nothing")


def test_what_a_test_gives_is_made_when_it_is_needed(toys: Registry) -> None:
    asked: list[Path] = []

    def samples(folder: Path) -> Samples:
        asked.append(folder)
        return Samples(saes={"toy": ["x-8"]})

    checks = {check.title: check for check in battery("toy", samples, kinds=("loader",), registry=toys)}
    assert asked == []
    checks["the same SAE every time"]()
    checks["peek agrees with load"]()
    assert len(asked) == 1 and list(asked[0].iterdir()) == []


# -- checks


def raising(error: BaseException) -> Any:
    def function() -> None:
        raise error

    return function


def test_whatever_third_party_code_raises_is_a_fault() -> None:
    with pytest.raises(FaultError, match="raised ZeroDivisionError"):
        Check("x", "y", lambda: 1 / 0)()  # type: ignore[arg-type, return-value]
    with pytest.raises(SkipTest):
        Check("x", "y", raising(SkipTest("no")))()


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (FileNotFoundError("a.npz"), "raised FileNotFoundError"),
        (SaebenchError("it is broken"), "does not name 'a.npz'"),
        (SaebenchError("a.npz:\nline two"), "line breaks"),
        (SaebenchError("a.npz" + "x" * 2000), "2,005 characters"),
    ],
)
def test_an_error_that_is_not_clear_is_a_fault(error: Exception, said: str) -> None:
    with pytest.raises(FaultError, match=said):
        clear_error(raising(error), "a.npz")


def test_a_clear_error_is_given_back() -> None:
    assert clear_error(raising(SaebenchError("a.npz is empty")), "a.npz") == "a.npz is empty"
    assert clear_error(lambda: None, "a.npz") is None


@pytest.mark.parametrize(
    ("draw", "name"),
    [(random.random, "random"), (lambda: np.random.rand(1), "numpy"), (lambda: torch.rand(1), "torch")],
)
def test_a_draw_from_a_global_generator_is_seen(draw: Any, name: str) -> None:
    with pytest.raises(FaultError, match=f"global generator of {name}"), own_randomness():
        draw()
    with own_randomness():
        np.random.default_rng(0).random()
        torch.rand(1, generator=torch.Generator().manual_seed(0))


def test_what_is_written_is_seen(tmp_path: Path) -> None:
    with pytest.raises(FaultError, match="open"), nothing_is_run():
        (tmp_path / "x").write_text("x")
    with nothing_is_run():
        (tmp_path / "x").read_text()


# -- the command line


@pytest.fixture
def alone(toys: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("saebench_meta.plugins.registry", lambda: toys)


@pytest.mark.usefixtures("alone")
def test_the_command_prints_a_line_each_and_ends_with_1_where_a_rule_is_broken() -> None:
    done = CliRunner().invoke(saebench, ["check", "--task", "toy_width"])
    assert done.exit_code == 1, done.output
    assert "ok     task 'toy_width': says what it measures\n" in done.stdout
    assert "fault  task 'toy_width': its metrics are explained: metric 'width' has no `help`\n" in done.stdout
    assert "task 'toy_pair'" not in done.stdout
    assert done.stdout.splitlines()[-1].startswith("toy_width: 2 of 11 rules kept, 1 broken, ")


@pytest.mark.usefixtures("alone")
def test_the_command_gives_json() -> None:
    done = CliRunner().invoke(saebench, ["check", "--plugin", "toy", "--json"])
    told = json.loads(done.stdout)
    assert done.exit_code == 1 and told["checked"] == "toy"
    assert set(told["checks"][0]) == {"id", "status", "reason", "seconds"}
    assert any(fault.startswith("loader 'toy': says what it is: it has no `summary`") for fault in told["faults"])


# -- pytest


def test_the_pytest_plugin_runs_a_test_for_each_check(tmp_path: Path) -> None:
    (tmp_path / "test_rules.py").write_text("def test_it_keeps(saebench_check):\n    saebench_check()\n")
    (tmp_path / "pytest.ini").write_text("[pytest]\nsaebench_plugins = cities\n")
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-v",
        "-p",
        "saebench_meta.testing.pytest_plugin",
        "-p",
        "no:cacheprovider",
    ]
    for more, plugin in ([], "cities"), (["--saebench-plugin", "toys"], "toys"):
        done = subprocess.run(
            [*command, *more],
            cwd=tmp_path,
            env={**os.environ},
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert f"test_it_keeps[plugin '{plugin}': is registered without problems] PASSED" in done.stdout, done.stdout
        assert "2 passed" in done.stdout
