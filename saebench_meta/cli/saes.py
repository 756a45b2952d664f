"""`saebench saes`: SAEs that can be had by reference."""

from __future__ import annotations

import fnmatch
from dataclasses import asdict

import click

from saebench_meta.cli.output import columns, json_line


@click.command("saes")
@click.argument("pattern", required=False)
@click.option("--json", "as_json", is_flag=True, envvar="SAEBENCH_JSON", help="One SAE a line.")
def command(pattern: str | None, as_json: bool) -> None:
    """List SAEs that can be had by reference.

    PATTERN is a part of the reference, model or hook, or a glob.
    """
    from saebench_meta.errors import UnknownNameError, did_you_mean
    from saebench_meta.plugins import registry

    found = registry().catalogue
    entries = [e for e in found.values() if pattern is None or _matches(pattern, (e.ref, e.model, e.hook))]
    if pattern and not entries:
        raise UnknownNameError(f"no SAE in the catalogue matches '{pattern}'{did_you_mean(pattern, list(found))}")
    if as_json:
        for entry in entries:
            json_line(asdict(entry))
        return
    if not entries:
        click.echo("no installed plugin has a catalogue; a path or scheme:name works with `saebench run --sae`")
        return
    rows = [
        (e.ref, e.model, e.hook, str(e.d_sae), e.architecture or "-", "-" if e.k is None else str(e.k), e.note)
        for e in entries
    ]
    click.echo(columns(rows, ("reference", "model", "hook", "latents", "architecture", "k", "note")))


def _matches(pattern: str, texts: tuple[str, ...]) -> bool:
    wanted = pattern if any(c in pattern for c in "*?[") else f"*{pattern}*"
    return any(fnmatch.fnmatch(text.lower(), wanted.lower()) for text in texts)
