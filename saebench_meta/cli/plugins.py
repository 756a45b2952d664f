"""`saebench plugins`: what was found, what it offers, and what is wrong with it."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from saebench_meta.cli.output import columns, json_line

if TYPE_CHECKING:
    from saebench_meta.plugins import PluginInfo


@click.command("plugins")
@click.argument("name", required=False)
@click.option("--json", "as_json", is_flag=True, envvar="SAEBENCH_JSON", help="One plugin a line.")
def command(name: str | None, as_json: bool) -> None:
    """List the plugins found, or describe the one called NAME.

    A plugin that cannot be used is listed with the reason; the others work.
    """
    from saebench_meta.errors import UnknownNameError, did_you_mean
    from saebench_meta.plugins import registry

    found = registry().plugins
    chosen = [p for p in found if name in (None, p.name)]
    if not chosen and name:
        raise UnknownNameError(f"no plugin is called '{name}'{did_you_mean(name, [p.name for p in found])}")
    if as_json:
        for plugin in chosen:
            json_line({**asdict(plugin), "slow": plugin.slow})
    elif name:
        click.echo("\n\n".join(describe(p) for p in chosen))
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


def describe(plugin: PluginInfo) -> str:
    """One plugin with everything it offers by name."""
    lines = [
        f"{plugin.name}: module {plugin.module}, from {plugin.distribution} {plugin.version}".rstrip(),
        f"imported in {plugin.seconds:.3f} s{' (slow: every command waits for it)' if plugin.slow else ''}",
        *(f"{kind}: {', '.join(names)}" for kind, names in plugin.provides.items()),
        *(f"problem: {problem}" for problem in plugin.problems),
    ]
    return "\n".join(lines)
