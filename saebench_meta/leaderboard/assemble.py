"""From the records under the results to the board: rows, columns, which differences are real, reference rows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from saebench_meta.leaderboard.board import Board
from saebench_meta.leaderboard.differences import tested
from saebench_meta.leaderboard.entries import Entry, columns_of, entries_of, groups_of, one_a_cell
from saebench_meta.leaderboard.rows import control_rows, rows_of, with_coverage, with_order
from saebench_meta.leaderboard.rules import Bench, record_faults
from saebench_meta.leaderboard.sources import source_of
from saebench_meta.leaderboard.validate import Checks, check_results
from saebench_meta.plugins import registry

SHOWN_PROBLEMS = 10


def board(results: Path, allow: frozenset[str] = frozenset()) -> Board:
    """The board of all records under the results that are in order; those that are not are named in its warnings.

    Args:
        allow: `quick`, `dirty`, `partial`: what is let through for a look at one's own numbers; the board says so.

    Raises:
        BadFileError: there is no such folder.
    """
    bench = Bench(registry(), allow, intervals=False)
    return of_checks(check_results(results, bench), bench)


def of_checks(checks: Checks, bench: Bench) -> Board:
    """The board of records that have been checked."""
    entries = entries_of(checks.good, bench.registry)
    chosen, others = one_a_cell(entries)
    groups = groups_of(chosen)
    columns = [column for group in groups for column in columns_of(group)]
    rows, differences, notes = tested(with_coverage(rows_of(groups, others), columns), groups)
    return Board(
        columns=tuple(with_order(column, rows) for column in columns),
        rows=(*rows, *control_rows(rows)),
        differences=differences,
        sources={e.record.id: source_of(e) for e in entries},
        warnings=(*_let_through(entries, bench), *_kept_out(checks), *notes),
    )


def _let_through(entries: Sequence[Entry], bench: Bench) -> Iterator[str]:
    strict = Bench(bench.registry, frozenset(), intervals=False)
    count = sum(any(record_faults(e.record, strict)) for e in entries) if bench.allow else 0
    if count:
        kinds = ", ".join(sorted(bench.allow))
        yield (
            f"For a local look only: {count} of {len(entries)} records are such as a leaderboard does not take "
            f"(let through: {kinds})."
        )


def _kept_out(checks: Checks) -> Iterator[str]:
    bad = [c for c in checks.folders if c.problems]
    if bad or checks.strays:
        files = f"{len(bad)} records and {len(checks.strays)} other files"
        yield f"{files} are kept out: see `saebench leaderboard validate`."
    problems = [c.problems[0] for c in bad] + list(checks.strays)
    yield from (f"kept out: {problem}" for problem in problems[:SHOWN_PROBLEMS])
