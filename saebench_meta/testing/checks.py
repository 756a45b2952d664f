"""What a check is: a name and a function that raises `FaultError` where a plugin breaks a rule.

A check that cannot be tried here raises `unittest.SkipTest` with the reason, which pytest shows as skipped.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Literal, TypeVar
from unittest import SkipTest

from saebench_meta.errors import SaebenchError

T = TypeVar("T")

LONGEST_MESSAGE = 1500
"""Characters that an error shown to a user has at most, besides the path it names."""


class FaultError(AssertionError):
    """A plugin breaks a rule; the message says which, and what to do."""


def expect(condition: bool, message: str) -> None:
    """Raise `FaultError` with the message unless the condition holds."""
    if not condition:
        raise FaultError(message)


@dataclass(frozen=True, eq=False)
class Check:
    """One rule held against one object. Calling it raises `FaultError`, `unittest.SkipTest`, or nothing.

    Attributes:
        of: the object, such as `loader 'npz'`.
        title: the rule, in a few words.
        run: holds it.
    """

    of: str
    title: str
    run: Callable[[], None]

    @property
    def id(self) -> str:
        return f"{self.of}: {self.title}"

    def __str__(self) -> str:
        return self.id

    def __call__(self) -> None:
        try:
            self.run()
        except (FaultError, SkipTest):
            raise
        except Exception as e:  # a third party's code may raise anything; it is a fault of its own
            raise FaultError(f"raised {type(e).__name__}: {e}") from e


def checks_of(of: str, rules: Mapping[str, Callable[[T], None]], trial: T) -> list[Check]:
    """A check for each rule, by title, of one object on trial."""
    return [Check(of, title, partial(rule, trial)) for title, rule in rules.items()]


@dataclass(frozen=True)
class Outcome:
    """How a check ended; `reason` is empty where it holds."""

    id: str
    status: Literal["ok", "fault", "skip"]
    reason: str = ""
    seconds: float = 0.0


def attempt(check: Check) -> Outcome:
    """Run a check and tell how it ended; nothing is raised."""
    started = time.perf_counter()
    status: Literal["ok", "fault", "skip"] = "ok"
    reason = ""
    try:
        check()
    except SkipTest as e:
        status, reason = "skip", str(e)
    except FaultError as e:
        status, reason = "fault", " ".join(str(e).split())
    return Outcome(check.id, status, reason, round(time.perf_counter() - started, 3))


def together(checks: Iterable[Check]) -> None:
    """Run all checks.

    Raises:
        FaultError: names every one that does not hold.
    """
    faults = [f"{o.id}: {o.reason}" for o in map(attempt, checks) if o.status == "fault"]
    expect(not faults, "\n".join(faults))


def described(summary: str, version: int) -> None:
    """A `summary` of one line and a `version` from 1, as loaders, judges and architectures have them."""
    expect(bool(summary.strip()), "it has no `summary`: one line for `saebench plugins`")
    expect("\n" not in summary, "its `summary` has several lines")
    expect(type(version) is int and version >= 1, f"its `version` is {version!r}: give a whole number from 1")


class Scratch:
    """A folder that is made when it is asked for, and gone when nobody holds this any more."""

    @cached_property
    def _held(self) -> tempfile.TemporaryDirectory[str]:
        return tempfile.TemporaryDirectory(prefix="saebench-check-")

    def folder(self, name: str) -> Path:
        """A new folder in it."""
        made = Path(self._held.name) / name
        number = 1
        while made.exists():
            number += 1
            made = made.with_name(f"{name}-{number}")
        made.mkdir(parents=True)
        return made


def clear_error(function: Callable[[], object], naming: str) -> str | None:
    """The message of the one error that a function may raise; None where it raises nothing.

    Args:
        naming: what the message must name, such as the file.

    Raises:
        FaultError: another error than SaebenchError, or one that does not name it, is too long or is not printable.
    """
    try:
        function()
    except SaebenchError as e:
        said = str(e)
    except Exception as e:
        raise FaultError(
            f"raised {type(e).__name__} ({e}) where a user needs a SaebenchError that says what to do"
        ) from e
    else:
        return None
    expect(naming in said, f"its error does not name '{naming}': {said}")
    expect(said.isprintable(), f"its error has line breaks or control characters: {said!r}")
    expect(len(said) < LONGEST_MESSAGE + len(naming), f"its error has {len(said):,} characters")
    return said


@contextmanager
def own_randomness() -> Iterator[None]:
    """While this lasts, nothing may draw from the global generators of Python, numpy or torch.

    Raises:
        FaultError: one of them was used.
    """
    before = _generators()
    yield
    used = [name for name, state in _generators().items() if name in before and before[name] != state]
    expect(not used, f"it draws from the global generator of {', '.join(used)}: use ctx.rng or the generator given")


def _generators() -> dict[str, object]:
    """State of every global generator whose library is loaded, in a form that can be compared."""
    import random

    states: dict[str, object] = {"random": random.getstate()}
    if (numpy := sys.modules.get("numpy")) is not None:
        _, keys, position, *rest = numpy.random.get_state()
        states["numpy"] = (keys.tobytes(), position, *rest)
    if (torch := sys.modules.get("torch")) is not None:
        states["torch"] = torch.get_rng_state().numpy().tobytes()
    return states
