"""The charts more than one task draws. Data are counted or thinned first, so that a figure stays small."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import altair
    import numpy as np
    import pandas as pd
    from jaxtyping import Int
    from numpy.typing import ArrayLike

WIDTH, HEIGHT = 420, 260
CELL = 56
"""Side of a heat map's cell, in pixels."""
ROWS = 5000
"""So many points a chart has at most."""
COLOURS = ("#2b8cd9", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7f7f7f")
"""Told apart with any colour vision (after Okabe and Ito, without black and yellow), and seen on white and on black."""
RULE = "#7f7f7f"

Axis = tuple[str, str]
"""Column, and axis title with unit."""
Bounds = Sequence[float] | None


def histogram(
    groups: Mapping[str, ArrayLike],
    *,
    bins: int = 50,
    bounds: tuple[float, float] | None = None,
    integers: bool = False,
    share_of: Mapping[str, int] | None = None,
) -> pd.DataFrame:
    """Counts in bins common to all groups, as shares of each group: columns `group`, `low`, `high`, `count`, `share`.

    Args:
        groups: name -> values.
        bounds: range of the bins; from the data unless given.
        integers: bins of a whole number of units, centred on whole numbers.
        share_of: what each group's counts are shares of; its own size unless given.
    """
    import numpy as np
    import pandas as pd

    arrays = {name: np.asarray(values, dtype=np.float64) for name, values in groups.items()}
    pooled = np.concatenate([np.zeros(0), *arrays.values()])
    low, high = bounds or ((pooled.min(), pooled.max()) if pooled.size else (0.0, 1.0))
    if integers:
        step = max(1, int(np.ceil((high - low + 1) / bins)))
        edges = np.arange(low - 0.5, high + 0.5 + step, step)
    else:
        edges = np.linspace(low, high if high > low else low + 1, bins + 1)
    frames = []
    for name, values in arrays.items():
        counts = np.histogram(values, edges)[0]
        whole = max(1, (share_of or {}).get(name, values.size))
        columns = {"group": name, "low": edges[:-1], "high": edges[1:], "count": counts, "share": counts / whole}
        frames.append(pd.DataFrame(columns))
    return pd.concat(frames, ignore_index=True)


def bars(data: pd.DataFrame, *, x: str, y: str) -> altair.TopLevelMixin:
    """A histogram as made by `histogram`; `x` and `y` are axis titles with units."""
    import altair as alt

    chart = alt.Chart(data, width=WIDTH, height=HEIGHT).mark_bar(opacity=0.65, color=COLOURS[0])
    encoding = {
        "x": alt.X("low:Q", title=x, scale=alt.Scale(zero=False, nice=False), bin="binned"),
        "x2": alt.X2("high:Q"),
        "y": alt.Y("share:Q", title=y, stack=None),
        "tooltip": tooltips("group:N", "low:Q", "high:Q", "count:Q", "share:Q"),
    }
    if data["group"].nunique() > 1:
        encoding["color"] = _colour("group")
    return chart.encode(**encoding)


def lines(
    data: pd.DataFrame,
    *,
    x: Axis,
    y: Axis,
    group: str | None = None,
    y_domain: Bounds = None,
    rule_x: float | None = None,
    rule_y: float | None = None,
) -> altair.TopLevelMixin:
    """One line a group, from left to right; `rule_x` and `rule_y` are where a dashed line is drawn."""
    import altair as alt

    chart = alt.Chart(_thinned(data, [x[0], y[0]], group), width=WIDTH, height=HEIGHT).mark_line(color=COLOURS[0])
    return _ruled(chart.encode(**_encoding(x, y, group, None, y_domain)), x, y, rule_x, rule_y)


def line_path(
    data: pd.DataFrame,
    *,
    x: Axis,
    y: Axis,
    group: str | None = None,
    rule_x: float | None = None,
    rule_y: float | None = None,
) -> altair.TopLevelMixin:
    """One line a group, through its points in the order of the rows; thinned, first and last point kept."""
    import altair as alt

    kept = _thinned(data, [x[0], y[0]], group)
    chart = alt.Chart(kept.assign(row=range(len(kept))), width=WIDTH, height=HEIGHT).mark_line(color=COLOURS[0])
    encoding = _encoding(x, y, group, None, None)
    return _ruled(chart.encode(**encoding, order=alt.Order("row:Q")), x, y, rule_x, rule_y)


def scatter(
    data: pd.DataFrame,
    *,
    x: Axis,
    y: Axis,
    group: str | None = None,
    limit: int = ROWS,
    x_domain: Bounds = None,
    y_domain: Bounds = None,
    rule_x: float | None = None,
    rule_y: float | None = None,
    tooltip: Sequence[str] = (),
) -> altair.TopLevelMixin:
    """One point a row; beyond `limit` rows evenly spaced ones, the same at every call.

    Args:
        x_domain, y_domain: ends of the axes; points outside are not drawn.
        tooltip: columns that are told of a point besides its place, such as the latent's number.
    """
    import altair as alt

    kept = _thinned(data, [x[0], y[0], *tooltip], group, limit)
    chart = alt.Chart(kept, width=WIDTH, height=HEIGHT).mark_circle(size=18, opacity=0.7, clip=True, color=COLOURS[0])
    encoding = _encoding(x, y, group, x_domain, y_domain, tooltip)
    return _ruled(chart.encode(**encoding), x, y, rule_x, rule_y)


def heatmap(data: pd.DataFrame, *, x: Axis, y: Axis, value: Axis, text: str | None = ".2f") -> altair.TopLevelMixin:
    """A coloured cell a row of the data, columns and rows of the map in the order in which they appear.

    Args:
        text: format of the number in each cell (d3), None for none. A cell without a value is left empty.
    """
    import altair as alt

    shown = data[[x[0], y[0], value[0]]].dropna(subset=[value[0]])
    across, down = list(data[x[0]].unique()), list(data[y[0]].unique())
    low, high = shown[value[0]].min(), shown[value[0]].max()
    base = alt.Chart(shown, width=CELL * len(across), height=CELL * len(down)).encode(
        x=alt.X(f"{x[0]}:N", title=x[1], sort=across, scale=alt.Scale(domain=across)),
        y=alt.Y(f"{y[0]}:N", title=y[1], sort=down, scale=alt.Scale(domain=down)),
        tooltip=tooltips(f"{x[0]}:N", f"{y[0]}:N", f"{value[0]}:Q"),
    )
    scale = alt.Scale(scheme="viridis", domain=[low, high] if high > low else alt.Undefined)
    cells = base.mark_rect().encode(color=alt.Color(f"{value[0]}:Q", title=value[1], scale=scale))
    if text is None:
        return cells
    ink = alt.when(alt.datum[value[0]] > (low + high) / 2).then(alt.value("black")).otherwise(alt.value("white"))
    return cells + base.mark_text().encode(text=alt.Text(f"{value[0]}:Q", format=text), color=ink)


def stacked(charts: Sequence[altair.TopLevelMixin]) -> altair.TopLevelMixin:
    """Charts one above the other, with one x axis scale and one legend."""
    import altair as alt

    return alt.vconcat(*charts).resolve_scale(x="shared", color="shared")


def tooltips(*columns: str) -> list[altair.Tooltip]:
    """What is told of a mark. As objects: altair takes tens of milliseconds to make them of plain names."""
    import altair as alt

    return [alt.Tooltip(column) for column in columns]


def _colour(group: str) -> altair.Color:
    import altair as alt

    return alt.Color(f"{group}:N", title=None, scale=alt.Scale(range=list(COLOURS)))


def _encoding(
    x: Axis, y: Axis, group: str | None, x_domain: Bounds, y_domain: Bounds, tooltip: Sequence[str] = ()
) -> dict[str, Any]:
    """Place, colour and tooltip of a point; axes need not start at zero."""
    import altair as alt

    def scale(domain: Bounds) -> altair.Scale:
        return alt.Scale(zero=False) if domain is None else alt.Scale(domain=list(domain))

    encoding = {
        "x": alt.X(f"{x[0]}:Q", title=x[1], scale=scale(x_domain)),
        "y": alt.Y(f"{y[0]}:Q", title=y[1], scale=scale(y_domain)),
        "tooltip": tooltips(*tooltip, f"{x[0]}:Q", f"{y[0]}:Q", *([f"{group}:N"] if group else [])),
    }
    return encoding if group is None else {**encoding, "color": _colour(group)}


def _ruled(
    chart: altair.LayerChart | altair.Chart, x: Axis, y: Axis, rule_x: float | None, rule_y: float | None
) -> altair.TopLevelMixin:
    """The chart with a dashed line at a place of either axis."""
    import altair as alt

    rules = alt.Chart().mark_rule(strokeDash=[4, 4], color=RULE)
    layers = [chart]
    if rule_x is not None:
        layers.append(rules.encode(x=alt.XDatum(rule_x, type="quantitative", title=x[1])))
    if rule_y is not None:
        layers.append(rules.encode(y=alt.YDatum(rule_y, type="quantitative", title=y[1])))
    return chart if len(layers) == 1 else alt.layer(*layers)


def _thinned(data: pd.DataFrame, columns: Sequence[str], group: str | None, limit: int = ROWS) -> pd.DataFrame:
    """The columns drawn, of at most about `limit` rows: evenly spaced ones of each group, first and last among them."""
    import numpy as np

    drawn = data[list(dict.fromkeys([*columns, *([group] if group else [])]))]
    if len(drawn) <= limit:
        return drawn
    indices = [range(len(drawn))] if group is None else drawn.groupby(group, sort=False).indices.values()
    groups = [np.asarray(rows, dtype=np.int64) for rows in indices]
    rows = [_spread(members, max(2, limit * len(members) // len(drawn))) for members in groups]
    return drawn.iloc[np.sort(np.concatenate(rows))]


def _spread(members: Int[np.ndarray, " rows"], n: int) -> Int[np.ndarray, " kept"]:
    """At most n of them, evenly spaced."""
    import numpy as np

    places = np.linspace(0, len(members) - 1, min(n, len(members))).round().astype(np.int64)
    return np.take(members, np.unique(places))
