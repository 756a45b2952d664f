"""`saebench models`: how language models are named."""

from __future__ import annotations

import click

from saebench_meta.cli.output import columns, json_line


@click.command("models")
@click.argument("scheme", required=False)
@click.option("--json", "as_json", is_flag=True, envvar="SAEBENCH_JSON", help="One scheme a line.")
def command(scheme: str | None, as_json: bool) -> None:
    """List the ways to name a language model."""
    from saebench_meta.plugins import registry

    found = registry().models
    chosen = {scheme: found[scheme]} if scheme else {name: found[name] for name in sorted(found)}
    if as_json:
        for name, loader in chosen.items():
            json_line({"scheme": name, "names": list(loader.names), "summary": loader.summary})
        return
    rows = [(f"{name}:", ", ".join(loader.names) or "any name", loader.summary) for name, loader in chosen.items()]
    click.echo(columns(rows, ("scheme", "names", "what it is")))
    click.echo("\nA name without a scheme goes to hf: (a hub name or a local folder).")
