"""Which pairs of SAEs a board tests, and what came of it: differences by column, and ranks for the cells."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace

from saebench_meta.leaderboard.board import Difference, Row
from saebench_meta.leaderboard.entries import Group
from saebench_meta.leaderboard.pairwise import (
    TOP,
    Candidate,
    LeftOut,
    Measured,
    Pair,
    decide,
    leave_out,
    measure,
    pairs_of,
    planned,
    ranks,
)
from saebench_meta.leaderboard.reading import read_documents
from saebench_meta.leaderboard.recompute import SUBJECT_ROLE, Columns
from saebench_meta.leaderboard.results import DOCUMENTS

MAX_PAIRS = 100_000
"""Pairs of a whole board; where there are more, only main columns are tested."""

Site = tuple[str, str]
Plan = dict[str, dict[Site, list[Pair]]]
"""Metric -> site -> pairs."""


def tested(
    rows: Sequence[Row], groups: Sequence[Group]
) -> tuple[list[Row], dict[str, tuple[Difference, ...]], list[str]]:
    """Test every column.

    Returns:
        The rows with ranks; column key -> differences; what a reader must know of what was not tested.
    """
    position = {row.id: i for i, row in enumerate(rows)}
    plans, notes = _plans(groups, position)
    differences: dict[str, tuple[Difference, ...]] = {}
    ranked: dict[str, dict[str, int]] = {}
    for group, plan in zip(groups, plans, strict=True):
        measured: dict[str, list[Measured]] = defaultdict(list)
        for site in dict.fromkeys(site for of_site in plan.values() for site in of_site):
            for metric, found in _measured_at(site, group, plan).items():
                measured[metric] += found
        for metric, found in measured.items():
            key = group.keys[metric]
            differences[key] = tuple(decide(found))
            ranked[key] = ranks(_candidates(group, metric, position).values(), differences[key])
    return [_with_ranks(row, ranked) for row in rows], differences, notes


def _plans(groups: Sequence[Group], position: Mapping[str, int]) -> tuple[list[Plan], list[str]]:
    """What is tested in each group, and what a reader must know of it."""
    sizes = [n for g in groups for m in g.metrics for n in _sizes(g, m)]
    everything = sum(pairs_of(n) for n in sizes) <= MAX_PAIRS
    plans: list[Plan] = []
    for group in groups:
        chosen = [m for m in group.metrics if everything or group.metrics[m].main]
        by_site = {m: _candidates(group, m, position) for m in chosen}
        plans.append({m: {s: pairs for s, c in sites.items() if (pairs := planned(c))} for m, sites in by_site.items()})
    notes = []
    if any(n > TOP for n in sizes):
        notes.append(
            f"Where a site has more than {TOP} SAEs in a column, all pairs of the first {TOP} are tested and beyond "
            "them neighbours in order; SAEs beyond them have no rank."
        )
    if not everything:
        notes.append(f"There are more than {MAX_PAIRS:,} pairs of SAEs: only main columns are tested.")
    return plans, notes


def _sizes(group: Group, metric: str) -> list[int]:
    """How many SAEs have a value in a column, site by site."""
    results = ([e.record.metrics.get(metric) for e in entries] for entries in group.at.values())
    return [sum(m is not None and m.value is not None for m in found) for found in results]


def _candidates(group: Group, metric: str, position: Mapping[str, int]) -> dict[Site, list[Candidate]]:
    """Site -> its SAEs that have a value in the column."""
    found: dict[Site, list[Candidate]] = defaultdict(list)
    for e in group.entries:
        result = e.record.metrics.get(metric)
        if result is not None and result.value is not None:
            found[e.site].append(Candidate(e.row, position[e.row], result, e.comparable))
    return found


def _measured_at(site: Site, group: Group, plan: Plan) -> dict[str, list[Measured]]:
    """The differences of one site, whose documents are read for this and not kept."""
    metrics = [m for m, of_site in plan.items() if site in of_site]
    left_out: dict[str, dict[str, LeftOut]] = {m: {} for m in metrics}
    formulas = {m: f for m in metrics if (f := group.metrics[m].of) is not None}
    for e in group.at[site]:
        if formulas and (e.checked.folder / DOCUMENTS).is_file():
            columns = Columns(read_documents(e.checked.folder / DOCUMENTS)[SUBJECT_ROLE])
            own = {m: f for m, f in formulas.items() if m in e.record.metrics and e.record.metrics[m].of == f}
            for metric, values in leave_out(own, columns).items():
                left_out[metric][e.row] = values
    return {m: measure(plan[m][site], left_out[m]) for m in metrics}


def _with_ranks(row: Row, ranked: Mapping[str, Mapping[str, int]]) -> Row:
    cells = {key: replace(c, rank=ranked[key].get(row.id)) if key in ranked else c for key, c in row.cells.items()}
    return replace(row, cells=cells)
