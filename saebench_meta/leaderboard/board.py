"""The leaderboard as data: columns, rows, cells, and which differences are real. All that is written is made of it.

A row is an SAE, known by the hash of its weights and its site; a column is a metric of one version of a task under one
setting (judge, corpus, sampling, parameters, seed apart). Numbers under other settings never share a column.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Badge = Literal["self-reported", "reproduced"]
RowKind = Literal["sae", "control", "chance"]
OrderSeen = Literal["holds", "fails", "untested", "none"]


@dataclass(frozen=True)
class Column:
    """One metric of one task version under one setting.

    Attributes:
        key: `task@version.metric`, with `~` and 8 hex digits of the setting where the task has several on the board.
        setting: what numbers of this column have in common besides the task: judge, corpus, sampling, parameters that
            differ from the task's defaults; plain data.
        setting_label: the same in a few words; empty where the task has one setting on the board.
        plugin: of a third party's task, the plugin it comes with.
        current: whether no newer version of the task is on the board.
        order_failed: SAEs on which the declared order of controls fails, of `order_tested`.
    """

    key: str
    task: str
    version: int
    metric: str
    unit: str
    better: Literal["higher", "lower", "neither"]
    main: bool
    help: str = ""
    expects: str | None = None
    why: str = ""
    setting: Mapping[str, Any] = field(default_factory=dict)
    setting_label: str = ""
    plugin: str | None = None
    current: bool = True
    order_failed: int = 0
    order_tested: int = 0


@dataclass(frozen=True)
class Cell:
    """One number with what it stands on.

    Attributes:
        value: None where there is none; `reason` says why.
        controls: control -> (value, low, high).
        order: whether the declared order of controls was seen.
        rank: 1 + the number of SAEs of the same model and site that are better beyond the noise; None where no
            direction is better or nothing could be tested.
        record: id of the record it is from; empty in a reference row.
        reference: name of the SAE a pair is held against; numbers against different ones are never tested.
        others: ids of other records of the same cell (another seed or reference), which are not shown.
    """

    value: float | None
    low: float | None
    high: float | None
    n: int
    n_unit: str
    method: str
    record: str
    reason: str | None = None
    controls: Mapping[str, tuple[float | None, float | None, float | None]] = field(default_factory=dict)
    order: OrderSeen = "none"
    rank: int | None = None
    badge: Badge = "self-reported"
    reference: str | None = None
    others: tuple[str, ...] = ()


@dataclass(frozen=True)
class Row:
    """One SAE, or a reference row: a control's mean over a site's SAEs, or chance.

    Attributes:
        id: 12 hex digits, stable: from the weights' hash and the site.
        cells: column key -> cell.
        l0, mse: from `core` where it was run, for plots and filters.
        have, of: columns (current, main) with a value, and all that its model and site have on the board.
    """

    id: str
    kind: RowKind
    name: str
    ref: str
    model: str
    hook: str
    architecture: str
    d_in: int
    d_sae: int
    weights: str
    cells: Mapping[str, Cell]
    l0: float | None = None
    mse: float | None = None
    have: int = 0
    of: int = 0
    badge: Badge = "self-reported"


@dataclass(frozen=True)
class Difference:
    """Two SAEs in one column, tested over the documents both were measured on.

    Attributes:
        a, b: row ids; a stands before b in the rows' order.
        low, high: interval of a − b, after correction for the number of pairs tested in the column.
        verdict: which is better beyond the noise, `differs` where no direction is better, `tie`, or `untested`.
    """

    a: str
    b: str
    verdict: Literal["a", "b", "differs", "tie", "untested"]
    low: float | None = None
    high: float | None = None
    reason: str | None = None


@dataclass(frozen=True)
class Source:
    """What a record on the board says of how it was made: all its settings, versions and hashes, as plain data."""

    id: str
    task: str
    badge: Badge
    facts: Mapping[str, Any]


@dataclass(frozen=True)
class Board:
    """The whole leaderboard.

    Attributes:
        differences: column key -> pairs of SAEs of the same model and site.
        warnings: what a reader must know of the whole, e.g. that it holds records a leaderboard would not take.
    """

    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    differences: Mapping[str, tuple[Difference, ...]]
    sources: Mapping[str, Source]
    warnings: tuple[str, ...] = ()
