"""Differences between SAEs: an independent method agrees, many pairs are corrected for, what is not tested is said."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations

import board_records as samples
import numpy as np
import pytest

from saebench_meta import stats
from saebench_meta.leaderboard.pairwise import (
    TOP,
    Candidate,
    LeftOut,
    decide,
    holm,
    leave_out,
    measure,
    pairs_of,
    planned,
    ranks,
)
from saebench_meta.leaderboard.recompute import Columns
from saebench_meta.record import MetricResult
from saebench_meta.task import Better

FORMULA = "errors / tokens"


def result(
    value: float, *, better: Better = "lower", of: str | None = FORMULA, method: str = "bootstrap"
) -> MetricResult:
    return MetricResult(value=value, n=60, n_unit="documents", method=method, better=better, unit="1", of=of)


def candidate(row: str, value: float, position: int = 0, *, same: str = "s", **fields: object) -> Candidate:
    return Candidate(row, position, result(value, **fields), same)  # type: ignore[arg-type]


def of_columns(levels: dict[str, float], **how: object) -> tuple[list[Candidate], dict[str, LeftOut]]:
    """Candidates and their left-out values, from per-document columns of these levels."""
    data = {row: samples.columns(level, **how) for row, level in levels.items()}  # type: ignore[arg-type]
    value = {row: float(d["errors"].sum() / d["tokens"].sum()) for row, d in data.items()}
    left = {row: leave_out({"m": FORMULA}, Columns(d))["m"] for row, d in data.items()}
    return [candidate(row, value[row], i) for i, row in enumerate(levels)], left


@pytest.mark.parametrize("noise", [0.05, 0.3])
@pytest.mark.parametrize("level", [0.505, 0.52, 0.6])
def test_one_pair_is_told_apart_as_by_the_bootstrap(level: float, noise: float) -> None:
    (a, b), left = of_columns({"a": 0.5, "b": level}, n=200, noise=noise)
    (found,) = decide(measure([(a, b)], left))
    one, other = (samples.columns(x, n=200, noise=noise) for x in (0.5, level))
    boot = stats.paired_difference(FORMULA, one, other, np.random.default_rng(0), resamples=4000)
    assert found.low is not None and found.high is not None and boot.ci_low is not None and boot.ci_high is not None
    width = boot.ci_high - boot.ci_low
    assert found.low == pytest.approx(boot.ci_low, abs=0.15 * width)
    assert found.high == pytest.approx(boot.ci_high, abs=0.15 * width)


def test_the_jackknife_of_a_mean_is_the_t_test() -> None:
    """For a mean over documents the standard error of the jackknife is the textbook one."""
    from scipy.stats import ttest_rel

    draw = np.random.default_rng(3)
    data = [{"document": [str(i) for i in range(30)], "x": draw.normal(m, 1, 30), "one": np.ones(30)} for m in (0, 0.6)]
    pair = tuple(candidate(str(i), float(d["x"].mean()), i, of="x / one") for i, d in enumerate(data))
    left = {str(i): leave_out({"m": "x / one"}, Columns(d))["m"] for i, d in enumerate(data)}
    (found,) = decide(measure([pair], left))  # type: ignore[list-item]
    expected = ttest_rel(data[0]["x"], data[1]["x"]).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))


def test_equal_saes_tie_and_no_more_than_a_twentieth_of_columns_say_otherwise() -> None:
    """Forty columns of six SAEs that are alike but for noise: the family-wise error is that of a column."""
    wrong = 0
    for draw in range(40):
        found, left = of_columns({f"s{i}": 0.5 + 1e-6 * i for i in range(6)}, draw=draw, n=80)
        wrong += any(d.verdict != "tie" for d in decide(measure(planned(found), left)))
    assert wrong <= 6  # 0.05 · 40 = 2; seven and more have a probability below 1 %


def test_holm_by_hand() -> None:
    levels, rejected = holm(np.array([0.04, 0.001, 0.03, 0.012]), 0.05)
    assert rejected.tolist() == [False, True, False, True]  # 0.001 ≤ 0.05/4, 0.012 ≤ 0.05/3, 0.03 > 0.05/2
    assert levels.tolist() == pytest.approx([0.025, 0.0125, 0.025, 0.05 / 3])


def test_an_interval_leaves_out_zero_just_where_the_pair_is_told_apart() -> None:
    found, left = of_columns({f"s{i}": 0.5 + 0.004 * i for i in range(12)}, n=80)
    seen = decide(measure(planned(found), left))
    assert {d.verdict for d in seen} == {"a", "tie"}
    for d in seen:
        assert d.low is not None and d.high is not None
        assert (d.low <= 0 <= d.high) == (d.verdict == "tie")


def test_direction_decides_who_is_better() -> None:
    (a, b), left = of_columns({"a": 0.5, "b": 0.7})
    for better, verdict in (("lower", "a"), ("higher", "b"), ("neither", "differs")):
        pair = tuple(replace(c, metric=result(c.value, better=better)) for c in (a, b))  # type: ignore[arg-type]
        assert decide(measure([pair], left))[0].verdict == verdict  # type: ignore[list-item]


def test_what_cannot_be_tested_is_said_and_never_called_different() -> None:
    (a, b), left = of_columns({"a": 0.5, "b": 0.9})
    census = tuple(replace(c, metric=result(c.value, of=None, method="census")) for c in (a, b))
    given = tuple(replace(c, metric=result(c.value, of=None)) for c in (a, b))
    elsewhere = (a, replace(b, same="other"))
    other_documents = {**left, "b": leave_out({"m": FORMULA}, Columns(samples.columns(0.9, n=50)))["m"]}
    cases = [
        (census, left, "census"), (given, left, "no sum"), (elsewhere, left, "not the same"),
        ((a, b), {}, "no per-document"),
        ((a, b), other_documents, "same documents"),
    ]  # fmt: skip
    for pair, values, words in cases:
        (found,) = decide(measure([pair], values))  # type: ignore[list-item]
        assert found.verdict == "untested" and words in (found.reason or "")
        assert found.low is None


def test_documents_count_in_any_order_but_only_those_measured() -> None:
    one, other = samples.columns(0.5), samples.columns(0.7)
    turned = {k: list(reversed(list(v))) for k, v in other.items()}
    a, b = (leave_out({"m": FORMULA}, Columns({k: np.asarray(v) for k, v in d.items()}))["m"] for d in (other, turned))
    assert a.documents == b.documents and np.allclose(a.values, b.values)
    gap = {**one, "errors": np.where(np.arange(60) == 3, np.nan, one["errors"])}
    assert leave_out({"m": FORMULA}, Columns(gap))["m"].documents != a.documents


def test_few_documents_tell_nothing_apart() -> None:
    (a, b), left = of_columns({"a": 0.5, "b": 5.0}, n=6)
    (found,) = decide(measure([(a, b)], left))
    assert found.verdict == "untested" and "too few" in (found.reason or "")


def test_ranks_count_who_is_better_beyond_the_noise() -> None:
    found, left = of_columns({"a": 0.5, "b": 0.5001, "c": 0.6, "d": 0.9})
    seen = decide(measure(planned(found), left))
    assert ranks([found], seen) == {"a": 1, "b": 1, "c": 3, "d": 4}
    neither = [replace(c, metric=result(c.value, better="neither")) for c in found]
    assert ranks([neither], seen) == {}


def test_a_crowd_is_tested_at_the_top_and_among_neighbours() -> None:
    crowd = [candidate(f"s{i}", i / 100, i) for i in range(TOP + 5)]
    pairs = {frozenset((a.row, b.row)) for a, b in planned(crowd)}
    assert [len(planned(crowd[:n])) for n in range(TOP + 5)] == [pairs_of(n) for n in range(TOP + 5)]
    assert pairs == {
        *(frozenset(p) for p in combinations([f"s{i}" for i in range(TOP)], 2)),
        *(frozenset((f"s{i}", f"s{i + 1}")) for i in range(TOP - 1, TOP + 4)),
    }
    seen, left = of_columns({f"s{i}": 0.5 + 0.05 * i for i in range(TOP + 5)})
    assert set(ranks([seen], decide(measure(planned(seen), left)))) == {f"s{i}" for i in range(TOP)}


def test_pairs_are_named_in_the_order_of_the_rows() -> None:
    pairs = planned([candidate("late", 0.1, 5), candidate("early", 0.2, 1)])
    assert [(a.row, b.row) for a, b in pairs] == [("early", "late")]
