"""Every extension point, on one page.

A plugin is a module with `saebench_api = 1` and any of the functions below, marked with `saebench_meta.hookimpl`. It is
found through the entry-point group `saebench_meta`. All functions are called once, when a command first needs names;
none may touch the network or import torch. Names of all plugins share one namespace per hook: two plugins that claim
one name are an error that names both.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pluggy

if TYPE_CHECKING:
    from saebench_meta.cities import CityLoader
    from saebench_meta.events import Event
    from saebench_meta.judging import JudgeLoader
    from saebench_meta.models import LanguageModel
    from saebench_meta.sae import SAE, SAEInfo
    from saebench_meta.task import Task
    from saebench_meta.training.recipe import Recipe
    from saebench_meta.training.trainable import TrainableSAE
    from saebench_meta.worlds import KnownTruth, WorldLoader

PROJECT = "saebench_meta"
API_VERSION = 1

hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


@dataclass(frozen=True)
class SAEHeader:
    """What can be told of an SAE without its weights: its info and the files that make it up (name -> path)."""

    info: SAEInfo
    files: Mapping[str, Path]


@dataclass(frozen=True)
class SAELoader:
    """How SAEs of one format are opened.

    Attributes:
        load: `(ref, *, device, dtype) -> SAE`, where `ref` is the part after `scheme:`, or a path.
        peek: `ref -> SAEHeader` without importing torch, so that finished records are recognised at once. Without it
            the SAE is loaded and its weights are hashed instead.
        save: `(sae, path) -> path`: writes the format, for `saebench convert`; None for formats that are only read.
        claims: `path -> bool`: does this file or folder look like this format? Lets users pass bare paths.
        version: raise it when the same file would give other codes than before; it is part of a record's id.
        summary: one line for `saebench plugins`.
        parameters: `TASK.KEY` -> value: what a task's parameter is by default for SAEs of this format, under the user's
            `-P`. On a pair or family it holds where all members are of formats that say the same; tasks that are not
            installed are passed over.
    """

    load: Callable[..., SAE]
    peek: Callable[[str], SAEHeader] | None = None
    claims: Callable[[Path], bool] | None = None
    save: Callable[[SAE, Path], Path] | None = None
    version: int = 1
    summary: str = ""
    parameters: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class CatalogueEntry:
    """One line of `saebench saes`: an SAE that can be had by reference."""

    ref: str
    model: str
    hook: str
    d_sae: int
    architecture: str = ""
    d_in: int | None = None
    k: int | None = None
    note: str = ""


@dataclass(frozen=True)
class ModelIdentity:
    """What names a language model in a record's id: reference, revision, and hashes of local files."""

    ref: str
    revision: str | None = None
    files: Mapping[str, str] = field(default_factory=dict)
    parameters: int | None = None
    """About how many parameters it has, where that can be told; for estimates of time, not part of the id."""


@dataclass(frozen=True)
class ModelLoader:
    """How language models of one scheme are opened.

    Attributes:
        load: `(ref, *, revision, device, dtype) -> LanguageModel`; also given `device_map` when the user names one
            (`auto`, `balanced`, `balanced_low_0`, `sequential`: spread over all GPUs).
        peek: `(ref, *, revision) -> ModelIdentity` without importing torch; raises if the model cannot be had.
        names: references to show in `saebench models`.
    """

    load: Callable[..., LanguageModel]
    peek: Callable[..., ModelIdentity]
    names: tuple[str, ...] = ()
    summary: str = ""


@dataclass(frozen=True)
class DataIdentity:
    """What names a data set in a record's id."""

    ref: str
    revision: str | None = None
    split: str | None = None
    sha256: str | None = None
    """Hash of the local file or of the generator and its seed; None for a pinned hub revision."""


@dataclass(frozen=True)
class DatasetLoader:
    """How corpora of one scheme are opened.

    Attributes:
        documents: `(ref, *, split, revision, text_field) -> Iterable[str]`, always in the same order.
        peek: `(ref, *, split, revision) -> DataIdentity` without importing torch.
        claims: `path -> bool`, so that bare paths work.
        names: references to show in messages.
        train_split: the split that variants are trained on, where it is another than the one evaluated by default.
            Without it they are trained on the documents that the run does not evaluate.
    """

    documents: Callable[..., Iterable[str]]
    peek: Callable[..., DataIdentity]
    claims: Callable[[Path], bool] | None = None
    names: tuple[str, ...] = ()
    summary: str = ""
    train_split: str | None = None


@dataclass(frozen=True)
class LabelledSet:
    """Texts with one class each, in splits that share no text.

    Attributes:
        classes: their names.
        texts: by split; there are at least `train` and `test`.
        labels: by split, the number of each text's class.
    """

    classes: tuple[str, ...]
    texts: Mapping[str, tuple[str, ...]]
    labels: Mapping[str, tuple[int, ...]]

    def __post_init__(self) -> None:
        for split, texts in self.texts.items():
            labels = self.labels.get(split, ())
            if len(texts) != len(labels):
                raise ValueError(f"split '{split}' has {len(texts):,} texts and {len(labels):,} labels")
            if strange := set(labels) - set(range(len(self.classes))):
                raise ValueError(f"split '{split}': labels {sorted(strange)} of {len(self.classes)} classes")


@dataclass(frozen=True)
class LabelledLoader:
    """How labelled sets of one scheme are opened.

    Attributes:
        load: `ref -> LabelledSet`, where `ref` is the part after `scheme:`; always the same.
        peek: `ref -> DataIdentity` without importing torch; its `ref` is what results call the set.
        names: the sets there are, without the scheme.
        models: references of the language models they are made for, whose SAEs are measured on them by default. Empty:
            for any model that no other loader names.
        claims: `path -> bool`: does this file look like one? Lets users pass bare paths.
        version: raise it when the same source would give other texts; it is part of a record's id.
    """

    load: Callable[[str], LabelledSet]
    peek: Callable[[str], DataIdentity]
    names: tuple[str, ...] = ()
    summary: str = ""
    models: tuple[str, ...] = ()
    claims: Callable[[Path], bool] | None = None
    version: int = 1


NeedCheck = Callable[["SAEInfo"], "str | None"]
"""None when the need is met for an SAE, else why not and what to do."""


@dataclass(frozen=True)
class Architecture:
    """A kind of SAE that can be trained.

    Attributes:
        build: `(recipe, d_in, first batch, generator) -> saebench_meta.training.trainable.TrainableSAE`. A class will
            do. It may import torch when it is called. Where `starts` is true it is also given `start=`, an SAE.
        hyperparameters: its own settings with their defaults (`k`, `l1`, …); the default's type is the type.
        recipe: defaults of recipe fields that differ from the recipe's own (`lr`, …).
        check: `recipe -> None`, or what is wrong with its values.
        version: raise it when the same recipe would give other weights.
        summary: one line.
        starts: whether training starts from an SAE, of the recipe's width; activations are then not scaled.
    """

    build: Callable[..., TrainableSAE]
    hyperparameters: Mapping[str, Any] = field(default_factory=dict)
    recipe: Mapping[str, Any] = field(default_factory=dict)
    check: Callable[[Recipe], str | None] | None = None
    version: int = 1
    summary: str = ""
    starts: bool = False


@dataclass(frozen=True)
class Samples:
    """What a plugin is tried with by `saebench check` and `saebench_meta.testing`.

    Attributes:
        saes: scheme -> references, without the scheme, of small sound SAEs.
        parameters: task -> parameters that cost less than its defaults.
        judges: judge -> options under which asking it costs nothing.
        recipes: architecture -> fields of a recipe, and hyperparameters, that differ from its defaults.
        exempt: id of a check, as it is printed -> why the rule does not hold here; `*` stands for any characters.
    """

    saes: Mapping[str, Iterable[str]] = field(default_factory=dict)
    parameters: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    judges: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    recipes: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    exempt: Mapping[str, str] = field(default_factory=dict)


@hookspec
def saebench_loaders() -> Mapping[str, SAELoader | Callable[..., SAE]]:  # type: ignore[empty-body]
    """SAE formats: scheme -> loader, so that `--sae scheme:rest` finds it.

    Called once per command, before any reference is resolved. A value is an `SAELoader`, or just the function
    `(ref, *, device, dtype) -> SAE`. For a bare path every loader's `claims` is asked; exactly one must say yes.
    """


@hookspec
def saebench_catalogue() -> Iterable[CatalogueEntry]:  # type: ignore[empty-body]
    """SAEs that can be had by reference, for `saebench saes` and for finding a missing reference SAE.

    Called once per command. Entries of all plugins are joined; references must be unique.
    """


@hookspec
def saebench_tasks() -> Iterable[Task]:  # type: ignore[empty-body]
    """Tasks, as made by the `saebench_meta.task` decorator. Called once per command; names must be unique."""


@hookspec
def saebench_language_models() -> Mapping[str, ModelLoader]:  # type: ignore[empty-body]
    """Language models: scheme -> loader. A reference without a scheme goes to `hf` (hub name or local folder)."""


@hookspec
def saebench_datasets() -> Mapping[str, DatasetLoader]:  # type: ignore[empty-body]
    """Corpora: scheme -> loader. A bare path goes to the loader that claims it, a bare name to `hf`."""


@hookspec
def saebench_labelled() -> Mapping[str, LabelledLoader]:  # type: ignore[empty-body]
    """Labelled sets, for tasks with the need `labelled`: scheme -> loader, so that `scheme:name` finds one."""


@hookspec
def saebench_cities() -> Mapping[str, CityLoader]:  # type: ignore[empty-body]
    """Sets of cities with their facts and prompts, by name, for tasks with the need `cities`."""


@hookspec
def saebench_judges() -> Mapping[str, JudgeLoader]:  # type: ignore[empty-body]
    """Judges by name, for tasks that need one (`needs=["judge"]`). A judge is made when the first task asks it."""


@hookspec
def saebench_architectures() -> Mapping[str, Architecture]:  # type: ignore[empty-body]
    """SAEs that can be trained, by name, for `saebench train` and for variants that tasks ask for."""


@hookspec
def saebench_needs() -> Mapping[str, NeedCheck]:  # type: ignore[empty-body]
    """Needs of a third party's own tasks: name -> `info -> None` when met, or the reason why not and what to do.

    Asked while planning, before anything is loaded. Built-in needs (`activations`, `lm`, `reference`, `judge`) are not
    asked for here.
    """


@hookspec
def saebench_worlds() -> Mapping[str, WorldLoader]:  # type: ignore[empty-body]
    """Worlds drawn directly, whose features are known: scheme -> loader, for `saebench train --world scheme:NAME`."""


@hookspec
def saebench_truths() -> Mapping[str, KnownTruth]:  # type: ignore[empty-body]
    """What is known of language models' worlds, by name: the features on at every token, and oracle dictionaries.

    Asked while planning for what `truth` and the control `oracle` need; documents are annotated only for a task that
    asks for the truth.
    """


@hookspec
def saebench_samples(folder: Path) -> Samples:  # type: ignore[empty-body]
    """What to try this plugin with, such as small SAEs that it writes into `folder`, which is empty and soon removed.

    Asked only by `saebench check` and `saebench_meta.testing`, of the plugins that are checked. May import torch.
    """


@hookspec
def saebench_event(event: Event) -> None:
    """Called for every event of a run, in order, in the process that runs it. Provisional in API 1.

    An exception raised here is logged once and does not disturb the run.
    """
