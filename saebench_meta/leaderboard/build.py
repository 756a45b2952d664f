"""`saebench leaderboard build`: `table.md`, `leaderboard.json`, `leaderboard.csv` and `site/`, from the records alone.

The same records give the same bytes: nothing of it depends on the date, the machine or the order of files.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from saebench_meta.errors import SaebenchError
from saebench_meta.leaderboard.assemble import board
from saebench_meta.leaderboard.board import Board
from saebench_meta.leaderboard.markdown import table_md
from saebench_meta.store import write_atomic

SCHEMA_VERSION = 1
TITLE = "saebench-meta leaderboard"
TABLE, JSON, CSV, SITE = "table.md", "leaderboard.json", "leaderboard.csv", "site"
HEADS = (
    "row", "kind", "sae", "ref", "model", "hook", "architecture", "d_in", "d_sae", "weights", "column", "task",
    "version", "metric", "setting", "main", "unit", "better", "value", "low", "high", "n", "n_unit", "method", "rank",
    "order", "reference", "badge", "record", "reason",
)  # fmt: skip


def build(results: Path, out: Path, allow: frozenset[str] = frozenset()) -> Board:
    """Write the leaderboard of the records under the results into a folder.

    Args:
        allow: `quick`, `dirty`, `partial`: what is let through for a local look; every page says so.

    Raises:
        SaebenchError: the folder cannot be written, or there are no results.
    """
    from saebench_meta.leaderboard import pages

    made = board(results, allow)
    try:
        write_atomic(out / TABLE, table_md(made, TITLE).encode())
        write_atomic(out / JSON, as_json(made).encode())
        write_atomic(out / CSV, as_csv(made).encode())
    except OSError as e:
        raise SaebenchError(f"'{out}' cannot be written: {e.strerror or e}. Pass another folder with -o.") from e
    pages.write(made, out / SITE, title=TITLE)
    return made


def as_json(made: Board) -> str:
    """The board as plain data, one column, row, pair or source a line.

    The fields are those of `board.py`; what is empty is left out.
    """
    pairs = ({"column": key, **_filled(d)} for key, found in made.differences.items() for d in found)
    lists = {"columns": made.columns, "rows": made.rows, "differences": pairs, "sources": made.sources.values()}
    parts = [f'"schema_version": {SCHEMA_VERSION}', f'"warnings": {_line(list(made.warnings))}']
    parts += [f'"{name}": [\n' + ",\n".join(map(_line, items)) + "\n]" for name, items in lists.items()]
    return "{\n" + ",\n".join(parts) + "\n}\n"


def _line(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"), default=_filled)


def _filled(value: Any) -> dict[str, Any]:
    """The fields of a dataclass that are not empty."""
    return {name: v for name, v in vars(value).items() if v is not None and v not in ("", [], {}, ())}


def as_csv(made: Board) -> str:
    """One line a number: row, column and everything of the cell but its controls."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(HEADS)
    for line in _csv_lines(made):
        writer.writerow([_harmless(v) for v in line])
    return text.getvalue()


def _csv_lines(made: Board) -> Iterator[tuple[Any, ...]]:
    columns = {c.key: c for c in made.columns}
    for r in made.rows:
        row = (r.id, r.kind, r.name, r.ref, r.model, r.hook, r.architecture, r.d_in, r.d_sae, r.weights)
        for key, cell in r.cells.items():
            c = columns[key]
            column = (key, c.task, c.version, c.metric, c.setting_label, c.main, c.unit, c.better)
            numbers = (cell.value, cell.low, cell.high, cell.n, cell.n_unit, cell.method, cell.rank)
            yield *row, *column, *numbers, cell.order, cell.reference, cell.badge, cell.record, cell.reason


def _harmless(value: Any) -> Any:
    """A text that a spreadsheet would take for a formula gets a quote before it."""
    return f"'{value}" if isinstance(value, str) and value[:1] in ("=", "+", "-", "@", "\t", "\r") else value
