"""Tables and figures of the task."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from saebench_meta import charts
from saebench_meta.task import Figure, Table
from saebench_tasks.sparse_probing.scores import SCORES, by_set, scored
from saebench_tasks.sparse_probing.selection import NONE

if TYPE_CHECKING:
    from saebench_tasks.sparse_probing.probing import Probed

KINDS = {"latents": "chosen latents", "random": "random latents", "dense": "activations"}
RANKS = 5
"""So many latents of each probe are looked at for the table of chosen ones."""


def tables(probed: Sequence[Probed], ks: Sequence[int]) -> dict[str, Table]:
    return {
        "sets": Table(
            "Scores by set",
            sets(probed, ks),
            "Mean over the classes of a set. error: standard error of the balanced accuracy over test texts; "
            "spread: its deviation over split seeds, which change training and validation texts; C: median of those "
            "chosen on validation.",
        ),
        "classes": Table(
            "Balanced accuracy by class",
            classes(probed, ks),
            "One probe a class, against all others; columns by number of chosen latents, and of the activations.",
        ),
        "latents": Table(
            "Chosen latents",
            latents(probed),
            f"Latents among the first {RANKS} of a class in any split: in how many, at which mean place, and the mean "
            "difference of the code between texts of the class and others in training.",
        ),
    }


def sets(probed: Sequence[Probed], ks: Sequence[int]) -> pd.DataFrame:
    """One row a set, kind of probe and k."""
    frames = []
    for p in probed:
        for kind, name in KINDS.items():
            outcome = getattr(p, kind)
            found = {score: scored(outcome, p.examples, score) for score in SCORES}
            columns: dict[str, object] = {
                "set": p.examples.name,
                "probe": name,
                "k": [None] if kind == "dense" else list(ks),
                **{score: one.value for score, one in found.items()},
                "error": found["balanced_accuracy"].error,
                "spread": outcome.spread,
                "C": np.median(outcome.C, axis=(1, 2)),
                "test_texts": len(p.examples.test),
            }
            frames.append(pd.DataFrame(columns).astype({"k": "Int64"}))
    return pd.concat(frames, ignore_index=True)


def classes(probed: Sequence[Probed], ks: Sequence[int]) -> pd.DataFrame:
    """One row a class."""
    rows = []
    for p in probed:
        positive = p.examples.positive[:, p.examples.test]
        for c, name in enumerate(p.examples.classes):
            row: dict[str, object] = {"set": p.examples.name, "class": name, "test_texts": int(positive[c].sum())}
            for outcome, columns in ((p.latents, [f"k{k}" for k in ks]), (p.dense, ["dense"])):
                for i, column in enumerate(columns):
                    sides = (outcome.asked[i, c] & side for side in (positive[c], ~positive[c]))
                    row[column] = np.mean([outcome.right[i, c, side].mean() for side in sides])
            rows.append(row)
    return pd.DataFrame(rows)


def latents(probed: Sequence[Probed]) -> pd.DataFrame:
    """One row a class and latent that is among its first in any split."""
    frames = []
    for p in probed:
        first = p.chosen.latents[:, :RANKS]
        of = np.array([c for c, _ in p.examples.problems])
        frames.append(
            pd.DataFrame(
                {
                    "set": p.examples.name,
                    "class": np.array(p.examples.classes)[np.repeat(of, first.shape[1])],
                    "latent": first.ravel(),
                    "place": np.tile(np.arange(1, first.shape[1] + 1), len(first)),
                    "difference": p.chosen.difference[:, :RANKS].ravel(),
                    "score": p.chosen.score[:, :RANKS].ravel(),
                }
            )
        )
    rows = pd.concat(frames, ignore_index=True)
    grouped = rows[rows["latent"] != NONE].groupby(["set", "class", "latent"], sort=False)
    out = grouped.agg(
        splits=("place", "size"), place=("place", "mean"), difference=("difference", "mean"), score=("score", "mean")
    )
    return out.reset_index().sort_values(["set", "class", "splits", "place"], ascending=[True, True, False, True])


def figures(probed: Sequence[Probed], ks: Sequence[int]) -> dict[str, Figure]:
    return {
        "over_k": Figure(
            "Balanced accuracy over the number of latents",
            charts.lines(
                over_k(probed, ks),
                x=("log2_k", "log2 of the number of latents k"),
                y=("balanced_accuracy", "balanced accuracy"),
                group="probe",
                rule_y=0.5,
            ),
            "Mean over sets. Dashed: chance. Activations: a probe on all coordinates.",
        ),
        "sets": Figure(
            "Balanced accuracy by set",
            charts.heatmap(
                set_by_k(probed, ks),
                x=("k", "number of latents k; dense: activations"),
                y=("set", "set"),
                value=("balanced_accuracy", "balanced accuracy"),
            ),
            "Mean over the classes of a set.",
        ),
    }


def over_k(probed: Sequence[Probed], ks: Sequence[int]) -> pd.DataFrame:
    """Mean over sets, a row a kind of probe and k; the activations are the same at every k."""
    frames = [
        pd.DataFrame(
            {
                "log2_k": np.log2(ks),
                "probe": KINDS[kind],
                "balanced_accuracy": np.broadcast_to(values.mean(0), len(ks)),
            }
        )
        for kind, values in by_set(probed).items()
    ]
    return pd.concat(frames, ignore_index=True)


def set_by_k(probed: Sequence[Probed], ks: Sequence[int]) -> pd.DataFrame:
    """A row a set and k, and one a set for the activations."""
    found = by_set(probed)
    columns = [*map(str, ks), "dense"]
    values = np.concatenate([found["latents"], found["dense"]], axis=1)
    names = [p.examples.name for p in probed]
    return pd.DataFrame(
        {
            "set": np.repeat(names, len(columns)),
            "k": np.tile(columns, len(names)),
            "balanced_accuracy": values.ravel(),
        }
    )
