"""What the board says of how a record was made: its settings, versions and hashes, without its numbers."""

from __future__ import annotations

from typing import Any

from saebench_meta.leaderboard.board import Source
from saebench_meta.leaderboard.entries import Entry
from saebench_meta.leaderboard.results import weights_of
from saebench_meta.record import Record, SubjectSAE


def source_of(e: Entry) -> Source:
    """A record's making, as plain data without what is empty."""
    return Source(e.record.id, f"{e.record.task.name}@{e.record.task.version}", e.badge, _kept(_facts(e)))


def _facts(e: Entry) -> dict[str, Any]:
    record, badge = e.record, e.checked.reproduced
    return {
        "record": e.checked.name,
        "task": record.task.model_dump(mode="json"),
        **{s.role: _sae(s) for s in record.subject.saes},
        "model": record.model and record.model.model_dump(mode="json"),
        "data": record.data and record.data.model_dump(mode="json"),
        "labelled": [s.model_dump(mode="json", exclude={"classes"}) for s in record.labelled],
        "judge": record.judge and record.judge.model_dump(mode="json"),
        "trained": [{"label": t.label, "recipe": t.recipe_sha256, "weights": t.content_sha256} for t in record.trained],
        "run": record.run.model_dump(mode="json"),
        "versions": record.versions.model_dump(mode="json"),
        "reproduced with": badge and badge.versions.model_dump(mode="json"),
        "notes": record.notes,
        "extra": record.extra,
        "again": _command(record),
    }


def _sae(sae: SubjectSAE) -> dict[str, Any]:
    info = sae.info.model_dump(mode="json", exclude={"name", "site", "notes", "folded"})
    return {
        "ref": sae.ref,
        "name": sae.info.name,
        "loader": f"{sae.loader} {sae.loader_version}",
        "weights": weights_of(sae),
        "site": sae.info.site.model_dump(mode="json"),
        **info,
    }


def _command(record: Record) -> str:
    return f"saebench run --from-record {record.id[:12]}/record.json"


def _kept(value: Any) -> Any:
    """Without what is None or empty, level by level."""
    if isinstance(value, dict):
        inner = {k: _kept(v) for k, v in value.items()}
        return {k: v for k, v in inner.items() if v is not None and v not in ({}, [])}
    return [_kept(v) for v in value] if isinstance(value, list) else value
