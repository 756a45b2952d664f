"""A record's numbers against its own per-document statistics: whoever changes a value must change every document too.

Values are worked out again to six digits. Intervals come from seeded resamples, so they are the same to the last digits
on one version of numpy, and close on every other.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from typing import TYPE_CHECKING

from saebench_meta import seeds, stats
from saebench_meta.leaderboard.reading import DOCUMENT, Documents
from saebench_meta.leaderboard.texts import Fault
from saebench_meta.record import Interval, MetricResult, Record
from saebench_meta.task import CONTROLS

if TYPE_CHECKING:
    import numpy as np

SUBJECT_ROLE = "sae"
VALUE_DIGITS = 1e-6
WIDTH_SHARE = 0.25
"""How far a limit may be off, in widths of the interval: the resamples' own error is a few hundredths."""
MAX_FORMULA = 300
MAX_POWER = 8


class Columns:
    """One role's per-document columns, with what several formulas need of them worked out once."""

    def __init__(self, columns: Mapping[str, np.ndarray]) -> None:
        import numpy as np

        self.ids = columns[DOCUMENT]
        self.numbers = {n: np.asarray(c, dtype=np.float64) for n, c in columns.items() if n != DOCUMENT}
        self._missing = {n: np.isnan(c) for n, c in self.numbers.items()}
        self._gaps = {n for n, missing in self._missing.items() if missing.any()}
        self._sums = {n: c.sum() for n, c in self.numbers.items() if n not in self._gaps}

    def measured(self, formula: str) -> tuple[dict[str, np.ndarray], np.ndarray | None]:
        """A formula's columns over the documents measured in all of them, and which those are; None if all are."""
        import numpy as np

        names = stats.parse_formula(formula)[1]
        if not self._gaps.intersection(names):
            return {n: self.numbers[n] for n in names}, None
        keep = ~np.asarray(np.stack([self._missing[n] for n in names]).any(axis=0))
        return {n: self.numbers[n][keep] for n in names}, keep

    def value(self, formula: str) -> float:
        """The formula over the sums of the measured documents."""
        import numpy as np

        data, keep = self.measured(formula)
        sums = {n: self._sums[n] for n in data} if keep is None else {n: c.sum() for n, c in data.items()}
        with np.errstate(all="ignore"):
            return float(stats.evaluate(formula, sums))


def document_faults(record: Record, documents: Documents, *, intervals: bool) -> Iterator[Fault]:
    """Every metric with a formula, on the SAE and its controls, that its documents do not bear out."""
    if SUBJECT_ROLE not in documents or not set(documents) <= {SUBJECT_ROLE, *CONTROLS}:
        yield "documents.parquet", "names roles that are not the SAE's or a control's"
        return
    roles = {role: Columns(columns) for role, columns in documents.items()}
    for name, metric in record.metrics.items():
        if metric.of is None:
            continue
        field = f"metrics.{name}"
        if wrong := formula_fault(metric.of, roles[SUBJECT_ROLE].numbers):
            yield f"{field}.of", wrong
            continue
        yield from _against(field, metric.of, metric, roles[SUBJECT_ROLE])
        for control, result in metric.controls.items():
            if control in roles:
                yield from _against(f"{field}.controls.{control}", metric.of, result, roles[control])
        if intervals:
            yield from _interval(field, record, metric, documents[SUBJECT_ROLE])


def formula_fault(formula: str, columns: Iterable[str]) -> str | None:
    """What keeps a formula from being worked out safely on these columns; None if nothing."""
    wrong, names = _parsed(formula)
    if wrong is None and (missing := [n for n in names if n not in columns]):
        return f"needs the column '{missing[0][:60]}', which documents.parquet does not have"
    return wrong


@lru_cache(maxsize=1000)
def _parsed(formula: str) -> tuple[str | None, tuple[str, ...]]:
    """What is wrong with a formula by itself, and its columns."""
    if len(formula) > MAX_FORMULA:
        return f"has more than {MAX_FORMULA} characters", ()
    try:
        tree, names = stats.parse_formula(formula)
    except (ValueError, RecursionError, MemoryError) as e:
        return str(e), ()
    powers = [node for node in ast.walk(tree) if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Pow)]
    for node in powers:
        exponent = node.right.value if isinstance(node.right, ast.Constant) else None
        nested = any(inner in powers for inner in ast.walk(node.left))
        if nested or not isinstance(exponent, int | float) or abs(exponent) > MAX_POWER:
            return f"raises to more than the power {MAX_POWER}", ()
    return None, names


def _against(field: str, formula: str, said: Interval, columns: Columns) -> Iterator[Fault]:
    import numpy as np

    data, _ = columns.measured(formula)
    n = len(next(iter(data.values())))
    if n != said.n:
        yield f"{field}.n", f"is {said.n:,}, and documents.parquet has {n:,} measured documents"
        return
    try:
        found = columns.value(formula) if n else np.nan
    except (ArithmeticError, TypeError, ValueError) as e:
        yield field, f"cannot be worked out from documents.parquet ({type(e).__name__})"
        return
    if not np.isfinite(found):
        if said.value is not None:
            yield f"{field}.value", "has no meaning on the documents, by its own formula"
    elif said.value is None:
        yield f"{field}.value", f"is missing, and by its own formula it is {found:.6g}"
    elif abs(found - said.value) > VALUE_DIGITS * max(abs(found), abs(said.value), 1e-3):
        yield f"{field}.value", f"is {said.value:.6g}, and by its own formula over the documents it is {found:.6g}"


def _interval(field: str, record: Record, metric: MetricResult, columns: Mapping[str, np.ndarray]) -> Iterator[Fault]:
    if metric.value is None:
        return
    assert metric.of is not None
    stream = seeds.rng(record.run.seed, record.task.name, "documents")
    found = stats.from_documents(metric.of, columns, stream)
    if found.ci_low is None or found.ci_high is None or metric.ci_low is None or metric.ci_high is None:
        if (found.ci_low is None) != (metric.ci_low is None):
            yield f"{field}.ci_low", "the interval is there where the documents give none, or the other way about"
        return
    slack = WIDTH_SHARE * (found.ci_high - found.ci_low) + 1e-9 * max(1.0, abs(metric.value))
    if max(abs(found.ci_low - metric.ci_low), abs(found.ci_high - metric.ci_high)) > slack:
        said = f"[{metric.ci_low:.6g}, {metric.ci_high:.6g}]"
        yield f"{field}.ci_low", f"{said} is not the documents' interval, [{found.ci_low:.6g}, {found.ci_high:.6g}]"
