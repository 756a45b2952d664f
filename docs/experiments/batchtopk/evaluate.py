"""BatchTopK against TopK, JumpReLU and ReLU (Leask et al. 2025, section 6): tables and figures of a sweep.

    python docs/experiments/batchtopk/evaluate.py FOLDER --corpus REF -o OUT [--model REF] [--tokens N]

FOLDER is what `saebench train --sweep` wrote. NMSE and L0 of every SAE are measured at inference on documents that no
SAE was trained on; cross-entropy of those of seed 0, by the task `core`. The paired difference between BatchTopK and
TopK is taken seed by seed (same seed: same initial directions, same batches) with a t interval over seeds. Where the
L0 of a BatchTopK SAE is more than 2 % off its k, its NMSE is read off, at L0 = k, the line through the SAEs of the same
seed and width with other k (linear in log L0).
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import altair as alt
import numpy as np
import pandas as pd
import torch
from scipy import stats

import saebench_meta
from saebench_meta.inputs import InputsFinder
from saebench_meta.plugins import registry
from saebench_meta.resolve import resolve_sae
from saebench_meta.session import Session
from saebench_meta.settings import Settings

NAMES = {"batchtopk": "BatchTopK", "topk": "TopK", "jumprelu": "JumpReLU", "relu": "ReLU"}
CLOSE = 0.02
"""How far L0 may be from k and still count as equal."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--corpus", required=True)
    parser.add_argument("--model")
    parser.add_argument("--tokens", type=int, default=32_768)
    parser.add_argument("-o", "--out", type=Path, required=True)
    asked = parser.parse_args()
    asked.out.mkdir(parents=True, exist_ok=True)
    folders = sorted(path.parent for path in asked.folder.glob("*/training.json"))
    site = {"model": asked.model, "corpus": asked.corpus, "tokens": asked.tokens}
    table, codes = measure(folders, site)
    table = table.merge(cross_entropies(table, folders, site, asked.out), on="name", how="left")
    table.to_csv(asked.out / "saes.csv", index=False, float_format="%.6g")
    paired = differences(table)
    paired.to_csv(asked.out / "paired.csv", index=False, float_format="%.6g")
    print(paired.to_string(index=False))
    for name, chart in {**comparisons(table), "l0-distribution": distribution(codes)}.items():
        chart.save(asked.out / f"{name}.svg")
        chart.save(asked.out / f"{name}.html")


def measure(folders: list[Path], site: dict[str, Any]) -> tuple[pd.DataFrame, dict[str, np.ndarray]]:
    """NMSE and L0 of every SAE on one sample, and the distribution of L0 over tokens of one SAE a kind."""
    found = registry()
    settings = Settings(saes=(str(folders[0]),), **site)
    inputs = InputsFinder(found, settings).find(resolve_sae(found, str(folders[0]), model=site["model"]))
    assert not isinstance(inputs, str), inputs
    sample = Session(found, settings).site(inputs)
    x = torch.cat([chunk.x for chunk in sample.activations])
    total = float((x.double() - x.double().mean(0)).square().sum())
    rows, active = [], {}
    for folder in folders:
        recipe = json.loads((folder / "recipe.json").read_text())
        sae = resolve_sae(found, str(folder)).load()
        f = torch.cat([sae.encode(part) for part in x.split(4096)])
        parts = zip(x.split(4096), f.split(4096), strict=True)
        error = sum(float((part - sae.decode(codes)).double().square().sum()) for part, codes in parts)
        kind, settings_of = recipe["architecture"], recipe["hyperparameters"]
        l0 = (f != 0).sum(1).double()
        rows.append(
            {
                "name": folder.name,
                "kind": NAMES[kind],
                "width": recipe["d_sae"],
                "k": settings_of.get("k"),
                "seed": recipe["seed"],
                "l0": float(l0.mean()),
                "nmse": error / total,
                "silent": float((f == 0).all(0).double().mean()),
                "tokens": len(x),
            }
        )
        if recipe["seed"] == 0 and (NAMES[kind] not in active or nearer(l0, active[NAMES[kind]])):
            active[NAMES[kind]] = l0.numpy()
    return pd.DataFrame(rows), {f"{n}, L0 {v.mean():.1f}": v for n, v in active.items()}


def nearer(one: Any, other: Any) -> bool:
    """Whether one SAE's L0 is nearer to 8 than another's."""
    return abs(float(one.mean()) - 8) < abs(float(other.mean()) - 8)


def cross_entropies(table: pd.DataFrame, folders: list[Path], site: dict[str, Any], out: Path) -> pd.DataFrame:
    """Degradation of the model's cross-entropy when its activations are replaced, with the interval of `core`."""
    chosen = [str(f) for f in folders if f.name in set(table.name[table.seed == 0])]
    result = saebench_meta.run(chosen, tasks="core", out=out / "records", **{**site, "tokens": 8192})
    rows = []
    for record in result.records:
        m = record.metrics["ce_degradation"]
        rows.append({"name": record.subject.name, "ce_degradation": m.value, "ce_low": m.ci_low, "ce_high": m.ci_high})
    return pd.DataFrame(rows)


def differences(table: pd.DataFrame) -> pd.DataFrame:
    """BatchTopK minus TopK in NMSE, seed by seed, at equal L0."""
    rows = []
    for (width, k), group in table[table.kind.isin(["BatchTopK", "TopK"])].groupby(["width", "k"]):
        topk = group[group.kind == "TopK"].set_index("seed")
        batch = group[group.kind == "BatchTopK"].set_index("seed")
        seeds = sorted(set(topk.index) & set(batch.index))
        pairs = [(at_l0(table, "BatchTopK", width, s, k), at_l0(table, "TopK", width, s, k)) for s in seeds]
        d = np.array([b - t for b, t in pairs])
        low, high = stats.t.interval(0.95, len(d) - 1, d.mean(), stats.sem(d))
        mean = float(np.mean([t for _, t in pairs]))
        row = {
            "width": width,
            "k": int(k),
            "seeds": len(seeds),
            "L0 TopK": topk.l0.mean(),
            "L0 BatchTopK": batch.l0.mean(),
        }
        row |= {"NMSE TopK": mean, "NMSE BatchTopK": float(np.mean([b for b, _ in pairs])), "difference": d.mean()}
        rows.append(row | {"low": low, "high": high, "relative": d.mean() / mean})
    return pd.DataFrame(rows)


def at_l0(table: pd.DataFrame, kind: str, width: int, seed: int, k: float) -> float:
    """NMSE at L0 = k: of the SAE itself where its L0 is that, else between the SAEs of the same seed."""
    same = table[(table.kind == kind) & (table.width == width) & (table.seed == seed)].sort_values("l0")
    own = same[same.k == k].iloc[0]
    if abs(own.l0 / k - 1) <= CLOSE or len(same) < 2:
        return float(own.nmse)
    others = same[same.k != k]
    near = others.iloc[(np.log(others.l0) - np.log(own.l0)).abs().argmin()]
    slope = (near.nmse - own.nmse) / (np.log(near.l0) - np.log(own.l0))
    return float(own.nmse + slope * (np.log(k) - np.log(own.l0)))


def comparisons(table: pd.DataFrame) -> dict[str, alt.TopLevelMixin]:
    """NMSE and cross-entropy against width at one k, and against L0 at one width (the paper's figure 7)."""
    width = int(table.width[table.kind == "ReLU"].iloc[0])
    widths = sorted(int(w) for w in table.width.unique())
    log = {"type": "log", "nice": False, "padding": 12}
    x_width = alt.X("width:Q", title="latents", scale=alt.Scale(**log), axis=alt.Axis(values=widths))
    x_l0 = alt.X("l0:Q", title="L0 (active latents a token)", scale=alt.Scale(**log))
    charts: dict[str, alt.TopLevelMixin] = {}
    for column, title in {"nmse": "NMSE", "ce_degradation": "CE degradation (nats)"}.items():
        y = alt.Y(f"{column}:Q", title=title, scale=alt.Scale(zero=False))
        y_log = alt.Y(f"{column}:Q", title=title, scale=alt.Scale(**log))
        left = _lines(table[table.k == 8].dropna(subset=[column]), x_width, y, column)
        right = _lines(table[table.width == width].dropna(subset=[column]), x_l0, y_log, column)
        charts[column.replace("_", "-")] = alt.hconcat(
            left.properties(title="k = 8"), right.properties(title=f"{width} latents")
        )
    return charts


def _lines(data: pd.DataFrame, x: alt.X, y: alt.Y, column: str) -> alt.LayerChart:
    base = alt.Chart(data, width=320, height=240).encode(color=alt.Color("kind:N", title=None))
    points = base.mark_point(size=25, opacity=0.7).encode(x=x, y=y, tooltip=["name", "l0", "nmse", "ce_degradation"])
    means = _means(data, column)
    lines = alt.Chart(means).mark_line(opacity=0.8).encode(x=x, y=y, color="kind:N")
    return lines + points


def _means(data: pd.DataFrame, column: str) -> pd.DataFrame:
    """Means over seeds; an SAE without a k stands for itself."""
    by = data.assign(which=data.k.astype(str).where(data.k.notna(), data.name))
    return by.groupby(["kind", "width", "which"], as_index=False)[["l0", column]].mean()


def distribution(active: dict[str, np.ndarray]) -> alt.TopLevelMixin:
    """Active latents a token (the paper's figure 9), of the SAE of each kind whose L0 is nearest to 8."""
    from saebench_meta.charts import bars, histogram

    top = int(np.quantile(np.concatenate(list(active.values())), 0.995))
    data = histogram(active, bounds=(0, top), integers=True)
    chart = bars(data, x="L0 (active latents a token)", y="share of tokens").properties(width=240, height=160)
    return (
        chart.encode(color=alt.value("#4c78a8"))
        .facet(alt.Facet("group:N", title=None), columns=2)
        .resolve_scale(y="independent")
    )


if __name__ == "__main__":
    main()
