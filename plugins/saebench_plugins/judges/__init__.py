"""Judges: `lexical` (offline, no model), `hf` (a local model) and `openai` (any server that speaks its protocol)."""

from __future__ import annotations

from collections.abc import Mapping

from saebench_meta.hookspecs import hookimpl
from saebench_meta.judging import JudgeLoader
from saebench_plugins.judges.hf import LOADER as HF
from saebench_plugins.judges.lexical import LOADER as LEXICAL
from saebench_plugins.judges.openai import LOADER as OPENAI

saebench_api = 1


@hookimpl
def saebench_judges() -> Mapping[str, JudgeLoader]:
    return {"hf": HF, "lexical": LEXICAL, "openai": OPENAI}
