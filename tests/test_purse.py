"""What a run may spend is never more than its limit, however attempts overlap."""

from __future__ import annotations

import math
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from saebench_meta.errors import SaebenchError
from saebench_meta.purse import Hold, OverBudgetError, Purse


def test_an_attempt_costs_what_it_cost_or_its_worst_case_where_nobody_knows() -> None:
    purse = Purse(1.0)
    purse.reserve(0.4).settle(0.1)
    purse.reserve(0.4).settle(None)
    purse.reserve(0.4).release()
    assert purse.spent == pytest.approx(0.5)


def test_a_hold_ends_once() -> None:
    purse = Purse(1.0)
    hold = purse.reserve(0.4)
    hold.settle(0.1)
    hold.settle(0.3)
    hold.release()
    assert purse.spent == pytest.approx(0.1)


def test_what_is_under_way_counts_as_spent() -> None:
    purse = Purse(1.0)
    hold = purse.reserve(0.7)
    with pytest.raises(OverBudgetError) as caught:
        purse.reserve(0.7)
    assert caught.value.later
    hold.settle(0.2)
    purse.reserve(0.7)


def test_the_error_says_what_is_spent_and_what_to_type() -> None:
    purse = Purse(0.5)
    purse.reserve(0.25).settle(0.25)
    with pytest.raises(
        SaebenchError, match=r"\$0\.250000 of --max-cost 0\.5 is spent.*kept.*same command again"
    ) as caught:
        purse.reserve(0.3)
    assert isinstance(caught.value, OverBudgetError)
    assert not caught.value.later


def test_without_a_limit_anything_goes_and_nothing_is_free_of_account() -> None:
    purse = Purse(None)
    purse.reserve(1e6).settle(None)
    assert purse.spent == 1e6


def test_with_nothing_to_spend_what_is_free_is_still_asked() -> None:
    purse = Purse(0.0)
    purse.reserve(0.0).settle(0.0)
    with pytest.raises(OverBudgetError):
        purse.reserve(1e-9)


@pytest.mark.parametrize("limit", [-1.0, math.nan])
def test_a_limit_is_an_amount(limit: float) -> None:
    with pytest.raises(SaebenchError, match="--max-cost"):
        Purse(limit)


ENDS = st.sampled_from(["settled", "unknown", "released"])


@given(st.floats(0, 10), st.lists(st.tuples(st.floats(0, 3), st.floats(0, 1), ENDS), max_size=40))
def test_whatever_is_asked_the_limit_holds(limit: float, attempts: list[tuple[float, float, str]]) -> None:
    purse, out = Purse(limit), list[tuple[Hold, float]]()
    for worst, share, end in attempts:
        try:
            out.append((purse.reserve(worst), worst))
        except OverBudgetError:
            if out:
                hold, held = out.pop(0)
                hold.settle({"settled": held * share, "unknown": None, "released": 0.0}[end])
        assert purse.spent <= limit * (1 + 1e-12)
    for hold, _ in out:
        hold.settle(None)
    assert purse.spent <= limit * (1 + 1e-12)


def test_threads_together_keep_to_the_limit() -> None:
    purse = Purse(1.0)

    def spend() -> None:
        for _ in range(200):
            try:
                purse.reserve(0.01).settle(None)
            except OverBudgetError:
                return

    threads = [threading.Thread(target=spend) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert 0.985 < purse.spent <= 1.0 + 1e-12
