"""What the leaderboard's pages read: the board in chunks, each a script that is loaded when it is first needed.

`board` holds columns and rows and says of each column which chunks hold the rest of it: `cells/K` its numbers,
`controls/K` its controls, `differences/K` its tested pairs. `records/B` is what the records of a block of rows say of
how they were made.
Names in a chunk are ours and texts stand in lists only, so that no text of a stranger becomes the name of anything.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from saebench_meta.leaderboard.board import Board, Cell, Column, Difference, Row, Source
from saebench_meta.leaderboard.packed import coded, estimates, one_each, short, vlq

BLOCK = 50
"""Rows whose records lie in one chunk."""
BUNDLE = 100_000
"""Characters of the columns in one chunk; a larger column has one of its own."""
KINDS = ("sae", "control", "chance")
ORDERS = ("none", "holds", "fails", "untested")
VERDICTS = ("a", "b", "differs", "tie", "untested")
ID_CHARS = 12
OF_ID = ("record", "again")
"""Facts that follow from a record's id, which the page tells itself."""

CELL, VALUE, INTERVAL, ORDER, REPRODUCED = 1, 2, 4, 8, 32
"""Bits of a cell's state: there, with a value, with an interval, the order seen (two bits), reproduced."""

PLAIN = json.JSONEncoder(separators=(",", ":"), allow_nan=False)

Chunk = tuple[str, Any]
Path = tuple[str, ...]


def chunks(board: Board, title: str) -> Iterator[Chunk]:
    """Name and value of every chunk; `board` comes last, so that a folder that has it is whole."""
    records = _records_of_rows(board)
    cells = {i: [row.cells.get(c.key) for row in board.rows] for i, c in enumerate(board.columns)}
    filled = {i: _filled(of_column, board.rows) for i, of_column in cells.items()}
    shown = _shown(board.columns, filled)
    places = {row.id: j for j, row in enumerate(board.rows)}
    kinds = {
        "cells": {i: _cells(cells[i], records) for i in sorted(cells, key=lambda i: i not in shown)},
        "controls": {i: _controls(there) for i, there in _present(cells) if any(cell.controls for cell in there)},
        "differences": {
            i: _differences(board.differences[c.key], places)
            for i, c in enumerate(board.columns)
            if board.differences.get(c.key)
        },
    }
    within: dict[int, dict[str, int]] = {i: {} for i in cells}
    for kind, found in kinds.items():
        for k, members in enumerate(_bundles(found)):
            yield f"{kind}/{k}", {"columns": list(members), "values": list(members.values())}
            for i in members:
                within[i][kind] = k
    yield from _blocks(board, records)
    columns = [
        {**asdict(c), "setting": _pairs(c.setting), "within": within[i], "filled": filled[i], "shown": i in shown}
        for i, c in enumerate(board.columns)
    ]
    head = {"title": title, "warnings": list(board.warnings), "block": BLOCK}
    yield "board", {**head, "columns": columns, "rows": _rows(board.rows)}


def _bundles(found: Mapping[int, dict[str, Any]]) -> Iterator[dict[int, dict[str, Any]]]:
    """Columns in their order, as many together as are quickly read."""
    bundle: dict[int, dict[str, Any]] = {}
    size = 0
    for i, value in found.items():
        length = len(PLAIN.encode(value))
        if bundle and size + length > BUNDLE:
            yield bundle
            bundle, size = {}, 0
        bundle[i] = value
        size += length
    if bundle:
        yield bundle


# -- rows and columns


def _filled(cells: Sequence[Cell | None], rows: Sequence[Row]) -> int:
    """SAEs that have a value."""
    return sum(c is not None and c.value is not None and r.kind == "sae" for c, r in zip(cells, rows, strict=True))


def _shown(columns: Sequence[Column], filled: Mapping[int, int]) -> set[int]:
    """Columns shown unless the reader says: main ones of the newest versions, under their commonest setting."""
    best: dict[tuple[str, str], int] = {}
    for i, column in enumerate(columns):
        key = column.task, column.metric
        if column.main and column.current and (key not in best or filled[i] > filled[best[key]]):
            best[key] = i
    return set(best.values())


def _rows(rows: Sequence[Row]) -> dict[str, Any]:
    names = ("model", "hook", "architecture", "badge")
    plain = ("id", "name", "ref", "weights", "d_in", "d_sae", "have", "of")
    return {
        "kind": one_each([KINDS.index(row.kind) for row in rows]),
        **{name: [getattr(row, name) for row in rows] for name in plain},
        **{name: coded([getattr(row, name) for row in rows]) for name in names},
        "l0": [short(row.l0) for row in rows],
        "mse": [short(row.mse) for row in rows],
    }


# -- cells


def _records_of_rows(board: Board) -> list[dict[str, int]]:
    """Of each row the records its cells are from, numbered from 1 in the order of the columns."""
    keys = [column.key for column in board.columns]
    found = []
    for row in board.rows:
        ids = (row.cells[key].record for key in keys if key in row.cells)
        found.append({record: i for i, record in enumerate(dict.fromkeys(filter(None, ids)), start=1)})
    return found


def _present(cells: Mapping[int, Sequence[Cell | None]]) -> Iterator[tuple[int, list[Cell]]]:
    for i, of_column in cells.items():
        yield i, [cell for cell in of_column if cell is not None]


def _cells(cells: Sequence[Cell | None], records: Sequence[Mapping[str, int]]) -> dict[str, Any]:
    """One column: the state of every row's cell, then lists over the rows that have one."""
    there = [(cell, of_row) for cell, of_row in zip(cells, records, strict=True) if cell is not None]
    present = [cell for cell, _ in there]
    return {
        "state": one_each([_state(cell) for cell in cells]),
        "numbers": estimates([(c.value, *_ends(c)) for c in present if c.value is not None]),
        "ranks": coded([cell.rank or 0 for cell in present]),
        "samples": coded([(cell.n, cell.n_unit, cell.method) for cell in present]),
        "reasons": coded([cell.reason or "" for cell in present]),
        "references": coded([cell.reference or "" for cell in present]),
        "others": coded([tuple(record[:ID_CHARS] for record in cell.others) for cell in present]),
        "records": coded([of_row.get(cell.record, 0) for cell, of_row in there]),
    }


def _state(cell: Cell | None) -> int:
    if cell is None:
        return 0
    state = CELL | ORDER * ORDERS.index(cell.order) | REPRODUCED * (cell.badge == "reproduced")
    if cell.value is None:
        return state
    return state | VALUE | INTERVAL * (_ends(cell)[0] is not None)


def _ends(cell: Cell) -> tuple[float | None, float | None]:
    """Both ends of the interval, or neither."""
    return (None, None) if cell.low is None or cell.high is None else (cell.low, cell.high)


def _controls(cells: Sequence[Cell]) -> dict[str, Any]:
    """Of every cell of a column its controls: which set of names, then which have a value and an interval."""
    ends = [
        (v, *((None, None) if low is None or high is None else (low, high)))
        for cell in cells
        for v, low, high in cell.controls.values()
    ]
    known = [(v, low, high) for v, low, high in ends if v is not None]
    return {
        "count": len(cells),
        "names": coded([tuple(cell.controls) for cell in cells]),
        "state": one_each([0 if v is None else VALUE | INTERVAL * (low is not None) for v, low, _ in ends]),
        "numbers": estimates(known),
    }


def _differences(found: Sequence[Difference], places: Mapping[str, int]) -> dict[str, Any]:
    """Tested pairs of a column by place: rows as steps from the last pair, verdicts, intervals where there is one."""
    pairs = sorted(((places[d.a], places[d.b], d) for d in found), key=lambda pair: pair[:2])
    steps, last = [], 0
    for a, b, _ in pairs:
        steps += [a - last, b - a]
        last = a
    tested = [d.low is not None and d.high is not None for _, _, d in pairs]
    intervals = [
        (d.low, d.low, d.high) for (_, _, d), has in zip(pairs, tested, strict=True) if has and d.low is not None
    ]
    return {
        "pairs": vlq(steps),
        "verdicts": one_each(
            [2 * VERDICTS.index(d.verdict) + has for (_, _, d), has in zip(pairs, tested, strict=True)]
        ),
        "intervals": estimates(intervals),
        "reasons": coded([d.reason or "" for _, _, d in pairs]),
    }


# -- what records say of how they were made


def _blocks(board: Board, records: Sequence[Mapping[str, int]]) -> Iterator[Chunk]:
    for i in range(0, len(records), BLOCK):
        yield f"records/{i // BLOCK}", _block(records[i : i + BLOCK], board.sources)


def _block(block: Sequence[Mapping[str, int]], sources: Mapping[str, Source]) -> dict[str, Any]:
    """Records of a block's rows. Those that say the same things, by name, stand together, one list a thing."""
    ids = [record for of_row in block for record in of_row]
    known = [sources.get(record) for record in ids]
    leaves = [dict(_leaves(source.facts)) if source else {} for source in known]
    shapes: dict[tuple[Path, ...], list[dict[Path, str]]] = {}
    for of_record in leaves:
        shapes.setdefault(tuple(of_record), []).append(of_record)
    return {
        "counts": vlq([len(of_row) for of_row in block]),
        "ids": [record[:ID_CHARS] for record in ids],
        "task": coded([source.task if source else "" for source in known]),
        "badge": coded([source.badge if source else "" for source in known]),
        "shape": coded([list(shapes).index(tuple(of_record)) for of_record in leaves]),
        "shapes": [{"names": shape, "values": [_told(shape_of[n] for shape_of in of_shape) for n in shape]}
                   for shape, of_shape in shapes.items()],
    }  # fmt: skip


def _leaves(facts: Mapping[str, Any], above: Path = ()) -> Iterator[tuple[Path, str]]:
    """What nested plain data hold: the names on the way to it, and it as JSON."""
    for name, value in facts.items():
        if not above and name in OF_ID:
            continue
        if isinstance(value, dict) and value:
            yield from _leaves(value, (*above, name))
        else:
            yield (*above, name), PLAIN.encode(_listed(value))


def _told(texts: Iterable[str]) -> dict[str, Any]:
    found = coded(list(texts))
    return {**found, "of": [json.loads(text) for text in found["of"]]}


def _pairs(facts: Mapping[str, Any]) -> list[Any]:
    """Plain data with its names as texts in lists."""
    return [[name, _listed(value)] for name, value in facts.items()]


def _listed(value: Any) -> Any:
    if isinstance(value, dict):
        return {"of": _pairs(value)}
    if isinstance(value, list | tuple):
        return [_listed(v) for v in value]
    return value
