"""The plan: which task runs on which subject, what each needs, and which records are there already. No torch."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

from saebench_meta.errors import SaebenchError, UnmetNeedError, did_you_mean
from saebench_meta.parameters import format_notices, format_parameters, task_parameters
from saebench_meta.plugins import Registry
from saebench_meta.record import SCHEMA_VERSION, canonical_hash
from saebench_meta.resolve import ResolvedData, ResolvedModel, ResolvedSAE, resolve_data, resolve_model
from saebench_meta.sae import UNKNOWN
from saebench_meta.settings import DEFAULT_CONTEXT, PROFILE_TOKENS, Settings
from saebench_meta.store import Place
from saebench_meta.subjects import SubjectPlan, Subjects
from saebench_meta.task import Task

MODEL_NEEDS = {"activations", "lm", "labelled"}


@dataclass(frozen=True, eq=False)
class Inputs:
    """The site's model and the sampled corpus; what a task that reads activations depends on."""

    model: ResolvedModel
    data: ResolvedData
    hook: str
    sampling: dict[str, Any]

    def key(self) -> dict[str, Any]:
        return {"model": self.model.key(), "hook": self.hook, "data": self.data.key(), "sampling": self.sampling}


@dataclass(frozen=True, eq=False)
class Unit:
    """One task on one subject: idempotent, self-contained."""

    task: Task
    subject: SubjectPlan
    parameters: dict[str, Any]
    inputs: Inputs | None
    judge: str | None
    place: Place
    unmet: str | None = None

    @property
    def label(self) -> str:
        return f"{self.task.name} on {self.subject.name}"


@dataclass(frozen=True, eq=False)
class Plan:
    """All units of a run, in the order in which they run."""

    units: tuple[Unit, ...]
    notices: tuple[str, ...] = field(default=())


def make_plan(registry: Registry, settings: Settings) -> Plan:
    """Resolve everything the user named, and say what will run, without loading a weight.

    Raises:
        SaebenchError: unknown names, unreadable files, or a task named outright whose need is unmet.
    """
    tasks, outright = select_tasks(registry, settings.tasks)
    for task in tasks:
        task_parameters(task, settings.parameters.get(task.name, {}))  # wrong ones are told before any file is read
    if stray := set(settings.parameters) - {t.name for t in tasks}:
        raise SaebenchError(
            f"-P names task {sorted(stray)[0]!r}, which this run does not include"
            f"{did_you_mean(sorted(stray)[0], [t.name for t in tasks])}"
        )
    subjects = Subjects(registry, settings)
    inputs = InputsFinder(registry, settings)
    units: list[Unit] = []
    for subject_of in subjects.all():
        for task in tasks:
            units.extend(_unit(registry, settings, task, subject, inputs) for subject in subject_of(task))
    for unit in units:
        if unit.unmet and unit.task.name in outright:
            raise UnmetNeedError(f"task '{unit.task.name}' cannot run on {unit.subject.name}: {unit.unmet}")
    unique = {u.place.id: u for u in units}
    if not unique:
        raise SaebenchError(
            "nothing to run: no task fits these subjects. Type `saebench tasks` to see what each needs."
        )
    notices = [*subjects.notices]
    for unit in unique.values():
        notices += format_notices(unit.task, unit.subject, settings.parameters.get(unit.task.name, {}))
    return Plan(tuple(unique.values()), tuple(dict.fromkeys(notices)))


def select_tasks(registry: Registry, patterns: tuple[str, ...]) -> tuple[list[Task], set[str]]:
    """Tasks matching names and globs, in the registry's order, and which of them were named outright."""
    chosen: set[str] = set()
    outright: set[str] = set()
    for pattern in [p.strip() for text in patterns for p in text.split(",") if p.strip()]:
        if pattern == "all":
            chosen |= set(registry.tasks)
        elif any(c in pattern for c in "*?["):
            matched = fnmatch.filter(registry.tasks, pattern)
            if not matched:
                raise SaebenchError(f"--tasks {pattern}: no task matches (known: {', '.join(sorted(registry.tasks))})")
            chosen |= set(matched)
        else:
            outright.add(registry.tasks[pattern].name)
    chosen |= outright
    return [registry.tasks[name] for name in sorted(registry.tasks) if name in chosen], outright


class InputsFinder:
    """Model and corpus of a subject, resolved once per site; a failure is kept as the reason why a need is unmet."""

    def __init__(self, registry: Registry, settings: Settings) -> None:
        self.registry, self.settings = registry, settings
        self._models: dict[tuple[str, str | None], ResolvedModel | str] = {}
        self._data: dict[str, ResolvedData | str] = {}

    def find(self, sae: ResolvedSAE, documents: int | None = None) -> Inputs | str:
        """The inputs for an SAE, of at most so many documents, or why there are none."""
        settings, info = self.settings, sae.info
        for what, value in (("model", info.site.model), ("hook", info.site.hook)):
            if value.split()[0] == UNKNOWN:
                return f"'{sae.ref}' does not say its {what}: give --{what}"
        revision = settings.revision or (None if settings.model else info.site.revision)
        model = self._once(
            self._models, (info.site.model, revision), lambda: self._model(info.site.model, revision), settings.model
        )
        if isinstance(model, str):
            return model
        corpus = settings.corpus or info.dataset
        if corpus is None:
            return "it needs documents: give --corpus (a file or a data set's name)"
        data = self._once(self._data, corpus, lambda: self._corpus(corpus), settings.corpus)
        if isinstance(data, str):
            return data
        sampling = {
            "tokens": PROFILE_TOKENS[settings.profile] if settings.tokens is None else settings.tokens,
            "documents": documents,
            "context": settings.context or info.context_size or DEFAULT_CONTEXT,
            "packing": settings.packing,
            "prepend_bos": info.prepend_bos,
            "seed": settings.seed,
            "split": data.identity.split,
            "text_field": settings.text_field,
        }
        return Inputs(model, data, info.site.hook, sampling)

    def _once(self, memory: dict[Any, Any], key: Any, make: Callable[[], Any], named: str | None) -> Any:
        """What `make` gives, or why it gives nothing; what the user named must be there."""
        if key not in memory:
            try:
                memory[key] = make()
            except SaebenchError as e:
                if named is not None:
                    raise
                memory[key] = str(e)
        return memory[key]

    def _model(self, ref: str, revision: str | None) -> ResolvedModel:
        return resolve_model(self.registry, ref, revision)

    def _corpus(self, ref: str) -> ResolvedData:
        return resolve_data(self.registry, ref, split=self.settings.split, revision=self.settings.data_revision)


def _unit(
    registry: Registry,
    settings: Settings,
    task: Task,
    subject: SubjectPlan,
    finder: InputsFinder,
) -> Unit:
    given = settings.parameters.get(task.name, {})
    parameters = task_parameters(task, {**format_parameters(task, subject), **given})
    unmet, inputs = subject.unmet, None
    if unmet is None and MODEL_NEEDS & set(task.needs):
        found = finder.find(subject.members[0], settings.limit if task.limit_unit == "documents" else None)
        unmet, inputs = (found, None) if isinstance(found, str) else (None, found)
    if unmet is None:
        unmet = _other_needs(registry, settings, task, subject)
    judge = settings.judge if "judge" in task.needs else None
    key = {
        "schema": SCHEMA_VERSION,
        "task": f"{task.name}@{task.version}",
        "parameters": parameters,
        "subject": [{"role": r, **m.identity()} for r, m in zip(subject.roles, subject.members, strict=False)],
        "controls": list(task.controls),
        "inputs": inputs.key() if inputs else None,
        "judge": judge,
        "seed": settings.seed,
        "limit": settings.limit,
        "dtype": settings.dtype if inputs else None,
        "unmet": unmet,
    }
    place = Place(settings.out, subject.name, task.name, task.version, canonical_hash(key))
    return Unit(task, subject, parameters, inputs, judge, place, unmet)


def _other_needs(registry: Registry, settings: Settings, task: Task, subject: SubjectPlan) -> str | None:
    """Why a need other than model, corpus and reference is unmet; None if all are met."""
    for need in task.needs:
        if need in MODEL_NEEDS - {"labelled"} or need == "reference":
            continue
        if need == "judge":
            if settings.judge is None:
                return "it needs a judge: give --judge NAME"
            registry.judges[settings.judge]
        elif need in registry.needs:
            if reason := registry.needs[need](subject.members[0].info):
                return reason
        else:
            return f"it needs '{need}', which no installed plugin provides{did_you_mean(need, list(registry.needs))}"
    return None


def describe(unit: Unit) -> dict[str, Any]:
    """A unit as plain data, for `--dry-run --json`."""
    return {
        "task": unit.task.name,
        "version": unit.task.version,
        "subject": unit.subject.name,
        "saes": [m.ref for m in unit.subject.members],
        "parameters": unit.parameters,
        "unmet": unit.unmet,
        "id": unit.place.id,
        "record": str(unit.place.folder),
        "inputs": None if unit.inputs is None else {"hook": unit.inputs.hook, **unit.inputs.sampling},
        "needs": list(unit.task.needs),
        "controls": list(unit.task.controls),
        "metrics": [asdict(m) for m in unit.task.metrics],
    }
