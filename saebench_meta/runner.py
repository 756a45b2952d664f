"""Runs a plan: keep what is done, run the rest, write each record as soon as its task ends."""

from __future__ import annotations

import json
import os
import time
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from saebench_meta.environment import versions
from saebench_meta.errors import SaebenchError, UnmetNeedError
from saebench_meta.events import Notice, RunFinished, RunPlanned, UnitFinished, UnitStarted
from saebench_meta.measure import SUBJECT, measure
from saebench_meta.plan import Plan, Unit
from saebench_meta.plugins import Registry
from saebench_meta.record import (
    DataUsed,
    JudgeUsed,
    LabelledUsed,
    ModelUsed,
    Record,
    RunSettings,
    TaskRef,
    TrainedSAE,
    canonical_hash,
)
from saebench_meta.resolve import ResolvedSAE
from saebench_meta.session import Session, Site
from saebench_meta.settings import Settings
from saebench_meta.store import Draft, check_writable, locked, put, read_valid, recover
from saebench_meta.subjects import SubjectPlan, public_name
from saebench_meta.task import ORACLE, Family, Output, Pair
from saebench_meta.task_context import TaskContext

if TYPE_CHECKING:
    from saebench_meta.sae import SAE

Outcome = Literal["ok", "kept", "failed", "skipped"]


@dataclass(frozen=True, eq=False)
class UnitResult:
    """How one unit ended."""

    unit: Unit
    status: Outcome
    record: Record | None = None
    folder: Path | None = None
    reason: str | None = None
    seconds: float = 0.0


@dataclass(frozen=True, eq=False)
class RunResult:
    """How a run ended, unit by unit in the order of the plan."""

    results: tuple[UnitResult, ...]
    seconds: float

    def count(self, status: Outcome) -> int:
        return sum(r.status == status for r in self.results)


def kept_record(unit: Unit, settings: Settings) -> Record | None:
    """The finished record of a unit, if it is there, whole, and not to be done again."""
    if settings.force or unit.unmet is not None:
        return None
    record = read_valid(unit.place.folder, unit.place.id)
    return record if record is not None and record.status == "ok" else None


def execute(registry: Registry, plan: Plan, settings: Settings) -> RunResult:
    """Run every unit that is not done yet. A unit that fails is recorded as failed; the others go on.

    Raises:
        SaebenchError: the output folder cannot be written.
    """
    started = time.perf_counter()
    check_writable(settings.out)
    kept = {u.place.id: kept_record(u, settings) for u in plan.units}
    registry.emit(
        RunPlanned(
            len(plan.units), sum(r is not None for r in kept.values()), sum(u.unmet is not None for u in plan.units)
        )
    )
    for notice in plan.notices:
        registry.emit(Notice("info", notice))
    session: Session | None = None
    results: list[UnitResult] = []
    for index, unit in enumerate(plan.units, 1):
        record = kept[unit.place.id]
        if unit.unmet is not None:
            result = UnitResult(unit, "skipped", reason=unit.unmet)
        elif record is not None:
            result = UnitResult(unit, "kept", record, unit.place.folder)
        else:
            session = session or _session(registry, settings)
            registry.emit(UnitStarted(unit.task.name, unit.subject.name, index, len(plan.units)))
            result = _run_locked(session, unit)
            session.keep_only(u.inputs for u in plan.units[index:] if u.inputs is not None)
        results.append(result)
        registry.emit(
            UnitFinished(
                unit.task.name,
                unit.subject.name,
                result.status,
                round(result.seconds, 3),
                result.reason,
                None if result.folder is None else str(result.folder),
            )
        )
        if result.status == "failed" and settings.fail_fast:
            break
    seconds = time.perf_counter() - started
    count = Counter(r.status for r in results)
    registry.emit(RunFinished(count["ok"], count["kept"], count["failed"], count["skipped"], round(seconds, 3)))
    return RunResult(tuple(results), seconds)


def _session(registry: Registry, settings: Settings) -> Session:
    import torch

    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    return Session(registry, settings)


def _run_locked(session: Session, unit: Unit) -> UnitResult:
    """Run a unit while holding its lock; another process that finished it meanwhile is believed."""
    started = time.perf_counter()
    with locked(unit.place):
        record = kept_record(unit, session.settings)
        if record is not None:
            return UnitResult(unit, "kept", record, unit.place.folder)
        clock = _Clock()
        try:
            outputs, notes, trained = _outputs(session, unit)
            record, files = _finished(session, unit, outputs, notes, trained, clock)
        except UnmetNeedError as e:
            record, files = _unfinished(session, unit, "skipped", str(e), clock), Draft()
        except SaebenchError as e:
            record, files = _unfinished(session, unit, "failed", str(e), clock), Draft()
        except Exception as e:  # a task may raise anything; it is recorded with its traceback and the run goes on
            log = _write_traceback(unit)
            session.emit(Notice("warning", f"{unit.label} failed; traceback in {log}"))
            record, files = _unfinished(session, unit, "failed", f"{type(e).__name__}: {e}", clock), Draft()
        seconds = time.perf_counter() - started
        if record.status != "ok" and _done_before(unit):
            # A rerun that fails must not take a finished result away.
            return UnitResult(unit, record.status, record, None, record.reason, seconds)
        try:
            folder = put(unit.place, record, files.files)
        except OSError as e:
            recover(unit.place)
            raise SaebenchError(
                f"the record of {unit.label} cannot be written to '{unit.place.out}': {e.strerror or e}. "
                "Make room or pass another folder with -o; finished records are kept."
            ) from e
    return UnitResult(unit, record.status, record, folder, record.reason, seconds)


def _done_before(unit: Unit) -> bool:
    before = read_valid(unit.place.folder, unit.place.id)
    return before is not None and before.status == "ok"


def _write_traceback(unit: Unit) -> Path:
    log = unit.place.out / ".logs" / f"{unit.task.name}-{unit.place.id[:12]}.txt"
    log.parent.mkdir(parents=True, exist_ok=True)
    log.write_text(traceback.format_exc())
    return log


# -- subject and controls


def _outputs(session: Session, unit: Unit) -> tuple[dict[str, Output], list[str], list[TrainedSAE]]:
    """The task on its subject and on each control's subject, by role; notes; and what the task trained."""
    from saebench_meta.models import strict_fp32
    from saebench_meta.training.job import in_record

    ctx = TaskContext(session, unit)
    try:
        with strict_fp32():
            _check_site(session, unit)
            site = None if unit.inputs is None else ctx.site
            saes = [session.sae(m, site) for m in unit.subject.members]
            outputs = {SUBJECT: unit.task(_subject(unit.subject, saes), ctx, **unit.parameters)}
            notes = [*unit.subject.notes, *ctx.notes, *outputs[SUBJECT].notes]
            for name in unit.controls:
                # In a pair only the SAE under test is replaced: the reference is what both are held against.
                replaced = unit.subject.members if unit.subject.kind == "family" else unit.subject.members[:1]
                controls = [_control(session, unit, name, sae, site) for sae in replaced]
                subject = _subject(unit.subject, [*controls, *saes[len(controls) :]])
                outputs[name] = _once(session, unit, name, partial(unit.task, subject, ctx, **unit.parameters))
            if unit.oracle is not None:
                notes.append(f"the control '{ORACLE}' is {unit.oracle.scheme}:{public_name(unit.oracle.rest)}")
            notes.extend(n for n in ctx.notes if n not in notes)
            return outputs, notes, _unlike([in_record(t) for t in ctx.trained])
    finally:
        ctx.close()


def _control(session: Session, unit: Unit, name: str, sae: ResolvedSAE, site: Site | None) -> SAE:
    if name == ORACLE and unit.oracle is not None:
        return session.sae(unit.oracle, site)
    return session.control(name, sae, site)


def _once(session: Session, unit: Unit, control: str, run: Callable[[], Output]) -> Output:
    """What a task gives on a control; on the oracle alone, which every SAE of a site shares, it is run once."""
    if control != ORACLE or unit.oracle is None or unit.subject.kind != "sae" or unit.trains:
        return run()
    inputs = None if unit.inputs is None else unit.inputs.key()
    key = canonical_hash([unit.task.name, unit.parameters, inputs, unit.judge, unit.oracle.identity()])
    if key not in session.oracle_outputs:
        session.oracle_outputs[key] = run()
    return session.oracle_outputs[key]


def _unlike(trained: list[TrainedSAE]) -> list[TrainedSAE]:
    """Each SAE once, though a control asked for it again."""
    return list({t.content_sha256: t for t in trained}.values())


def _check_site(session: Session, unit: Unit) -> None:
    if unit.inputs is not None:
        session.site(unit.inputs).lm.check_hook(unit.inputs.hook, unit.subject.members[0].info.d_in)


def _subject(plan: SubjectPlan, saes: list[Any]) -> Any:
    if plan.kind == "sae":
        return saes[0]
    return Pair(saes[0], saes[1]) if plan.kind == "pair" else Family(tuple(saes))


# -- records


class _Clock:
    """When a unit began and what it has cost since."""

    def __init__(self) -> None:
        self.started, self._t = datetime.now(UTC), time.perf_counter()

    def settings(self, session: Session) -> RunSettings:
        import torch

        settings = session.settings
        gpu = torch.cuda.max_memory_allocated() / 2**20 if session.device.type == "cuda" else None
        return RunSettings(
            seed=settings.seed,
            limit=settings.limit,
            partial=settings.limit is not None,
            profile=settings.profile,
            device=str(session.device),
            batch_size=str(settings.batch_size or "auto"),
            started=self.started.isoformat(timespec="seconds"),
            seconds=round(time.perf_counter() - self._t, 3),
            peak_rss_mb=_peak_rss_mb(),
            peak_gpu_mb=gpu,
        )


def _peak_rss_mb() -> float | None:
    """Peak memory of this process so far; None where the system does not tell."""
    try:
        import resource
    except ImportError:  # not on Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / (2**20 if os.uname().sysname == "Darwin" else 2**10), 1)


def _base(session: Session, unit: Unit, clock: _Clock) -> Callable[..., Record]:
    owner = session.registry.tasks.owner(unit.task.name)
    task = TaskRef(
        name=unit.task.name,
        version=unit.task.version,
        parameters=json.loads(json.dumps(unit.parameters)),  # tuples as JSON has them, so that it reads back equal
        plugin=f"{owner.distribution}:{owner.name}",
        plugin_version=owner.version,
    )

    def make(**fields: Any) -> Record:
        return Record(
            id=unit.place.id,
            task=task,
            subject=unit.subject.to_record(_trained_members(session, unit)),
            run=clock.settings(session),
            versions=versions(),
            **fields,
        )

    return make


def _trained_members(session: Session, unit: Unit) -> dict[str, TrainedSAE]:
    """By reference, the members of a subject that this run has trained, or found trained."""
    from saebench_meta.training.job import in_record

    trainings = {m.ref: m.training for m in unit.subject.members if m.training is not None}
    keys = {ref: canonical_hash(training.key()) for ref, training in trainings.items()}
    return {ref: in_record(session.trained[key]) for ref, key in keys.items() if key in session.trained}


def _unfinished(
    session: Session, unit: Unit, status: Literal["failed", "skipped"], reason: str, clock: _Clock
) -> Record:
    asked = [one.to_record() for one in unit.labelled]
    return _base(session, unit, clock)(
        status=status, reason=reason, model=_model_asked(session, unit), data=_data_asked(unit), labelled=asked
    )


def _finished(
    session: Session,
    unit: Unit,
    outputs: dict[str, Output],
    notes: list[str],
    trained: list[TrainedSAE],
    clock: _Clock,
) -> tuple[Record, Draft]:
    from saebench_meta.artifacts import draft

    metrics = measure(unit.task, outputs, session.settings.seed)
    files = draft(outputs, session.registry)
    record = _base(session, unit, clock)(
        status="ok",
        model=_model_used(session, unit),
        data=_data_used(session, unit),
        labelled=_labelled_used(session, unit),
        judge=_judge_used(session, unit),
        metrics=metrics,
        artifacts=files.artifacts,
        notes=notes,
        trained=trained,
    )
    return record, files


def _model_asked(session: Session, unit: Unit) -> ModelUsed | None:
    """What was asked for: all that is known of a unit that did not end well, or reads nothing but what it trains."""
    if unit.reads is None:
        return None
    model = unit.reads.model
    return ModelUsed(
        ref=public_name(model.ref),
        revision=model.identity.revision,
        files=dict(model.identity.files),
        hook=unit.reads.hook,
        dtype=session.settings.dtype,
    )


def _model_used(session: Session, unit: Unit) -> ModelUsed | None:
    asked = _model_asked(session, unit)
    if asked is None or unit.inputs is None:
        return asked
    lm = session.site(unit.inputs).lm
    return asked.model_copy(update={"revision": lm.revision, "processing": lm.processing, "backend": lm.backend})


def _data_asked(unit: Unit) -> DataUsed | None:
    if unit.reads is None:
        return None
    identity = unit.reads.data.identity
    return DataUsed(
        ref=public_name(identity.ref),
        revision=identity.revision,
        split=identity.split,
        sha256=identity.sha256,
        sampling=unit.reads.sampling,
    )


def _data_used(session: Session, unit: Unit) -> DataUsed | None:
    asked = _data_asked(unit)
    if asked is None or unit.inputs is None:
        return asked
    sample = session.site(unit.inputs).sample
    counts = {"documents": sample.n_docs, "tokens": sample.n_evaluated, "content_sha256": sample.content_hash()}
    return asked.model_copy(update=counts)


def _labelled_used(session: Session, unit: Unit) -> list[LabelledUsed]:
    site = None if unit.inputs is None else session.site(unit.inputs)
    return [one.to_record(None if site is None else site.opened(one)) for one in unit.labelled]


def _judge_used(session: Session, unit: Unit) -> JudgeUsed | None:
    if unit.judge is None:
        return None
    judge = session.registry.judges[unit.judge]()
    return JudgeUsed(name=judge.name, version=judge.version)
