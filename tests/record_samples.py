"""Records made by hand, and a folder that holds one, for the tests of what reads records."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from record_factory import make_record

from saebench_meta.record import (
    Artifact,
    ControlResult,
    DataUsed,
    Interval,
    MetricResult,
    ModelUsed,
    Order,
    Record,
    Subject,
    SubjectSAE,
    TaskRef,
)
from saebench_meta.sae import SAEInfo, Site

SITE = Site(model="toy", hook="blocks.0.hook_resid_post")
SVG = "<svg xmlns='http://www.w3.org/2000/svg' width='80' height='40'><rect width='80' height='40' fill='teal'/></svg>"


def info(name: str = "wide", d_sae: int = 8) -> SAEInfo:
    return SAEInfo(name=name, site=SITE, d_in=4, d_sae=d_sae)


def metric(
    value: float | None = 0.75, low: float | None = 0.70, high: float | None = 0.80, **fields: Any
) -> MetricResult:
    interval = low is not None
    standard: dict[str, Any] = {
        "value": value,
        "ci_low": low,
        "ci_high": high,
        "level": 0.95 if interval else None,
        "n": 120,
        "n_unit": "documents",
        "method": "bootstrap" if interval else "census",
        "better": "higher",
        "unit": "fraction",
        "main": True,
    }
    return MetricResult(**{**standard, **fields})


def control(value: float, margin: float) -> ControlResult:
    ahead = Interval(
        value=margin,
        ci_low=margin - 0.1,
        ci_high=margin + 0.1,
        level=0.95,
        n=120,
        n_unit="documents",
        method="bootstrap",
    )
    return ControlResult(value=value, n=120, n_unit="documents", method="bootstrap", margin=ahead)


def order(holds: bool | None = True, observed: str = "trained>random") -> Order:
    return Order(expected="trained>random", observed=observed, holds=holds, why="trained directions carry more")


def data(content: str = "c" * 64, **sampling: Any) -> DataUsed:
    return DataUsed(
        ref="corpus.txt",
        revision=None,
        split=None,
        sha256="d" * 64,
        sampling={"tokens": 1024, "context": 64, "packing": "documents", "text_field": "text", "seed": 0, **sampling},
        documents=120,
        tokens=1024,
        content_sha256=content,
    )


MODEL = ModelUsed(ref="toy", revision=None, files={}, hook=SITE.hook, dtype="bfloat16")


def record(
    *,
    name: str = "wide",
    task: str = "toy_task",
    version: int = 1,
    metrics: Mapping[str, MetricResult] | None = None,
    status: str = "ok",
    **fields: Any,
) -> Record:
    standard: dict[str, Any] = {
        "id": hashlib.sha256(repr((name, task, version, fields)).encode()).hexdigest(),
        "task": TaskRef(name=task, version=version, parameters={"power": 2.0}, plugin="toy:toy", plugin_version="1"),
        "subject": Subject(
            kind="sae",
            name=name,
            saes=[SubjectSAE(ref=f"toy:{name}", role="sae", loader="toy", loader_version=1, info=info(name), files={})],
        ),
    }
    metrics = {"score": metric()} if metrics is None and status == "ok" else metrics
    made = make_record(**{**standard, "status": status, "metrics": metrics or {}, **fields})
    return made.model_copy(update={"versions": made.versions.model_copy(update={"commit": "abc", "dirty": True})})


def write(
    run: Path,
    made: Record,
    *,
    documents: Mapping[str, Sequence[Any]] | None = None,
    files: Mapping[str, tuple[str, str, str]] | None = None,
) -> Path:
    """Write a record below a run folder; `files` is path -> (kind, title, text). Returns the record's folder."""
    folder = run / made.subject.name / f"{made.task.name}@{made.task.version}" / made.id[:12]
    folder.mkdir(parents=True)
    artifacts = []
    for path, (kind, title, text) in (files or {}).items():
        target = folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text)
        digest = hashlib.sha256(text.encode()).hexdigest()
        artifacts.append(
            Artifact(path=path, kind=kind, title=title, caption="a caption", sha256=digest, bytes=len(text))
        )
        if path.endswith(".vl.json"):
            (folder / path.replace(".vl.json", ".svg")).write_text(SVG)
    if documents is not None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        pq.write_table(pa.table(dict(documents)), folder / "documents.parquet")
    (folder / "record.json").write_text(made.model_copy(update={"artifacts": artifacts}).to_json())
    return folder
