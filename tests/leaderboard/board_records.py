"""Records that a leaderboard takes, made without a model: a toy task over columns, measured as in a run."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from record_factory import make_record

from saebench_meta.leaderboard.results import DOCUMENTS, RECORD, place
from saebench_meta.measure import SUBJECT, document_rows, measure
from saebench_meta.record import Artifact, DataUsed, ModelUsed, Record, Subject, SubjectSAE, TaskRef
from saebench_meta.sae import SAEInfo, Site
from saebench_meta.stats import Estimate, census
from saebench_meta.task import Metric, Output, Task, task

PLUGIN, MODEL, HOOK = "toy-tasks:toy", "toy-model", "blocks.0.hook_resid_post"
COMMIT = "0123456789abcdef0123456789abcdef01234567"
METRICS = (
    Metric("error", "lower", "1", main=True, of="errors / tokens", expects="trained>random", why="it is trained"),
    Metric("gain", "higher", "fraction", of="1 - errors / total"),
    Metric("share", "neither", "fraction", main=True),
)


def sha(*what: object) -> str:
    return hashlib.sha256(repr(what).encode()).hexdigest()


def toy_task(metrics: tuple[Metric, ...] = METRICS, version: int = 1, name: str = "toy_errors") -> Task:
    @task(name, version=version, metrics=metrics)
    def run(sae: Any, ctx: Any) -> Output:
        """Errors a document."""
        raise AssertionError("it is never run")

    return run


def columns(level: float, *, n: int = 60, draw: int = 0, noise: float = 0.05) -> dict[str, Any]:
    """Per-document sums whose `errors / tokens` is near a level; documents of one draw are alike hard for all SAEs."""
    shared, own = np.random.default_rng(draw), np.random.default_rng([draw, round(level * 1e9)])
    tokens = shared.integers(20, 60, n).astype(float)
    hardness = shared.gamma(8.0, 1 / 8.0, n)
    errors = tokens * level * hardness * (1 + noise * own.standard_normal(n))
    return {"document": [f"d{i}" for i in range(n)], "tokens": tokens, "errors": errors, "total": 4 * tokens}


def sae(
    name: str, *, model: str = MODEL, hook: str = HOOK, weights: str | None = None, role: str = "sae"
) -> SubjectSAE:
    info = SAEInfo(name=name, site=Site(model=model, hook=hook), d_in=4, d_sae=8, architecture="topk")
    files = {"weights": weights or sha("weights", name)}
    return SubjectSAE(ref=f"atlas:{name}", role=role, loader="atlas", loader_version=1, info=info, files=files)  # type: ignore[arg-type]


def make(
    name: str = "a",
    level: float = 0.5,
    *,
    seed: int = 0,
    draw: int = 0,
    n: int = 60,
    noise: float = 0.05,
    share: Estimate | None = None,
    against: str | None = None,
    model: str = MODEL,
    toy: Task | None = None,
    settings: Mapping[str, Any] | None = None,
    **fields: Any,
) -> tuple[Record, bytes]:
    """A record and its documents.parquet.

    Args:
        level: what `error` is near.
        draw: of the documents; numbers of one draw are over the same ones.
        against: name of the reference, for a pair.
        settings: changes to `run`.
    """
    toy = toy or toy_task()
    outputs = {
        role: Output(columns(at, n=n, draw=draw, noise=noise), {"share": share or census(0.25, 8)})
        for role, at in ((SUBJECT, level), ("random", 2.0))
    }
    if not any(m.of is None for m in toy.metrics):
        outputs = {role: Output(o.documents) for role, o in outputs.items()}
    data = parquet(document_rows(outputs) or {})
    saes = [sae(name, model=model), *([sae(against, model=model, role="reference")] if against else [])]
    base = make_record()
    standard: dict[str, Any] = {
        "id": sha(name, toy.name, toy.version, level, seed, draw, against, model, settings, sorted(fields)),
        "task": TaskRef(name=toy.name, version=toy.version, parameters={}, plugin=PLUGIN, plugin_version="1.0"),
        "subject": Subject(kind="pair" if against else "sae", name="-vs-".join(s.info.name for s in saes), saes=saes),
        "model": ModelUsed(ref=model, revision=None, files={"model": sha(model)}, hook=HOOK, dtype="float32"),
        "data": DataUsed(
            ref="corpus", revision=None, split=None, sha256=sha("corpus"),
            sampling={"tokens": 1024, "context": 64, "seed": seed}, documents=n, tokens=1024,
            content_sha256=sha("tokens", draw, n),
        ),
        "metrics": measure(toy, outputs, seed),
        "artifacts": [documents_artifact(data)],
        "run": base.run.model_copy(update={"seed": seed, **(settings or {})}),
        "versions": base.versions.model_copy(update={"commit": COMMIT, "dirty": False}),
    }  # fmt: skip
    return make_record(**{**standard, **fields}), data


def documents_artifact(data: bytes) -> Artifact:
    digest = hashlib.sha256(data).hexdigest()
    return Artifact(path=DOCUMENTS, kind="documents", title="per document", sha256=digest, bytes=len(data))


def parquet(table: Mapping[str, Any]) -> bytes:
    sink = io.BytesIO()
    pq.write_table(pa.table(dict(table)), sink)
    return sink.getvalue()


def put(results: Path, made: tuple[Record, bytes]) -> Path:
    """Write a record where the leaderboard keeps it; the record's folder."""
    record, data = made
    return write(results / place(record), record.to_json().encode(), data)


def write(folder: Path, record: bytes, data: bytes | None) -> Path:
    folder.mkdir(parents=True)
    (folder / RECORD).write_bytes(record)
    if data is not None:
        (folder / DOCUMENTS).write_bytes(data)
    return folder
