"""Finds plugins, keeps a broken one from disturbing the rest, and explains what was found.

Entry points of the group `saebench_meta` are loaded one by one, and each plugin is asked by itself what it offers: an
exception, a wrong type or a name already taken is that plugin's fault and is reported under its name.
"""

from __future__ import annotations

import importlib.metadata as metadata
import logging
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from types import ModuleType
from typing import Any, Generic, TypeVar

import pluggy

from saebench_meta import hookspecs
from saebench_meta.cities import CityLoader
from saebench_meta.errors import PluginError, UnknownNameError, did_you_mean
from saebench_meta.events import Event
from saebench_meta.hookspecs import (
    API_VERSION,
    PROJECT,
    Architecture,
    CatalogueEntry,
    DatasetLoader,
    LabelledLoader,
    ModelLoader,
    NeedCheck,
    SAELoader,
    Samples,
)
from saebench_meta.judging import JudgeLoader
from saebench_meta.task import Task
from saebench_meta.worlds import KnownTruth, WorldLoader

log = logging.getLogger(__name__)
T = TypeVar("T")

SLOW_SECONDS = 0.25
"""A plugin whose import takes longer is named as slow in `saebench plugins`."""

HAND_REGISTERED = "(registered by hand)"
"""The distribution of a plugin that no entry point names."""


@dataclass
class PluginInfo:
    """One line of `saebench plugins`."""

    name: str
    module: str
    distribution: str
    version: str
    seconds: float = 0.0
    problems: list[str] = field(default_factory=list)
    provides: dict[str, list[str]] = field(default_factory=dict)
    registered: bool = False

    @property
    def slow(self) -> bool:
        return self.seconds > SLOW_SECONDS


class Names(Generic[T], Mapping[str, T]):
    """What plugins offer under one hook, by name; asking for an unknown or a disputed name explains itself."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._items: dict[str, T] = {}
        self._owner: dict[str, PluginInfo] = {}
        self._disputed: dict[str, list[PluginInfo]] = {}

    def add(self, name: str, item: T, owner: PluginInfo) -> None:
        """Take a name; a second claim disputes it for both, and both plugins carry the problem."""
        if name in self._disputed or name in self._items:
            claimants = self._disputed.setdefault(name, [self._owner[name]] if name in self._owner else [])
            claimants.append(owner)
            self._items.pop(name, None)
            for plugin in claimants:
                others = ", ".join(f"'{p.name}' ({p.distribution})" for p in claimants if p is not plugin)
                plugin.problems.append(f"{self.kind} '{name}' is also claimed by plugin {others}; neither is used")
            return
        self._items[name] = item
        self._owner[name] = owner
        owner.provides.setdefault(self.kind, []).append(name)

    def __getitem__(self, name: str) -> T:
        if name in self._items:
            return self._items[name]
        if name in self._disputed:
            who = " and ".join(f"'{p.name}' ({p.distribution})" for p in self._disputed[name])
            raise PluginError(f"{self.kind} '{name}' is claimed by plugins {who}. Uninstall one of them.")
        raise UnknownNameError(f"no {self.kind} is called '{name}'{did_you_mean(name, list(self._items))}")

    def __contains__(self, name: object) -> bool:
        return name in self._items

    def __iter__(self) -> Iterator[str]:
        return iter(self._items)

    def __len__(self) -> int:
        return len(self._items)

    def owner(self, name: str) -> PluginInfo:
        """The plugin that offers `name`."""
        self[name]
        return self._owner[name]


class Registry:
    """All plugins and what they offer."""

    def __init__(self) -> None:
        self.plugins: list[PluginInfo] = []
        self.loaders: Names[SAELoader] = Names("SAE loader")
        self.models: Names[ModelLoader] = Names("language model")
        self.datasets: Names[DatasetLoader] = Names("data set")
        self.tasks: Names[Task] = Names("task")
        self.judges: Names[JudgeLoader] = Names("judge")
        self.architectures: Names[Architecture] = Names("architecture")
        self.needs: Names[NeedCheck] = Names("need")
        self.catalogue: Names[CatalogueEntry] = Names("SAE")
        self.labelled: Names[LabelledLoader] = Names("labelled set")
        self.cities: Names[CityLoader] = Names("set of cities")
        self.worlds: Names[WorldLoader] = Names("world")
        self.truths: Names[KnownTruth] = Names("truth")
        self._manager = pluggy.PluginManager(PROJECT)
        self._manager.add_hookspecs(hookspecs)
        self._event_failures: set[str] = set()
        self._told_only: Callable[[Event], None] | None = None

    # -- finding

    def discover(self, entry_points: Iterable[metadata.EntryPoint]) -> None:
        """Load entry points one by one; whatever goes wrong with one stays with it."""
        disabled = {n for n in os.environ.get("SAEBENCH_DISABLE_PLUGINS", "").split(",") if n}
        for entry in sorted(entry_points, key=lambda e: (e.dist.name if e.dist else "", e.name)):
            if entry.name in disabled:
                continue
            info = PluginInfo(
                entry.name,
                entry.value,
                entry.dist.name if entry.dist else "?",
                entry.dist.version if entry.dist else "?",
            )
            self.plugins.append(info)
            started = time.perf_counter()
            try:
                module = entry.load()
            except (
                Exception,
                SystemExit,
            ) as e:  # a third party's import may raise anything; it is reported, not hidden
                info.problems.append(f"import failed: {type(e).__name__}: {e}")
                continue
            finally:
                info.seconds = time.perf_counter() - started
            self._add(module, info)

    def register(self, module: ModuleType, name: str | None = None) -> PluginInfo:
        """Add a module as a plugin by hand, for notebooks and tests."""
        info = PluginInfo(name or module.__name__, module.__name__, HAND_REGISTERED, "")
        self.plugins.append(info)
        self._add(module, info)
        return info

    def _add(self, module: Any, info: PluginInfo) -> None:
        api = getattr(module, "saebench_api", None)
        if api != API_VERSION:
            said = "has no `saebench_api`" if api is None else f"was written for plugin API {api!r}"
            info.problems.append(f"{said}; this version of saebench-meta speaks API {API_VERSION}")
            return
        if problem := _misspelt(module):
            info.problems.append(problem)
            return
        try:
            self._manager.register(module, name=f"{info.distribution}:{info.name}")
        except (pluggy.PluginValidationError, ValueError) as e:
            info.problems.append(f"cannot be registered: {' '.join(str(e).split())}")
            if self._manager.get_name(module) is not None:
                self._manager.unregister(module)  # what was registered before the hook that is wrong
            return
        info.registered = True
        for hook, collect in self._collectors().items():
            for implementation in getattr(self._manager.hook, hook).get_hookimpls():
                if implementation.plugin is module:
                    self._ask(hook, implementation.function, collect, info)

    def _ask(
        self, hook: str, function: Callable[[], Any], collect: Callable[[Any, PluginInfo], None], info: PluginInfo
    ) -> None:
        try:
            collect(function(), info)
        except Exception as e:  # a third party's hook may raise anything; it is reported, not hidden
            info.problems.append(f"{hook} failed: {type(e).__name__}: {e}")

    # -- collecting what hooks give

    def _collectors(self) -> dict[str, Callable[[Any, PluginInfo], None]]:
        return {
            "saebench_loaders": self._take_loaders,
            "saebench_catalogue": self._take_catalogue,
            "saebench_tasks": self._take_tasks,
            "saebench_language_models": lambda got, info: _take_mapping(got, self.models, info, ModelLoader),
            "saebench_datasets": lambda got, info: _take_mapping(got, self.datasets, info, DatasetLoader),
            "saebench_judges": lambda got, info: _take_mapping(got, self.judges, info, JudgeLoader),
            "saebench_needs": lambda got, info: _take_mapping(got, self.needs, info, None),
            "saebench_architectures": lambda got, info: _take_mapping(got, self.architectures, info, None),
            "saebench_labelled": lambda got, info: _take_mapping(got, self.labelled, info, LabelledLoader),
            "saebench_cities": lambda got, info: _take_mapping(got, self.cities, info, CityLoader),
            "saebench_worlds": lambda got, info: _take_mapping(got, self.worlds, info, WorldLoader),
            "saebench_truths": lambda got, info: _take_mapping(got, self.truths, info, KnownTruth),
        }

    def _take_loaders(self, got: Any, info: PluginInfo) -> None:
        if not isinstance(got, Mapping):
            raise TypeError(f"expected a mapping scheme -> loader, got {type(got).__name__}")
        for scheme, loader in got.items():
            if not isinstance(loader, SAELoader):
                if not callable(loader):
                    raise TypeError(f"loader '{scheme}' is neither an SAELoader nor a function")
                loader = SAELoader(loader)
            self.loaders.add(str(scheme), loader, info)

    def _take_catalogue(self, got: Any, info: PluginInfo) -> None:
        for entry in got:
            if not isinstance(entry, CatalogueEntry):
                raise TypeError(f"expected CatalogueEntry, got {type(entry).__name__}")
            self.catalogue.add(entry.ref, entry, info)

    def _take_tasks(self, got: Any, info: PluginInfo) -> None:
        for task in got:
            if not isinstance(task, Task):
                raise TypeError(f"expected a Task (made by @task), got {type(task).__name__}")
            self.tasks.add(task.name, task, info)

    # -- samples

    def samples(self, plugin: PluginInfo, folder: Path) -> Samples:
        """What a plugin is to be tried with; empty where it says nothing.

        Args:
            folder: an empty one, in which the plugin may write.

        Raises:
            PluginError: its hook gives something else.
        """
        for implementation in self._manager.hook.saebench_samples.get_hookimpls():
            if implementation.plugin_name == f"{plugin.distribution}:{plugin.name}":
                given = implementation.function(*([folder] if implementation.argnames else []))
                if isinstance(given, Samples):
                    return given
                raise PluginError(
                    f"saebench_samples of plugin '{plugin.name}' gives a {type(given).__name__}, expected Samples"
                )
        return Samples()

    # -- events

    def emit(self, event: Event) -> None:
        """Hand an event to every plugin that listens; a listener's exception is logged once."""
        if self._told_only is not None:
            self._told_only(event)
            return
        for implementation in self._manager.hook.saebench_event.get_hookimpls():
            try:
                implementation.function(event=event)
            except BrokenPipeError:  # whoever read our output has gone
                raise
            except Exception:  # a listener must not disturb a run; it is logged
                if implementation.plugin_name not in self._event_failures:
                    self._event_failures.add(implementation.plugin_name)
                    log.exception("saebench_event of plugin '%s' failed", implementation.plugin_name)

    def tell_only(self, listener: Callable[[Event], None]) -> None:
        """From now on hand events to one listener and to no plugin, since another process hands them to those."""
        self._told_only = listener

    def listen(self, listener: Callable[[Event], None]) -> Callable[[], None]:
        """Add a listener for this process; returns the function that removes it."""

        class Listener:
            @hookspecs.hookimpl
            def saebench_event(self, event: Event) -> None:
                listener(event)

        plugin = Listener()
        self._manager.register(plugin)

        def remove() -> None:
            self._manager.unregister(plugin)

        return remove


def _take_mapping(got: Any, names: Names[Any], info: PluginInfo, kind: type | None) -> None:
    if not isinstance(got, Mapping):
        raise TypeError(f"expected a mapping name -> {names.kind}, got {type(got).__name__}")
    for name, item in got.items():
        if kind is not None and not isinstance(item, kind):
            raise TypeError(f"{names.kind} '{name}' is a {type(item).__name__}, expected {kind.__name__}")
        names.add(str(name), item, info)


def _misspelt(module: Any) -> str | None:
    """A hook that does not exist, or a right name without the marker: either would be silently ignored."""
    known = [n for n in vars(hookspecs) if n.startswith("saebench_")]
    for name, value in vars(module).items():
        if not callable(value):
            continue
        marked = hasattr(value, f"{PROJECT}_impl")
        if marked and name not in known:
            return f"implements '{name}', which is no hook{did_you_mean(name, known)}"
        if name in known and not marked and getattr(value, "__module__", None) == getattr(module, "__name__", None):
            return f"'{name}' is not marked: put `@saebench_meta.hookimpl` above it"
    return None


@lru_cache(maxsize=1)
def registry() -> Registry:
    """The plugins of this installation, found once per process."""
    found = Registry()
    found.discover(metadata.entry_points(group=PROJECT))
    return found
