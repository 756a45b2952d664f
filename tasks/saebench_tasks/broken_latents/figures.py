"""Pictures of an SAE in a toy world, as in the post: cosines with the true features, what fires, activations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import altair as alt
import numpy as np
import pandas as pd

from saebench_meta.charts import histogram

if TYPE_CHECKING:
    from jaxtyping import Float

    from saebench_tasks.broken_latents.kinds import Scores

CELL, BARS = 26, (170, 70)
BINS = 60
SHOWN = 0.02
"""Share of a latent's largest activation up to which activations are left out: nearly all of them are noise about 0."""
NUMBERED, LEGIBLE = 12, 0.1
"""With more columns, only numbers from there on are written into the cells."""


def picture(
    scores: Scores,
    f: Float[np.ndarray, "tokens latents"],
    fired: Mapping[str, Float[np.ndarray, " latents"]],
    title: str,
    *,
    tied: bool,
) -> alt.TopLevelMixin:
    """Decoder cosines, encoder cosines where they are other ones, codes of chosen inputs, histograms of live latents.

    Args:
        f: codes on a sample.
        fired: codes of inputs with names; may be empty.
    """
    rows = [f"{j} {kind}" for j, kind in enumerate(scores.kinds)]
    sides = {"decoder": scores.decoder} if tied else {"encoder": scores.encoder, "decoder": scores.decoder}
    names = [str(i) for i in range(scores.decoder.shape[1])]
    maps = [heat_map(cosine, rows, names, f"{side}: cosine with feature") for side, cosine in sides.items()]
    if fired:
        codes = np.stack(list(fired.values()), axis=1)
        maps.append(heat_map(codes, rows, list(fired), "activation where these features are on"))
    live = {rows[j]: f[f[:, j] > SHOWN * f[:, j].max(), j] for j in scores.live}
    parts = [alt.vconcat(*maps), *([activations(live)] if live else [])]
    return alt.hconcat(*parts).properties(title=title).resolve_scale(color="shared").configure(aria=False)


def heat_map(
    values: Float[np.ndarray, "rows columns"], rows: Sequence[str], columns: Sequence[str], title: str
) -> alt.LayerChart:
    """From −1 (red) over 0 (white) to 1 (blue), the numbers in the cells."""
    data = pd.DataFrame(
        {
            "row": np.repeat(rows, len(columns)),
            "column": np.tile(columns, len(rows)),
            "value": values.round(2).ravel(),
        }
    )
    base = alt.Chart(data, width=CELL * len(columns), height=CELL * len(rows), title=title).encode(
        x=alt.X("column:N", sort=list(columns), axis=alt.Axis(labelAngle=0, labelOverlap=False, title=None)),
        y=alt.Y("row:N", sort=list(rows), title=None),
    )
    scale = alt.Scale(scheme="redblue", domain=[-1, 1], clamp=True)
    cells = base.mark_rect().encode(color=alt.Color("value:Q", scale=scale, legend=None))
    ink = alt.condition("abs(datum.value) > .6", alt.value("white"), alt.value("#444"))
    text = base.mark_text(fontSize=9).encode(text=alt.Text("value:Q", format=".2f"), color=ink)
    text.data = data if len(columns) <= NUMBERED else data[data.value.abs() >= LEGIBLE]
    return cells + text


def activations(live: dict[str, Float[np.ndarray, " tokens"]]) -> alt.TopLevelMixin:
    """One histogram a latent."""
    data = pd.concat([histogram({name: values}, bins=BINS, bounds=(0, values.max())) for name, values in live.items()])
    title = f"activations above {SHOWN:g} of the largest, as shares"
    bars = alt.Chart(data[data["count"] > 0], width=BARS[0], height=BARS[1]).mark_bar()
    return bars.encode(
        x=alt.X("low:Q", title=None, bin="binned", scale=alt.Scale(zero=True)),
        x2="high:Q",
        y=alt.Y("share:Q", title=None),
        facet=alt.Facet("group:N", columns=2, title=title, sort=list(live)),
    ).resolve_scale(x="independent", y="independent")


def save(chart: alt.TopLevelMixin, path: Path) -> None:
    """Write an SVG."""
    chart.save(str(path), format="svg")
