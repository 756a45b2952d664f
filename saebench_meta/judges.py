"""Which judge a run asks, and with what options. No torch."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from saebench_meta.errors import SaebenchError, UnknownNameError
from saebench_meta.judging import JudgeLoader, Price
from saebench_meta.parameters import like
from saebench_meta.record import JudgeUsed

if TYPE_CHECKING:
    from saebench_meta.plugins import Registry
    from saebench_meta.settings import Settings
    from saebench_meta.task import Task

DEFAULT_JUDGE = "lexical"
"""What is asked where no judge is named: it is offline and free."""

NO_JUDGE = "it needs a judge: give --judge NAME"


@dataclass(frozen=True, eq=False)
class ResolvedJudge:
    """A judge with its loader and every option.

    Attributes:
        plugin: that offers it, as `distribution:name`.
    """

    name: str
    loader: JudgeLoader
    options: Mapping[str, Any]
    plugin: str

    @cached_property
    def identity(self) -> dict[str, Any]:
        """What of its options the answers depend on, as JSON has it."""
        chosen = dict(self.options) if self.loader.identity is None else self.loader.identity(self.options)
        identity: dict[str, Any] = json.loads(json.dumps(dict(chosen), allow_nan=False))
        return identity

    def key(self, prompts: Mapping[str, str]) -> dict[str, Any]:
        """What of the judge goes into a record's id.

        Args:
            prompts: name -> sha256, of the task that asks it.
        """
        version, options = self.loader.version, self.identity
        return {"name": self.name, "version": version, "options": options, "prompts": dict(prompts)}

    def to_record(self, prompts: Mapping[str, str]) -> JudgeUsed:
        """Who it is, before it was asked anything; arguments as of `key`."""
        return JudgeUsed(
            name=self.name,
            version=str(self.loader.version),
            plugin=self.plugin,
            options=self.identity,
            prompts=dict(prompts),
        )

    @cached_property
    def price(self) -> Price | None:
        """What it costs; None where that is not known."""
        return Price(0.0, 0.0) if self.loader.price is None else self.loader.price(self.options)

    @property
    def is_free(self) -> bool:
        return self.price == Price(0.0, 0.0)

    @property
    def how_to_price(self) -> str:
        """What to type where its price is not known."""
        settable = [f"-J {name}=" for name in ("price_in", "price_out") if name in self.loader.options]
        return f"price not known: give {' and '.join(settable)}" if settable else "price not known"


def resolve_judge(registry: Registry, settings: Settings, tasks: Iterable[Task]) -> ResolvedJudge | None:
    """The judge that the tasks of a run ask; None where none asks any, or there is none.

    Raises:
        SaebenchError: the judge named is not there, an option of it is wrong, or options are given for no task.
    """
    if not any("judge" in task.needs for task in tasks):
        if settings.judge_options:
            raise SaebenchError(
                f"-J sets '{sorted(settings.judge_options)[0]}', but no task of this run asks a judge: leave it out, "
                "or choose one that does (`saebench tasks`)"
            )
        return None
    name = settings.judge or DEFAULT_JUDGE
    if settings.judge is None and name not in registry.judges:
        return None
    loader, owner = registry.judges[name], registry.judges.owner(name)
    options = judge_options(name, loader, settings.judge_options)
    return ResolvedJudge(name, loader, options, f"{owner.distribution}:{owner.name}")


def judge_options(name: str, loader: JudgeLoader, given: Mapping[str, Any]) -> dict[str, Any]:
    """A judge's defaults with the user's values over them, each of the default's type.

    Args:
        given: texts as typed after `-J`, or values of a file or notebook.

    Raises:
        SaebenchError: there is no such option, or the value is of another type.
    """
    options = dict(loader.options)
    for option, value in given.items():
        if option not in options:
            raise UnknownNameError(f"judge '{name}' has no option '{option}' ({_known(loader)})")
        options[option] = _typed(loader.options[option], value, f"judge '{name}': -J {option}")
    return options


def _known(loader: JudgeLoader) -> str:
    known = ", ".join(f"{name}={'' if default is None else default}" for name, default in loader.options.items())
    return f"its options, with their defaults: {known}" if known else "it has none"


def _typed(default: Any, value: Any, where: str) -> Any:
    """The value in the default's type; a text where the default is none."""
    if default is None or isinstance(default, str):
        if isinstance(value, str):
            return value
        if default is None and isinstance(value, int | float) and not isinstance(value, bool):
            return str(value)
        raise SaebenchError(f"{where}={value!r}: expected a text" + (f", e.g. {default!r}" if default else ""))
    if isinstance(value, str):
        with contextlib.suppress(ValueError):  # `like` says what was expected
            value = json.loads(value)
    if isinstance(value, float) and not math.isfinite(value):
        raise SaebenchError(f"{where}={value}: the value must be finite")
    return like(default, value, where)


def prompt_hashes(task: Task) -> dict[str, str]:
    """Name -> sha256 of every prompt that a task asks a judge with."""
    texts = {} if task.prompts is None else task.prompts()
    return {name: hashlib.sha256(text.encode()).hexdigest() for name, text in sorted(texts.items())}
