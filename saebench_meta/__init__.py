"""saebench-meta: a benchmark for sparse autoencoders whose numbers carry their intervals and controls.

The names below are the public API. Importing this package loads no torch; each name is imported when first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOME = {
    "SAE": "sae",
    "SAEInfo": "sae",
    "Site": "sae",
    "Codes": "codes",
    "Estimate": "stats",
    "Context": "context",
    "Task": "task",
    "Metric": "task",
    "Output": "task",
    "Table": "task",
    "Transcript": "task",
    "Figure": "task",
    "Pair": "task",
    "Family": "task",
    "Record": "record",
    "read_record": "record",
    "hookimpl": "hookspecs",
    "SAELoader": "hookspecs",
    "SAEHeader": "hookspecs",
    "CatalogueEntry": "hookspecs",
    "ModelLoader": "hookspecs",
    "ModelIdentity": "hookspecs",
    "DatasetLoader": "hookspecs",
    "DataIdentity": "hookspecs",
    "Architecture": "hookspecs",
    "LabelledLoader": "hookspecs",
    "LabelledSet": "hookspecs",
    "Answer": "judging",
    "Asked": "judging",
    "Judge": "judging",
    "JudgeDesk": "judging",
    "JudgeLoader": "judging",
    "JudgeServices": "judging",
    "Price": "judging",
    "Request": "judging",
    "Cities": "cities",
    "CityLoader": "cities",
    "World": "worlds",
    "WorldLoader": "worlds",
    "KnownTruth": "worlds",
    "Recipe": "training.recipe",
    "make_recipe": "training.recipe",
    "SaebenchError": "errors",
    "load_sae": "api",
    "run": "api",
    "Result": "api",
}

__all__ = ["__version__", *sorted(_HOME)]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'saebench_meta' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"saebench_meta.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return list(__all__)


if TYPE_CHECKING:
    from saebench_meta.api import Result, load_sae, run
    from saebench_meta.cities import Cities, CityLoader
    from saebench_meta.codes import Codes
    from saebench_meta.context import Context
    from saebench_meta.errors import SaebenchError
    from saebench_meta.hookspecs import (
        Architecture,
        CatalogueEntry,
        DataIdentity,
        DatasetLoader,
        LabelledLoader,
        LabelledSet,
        ModelIdentity,
        ModelLoader,
        SAEHeader,
        SAELoader,
        hookimpl,
    )
    from saebench_meta.judging import Answer, Asked, Judge, JudgeDesk, JudgeLoader, JudgeServices, Price, Request
    from saebench_meta.record import Record, read_record
    from saebench_meta.sae import SAE, SAEInfo, Site
    from saebench_meta.stats import Estimate
    from saebench_meta.task import Family, Figure, Metric, Output, Pair, Table, Task, Transcript
    from saebench_meta.training.recipe import Recipe, make_recipe
    from saebench_meta.worlds import KnownTruth, World, WorldLoader
