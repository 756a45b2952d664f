"""What `saebench train` and `Context.train` do: from references to activations, SAEs, and files."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from saebench_meta.errors import BadFileError, SaebenchError
from saebench_meta.events import Notice, TrainingStep
from saebench_meta.inputs import Inputs
from saebench_meta.record import TrainedSAE
from saebench_meta.resolve import ResolvedData, ResolvedSAE, named_hook, resolve_data, resolve_model
from saebench_meta.settings import Settings
from saebench_meta.store import check_writable
from saebench_meta.subjects import public_info
from saebench_meta.training.kept import FOLDER
from saebench_meta.training.recipe import Recipe, check_starts
from saebench_meta.worlds import WORLD_HOOK, World, open_world, world_version

if TYPE_CHECKING:
    from saebench_meta.plugins import Registry
    from saebench_meta.sae import SAE
    from saebench_meta.session import Session
    from saebench_meta.training.feed import Feed
    from saebench_meta.training.loop import Listeners
    from saebench_meta.training.metrics import Figures
    from saebench_meta.training.run import SiteFacts, Trained
    from saebench_meta.training.trainable import Processes

FORMAT = "native"
"""The loader that trained SAEs are written and read by."""


@dataclass(frozen=True, eq=False)
class Job:
    """Several recipes over one site's activations, or over samples of one world.

    Attributes:
        source: model, hook and corpus (of its sampling only context, BOS, split and text field are used); or a world.
        settings: model, device and precision.
        out: each SAE gets a folder in it.
        start: the SAE that all of them start from, where their architecture says so.
    """

    recipes: tuple[Recipe, ...]
    source: Inputs | World
    settings: Settings
    out: Path
    checkpoint_minutes: float = 10.0
    force: bool = False
    start: ResolvedSAE | None = None


def make_job(registry: Registry, recipes: Sequence[Recipe], **options: Any) -> Job:
    """A job with every reference resolved; nothing is loaded.

    Args:
        options: `world`, or `model`, `revision`, `hook`, `corpus`, `split`, `text_field`, `data_revision`, `context`,
            `bos`; and `out`, `device`, `device_map`, `dtype`, `threads`, `checkpoint_minutes`, `force`; and `start`, a
            resolved SAE or None.

    Raises:
        SaebenchError: a reference cannot be resolved, or recipes that cannot share one pass or lack a start.
    """
    for recipe in recipes:
        check_starts(registry.architectures[recipe.architecture], recipe, options["start"] is not None)
    if len(sizes := {r.batch_size for r in recipes}) > 1:
        raise SaebenchError(f"SAEs trained in one pass share their batch size; these have {sorted(sizes)}")
    names = ("model", "revision", "device", "device_map", "dtype", "threads")
    settings = Settings(**{name: options[name] for name in names})
    source = _inputs(registry, options) if options["world"] is None else open_world(registry, options["world"])
    rest = {name: options[name] for name in ("out", "checkpoint_minutes", "force", "start")}
    return Job(tuple(recipes), source, settings, **rest)


def _inputs(registry: Registry, options: Mapping[str, Any]) -> Inputs:
    """Model, hook and the corpus, by default of the split that it keeps for training."""
    model = resolve_model(registry, options["model"], options["revision"])
    data = resolve_data(registry, options["corpus"], split=options["split"], revision=options["data_revision"])
    if options["split"] is None and data.loader.train_split is not None:
        data = resolve_data(registry, data.ref, split=data.loader.train_split, revision=options["data_revision"])
    sampling = {
        "context": options["context"],
        "prepend_bos": options["bos"],
        "split": data.identity.split,
        "text_field": options["text_field"],
    }
    return Inputs(model, data, named_hook(options["hook"], options["model"]), sampling)


def run_job(registry: Registry, job: Job) -> list[Trained]:
    """Train what a job asks for; what is finished is kept. With `torchrun`, as one of its processes.

    Raises:
        SaebenchError: the folder cannot be written, the hook is not the model's, the corpus is empty, a loss that is
            not a number, …
    """
    import torch

    from saebench_meta.session import Session
    from saebench_meta.training.launch import init_processes

    check_writable(job.out)
    if job.settings.threads is not None:
        torch.set_num_threads(job.settings.threads)
    with init_processes(_device_type(job.settings.device)) as (processes, device):
        settings = job.settings if processes.count == 1 else replace(job.settings, device=str(device))
        session = Session(registry, settings)
        if isinstance(job.source, Inputs):
            session.model(job.source).check_hook(job.source.hook)
        start = None if job.start is None else session.sae(job.start)
        made: dict[str, Trained] = {}
        for recipes in _passes(job.recipes):
            trained = train_on(
                session,
                recipes,
                feed_of(session, job.source, recipes[0], processes),
                job.out,
                facts_of(job.source),
                start=start,
                minutes=job.checkpoint_minutes,
                resume=not job.force,
                processes=processes,
            )
            made |= {t.recipe.digest(): t for t in trained}
        return [made[recipe.digest()] for recipe in job.recipes]


def _passes(recipes: Sequence[Recipe]) -> list[list[Recipe]]:
    """Recipes that see the data in the same order, together."""
    orders: dict[int, list[Recipe]] = {}
    for recipe in recipes:
        orders.setdefault(recipe.data_seed, []).append(recipe)
    return list(orders.values())


def train_on(
    session: Session,
    recipes: Sequence[Recipe],
    feed: Feed,
    folder: Path,
    facts: SiteFacts,
    *,
    start: SAE | None = None,
    minutes: float = 10.0,
    resume: bool = True,
    processes: Processes | None = None,
) -> list[Trained]:
    """Train on a feed, with the session told of every step."""
    from saebench_meta.training.loop import Pace, names, train

    registry = session.registry
    seconds = 60 * minutes if minutes else None
    return train(
        registry.architectures,
        recipes,
        feed,
        folder,
        facts,
        registry.loaders[FORMAT],
        start=start,
        pace=Pace(checkpoint_seconds=seconds),
        listeners=listeners_of(session, dict(zip(names(recipes), recipes, strict=True))),
        processes=processes,
        resume=resume,
    )


def train_once(
    session: Session,
    recipe: Recipe,
    digest: str,
    feed: Callable[[], Feed],
    facts: SiteFacts,
    start: SAE | None = None,
) -> Trained:
    """The SAE of a key: found in the cache, or trained there; without a cache, in a folder that is removed.

    What is damaged in the cache is trained anew.
    """
    from saebench_meta.training.run import OtherTrainingError, finished_in

    folder = None
    if session.cache is not None:
        folder = session.cache.root / FOLDER / digest[:32]
        try:
            found = finished_in(folder / recipe.label, recipe, session.registry.loaders[FORMAT], session.device)
        except BadFileError:
            found = None  # told below, while the folder is held
        if found is not None:
            session.emit(Notice("info", f"{recipe.label} was trained before and is in the cache"))
            return found
        folder = folder if _usable(session, folder) else None
    session.emit(Notice("info", f"training {recipe.label} on {recipe.tokens:,} activations"))
    activations = feed()
    if folder is None:
        with tempfile.TemporaryDirectory(prefix="saebench-training-") as scratch:
            return train_on(session, [recipe], activations, Path(scratch), facts, start=start)[0]
    try:
        return train_on(session, [recipe], activations, folder, facts, start=start)[0]
    except (BadFileError, OtherTrainingError) as e:
        session.emit(Notice("warning", f"{recipe.label} is trained anew, what is in the cache cannot be used: {e}"))
        return train_on(session, [recipe], activations, folder, facts, start=start, resume=False)[0]


def _usable(session: Session, folder: Path) -> bool:
    """Whether a folder of the cache can be written; where not, the user is told."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        why = None if os.access(folder, os.W_OK) else "it is not writable"
    except OSError as e:
        why = e.strerror or str(e)
    if why is not None:
        session.emit(Notice("warning", f"what is trained is not kept: '{folder}' cannot be used ({why})"))
    return why is None


def listeners_of(session: Session, recipes: dict[str, Recipe]) -> Listeners:
    """Figures and notices as events of the session."""
    from saebench_meta.training.loop import Listeners

    def progress(label: str, figures: Figures) -> None:
        session.emit(
            TrainingStep(
                label=label,
                step=figures.step,
                steps=recipes[label].steps,
                loss=figures.loss,
                fvu=figures.fvu,
                l0=figures.l0,
                dead_share=figures.dead_share,
                tokens_per_second=figures.tokens_per_second,
            )
        )

    return Listeners(notice=lambda message: session.emit(Notice("warning", message)), progress=progress)


def feed_of(session: Session, source: Inputs | World, recipe: Recipe, processes: Processes) -> Feed:
    """What a job trains on: activations at a site on its corpus, or samples of a world."""
    if isinstance(source, Inputs):
        return site_feed_of(session, source, source.data, recipe, processes=processes)
    from saebench_meta.training.world_feed import WorldFeed

    version = world_version(session.registry, source.name)
    options: dict[str, Any] = {"version": version, "device": session.device, "processes": processes}
    return WorldFeed(source, recipe.batch_size, recipe.data_seed, **options)


def site_feed_of(
    session: Session,
    inputs: Inputs,
    data: ResolvedData,
    recipe: Recipe,
    *,
    exclude: frozenset[str] = frozenset(),
    processes: Processes | None = None,
) -> Feed:
    """Activations at a site on a corpus, without some of its documents."""
    from saebench_meta.training.site_feed import Source, site_feed

    sampling = inputs.sampling
    text_field = str(sampling["text_field"])

    def documents() -> Any:
        return data.loader.documents(
            data.rest, split=data.identity.split, revision=data.identity.revision, text_field=text_field
        )

    source = Source(
        model=session.model(inputs),
        hook=inputs.hook,
        documents=documents,
        corpus=data.key(),
        context=int(sampling["context"]),
        prepend_bos=bool(sampling["prepend_bos"]),
        exclude=exclude,
        text_field=text_field,
        forward_tokens=session.settings.batch_size,
        notice=lambda message: session.emit(Notice("warning", message)),
    )
    options: dict[str, Any] = {} if processes is None else {"processes": processes}
    return site_feed(source, recipe.batch_size, recipe.data_seed, **options)


def facts_of(source: Inputs | World) -> SiteFacts:
    """What the info of an SAE trained on these inputs, or on this world, says of them."""
    from saebench_meta.sae import Site
    from saebench_meta.training.run import SiteFacts

    if not isinstance(source, Inputs):
        return SiteFacts(site=Site(model=source.name, hook=WORLD_HOOK), prepend_bos=False)
    inputs = source
    return SiteFacts(
        site=Site(model=inputs.model.ref, hook=inputs.hook, revision=inputs.model.identity.revision),
        prepend_bos=bool(inputs.sampling["prepend_bos"]),
        context_size=int(inputs.sampling["context"]),
        dataset=inputs.data.ref,
    )


def _device_type(device: str) -> str:
    """`cuda` where the device named, or found, is a GPU."""
    import torch

    found = "cuda" if torch.cuda.is_available() else "cpu"
    return found if device == "auto" else device


def in_record(trained: Trained) -> TrainedSAE:
    """What a record says of an SAE that its run trained."""
    training = trained.training
    last = {k: v for k, v in training.metrics.items() if isinstance(v, int | float) and not isinstance(v, bool)}
    return TrainedSAE(
        label=trained.recipe.label,
        recipe=trained.recipe.model_dump(mode="json"),
        recipe_sha256=trained.recipe.digest(),
        data=training.feed,
        content_sha256=training.content_sha256,
        info=public_info(trained.sae.info),
        seconds=round(training.seconds, 3),
        metrics={k: float(v) for k, v in last.items()},
    )
