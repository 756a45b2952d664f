"""Rows and cells of the board: one row an SAE, and reference rows with what its controls give."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace

from saebench_meta.leaderboard.board import Cell, Column, OrderSeen, Row
from saebench_meta.leaderboard.entries import Entry, Group
from saebench_meta.leaderboard.results import weights_of
from saebench_meta.record import MetricResult, Order, canonical_hash
from saebench_meta.store import ID_CHARS

FACTS = {"core": ("l0", "mse")}
"""Metrics that a row carries for plots and filters: of the task's newest version, the setting most SAEs have."""
SPREAD = "mean and range"
"""Method of a reference row's cells: `low` and `high` are the smallest and the largest."""


def rows_of(groups: Sequence[Group], others: Mapping[str, tuple[str, ...]]) -> list[Row]:
    """One row an SAE, by model, hook and name.

    Args:
        others: by record, the ids of other records of its cell.
    """
    cells: dict[str, dict[str, Cell]] = defaultdict(dict)
    facts: dict[str, dict[str, float | None]] = defaultdict(dict)
    own: dict[str, list[Entry]] = defaultdict(list)
    for group in groups:
        for e in group.entries:
            own[e.row].append(e)
            for name, m in e.record.metrics.items():
                cells[e.row][group.keys[name]] = _cell(m, e, others[e.record.id])
                if group.current and name in FACTS.get(group.task, ()):
                    facts[e.row].setdefault(name, m.value)
    rows = [_row(entries, cells[row], facts[row]) for row, entries in own.items()]
    return sorted(rows, key=lambda r: (r.model, r.hook, r.name, r.id))


def _row(entries: Sequence[Entry], cells: Mapping[str, Cell], facts: Mapping[str, float | None]) -> Row:
    first = min(entries, key=lambda e: e.record.id)
    info = first.sae.info
    return Row(
        id=first.row,
        kind="sae",
        name=info.name,
        ref=first.sae.ref,
        model=info.site.model,
        hook=info.site.hook,
        architecture=info.architecture,
        d_in=info.d_in,
        d_sae=info.d_sae,
        weights=weights_of(first.sae) or "",
        cells=cells,
        l0=facts.get("l0"),
        mse=facts.get("mse"),
        badge="reproduced" if all(e.badge == "reproduced" for e in entries) else "self-reported",
    )


def _cell(m: MetricResult, e: Entry, others: tuple[str, ...]) -> Cell:
    return Cell(
        value=m.value,
        low=m.ci_low,
        high=m.ci_high,
        n=m.n,
        n_unit=m.n_unit,
        method=m.method,
        record=e.record.id,
        reason=m.reason,
        controls={name: (c.value, c.ci_low, c.ci_high) for name, c in m.controls.items()},
        order=_order_seen(m.order),
        badge=e.badge,
        reference=None if e.reference is None else e.reference.info.name,
        others=others,
    )


def _order_seen(order: Order | None) -> OrderSeen:
    if order is None:
        return "none"
    return "untested" if order.holds is None else "holds" if order.holds else "fails"


def with_coverage(rows: Sequence[Row], columns: Sequence[Column]) -> list[Row]:
    """Of the main columns of the newest versions that a row's site has on the board, how many it has a value in."""
    main = {c.key for c in columns if c.main and c.current}
    own = [{k for k, cell in r.cells.items() if k in main and cell.value is not None} for r in rows]
    of_site: dict[tuple[str, str], set[str]] = defaultdict(set)
    for r, keys in zip(rows, own, strict=True):
        of_site[r.model, r.hook] |= keys
    return [replace(r, have=len(keys), of=len(of_site[r.model, r.hook])) for r, keys in zip(rows, own, strict=True)]


def with_order(column: Column, rows: Sequence[Row]) -> Column:
    """The column with how many SAEs show the declared order of controls."""
    seen = [row.cells[column.key].order for row in rows if column.key in row.cells]
    return replace(column, order_failed=seen.count("fails"), order_tested=seen.count("holds") + seen.count("fails"))


def control_rows(rows: Sequence[Row]) -> list[Row]:
    """Reference rows: for each site and control the mean over its SAEs, with the smallest and the largest as spread."""
    sites: dict[tuple[str, str], list[Row]] = defaultdict(list)
    for row in rows:
        sites[row.model, row.hook].append(row)
    found = []
    for (model, hook), members in sites.items():
        for control in sorted({name for row in members for cell in row.cells.values() for name in cell.controls}):
            cells = _control_cells(control, members)
            if cells:
                found.append(_control_row(control, model, hook, cells))
    return found


def _control_cells(control: str, members: Sequence[Row]) -> dict[str, Cell]:
    values: dict[str, list[float]] = defaultdict(list)
    for row in members:
        for key, cell in row.cells.items():
            value = cell.controls.get(control, (None, None, None))[0]
            if value is not None:
                values[key].append(value)
    return {
        key: Cell(value=sum(v) / len(v), low=min(v), high=max(v), n=len(v), n_unit="SAEs", method=SPREAD, record="")
        for key, v in values.items()
    }


def _control_row(control: str, model: str, hook: str, cells: Mapping[str, Cell]) -> Row:
    return Row(
        id=canonical_hash(["control", control, model, hook])[:ID_CHARS],
        kind="control",
        name=f"control: {control}",
        ref="",
        model=model,
        hook=hook,
        architecture="",
        d_in=0,
        d_sae=0,
        weights="",
        cells=cells,
    )
