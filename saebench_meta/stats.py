"""Estimates: a value with its interval, sample size and method. Three kinds: bootstrap, Wilson, census.

Intervals over documents are bias-corrected and accelerated bootstraps (BCa; Efron 1987), those of proportions Wilson's
score. A quantity over all latents of a dictionary is a census: exact, without an interval.

Any other statistic goes through `scipy.stats.bootstrap`. A formula over sums needs less: sums over resampled documents
are one product of resampling counts with the columns, where scipy gathers every resampled column. A task with its
controls has dozens of intervals, so this decides how long it takes (`tests/benchmarks/bench_bootstrap.py`). The tests
compare the two.
"""

from __future__ import annotations

import ast
import math
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import ArrayLike

Method = Literal["bootstrap", "wilson", "census", "exact"]

LEVEL = 0.95
RESAMPLES = 2000
"""Bootstrap resamples: the Monte-Carlo error of a 95 % limit is then a few percent of the interval's half-width."""
GROUP_RESAMPLES = 400
"""Of groups of documents, where the statistic is worked out anew for each resample."""
BATCH_ELEMENTS = 8_000_000
"""Resampling counts held at once: 64 MB."""


@dataclass(frozen=True)
class Estimate:
    """A number that can be trusted, or None with the reason why there is none.

    Attributes:
        value: the estimate; None when it has no meaning (then `reason` says why).
        n: sample size, in `n_unit`.
        ci_low, ci_high: interval at `level`; None for a census.
        method: `bootstrap` (over documents), `wilson`, `census` (whole population, no interval), `exact`.
    """

    value: float | None
    n: int
    n_unit: str
    method: Method
    ci_low: float | None = None
    ci_high: float | None = None
    level: float | None = None
    reason: str | None = None

    def __post_init__(self) -> None:
        for name in ("value", "ci_low", "ci_high"):
            number = getattr(self, name)
            if number is not None and not math.isfinite(number):
                raise ValueError(f"estimate has a non-finite {name}; give None with a reason instead")
        if self.value is None and not self.reason:
            raise ValueError("an estimate without a value needs a reason")


# -- formulae over sums of per-document columns


def _ratio(a: Any, b: Any) -> Any:
    """a / b where b > 0, NaN elsewhere: with a negative denominator a ratio does not mean what it is named for."""
    import numpy as np

    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(np.asarray(b) > 0, np.true_divide(a, b), np.nan)[()]


_OPERATORS: dict[type[ast.AST], Callable[..., Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: _ratio,
    ast.Pow: operator.pow,
    ast.USub: operator.neg,
}


@lru_cache(maxsize=256)
def parse_formula(formula: str) -> tuple[ast.expr, tuple[str, ...]]:
    """Syntax tree and column names of a formula such as `"1 - sse / sst"`: names, numbers, `+ - * / **`, brackets."""
    try:
        tree = ast.parse(formula, mode="eval").body
    except SyntaxError as e:
        raise ValueError(f"formula {formula!r} is not an expression") from e
    names: list[str] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Name):
            if node.id not in names:
                names.append(node.id)
        elif isinstance(node, ast.Constant):
            if isinstance(node.value, bool) or not isinstance(node.value, int | float):
                raise ValueError(f"formula {formula!r}: only numbers may stand in it")
        elif not isinstance(node, (ast.BinOp, ast.UnaryOp, ast.expr_context, *_OPERATORS)):
            raise ValueError(f"formula {formula!r}: {type(node).__name__} is not allowed in it")
    if not names:
        raise ValueError(f"formula {formula!r} names no per-document column")
    return tree, tuple(names)


def evaluate(formula: str, sums: Mapping[str, Any]) -> Any:
    """The formula on sums: numbers or arrays of one shape, so that all resamples are worked out at once.

    A ratio has a value only where its denominator is positive, and is NaN elsewhere.
    """
    return _value(parse_formula(formula)[0], sums)


def _value(node: ast.expr, sums: Mapping[str, Any]) -> Any:
    match node:
        case ast.Constant(value=number):
            return number
        case ast.Name(id=name):
            return sums[name]
        case ast.UnaryOp(op=op, operand=operand):
            return _OPERATORS[type(op)](_value(operand, sums))
        case ast.BinOp(left=left, op=op, right=right):
            return _OPERATORS[type(op)](_value(left, sums), _value(right, sums))
    raise AssertionError(node)


def _why_undefined(formula: str, sums: Mapping[str, Any]) -> str | None:
    """Which denominator of the formula is not positive, if one is."""
    for node in ast.walk(parse_formula(formula)[0]):
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Div):
            denominator = float(_value(node.right, sums))
            if not denominator > 0:
                return f"{formula} has no meaning on this sample: {ast.unparse(node.right)} is {denominator:.6g}"
    return None


def _columns(formula: str, documents: Mapping[str, ArrayLike]) -> list[np.ndarray]:
    import numpy as np

    names = parse_formula(formula)[1]
    if missing := [n for n in names if n not in documents]:
        raise ValueError(f"formula {formula!r} needs per-document columns {missing}, got {sorted(documents)}")
    columns = [np.asarray(documents[n], dtype=np.float64) for n in names]
    if len({c.shape for c in columns}) != 1 or columns[0].ndim != 1:
        shapes = {n: c.shape for n, c in zip(names, columns, strict=True)}
        raise ValueError(f"formula {formula!r}: columns must have one number a document, got shapes {shapes}")
    return columns


def _measured(columns: list[np.ndarray]) -> list[np.ndarray]:
    """The columns without the documents that have NaN ("not measured") in any of them."""
    import numpy as np

    keep = ~np.isnan(np.stack(columns)).any(axis=0)
    return [c[keep] for c in columns]


Draw = Callable[[list["np.ndarray"]], "tuple[np.ndarray, np.ndarray]"]
"""Columns -> the statistic on resamples, and with each document left out in turn (the jackknife)."""


def _draw_sums(formula_of_sums: Callable[..., Any], rng: np.random.Generator, resamples: int) -> Draw:
    """Resamples of a statistic that depends on the columns' sums only."""
    import numpy as np

    key = int(rng.integers(2**63))

    def draw(data: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        columns, n = np.stack(data, axis=1), len(data[0])
        rows = max(1, BATCH_ELEMENTS // n)
        sizes = [min(rows, resamples - start) for start in range(0, resamples, rows)]
        make = _counts if len(sizes) == 1 else _counts.__wrapped__
        sums = np.concatenate([make(n, size, key + part) @ columns for part, size in enumerate(sizes)])
        left_out = columns.sum(axis=0) - columns
        on_resamples, on_left_out = (np.broadcast_to(formula_of_sums(*x.T), len(x)) for x in (sums, left_out))
        return on_resamples, on_left_out

    return draw


@lru_cache(maxsize=4)
def _counts(n: int, resamples: int, key: int) -> np.ndarray:
    """How often each of n documents is in each resample, (resamples, n); kept, since all metrics share the draws."""
    import numpy as np

    drawn = np.random.default_rng(key).integers(0, n, (resamples, n)) + n * np.arange(resamples)[:, None]
    return np.bincount(drawn.ravel(), minlength=resamples * n).reshape(resamples, n).astype(np.float64)


def _interval(data: list[np.ndarray], value: float, draw: Draw, level: float) -> tuple[float | None, float | None]:
    """BCa limits; None where there is one document or 1 % of resamples have no value."""
    import numpy as np

    if len(data[0]) < 2:
        return None, None
    with np.errstate(all="ignore"):
        return _limits(value, *draw(data), level)


def _limits(value: float, draws: np.ndarray, jackknife: np.ndarray, level: float) -> tuple[float | None, float | None]:
    """BCa limits; plain quantiles where BCa is undefined (no spread); None where 1 % of resamples have no value."""
    import numpy as np
    from scipy.special import ndtr, ndtri

    tails = np.array([(1 - level) / 2, (1 + level) / 2])
    with np.errstate(all="ignore"):
        finite = draws[np.isfinite(draws)]
        if finite.size < draws.size * 0.99:
            return None, None
        bias = ndtri(((finite < value).mean() + (finite <= value).mean()) / 2)
        deviation = jackknife.mean() - jackknife
        acceleration = (deviation**3).sum() / (6 * (deviation**2).sum() ** 1.5)
        z = bias + ndtri(tails)
        at = ndtr(bias + z / (1 - acceleration * z))
    low, high = (float(q) for q in np.quantile(finite, at if np.isfinite(at).all() else tails))
    return low, high


def _estimate(
    data: list[np.ndarray],
    statistic: Callable[..., Any],
    what: str,
    draw: Draw,
    level: float,
    why: Callable[[list[np.ndarray]], str | None] = lambda _: None,
) -> Estimate:
    """Value and interval of a statistic of the measured documents; None with a reason where it has no finite value."""
    import numpy as np

    data = _measured(data)
    n = len(data[0])
    if n == 0:
        return Estimate(None, 0, "documents", "bootstrap", reason=f"{what} was not measured on any document")
    with np.errstate(all="ignore"):
        value = float(statistic(*data, axis=-1))
        reason = None if math.isfinite(value) else why(data) or f"{what} has no finite value on this sample"
    if reason is not None:
        return Estimate(None, n, "documents", "bootstrap", reason=reason)
    low, high = _interval(data, value, draw, level)
    if low is None or high is None:
        reason = "no interval: one document" if n < 2 else "no interval: resamples without a finite value"
        return Estimate(value, n, "documents", "bootstrap", reason=reason)
    return Estimate(value, n, "documents", "bootstrap", low, high, level)


def _sums(names: tuple[str, ...], columns: Sequence[np.ndarray], axis: int = -1) -> dict[str, Any]:
    return {name: c.sum(axis=axis) for name, c in zip(names, columns, strict=True)}


def from_documents(
    formula: str,
    documents: Mapping[str, ArrayLike],
    rng: np.random.Generator,
    *,
    level: float = LEVEL,
    resamples: int = RESAMPLES,
) -> Estimate:
    """The formula over sums of per-document columns, with a bootstrap interval over documents.

    NaN in a column means "not measured on this document": such a document counts neither in the value nor in `n`, for
    this formula only. Giving it a weight of zero instead would let the resamples vary in how many measured documents
    they hold. A ratio whose denominator is not positive gives None with a reason, never 0 or −1.
    """
    names = parse_formula(formula)[1]

    def of_sums(*sums: Any) -> Any:
        return evaluate(formula, dict(zip(names, sums, strict=True)))

    def statistic(*data: np.ndarray, axis: int = -1) -> Any:
        return of_sums(*(c.sum(axis=axis) for c in data))

    def why(data: list[np.ndarray]) -> str | None:
        return _why_undefined(formula, _sums(names, data))

    draw = _draw_sums(of_sums, rng, resamples)
    return _estimate(_columns(formula, documents), statistic, formula, draw, level, why)


def bootstrap(
    values: ArrayLike,
    rng: np.random.Generator,
    statistic: Callable[..., Any] | None = None,
    *,
    level: float = LEVEL,
    resamples: int = RESAMPLES,
) -> Estimate:
    """A statistic (default the mean; takes `axis`) of one value a document, with its bootstrap interval.

    NaN means "not measured" and is left out.
    """
    import numpy as np

    chosen = statistic or np.mean

    def draw(data: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        from scipy import stats

        n = len(data[0])
        batch = max(1, BATCH_ELEMENTS // n)
        drawn = stats.bootstrap(data, chosen, n_resamples=resamples, batch=batch, method="percentile", rng=rng)
        left_out = np.array([chosen(np.delete(data[0], i), axis=-1) for i in range(n)])
        return drawn.bootstrap_distribution, left_out

    data = np.asarray(values, dtype=np.float64).reshape(-1)
    return _estimate([data], chosen, "the statistic", draw, level)


def from_groups(
    arrays: Sequence[ArrayLike],
    statistic: Callable[..., float | None],
    rng: np.random.Generator,
    *,
    n: int,
    n_unit: str = "documents",
    level: float = LEVEL,
    resamples: int = GROUP_RESAMPLES,
) -> Estimate:
    """A statistic of sums over all groups of documents, with a bootstrap interval over the groups.

    For what depends on thousands of sums at once, such as the share of latents whose addition lowers an error: sums are
    kept by group, (groups, …) each, not by document.

    Args:
        statistic: takes the sums, one array each without the groups' axis; None or NaN where it has no value.
        n: sample size to report, in `n_unit`.
    """
    import numpy as np

    data = [np.asarray(a, dtype=np.float64) for a in arrays]
    groups = len(data[0])

    def of(sums: Sequence[np.ndarray]) -> float:
        value = statistic(*sums)
        return math.nan if value is None else float(value)

    totals = [a.sum(axis=0) for a in data]
    value = of(totals)
    if not math.isfinite(value):
        return Estimate(None, n, n_unit, "bootstrap", reason="the statistic has no value on this sample")
    if groups < 2:
        return Estimate(value, n, n_unit, "bootstrap", reason="no interval: one group of documents")
    counts = rng.multinomial(groups, np.full(groups, 1 / groups), size=resamples).astype(np.float64)
    draws = np.array([of([np.tensordot(row, a, axes=1) for a in data]) for row in counts])
    left_out = np.array([of([t - a[g] for t, a in zip(totals, data, strict=True)]) for g in range(groups)])
    low, high = _limits(value, draws, left_out, level)
    if low is None or high is None:
        return Estimate(value, n, n_unit, "bootstrap", reason="no interval: resamples without a finite value")
    return Estimate(value, n, n_unit, "bootstrap", low, high, level)


def paired_difference(
    formula: str,
    a: Mapping[str, ArrayLike],
    b: Mapping[str, ArrayLike],
    rng: np.random.Generator,
    *,
    level: float = LEVEL,
    resamples: int = RESAMPLES,
) -> Estimate:
    """Formula on `a` minus formula on `b`, over the documents measured in both, resampled together.

    Both mappings need a `document` column of identifiers, each of them once. Two intervals that overlap are not a
    test; this is.
    """
    import numpy as np

    ids_a, ids_b = np.asarray(a["document"]), np.asarray(b["document"])
    if np.unique(ids_a).size != ids_a.size or np.unique(ids_b).size != ids_b.size:
        raise ValueError("paired_difference: the 'document' column names a document twice")
    shared, ia, ib = np.intersect1d(ids_a, ids_b, return_indices=True)
    if shared.size == 0:
        return Estimate(None, 0, "documents", "bootstrap", reason="the two results share no documents")
    names = parse_formula(formula)[1]
    data = [c[ia] for c in _columns(formula, a)] + [c[ib] for c in _columns(formula, b)]
    k = len(names)

    def of_sums(*sums: Any) -> Any:
        one, other = (dict(zip(names, half, strict=True)) for half in (sums[:k], sums[k:]))
        return evaluate(formula, one) - evaluate(formula, other)

    def statistic(*columns: np.ndarray, axis: int = -1) -> Any:
        return of_sums(*(c.sum(axis=axis) for c in columns))

    def why(columns: list[np.ndarray]) -> str | None:
        halves = (columns[:k], columns[k:])
        return next((w for half in halves if (w := _why_undefined(formula, _sums(names, half)))), None)

    return _estimate(data, statistic, formula, _draw_sums(of_sums, rng, resamples), level, why)


def proportion(successes: int, trials: int, *, n_unit: str, level: float = LEVEL) -> Estimate:
    """Share of independent trials with Wilson's score interval."""
    from scipy import stats

    if trials <= 0:
        return Estimate(None, 0, n_unit, "wilson", reason=f"no {n_unit}")
    ci = stats.binomtest(successes, trials).proportion_ci(level, method="wilson")
    return Estimate(successes / trials, trials, n_unit, "wilson", float(ci.low), float(ci.high), level)


def census(value: float | None, n: int, *, n_unit: str = "latents", reason: str | None = None) -> Estimate:
    """A quantity over a whole population: exact, so without an interval."""
    return Estimate(None if value is None else float(value), n, n_unit, "census", reason=reason)
