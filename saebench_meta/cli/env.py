"""`saebench env`: what a report of a fault should hold."""

from __future__ import annotations

import sys

import click

from saebench_meta.cli.output import columns, json_line

LIBRARIES = ("transformers", "datasets", "sae-lens", "numpy", "scipy", "pandas", "pyarrow", "safetensors", "pydantic")


@click.command("env")
@click.option("--json", "as_json", is_flag=True, envvar="SAEBENCH_JSON", help="As one JSON object.")
def command(as_json: bool) -> None:
    """Print versions and machine, for a report of a fault."""
    from saebench_meta.environment import version_of, versions
    from saebench_meta.plugins import registry

    _import_torch()
    known = {**versions().model_dump(), **{name: version_of(name) for name in LIBRARIES}}
    plugins = [
        f"{p.name} ({p.distribution} {p.version}){'' if p.registered else ', not used'}" for p in registry().plugins
    ]
    if as_json:
        json_line({**known, "executable": sys.executable, "plugins": plugins})
        return
    rows = [(name, "-" if value is None else str(value)) for name, value in known.items()]
    click.echo(
        columns([*rows, ("executable", sys.executable), ("plugins", "; ".join(plugins) or "-")], ("what", "value"))
    )


def _import_torch() -> None:
    """The GPU can only be named by torch; an installation where it does not import is worth a report, too."""
    try:
        import torch  # noqa: F401
    except (ImportError, OSError) as e:
        click.echo(f"torch does not import: {e}", err=True)
