"""`saebench leaderboard reproduce`: run a record again and, where every metric agrees, say so beside it.

Only what can be had by a reference is run, by loaders that are named beforehand, and the rerun must arrive at the
record's own id: it was then asked for the same thing, down to every hash and parameter.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from saebench_meta.compare import Comparison, compare_records
from saebench_meta.errors import SaebenchError
from saebench_meta.leaderboard.badge import Agreement, Reproduction
from saebench_meta.leaderboard.results import RECORD, REPRODUCED
from saebench_meta.leaderboard.rules import Bench
from saebench_meta.leaderboard.validate import check_folder
from saebench_meta.record import Interval, Record
from saebench_meta.store import find_records, write_atomic

LOADERS = ("atlas", "saelens", "gemma-scope", "gemma-scope-2", "llama-scope", "openai", "sparsify")
"""Loaders whose references name something published, and whose files are never executed."""
DIGITS = 1e-6
NOISE_SHARE = 0.05
"""Of the half-width of the record's own interval: below it a difference is that of two machines."""


@dataclass(frozen=True)
class Rerun:
    """How a rerun compares: metric -> agreement, and metric -> what does not agree."""

    record: Record
    again: Record
    agrees: dict[str, Agreement]
    differs: dict[str, str]


def reproduce(path: Path, work: Path, bench: Bench, loaders: Iterable[str] = LOADERS, *, stamp: bool = True) -> Rerun:
    """Run a record again and write `reproduced.json` beside it if every metric agrees.

    Args:
        path: the record's folder, or its file.
        work: folder for the rerun; what is finished in it is kept.
        loaders: schemes of SAEs that may be opened.
        stamp: whether to write.

    Raises:
        SaebenchError: the record does not validate, names something that must not be opened, or the rerun failed.
    """
    folder = path.parent if path.is_file() else path
    checked = check_folder(folder, bench)
    if checked.problems or checked.record is None:
        raise SaebenchError(f"it does not validate: {checked.problems[0]}")
    record = checked.record
    check_openable(record, frozenset(loaders))
    _run(folder / RECORD, work)
    found = [(f, r) for f, r in find_records(work) if r.id == record.id]
    if not found:
        raise SaebenchError(
            f"the rerun in '{work}' has another id than {record.id[:12]}: the record was asked for something else than "
            "it says, or by another version. Nothing is written."
        )
    rerun = compared(folder, record, *found[0])
    if stamp and not rerun.differs:
        _stamp(folder, rerun, bench)
    return rerun


def check_openable(record: Record, loaders: frozenset[str]) -> None:
    """Refuse SAEs that are files on somebody's machine, or that a loader outside the list would open."""
    for sae in record.subject.saes:
        if sae.trained is not None:
            continue  # the rerun trains it again
        if sae.loader not in loaders:
            raise SaebenchError(
                f"'{sae.ref}' is opened by the loader '{sae.loader}', which is not among those allowed: "
                f"{', '.join(sorted(loaders))}. Name it with --allow-loaders if you trust its files."
            )
        if Path(sae.ref.partition(":")[2]).exists():
            raise SaebenchError(
                f"'{sae.ref}' is a file or folder here: run this in a folder that holds none of its name"
            )


def _run(file: Path, work: Path) -> None:
    command = [sys.executable, "-m", "saebench_meta.cli", "run", "--from-record", str(file), "-o", str(work)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        said = (done.stderr or done.stdout).strip().splitlines()
        raise SaebenchError(f"the rerun failed: {said[-1] if said else 'it said nothing'}")


def compared(folder: Path, record: Record, folder_again: Path, again: Record) -> Rerun:
    """Every metric of a record against its rerun, paired over documents where that is possible."""
    if again.status != "ok":
        raise SaebenchError(f"the rerun {again.status}: {again.reason}")
    pairs = compare_records(folder, record, folder_again, again)
    agrees: dict[str, Agreement] = {}
    differs = {name: "is missing in the rerun" for name in record.metrics if name not in again.metrics}
    for c in pairs.metrics:
        found = agreement(c)
        if found is None:
            differs[c.metric] = f"is {_text(c.a)}, and {_text(c.b)} in the rerun"
        else:
            agrees[c.metric] = found
    return Rerun(record, again, agrees, differs)


def agreement(c: Comparison) -> Agreement | None:
    """How a metric agrees with its rerun on the same data; None where it does not."""
    if c.a.value is None or c.b.value is None:
        return "without a value" if c.a.value is c.b.value else None
    off = abs(c.a.value - c.b.value)
    if off <= DIGITS * max(1.0, abs(c.a.value)):
        return "equal"
    if c.verdict == "tie" or off <= NOISE_SHARE * _half_width(c.a):
        return "within the noise"
    return None


def _half_width(m: Interval) -> float:
    return 0.0 if m.ci_low is None or m.ci_high is None else (m.ci_high - m.ci_low) / 2


def _text(m: Interval) -> str:
    return "without a value" if m.value is None else f"{m.value:.8g}"


def _stamp(folder: Path, rerun: Rerun, bench: Bench) -> None:
    versions = rerun.again.versions
    if versions.dirty and "dirty" not in bench.allow:
        raise SaebenchError(
            "every metric agrees, but this checkout has changes that are in no commit: no badge is given"
        )
    badge = Reproduction(
        record=rerun.record.id,
        record_sha256=hashlib.sha256((folder / RECORD).read_bytes()).hexdigest(),
        metrics=rerun.agrees,
        device=rerun.again.run.device,
        versions=versions,
    )
    write_atomic(folder / REPRODUCED, badge.to_json().encode())
