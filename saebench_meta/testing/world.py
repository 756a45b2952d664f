"""What tasks are tried on: a few documents of the built-in world `atlas`, its language model, and its shipped SAEs."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import SkipTest

from saebench_meta.errors import SaebenchError
from saebench_meta.testing.checks import FaultError, Scratch, own_randomness

if TYPE_CHECKING:
    from saebench_meta.inputs import Inputs
    from saebench_meta.plan import Unit
    from saebench_meta.plugins import Registry
    from saebench_meta.record import Record
    from saebench_meta.sae import SAE
    from saebench_meta.session import Session, Site
    from saebench_meta.settings import Settings
    from saebench_meta.stats import Estimate
    from saebench_meta.task import Task

DOCUMENTS, MANY, TOKENS, TEXTS = 16, 400, 512, 64
"""Documents of the corpus; those of one with some to train on, and tokens that are then evaluated; texts of a labelled
set."""
SUBJECTS: Mapping[str, Mapping[str, Any]] = {
    "sae": {"saes": ("atlas:batchtopk-128",)},
    "pair": {"saes": ("atlas:batchtopk-256",), "reference": "atlas:batchtopk-128"},
    "family": {"family": ("atlas:batchtopk-128", "atlas:batchtopk-256")},
}

Change = Callable[["SAE"], "SAE"]


class World:
    """Corpora and the language model, shared by all tasks that are tried."""

    def __init__(self, registry: Registry) -> None:
        self.registry, self.scratch = registry, Scratch()
        self._models: dict[str, Any] = {}

    @cached_property
    def texts(self) -> list[str]:
        """Documents of the world.

        Raises:
            SkipTest: the world is not installed.
        """
        from saebench_meta.resolve import resolve_data

        try:
            data = resolve_data(self.registry, "atlas", split=None, revision=None)
        except SaebenchError as e:
            raise SkipTest(f"tasks are tried on the built-in world, which is not there: {e}") from e
        found = data.loader.documents(data.rest, split=None, revision=None, text_field="text")
        return list(islice(found, MANY))

    @cached_property
    def corpora(self) -> dict[str, str]:
        """References of a few documents in their order, and the other way round, and of many."""
        folder, made, few = self.scratch.folder("corpora"), {}, self.texts[:DOCUMENTS]
        for name, texts in {"forwards": few, "backwards": few[::-1], "many": self.texts}.items():
            path = folder / f"{name}.json"
            path.write_text(json.dumps(texts))
            made[name] = str(path)
        return made

    def sharing(self, unit: Unit) -> Unit:
        """The unit with a language model that is loaded once for all."""
        if unit.inputs is None:
            return unit
        model = unit.inputs.model
        loader = replace(model.loader, load=self._loaded_once(unit.inputs))
        return replace(unit, inputs=replace(unit.inputs, model=replace(model, loader=loader)))

    def _loaded_once(self, inputs: Inputs) -> Callable[..., Any]:
        load, key = inputs.model.loader.load, json.dumps(inputs.model.key(), sort_keys=True)

        def loaded(*args: Any, **kwargs: Any) -> Any:
            if key not in self._models:
                self._models[key] = load(*args, **kwargs)
            return self._models[key]

        return loaded


@dataclass(frozen=True)
class TaskTrial:
    """A task with what it is tried on."""

    task: Task
    world: World
    parameters: Callable[[], Mapping[str, Any]] = field(default=dict)

    @cached_property
    def out(self) -> Path:
        return self.world.scratch.folder(self.task.name)

    @property
    def corpus(self) -> dict[str, Any]:
        """Settings of the documents: all of a few; or some of many, where it trains or needs what is known of them."""
        if "truth" in self.task.needs:
            return {"corpus": "atlas", "tokens": TOKENS}
        if self.task.trains is not None:
            return {"corpus": self.world.corpora["many"], "tokens": TOKENS}
        return {"corpus": self.world.corpora["forwards"]}

    def settings(self, **changes: Any) -> Settings:
        """What the task is run under, small; `changes` are fields of Settings."""
        from saebench_meta.settings import Settings

        needs = self.task.needs
        chosen: dict[str, Any] = {
            **SUBJECTS[self.task.subject],
            "tasks": (self.task.name,),
            "parameters": {self.task.name: dict(self.parameters())},
            "out": self.out / "out",
            "cache_dir": self.out / "cache",
            "cache": False,
            "device": "cpu",
            "profile": "quick",
            **self.corpus,
        }
        if "labelled" in needs and (sets := self.world.registry.labelled.get("atlas")):
            chosen["labelled"] = (f"atlas:{sets.names[0]}",)
        if self.task.limit_unit == "texts":
            chosen["limit"] = TEXTS
        return Settings(**{**chosen, **changes})

    def unit(self, settings: Settings) -> Unit:
        """The task's unit of work.

        Raises:
            SkipTest: it needs what the built-in world does not have.
        """
        from saebench_meta.errors import UnmetNeedError
        from saebench_meta.plan import make_plan

        try:
            plan = make_plan(self.world.registry, settings)
        except UnmetNeedError as e:
            raise SkipTest(f"it cannot be tried on the built-in world: {e}") from e
        return self.world.sharing(next(u for u in plan.units if u.task.name == self.task.name))

    @cached_property
    def record(self) -> Record:
        """The record of a whole run, controls included.

        Raises:
            FaultError: the run fails.
        """
        from saebench_meta.plan import Plan
        from saebench_meta.runner import execute

        settings = self.settings()
        unit = self.unit(settings)
        (result,) = execute(self.world.registry, Plan((unit,)), settings).results
        if result.record is None or result.status not in ("ok", "kept"):
            raise FaultError(f"its run on {unit.subject.name} {result.status}: {result.reason}")
        return result.record

    @cached_property
    def runs(self) -> bool:
        """Whether a whole run ends well."""
        try:
            return self.record is not None
        except FaultError:
            return False

    def values(self, change: Change | None = None, **changes: Any) -> dict[str, float | None]:
        """Every metric's value, on SAEs that are changed, under settings that are changed.

        Raises:
            SkipTest: it does not run as it is.
            FaultError: it draws from a global generator.
        """
        if not self.runs:
            raise SkipTest("it does not run")
        settings = self.settings(**changes)
        estimates = _estimates(self.world.registry, settings, self.unit(settings), change)
        return {name: estimate.value for name, estimate in estimates.items()}


def _estimates(registry: Registry, settings: Settings, unit: Unit, change: Change | None) -> dict[str, Estimate]:
    """What a task measures on its subject alone."""
    from saebench_meta.measure import check_output, estimate
    from saebench_meta.models import strict_fp32
    from saebench_meta.session import Session
    from saebench_meta.task_context import TaskContext

    session = Session(registry, settings)
    site = None if unit.inputs is None else session.site(unit.inputs)
    ctx = TaskContext(session, unit)
    try:
        with strict_fp32():
            subject = _subject(session, unit, site, change)
            with own_randomness():
                output = unit.task(subject, ctx, **unit.parameters)
    finally:
        ctx.close()
    check_output(unit.task, output)
    return {m.name: estimate(m, output, unit.task, settings.seed) for m in unit.task.metrics}


def _subject(session: Session, unit: Unit, site: Site | None, change: Change | None) -> Any:
    """What the task is given; what is used for the first time is used here, before anything is watched."""
    from saebench_meta.task import Family, Pair

    if site is not None:
        _ = site.activations
    saes = [session.sae(member, site) for member in unit.subject.members]
    if change is not None:  # of a pair too: no latent of either has a number or a size that means something
        saes = [change(sae) for sae in saes]
    match unit.subject.kind:
        case "sae":
            return saes[0]
        case "pair":
            return Pair(saes[0], saes[1])
    return Family(tuple(saes))
