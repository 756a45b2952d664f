"""Reconstruction ratios over a family: a case worked out by hand, which pairs count, the limit, refusals."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from fakes import FakeContext, info, tied_sae

from saebench_meta import measure
from saebench_meta.errors import SaebenchError
from saebench_meta.sae import SAE, Site
from saebench_meta.task import Family, Output
from saebench_tasks.novel_latents import novel_latents_family


def at(*degrees: float, **changes: Any) -> SAE:
    """Unit directions in the plane."""
    W = torch.tensor([[math.cos(math.radians(a)), math.sin(math.radians(a))] for a in degrees])
    n = len(degrees)
    return SAE(torch.zeros(2, n), torch.zeros(n), W, torch.zeros(2), info(2, n, **changes))


def run(*saes: SAE, limit: int | None = None, **parameters: Any) -> Output:
    output = novel_latents_family(Family(saes), FakeContext(limit=limit), **parameters)
    measure.check_output(novel_latents_family, output)
    return output


NARROW, OTHER, WIDE = at(0, 180, name="narrow"), at(10, 90, name="other"), at(0, 20, 270, 100, name="wide")
"""At theta .9, 25.8°: narrow 0 meets other 10, wide 0 and 20; other 90 meets wide 100 only; wide 270 meets nothing."""


def test_three_dictionaries_in_the_plane() -> None:
    output = run(NARROW, OTHER, WIDE, threshold=0.9)
    table = output.tables["reconstruction_ratios"].data
    ratios = table.pivot(index="sae", columns="in", values="reconstruction_ratio")
    assert ratios.loc["narrow", ["other", "wide"]].tolist() == [1 / 2, 1 / 2]
    assert ratios.loc["other", ["narrow", "wide"]].tolist() == [1 / 2, 1]
    assert ratios.loc["wide", ["narrow", "other"]].tolist() == [2 / 4, 3 / 4]
    assert table[table["sae"] == table["in"]]["reconstruction_ratio"].isna().tolist() == [True] * 3
    values = {name: e.value for name, e in output.estimates.items()}
    assert values == {"larger_in_smaller": 5 / 8, "smaller_in_larger": 3 / 4, "one_width": 1 / 2}
    assert {e.method for e in output.estimates.values()} == {"census"}


def test_each_sae_is_held_against_the_next_smaller_width_only() -> None:
    smallest = at(0, name="smallest")
    whole, pair = run(WIDE, smallest, NARROW, threshold=0.9), run(NARROW, WIDE, threshold=0.9)
    # of narrow's latents one is in the smallest
    expected = (pair.estimates["larger_in_smaller"].value + 1 / 2) / 2  # type: ignore[operator]
    assert whole.estimates["larger_in_smaller"].value == expected
    assert whole.estimates["larger_in_smaller"].n == 2


def test_what_the_family_has_no_pairs_for_is_said() -> None:
    assert "same width" in str(run(NARROW, WIDE).estimates["one_width"].reason)
    alike = run(NARROW, OTHER).estimates
    assert "one width" in str(alike["larger_in_smaller"].reason) and alike["smaller_in_larger"].value is None


def test_a_cosine_equal_to_the_threshold_is_no_counterpart() -> None:
    perpendicular = run(at(0), at(90), threshold=0.0)
    assert perpendicular.estimates["one_width"].value == 1.0  # cos 90° is above 0 by rounding
    exact = SAE(torch.zeros(2, 1), torch.zeros(1), torch.tensor([[3.0, 4.0]]), torch.zeros(2), info(2, 1))
    assert run(exact, at(0), threshold=0.6).estimates["one_width"].value == 0.0


def test_a_limit_looks_at_some_latents_of_each_and_gives_an_interval() -> None:
    saes = [tied_sae(4, 40, seed=1, name="a"), tied_sae(4, 40, seed=2, name="b"), tied_sae(4, 12, seed=3, name="c")]
    limited = run(*saes, limit=20, threshold=0.8)
    found = limited.estimates["one_width"]
    ratios = limited.tables["reconstruction_ratios"].data.set_index(["sae", "in"])["reconstruction_ratio"]
    assert found.value == pytest.approx((ratios["a", "b"] + ratios["b", "a"]) / 2)
    assert (found.method, found.n_unit, found.n) == ("bootstrap", "latents", 40)
    # all 12 of c but 20 of a and of b: every pair weighs the same
    smaller = limited.estimates["smaller_in_larger"]
    assert smaller.value == pytest.approx((ratios["c", "a"] + ratios["c", "b"]) / 2)
    assert smaller.method == "census"


def test_names_that_occur_twice_are_numbered() -> None:
    table = run(NARROW, NARROW).tables["reconstruction_ratios"].data
    assert table["sae"].unique().tolist() == ["narrow (1)", "narrow (2)"]


def test_the_heatmap_shows_the_matrix_in_the_order_of_the_family() -> None:
    figure = run(WIDE, NARROW, OTHER).figures["reconstruction_ratios"].chart.to_dict()
    assert figure["layer"][0]["encoding"]["x"]["sort"] == ["wide", "narrow", "other"]


def test_saes_of_other_sites_and_thresholds_that_are_no_cosine_are_refused() -> None:
    elsewhere = at(0, site=Site(model="toy", hook="blocks.9.hook_resid_pre"))
    with pytest.raises(SaebenchError, match=r"novel_latents_family.*differ in hook"):
        run(NARROW, elsewhere)
    with pytest.raises(SaebenchError, match="threshold"):
        run(NARROW, WIDE, threshold=2.0)


def test_it_comes_with_its_parent() -> None:
    assert (novel_latents_family.part_of, novel_latents_family.subject) == ("novel_latents", "family")
    assert novel_latents_family.needs == ()
