"""`saebench plugins`: what was found, what it offers, and what is wrong with it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from saebench_meta.cli.output import columns, json_line

if TYPE_CHECKING:
    from saebench_meta.judging import JudgeLoader
    from saebench_meta.plugins import PluginInfo, Registry


@click.command("plugins")
@click.argument("name", required=False)
@click.option("--json", "as_json", is_flag=True, envvar="SAEBENCH_JSON", help="One plugin a line.")
def command(name: str | None, as_json: bool) -> None:
    """List the plugins found, or describe the one called NAME.

    NAME may also be that of a judge: its options are shown with their defaults. A plugin that cannot be used is listed
    with the reason; the others work.
    """
    from saebench_meta.errors import UnknownNameError, did_you_mean
    from saebench_meta.plugins import registry

    everything = registry()
    found = everything.plugins
    chosen = [p for p in found if name in (None, p.name)]
    if name and name in everything.judges and not chosen:
        loader, owner = everything.judges[name], everything.judges.owner(name)
        json_line({"name": name, **_plain(loader)}) if as_json else click.echo("\n".join(_judge(name, loader, owner)))
        return
    if not chosen and name:
        raise UnknownNameError(
            f"no plugin is called '{name}'{did_you_mean(name, [*(p.name for p in found), *everything.judges])}"
        )
    if as_json:
        for plugin in chosen:
            judges = [{"name": n, **_plain(loader)} for n, loader in judges_of(everything, plugin).items()]
            json_line({**asdict(plugin), "slow": plugin.slow, "judges": judges})
    elif name:
        click.echo("\n\n".join(describe(p, judges_of(everything, p)) for p in chosen))
    else:
        click.echo(_listing(chosen))


def _listing(plugins: list[PluginInfo]) -> str:
    rows = [(p.name, p.distribution, p.version, _provides(p), _state(p)) for p in plugins]
    text = columns(rows, ("plugin", "distribution", "version", "provides", "state"))
    problems = [f"{p.name} ({p.distribution}): {problem}" for p in plugins for problem in p.problems]
    slow = [
        f"{p.name} ({p.distribution}) took {p.seconds:.2f} s to import, in every command" for p in plugins if p.slow
    ]
    for head, lines in (("problems", problems), ("slow", slow)):
        if lines:
            text += f"\n\n{head}:\n" + "\n".join(f"  {line}" for line in lines)
    return text


def _state(plugin: PluginInfo) -> str:
    if plugin.problems:
        return "partly used, see below" if plugin.provides else "not used, see below"
    return "slow" if plugin.slow else "ok"


def _provides(plugin: PluginInfo) -> str:
    return ", ".join(f"{len(names)} {kind}{'s' * (len(names) > 1)}" for kind, names in plugin.provides.items()) or "-"


def judges_of(registry: Registry, plugin: PluginInfo) -> dict[str, JudgeLoader]:
    """The judges that a plugin offers, by name."""
    names = plugin.provides.get("judge", [])
    return {n: registry.judges[n] for n in names if n in registry.judges and registry.judges.owner(n) is plugin}


def _plain(loader: JudgeLoader) -> dict[str, Any]:
    return {"version": loader.version, "summary": loader.summary, "options": dict(loader.options)}


def _judge(name: str, loader: JudgeLoader, owner: PluginInfo) -> list[str]:
    options = [f"  -J {n}={'' if default is None else default}" for n, default in loader.options.items()]
    about = f": {loader.summary}" if loader.summary else ""
    return [f"judge {name}@{loader.version} (plugin {owner.name}, {owner.distribution}){about}", *options]


def describe(plugin: PluginInfo, judges: Mapping[str, JudgeLoader]) -> str:
    """One plugin with everything it offers by name, and its judges with their options and defaults."""
    lines = [
        f"{plugin.name}: module {plugin.module}, from {plugin.distribution} {plugin.version}".rstrip(),
        f"imported in {plugin.seconds:.3f} s{' (slow: every command waits for it)' if plugin.slow else ''}",
        *(f"{kind}: {', '.join(names)}" for kind, names in plugin.provides.items()),
        *(line for name, loader in judges.items() for line in _judge(name, loader, plugin)),
        *(f"problem: {problem}" for problem in plugin.problems),
    ]
    return "\n".join(lines)
