"""Estimates: intervals that cover, None with a reason rather than NaN, formulae that are nothing but formulae."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from saebench_meta import stats
from saebench_meta.stats import Estimate


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


# -- Wilson


@pytest.mark.parametrize(("successes", "trials"), [(0, 10), (3, 10), (10, 10), (730, 1000), (1, 1)])
def test_proportion_has_the_interval_of_wilsons_closed_formula(successes: int, trials: int) -> None:
    z, p = 1.959963984540054, successes / trials
    centre = (p + z**2 / (2 * trials)) / (1 + z**2 / trials)
    half = z / (1 + z**2 / trials) * math.sqrt(p * (1 - p) / trials + z**2 / (4 * trials**2))
    estimate = stats.proportion(successes, trials, n_unit="questions")
    assert estimate.ci_low == pytest.approx(max(0, centre - half), abs=1e-12)
    assert estimate.ci_high == pytest.approx(min(1, centre + half), abs=1e-12)
    assert (estimate.value, estimate.n, estimate.n_unit, estimate.method) == (p, trials, "questions", "wilson")


def test_proportion_of_nothing_has_no_value_but_a_reason() -> None:
    estimate = stats.proportion(0, 0, n_unit="questions")
    assert estimate.value is None
    assert estimate.reason == "no questions"


def test_census_has_no_interval() -> None:
    estimate = stats.census(0.25, 768)
    assert (estimate.value, estimate.ci_low, estimate.method, estimate.n_unit) == (0.25, None, "census", "latents")


# -- bootstrap over documents


def documents(seed: int, n: int) -> dict[str, np.ndarray]:
    """Documents of random length whose error grows with it, and with a document effect: true ratio 2."""
    draw = rng(seed)
    tokens = draw.integers(20, 200, n).astype(float)
    return {"document": np.arange(n), "tokens": tokens, "sse": tokens * draw.gamma(4, 0.5, n)}


def test_ratio_is_the_ratio_of_sums_and_not_the_mean_of_ratios() -> None:
    estimate = stats.from_documents("sse / tokens", {"sse": [1, 30], "tokens": [1, 10]}, rng())
    assert estimate.value == pytest.approx(31 / 11)
    assert (estimate.n, estimate.n_unit, estimate.method) == (2, "documents", "bootstrap")


def test_interval_of_a_ratio_covers_the_truth_in_about_95_of_100_samples() -> None:
    hits = 0
    for seed in range(400):
        e = stats.from_documents("sse / tokens", documents(seed, 150), rng(10_000 + seed), resamples=400)
        assert e.ci_low is not None and e.ci_high is not None
        hits += e.ci_low <= 2 <= e.ci_high
    assert 0.93 <= hits / 400 <= 0.97


def test_paired_difference_is_tighter_than_the_two_intervals_when_results_are_correlated() -> None:
    a = documents(0, 80)
    b = {**a, "sse": a["sse"] * 1.1 + rng(1).normal(0, 1, 80)}
    one, other = (stats.from_documents("sse / tokens", d, rng(2)) for d in (a, b))
    difference = stats.paired_difference("sse / tokens", b, a, rng(2))
    assert None not in (one.ci_low, one.ci_high, other.ci_low, difference.ci_low, difference.ci_high)
    assert difference.ci_high - difference.ci_low < 0.25 * (one.ci_high - one.ci_low)
    assert difference.ci_low > 0
    assert one.ci_high > other.ci_low


def test_paired_difference_matches_documents_by_their_id_and_not_by_place() -> None:
    a = {"document": ["x", "y", "z"], "loss": [1.0, 2.0, 4.0], "n": [1.0, 1.0, 1.0]}
    b = {"document": ["z", "q", "x"], "loss": [3.0, 50.0, 0.0], "n": [1.0, 1.0, 1.0]}
    difference = stats.paired_difference("loss / n", a, b, rng())
    assert difference.value == pytest.approx((1 + 4) / 2 - (0 + 3) / 2)
    assert difference.n == 2


def test_paired_difference_without_shared_documents_says_so() -> None:
    a, b = {"document": ["x"], "loss": [1.0]}, {"document": ["y"], "loss": [1.0]}
    difference = stats.paired_difference("loss", a, b, rng())
    assert (difference.value, difference.n) == (None, 0)
    assert "share no documents" in str(difference.reason)


def test_a_document_named_twice_is_an_error() -> None:
    a = {"document": ["x", "x"], "loss": [1.0, 2.0]}
    with pytest.raises(ValueError, match="twice"):
        stats.paired_difference("loss", a, a, rng())


def test_one_document_gives_a_value_but_no_interval_and_says_why() -> None:
    estimate = stats.from_documents("sse / tokens", {"sse": [6], "tokens": [3]}, rng())
    assert (estimate.value, estimate.n, estimate.ci_low, estimate.ci_high) == (2.0, 1, None, None)
    assert "one document" in str(estimate.reason)


def test_equal_documents_give_an_interval_of_width_zero() -> None:
    estimate = stats.from_documents("sse / tokens", {"sse": [2.0] * 5, "tokens": [1.0] * 5}, rng())
    assert (estimate.value, estimate.ci_low, estimate.ci_high) == (2.0, 2.0, 2.0)


@pytest.mark.parametrize("formula", ["a / b", "1 - a / b", "a / (b - b)"])
def test_zero_denominator_gives_none_with_a_reason(formula: str) -> None:
    estimate = stats.from_documents(formula, {"a": [1.0, 2.0], "b": [0.0, 0.0]}, rng())
    assert (estimate.value, estimate.ci_low, estimate.n) == (None, None, 2)
    assert formula in str(estimate.reason)


def test_negative_denominator_gives_none_and_names_it() -> None:
    columns = {"document": [0, 1], "zero": [1.0, 2.0], "spliced": [2.0, 2.0], "clean": [2.0, 3.0]}
    formula = "(zero - spliced) / (zero - clean)"
    for estimate in (
        stats.from_documents(formula, columns, rng()),
        stats.paired_difference(formula, columns, columns, rng()),
    ):
        assert estimate.value is None
        assert "zero - clean is -2" in str(estimate.reason)


def test_a_ratio_that_many_resamples_leave_undefined_has_no_interval_rather_than_a_wild_one() -> None:
    columns = {"a": [1.0, 1.0, 1.0], "b": [5.0, -1.0, -1.0]}
    estimate = stats.from_documents("a / b", columns, rng())
    assert (estimate.value, estimate.ci_low) == (1.0, None)
    assert "resamples without a finite value" in str(estimate.reason)


# -- NaN: not measured


def test_a_document_that_is_not_measured_counts_neither_in_value_nor_in_n() -> None:
    columns = {"loss": [1.0, np.nan, 3.0], "n": [1.0, 1.0, 1.0], "sse": [1.0, 2.0, 6.0]}
    assert stats.from_documents("loss / n", columns, rng()).value == 2.0
    assert stats.from_documents("loss / n", columns, rng()).n == 2
    assert stats.from_documents("sse / n", columns, rng()).n == 3


def test_interval_with_unmeasured_documents_is_that_of_the_measured_ones_alone() -> None:
    full = documents(3, 30)
    padded = {name: np.concatenate([full[name], np.full(70, np.nan)]) for name in ("sse", "tokens")}
    assert stats.from_documents("sse / tokens", padded, rng()) == stats.from_documents("sse / tokens", full, rng())


def test_paired_difference_drops_a_document_unmeasured_on_either_side() -> None:
    a = {"document": [0, 1, 2], "loss": [1.0, np.nan, 5.0]}
    b = {"document": [0, 1, 2], "loss": [0.0, 7.0, np.nan]}
    difference = stats.paired_difference("loss", a, b, rng())
    assert (difference.value, difference.n) == (1.0, 1)


def test_nothing_measured_gives_none_with_a_reason() -> None:
    estimate = stats.from_documents("loss / n", {"loss": [np.nan], "n": [1.0]}, rng())
    assert (estimate.value, estimate.n) == (None, 0)
    assert "not measured" in str(estimate.reason)


number = st.one_of(st.floats(-1e3, 1e3), st.sampled_from([0.0, math.nan, math.inf, -math.inf]))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(number, number), max_size=6), st.sampled_from(["a / b", "(a - b) / b ** 2", "a - a"]))
def test_no_number_that_is_not_finite_ever_gets_out(rows: list[tuple[float, float]], formula: str) -> None:
    columns = {"document": np.arange(len(rows)), "a": [r[0] for r in rows], "b": [r[1] for r in rows]}
    found = [
        stats.from_documents(formula, columns, rng(), resamples=50),
        stats.paired_difference(formula, columns, columns, rng(), resamples=50),
        stats.bootstrap(columns["a"], rng(), resamples=50),
    ]
    for estimate in found:
        assert all(v is None or math.isfinite(v) for v in (estimate.value, estimate.ci_low, estimate.ci_high))
        assert estimate.value is not None or estimate.reason


def test_bootstrap_takes_the_statistic_given_and_leaves_out_nan() -> None:
    estimate = stats.bootstrap([1.0, 2.0, 9.0, np.nan], rng(), np.median)
    assert (estimate.value, estimate.n) == (2.0, 3)


def test_an_estimate_refuses_nan_and_a_missing_reason() -> None:
    with pytest.raises(ValueError, match="non-finite"):
        Estimate(math.nan, 3, "documents", "bootstrap")
    with pytest.raises(ValueError, match="reason"):
        Estimate(None, 3, "documents", "bootstrap")


# -- formulae


def test_formula_is_worked_out_with_the_usual_precedence() -> None:
    assert stats.evaluate("1 - a / (b + 2) ** 2 * -c", {"a": 8.0, "b": 0.0, "c": 3.0}) == 7.0


def test_formula_lists_its_columns_in_order_of_appearance_once() -> None:
    assert set(stats.parse_formula("(zero - s) / (zero - clean)")[1]) == {"zero", "s", "clean"}
    assert len(stats.parse_formula("a / a + a")[1]) == 1


@pytest.mark.parametrize(
    "formula",
    [
        "print(a)",
        "a.real",
        "a['x']",
        "'text' * a",
        "a if a else b",
        "a < b",
        "[a]",
        "lambda: a",
        "a // b",
        "~a",
        "True * a",
        "1j * a",
        "a @ b",
        "(a := 1)",
    ],
)
def test_formula_rejects_anything_but_arithmetic_on_names(formula: str) -> None:
    with pytest.raises(ValueError, match="formula"):
        stats.parse_formula(formula)


@pytest.mark.parametrize("formula", ["a +", "", "1 + 1", "a; b"])
def test_formula_that_is_no_expression_over_columns_is_an_error(formula: str) -> None:
    with pytest.raises(ValueError, match="formula"):
        stats.parse_formula(formula)


def test_formula_with_a_column_that_is_not_there_names_it() -> None:
    with pytest.raises(ValueError, match="tokens"):
        stats.from_documents("sse / tokens", {"sse": [1.0]}, rng())


def test_columns_of_different_length_are_an_error() -> None:
    with pytest.raises(ValueError, match="one number a document"):
        stats.from_documents("sse / tokens", {"sse": [1.0], "tokens": [1.0, 2.0]}, rng())


def test_the_interval_of_a_formula_is_that_of_scipys_bca_bootstrap() -> None:
    """Same estimator, other random numbers: the limits agree to a small part of the interval's width."""
    rng = np.random.default_rng(5)
    tokens = rng.integers(5, 60, 80).astype(float)
    errors = rng.gamma(0.6, tokens)
    columns = {"document": np.arange(80), "errors": errors, "tokens": tokens}
    ours = stats.from_documents("1 - errors / tokens", columns, np.random.default_rng(0), resamples=20_000)
    theirs = scipy.stats.bootstrap(
        (errors, tokens),
        lambda e, t, axis=-1: 1 - e.sum(axis) / t.sum(axis),
        paired=True,
        vectorized=True,
        n_resamples=20_000,
        method="BCa",
        rng=np.random.default_rng(1),
    ).confidence_interval
    assert ours.ci_low is not None and ours.ci_high is not None
    width = theirs.high - theirs.low
    assert abs(ours.ci_low - theirs.low) < 0.03 * width and abs(ours.ci_high - theirs.high) < 0.03 * width
    # The statistic is skewed: without bias correction and acceleration the limits lie elsewhere.
    plain = np.quantile(
        1
        - scipy.stats.bootstrap(
            (errors, tokens),
            lambda e, t, axis=-1: e.sum(axis) / t.sum(axis),
            paired=True,
            vectorized=True,
            n_resamples=20_000,
            method="percentile",
            rng=np.random.default_rng(1),
        ).bootstrap_distribution,
        [0.025, 0.975],
    )
    assert abs(plain[0] - theirs.low) > 0.03 * width


# -- groups of documents


def test_from_groups_takes_the_statistic_of_the_totals() -> None:
    a = np.arange(12.0).reshape(4, 3)
    estimate = stats.from_groups([a, np.ones(4)], lambda s, n: float((s / n > 5).mean()), rng(), n=40)
    assert estimate.value == pytest.approx(2 / 3)  # the columns' means are 4.5, 5.5, 6.5
    assert (estimate.n, estimate.n_unit, estimate.method) == (40, "documents", "bootstrap")


def test_from_groups_agrees_with_a_formula_over_the_same_groups() -> None:
    data = rng(5).gamma(2.0, 1.0, (64, 2))
    one = stats.from_groups([data[:, 0], data[:, 1]], lambda a, b: a / b, rng(1), n=64, resamples=4000)
    two = stats.from_documents("a / b", {"a": data[:, 0], "b": data[:, 1]}, rng(2), resamples=4000)
    assert one.value == pytest.approx(two.value)
    assert one.ci_low == pytest.approx(two.ci_low, rel=0.02)
    assert one.ci_high == pytest.approx(two.ci_high, rel=0.02)


def test_from_groups_without_a_value_or_with_one_group_says_why() -> None:
    none = stats.from_groups([np.ones(5)], lambda _: None, rng(), n=5)
    assert none.value is None and none.reason
    one = stats.from_groups([np.ones((1, 3))], lambda a: a.sum(), rng(), n=1)
    assert (one.value, one.ci_low) == (3.0, None) and one.reason
    seldom = stats.from_groups([np.eye(8)], lambda a: None if a[0] == 0 else float(a[1]), rng(), n=8)
    assert seldom.value == 1 and seldom.ci_low is None and seldom.reason
