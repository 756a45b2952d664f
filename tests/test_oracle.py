"""The control `oracle` and the need `truth`, on worlds that a plugin says it knows."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import toy_plugin

from saebench_meta.errors import UnmetNeedError
from saebench_meta.hookspecs import DataIdentity, DatasetLoader, ModelIdentity, ModelLoader, hookimpl
from saebench_meta.plan import Unit, describe, make_plan
from saebench_meta.plugins import Registry
from saebench_meta.record import Record
from saebench_meta.runner import execute
from saebench_meta.settings import Settings
from saebench_meta.stats import census
from saebench_meta.task import Metric, Output, task
from saebench_meta.testing.declared import task_faults
from saebench_meta.worlds import KnownTruth

MODEL, ORACLE = "no-such-model", "toy:x-32"


def known(**fields: Any) -> KnownTruth:
    """A truth about the SAEs of the toy plugin."""
    given = {"model": MODEL, "oracles": {toy_plugin.HOOK: ORACLE}, "corpora": ("texts",), "version": 3, **fields}
    return KnownTruth(features=lambda: ("a",), annotate=lambda ref, *, split: [], **given)


@task(
    "widths",
    version=1,
    metrics=[
        Metric("width", better="higher", unit="latents", expects="oracle>trained", why="it is wider", help="d_sae")
    ],
    controls=("permuted_rows",),
)
def widths(sae: Any, ctx: Any) -> Output:
    """Number of latents."""
    return Output(estimates={"width": census(sae.d_sae, sae.d_sae)})


@task("knowing", version=1, needs=["truth"], metrics=[Metric("one", better="neither", unit="1")], controls=())
def knowing(sae: Any, ctx: Any) -> Output:
    """Needs the truth."""
    raise AssertionError("never run here")


def registry_with(truths: Mapping[str, KnownTruth] | None = None) -> Registry:
    """The toy plugin, a model and a corpus that are planned with but never opened, two tasks, and truths."""
    module = ModuleType("known_world")

    def loaders() -> Any:
        return {MODEL: ModelLoader(load=pytest.fail, peek=lambda ref, *, revision: ModelIdentity(MODEL))}

    def datasets() -> Any:
        names = ("texts", "other")
        return {n: DatasetLoader(pytest.fail, peek=lambda ref, *, n=n, **_: DataIdentity(n)) for n in names}

    module.__dict__.update(
        saebench_api=1,
        saebench_language_models=hookimpl(loaders),
        saebench_datasets=hookimpl(datasets),
        saebench_tasks=hookimpl(lambda: [widths, knowing]),
        saebench_truths=hookimpl(lambda: truths or {}),
    )
    made = Registry()
    for plugin in (toy_plugin, module):
        assert made.register(plugin).problems == []
    return made


def planned(registry: Registry, **fields: Any) -> Unit:
    settings = Settings(**{"saes": ("toy:x-16",), "tasks": ("widths",), **fields})
    (unit,) = make_plan(registry, settings).units
    return unit


def record_of(registry: Registry, out: Path, **fields: Any) -> Record:
    settings = Settings(**{"saes": ("toy:x-16",), "tasks": ("widths",), "out": out, **fields})
    (result,) = execute(registry, make_plan(registry, settings), settings).results
    assert result.record is not None and result.status == "ok", result.reason
    return result.record


# -- the oracle


def test_the_oracle_runs_beside_a_task_that_does_not_name_it(tmp_path: Path) -> None:
    record = record_of(registry_with({"w": known()}), tmp_path)
    width = record.metrics["width"]
    assert {name: c.value for name, c in width.controls.items()} == {"permuted_rows": 16, "oracle": 32}
    assert width.order is not None and width.order.holds
    assert record.notes == [f"the control 'oracle' is {ORACLE}"]


def test_the_oracle_takes_the_place_of_the_sae_under_test_in_a_pair_and_of_none_in_a_family(tmp_path: Path) -> None:
    registry = registry_with({"w": known()})
    pair = record_of(registry, tmp_path, tasks=("toy_pair",), reference="toy:x-8")
    assert pair.metrics["ratio"].controls["oracle"].value == 32 / 8
    family = make_plan(registry, Settings(family=("toy:x-8", "toy:x-16"), tasks=("toy_family",))).units
    assert [unit.controls for unit in family] == [()]  # a family of copies of one dictionary says nothing


def test_a_run_does_a_task_on_the_oracle_once_for_each_of_its_parameters(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []

    @task("counting", version=1, metrics=[Metric("one", better="neither", unit="1")], controls=())
    def counting(sae: Any, ctx: Any, *, times: int = 1) -> Output:
        """Counts."""
        seen.append((sae.d_sae, times))
        return Output(estimates={"one": census(sae.d_sae, 1)})

    registry = registry_with({"w": known()})
    module = ModuleType("counting_plugin")
    module.__dict__.update(saebench_api=1, saebench_tasks=hookimpl(lambda: [counting]))
    registry.register(module)
    settings = Settings(saes=("toy:x-8", "toy:x-16"), tasks=("counting",), out=tmp_path)
    results = execute(registry, make_plan(registry, settings), settings).results
    assert seen == [(8, 1), (32, 1), (16, 1)]
    for result in results:
        assert result.record is not None and result.record.metrics["one"].controls["oracle"].value == 32


def test_where_no_oracle_is_known_nothing_is_said_of_it(tmp_path: Path) -> None:
    elsewhere = known(oracles={"blocks.0.hook_resid_post": ORACLE})
    for n, truths in enumerate(({}, {"w": elsewhere}, {"w": known(model="another")})):
        record = record_of(registry_with(truths), tmp_path / str(n))
        assert set(record.metrics["width"].controls) == {"permuted_rows"} and record.notes == []


def test_the_oracle_is_part_of_the_id() -> None:
    without, w, other = (
        planned(registry_with(truths)).place.id
        for truths in ({}, {"w": known()}, {"w": known(oracles={toy_plugin.HOOK: "toy:x-8"})})
    )
    assert len({without, w, other}) == 3
    again = planned(registry_with({"renamed": known()}))
    assert again.place.id == w
    assert describe(again, Settings())["controls"] == ["permuted_rows", "oracle"]


def test_the_oracle_is_no_control_of_itself() -> None:
    unit = planned(registry_with({"w": known()}), saes=(ORACLE,))
    assert unit.oracle is None and unit.controls == ("permuted_rows",)


def test_an_oracle_that_cannot_be_had_is_told_and_the_run_goes_on() -> None:
    registry = registry_with({"w": known(oracles={toy_plugin.HOOK: "nowhere:x"})})
    made = make_plan(registry, Settings(saes=("toy:x-16",), tasks=("widths",)))
    assert made.units[0].oracle is None
    (notice,) = made.notices
    assert "the control 'oracle' is left out: no SAE loader is called 'nowhere'" in notice


def test_an_oracle_of_another_hook_is_left_out() -> None:
    hook = "blocks.0.hook_resid_post"
    registry = registry_with({"w": known(oracles={hook: ORACLE})})
    made = make_plan(registry, Settings(saes=("toy:x-16",), tasks=("widths",), hook=hook))
    assert made.units[0].oracle is None
    (notice,) = made.notices
    assert f"reads {toy_plugin.HOOK}, 4 wide, not {hook}, 4 wide" in notice


def test_a_task_may_expect_an_order_with_the_oracle_without_naming_it_as_a_control() -> None:
    registry = registry_with()
    assert task_faults(registry, widths) == ["no metric is marked `main=True`, so the short table is empty"]


# -- the truth


def test_the_need_is_met_where_the_corpus_is_annotated() -> None:
    registry = registry_with({"w": known()})
    met = planned(registry, tasks=("knowin*",), model=MODEL, corpus="texts")
    assert (met.unmet, met.truth) == (None, "w") and met.inputs is not None
    newer = planned(registry_with({"w": known(version=4)}), tasks=("knowin*",), model=MODEL, corpus="texts")
    assert newer.place.id != met.place.id
    unmet = planned(registry, tasks=("knowin*",), model=MODEL, corpus="other")
    assert unmet.unmet == f"the truth of {MODEL} on other is not known (known: {MODEL} on texts)"
    with pytest.raises(UnmetNeedError, match="known: none is installed"):
        planned(registry_with(), tasks=("knowing",), model=MODEL, corpus="texts")


def test_a_task_that_asks_for_the_truth_without_saying_so_is_told(tmp_path: Path) -> None:
    @task("asking", version=1, metrics=[Metric("one", better="neither", unit="1")], controls=())
    def asking(sae: Any, ctx: Any) -> Output:
        """Asks."""
        ctx.truth()
        raise AssertionError

    registry = registry_with({"w": known()})
    module = ModuleType("asking_plugin")
    module.__dict__.update(saebench_api=1, saebench_tasks=hookimpl(lambda: [asking]))
    registry.register(module)
    settings = Settings(saes=("toy:x-16",), tasks=("asking",), out=tmp_path)
    (result,) = execute(registry, make_plan(registry, settings), settings).results
    assert result.status == "skipped" and "add 'truth' to its needs" in (result.reason or "")
