"""The charts more than one task draws. Data are counted before they are drawn, so that a figure stays small."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import altair
    import pandas as pd
    from numpy.typing import ArrayLike

WIDTH, HEIGHT = 420, 260


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

    chart = alt.Chart(data, width=WIDTH, height=HEIGHT).mark_bar(opacity=0.65)
    encoding = {
        "x": alt.X("low:Q", title=x, scale=alt.Scale(zero=False, nice=False), bin="binned"),
        "x2": alt.X2("high:Q"),
        "y": alt.Y("share:Q", title=y, stack=None),
        "tooltip": ["group:N", "low:Q", "high:Q", "count:Q", "share:Q"],
    }
    if data["group"].nunique() > 1:
        encoding["color"] = alt.Color("group:N", title=None)
    return chart.encode(**encoding)


def lines(
    data: pd.DataFrame, *, x: tuple[str, str], y: tuple[str, str], group: str, y_domain: Sequence[float] | None = None
) -> altair.TopLevelMixin:
    """One line a group; `x` and `y` are (column, axis title with unit)."""
    import altair as alt

    scale = alt.Scale(domain=list(y_domain)) if y_domain is not None else alt.Undefined
    return (
        alt.Chart(data, width=WIDTH, height=HEIGHT)
        .mark_line()
        .encode(
            x=alt.X(f"{x[0]}:Q", title=x[1]),
            y=alt.Y(f"{y[0]}:Q", title=y[1], scale=scale),
            color=alt.Color(f"{group}:N", title=None),
            tooltip=[f"{x[0]}:Q", f"{y[0]}:Q", f"{group}:N"],
        )
    )
