"""`saebench report`: write the HTML page of a run folder again."""

from __future__ import annotations

from pathlib import Path

import click


@click.command("report")
@click.argument("folder", type=click.Path(file_okay=False, path_type=Path))
def command(folder: Path) -> None:
    """Write the HTML report of a run folder.

    The page, FOLDER/report.html, is made from the records in FOLDER; its path is printed.
    """
    from saebench_meta.report import write_report

    click.echo(write_report(folder))
