"""Records as rows to read: one formatting of values, intervals and controls for terminal, notebook and HTML page."""

from __future__ import annotations

import io
import math
import os
import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from saebench_meta.record import Interval, MetricResult, Order, Record

ARROWS = {"higher": "↑", "lower": "↓", "neither": "·"}
MARKS = {True: "✓", False: "✗", None: "?"}
LEGEND = (
    "↑ higher is better, ↓ lower is better, · neither. "
    "✓ the controls stand in the expected order, ✗ they do not: the metric is unreliable here, ? within the noise."
)
NONE = "—"
SIGNIFICANT = 4
MAX_PLACES = 8
TEXT_WIDTH = 120
MAX_INTERVAL = 26
"""An interval column wider than this holds sentences, and wraps."""
PIPE_WIDTH = 240
"""Columns assumed where output is no terminal, so that tables in files and logs are not cut."""


@dataclass(frozen=True)
class Row:
    """One metric of one record, as text."""

    subject: str
    task: str
    metric: str
    arrow: str
    unit: str
    value: str
    interval: str
    n: str
    controls: tuple[tuple[str, str], ...]
    mark: str
    order: str
    help: str
    main: bool


def rows(records: Iterable[Record], *, all_metrics: bool = False) -> list[Row]:
    """One row a metric, in the order of the records; only the main metrics unless `all_metrics`.

    A record none of whose metrics is marked as main gives all of them. Where several records are of one task and
    subject, with other settings, each carries the start of its id, which is the name of its folder.
    """
    records = list(records)
    times = Counter((r.subject.name, r.task.name, r.task.version) for r in records)
    out = []
    for r in records:
        shown = {n: m for n, m in r.metrics.items() if all_metrics or m.main} or r.metrics
        several = times[r.subject.name, r.task.name, r.task.version] > 1
        subject = f"{r.subject.name} [{r.id[:8]}]" if several else r.subject.name
        out += [_row(r, subject, name, m) for name, m in shown.items()]
    return out


def _row(record: Record, subject: str, name: str, m: MetricResult) -> Row:
    digits = places(m)
    return Row(
        subject=subject,
        task=f"{record.task.name}@{record.task.version}" + (" (partial)" if record.run.partial else ""),
        metric=name,
        arrow=ARROWS[m.better],
        unit="" if m.unit == "1" else m.unit,
        value=number(m.value, digits),
        interval=interval(m),
        n=f"{m.n:,} {m.n_unit}",
        controls=tuple((c, number(r.value, digits)) for c, r in m.controls.items()),
        mark="" if m.order is None else MARKS[m.order.holds],
        order=order_text(m.order),
        help=m.help,
        main=m.main,
    )


def order_text(order: Order | None) -> str:
    """The order of controls in words: what is expected, and what is seen where it differs."""
    if order is None:
        return ""
    expected, observed = (text.replace(">", " > ") for text in (order.expected, order.observed))
    if order.holds:
        return expected
    return f"expected {expected}, seen {observed or 'none'}" + (" (within the noise)" if order.holds is None else "")


def places(m: Interval) -> int | None:
    """Decimals that show two digits of the interval's half-width; None without an interval."""
    if m.ci_low is None or m.ci_high is None:
        return None
    half = (m.ci_high - m.ci_low) / 2
    return None if half <= 0 else max(0, min(MAX_PLACES, 1 - math.floor(math.log10(half))))


def number(value: float | None, digits: int | None = None) -> str:
    """A number with `digits` decimals, or with four significant digits; counts whole."""
    if value is None:
        return NONE
    if digits is not None:
        return f"{value:,.{digits}f}"
    if float(value).is_integer() and abs(value) < 1e15:
        return f"{int(value):,}"
    return f"{value:,.0f}" if abs(value) >= 10**SIGNIFICANT else f"{value:.{SIGNIFICANT}g}"


def interval(m: Interval) -> str:
    """`[low, high]`, `census`, `exact`, or why there is none."""
    if m.value is None:
        return m.reason or "no value"
    if m.ci_low is not None and m.ci_high is not None:
        digits = places(m)
        return f"[{number(m.ci_low, digits)}, {number(m.ci_high, digits)}]"
    return m.method if m.method in ("census", "exact") else m.reason or "no interval"


def interval_head(records: Iterable[Record]) -> str:
    """Heading of the interval column: with the level, if there is only one."""
    levels = {m.level for r in records for m in r.metrics.values() if m.level is not None}
    return f"{next(iter(levels)):.0%} interval" if len(levels) == 1 else "interval"


# -- rich


def is_plain(stream: IO[str]) -> bool:
    """No terminal, a dumb one, or a user who wants no colours: then not one escape sequence is written."""
    return not stream.isatty() or bool(os.environ.get("NO_COLOR")) or os.environ.get("TERM") == "dumb"


def console(*, err: bool = False) -> Console:
    """A rich console on standard output or error; without any escape sequence where `is_plain`."""
    from rich.console import Console

    stream = sys.stderr if err else sys.stdout
    if not is_plain(stream):
        return Console(stderr=err, highlight=False)
    width = None if stream.isatty() else PIPE_WIDTH
    return Console(file=stream, color_system=None, force_terminal=False, highlight=False, width=width, soft_wrap=False)


HEADS = ("metric", "value", "interval", "n", "", "controls")
VALUE, INTERVAL = 1, 2
NARROW = 110
"""Below this many columns the unit stands under the metric and the sample size under the interval."""


def section_tables(records: Sequence[Record], *, all_metrics: bool = False, narrow: bool = False) -> list[Table]:
    """A table for each task and subject, their columns of one width; the heads stand on the first."""
    shown = sorted(rows(records, all_metrics=all_metrics), key=lambda row: row.task)  # SAEs of one task side by side
    sections: dict[tuple[str, str], list[tuple[str, ...]]] = {}
    for row in shown:
        sections.setdefault((row.task, row.subject), []).append(_cells(row, narrow))
    heads = [head if head != "interval" else interval_head(records) for head in HEADS]
    if narrow:
        heads.remove("n")
    columns = list(zip(heads, *(cells for section in sections.values() for cells in section), strict=True))
    widths = [max(len(line) for cell in column for line in cell.split("\n")) for column in columns]
    return [
        _section(f"{task}  {subject}", cells, heads, widths, first=i == 0)
        for i, ((task, subject), cells) in enumerate(sections.items())
    ]


def _cells(row: Row, narrow: bool) -> tuple[str, ...]:
    gap = "\n  " if narrow else " "
    metric = f"{row.arrow} {row.metric}" + (f"{gap}({row.unit})" if row.unit else "")
    controls = "\n".join(f"{name} {value}" for name, value in row.controls)
    sampled = (f"{row.interval}\n{row.n}",) if narrow else (row.interval, row.n)
    return metric, row.value, *sampled, row.mark, controls


def _section(
    title: str, rows: Sequence[tuple[str, ...]], heads: Sequence[str], widths: Sequence[int], *, first: bool
) -> Table:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(
        box=box.SIMPLE_HEAD,
        show_header=first,
        show_edge=False,
        pad_edge=False,
        title=Text(title, style="bold"),
        title_justify="left",
    )
    for i, (head, width) in enumerate(zip(heads, widths, strict=True)):
        last = i == len(heads) - 1  # the controls: ragged, and the first to wrap
        sentences = i == INTERVAL and width > MAX_INTERVAL
        table.add_column(
            head,
            justify="right" if i == VALUE else "left",
            width=None if last else MAX_INTERVAL if sentences else width,
            no_wrap=not (last or sentences),
        )
    for cells in rows:
        table.add_row(*(Text(cell) for cell in cells))
    return table


def print_records(
    console: Console, records: Sequence[Record], *, all_metrics: bool = False, legend: bool = True
) -> None:
    """The tables of finished records, which orders of controls do not hold, and the unfinished with their reason."""
    ok = [r for r in records if r.status == "ok"]
    for table in section_tables(ok, all_metrics=all_metrics, narrow=console.width < NARROW) if ok else []:
        console.print(table)
        console.print()
    if ok and legend:
        console.print(LEGEND, style="dim", markup=False)
    for row in rows(ok, all_metrics=all_metrics):
        if row.mark and row.mark != MARKS[True]:
            console.print(f"{row.mark} {row.metric} of {row.task} on {row.subject}: {row.order}", markup=False)
    for status in ("failed", "skipped"):
        listed = {f"{r.task.name} on {r.subject.name}": r.reason or "" for r in records if r.status == status}
        print_reasons(console, status, listed)


def print_reasons(console: Console, status: str, reasons: Mapping[str, str]) -> None:
    """What did not run, one line each."""
    if not reasons:
        return
    console.print(f"\n{status}:", style="bold", markup=False)
    for label, reason in reasons.items():
        console.print(f"  {label}: {reason}", markup=False)


def render_text(records: Sequence[Record], skipped: Mapping[str, str], failed: Mapping[str, str]) -> str:
    """The same as plain text, for notebooks and logs."""
    from rich.console import Console

    buffer = io.StringIO()
    console = Console(file=buffer, color_system=None, width=TEXT_WIDTH, highlight=False)
    print_records(console, records)
    print_reasons(console, "failed", failed)
    print_reasons(console, "skipped", skipped)
    return "\n".join(line.rstrip() for line in buffer.getvalue().strip("\n").splitlines())
