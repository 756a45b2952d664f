"""Tables and figures of the tasks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from saebench_meta import charts
from saebench_meta.task import Figure, Table
from saebench_tasks.meta_sae.build import PER_D_IN, main_k
from saebench_tasks.meta_sae.decomposition import NEAREST, TOP
from saebench_tasks.meta_sae.rows import GAUSSIAN, OWN

if TYPE_CHECKING:
    from saebench_meta.sae import SAE
    from saebench_tasks.meta_sae.build import Trained
    from saebench_tasks.meta_sae.graph import Overlap
    from saebench_tasks.meta_sae.rows import Rows

Shown = tuple[dict[str, Table], dict[str, Figure]]
QUANTILES = (0, 0.05, 0.25, 0.5, 0.75, 0.95, 1)
DRAWN = 5
"""Latents whose cosines are drawn, at most."""


def trainings(trained: Sequence[Trained]) -> pd.DataFrame:
    """A row a meta-SAE: on what, how wide, which seed, how well."""
    return pd.DataFrame(
        [
            {
                "rows": t.setting.kind,
                "meta_latents": t.sae.d_sae,
                "seed": t.setting.seed,
                "variance_explained": t.seen.explained,
                "variance_explained_batch": t.seen_batch.explained,
                "held_out": t.held_out_batch.explained,
                "held_out_threshold": t.held_out.explained,
                "l0": t.l0[0],
                "l0_held_out": t.l0[1],
            }
            for t in trained
        ]
    )


def decomposition_tables(pairs: pd.DataFrame, top: pd.DataFrame) -> dict[str, Table]:
    """What every latent is made of, and where every meta-latent is active."""
    return {
        "decomposition": Table(
            "Latents and their meta-latents", pairs, "All that are active by the inference threshold, strongest first."
        ),
        "meta_latents": Table(
            "Meta-latents", top, f"On how many latents each is active, and the {TOP} on which it is strongest."
        ),
    }


def trainings_table(data: pd.DataFrame) -> Table:
    """All meta-SAEs that were trained."""
    caption = (
        "held_out is by batch-top-k, so that all have the sparsity of training; held_out_threshold, like "
        "variance_explained, by the inference threshold, with l0_held_out active meta-latents a row."
    )
    return Table("Meta-SAEs", data, caption)


def widths(data: pd.DataFrame) -> Shown:
    """Variance explained over the number of meta-latents; nothing where only one width was trained.

    Args:
        data: as from `trainings`.
    """
    first = data[(data["seed"] == 0) & data["rows"].isin([OWN, GAUSSIAN])]
    if first["meta_latents"].nunique() < 2:
        return {}, {}
    parts = {"trained on": "variance_explained_batch", "held out": "held_out"}
    points = pd.concat(
        [
            first.assign(explained=first[column], group=first["rows"] + ", " + name)[
                ["meta_latents", "explained", "group"]
            ]
            for name, column in parts.items()
        ]
    ).dropna()
    axes: dict[str, Any] = {
        "x": ("meta_latents", "meta-latents"),
        "y": ("explained", "variance explained"),
        "group": "group",
    }
    chart = charts.lines(points, **axes) + charts.scatter(points, **axes)
    caption = "Batch-top-k, training seed 0. A meta-SAE as wide as the SAE could copy it: only the distance counts."
    return {}, {"widths": Figure("Variance explained over width", chart, caption)}


def per_latent(groups: Mapping[str, np.ndarray]) -> Figure:
    """How many meta-latents latents have."""
    chart = charts.bars(
        charts.histogram(groups, integers=True), x="active meta-latents of a latent", y="share of latents"
    )
    return Figure("Meta-latents per latent", chart, "By the inference threshold.")


def max_cosines(groups: Mapping[str, np.ndarray]) -> Shown:
    """Distributions of largest cosines (paper, figure 6); a group without values is left out."""
    some = {name: values for name, values in groups.items() if len(values)}
    if not some:
        return {}, {}
    columns = {name: np.quantile(values, QUANTILES) for name, values in some.items()}
    caption = "Of meta-latents, those that are active on some latent; within one dictionary, with another of it."
    low = min(0.0, *(float(values.min()) for values in some.values()))
    chart = charts.bars(
        charts.histogram(some, bounds=(low, 1.0)), x="largest cosine", y="share of the first's directions"
    )
    title = "Largest cosines"
    table = Table(title, pd.DataFrame({"quantile": QUANTILES, **columns}), f"{caption} Quantiles.")
    return {"max_cosines": table}, {"max_cosines": Figure(title, chart, caption)}


def examples(table: pd.DataFrame, cosines: pd.DataFrame) -> Shown:
    """Chosen latents (meta-SAE post, the table of Einstein and the heat map below it)."""
    caption = f"Meta-latents of a latent beside the {NEAREST} latents nearest to it, itself left out, with cosines."
    drawn = [latent for latent in table["latent"].unique() if (cosines["latent"] == latent).any()][:DRAWN]
    made = {
        f"latent_{latent}": Figure(
            f"Meta-latents of latent {latent} and the latents nearest to it",
            charts.heatmap(
                cosines[cosines["latent"] == latent],
                x=("nearest", f"latents nearest to latent {latent}"),
                y=("meta_latent", "its meta-latents"),
                value=("cosine", "cosine"),
            ),
            "Meta-latents from the strongest down.",
        )
        for latent in drawn
    }
    return {"examples": Table("Some latents", table, caption)}, made


def graph_table(found: Overlap) -> Table:
    """What the two graphs are."""
    data = pd.DataFrame(
        [
            {
                "latents": found.nodes,
                "edges_meta": found.meta_edges,
                "edges_reference": found.cosine_edges,
                "edges_both": found.both,
                "tau": found.tau,
            }
        ]
    )
    return Table(
        "Graphs of latents", data, "Joined by a shared meta-latent; by a cosine above tau with one reference latent."
    )


def comparisons_table(data: pd.DataFrame) -> Table:
    """Ways of rebuilding the same rows."""
    caption = (
        "Variance explained of rows with k directions each: k on average by batch-top-k for the encoders, exactly k, "
        "of either sign, for matching pursuit. distinct: different directions among them."
    )
    return Table("Other dictionaries for the same rows", data, caption)


def family_tables(by_width: pd.DataFrame, splits: pd.DataFrame) -> dict[str, Table]:
    """Meta-latents by width, and split latents."""
    return {
        "by_width": Table(
            "Meta-latents per latent, by width", by_width, "with_none, with_one: share of latents with so many."
        ),
        "splits": Table(
            "Split latents",
            splits,
            "kept: share of a latent's meta-latents active on one it split into; added: those it has not itself.",
        ),
    }


def tables(parts: Sequence[Shown]) -> dict[str, Table]:
    """Of all parts."""
    return {name: table for part in parts for name, table in part[0].items()}


def figures(parts: Sequence[Shown]) -> dict[str, Figure]:
    """Of all parts."""
    return {name: figure for part in parts for name, figure in part[1].items()}


def notes(saes: Sequence[SAE], rows: Rows, main: Trained) -> tuple[str, ...]:
    """What it was trained on, and how wide it is."""
    latents, seen = sum(sae.d_sae for sae in saes), len(main.seen.error)
    zero = latents - len(rows.x)
    left_out = f" {zero:,} without a direction are left out." if zero else ""
    steps, batch = main.recipe.steps, main.recipe.batch_size
    k, paper = main_k(main.recipe), f"{PER_D_IN} · d_in = {PER_D_IN * saes[0].d_in:,}; the paper: 2304 of 49,152"
    return (
        f"{main.sae.d_sae:,} meta-latents of {latents:,} latents ({paper}), k = {k}; "
        f"{seen:,} rows trained on, {len(rows.x) - seen:,} held out.{left_out}",
        f"Trained for {steps:,} batches of {batch:,} rows, {steps * batch / seen:,.0f} epochs, at a rate of "
        f"{main.recipe.lr:g} (the paper: 24,000 of 4096, 2000 epochs, 1e-4; the post: 2000 of 16,384).",
        f"variance_explained is of the rows trained on and by the inference threshold; held_out takes the {k} · B "
        f"largest activations, because by the threshold held-out rows have {main.l0[1]:.3g} meta-latents and not {k}.",
    )


def seeds(data: pd.DataFrame, n: int) -> tuple[str, ...]:
    """Spread of held-out variance explained over training seeds, by kind of rows."""
    if n < 2:
        return ()
    main = data[data["meta_latents"] == data["meta_latents"][0]]
    said = [
        f"{kind} {own['held_out'].mean():.4f} ({own['held_out'].min():.4f} to {own['held_out'].max():.4f})"
        for kind, own in main.groupby("rows", sort=False)
        if own["held_out"].notna().any()
    ]
    return (f"held_out over {n} training seeds, mean and range: {'; '.join(said)}.",) if said else ()
