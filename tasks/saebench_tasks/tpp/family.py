"""Scores of a family's SAEs over width (paper, figure 26)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from saebench_meta import charts
from saebench_meta.task import Figure, Table
from saebench_tasks.tpp import score
from saebench_tasks.tpp.shown import per_set

if TYPE_CHECKING:
    from saebench_meta.sae import SAE
    from saebench_tasks.tpp.score import SetResult

COLUMNS = ["set", "tpp", "intended", "unintended", "reseed_sd"]


@dataclass(frozen=True, eq=False)
class Member:
    """An SAE with its trials of every set."""

    sae: SAE
    sets: Sequence[SetResult]


def documents(members: Sequence[Member]) -> dict[str, np.ndarray]:
    """One row a test text: mean over the SAEs, and the narrowest and the widest."""
    columns = [score.documents(member.sets) for member in members]
    widths = [member.sae.d_sae for member in members]
    of = [c["intended"] - c["unintended"] for c in columns]
    return {
        **{name: columns[0][name] for name in ("document", "texts")},
        "mean": np.mean(of, axis=0),
        "narrowest": of[int(np.argmin(widths))],
        "widest": of[int(np.argmax(widths))],
    }


def shown(members: Sequence[Member]) -> tuple[dict[str, Table], dict[str, Figure]]:
    """Scores of every SAE and set, as a table and as lines over width."""
    data = pd.concat([_rows(member, i) for i, member in enumerate(members, 1)], ignore_index=True)
    chart = charts.lines(
        data.assign(log2_width=np.log2(data["d_sae"])).sort_values("log2_width", kind="stable"),
        x=("log2_width", "log2 of the number of latents of the SAE"),
        y=("tpp", "intended minus unintended fall of accuracy"),
        group="set",
    )
    said = "Means over log n and trials; 'all' is the mean over the sets that are counted."
    return {"widths": Table("Scores by SAE and set", data, said)}, {
        "over_width": Figure("Score over width", chart, said)
    }


def _rows(member: Member, number: int) -> pd.DataFrame:
    """One row a set that is counted, and one of their mean."""
    table = per_set(member.sets)
    table = table[table["counted"]]
    mean = table[["tpp", "intended", "unintended"]].mean().to_frame().T.assign(set="all")
    rows = pd.concat([table[COLUMNS], mean], ignore_index=True)
    return rows.assign(sae=f"{number}: {member.sae.info.name}", d_sae=member.sae.d_sae)[["sae", "d_sae", *COLUMNS]]
