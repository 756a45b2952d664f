"""The paper's findings about larger dictionaries, pair by pair, from the records of `saebench run`.

    python docs/experiments/dictionaries/collect.py RUN… -o FOLDER

Writes `findings.csv` (a row a finding and pair: value, interval, whether it holds) and prints a table of verdicts. A
share holds when its interval lies above one half, a change when its interval lies on the side that the paper found;
where the interval holds the other side too the verdict is "open". A census has no interval: its value decides.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

HALF, ZERO = 0.5, 0.0


@dataclass(frozen=True)
class Finding:
    """What the paper or the post found, and the metric that says whether it holds."""

    text: str
    task: str
    metric: str
    bound: float
    above: bool


FINDINGS = (
    Finding("novel latents mostly lower MSE", "novel_latents", "novel_lower_mse", HALF, True),
    Finding("reconstruction latents mostly raise it", "novel_latents", "reconstruction_raise_mse", HALF, True),
    Finding("the cosine tells which (AUC)", "novel_latents", "auc", HALF, True),
    Finding("all novel latents together lower MSE", "stitching", "mse_change_novel", ZERO, False),
    Finding("swaps alone mostly raise MSE", "stitching", "swaps_raise_mse", HALF, True),
    Finding("swaps alone mostly lower L0", "stitching", "swaps_lower_l0", HALF, True),
    Finding("along the path the swaps lower MSE", "stitching", "mse_change_swaps", ZERO, False),
    Finding("along the path the swaps lower L0", "stitching", "l0_change_swaps", ZERO, False),
)


def records(folders: list[Path]) -> Iterator[dict[str, Any]]:
    """Finished records of run folders."""
    for folder in folders:
        for path in sorted(folder.rglob("record.json")):
            record = json.loads(path.read_text())
            if record["status"] == "ok":
                yield record


def verdict(finding: Finding, metric: dict[str, Any]) -> str:
    """`held`, `not held` or `open`."""
    if metric["value"] is None:
        return "open"
    low, high = metric.get("ci_low"), metric.get("ci_high")
    low, high = (metric["value"], metric["value"]) if low is None or high is None else (low, high)
    side = (low > finding.bound, high < finding.bound)
    right, wrong = side if finding.above else side[::-1]
    return "held" if right else "not held" if wrong else "open"


def rows(found: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """A row a finding and pair."""
    for record in found:
        for finding in FINDINGS:
            if record["task"]["name"] == finding.task:
                metric = record["metrics"][finding.metric]
                yield {
                    "finding": finding.text,
                    "pair": record["subject"]["name"],
                    "metric": finding.metric,
                    **{key: metric.get(key) for key in ("value", "ci_low", "ci_high", "n")},
                    "verdict": verdict(finding, metric),
                }


def shown(row: dict[str, Any]) -> str:
    """Value, interval and a mark."""
    if row["value"] is None or pd.isna(row["value"]):
        return "–"
    mark = {"held": "✓", "not held": "✗", "open": "?"}[row["verdict"]]
    interval = "" if pd.isna(row["ci_low"]) else f" [{row['ci_low']:.3g}, {row['ci_high']:.3g}]"
    return f"{mark} {row['value']:.3g}{interval}"


def shares(found: list[dict[str, Any]]) -> Iterator[str]:
    """Of families: shared latents between seeds, and of the larger in the smaller."""
    for record in found:
        if record["task"]["name"] == "novel_latents_family":
            metrics = record["metrics"]
            values = {k: metrics[k]["value"] for k in ("one_width", "larger_in_smaller", "smaller_in_larger")}
            yield f"{record['subject']['name']}: " + ", ".join(
                f"{k} {'–' if v is None else f'{v:.3f}'}" for k, v in values.items()
            )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("-o", "--out", type=Path, required=True)
    given = parser.parse_args()
    found = list(records(given.runs))
    table = pd.DataFrame(rows(found)).drop_duplicates()
    given.out.mkdir(parents=True, exist_ok=True)
    table.to_csv(given.out / "findings.csv", index=False, float_format="%.6g", lineterminator="\n")
    table["shown"] = [shown(row) for row in table.to_dict("records")]
    order = [finding.text for finding in FINDINGS]
    wide = table.pivot_table(index="finding", columns="pair", values="shown", aggfunc="first").loc[order]
    for cells in (
        ["finding", *wide.columns],
        ["---"] * (1 + len(wide.columns)),
        *wide.reset_index().to_numpy().tolist(),
    ):
        print("| " + " | ".join(cells) + " |")
    print()
    print("\n".join(shares(found)))


if __name__ == "__main__":
    main()
