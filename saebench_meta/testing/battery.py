"""All checks of a plugin: of everything it offers, and of the plugin itself."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields
from fnmatch import fnmatchcase
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import SkipTest

from saebench_meta.errors import UnknownNameError, did_you_mean
from saebench_meta.hookspecs import Samples
from saebench_meta.testing.checks import Check, Scratch, expect

if TYPE_CHECKING:
    from saebench_meta.plugins import PluginInfo, Registry
    from saebench_meta.testing.world import World

ALONE = """
import sys
from importlib.metadata import entry_points
from saebench_meta.plugins import Registry
Registry().discover(e for e in entry_points(group="saebench_meta") if e.name == sys.argv[1])
print(*(m for m in ("torch", "numpy", "transformers") if m in sys.modules))
"""


GivenSamples = Samples | Callable[[Path], Samples] | None
"""What to try a plugin with, or what writes it into a folder when the first check asks for it."""


def battery(
    plugin: str, samples: GivenSamples = None, *, kinds: tuple[str, ...] = (), registry: Registry | None = None
) -> list[Check]:
    """Every check of a plugin, or of all plugins of a distribution, to be called one by one.

    Args:
        plugin: name of an entry point, or of a distribution.
        samples: what to try it with, over what its own `saebench_samples` gives.
        kinds: only checks of these: `plugin`, `loader`, `task`, `judge`, `architecture`; all unless given.
        registry: the plugins there are; those installed unless given.

    Raises:
        UnknownNameError: there is no such plugin.
    """
    from saebench_meta.plugins import registry as installed

    found = registry or installed()
    chosen = plugins_called(found, plugin)
    tried = Tried(found, chosen, samples)
    checks = [check for one in chosen for check in _plugin_checks(found, one, tried, kinds)]
    return [tried.excused(check) for check in checks]


def plugins_called(registry: Registry, name: str) -> list[PluginInfo]:
    """A plugin by its name, or every plugin of a distribution.

    Raises:
        UnknownNameError: there is none.
    """
    chosen = [p for p in registry.plugins if name in (p.name, p.distribution)]
    if not chosen:
        names = {p.name for p in registry.plugins} | {p.distribution for p in registry.plugins}
        raise UnknownNameError(f"no plugin or distribution is called '{name}'{did_you_mean(name, sorted(names))}")
    return chosen


class Tried:
    """What plugins are tried with; asked of them when the first check needs it."""

    def __init__(self, registry: Registry, plugins: list[PluginInfo], given: GivenSamples) -> None:
        self.registry, self.plugins, self._given = registry, plugins, given
        self.scratch = Scratch()

    @cached_property
    def samples(self) -> Samples:
        """What the plugins give, with what the caller gives over it."""
        every = [self.registry.samples(p, self.scratch.folder(p.name)) for p in self.plugins if p.registered]
        given = self._given(self.scratch.folder("given")) if callable(self._given) else self._given
        merged: dict[str, dict[str, Any]] = {f.name: {} for f in fields(Samples)}
        for one in (*every, given or Samples()):
            for name, held in merged.items():
                held.update(getattr(one, name))
        return Samples(**merged)

    @cached_property
    def world(self) -> World:
        from saebench_meta.testing.world import World

        return World(self.registry)

    def excused(self, check: Check) -> Check:
        """The check, skipped when it is called if the samples say why the rule does not hold."""
        return Check(check.of, check.title, partial(self._unless_exempt, check))

    def _unless_exempt(self, check: Check) -> None:
        for pattern, reason in self.samples.exempt.items():
            if fnmatchcase(check.id, pattern):
                raise SkipTest(reason)
        check()


def _plugin_checks(registry: Registry, plugin: PluginInfo, tried: Tried, kinds: tuple[str, ...]) -> Iterator[Check]:
    if not kinds or "plugin" in kinds:
        of = f"plugin '{plugin.name}'"
        yield Check(of, "is registered without problems", partial(_registered, plugin))
        yield Check(of, "is imported without torch", partial(_imports, plugin))
    for kind, names in plugin.provides.items():
        short = KINDS.get(kind)
        if short is not None and (not kinds or short in kinds):
            for name in names:
                if name in getattr(registry, f"{short}s"):  # not one that another plugin claims too
                    yield from _MAKERS[short](registry, name, tried)


def _registered(plugin: PluginInfo) -> None:
    expect(not plugin.problems, "; ".join(plugin.problems))
    expect(bool(plugin.provides), "it offers nothing but events, if that")


def _imports(plugin: PluginInfo) -> None:
    from saebench_meta.plugins import HAND_REGISTERED
    from saebench_meta.testing.loaders import in_new_process

    if plugin.distribution == HAND_REGISTERED:
        raise SkipTest("it is registered by hand, so that no other process finds it")
    done = in_new_process(ALONE, plugin.name)
    expect(done.returncode == 0, f"it cannot be imported in a new process: {done.stderr.strip()[-300:]}")
    heavy = done.stdout.split()
    expect(not heavy, f"its import, or a hook, imports {', '.join(heavy)}: import them inside functions")


def _of_loader(registry: Registry, name: str, tried: Tried) -> list[Check]:
    from saebench_meta.testing.loaders import loader_checks

    return loader_checks(name, registry.loaders[name], lambda: tuple(tried.samples.saes.get(name, ())))


def _of_task(registry: Registry, name: str, tried: Tried) -> list[Check]:
    from saebench_meta.testing.tasks import task_checks

    return task_checks(registry, name, lambda: tried.samples.parameters.get(name, {}), tried.world)


def _of_judge(registry: Registry, name: str, tried: Tried) -> list[Check]:
    from saebench_meta.testing.judges import judge_checks

    return judge_checks(name, registry.judges[name], lambda: tried.samples.judges.get(name))


def _of_architecture(registry: Registry, name: str, tried: Tried) -> list[Check]:
    from saebench_meta.testing.architectures import architecture_checks

    return architecture_checks(name, registry.architectures[name], lambda: tried.samples.recipes.get(name, {}))


KINDS: Mapping[str, str] = {
    "SAE loader": "loader",
    "task": "task",
    "judge": "judge",
    "architecture": "architecture",
}
"""What a registry calls a kind -> what it is called here."""
_MAKERS: Mapping[str, Callable[[Registry, str, Tried], list[Check]]] = {
    "loader": _of_loader,
    "task": _of_task,
    "judge": _of_judge,
    "architecture": _of_architecture,
}
