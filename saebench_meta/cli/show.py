"""`saebench show`: the table of a run folder or of one record."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from saebench_meta.cli.output import json_line

if TYPE_CHECKING:
    from saebench_meta.record import Record


@click.command("show")
@click.argument("path", type=click.Path(path_type=Path))
@click.option(
    "--all", "all_metrics", is_flag=True, envvar="SAEBENCH_SHOW_ALL", help="All metrics, not only the main ones."
)
@click.option("--json", "as_json", is_flag=True, envvar="SAEBENCH_JSON", help="One record a line, whole.")
def command(path: Path, all_metrics: bool, as_json: bool) -> None:
    """Show the results of a run folder or a record.

    PATH is a folder a run wrote to (its -o), the folder of one record, or a record.json.
    """
    found = records_in(path)
    if as_json:
        for _, record in found:
            json_line(json.loads(record.to_json()))
        return
    from saebench_meta.tables import console, print_records

    print_records(console(), [record for _, record in found], all_metrics=all_metrics)
    for folder, record in found:
        for transcript in (a for a in record.artifacts if a.kind == "transcript"):
            said = f"{transcript.title}, {record.task.name} on {record.subject.name}: {folder / transcript.path}"
            click.echo(said if said.isprintable() else repr(said))  # titles and paths may be a stranger's


def records_in(path: Path) -> list[tuple[Path, Record]]:
    """The record at a path, or every record below it, each with its folder.

    Raises:
        SaebenchError: there is none.
    """
    from saebench_meta.errors import SaebenchError
    from saebench_meta.record import read_record
    from saebench_meta.store import find_records

    if path.is_file():
        return [(path.parent, read_record(path))]
    records = list(find_records(path))
    if not records:
        raise SaebenchError(f"'{path}' holds no records. Give the folder a run wrote to (its -o).")
    return records
