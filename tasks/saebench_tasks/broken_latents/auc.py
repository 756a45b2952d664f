"""How well the dip tells broken latents from sound ones, where the truth is known.

    python -m saebench_tasks.broken_latents.auc --out DIR [--scenarios GLOB] [--seeds 2] [--first-seed 100]
        [--spread 0 0.3]

Trains the scenarios' SAEs at the middle value of their coefficient, on their worlds and on the same with magnitudes
that vary by ± the spread, so that peaks overlap; those that are in DIR/saes are not trained again. For every latent the
dip is taken in several ways, of which the task's is one. Sound latents are those of kind `exact`; broken ones of the
kinds `mixed`, `combination`, `absorbing` and `absorbed`, which stand for something else than one feature. The AUC is
the probability that a broken latent has the larger dip of the two (a tie counts half); its interval comes from
resampling SAEs. Scenarios of one latent, which is never sound, are left out.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from scipy.stats import rankdata

from saebench_meta.plugins import registry
from saebench_meta.sae import Site
from saebench_meta.store import write_atomic
from saebench_meta.tables import console
from saebench_meta.training import loop
from saebench_meta.training.run import SiteFacts
from saebench_meta.training.world_feed import WorldFeed
from saebench_meta.worlds import WORLD_HOOK
from saebench_tasks.broken_latents.dip import dip, p_values
from saebench_tasks.broken_latents.kinds import TOKENS, score
from saebench_tasks.broken_latents.peaks import FLOOR, RESOLUTION, collect
from saebench_tasks.broken_latents.scenarios import SCENARIOS
from saebench_tasks.broken_latents.table import Job, recipe_of

if TYPE_CHECKING:
    from jaxtyping import Float

    from saebench_meta.sae import SAE
    from saebench_meta.worlds import World

SOUND = ("exact",)
BROKEN = ("mixed", "combination", "absorbing", "absorbed")
MOST, LEAST = 1000, 50
LEVEL = 0.05
FEWEST = 5
"""Latents on each side for which an AUC is given."""
RESAMPLES = 1000
SPREADS = (0.0, 0.3)
FIRST_SEED = 100
"""The task's way of taking the dip was chosen on seeds 0 to 2 of other trainings."""
TEST_SEED = 1

WAYS = {
    f"{space}, floor {floor:g}, resolution {width:g}": (space, floor, width)
    for space in ("log", "value")
    for floor in (0.0, FLOOR, 0.2)
    for width in (0.0, RESOLUTION, 2 * RESOLUTION)
}
"""Activations or their logarithms, above a share of the largest, with normal noise of that standard deviation."""
OURS = f"log, floor {FLOOR:g}, resolution {RESOLUTION:g}"


def latents(job: Job, spread: float, folder: Path) -> Iterator[dict[str, Any]]:
    """One row for every latent of a job's SAE with activations enough: its kind, and the dip taken in all ways."""
    world, sae = trained(job, spread, folder)
    kinds = score(sae, world, seed=TEST_SEED).kinds
    rng = np.random.default_rng(job.seed)
    firings = collect([sae.encode_sparse(world.sample(TOKENS, TEST_SEED)[0])], sae.d_sae, TOKENS, MOST, rng)
    noise = rng.standard_normal(TOKENS)
    for latent, kind in enumerate(kinds):
        part = slice(firings.indptr[latent], firings.indptr[latent + 1])
        values, own = firings.values[part].astype(np.float64), noise[firings.tokens[part]]
        if (values > FLOOR * values.max(initial=0)).sum() < LEAST:
            continue
        row: dict[str, Any] = {"scenario": job.scenario, "world": job.of.world, "architecture": job.of.architecture}
        row |= {"spread": spread, "seed": job.seed, "latent": latent, "kind": kind}
        for name, way in WAYS.items():
            row[name], n = dip_of(values, own, *way)
            if name == OURS:
                row["p"] = float(p_values(np.array([row[name]]), np.array([n]))[0])
        yield row


def dip_of(
    values: Float[np.ndarray, " n"], noise: Float[np.ndarray, " n"], space: str, floor: float, width: float
) -> tuple[float, int]:
    """The dip of the activations above a floor, and how many these are."""
    above = values > floor * values.max()
    u = values[above] / values.max()
    return dip((np.log(u) if space == "log" else u) + width * noise[above]), len(u)


def trained(job: Job, spread: float, folder: Path) -> tuple[World, SAE]:
    """A job's SAE on its world with spread magnitudes, from the folder where it is there."""
    found = registry()
    world, recipe = recipe_of(job)
    varied: Any = world
    world = replace(varied, spread=spread)
    feed = WorldFeed(world, recipe.batch_size, recipe.data_seed)
    facts = SiteFacts(Site(model=world.name, hook=WORLD_HOOK), prepend_bos=False, dataset=world.name)
    place = folder / f"{job.scenario}-{spread:g}-{recipe.digest()[:8]}"
    (made,) = loop.train(found.architectures, [recipe], feed, place, facts, found.loaders["native"])
    return world, made.sae


# -- figures over latents


def auc(broken: Float[np.ndarray, " n"], sound: Float[np.ndarray, " m"]) -> float:
    """Probability that one of the broken has the larger value (Mann and Whitney's U); NaN where a side is empty."""
    if not (len(broken) and len(sound)):
        return float("nan")
    n = len(broken)
    ranks = rankdata(np.concatenate([broken, sound]))[:n]
    return float(ranks.sum() - n * (n + 1) / 2) / (n * len(sound))


def auc_with_interval(rows: pd.DataFrame, way: str) -> dict[str, float]:
    """AUC of a way of taking the dip for broken latents against sound ones, with a 95 % interval over SAEs."""
    groups = [
        (g.loc[g.kind.isin(BROKEN), way].to_numpy(), g.loc[g.kind.isin(SOUND), way].to_numpy())
        for _, g in rows.groupby(["scenario", "spread", "seed"])
    ]
    rng = np.random.default_rng(0)
    draws = [_pooled([groups[i] for i in rng.integers(0, len(groups), len(groups))]) for _ in range(RESAMPLES)]
    low, high = np.nanquantile(draws, (0.025, 0.975))
    return {"auc": _pooled(groups), "low": float(low), "high": float(high)}


def _pooled(groups: Sequence[tuple[np.ndarray, np.ndarray]]) -> float:
    broken, sound = (np.concatenate(side) for side in zip(*groups, strict=True))
    return auc(broken, sound)


def by_way(rows: pd.DataFrame) -> pd.DataFrame:
    """AUC of every way of taking the dip, over all latents."""
    return pd.DataFrame([{"way": way, **auc_with_interval(rows, way)} for way in WAYS])


def by_group(rows: pd.DataFrame) -> pd.DataFrame:
    """The task's way by architecture, world, kind of latent and spread: AUC, and shares of latents found multimodal."""
    groups = [("all", "all", rows)]
    groups += [(by, str(value), g) for by in ("architecture", "world", "spread") for value, g in rows.groupby(by)]
    groups += [("kind", kind, rows[rows.kind.isin([kind, *SOUND])]) for kind in BROKEN]
    table = []
    for by, value, mine in groups:
        broken, sound = mine[mine.kind.isin(BROKEN)], mine[mine.kind.isin(SOUND)]
        if min(len(broken), len(sound)) >= FEWEST:
            row = {"by": by, "group": value, "n_broken": len(broken), "n_sound": len(sound)}
            found = {"found_broken": (broken.p <= LEVEL).mean(), "found_sound": (sound.p <= LEVEL).mean()}
            table.append(row | auc_with_interval(mine, OURS) | found)
    return pd.DataFrame(table)


# -- the command


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for SAEs and tables")
    parser.add_argument("--scenarios", default="*", help="glob over their names")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--first-seed", type=int, default=FIRST_SEED)
    parser.add_argument("--spread", type=float, nargs="+", default=SPREADS)
    asked = parser.parse_args(arguments)
    screen = console(err=True)
    rows: list[dict[str, Any]] = []
    names = [n for n, scenario in SCENARIOS.items() if fnmatchcase(n, asked.scenarios) and scenario.d_sae > 1]
    for name in names:
        values = SCENARIOS[name].values
        for spread in asked.spread:
            for seed in range(asked.first_seed, asked.first_seed + asked.seeds):
                rows += latents(Job(name, values[len(values) // 2], seed), spread, asked.out / "saes")
        screen.print(f"{name}: {len(rows)} latents so far")
    table = pd.DataFrame(rows)
    frames = {"dips": table, "ways": by_way(table), "groups": by_group(table)}
    for name, frame in frames.items():
        write_atomic(asked.out / f"{name}.csv", frame.to_csv(index=False, float_format="%.5g").encode())
    screen.print(frames["groups"].to_string(index=False))


if __name__ == "__main__":
    main()
