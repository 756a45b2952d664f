"""The battery of checks that every built-in passes, for anybody's loader, task, judge or architecture.

    from saebench_meta.testing import battery

    @pytest.mark.parametrize("check", battery("my-plugin"), ids=str)
    def test_it_keeps_the_rules(check):
        check()

`saebench_meta.testing.pytest_plugin` does this by a line in `pyproject.toml`, `saebench check --plugin` without
pytest. `check_loader`, `check_task`, `check_judge` and `check_architecture` hold all rules
against one object, installed or not, and raise one `FaultError` that names every rule it breaks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from saebench_meta.hookspecs import Architecture, SAELoader, Samples
from saebench_meta.testing.battery import battery
from saebench_meta.testing.checks import Check, FaultError, Outcome, attempt, together

if TYPE_CHECKING:
    from types import ModuleType

    from saebench_meta.sae import SAE


def check_loader(loader: SAELoader | Callable[..., SAE], refs: Sequence[str] = (), *, scheme: str = "loader") -> None:
    """Hold every rule for loaders against one.

    Args:
        refs: references of small sound SAEs, without the scheme; not needed where the loader can `save`.

    Raises:
        FaultError: names every rule that it breaks.
    """
    from saebench_meta.testing.loaders import loader_checks

    together(loader_checks(scheme, loader, refs))


def check_task(module: ModuleType, name: str, **parameters: Any) -> None:
    """Hold every rule for tasks against one, on the built-in world.

    Args:
        module: the plugin that offers it.
        parameters: the task's, where the defaults are dear.

    Raises:
        FaultError: names every rule that it breaks, or the plugin's problems.
    """
    from importlib.metadata import entry_points

    from saebench_meta.hookspecs import PROJECT
    from saebench_meta.plugins import Registry
    from saebench_meta.testing.tasks import task_checks

    found = Registry()
    found.discover(e for e in entry_points(group=PROJECT) if e.value != module.__name__)
    if problems := found.register(module).problems:
        raise FaultError("; ".join(problems))
    together(task_checks(found, name, parameters))


def check_judge(loader: Any, options: Mapping[str, Any] | None = None, *, name: str = "judge") -> None:
    """Hold every rule for judges against one.

    Args:
        loader: a `JudgeLoader`.
        options: those under which asking it costs nothing; its defaults unless given.

    Raises:
        FaultError: names every rule that it breaks.
    """
    from saebench_meta.testing.judges import judge_checks

    together(judge_checks(name, loader, lambda: options))


def check_architecture(architecture: Architecture, *, name: str = "architecture", **recipe: Any) -> None:
    """Hold every rule for architectures against one.

    Args:
        recipe: fields of the recipe and hyperparameters over the defaults.

    Raises:
        FaultError: names every rule that it breaks.
    """
    from saebench_meta.testing.architectures import architecture_checks

    together(architecture_checks(name, architecture, recipe))


def attempt_all(checks: Iterable[Check]) -> Iterator[Outcome]:
    """How each check ends, one by one; nothing is raised."""
    return map(attempt, checks)


__all__ = [
    "Check",
    "FaultError",
    "Outcome",
    "Samples",
    "attempt_all",
    "battery",
    "check_architecture",
    "check_judge",
    "check_loader",
    "check_task",
]
