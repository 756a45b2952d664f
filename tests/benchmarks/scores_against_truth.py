"""Sparse probing and TPP against the truth, on two builds of atlas: rank correlation with matched F1, and noise.

    python -m saebench_plugins.atlas.build --out WORLD --seed 1                      # the second world
    python tests/benchmarks/scores_against_truth.py measure --world 0                # the one that is shipped
    python tests/benchmarks/scores_against_truth.py measure --world 1 --data WORLD
    python tests/benchmarks/scores_against_truth.py tables                           # from the files that these wrote

A world seed changes the language model's weights and training documents, the SAEs, the ladder, the oracle and the
texts of the labelled sets. `measure` adds its rows to `docs/tasks/TASK/worlds.csv`, one a world, SAE, way of scoring
and seed:

- `run`: another `--seed` on the same texts: splits or training texts of a trial, and what a protocol draws.
- `texts`: another `--seed`, and all labelled texts, training and test, drawn anew.

Controls and intervals over texts are left out: `saebench run` has them.
"""

from __future__ import annotations

import argparse
import hashlib
from collections.abc import Iterator
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from scipy.stats import rankdata

import saebench_plugins.atlas as atlas
from saebench_meta import stats
from saebench_meta.plan import make_plan
from saebench_meta.plugins import registry
from saebench_meta.sae import SAE
from saebench_meta.session import Session
from saebench_meta.settings import Settings
from saebench_meta.task import Task
from saebench_meta.task_context import TaskContext
from saebench_meta.truth import MIN_COUNT
from saebench_plugins.atlas import labelled
from saebench_plugins.atlas.site import DEGRADED_FROM, ORACLE, shipped
from saebench_tasks.sparse_probing import sparse_probing
from saebench_tasks.tpp import tpp

COMPAT = "compat=sae-bench-0.6"
DEFAULT = "default"
TASKS: dict[str, tuple[Task, tuple[str, ...]]] = {
    "sparse_probing": (sparse_probing, (DEFAULT, "selection=mean_diff", COMPAT)),
    "tpp": (tpp, (DEFAULT, "selection=attribution", COMPAT)),
}
"""The tasks, and the parameters that each is run with."""
SCORES = {
    "sparse_probing": ("balanced_accuracy_k", "auc_k", "above_random_k"),
    "tpp": ("tpp", "intended", "unintended"),
}
"""Beginnings of the names of the metrics that are kept."""
SEEDS = 5
DRAWS = 10_000
DOCS = Path(__file__).parents[2] / "docs" / "tasks"
KEYS = ["world", "sae", "parameters", "reseeded", "seed"]
FAMILY = [one.name for one in shipped() if one.name != ORACLE]
GROUPS = {
    "all 17": [*FAMILY, ORACLE],
    "16 without the oracle": FAMILY,
    "8 of 512 latents": [name for name in FAMILY if name.startswith(DEGRADED_FROM) or name == "relu-512"],
}


class Reseeded(TaskContext):
    """The context of a run whose `--seed` is changed while activations and codes stay."""

    run_seed = 0

    @property
    def seed(self) -> int:
        return self.run_seed


# -- measuring


def use_world(data: Path, texts: int) -> None:
    """Let `atlas:` be another build, with other labelled texts."""
    atlas.DATA = data
    atlas.manifest.cache_clear()
    labelled.examples = partial(drawn_examples, seed=texts)
    atlas._generator_hash = lambda *what: hashlib.sha256(f"{data} {texts} {what}".encode()).hexdigest()


drawn_examples = labelled.examples


def contexts() -> tuple[dict[str, Reseeded], dict[str, SAE]]:
    """A context a task, and the SAEs, each loaded once so that its codes are pooled once."""
    settings = Settings(saes=tuple(f"atlas:{name}" for name in GROUPS["all 17"]), tasks=tuple(TASKS), cache=False)
    found = registry()
    units = [unit for unit in make_plan(found, settings).units if unit.task.subject == "sae"]
    session = Session(found, settings)
    made = {unit.task.name: Reseeded(session, unit) for unit in units}
    saes = {unit.subject.members[0].ref.removeprefix("atlas:"): unit.subject.members[0] for unit in units}
    return made, {name: resolved.load(device="cpu") for name, resolved in saes.items()}


def scored(name: str, sae: SAE, ctx: Reseeded, parameters: str) -> dict[str, float]:
    """The metrics of a task on an SAE."""
    task, _ = TASKS[name]
    given = dict([parameters.split("=", 1)]) if parameters != DEFAULT else {}
    columns = {c: np.asarray(v) for c, v in task(sae, ctx, **given).documents.items()}
    sums = {c: float(v.sum()) for c, v in columns.items() if v.dtype.kind == "f"}
    kept = [m for m in task.metrics if m.of is not None and m.name.startswith(SCORES[name])]
    return {m.name: round(float(stats.evaluate(m.of, sums)), 5) for m in kept if not m.name.endswith("_random")}


def matched_f1(world: int, data: Path) -> dict[str, float]:
    """Matched F1 of every SAE, as `saebench truth` says; from the files where they have it."""
    from saebench_meta.cli.truth import _scored

    for path in (DOCS / name / "worlds.csv" for name in TASKS):
        if path.exists() and len(known := pd.read_csv(path).query("world == @world")):
            return dict(zip(known["sae"], known["matched_f1"], strict=True))

    use_world(data, 0)
    settings = Settings(saes=tuple(f"atlas:{name}" for name in GROUPS["all 17"]), cache=False)
    found = _scored(registry(), settings, MIN_COUNT, random=False)
    return {ref.removeprefix("atlas:"): round(float(score.f1.value or 0), 5) for ref, _, score in found}


def stages(draws_of_texts: int) -> Iterator[tuple[int, int, str]]:
    """Draw of texts, run seed and task of each part of a measurement."""
    yield from ((0, seed, name) for seed in range(SEEDS) for name in TASKS)
    yield from ((texts, texts, name) for texts in range(1, draws_of_texts) for name in TASKS)


def measure(world: int, data: Path, draws_of_texts: int) -> None:
    """Add a world's rows to the files, stage by stage; stages that are there are not worked out again.

    Other ways of scoring than the default have one seed.
    """
    truth = matched_f1(world, data)
    opened: tuple[dict[str, Reseeded], dict[str, SAE]] = ({}, {})
    at = -1
    for texts, seed, name in stages(draws_of_texts):
        path, reseeded = DOCS / name / "worlds.csv", "texts" if texts else "run"
        old = pd.read_csv(path) if path.exists() else pd.DataFrame(columns=KEYS)
        if ((old["world"] == world) & (old["reseeded"] == reseeded) & (old["seed"] == seed)).any():
            continue
        if texts != at:
            use_world(data, world + 1000 * texts)
            opened, at = contexts(), texts
        ctx = opened[0][name]
        ctx.run_seed = seed
        ctx.site.memo.clear()
        new = []
        for (sae, weights), parameters in product(opened[1].items(), TASKS[name][1] if seed == 0 else [DEFAULT]):
            keys = dict(zip(KEYS, (world, sae, parameters, reseeded, seed), strict=True))
            new.append({**keys, "matched_f1": truth[sae], **scored(name, weights, ctx, parameters)})
        path.parent.mkdir(exist_ok=True)
        pd.concat([old, pd.DataFrame(new)] if len(old) else [pd.DataFrame(new)]).to_csv(path, index=False)
        print(f"world {world}, texts {texts}, seed {seed}: {name}", flush=True)


# -- tables


def spearman(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Rank correlation of the rows of two tables; NaN where one side is constant."""
    x, y = (rankdata(side, axis=-1) - (side.shape[-1] + 1) / 2 for side in (a, b))
    with np.errstate(invalid="ignore"):
        return np.asarray((x * y).sum(-1) / np.sqrt((x * x).sum(-1) * (y * y).sum(-1)))


def interval(values: np.ndarray) -> str:
    low, high = np.nanquantile(values, [0.025, 0.975])
    return f"[{low:.2f}, {high:.2f}]"


def correlations(table: pd.DataFrame, metrics: list[str]) -> pd.DataFrame:
    """Spearman's correlation with matched F1 by world, group of SAEs and way of scoring; SAEs are resampled."""
    runs = table[(table["reseeded"] == "run") & (table["seed"] == 0)]
    out = []
    for world in sorted(runs["world"].unique()):
        for group, names in GROUPS.items():
            drawn = np.random.default_rng(0).integers(len(names), size=(DRAWS, len(names)))
            resampled: dict[str, dict[str, np.ndarray]] = {}
            for parameters in runs["parameters"].unique():
                of = runs[(runs["world"] == world) & (runs["parameters"] == parameters)].set_index("sae").loc[names]
                truth = of["matched_f1"].to_numpy()
                row: dict[str, Any] = {"world": world, "SAEs": group, "parameters": parameters}
                for metric in metrics:
                    score = of[metric].to_numpy()
                    draws = spearman(score[drawn], truth[drawn])
                    resampled.setdefault(metric, {})[parameters] = draws
                    minus = interval(draws - resampled[metric][DEFAULT]) if parameters != DEFAULT else ""
                    row[metric] = f"{float(spearman(score, truth)):.2f} {interval(draws)}"
                    row[f"{metric} minus default"] = minus
                out.append(row)
    return pd.DataFrame(out)


def noise(table: pd.DataFrame, metrics: list[str]) -> pd.DataFrame:
    """Variance over seeds as a share of the variance between the SAEs' means; the oracle left out."""
    kept = table[table["sae"].isin(FAMILY)]
    first = kept[(kept["reseeded"] == "run") & (kept["seed"] == 0)]
    kept = pd.concat([kept, first.assign(reseeded="texts")])
    out = []
    for keys, of in kept.groupby(["world", "parameters", "reseeded"], sort=False):
        if of["seed"].nunique() < SEEDS:
            continue
        by_sae = of.groupby("sae")[metrics]
        share = by_sae.var().mean() / by_sae.mean().var()
        out.append(dict(zip(("world", "parameters", "reseeded"), keys, strict=True)) | (100 * share).round(1).to_dict())
    return pd.DataFrame(out)


def tables() -> None:
    for name, shown in SHOWN.items():
        table = pd.read_csv(DOCS / name / "worlds.csv")
        with pd.option_context("display.width", 250, "display.max_columns", None, "display.max_colwidth", None):
            print(f"\n{name}: Spearman's correlation with matched F1, run seed 0")
            print(correlations(table, shown).to_string(index=False))
            print(f"\n{name}: variance over {SEEDS} seeds, % of the variance between SAEs")
            metrics = [c for c in table.columns if c not in (*KEYS, "matched_f1")]
            print(noise(table, metrics).to_string(index=False))


SHOWN = {
    "sparse_probing": [f"balanced_accuracy_k{k}" for k in (1, 2, 5, 10, 20, 50)],
    "tpp": ["tpp", "intended", "unintended"],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("measure", "tables"))
    parser.add_argument("--world", type=int, default=0, help="seed of the build, by which its rows are known")
    parser.add_argument("--data", type=Path, default=atlas.DATA, help="folder of the build")
    parser.add_argument("--texts", type=int, default=SEEDS, help="draws of the labelled texts")
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.what == "measure":
        measure(args.world, args.data.resolve(), args.texts)
    else:
        tables()


if __name__ == "__main__":
    main()
