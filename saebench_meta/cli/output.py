"""What commands write without drawing: plain columns and JSON lines. Imports nothing heavy."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

import click


def json_line(value: Any) -> None:
    """One JSON value on one line of standard output."""
    click.echo(json.dumps(value, ensure_ascii=False, allow_nan=False, default=str))


def columns(rows: Iterable[Sequence[str]], heads: Sequence[str]) -> str:
    """Rows under heads, each column as wide as its widest cell; no colours, no lines."""
    table = [list(heads), *(list(r) for r in rows)]
    widths = [max(len(row[i]) for row in table) for i in range(len(heads))]
    lines = ["  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in table]
    return "\n".join(lines)
