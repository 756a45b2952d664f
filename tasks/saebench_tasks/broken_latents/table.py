"""The scenarios trained and judged: a table of outcomes.

    python -m saebench_tasks.broken_latents.table --out DIR [--scenarios GLOB] [--seeds 10] [--l1 V …]
        [--jobs 2] [--quick]

Every finished run is kept as a line of DIR/runs.jsonl and not made again; tables and figures are written at the end,
from all runs asked for. An outcome *holds* when at least .8 of the seeds show it at two or more of the values tried (at
the only one, where one was tried), *in part* when at least half of the seeds do at one, and else *not*.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
import torch
from rich.progress import MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from saebench_meta.errors import BadFileError, SaebenchError, did_you_mean
from saebench_meta.plugins import registry
from saebench_meta.record import canonical_hash
from saebench_meta.sae import SAE, Site
from saebench_meta.store import write_atomic
from saebench_meta.tables import console
from saebench_meta.training.recipe import make_recipe
from saebench_meta.training.run import SiteFacts, to_sae
from saebench_meta.training.trainer import Trainer
from saebench_meta.training.world_feed import WorldFeed
from saebench_meta.worlds import WORLD_HOOK, open_world
from saebench_tasks.broken_latents.kinds import KINDS, RULES, TOKENS, Scores, responses, score, singles_and_pairs
from saebench_tasks.broken_latents.scenarios import SCENARIOS, SCHEME, Scenario

if TYPE_CHECKING:
    from rich.console import Console

    from saebench_meta.training.recipe import Recipe
    from saebench_meta.worlds import World

RUNS = "runs.jsonl"
SEEDS, QUICK_SEEDS = 10, 2
PLAIN_EVERY = 10
"""Runs between two lines of progress where there is no terminal."""
HELD, IN_PART = 0.8, 0.5
FEW = 4
"""Features up to which a picture shows what fires for each and for each two of them."""
TEST_SEED = 1
"""Of the sample that SAEs are judged on; batches are drawn otherwise."""


@dataclass(frozen=True)
class Job:
    """One SAE to train and judge.

    Attributes:
        scenario: its name.
        value: of the scenario's coefficient.
        longer: how many times the scenario's steps.
    """

    scenario: str
    value: float
    seed: int
    longer: int = 1

    @property
    def of(self) -> Scenario:
        return SCENARIOS[self.scenario]


@dataclass(frozen=True)
class Trained:
    """An SAE, and means of its loss over the tenth of the steps before the rate falls, and over the last tenth."""

    sae: SAE
    level: float
    last: float


def recipe_of(job: Job) -> tuple[World, Recipe]:
    """The world, and how the SAE is trained on it."""
    found, scenario = registry(), job.of
    world = open_world(found, f"{SCHEME}:{scenario.world}")
    given = scenario.given(job.value, world.directions.shape[1], job.longer)
    name = scenario.architecture
    return world, make_recipe(found.architectures[name], name, **given, seed=job.seed, data_seed=job.seed)


def train(job: Job) -> Trained:
    """Train a job's SAE on fresh samples of its world."""
    world, recipe = recipe_of(job)
    feed = WorldFeed(world, recipe.batch_size, recipe.data_seed)
    trainer = Trainer(registry().architectures[recipe.architecture], recipe, feed.first())
    batches = feed.batches()
    losses = torch.stack([trainer.step(x).loss for x in islice(batches, recipe.steps)])
    trainer.finish(islice(batches, recipe.threshold_batches))
    facts = SiteFacts(Site(model=world.name, hook=WORLD_HOOK), prepend_bos=False, dataset=world.name)
    tenth, level = max(1, recipe.steps // 10), round(recipe.steps * (1 - recipe.decay))
    means = float(losses[level - tenth : level].mean()), float(losses[-tenth:].mean())
    return Trained(to_sae(trainer.export(), recipe, facts), *means)


def run(job: Job) -> dict[str, Any]:
    """Train, judge, and put into one line of JSON."""
    torch.set_num_threads(1)
    began = time.process_time()
    made = train(job)
    scores = score(made.sae, open_world(registry(), made.sae.info.site.model), seed=TEST_SEED)
    seconds = time.process_time() - began
    loss = {"loss_level": made.level, "loss_last": made.last}
    return {"id": identity(job), **asdict(job), **loss, "seconds": round(seconds, 2), "scores": scores.to_json()}


def identity(job: Job) -> str:
    """What a kept run must have in common with one asked for: recipe, world, rules of judging."""
    world, recipe = recipe_of(job)
    version = registry().worlds[SCHEME].version
    return canonical_hash({"recipe": recipe.digest(), "world": world.name, "version": version, "rules": RULES})


# -- runs kept


def kept(path: Path) -> dict[str, dict[str, Any]]:
    """Runs of the file, by id. A last line that was cut short is left out.

    Raises:
        BadFileError: another line is not one of these.
    """
    if not path.exists():
        return {}
    *lines, last = path.read_text(encoding="utf-8").split("\n")
    found = {}
    for number, line in enumerate(lines, 1):
        try:
            made = json.loads(line)
            found[made["id"]] = made
        except (ValueError, KeyError, TypeError) as e:
            raise BadFileError(f"'{path}', line {number}, is no finished run: remove the line") from e
    if last:
        write_atomic(path, "".join(f"{line}\n" for line in lines).encode())
    return found


def make(jobs: Sequence[Job], out: Path, processes: int, screen: Console) -> list[dict[str, Any]]:
    """Every job's run, those that are kept as they are, the others made; in the order of the jobs."""
    out.mkdir(parents=True, exist_ok=True)
    found = kept(out / RUNS)
    ids = [identity(job) for job in jobs]
    missing = [job for job, id in zip(jobs, ids, strict=True) if id not in found]
    columns = (TextColumn("{task.description}"), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with (out / RUNS).open("a", encoding="utf-8") as file, Progress(*columns, console=screen) as bars:
        bar = bars.add_task("runs", total=len(jobs), completed=len(jobs) - len(missing))
        for made in _finished(missing, processes):
            file.write(json.dumps(made) + "\n")
            file.flush()
            os.fsync(file.fileno())
            found[made["id"]] = made
            bars.update(bar, advance=1, description=made["scenario"])
            if not screen.is_terminal and bars.tasks[bar].completed % PLAIN_EVERY == 0:
                screen.print(f"{bars.tasks[bar].completed:g} of {len(jobs)} runs, now {made['scenario']}")
    return [found[id] for id in ids]


def _finished(jobs: Sequence[Job], processes: int) -> Iterator[dict[str, Any]]:
    if processes == 1 or len(jobs) < 2:
        yield from map(run, jobs)
        return
    with ProcessPoolExecutor(processes, mp_context=multiprocessing.get_context("spawn")) as pool:
        yield from pool.map(run, jobs)


# -- tables


def per_run(runs: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """One row a run: whether it shows the outcome, how many latents of each kind, matches, errors."""
    rows = []
    for made in runs:
        scores, scenario = Scores.from_json(made["scores"]), SCENARIOS[made["scenario"]]
        decoder, encoder = scores.matched("decoder"), scores.matched("encoder")
        row: dict[str, Any] = {name: made[name] for name in ("scenario", "value", "seed", "longer")}
        row |= {"shows": all(scenario.shows(scores).values()), **{str(kind): scores.count(kind) for kind in KINDS}}
        row |= {"decoder_cosine": decoder.cosine.mean(), "encoder_cosine": encoder.cosine.mean()}
        row |= {name: getattr(decoder, name).mean() for name in ("precision", "recall", "f1")}
        row |= {"fvu": scores.fvu, "l0": scores.l0}
        rows.append(row | {name: made[name] for name in ("loss_level", "loss_last", "seconds")})
    return pd.DataFrame(rows)


def per_clause(runs: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """Share of the seeds at which each clause holds, by scenario and value."""
    rows = [
        {"scenario": made["scenario"], "value": made["value"], "clause": words, "share": holds}
        for made in runs
        for words, holds in SCENARIOS[made["scenario"]].shows(Scores.from_json(made["scores"])).items()
    ]
    return pd.DataFrame(rows).groupby(["scenario", "value", "clause"], sort=False, as_index=False).mean()


def verdict(shares: Sequence[float]) -> str:
    """`held`, `in part` or `not`, from the shares of seeds at each value; see above."""
    if sum(share >= HELD for share in shares) >= min(2, len(shares)):
        return "held"
    return "in part" if max(shares) >= IN_PART else "not"


def per_scenario(table: pd.DataFrame) -> pd.DataFrame:
    """One row a scenario: outcome, definition, share of seeds by value, verdict, mean number of latents a kind."""
    rows = []
    for name, group in table.groupby("scenario", sort=False):
        scenario = SCENARIOS[str(name)]
        shares = group.groupby("value").shows.agg(["sum", "count"])
        means = group[list(KINDS)].mean()
        rows.append(
            {
                "scenario": name,
                "outcome": scenario.outcome,
                "definition": "; ".join(words for words, _ in scenario.clauses),
                "varied": scenario.coefficient,
                "seeds that show it": " · ".join(f"{v:g}: {n}/{of}" for v, (n, of) in shares.iterrows()),
                "verdict": verdict((shares["sum"] / shares["count"]).tolist()),
                "latents": ", ".join(f"{means[kind]:.1f} {kind}" for kind in KINDS if means[kind] >= 0.05),
            }
        )
    return pd.DataFrame(rows)


def markdown(table: pd.DataFrame) -> str:
    """A table for the documentation: one for the post's scenarios, one for the others."""
    parts = []
    for group in ("post", "others"):
        mine = table[[SCENARIOS[name].group == group for name in table.scenario]]
        if group == "others":
            mine = mine.drop(columns="outcome")
        if len(mine):
            lines = [list(mine.columns), ["---"] * len(mine.columns), *mine.astype(str).to_numpy().tolist()]
            parts.append("\n".join("| " + " | ".join(cells) + " |" for cells in lines))
    return "\n\n".join(parts) + "\n"


# -- the command


def jobs_for(names: Sequence[str], seeds: int, l1: Sequence[float], quick: bool, longer: int) -> list[Job]:
    """What is to be trained.

    Args:
        l1: values in place of the scenarios' own, where that is what they vary.
        quick: two seeds, and of the values the middle one.
    """
    jobs = []
    for name in names:
        scenario = SCENARIOS[name]
        values = tuple(l1) if l1 and scenario.coefficient == "l1" else scenario.values
        if quick:
            values, seeds = values[len(values) // 2 :][:1], min(seeds, QUICK_SEEDS)
        jobs += [Job(name, value, seed, longer) for value in values for seed in range(seeds)]
    return jobs


def parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command's arguments."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for runs, tables and figures")
    parser.add_argument("--scenarios", default="*", help="glob over their names")
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("--l1", type=float, nargs="+", default=(), help="in the post's units, in place of the grid")
    parser.add_argument("--jobs", type=int, default=1, help="processes, of one thread each")
    parser.add_argument("--quick", action="store_true", help="two seeds, the middle value of each grid")
    parser.add_argument("--longer", type=int, default=1, help="times the steps, to see whether outcomes are stable")
    parser.add_argument("--no-figures", action="store_true")
    asked = parser.parse_args(arguments)
    if min(asked.seeds, asked.jobs, asked.longer) < 1:
        parser.error("--seeds, --jobs and --longer must be at least 1")
    return asked


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command.

    Raises:
        SaebenchError: no scenario of that name, or a file of kept runs that is damaged.
    """
    asked, screen = parsed(arguments), console(err=True)
    names = [name for name in SCENARIOS if fnmatchcase(name, asked.scenarios)]
    if not names:
        raise SaebenchError(
            f"no scenario is called '{asked.scenarios}'{did_you_mean(asked.scenarios, list(SCENARIOS))}"
        )
    jobs = jobs_for(names, asked.seeds, asked.l1, asked.quick, asked.longer)
    runs = make(jobs, asked.out, asked.jobs, screen)
    table = per_run(runs)
    summary = per_scenario(table)
    frames = {"runs": table, "clauses": per_clause(runs), "table": summary}
    for name, frame in frames.items():
        write_atomic(asked.out / f"{name}.csv", frame.to_csv(index=False, float_format="%.5g").encode())
    write_atomic(asked.out / "table.md", markdown(summary).encode())
    if not asked.no_figures:
        for name in (name for name in names if SCENARIOS[name].group == "post"):
            draw(example(name, table), asked.out / f"{name}.svg")
    screen.print(summary[["scenario", "seeds that show it", "verdict"]].to_string(index=False))


def example(name: str, table: pd.DataFrame) -> Job:
    """The run to draw: of the middle value, the first seed that shows the outcome, or else the first."""
    mine = table[table.scenario == name]
    values = sorted(mine.value.unique())
    mine = mine[mine.value == values[len(values) // 2]]
    row = mine.sort_values(["shows", "seed"], ascending=[False, True]).iloc[0]
    return Job(name, float(row["value"]), int(row["seed"]), int(row["longer"]))


def draw(job: Job, path: Path) -> None:
    """Train a job's SAE again and draw it."""
    from saebench_tasks.broken_latents import figures

    sae, world = train(job).sae, recipe_of(job)[0]
    scores = score(sae, world, seed=TEST_SEED)
    codes = sae.encode(world.sample(TOKENS, TEST_SEED)[0]).numpy()
    scenario = job.of
    title = f"{job.scenario}, {scenario.coefficient} {job.value:g}, seed {job.seed}"
    sets = singles_and_pairs(scores.parents) if len(world.features) <= FEW else []
    names = ["+".join(map(str, features)) for features in sets]
    fired = dict(zip(names, responses(sae, world, sets), strict=True))
    figures.save(figures.picture(scores, codes, fired, title, tied=scenario.architecture == "tied"), path)


if __name__ == "__main__":
    try:
        main()
    except SaebenchError as e:
        raise SystemExit(f"error: {e}") from None
