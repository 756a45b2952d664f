"""`saebench new plugin`: the start of a package of one's own."""

from __future__ import annotations

from pathlib import Path

import click


@click.group("new")
def command() -> None:
    """Make the start of something of one's own."""


@command.command("plugin")
@click.argument("name")
@click.option("--loader", is_flag=True, help="With a loader of SAEs in a format of one's own.")
@click.option("--task", is_flag=True, help="With a task; so it is where no other kind is named.")
@click.option("--judge", is_flag=True, help="With a judge.")
@click.option("--architecture", is_flag=True, help="With an architecture to train.")
@click.option(
    "-o", "--out", type=click.Path(path_type=Path), metavar="DIR", help="Folder to make; by default NAME, here."
)
def plugin(name: str, out: Path | None, **asked: bool) -> None:
    """Make a package that installs and passes its own tests, to be changed.

    It has tests, among them every rule of saebench_meta.testing, docs, and a workflow that runs them. The folder must
    not be there yet.
    """
    from saebench_meta.plugins import registry
    from saebench_meta.scaffold import KINDS, check_free, files, names_of, write

    names = names_of(name)
    kinds = tuple(kind for kind in KINDS if asked[kind]) or ("task",)
    check_free(registry(), names, kinds)
    folder = out or Path(name)
    write(folder, files(names, kinds))
    for kind in kinds:
        click.echo(f"{kind:12}  {folder / names.module / f'{kind}.py'}")
    click.echo(f'\nNext: cd {folder} && python -m pip install -e ".[dev]"')
    click.echo(f"      saebench check --plugin {names.distribution}")
