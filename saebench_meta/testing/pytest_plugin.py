"""The battery as a pytest plugin, for the `pyproject.toml` of a plugin's package:

    [tool.pytest.ini_options]
    addopts = "-p saebench_meta.testing.pytest_plugin"
    saebench_plugins = ["my-plugin"]

A test that asks for the fixture `saebench_check` is then run once for each check of these plugins or distributions;
`pytest --saebench-plugin NAME` names others. pytest itself is not imported, so that nobody needs it for the rest.
"""

from __future__ import annotations

from typing import Any

from saebench_meta.testing.battery import battery

FIXTURE = "saebench_check"


def pytest_addoption(parser: Any) -> None:
    """Say which plugins are checked."""
    words = "plugins or distributions that `saebench_check` checks"
    parser.getgroup("saebench").addoption("--saebench-plugin", action="append", default=[], metavar="NAME", help=words)
    parser.addini("saebench_plugins", words, type="linelist")


def pytest_generate_tests(metafunc: Any) -> None:
    """One test for each check, for tests that ask for one."""
    if FIXTURE not in metafunc.fixturenames:
        return
    named: list[str] = metafunc.config.getoption("--saebench-plugin") or metafunc.config.getini("saebench_plugins")
    metafunc.parametrize(FIXTURE, [check for name in named for check in battery(name)], ids=str)
