"""The plan: which task runs on which subject, what each needs, and which records are there already. No torch."""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from saebench_meta.cities import ResolvedCities, resolve_cities
from saebench_meta.errors import PluginError, SaebenchError, UnmetNeedError, did_you_mean
from saebench_meta.inputs import Inputs, InputsFinder, Truths
from saebench_meta.judge_costs import estimate
from saebench_meta.judges import NO_JUDGE, ResolvedJudge, prompt_hashes, resolve_judge
from saebench_meta.judging import Asked
from saebench_meta.labelled_sets import ResolvedLabelled
from saebench_meta.parameters import format_notices, format_parameters, task_parameters
from saebench_meta.plugins import Registry
from saebench_meta.record import SCHEMA_VERSION, canonical_hash
from saebench_meta.resolve import ResolvedSAE
from saebench_meta.settings import Settings
from saebench_meta.store import Place
from saebench_meta.subjects import SubjectPlan, Subjects
from saebench_meta.task import ORACLE, Task
from saebench_meta.training.recipe import Recipe, make_recipe
from saebench_meta.variants import training_seconds

MODEL_NEEDS = {"activations", "lm", "labelled", "truth"}


@dataclass(frozen=True, eq=False)
class Unit:
    """One task on one subject: idempotent, self-contained."""

    task: Task
    subject: SubjectPlan
    parameters: dict[str, Any]
    inputs: Inputs | None
    judge: ResolvedJudge | None
    place: Place
    unmet: str | None = None
    trains: tuple[Recipe, ...] = ()
    """What the task itself will train."""
    truth: str | None = None
    """Name of what is known of its corpus, where the task needs it."""
    oracle: ResolvedSAE | None = None
    """The supervised dictionary at its site, where there is one."""
    labelled: tuple[ResolvedLabelled, ...] = ()
    """The labelled sets, where the task needs them."""
    cities: ResolvedCities | None = None
    """The cities it asks for, where the task needs them."""
    prompts: Mapping[str, str] = field(default_factory=dict)
    """Name -> sha256 of the prompts that its judge is asked with."""
    asked: tuple[Asked, ...] | None = None
    """What its judge is asked for the subject and all controls; None where it asks none, or does not say."""

    @property
    def controls(self) -> tuple[str, ...]:
        """Those the task names, and the oracle where there is one."""
        named = tuple(name for name in self.task.controls if name != ORACLE)
        return named if self.oracle is None else (*named, ORACLE)

    @property
    def label(self) -> str:
        return f"{self.task.name} on {self.subject.name}"

    @property
    def reads(self) -> Inputs | None:
        """Its inputs, or those that an SAE of its subject is trained on."""
        return self.inputs or next((m.training.inputs for m in self.subject.members if m.training is not None), None)


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
    tasks, outright = select_tasks(registry, settings.tasks, family=bool(settings.family))
    for task in tasks:
        task_parameters(task, settings.parameters.get(task.name, {}))  # wrong ones are told before any file is read
    if stray := set(settings.parameters) - {t.name for t in tasks}:
        raise SaebenchError(
            f"-P names task {sorted(stray)[0]!r}, which this run does not include"
            f"{did_you_mean(sorted(stray)[0], [t.name for t in tasks])}"
        )
    judge = resolve_judge(registry, settings, tasks)
    inputs = InputsFinder(registry, settings)
    subjects, truths = Subjects(registry, settings, inputs), Truths(registry)
    units: list[Unit] = []
    for subject_of in subjects.all():
        for task in tasks:
            units.extend(
                _unit(registry, settings, task, subject, inputs, truths, judge) for subject in subject_of(task)
            )
    for unit in units:
        if unit.unmet and unit.task.name in outright:
            raise UnmetNeedError(f"task '{unit.task.name}' cannot run on {unit.subject.name}: {unit.unmet}")
    unique = {u.place.id: u for u in units}
    if not unique:
        raise SaebenchError(
            "nothing to run: no task fits these subjects. Type `saebench tasks` to see what each needs."
        )
    notices = [*subjects.notices, *truths.notices]
    if settings.judge is None and judge is not None and any(u.judge and not u.unmet for u in units):
        what = f" ({judge.loader.summary})" if judge.loader.summary else ""
        notices.append(f"no judge is named, {judge.name} answers{what}; --judge NAME asks another")
    for unit in unique.values():
        notices += format_notices(unit.task, unit.subject, settings.parameters.get(unit.task.name, {}))
    return Plan(tuple(unique.values()), tuple(dict.fromkeys(notices)))


def select_tasks(registry: Registry, patterns: tuple[str, ...], *, family: bool) -> tuple[list[Task], set[str]]:
    """Tasks matching names and globs with their parts, in the order of their names, and which were named outright.

    Args:
        family: whether the run has one; parts that need one are else left out, unless they are named outright.

    Raises:
        SaebenchError: a name or glob that fits no task, or a part of a task that is not there.
    """
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
    chosen |= {t.name for t in registry.tasks.values() if t.part_of in chosen}
    for name in chosen:
        _check_part(registry, registry.tasks[name])
    if not family:
        chosen = {n for n in chosen if n in outright or not _is_family_part(registry.tasks[n])}
    return [registry.tasks[name] for name in sorted(registry.tasks) if name in chosen], outright


def _is_family_part(task: Task) -> bool:
    return task.part_of is not None and task.subject == "family"


def _check_part(registry: Registry, task: Task) -> None:
    if task.part_of is None:
        return
    whole = [t.name for t in registry.tasks.values() if t.part_of is None]
    if task.part_of not in whole:
        plugin = registry.tasks.owner(task.name).name
        raise PluginError(
            f"plugin '{plugin}': task '{task.name}' is declared part of '{task.part_of}', which is no task, or a part "
            f"itself{did_you_mean(task.part_of, whole)}"
        )


def _unit(
    registry: Registry,
    settings: Settings,
    task: Task,
    subject: SubjectPlan,
    finder: InputsFinder,
    truths: Truths,
    judge: ResolvedJudge | None,
) -> Unit:
    given = settings.parameters.get(task.name, {})
    usual = {**format_parameters(task, subject), **task.profiles.get(settings.profile, {})}
    parameters = task_parameters(task, {**usual, **given})
    unmet, inputs = subject.unmet, None
    if unmet is None and MODEL_NEEDS & set(task.needs):
        found = finder.find(subject.members[0], settings.limit if task.limit_unit == "documents" else None)
        unmet, inputs = (found, None) if isinstance(found, str) else (None, found)
    truth = None
    if inputs is not None and "truth" in task.needs:
        info = subject.members[0].info
        truth = truths.of(info, inputs)
        unmet = None if truth else truths.why_not(info.site.model, inputs.data.identity.ref)
    labelled: tuple[ResolvedLabelled, ...] = ()
    if inputs is not None and "labelled" in task.needs:
        sets = finder.labelled.find(
            subject.members[0].info.site.model, settings.limit if task.limit_unit == "texts" else None
        )
        unmet, labelled = (sets, ()) if isinstance(sets, str) else (None, sets)
    if unmet is None:
        unmet = _other_needs(registry, task, subject, judge)
    cities = None if unmet else _cities(registry, task, subject, parameters)
    if unmet is None and cities is None and "cities" in task.needs:
        unmet = "it needs cities and their facts, and no installed plugin has a set of them"
    oracle = None if unmet else _oracle(truths, subject)
    judge = judge if "judge" in task.needs else None
    prompts = {} if judge is None else prompt_hashes(task)
    trains = () if unmet else _recipes(registry, task, subject, parameters)
    key = {
        "schema": SCHEMA_VERSION,
        "task": f"{task.name}@{task.version}",
        "parameters": parameters,
        "subject": [{"role": r, **m.identity()} for r, m in zip(subject.roles, subject.members, strict=False)],
        "controls": list(task.controls),
        "inputs": inputs.key() if inputs else None,
        "judge": None if judge is None else judge.key(prompts),
        "seed": settings.seed,
        "limit": settings.limit,
        "dtype": settings.dtype if inputs else None,
        "unmet": unmet,
    }
    if trains:
        key["trains"] = [recipe.digest() for recipe in trains]
    if truth is not None:
        key["truth"] = {"name": truth, "version": registry.truths[truth].version}
    if labelled:
        key["labelled"] = [one.key() for one in labelled]
    if oracle is not None:
        key["oracle"] = oracle.identity()
    if cities is not None:
        key["cities"] = cities.key()
    place = Place(settings.out, subject.name, task.name, task.version, canonical_hash(key))
    unit = Unit(
        task, subject, parameters, inputs, judge, place, unmet, trains, truth, oracle, labelled, cities, prompts
    )
    return replace(unit, asked=_asked(unit, settings)) if judge is not None and unmet is None else unit


def _asked(unit: Unit, settings: Settings) -> tuple[Asked, ...] | None:
    """What a unit asks its judge, for the subject and what its controls ask as well; None if its task does not say."""
    if unit.task.asks is None:
        return None
    once = unit.task.asks(tuple(m.info for m in unit.subject.members), unit.parameters, settings.limit)
    everyone = 1 + len(unit.controls)
    return tuple(replace(one, requests=one.requests * (everyone if one.on_controls else 1)) for one in once)


def _oracle(truths: Truths, subject: SubjectPlan) -> ResolvedSAE | None:
    """The oracle at the subject's site, unless the subject is the oracle, or a family: many oracles are one."""
    if subject.kind == "family":
        return None
    oracle = truths.oracle(subject.members[0])
    own = [canonical_hash(m.identity()) for m in subject.members]
    return None if oracle is None or canonical_hash(oracle.identity()) in own else oracle


def _cities(registry: Registry, task: Task, subject: SubjectPlan, parameters: dict[str, Any]) -> ResolvedCities | None:
    """The set of cities for a task that needs one: what its parameter `cities` says, or what fits the model."""
    if "cities" not in task.needs:
        return None
    return resolve_cities(registry, str(parameters.get("cities", "")), subject.members[0].info.site.model)


def _recipes(registry: Registry, task: Task, subject: SubjectPlan, parameters: dict[str, Any]) -> tuple[Recipe, ...]:
    """What the task says it will train for a subject."""
    if task.trains is None:
        return ()

    def recipe(architecture: str, **settings: Any) -> Recipe:
        return make_recipe(registry.architectures[architecture], architecture, **settings)

    return tuple(task.trains(tuple(m.info for m in subject.members), parameters, recipe))


def trainings(unit: Unit, settings: Settings) -> list[tuple[str, float]]:
    """Label and rough seconds of every SAE that a unit trains: the task's own, and its subject's."""
    members = [m for m in unit.subject.members if m.training is not None]
    found = [(m.info.name, m.training.seconds(settings)) for m in members if m.training is not None]
    d_in = unit.subject.members[0].info.d_in
    parameters = unit.inputs.model.identity.parameters if unit.inputs else 0
    return [*found, *((r.label, training_seconds(r, d_in, parameters, settings)) for r in unit.trains)]


def _other_needs(registry: Registry, task: Task, subject: SubjectPlan, judge: ResolvedJudge | None) -> str | None:
    """Why a need other than model, corpus and reference is unmet; None if all are met."""
    for need in task.needs:
        if need in MODEL_NEEDS or need in ("reference", "cities"):
            continue
        if need == "judge":
            if judge is None:
                return NO_JUDGE
        elif need in registry.needs:
            if reason := registry.needs[need](subject.members[0].info):
                return reason
        else:
            return f"it needs '{need}', which no installed plugin provides{did_you_mean(need, list(registry.needs))}"
    return None


def describe(unit: Unit, settings: Settings) -> dict[str, Any]:
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
        "labelled": [one.ref for one in unit.labelled],
        "needs": list(unit.task.needs),
        "controls": list(unit.controls),
        "trains": [{"label": label, "seconds": round(s)} for label, s in trainings(unit, settings)],
        "judge": _describe_judge(unit),
        "metrics": [asdict(m) for m in unit.task.metrics],
    }


def _describe_judge(unit: Unit) -> dict[str, Any] | None:
    if unit.judge is None:
        return None
    facts = unit.judge.key(unit.prompts)
    if unit.asked is None:
        return {**facts, "asked": None}
    return {**facts, "asked": [asdict(a) for a in unit.asked], **estimate(unit.judge, unit.asked).to_json()}
