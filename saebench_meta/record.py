"""The result record: one JSON file for one task on one subject under one set of settings.

Written strictly (unknown fields and NaN are errors), read tolerantly within a major schema version (unknown fields are
ignored). The id is intensional: it names what was asked, so it is known before anything is loaded.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from saebench_meta.errors import BadFileError
from saebench_meta.sae import SAEInfo

SCHEMA_VERSION = 1

Status = Literal["ok", "failed", "skipped"]


class _Model(BaseModel):
    """Written strictly: a field that is not in the schema, or a number that is not finite, is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, ser_json_inf_nan="constants")


class Interval(_Model):
    """A number with its interval; None where there is none, with the reason."""

    value: float | None
    ci_low: float | None = None
    ci_high: float | None = None
    level: float | None = None
    n: int = Field(ge=0)
    n_unit: str
    method: str
    reason: str | None = None


class ControlResult(Interval):
    """The same metric on a control, and how far the subject is ahead of it (paired over documents where possible)."""

    margin: Interval | None = Field(
        default=None,
        description="Subject minus control, signed so that positive is better (plain difference if better=neither).",
    )


class Order(_Model):
    """The order of controls a sound metric shows, and the one seen."""

    expected: str
    observed: str
    holds: bool | None = Field(description="None when a control could not be run or a margin is within its noise.")
    why: str = ""


class MetricResult(Interval):
    """One metric: estimate, direction, unit, controls."""

    better: Literal["higher", "lower", "neither"]
    unit: str
    main: bool = False
    of: str | None = Field(default=None, description="Formula over sums of the columns of documents.parquet.")
    help: str = ""
    controls: dict[str, ControlResult] = Field(default_factory=dict)
    order: Order | None = None


class TrainedSAE(_Model):
    """An SAE that a run trained: how, on what, and what came of it."""

    label: str
    recipe: dict[str, Any] = Field(description="Every setting of the training; its hash names the result.")
    recipe_sha256: str
    data: dict[str, Any] = Field(description="What the activations it was trained on came from.")
    content_sha256: str = Field(description="Hash of the weights; verified, not in the id.")
    info: SAEInfo
    seconds: float
    metrics: dict[str, float] = Field(default_factory=dict, description="At the end of the training, on its batches.")


class SubjectSAE(_Model):
    """One SAE of the subject: where it came from, what it is, what its files hash to."""

    ref: str
    role: Literal["sae", "reference", "member"]
    loader: str
    loader_version: int
    info: SAEInfo
    files: dict[str, str] = Field(
        description="File name -> sha256; `weights` -> content hash where a loader cannot peek."
    )
    trained: TrainedSAE | None = Field(default=None, description="For an SAE that the run trained itself.")


class Subject(_Model):
    kind: Literal["sae", "pair", "family"]
    name: str
    saes: list[SubjectSAE]


class TaskRef(_Model):
    name: str
    version: int
    parameters: dict[str, Any] = Field(default_factory=dict)
    plugin: str
    plugin_version: str


class ModelUsed(_Model):
    ref: str
    revision: str | None
    files: dict[str, str]
    hook: str
    processing: str = Field(default="raw", description="`raw`: weights as published, no folding or centring.")
    dtype: str
    backend: str | None = Field(default=None, description="Library and version the model ran on; not part of the id.")


class DataUsed(_Model):
    ref: str
    revision: str | None
    split: str | None
    sha256: str | None
    sampling: dict[str, Any]
    documents: int | None = None
    tokens: int | None = Field(default=None, description="Evaluated tokens: real, non-special positions.")
    content_sha256: str | None = Field(
        default=None, description="Hash of the tokens really used; verified, not in the id."
    )


class LabelledUsed(_Model):
    """One labelled set: what was asked for, and what of it was used."""

    name: str
    revision: str | None
    sha256: str | None
    texts: int | None = None
    test: int | None = Field(default=None, description="Of these texts, those in the set's test split.")
    tokens: int | None = Field(default=None, description="Evaluated tokens: real, non-special positions.")
    classes: dict[str, int] = Field(default_factory=dict, description="Class -> texts of it.")
    dropped: dict[str, int] = Field(default_factory=dict, description="Reason -> texts left out for it.")
    content_sha256: str | None = Field(
        default=None, description="Hash of the tokens, labels and splits really used; verified, not in the id."
    )


class JudgeUsed(_Model):
    """Who answered a task's questions, and what that took; equal requests of one unit count once."""

    name: str
    version: str
    plugin: str | None = None
    options: dict[str, Any] = Field(default_factory=dict, description="Those its answers depend on; never a key.")
    prompts: dict[str, str] = Field(
        default_factory=dict, description="Name -> sha256 of the prompts it was asked with."
    )
    models: dict[str, int] = Field(default_factory=dict, description="Model that a server said it used -> answers.")
    asked: int = Field(default=0, description="Different requests of the subject and its controls.")
    cached: int = Field(default=0, description="Of these, answered from the cache; not in the tokens and the cost.")
    unanswered: dict[str, int] = Field(default_factory=dict, description="Why there is no answer -> requests.")
    prompt_tokens: int | None = Field(default=None, description="Null where they were not told.")
    completion_tokens: int | None = Field(default=None, description="Null where they were not told.")
    cost_usd: float | None = Field(default=None, description="Null where the price is not known.")
    seconds: float | None = Field(default=None, description="Until it had answered.")


class Artifact(_Model):
    path: str
    kind: Literal["table", "figure", "transcript", "documents", "sae"]
    title: str
    caption: str = ""
    sha256: str
    bytes: int


class RunSettings(_Model):
    seed: int
    limit: int | None
    partial: bool
    profile: str
    device: str
    batch_size: str
    started: str
    seconds: float
    peak_rss_mb: float | None
    peak_gpu_mb: float | None


class Versions(_Model):
    saebench_meta: str
    commit: str | None
    dirty: bool | None
    python: str
    torch: str | None
    transformer_lens: str | None
    platform: str
    gpu: str | None


class Record(_Model):
    """A result record, schema version 1."""

    schema_version: Literal[1] = 1
    id: str = Field(pattern=r"^[0-9a-f]{64}$")
    status: Status
    reason: str | None = None
    task: TaskRef
    subject: Subject
    model: ModelUsed | None = None
    data: DataUsed | None = None
    labelled: list[LabelledUsed] = Field(default_factory=list)
    judge: JudgeUsed | None = None
    metrics: dict[str, MetricResult] = Field(default_factory=dict)
    artifacts: list[Artifact] = Field(default_factory=list)
    notes: list[str] = Field(default_factory=list)
    trained: list[TrainedSAE] = Field(default_factory=list, description="SAEs that the task trained for itself.")
    run: RunSettings
    versions: Versions
    extra: dict[str, dict[str, Any]] = Field(default_factory=dict, description="By namespace; for third parties.")

    def to_json(self) -> str:
        """The file's text: indented, keys in schema order, ends with a newline, never NaN."""
        return json.dumps(self.model_dump(mode="json"), indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def canonical_hash(value: Any) -> str:
    """sha256 of a JSON value written canonically (sorted keys, no spaces, no NaN)."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def json_schema() -> dict[str, Any]:
    """JSON Schema of the record, as `saebench schema` prints it."""
    schema = Record.model_json_schema()
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    schema["title"] = "saebench-meta result record"
    return schema


def parse_record(text: str | bytes, where: str) -> Record:
    """A record from its JSON text; fields this version does not know are dropped, anything else wrong is one error."""
    try:
        raw = json.loads(text, parse_constant=_no_constant)
    except (ValueError, RecursionError) as e:
        raise BadFileError(f"{where}: not valid JSON ({e})") from e
    if not isinstance(raw, dict):
        raise BadFileError(f"{where}: a record is a JSON object, this is a {type(raw).__name__}")
    version = raw.get("schema_version")
    if version != SCHEMA_VERSION:
        raise BadFileError(
            f"{where}: schema_version is {version!r}, this version of saebench-meta reads {SCHEMA_VERSION}. "
            "Use the version that wrote it, or rerun the task."
        )
    try:
        return Record.model_validate(_known_fields(raw, Record))
    except ValidationError as e:
        first = e.errors()[0]
        field = ".".join(str(p) for p in first["loc"])
        raise BadFileError(f"{where}: field '{field}': {first['msg']}") from e


def read_record(path: str | Path) -> Record:
    """Read `record.json`, given the file or its folder."""
    path = Path(path)
    file = path / "record.json" if path.is_dir() else path
    try:
        return parse_record(file.read_bytes(), str(file))
    except OSError as e:
        raise BadFileError(f"{file}: cannot be read ({e.strerror or e})") from e


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is not allowed")


def _known_fields(raw: Any, model: type[BaseModel]) -> Any:
    """Drop fields that a later minor version may have added, level by level."""
    if not isinstance(raw, dict):
        return raw
    out = {}
    for name, field in model.model_fields.items():
        if name in raw:
            out[name] = _known_value(raw[name], field.annotation)
    return out


def _known_value(value: Any, annotation: Any) -> Any:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return _known_fields(value, annotation)
    inner = next((a for a in get_args(annotation) if _holds_model(a)), None)
    if inner is None:
        return value
    if isinstance(value, list):
        return [_known_value(v, inner) for v in value]
    if isinstance(value, dict) and not _is_optional(annotation):
        return {k: _known_value(v, inner) for k, v in value.items()}
    return _known_value(value, inner)


def _holds_model(annotation: Any) -> bool:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return True
    return any(_holds_model(a) for a in get_args(annotation))


def _is_optional(annotation: Any) -> bool:
    return type(None) in get_args(annotation)
