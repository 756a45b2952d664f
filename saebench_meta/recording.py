"""What a record says of a unit: what was asked, what was used, what it took, and how it ended."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Literal

from saebench_meta.environment import versions
from saebench_meta.measure import measure
from saebench_meta.plan import Unit
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
from saebench_meta.session import Session
from saebench_meta.store import Draft
from saebench_meta.subjects import public_name
from saebench_meta.task import Output

if TYPE_CHECKING:
    from saebench_meta.judge_desk import Desk


class Clock:
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


def _base(session: Session, unit: Unit, clock: Clock) -> Callable[..., Record]:
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


def unfinished(
    session: Session,
    unit: Unit,
    status: Literal["failed", "skipped"],
    reason: str,
    clock: Clock,
    desk: Desk | None,
) -> Record:
    """The record of a unit that did not end well.

    Args:
        desk: the judge at work for it, where it was asked for one.
    """
    asked = [one.to_record() for one in unit.labelled]
    return _base(session, unit, clock)(
        status=status,
        reason=reason,
        model=_model_asked(session, unit),
        data=_data_asked(unit),
        labelled=asked,
        judge=_judge_used(unit, desk),
    )


def finished(
    session: Session,
    unit: Unit,
    outputs: dict[str, Output],
    notes: list[str],
    trained: list[TrainedSAE],
    clock: Clock,
    desk: Desk | None,
) -> tuple[Record, Draft]:
    """The record of a unit that ended well, and its files.

    Args:
        outputs: by role: the subject's, and each control's.
        desk: the judge at work for it, where it was asked for one.
    """
    from saebench_meta.artifacts import draft

    metrics = measure(unit.task, outputs, session.settings.seed)
    files = draft(outputs, session.registry)
    record = _base(session, unit, clock)(
        status="ok",
        model=_model_used(session, unit),
        data=_data_used(session, unit),
        labelled=_labelled_used(session, unit),
        judge=_judge_used(unit, desk),
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


def _judge_used(unit: Unit, desk: Desk | None) -> JudgeUsed | None:
    """What was asked of a judge, and what that took; just who it is where the unit did not come to ask it."""
    if desk is not None:
        return desk.used()
    return None if unit.judge is None else unit.judge.to_record(unit.prompts)
