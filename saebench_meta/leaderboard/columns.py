"""Which numbers stand in one column: those of one metric of one task version under one setting.

A setting is what two records of a task must have in common for their numbers to be read side by side: judge, corpus,
sampling, labelled sets, limit, and every parameter that is not the task's default. The seed is none of it: another seed
is another draw of the same thing. Nor is the reference of a pair, which is a fact of the cell: numbers against another
reference are shown in one column, named, and never tested against each other.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from saebench_meta.leaderboard.rules import declared_task, is_third_party
from saebench_meta.plugins import Registry
from saebench_meta.record import JudgeUsed, ModelUsed, Record, canonical_hash

JUDGE = ("name", "version", "plugin", "options", "prompts")
"""Of a judge: who it was and what it was told, not what it took."""
PLAIN = {"dtype": "float32", "processing": "raw"}
LABEL_VALUES = 40
DIGITS = 8


@dataclass(frozen=True)
class Setting:
    """A setting of a task version."""

    facts: Mapping[str, Any]

    @cached_property
    def digest(self) -> str:
        """Names it in the keys of columns."""
        return canonical_hash(self.facts)


def model_keys(records: Iterable[Record]) -> dict[str, set[str]]:
    """Name of a model -> the models that records mean by it, by what their files hash to."""
    found: dict[str, set[str]] = defaultdict(set)
    for record in records:
        if record.model is not None:
            found[record.model.ref].add(model_key(record.model))
    return found


def model_key(model: ModelUsed) -> str:
    """What names a model besides what it is called: hashes of its files, else its revision."""
    return canonical_hash([dict(model.files), None if model.files else model.revision])


def setting_of(record: Record, registry: Registry, models: Mapping[str, set[str]]) -> Setting:
    """The setting of a record.

    Args:
        models: of `model_keys`; a model is part of the setting where its name means several on the board.
    """
    facts: dict[str, Any] = {}
    if record.judge is not None:
        facts["judge"] = judge_facts(record.judge)
    if record.data is not None:
        data = record.data
        facts["corpus"] = {"ref": data.ref, "revision": data.revision, "split": data.split, "sha256": data.sha256}
        facts["sampling"] = {k: v for k, v in data.sampling.items() if k != "seed"}
    if record.labelled:
        facts["labelled"] = [{"name": s.name, "revision": s.revision, "sha256": s.sha256} for s in record.labelled]
    if record.run.limit is not None:
        facts["limit"] = record.run.limit
    if record.model is not None:
        unlike = {n: getattr(record.model, n) for n, usual in PLAIN.items() if getattr(record.model, n) != usual}
        facts |= unlike
        if len(models.get(record.model.ref, ())) > 1:
            facts["model"] = model_key(record.model)[:DIGITS]
    if parameters := _chosen_parameters(record, registry):
        facts["parameters"] = parameters
    if is_third_party(record):
        facts["plugin"] = record.task.plugin
    return Setting(facts)


def judge_facts(judge: JudgeUsed) -> dict[str, Any]:
    """Who a judge is: its name, version, options, prompts and the models that answered, not how often."""
    said = judge.model_dump(mode="json")
    models = {"models": sorted(said["models"])} if said.get("models") else {}
    return {name: said[name] for name in JUDGE if said.get(name)} | models


def _chosen_parameters(record: Record, registry: Registry) -> dict[str, Any]:
    """Parameters that are not the task's defaults; all of them where the task's version is not installed."""
    task = declared_task(record, registry)
    if task is None:
        return dict(record.task.parameters)
    defaults = json.loads(json.dumps({p.name: p.default for p in task.parameters}))
    return {k: v for k, v in record.task.parameters.items() if k not in defaults or v != defaults[k]}


def labels(settings: Sequence[Setting]) -> list[str]:
    """A few words for each of a task's settings: where it differs from the others; empty for the only one."""
    flat = [_flat(s.facts) for s in settings]
    names = sorted({n for one in flat for n in one})
    telling = [n for n in names if len({one.get(n, "") for one in flat}) > 1]
    words = [n for n in telling if not n.endswith("sha256")] or telling
    found = [", ".join(f"{_word(n)} {one[n][:LABEL_VALUES]}" for n in words if n in one) for one in flat]
    if len(set(found)) == len(found):
        return found
    return [f"{label} ({s.digest[:DIGITS]})".strip() for label, s in zip(found, settings, strict=True)]


def _word(name: str) -> str:
    """What a fact is called in a label: `judge.name` is the judge, `sampling.tokens` the tokens."""
    parts = name.split(".")
    if len(parts) > 1 and parts[-1] in ("name", "ref"):
        return parts[-2]
    return " ".join(parts[-2:]) if parts[-1] == "version" else parts[-1]


def _flat(value: Any, name: str = "") -> dict[str, str]:
    if isinstance(value, Mapping):
        parts = (_flat(v, f"{name}.{k}" if name else str(k)) for k, v in value.items())
        return {k: v for part in parts for k, v in part.items()}
    if isinstance(value, list):
        return {name: " ".join(v for item in value for v in _flat(item, name).values())}
    return {} if value is None else {name: str(value)}


def comparable(record: Record, reference: str | None) -> str:
    """Records with the same text saw the same tokens with the same model, against the same reference."""
    data = record.data
    saw = None
    if data is not None:
        saw = data.content_sha256 or [data.ref, data.revision, data.split, data.sha256, dict(data.sampling)]
    model = None if record.model is None else [model_key(record.model), record.model.hook]
    sets = sorted((s.name, s.content_sha256) for s in record.labelled)
    return canonical_hash([sets, saw, model, reference])
