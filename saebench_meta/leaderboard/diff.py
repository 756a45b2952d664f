"""`saebench leaderboard diff`: what a branch adds to the leaderboard, as Markdown; and what it must not touch.

The work tree is held against the commit that it and REF have in common, so that what others have added meanwhile does
not show. A record that is on the leaderboard is never changed and never taken away by a branch that adds one.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from saebench_meta.errors import SaebenchError
from saebench_meta.leaderboard.assemble import of_checks
from saebench_meta.leaderboard.board import Board, Cell, Column, Row
from saebench_meta.leaderboard.markdown import code, escape, shown_value
from saebench_meta.leaderboard.results import DOCUMENTS, RECORD, REPRODUCED
from saebench_meta.leaderboard.rules import Bench
from saebench_meta.leaderboard.validate import Checks, Problem, check_folder, check_results

GIT_SECONDS = 60
MAX_RECORDS = 40
"""Records whose numbers are shown; a comment has a limit."""
MAX_PROBLEMS = 60


@dataclass(frozen=True)
class Change:
    """One file under the results that differs. `status`: `A` added, `M` changed, `D` removed."""

    status: str
    path: PurePosixPath

    @property
    def folder(self) -> str:
        return self.path.parent.as_posix()


@dataclass(frozen=True)
class Report:
    """What a branch changes. `problems`: why it cannot be merged as it is."""

    added: tuple[str, ...]
    problems: tuple[str, ...]
    markdown: str


def diff(ref: str, results: Path, bench: Bench) -> Report:
    """What the work tree adds to the results since it left REF.

    Raises:
        SaebenchError: the results are in no git work tree, or REF is no commit.
    """
    changes = changes_since(ref, results)
    checks = _checks(results, bench, {c.folder for c in changes})
    added = sorted({c.folder for c in changes if c.status == "A" and c.path.name == RECORD})
    problems = [*_forbidden(changes, added), *_faults(checks, changes)]
    board = of_checks(checks, bench)
    return Report(tuple(added), tuple(problems), _markdown(added, problems, checks, board))


# -- git


def changes_since(ref: str, results: Path) -> list[Change]:
    """Files under the results that are added, changed or removed, whether they are committed or not."""
    if ref.startswith("-"):
        raise SaebenchError(f"'{ref}' is no git reference")
    root = results.resolve()
    if not root.is_dir():
        raise SaebenchError(f"'{results}' is no folder. Name the leaderboard's results with --results.")
    commit = _git(
        root, "rev-parse", "--verify", "--quiet", f"{ref}^{{commit}}", what=f"'{ref}' names no commit"
    ).strip()
    base = _git(root, "merge-base", commit, "HEAD", what=f"'{ref}' and this branch have no commit in common").strip()
    named = _git(root, "diff", "--relative", "--no-renames", "--no-ext-diff", "--name-status", "-z", base, "--", ".")
    words = named.split("\0")[:-1]
    changes = [Change(s[0], PurePosixPath(p)) for s, p in zip(words[::2], words[1::2], strict=True)]
    new = _git(root, "ls-files", "--others", "-z", "--", ".").split("\0")[:-1]
    return [Change("M" if c.status == "T" else c.status, c.path) for c in changes] + [
        Change("A", PurePosixPath(p)) for p in new
    ]


def _git(folder: Path, *arguments: str, what: str = "git cannot say what has changed") -> str:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("GIT_")}
    command = ["git", "--no-optional-locks", "-c", "core.fsmonitor=false", "-C", str(folder), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, timeout=GIT_SECONDS, env=environment)
    except (OSError, subprocess.TimeoutExpired) as e:
        raise SaebenchError(f"git cannot be run: {e}") from e
    if done.returncode != 0:
        said = done.stderr.decode(errors="replace").strip().splitlines()
        raise SaebenchError(f"{what}{': ' + said[-1] if said else ''}")
    return done.stdout.decode(errors="surrogateescape")


# -- what a branch must not do


def _forbidden(changes: Sequence[Change], added: Sequence[str]) -> Iterator[str]:
    """Changes to what is there, and badges, which only a maintainer's rerun gives."""
    mine = set(added)
    for c in changes:
        if c.path.name in (RECORD, DOCUMENTS) and c.folder not in mine:
            verb = {"A": "adds a file to", "D": "removes"}.get(c.status, "changes")
            yield f"{c.path}: {verb} a record that is already there; records are only ever added"
        elif c.path.name == REPRODUCED:
            yield f"{c.path}: badges are given by the reproduce workflow only; leave this file out"


def _faults(checks: Checks, changes: Sequence[Change]) -> Iterator[str]:
    """Validation problems of what the branch touches."""
    touched = {c.folder for c in changes}
    paths = {c.path.as_posix() for c in changes}
    for one in checks.folders:
        if one.name in touched:
            yield from (str(p) for p in one.problems)
    yield from (str(p) for p in checks.strays if _touches(p, paths))


def _checks(results: Path, bench: Bench, touched: set[str]) -> Checks:
    """All records, as a board needs it; those that the branch touches with their intervals, which takes longer."""
    checks = check_results(results, replace(bench, intervals=False))
    folders = (
        check_folder(c.folder, bench, results=results) if c.name in touched and not c.problems else c
        for c in checks.folders
    )
    return replace(checks, folders=tuple(folders))


def _touches(problem: Problem, paths: set[str]) -> bool:
    return any(path == problem.file or path.startswith(f"{problem.file}/") for path in paths)


# -- Markdown


def _markdown(added: Sequence[str], problems: Sequence[str], checks: Checks, board: Board) -> str:
    count = f"{len(added)} record{'' if len(added) == 1 else 's'}"
    lines = [f"### Leaderboard: this change adds {count}", ""]
    if problems:
        lines += ["**It cannot be merged as it is:**", ""]
        lines += [f"- {escape(p)}" for p in problems[:MAX_PROBLEMS]]
        lines += [f"- … and {len(problems) - MAX_PROBLEMS} more"] if len(problems) > MAX_PROBLEMS else []
        lines.append("")
    ids = {c.name: c.record.id for c in checks.good if c.record is not None}
    for name in added[:MAX_RECORDS]:
        if name in ids:
            lines += _record(name, ids[name], board)
    if len(added) > MAX_RECORDS:
        lines += [f"… and {len(added) - MAX_RECORDS} more records", ""]
    return "\n".join(lines).rstrip() + "\n"


def _record(name: str, id: str, board: Board) -> Iterator[str]:
    """The main numbers of one record, beside the best and the next of its site."""
    yield f"#### {code(name)}"
    yield ""
    cells = [
        (row, column, row.cells[column.key])
        for row in board.rows
        for column in board.columns
        if column.key in row.cells and row.cells[column.key].record == id
    ]
    if not cells:
        yield "Another record of this SAE stands in its cells (reproduced, or of a smaller seed); this one is kept too."
        yield ""
        return
    yield "| metric | this | best of the others | next | against the next |"
    yield "| --- | --: | --: | --: | --- |"
    for row, column, cell in [c for c in cells if c[1].main] or cells:
        yield "| " + " | ".join(_beside(row, column, cell, board)) + " |"
    yield ""


def _beside(row: Row, column: Column, cell: Cell, board: Board) -> tuple[str, ...]:
    others = [
        (r, r.cells[column.key])
        for r in board.rows
        if r.kind == "sae" and r.id != row.id and (r.model, r.hook) == (row.model, row.hook) and column.key in r.cells
    ]
    valued = [(r, c, c.value) for r, c in others if c.value is not None]
    sign = 1 if column.better == "lower" else -1
    best = min(valued, key=lambda x: (sign * x[2], x[0].id), default=None) if column.better != "neither" else None
    near = None
    if cell.value is not None:
        own = cell.value
        near = min(valued, key=lambda x: (abs(x[2] - own), x[0].id), default=None)
    named = ["" if x is None else f"{shown_value(x[1])} ({escape(x[0].name)})" for x in (best, near)]
    return (
        escape(column.metric),
        shown_value(cell),
        *named,
        "" if near is None else _verdict(row, near[0], column, board),
    )


def _verdict(row: Row, other: Row, column: Column, board: Board) -> str:
    pair = {row.id, other.id}
    found = next((d for d in board.differences.get(column.key, ()) if {d.a, d.b} == pair), None)
    if found is None:
        return "not tested"
    if found.verdict == "untested":
        return f"not tested: {escape(found.reason or '')}"
    if found.verdict in ("tie", "differs"):
        return {"tie": "no difference beyond the noise", "differs": "they differ"}[found.verdict]
    return "this is better" if (found.verdict == "a") == (found.a == row.id) else "the other is better"
