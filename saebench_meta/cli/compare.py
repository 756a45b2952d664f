"""`saebench compare`: two records or two run folders, paired over documents."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from saebench_meta.cli.output import json_line

if TYPE_CHECKING:
    from rich.console import Console

    from saebench_meta.compare import Comparison, RecordComparison

VERDICTS = {
    "a": "A is better",
    "b": "B is better",
    "differs": "they differ",
    "tie": "no difference beyond the noise",
    "untested": "no test",
}


@click.command("compare")
@click.argument("a", type=click.Path(exists=True, path_type=Path))
@click.argument("b", type=click.Path(exists=True, path_type=Path))
@click.option(
    "--all", "all_metrics", is_flag=True, envvar="SAEBENCH_COMPARE_ALL", help="All metrics, not only the main ones."
)
@click.option("--force", is_flag=True, help="Compare also where the task's version or the data differ.")
@click.option("--json", "as_json", is_flag=True, envvar="SAEBENCH_JSON", help="One pair of records a line.")
def command(a: Path, b: Path, all_metrics: bool, force: bool, as_json: bool) -> None:
    """Compare two records or two run folders.

    Run folders are matched by task and subject. The difference A - B is taken over the documents both were measured
    on and resampled over them; where a metric allows no such test, this is said instead.
    """
    from saebench_meta.compare import compare

    compared = compare(a, b, force=force)
    if as_json:
        for pair in compared:
            json_line(pair.to_json())
        return
    from saebench_meta.tables import console

    out = console()
    for pair in compared:
        _print_pair(out, pair, all_metrics)


def _print_pair(out: Console, pair: RecordComparison, all_metrics: bool) -> None:
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    task = f"{pair.a.task.name}@{pair.a.task.version}"
    out.print(f"{task}   A = {pair.a.subject.name}   B = {pair.b.subject.name}", style="bold", markup=False)
    for remark in pair.remarks:
        out.print(f"note: {remark}", style="yellow", markup=False)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="bold")
    for head in ("metric", "A", "B", "A - B", "interval", "n", "verdict"):
        table.add_column(head, overflow="fold", no_wrap=head in ("A", "B", "A - B"))
    shown = [c for c in pair.metrics if all_metrics or c.a.main] or list(pair.metrics)
    for comparison in shown:
        table.add_row(*(escape(cell) for cell in _cells(comparison)))
    out.print(table)


def _cells(c: Comparison) -> tuple[str, ...]:
    from saebench_meta.record import Interval
    from saebench_meta.tables import ARROWS, interval, number, places

    unit = f" ({c.a.unit})" if c.a.unit != "1" else ""
    name = f"{ARROWS[c.a.better]} {c.metric}{unit}"
    values = (number(c.a.value, places(c.a)), number(c.b.value, places(c.b)))
    d = c.difference
    if d is None:
        return name, *values, number(c.plain_difference), "", "", f"no test: {c.no_test}"
    shown = Interval(value=d.value, ci_low=d.ci_low, ci_high=d.ci_high, n=d.n, n_unit=d.n_unit, method=d.method)
    return name, *values, number(d.value, places(shown)), interval(shown), f"{d.n:,} {d.n_unit}", VERDICTS[c.verdict]
