"""Charts: what they show of the data, and that they can be drawn."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
import vl_convert

from saebench_meta import charts

X, Y = ("cosine", "max cosine"), ("dmse", "ΔMSE (%)")


def rows(spec: dict[str, Any]) -> list[dict[str, Any]]:
    """The rows that a chart draws."""
    return max(spec["datasets"].values(), key=len)


def cosines(n: int) -> pd.DataFrame:
    t = np.linspace(0, 1, n)
    return pd.DataFrame({"cosine": t, "dmse": t**2, "latent": range(n), "kind": np.where(t < 0.9, "novel", "other")})


def texts(chart: Any) -> str:
    return str(vl_convert.vegalite_to_svg(chart.to_dict()))


def every_chart() -> dict[str, Any]:
    data = cosines(30)
    matrix = pd.DataFrame({"old": ["b", "a"] * 2, "new": ["z", "z", "y", "y"], "cosine": [0.1, 0.5, np.nan, 0.9]})
    path = charts.line_path(data, x=X, y=Y, group="kind", rule_y=0.0)
    return {
        "scatter": charts.scatter(data, x=X, y=Y, group="kind", rule_x=0.7, rule_y=0.0, tooltip=["latent"]),
        "plain scatter": charts.scatter(data, x=X, y=Y, x_domain=(0, 1), y_domain=(-1, 1)),
        "lines": charts.lines(data, x=X, y=Y, group="kind", y_domain=(0, 1), rule_x=0.5),
        "path": path,
        "stacked": charts.stacked([charts.line_path(data, x=X, y=Y, group="kind"), path]),
        "heat map": charts.heatmap(matrix, x=("old", X[1]), y=("new", Y[1]), value=("cosine", "share")),
    }


@pytest.mark.parametrize("name", every_chart())
def test_every_chart_is_drawn_with_its_axis_titles(name: str) -> None:
    svg = texts(every_chart()[name])
    titles = [X[1], Y[1].replace("&", "&amp;")]
    assert all(f">{title}</text>" in svg for title in titles)
    assert f"{X[1]}, " not in svg and ">at" not in svg  # layers share one title


@pytest.mark.parametrize("draw", [charts.scatter, charts.line_path, charts.lines])
def test_long_data_are_thinned_alike_each_time_and_in_proportion_to_the_groups(draw: Any) -> None:
    data = cosines(40_000)
    spec = draw(data, x=X, y=Y, group="kind").to_dict()
    drawn = pd.DataFrame(rows(spec))
    assert 4_990 <= len(drawn) <= charts.ROWS
    assert drawn["kind"].value_counts(normalize=True)["novel"] == pytest.approx(0.9, abs=0.01)
    assert drawn["cosine"].iloc[[0, -1]].tolist() == [0.0, 1.0]
    assert draw(data, x=X, y=Y, group="kind").to_dict() == spec


def test_a_small_group_is_never_thinned_away() -> None:
    data = cosines(20_000).assign(kind=lambda d: np.where(d["latent"] == 7, "rare", "common"))
    drawn = pd.DataFrame(rows(charts.scatter(data, x=X, y=Y, group="kind", limit=100).to_dict()))
    assert len(drawn) <= 102 and set(drawn["kind"]) == {"rare", "common"}


def test_only_the_columns_drawn_are_in_the_figure() -> None:
    assert set(rows(charts.scatter(cosines(5), x=X, y=Y).to_dict())[0]) == {"cosine", "dmse"}
    told = charts.scatter(cosines(5), x=X, y=Y, tooltip=["latent"]).to_dict()
    assert set(rows(told)[0]) == {"cosine", "dmse", "latent"}
    assert told["encoding"]["tooltip"][0]["field"] == "latent"


def test_a_path_goes_through_its_points_in_the_order_of_the_rows() -> None:
    loop = pd.DataFrame({"cosine": [0.0, 1.0, 0.5], "dmse": [0.0, 0.0, 1.0], "kind": "a"})
    spec = charts.line_path(loop, x=X, y=Y, group="kind").to_dict()
    assert spec["encoding"]["order"]["field"] == "row" and [r["row"] for r in rows(spec)] == [0, 1, 2]


def test_a_heat_map_keeps_the_order_of_appearance_and_leaves_missing_cells_empty() -> None:
    svg = texts(every_chart()["heat map"])
    assert svg.index(">b</text>") < svg.index(">a</text>") and svg.index(">z</text>") < svg.index(">y</text>")
    assert [f">{shown}</text>" in svg for shown in ("0.10", "0.50", "0.90")] == [True] * 3
    assert "null" not in svg and "NaN" not in svg


def test_a_heat_map_of_one_value_can_be_drawn() -> None:
    one = pd.DataFrame({"old": ["a"], "new": ["b"], "cosine": [0.5]})
    chart = charts.heatmap(one, x=("old", "old"), y=("new", "new"), value=("cosine", "share"), text=None)
    assert ">a</text>" in texts(chart)


def test_a_chart_without_rows_can_be_drawn() -> None:
    assert f">{X[1]}</text>" in texts(charts.scatter(cosines(0), x=X, y=Y, group="kind", rule_x=0.7))
