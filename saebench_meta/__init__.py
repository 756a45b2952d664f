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
    "Samples": "hookspecs",
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


if TYPE_CHECKING:  # each under its own name, which is how a type checker knows it for public
    from saebench_meta.api import Result as Result, load_sae as load_sae, run as run  # noqa: I001
    from saebench_meta.cities import Cities as Cities, CityLoader as CityLoader
    from saebench_meta.codes import Codes as Codes
    from saebench_meta.context import Context as Context
    from saebench_meta.errors import SaebenchError as SaebenchError
    from saebench_meta.hookspecs import (
        Architecture as Architecture,
        CatalogueEntry as CatalogueEntry,
        DataIdentity as DataIdentity,
        DatasetLoader as DatasetLoader,
        LabelledLoader as LabelledLoader,
        LabelledSet as LabelledSet,
        ModelIdentity as ModelIdentity,
        ModelLoader as ModelLoader,
        SAEHeader as SAEHeader,
        SAELoader as SAELoader,
        Samples as Samples,
        hookimpl as hookimpl,
    )
    from saebench_meta.judging import (
        Answer as Answer,
        Asked as Asked,
        Judge as Judge,
        JudgeDesk as JudgeDesk,
        JudgeLoader as JudgeLoader,
        JudgeServices as JudgeServices,
        Price as Price,
        Request as Request,
    )
    from saebench_meta.record import Record as Record, read_record as read_record
    from saebench_meta.sae import SAE as SAE, SAEInfo as SAEInfo, Site as Site
    from saebench_meta.stats import Estimate as Estimate
    from saebench_meta.task import (
        Family as Family,
        Figure as Figure,
        Metric as Metric,
        Output as Output,
        Pair as Pair,
        Table as Table,
        Task as Task,
        Transcript as Transcript,
    )
    from saebench_meta.training.recipe import Recipe as Recipe, make_recipe as make_recipe
    from saebench_meta.worlds import KnownTruth as KnownTruth, World as World, WorldLoader as WorldLoader
