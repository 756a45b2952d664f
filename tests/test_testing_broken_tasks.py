"""Every rule for tasks is broken by a task made for it; a sound one keeps them all."""

from __future__ import annotations

import importlib.metadata as metadata
import itertools
import random
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
import torch

from saebench_meta import hookimpl
from saebench_meta.hookspecs import PROJECT
from saebench_meta.plugins import Registry
from saebench_meta.task import Metric, Output, Task, task
from saebench_meta.testing import FaultError, attempt_all, check_task
from saebench_meta.testing.declared import declared_checks
from saebench_meta.testing.tasks import CHECKS, task_checks
from saebench_meta.testing.world import World

pytestmark = pytest.mark.slow

RUNS = itertools.count()
HELP = "A number."


def made(name: str, value: Callable[[Any, Any], float | None], *, needs: tuple[str, ...] = (), **changes: Any) -> Task:
    """A task of one number."""
    metric = Metric("m", "neither", "1", main=True, help=HELP)

    @task(name, **{"version": 1, "needs": needs, "metrics": [metric], "controls": ["random"], **changes})
    def function(sae: Any, ctx: Any) -> Output:
        """Measures something."""
        return Output(estimates={"m": ctx.census(value(sae, ctx), sae.d_sae)})

    return function


def crowding(sae: Any, _: Any) -> float:
    """The largest cosine of two decoder rows."""
    rows = sae.unit_decoder()
    return float(((rows @ rows.T).abs() - 2 * torch.eye(len(rows))).max())


def mean_l0(sae: Any, ctx: Any) -> float:
    return float(ctx.codes(sae).l0().double().mean())


def of_first_document(_: Any, ctx: Any) -> float:
    sample = ctx.sample()
    return float((sample.document == sample.document[0, 1]).sum())


DATA = ("activations",)
SOUND = made("sound", lambda sae, ctx: mean_l0(sae, ctx) + crowding(sae, ctx), needs=DATA)
BROKEN: dict[str, Task] = {
    "runs and gives intervals": made("raises", lambda sae, ctx: 1 / 0),
    "its controls differ from the SAE": made("same", lambda sae, ctx: float(sae.d_sae)),
    "the same numbers every time": made("drifts", lambda sae, ctx: crowding(sae, ctx) + next(RUNS)),
    "the order of latents is nothing to it": made("ordered", lambda sae, ctx: float(sae.W_dec[:64].sum())),
    "the size of codes is nothing to it": made("sized", lambda sae, ctx: float(sae.W_dec.norm(dim=1).mean())),
    "the batch size is nothing to it": made(
        "batched", lambda sae, ctx: mean_l0(sae, ctx) + (ctx.batch_size or 0), needs=DATA
    ),
    "padding is nothing to it": made(
        "padded", lambda sae, ctx: mean_l0(sae, ctx) * ctx.sample().tokens.shape[1], needs=DATA
    ),
    "the order of documents is nothing to it": made(
        "first_document", lambda sae, ctx: mean_l0(sae, ctx) + of_first_document(sae, ctx), needs=DATA
    ),
}
GLOBAL = made("global_chance", lambda sae, ctx: crowding(sae, ctx) + 0 * random.random())


@pytest.fixture(scope="module")
def module() -> ModuleType:
    plugin = ModuleType("broken_tasks")
    plugin.saebench_api = 1  # type: ignore[attr-defined]
    plugin.saebench_tasks = hookimpl(lambda: [SOUND, *BROKEN.values(), GLOBAL])  # type: ignore[attr-defined]
    return plugin


@pytest.fixture(scope="module")
def registry(module: ModuleType) -> Registry:
    found = Registry()
    found.discover(metadata.entry_points(group=PROJECT))
    assert found.register(module).problems == []
    return found


@pytest.fixture(scope="module")
def world(registry: Registry) -> World:
    return World(registry)


def fault(registry: Registry, world: World, name: str, rule: str) -> str:
    checks = [check for check in task_checks(registry, name, world=world) if check.title == rule]
    (outcome,) = attempt_all(checks)
    assert outcome.status == "fault"
    return outcome.reason


def test_every_rule_has_a_task_that_breaks_it() -> None:
    assert set(BROKEN) == set(CHECKS)


def test_a_sound_task_keeps_every_rule(registry: Registry, world: World) -> None:
    outcomes = list(attempt_all(task_checks(registry, "sound", world=world)))
    assert [o for o in outcomes if o.status != "ok"] == []


@pytest.mark.parametrize("rule", BROKEN)
def test_a_broken_task_breaks_its_rule(rule: str, registry: Registry, world: World) -> None:
    assert fault(registry, world, BROKEN[rule].name, rule)


def test_the_global_generators_are_watched(registry: Registry, world: World) -> None:
    assert "global generator of random" in fault(registry, world, "global_chance", "the same numbers every time")


def test_a_task_is_checked_by_its_module(module: ModuleType) -> None:
    with pytest.raises(FaultError, match="task 'sized': the size of codes"):
        check_task(module, "sized")


# -- what it declares


@pytest.mark.parametrize(
    ("rule", "changes", "said"),
    [
        ("its needs can be met", {"needs": ("moonlight",)}, "needs 'moonlight', which no installed plugin provides"),
        ("its needs can be met", {"subject": "pair"}, "its needs do not name 'reference'"),
        ("its metrics are explained", {"metrics": [Metric("m", "neither", "1", help="h")]}, "no metric is marked"),
        ("its metrics are explained", {"metrics": [Metric("m", "neither", "1", main=True)]}, "has no `help`"),
        ("its metrics are explained", {"metrics": [Metric("m", "higher", "1", True, "a /", help="h")]}, "metric 'm': "),
        ("says what it measures", {"version": 0}, "its `version` is 0"),
    ],
)
def test_what_a_task_leaves_undeclared_is_told(rule: str, changes: dict[str, Any], said: str) -> None:
    declared = {check.title: check for check in declared_checks(made("undeclared", crowding, **changes))}
    with pytest.raises(FaultError, match=said.replace("(", r"\(")):
        declared[rule]()
