"""`saebench schema`: the JSON Schema of a record."""

from __future__ import annotations

import click


@click.command("schema")
def command() -> None:
    """Print the JSON Schema of a record."""
    click.echo(text(), nl=False)


def text() -> str:
    """The schema as it stands in `saebench_meta/schema/record-v1.json`."""
    import json

    from saebench_meta.record import json_schema

    return json.dumps(json_schema(), indent=1, ensure_ascii=False) + "\n"
