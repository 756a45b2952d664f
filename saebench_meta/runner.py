"""Runs a plan: keep what is done, run the rest, write each record as soon as its task ends."""

from __future__ import annotations

import time
import traceback
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from saebench_meta.errors import SaebenchError, UnmetNeedError
from saebench_meta.events import Notice, RunFinished, RunPlanned, UnitFinished, UnitStarted
from saebench_meta.judge_costs import check_judge, judge_notices
from saebench_meta.measure import SUBJECT
from saebench_meta.plan import Plan, Unit
from saebench_meta.plugins import Registry
from saebench_meta.record import Record, TrainedSAE, canonical_hash
from saebench_meta.recording import Clock, finished, unfinished
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
        SaebenchError: the output folder cannot be written, or the judge that will be asked cannot be had.
    """
    started = time.perf_counter()
    check_writable(settings.out)
    kept = {u.place.id: kept_record(u, settings) for u in plan.units}
    asking = [u for u in plan.units if u.judge is not None and u.unmet is None and kept[u.place.id] is None]
    check_judge(asking, settings)
    registry.emit(
        RunPlanned(
            len(plan.units), sum(r is not None for r in kept.values()), sum(u.unmet is not None for u in plan.units)
        )
    )
    for notice in (*(Notice("info", n) for n in plan.notices), *judge_notices(asking, settings)):
        registry.emit(notice)
    results = _run_all(registry, plan, settings, kept)
    seconds = time.perf_counter() - started
    count = Counter(r.status for r in results)
    registry.emit(RunFinished(count["ok"], count["kept"], count["failed"], count["skipped"], round(seconds, 3)))
    return RunResult(tuple(results), seconds)


def _run_all(registry: Registry, plan: Plan, settings: Settings, kept: Mapping[str, Record | None]) -> list[UnitResult]:
    """The results of all units, in the order of the plan; with `fail_fast`, of those that ended."""
    results: dict[str, UnitResult] = {}

    def finished(result: UnitResult, worker: int | None = None) -> None:
        results[result.unit.place.id] = result
        registry.emit(_event_of(result, worker))

    def without_work(unit: Unit) -> UnitResult | None:
        if unit.unmet is not None:
            return UnitResult(unit, "skipped", reason=unit.unmet)
        record = kept[unit.place.id]
        return None if record is None else UnitResult(unit, "kept", record, unit.place.folder)

    todo = [u for u in plan.units if without_work(u) is None]
    if settings.jobs > 1 and len(todo) > 1:
        from saebench_meta.workers import share

        for unit in plan.units:
            if (result := without_work(unit)) is not None:
                finished(result)
        share(registry, plan, todo, settings, finished)
        return [results[u.place.id] for u in plan.units if u.place.id in results]
    session: Session | None = None
    try:
        for index, unit in enumerate(plan.units, 1):
            if (result := without_work(unit)) is None:
                session = session or session_for(registry, settings)
                registry.emit(UnitStarted(unit.task.name, unit.subject.name, index, len(plan.units)))
                result = run_unit(session, unit)
                session.keep_only(u.inputs for u in plan.units[index:] if u.inputs is not None)
            finished(result)
            if result.status == "failed" and settings.fail_fast:
                break
    finally:
        if session is not None:
            session.close()
    return list(results.values())


def _event_of(result: UnitResult, worker: int | None) -> UnitFinished:
    unit, folder = result.unit, None if result.folder is None else str(result.folder)
    name, subject, seconds = unit.task.name, unit.subject.name, round(result.seconds, 3)
    return UnitFinished(name, subject, result.status, seconds, result.reason, folder, worker=worker)


def session_for(registry: Registry, settings: Settings) -> Session:
    """A session, with as many threads as were asked for."""
    import torch

    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    return Session(registry, settings)


def run_unit(session: Session, unit: Unit) -> UnitResult:
    """Run a unit while holding its lock; another process that finished it meanwhile is believed."""
    started = time.perf_counter()
    with locked(unit.place):
        record = kept_record(unit, session.settings)
        if record is not None:
            return UnitResult(unit, "kept", record, unit.place.folder)
        clock, ctx = Clock(), TaskContext(session, unit)
        try:
            outputs, notes, trained = _outputs(session, unit, ctx)
            record, files = finished(session, unit, outputs, notes, trained, clock, ctx.desk)
        except UnmetNeedError as e:
            record, files = unfinished(session, unit, "skipped", str(e), clock, ctx.desk), Draft()
        except SaebenchError as e:
            record, files = unfinished(session, unit, "failed", str(e), clock, ctx.desk), Draft()
        except Exception as e:  # a task may raise anything; it is recorded with its traceback and the run goes on
            log = _write_traceback(unit)
            session.emit(Notice("warning", f"{unit.label} failed; traceback in {log}"))
            reason = f"{type(e).__name__}: {e}"
            record, files = unfinished(session, unit, "failed", reason, clock, ctx.desk), Draft()
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


def _outputs(session: Session, unit: Unit, ctx: TaskContext) -> tuple[dict[str, Output], list[str], list[TrainedSAE]]:
    """The task on its subject and on each control's subject, by role; notes; and what the task trained."""
    from saebench_meta.models import strict_fp32
    from saebench_meta.training.job import in_record

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
                with ctx.running(name):
                    outputs[name] = _once(session, unit, name, partial(unit.task, subject, ctx, **unit.parameters))
            if unit.oracle is not None:
                notes.append(f"the control '{ORACLE}' is {unit.oracle.scheme}:{public_name(unit.oracle.rest)}")
            if ctx.desk is not None:
                for remark in ctx.desk.remarks():
                    ctx.warn(remark)
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
    judge = None if unit.judge is None else unit.judge.key(unit.prompts)
    key = canonical_hash([unit.task.name, unit.parameters, inputs, judge, unit.oracle.identity()])
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
