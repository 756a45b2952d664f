"""Scores of a family's SAEs, by set and width (paper, figures 24 and 25)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from saebench_meta import charts
from saebench_meta.task import Figure, Table
from saebench_tasks.sparse_probing import scores
from saebench_tasks.sparse_probing.metrics import MAIN

if TYPE_CHECKING:
    from saebench_meta.sae import SAE
    from saebench_tasks.sparse_probing.probing import Probed


@dataclass(frozen=True, eq=False)
class Member:
    """An SAE with what its probes found."""

    sae: SAE
    probed: Sequence[Probed]


def documents(members: Sequence[Member], ks: Sequence[int]) -> dict[str, np.ndarray]:
    """Pseudo-values of the test texts: mean over the SAEs, and of the narrowest and widest."""
    columns = [scores.documents(member.probed, ks) for member in members]
    widths = [member.sae.d_sae for member in members]
    out = {name: columns[0][name] for name in ("document", "texts")}
    for k in MAIN:
        of = [c[f"balanced_accuracy_k{k}"] for c in columns]
        out[f"mean_k{k}"] = np.mean(of, axis=0)
        out[f"narrowest_k{k}"], out[f"widest_k{k}"] = of[int(np.argmin(widths))], of[int(np.argmax(widths))]
    return out


def shown(members: Sequence[Member], ks: Sequence[int]) -> tuple[dict[str, Table], dict[str, Figure]]:
    """Scores of every SAE and set; lines over width for each k of the paper's."""
    data = table(members, ks)
    figures = {f"over_width_k{k}": _over_width(data[data["k"] == k], k) for k in MAIN}
    said = "Balanced accuracy, mean over the classes of a set; 'all' is the mean over sets."
    return {"widths": Table("Scores by SAE and set", data, said)}, figures


def table(members: Sequence[Member], ks: Sequence[int]) -> pd.DataFrame:
    """One row an SAE, set and k."""
    frames = []
    for i, member in enumerate(members, 1):
        found = scores.by_set(member.probed)["latents"]
        names = [*(p.examples.name for p in member.probed), "all"]
        values = np.concatenate([found, found.mean(0, keepdims=True)])
        columns = {
            "sae": f"{i}: {member.sae.info.name}",
            "d_sae": member.sae.d_sae,
            "set": np.repeat(names, len(ks)),
            "k": np.tile(ks, len(names)),
            "balanced_accuracy": values.ravel(),
        }
        frames.append(pd.DataFrame(columns))
    return pd.concat(frames, ignore_index=True)


def _over_width(data: pd.DataFrame, k: int) -> Figure:
    chart = charts.lines(
        data.assign(log2_width=np.log2(data["d_sae"])).sort_values("log2_width", kind="stable"),
        x=("log2_width", "log2 of the number of latents of the SAE"),
        y=("balanced_accuracy", f"balanced accuracy, k = {k}"),
        group="set",
        rule_y=0.5,
    )
    return Figure(f"Balanced accuracy over width, k = {k}", chart, "A line a set; 'all' is their mean. Dashed: chance.")
