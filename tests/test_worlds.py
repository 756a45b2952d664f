"""Worlds drawn directly: found by name, trained on, and no language model."""

from __future__ import annotations

import json
from itertools import islice
from pathlib import Path
from types import ModuleType
from typing import Any

import planted_world
import pytest
import torch
from click.testing import CliRunner, Result
from planted_world import WORLDS, Planted, registry_with

from saebench_meta import load_sae, plugins
from saebench_meta.cli import saebench
from saebench_meta.errors import SaebenchError, UnknownNameError
from saebench_meta.hookspecs import hookimpl
from saebench_meta.plan import Plan, make_plan
from saebench_meta.plugins import Registry
from saebench_meta.settings import Settings
from saebench_meta.task import Metric, Output, task
from saebench_meta.training.trainable import Processes
from saebench_meta.training.world_feed import WorldFeed
from saebench_meta.worlds import is_world, open_world


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch) -> Registry:
    """The installed plugins and the worlds of these tests, for commands too."""
    found = registry_with(planted_world)
    monkeypatch.setattr(plugins, "registry", lambda: found)
    return found


def call(*arguments: str | Path) -> Result:
    return CliRunner().invoke(saebench, [*map(str, arguments)], standalone_mode=False)


# -- by name


def test_a_world_is_opened_by_its_reference_and_another_is_suggested(registry: Registry) -> None:
    assert open_world(registry, "planted:3") is WORLDS["3"]
    assert is_world(registry, "planted:3")
    assert not is_world(registry, "planted") and not is_world(registry, "gpt2")
    with pytest.raises(UnknownNameError, match=r"'planted' has no world '33'; did you mean '3'\?"):
        open_world(registry, "planted:33")
    with pytest.raises(UnknownNameError, match=r"no world is called 'plantd'; did you mean 'planted'\?"):
        open_world(registry, "plantd:3")
    with pytest.raises(SaebenchError, match=r"'planted' is no world: give scheme:NAME"):
        open_world(registry, "planted")


def test_a_plugin_must_give_loaders_of_worlds() -> None:
    module = ModuleType("wrong")
    module.__dict__.update(saebench_api=1, saebench_worlds=hookimpl(saebench_worlds))
    problems = Registry().register(module).problems
    assert problems == ["saebench_worlds failed: TypeError: world 'planted' is a Planted, expected WorldLoader"]


def saebench_worlds() -> Any:
    return {"planted": Planted(3)}


# -- a feed


def taken(feed: WorldFeed, n: int, start: int = 0) -> list[torch.Tensor]:
    return list(islice(feed.batches(start), n))


def test_a_batch_follows_from_the_seed_and_its_number_and_is_never_seen_again() -> None:
    feed = WorldFeed(WORLDS["5"], 64, 3)
    batches = taken(feed, 4)
    assert torch.equal(feed.first(), batches[0])
    assert all(torch.equal(a, b) for a, b in zip(taken(WorldFeed(WORLDS["5"], 64, 3), 2, 2), batches[2:], strict=True))
    others = [*batches, *taken(WorldFeed(WORLDS["5"], 64, 4), 4)]
    assert not any(torch.equal(a, b) for i, a in enumerate(others) for b in others[:i])
    assert all(x.shape == (64, 6) and x.dtype == torch.float32 for x in batches) and feed.d_in == 6


def test_processes_share_a_batch_of_a_world() -> None:
    whole, parts = WorldFeed(WORLDS["3"], 12, 0), []
    for rank in range(3):
        processes = Processes()
        processes.rank, processes.count = rank, 3
        parts.append(WorldFeed(WORLDS["3"], 12, 0, processes=processes))
    for step, x in enumerate(taken(whole, 3)):
        shares = [taken(p, 1, step)[0] for p in parts]
        assert torch.equal(torch.stack(shares, 1).flatten(0, 1), x)
    assert all(torch.equal(p.first(), whole.first()) for p in parts)
    with pytest.raises(SaebenchError, match="multiple of 3"):
        WorldFeed(WORLDS["3"], 10, 0, processes=parts[0].processes)


def test_a_feed_is_named_by_its_world_the_loaders_version_and_the_seed() -> None:
    said = [
        WorldFeed(WORLDS[n], size, seed, version=v).identity()
        for n, size, seed, v in (("3", 8, 0, 1), ("5", 8, 0, 1), ("3", 4, 0, 1), ("3", 8, 1, 1), ("3", 8, 0, 2))
    ]
    assert len({json.dumps(s, sort_keys=True) for s in said}) == 5


# -- training


NAME = "relu-6-l10.01-s0"
RECIPE = {"arch": "relu", "width": 6, "l1": 0.01, "tokens": "300k", "batch-size": 256, "lr": 0.003}
ARGUMENTS = [word for name, value in RECIPE.items() for word in (f"--{name}", str(value))]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an SAE that learnt planted:3."""
    out = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        found = registry_with(planted_world)
        patch.setattr(plugins, "registry", lambda: found)
        done = call("train", "--world", "planted:3", *ARGUMENTS, "-o", out)
    assert done.exit_code == 0, done.output
    assert f"saebench truth {out / NAME}" in done.output
    return out / NAME


def test_an_sae_trained_on_a_world_learns_its_features_and_says_where_it_reads(trained: Path) -> None:
    sae = load_sae(str(trained))
    assert (str(sae.info.site), sae.info.prepend_bos, sae.info.context_size) == ("planted:3/x", False, None)
    best = (sae.unit_decoder() @ WORLDS["3"].directions.T).max(0).values
    assert bool((best > 0.99).all())
    written = json.loads((trained / "training.json").read_text())
    assert written["feed"]["world"] == {"ref": "planted:3", "version": 7}


def test_a_finished_training_on_a_world_is_kept_and_another_world_is_another_training(
    registry: Registry, trained: Path
) -> None:
    before = (trained / "sae.safetensors").read_bytes()
    again = call("train", "--world", "planted:3", *ARGUMENTS, "-o", trained.parent)
    assert again.exit_code == 0 and "step" not in again.stderr
    assert (trained / "sae.safetensors").read_bytes() == before
    other = call("train", "--world", "planted:5", *ARGUMENTS, "-o", trained.parent)
    assert other.exit_code == 2 and "on other data" in other.stderr


def test_a_dry_run_names_the_world(registry: Registry, tmp_path: Path) -> None:
    shown = call("train", "--world", "planted:3", *ARGUMENTS, "-o", tmp_path / "out", "--dry-run")
    assert "on planted:3, into" in shown.output and not (tmp_path / "out").exists()


@pytest.mark.parametrize("more", ["--model atlas", "--hook x", "--corpus atlas", "--split train", "--revision main"])
def test_a_world_leaves_no_room_for_a_model_or_a_corpus(registry: Registry, tmp_path: Path, more: str) -> None:
    refused = call("train", "--world", "planted:3", *more.split(), *ARGUMENTS, "-o", tmp_path)
    assert refused.exit_code == 2 and f"--world and {more.split()[0]}" in refused.stderr


def test_a_world_that_is_not_there_is_told_before_anything_is_written(registry: Registry, tmp_path: Path) -> None:
    refused = call("train", "--world", "planted:4", *ARGUMENTS, "-o", tmp_path / "out")
    assert refused.exit_code == 2 and "no world '4'" in refused.stderr and not (tmp_path / "out").exists()


# -- running


@task(
    "worldly",
    version=1,
    metrics=[Metric("norm", better="neither", unit="1")],
    controls=(),
)
def worldly(sae: Any, ctx: Any) -> Output:
    """Mean norm of samples of the SAE's own world."""
    x, _ = ctx.world(sae.info.site.model).sample(1000, ctx.seed)
    return Output(estimates={"norm": ctx.census(float(x.norm(dim=1).mean()), 1000)})


def plan(registry: Registry, trained: Path, *tasks: str) -> Plan:
    return make_plan(registry, Settings(saes=(str(trained),), tasks=tasks))


def test_tasks_that_read_activations_say_why_they_do_not_run_on_a_world(registry: Registry, trained: Path) -> None:
    (unit,) = plan(registry, trained, "cor[e]").units
    assert unit.unmet is not None and "reads the world planted:3, which is no language model" in unit.unmet
    with pytest.raises(SaebenchError, match="saebench truth"):
        plan(registry, trained, "core")


def test_a_task_opens_worlds_through_its_context(registry: Registry, trained: Path, tmp_path: Path) -> None:
    from saebench_meta.runner import execute

    module = ModuleType("worldly_plugin")
    module.__dict__.update(saebench_api=1, saebench_tasks=hookimpl(saebench_tasks))
    assert registry.register(module).problems == []
    settings = Settings(saes=(str(trained),), tasks=("worldly",), out=tmp_path)
    (result,) = execute(registry, make_plan(registry, settings), settings).results
    assert result.record is not None and result.status == "ok"
    x, _ = WORLDS["3"].sample(1000, 0)
    assert result.record.metrics["norm"].value == pytest.approx(float(x.norm(dim=1).mean()))


def saebench_tasks() -> Any:
    return [worldly]
