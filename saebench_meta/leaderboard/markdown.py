"""`table.md`: the board as GitHub shows it, and strangers' texts as Markdown that says only what it says."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from saebench_meta.leaderboard.board import Board, Cell, Column, Row
from saebench_meta.leaderboard.rows import SPREAD
from saebench_meta.leaderboard.texts import shown
from saebench_meta.record import Interval
from saebench_meta.tables import ARROWS, NONE, interval, number, places

MAX_ROWS = 100
"""Rows of one table; the site has them all."""
MARKS = {"holds": " ✓", "fails": " ✗", "untested": " ?", "none": ""}
SPECIAL = re.compile(r"([\\`*_\[\]<>|~&$])")
LINKING = re.compile(r"([@#]|://|\bwww(?=\.))")
"""What GitHub makes mentions and links of even where it is escaped; a space of no width after it keeps it from that."""

LEGEND = """↑ higher is better, ↓ lower, · neither. In brackets the 95 % interval; none where a number is exact over the
whole dictionary. The rank is that among the SAEs of the site: 1 + the number that are better beyond the noise, so that
several may share it; none where nothing was tested. Controls: the mean over the SAEs of the site, and its range. ✓ the
controls stand in the expected order, ✗ they do not: the metric is unreliable there, ? within the noise. ® run again by
a maintainer with the same result; the rest is as its submitter reports it. Nothing is averaged over tasks. How it all
is done: `docs/leaderboard.md`."""


def escape(text: str) -> str:
    """A text inside a Markdown table: no markup, no mention, no link comes of it."""
    return LINKING.sub("\\1\u200b", SPECIAL.sub(r"\\\1", " ".join(text.split())))


def code(text: str) -> str:
    """A text in a code span, where GitHub makes nothing of it."""
    return f"`{shown(text, 300).replace('`', '?')}`"


def shown_value(cell: Cell | None) -> str:
    """A value with its interval, rank, order of controls, reference and badge."""
    if cell is None:
        return ""
    if cell.value is None:
        return f"{NONE} {escape(cell.reason or '')}".strip()
    found = Interval(
        value=cell.value, ci_low=cell.low, ci_high=cell.high, n=cell.n, n_unit=cell.n_unit, method=cell.method
    )
    text = number(cell.value, places(found))
    if cell.method == SPREAD:
        return (
            text
            if cell.low == cell.high
            else f"{text} ({number(cell.low, places(found))} … {number(cell.high, places(found))})"
        )
    if cell.low is not None:
        text += f" {interval(found)}"
    text += MARKS[cell.order]
    if cell.rank is not None:
        text += f" rank {cell.rank}"
    if cell.reference is not None:
        text += f" vs {escape(cell.reference)}"
    return text + (" ®" if cell.badge == "reproduced" else "")


def table_md(board: Board, title: str) -> str:
    """The main columns of every model and site, task by task."""
    parts = [f"# {title}", LEGEND.replace("\n", " "), *(f"> **Warning.** {escape(w)}" for w in board.warnings)]
    sites = dict.fromkeys((r.model, r.hook) for r in board.rows)
    for model, hook in sites:
        rows = [r for r in board.rows if (r.model, r.hook) == (model, hook)]
        parts.append(f"## {escape(model)}, {escape(hook)}")
        parts += [part for columns in _tasks(board.columns) for part in _section(columns, rows)]
    if not board.rows:
        parts.append("There are no records yet.")
    return "\n\n".join(parts) + "\n"


def _tasks(columns: Sequence[Column]) -> list[list[Column]]:
    """The main columns, or all where a task marks none, of each task version under each setting."""
    groups: dict[str, list[Column]] = {}
    for c in columns:
        groups.setdefault(f"{c.task}@{c.version}{c.key.partition('~')[2]}", []).append(c)
    return [[c for c in group if c.main] or group for group in groups.values()]


def _section(columns: Sequence[Column], rows: Sequence[Row]) -> Iterator[str]:
    present = [r for r in rows if any(c.key in r.cells for c in columns)]
    if not any(r.kind == "sae" for r in present):
        return
    first = columns[0]
    old = "" if first.current else " (superseded)"
    label = f": {escape(first.setting_label)}" if first.setting_label else ""
    whose = f", of the plugin {code(first.plugin)}" if first.plugin else ""
    yield f"### {escape(first.task)}@{first.version}{old}{label}{whose}"
    ordered = sorted(present, key=lambda r: _order(r, columns))
    heads = ["SAE", "width", *(_head(c) for c in columns)]
    lines = [_line(heads), _line(["---", *["--:"] * (len(heads) - 1)])]
    for row in ordered[:MAX_ROWS]:
        width = f"{row.d_sae:,}" if row.kind == "sae" else ""
        name = escape(row.name) if row.kind == "sae" else f"*{escape(row.name)}*"
        lines.append(_line([name, width, *(shown_value(row.cells.get(c.key)) for c in columns)]))
    yield "\n".join(lines)
    if len(ordered) > MAX_ROWS:
        yield f"… and {len(ordered) - MAX_ROWS:,} more: see the site."


def _head(column: Column) -> str:
    unit = "" if column.unit == "1" else f" ({escape(column.unit)})"
    return f"{ARROWS[column.better]} {escape(column.metric)}{unit}"


def _order(row: Row, columns: Sequence[Column]) -> tuple[bool, float, str]:
    """SAEs before reference rows, by the first column that has a better direction."""
    chosen = next((c for c in columns if c.better != "neither"), columns[0])
    cell = row.cells.get(chosen.key)
    value = float("inf") if cell is None or cell.value is None else cell.value
    worst = cell is None or cell.value is None
    return row.kind != "sae", value if chosen.better == "lower" or worst else -value, row.name


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"
