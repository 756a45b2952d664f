"""Tables and figures of the task: latents with their peaks, tokens in context from each peak, histograms, toy SAEs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from saebench_meta import charts
from saebench_meta.passages import quoting
from saebench_meta.task import Figure, Table
from saebench_tasks.broken_latents.kinds import KINDS

if TYPE_CHECKING:
    from saebench_meta.context import Context
    from saebench_tasks.broken_latents.peaks import Firings, Peaks
    from saebench_tasks.broken_latents.toys import Outcome

EACH = 3
"""Tokens shown from each peak."""
BINS, COLUMNS, PANEL = 50, 3, (150, 90)
PANELS = 9


def tables(
    firings: Firings, found: Peaks, clearest: Sequence[int], trained: Sequence[Outcome], ctx: Context
) -> dict[str, Table]:
    """All latents that were tested, tokens from the peaks of some, and the toy SAEs.

    Args:
        clearest: places in `found` of the latents to show.
    """
    made = {"latents": latents(firings, found)}
    if clearest:
        made["examples"] = Table(
            "Tokens from each peak",
            pd.DataFrame(in_context(firings, found, clearest, ctx)),
            "Of the latents with the clearest peaks: tokens with activations nearest to the lowest and to the highest "
            "peak, between « ». This file quotes the corpus; no other part of the record does.",
        )
    if trained:
        made["toys"] = toys(trained)
    return made


def latents(firings: Firings, found: Peaks) -> Table:
    """One row a latent that was tested, by falling evidence."""
    order = found.strongest
    columns = {
        "latent": found.latent,
        "q": found.q,
        "p": found.p,
        "dip": found.dip,
        "looked_at": found.n,
        "active": firings.total[found.latent],
        "valley": found.valley,
        "peaks": np.array([" ".join(f"{at:.4g}" for at in peaks) for peaks in found.peaks], dtype=object),
    }
    return Table(
        "Activation peaks of latents",
        pd.DataFrame({name: column[order] for name, column in columns.items()}),
        "q: p of the dip test after Benjamini and Hochberg. looked_at: activations above the floor that the test saw. "
        "active: tokens of the sample. valley: its depth between the two highest peaks, as a share of the lower. "
        "peaks: activations at which the density has a maximum.",
    )


def in_context(firings: Firings, found: Peaks, chosen: Sequence[int], ctx: Context) -> Iterator[dict[str, Any]]:
    """Rows of the examples."""
    text = quoting(ctx)
    for i in chosen:
        tokens, values = firings.of(int(found.latent[i]))
        for side, at in (("low", found.peaks[i][0]), ("high", found.peaks[i][-1])):
            for k in np.argsort(np.abs(np.log(values / at)), kind="stable")[:EACH]:
                yield {
                    "latent": found.latent[i],
                    "peak": side,
                    "at": at,
                    "activation": values[k],
                    **text(int(tokens[k])),
                }


def toys(trained: Sequence[Outcome]) -> Table:
    """One row a toy SAE."""
    rows = [
        {"world": o.world, "seed": o.seed, "matched_f1": float(o.scores.matched().f1.sum()) / o.pairs}
        | {str(kind): o.scores.count(kind) for kind in KINDS}
        | {"fvu": o.scores.fvu, "l0": o.scores.l0}
        for o in trained
    ]
    return Table("SAEs of this architecture in toy worlds", pd.DataFrame(rows), "Latents of each kind; FVU and L0.")


def figures(firings: Firings, found: Peaks, clearest: Sequence[int]) -> dict[str, Figure]:
    """p over all latents, and the activations of those with the clearest peaks, as in the post."""
    counts = charts.histogram({"latents": found.p}, bins=20, bounds=(0.0, 1.0))
    made = {
        "p_values": Figure(
            "p of the dip test",
            charts.bars(counts, x="p", y="share of tested latents"),
            f"{len(found.latent)} of {found.of} latents. Most unimodal distributions have smaller dips than the "
            "uniform one that p is worked out from, so p heaps up at 1.",
        )
    }
    if chosen := clearest[:PANELS]:
        made["activations"] = Figure(
            "Activations of the latents with the clearest peaks",
            panels({f"latent {found.latent[i]}": firings.of(int(found.latent[i]))[1] for i in chosen}),
            "Activations above the floor, in the latent's own units.",
        )
    return made


def panels(groups: dict[str, np.ndarray]) -> Any:
    """One histogram a group, from 0 to its largest value."""
    import altair as alt

    data = pd.concat(
        [charts.histogram({name: v}, bins=BINS, bounds=(0, v.max())) for name, v in groups.items()], ignore_index=True
    )
    bars = alt.Chart(data[data["count"] > 0], width=PANEL[0], height=PANEL[1]).mark_bar()
    return bars.encode(
        x=alt.X("low:Q", title="activation", bin="binned", scale=alt.Scale(zero=True, nice=False)),
        x2=alt.X2("high:Q"),
        y=alt.Y("share:Q", title="share"),
        facet=alt.Facet("group:N", columns=COLUMNS, title=None, sort=list(groups)),
        tooltip=charts.tooltips("low:Q", "high:Q", "count:Q"),
    ).resolve_scale(x="independent", y="independent")
