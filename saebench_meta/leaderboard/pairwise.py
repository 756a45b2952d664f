"""Which differences in a column are real: paired over the documents both SAEs were measured on, and corrected.

For a formula over sums of per-document columns, leave each document out in turn: θ(−i) of one SAE minus that of the
other, over the same documents, gives the jackknife's standard error of the difference (Efron and Stein 1981),

    se² = (n − 1)/n · Σ_i (d(−i) − mean d(−i))²,     t = d / se  on n − 1 degrees of freedom.

A bootstrap of 2,000 resamples cannot tell p below 1/2,000, which is what a column of a hundred pairs needs; for one
pair the two agree (the tests compare them). Over all pairs tested in a column the family-wise error is held at 5 % by
Holm's method (1979); a pair's interval is at the level it was tested at, so it leaves out 0 just where Holm rejects.

What is not tested is not called different: no per-document statistics, other documents, another reference, a census.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise
from typing import TYPE_CHECKING

from saebench_meta.compare import Verdict
from saebench_meta.leaderboard.board import Difference
from saebench_meta.leaderboard.recompute import Columns
from saebench_meta.record import MetricResult, canonical_hash
from saebench_meta.stats import LEVEL, evaluate

if TYPE_CHECKING:
    import numpy as np

TOP = 20
"""SAEs of a site of which every pair is tested; beyond them, in order of the values, neighbours only."""
MIN_DOCUMENTS = 10
CHUNK = 2_000
"""Pairs worked out at once."""


@dataclass(frozen=True, eq=False)
class Candidate:
    """One SAE's number in one column.

    Attributes:
        row: its row's id.
        position: of its row, so that pairs are named in the rows' order.
        same: text that two numbers over the same data, model and reference share.
    """

    row: str
    position: int
    metric: MetricResult
    same: str

    @property
    def value(self) -> float:
        assert self.metric.value is not None
        return self.metric.value


Pair = tuple[Candidate, Candidate]


@dataclass(frozen=True, eq=False)
class LeftOut:
    """A number with each document left out, by the documents' order.

    Attributes:
        values: less their mean.
        documents: names which documents those are.
        finite: whether every value is a number.
    """

    values: np.ndarray
    documents: str
    finite: bool


@dataclass(frozen=True, eq=False)
class Measured:
    """The difference a − b of a pair with its standard error over n documents, or the reason why there is no test."""

    a: Candidate
    b: Candidate
    reason: str | None
    d: float
    se: float
    n: int


def leave_out(formulas: Mapping[str, str], columns: Columns) -> dict[str, LeftOut]:
    """Metric -> its formula's value with each measured document left out in turn."""
    import numpy as np

    ids = np.asarray(columns.ids).astype(str)
    orders: dict[bytes, tuple[np.ndarray, str]] = {}
    found = {}
    for metric, formula in formulas.items():
        data, keep = columns.measured(formula)
        chosen = b"" if keep is None else keep.tobytes()
        if chosen not in orders:
            own = ids if keep is None else ids[keep]
            order = np.argsort(own, kind="stable")
            orders[chosen] = order, canonical_hash(own[order].tolist())
        order, named = orders[chosen]
        with np.errstate(all="ignore"):
            values = evaluate(formula, {n: c.sum() - c for n, c in data.items()})
            values = np.broadcast_to(np.asarray(values, dtype=np.float64), order.shape)[order]
            values = values - values.mean() if values.size else values
        found[metric] = LeftOut(values, named, bool(np.isfinite(values).all()))
    return found


def planned(candidates: Sequence[Candidate]) -> list[Pair]:
    """The pairs of one site to test: all among the first `TOP`, then neighbours in order of value."""
    ordered = by_value(candidates)
    top = ordered[:TOP]
    pairs = [*combinations(top, 2), *pairwise(ordered[max(len(top) - 1, 0) :])]
    return [(a, b) if a.position < b.position else (b, a) for a, b in pairs]


def pairs_of(saes: int) -> int:
    """How many pairs `planned` gives for so many SAEs."""
    top = min(saes, TOP)
    return top * (top - 1) // 2 + saes - top


def by_value(candidates: Sequence[Candidate]) -> list[Candidate]:
    """Best first, or the largest first where no direction is better; ties in the rows' order."""
    return sorted(candidates, key=lambda c: (c.value if c.metric.better == "lower" else -c.value, c.position))


def measure(pairs: Sequence[Pair], left_out: Mapping[str, LeftOut]) -> list[Measured]:
    """Differences and their standard errors by the jackknife.

    Args:
        left_out: by row, where the record has per-document statistics.
    """
    import numpy as np

    reasons = [_why_no_test(a, b, left_out.get(a.row), left_out.get(b.row)) for a, b in pairs]
    errors = np.zeros(len(pairs))
    open_pairs = [i for i, reason in enumerate(reasons) if reason is None]
    for start in range(0, len(open_pairs), CHUNK):
        chosen = open_pairs[start : start + CHUNK]
        by_size: dict[int, list[int]] = {}
        for i in chosen:
            by_size.setdefault(len(left_out[pairs[i][0].row].values), []).append(i)
        for n, alike in by_size.items():
            x = np.stack([left_out[pairs[i][0].row].values - left_out[pairs[i][1].row].values for i in alike])
            errors[alike] = np.sqrt((n - 1) / max(n, 1) * np.einsum("pi,pi->p", x, x))
    sizes = [0 if reason else len(left_out[a.row].values) for (a, _), reason in zip(pairs, reasons, strict=True)]
    return [
        Measured(a, b, reason, a.value - b.value, se, n)
        for (a, b), reason, se, n in zip(pairs, reasons, errors.tolist(), sizes, strict=True)
    ]


def _why_no_test(a: Candidate, b: Candidate, of_a: LeftOut | None, of_b: LeftOut | None) -> str | None:
    if a.metric.method == "census" or b.metric.method == "census":
        return "exact over the dictionary (census); only other training seeds would tell the spread"
    if a.metric.of is None or b.metric.of is None:
        return "the metric is no sum over documents"
    if a.same != b.same:
        return "not the same documents, model or reference"
    if of_a is None or of_b is None:
        return "no per-document statistics"
    if a.metric.of != b.metric.of or of_a.documents != of_b.documents:
        return "not measured on the same documents"
    return None if of_a.finite and of_b.finite else "no finite value when one document is left out"


def decide(found: Sequence[Measured]) -> list[Difference]:
    """The verdicts on all pairs of one column, corrected for how many were tested."""
    import numpy as np
    from scipy.special import stdtr, stdtrit

    testable = sum(m.reason is None for m in found)
    needed = _documents_needed(testable)
    out, tested = [], []
    for i, m in enumerate(found):
        reason = m.reason
        if reason is None and m.n < needed:
            reason = f"{m.n} documents are too few to tell {testable} pairs apart; {needed} would do"
        tested += [i] if reason is None else []
        out.append(Difference(m.a.row, m.b.row, "untested", reason=reason))
    if not tested:
        return out
    d, se, df = (np.array([getattr(found[i], name) for i in tested], dtype=np.float64) for name in ("d", "se", "n"))
    df -= 1
    with np.errstate(all="ignore"):
        p = 2 * stdtr(df, -np.where(d == 0, 0.0, np.abs(d) / se))
    levels, rejected = holm(p, 1 - LEVEL)
    halves = stdtrit(df, 1 - levels / 2) * se
    for i, half, real in zip(tested, halves.tolist(), rejected.tolist(), strict=True):
        m = found[i]
        out[i] = Difference(m.a.row, m.b.row, _verdict(m) if real else "tie", m.d - half, m.d + half)
    return out


def _documents_needed(pairs: int) -> int:
    """By a test of signs n documents give p ≥ 2^(1 − n): with fewer, no difference could be told after correction."""
    return max(MIN_DOCUMENTS, math.ceil(1 + math.log2(max(pairs, 1) / (1 - LEVEL))))


def holm(p: np.ndarray, alpha: float) -> tuple[np.ndarray, np.ndarray]:
    """Holm's step-down method: the level each hypothesis is tested at, and which are rejected.

    What comes after the first that is not rejected is tested at that one's level, so p ≤ level exactly where rejected.
    """
    import numpy as np

    m = len(p)
    order = np.argsort(p, kind="stable")
    steps = alpha / (m - np.arange(m))
    failed = np.flatnonzero(p[order] > steps)
    first = int(failed[0]) if failed.size else m
    if first < m:
        steps[first:] = steps[first]
    levels, rejected = np.empty(m), np.zeros(m, dtype=bool)
    levels[order] = steps
    rejected[order[:first]] = True
    return levels, rejected


def _verdict(m: Measured) -> Verdict:
    better = m.a.metric.better
    if better == "neither":
        return "differs"
    return "a" if (m.d > 0) == (better == "higher") else "b"


def ranks(sites: Iterable[Sequence[Candidate]], differences: Sequence[Difference]) -> dict[str, int]:
    """Row -> 1 + the number of SAEs of its site that are better beyond the noise; only where that was tested.

    Beyond the first `TOP` of a site nothing is ranked: those ahead were not all tested. Within them nobody is missing.

    Args:
        sites: the candidates of a column, site by site.
    """
    ranked = {c.row for site in sites for c in by_value(site)[:TOP] if c.metric.better != "neither"}
    found: dict[str, int] = {}
    for d in differences:
        for row, beaten in ((d.a, d.verdict == "b"), (d.b, d.verdict == "a")):
            if row in ranked and d.verdict != "untested":
                found[row] = found.get(row, 1) + beaten
    return found
