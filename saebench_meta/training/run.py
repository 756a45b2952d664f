"""One SAE's training in a folder of its own.

<folder>/recipe.json  metrics.jsonl  checkpoint.safetensors          while it goes on
<folder>/recipe.json  metrics.jsonl  sae.safetensors  training.json  when it is done, training.json last
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from pydantic import BaseModel, ConfigDict, ValidationError

from saebench_meta import seeds
from saebench_meta.environment import versions
from saebench_meta.errors import BadFileError, SaebenchError
from saebench_meta.record import canonical_hash
from saebench_meta.sae import SAE, SAEInfo, Site
from saebench_meta.store import write_atomic
from saebench_meta.training import checkpoint, metrics
from saebench_meta.training.metrics import Figures, MetricsFile, Sums
from saebench_meta.training.recipe import Recipe
from saebench_meta.training.trainer import Trainer

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

    from saebench_meta.hookspecs import Architecture, SAELoader
    from saebench_meta.training.feed import Feed, Position
    from saebench_meta.training.trainable import Exported, Processes
    from saebench_meta.training.trainer import StepResult

RECIPE, DONE, WEIGHTS = "recipe.json", "training.json", "sae.safetensors"
MAX_JSON = 1 << 20


@dataclass(frozen=True)
class SiteFacts:
    """What an SAE's info says of the activations it is trained on; fields as in `SAEInfo`."""

    site: Site
    prepend_bos: bool = True
    context_size: int | None = None
    dataset: str | None = None
    notes: tuple[str, ...] = ()


class OtherTrainingError(SaebenchError):
    """A folder holds the training of another recipe, or on other data."""


class Training(BaseModel):
    """`training.json`: how a finished SAE came about.

    Attributes:
        digest: of the recipe.
        feed: identity of the data, and under `start` the hash of the SAE it started from, where there is one.
        content_sha256: of the SAE (`SAE.content_hash`), with which its file is compared.
        metrics: figures of the last interval.
        seconds, tokens_per_second: of the training, interruptions left out.
        versions: of the software.
    """

    model_config = ConfigDict(frozen=True, allow_inf_nan=False)

    recipe: Recipe
    digest: str
    feed: dict[str, Any]
    content_sha256: str
    metrics: dict[str, Any]
    seconds: float
    tokens_per_second: float
    versions: dict[str, Any]


@dataclass(frozen=True, eq=False)
class Trained:
    """A finished SAE, and how it came about."""

    recipe: Recipe
    sae: SAE
    training: Training
    folder: Path

    @property
    def path(self) -> Path:
        """The SAE's file."""
        return self.folder / WEIGHTS

    @property
    def metrics(self) -> dict[str, Any]:
        """Figures of the last interval: `Figures` as JSON."""
        return self.training.metrics


class Run:
    """An SAE in training: what `loop` tells it to do, and its files, which only the first process writes."""

    def __init__(
        self,
        architecture: Architecture,
        recipe: Recipe,
        folder: Path,
        feed: Feed,
        facts: SiteFacts,
        form: SAELoader,
        processes: Processes,
        start: SAE | None = None,
    ) -> None:
        """See where the training in the folder stands.

        Args:
            form: how the SAE is written and read back.
            start: the SAE that it starts from, for an architecture that says so.

        Raises:
            OtherTrainingError: the folder holds the training of another recipe or on other data.
            BadFileError: a file in it is damaged.
        """
        self.architecture, self.recipe, self.folder, self.processes = architecture, recipe, folder, processes
        self.feed, self.facts, self.form, self.start = feed, facts, form, start
        self.identity = feed.identity() if start is None else {**feed.identity(), "start": start.content_hash()}
        self.data = canonical_hash(self.identity)
        self.finished = _finished(folder)
        self.header = None if self.finished else checkpoint.read_header(folder)
        self._check()
        self.failed: SaebenchError | None = None
        self.step = 0 if self.header is None else self.header.step
        self._last: Figures | None = None

    def _check(self) -> None:
        found = None
        if self.finished is not None:
            found = self.finished.digest, canonical_hash(self.finished.feed)
        elif self.header is not None:
            found = self.header.recipe, self.header.feed
        if found is not None and found != (self.recipe.digest(), self.data):
            other = "on other data" if self.start is None else "on other data or from another SAE"
            what = "by another recipe" if found[0] != self.recipe.digest() else other
            raise OtherTrainingError(
                f"'{self.folder}' holds a training {what}: give another folder, or train anew (--force)"
            )
        if self.header is not None and self.header.step > self.recipe.steps:
            raise BadFileError(f"checkpoint in '{self.folder}' is of step {self.header.step} of {self.recipe.steps}")

    @property
    def position(self) -> Position:
        """Of the feed in this process, where the training goes on."""
        positions = self.header.positions if self.header else ()
        if positions and len(positions) != self.processes.count:
            raise BadFileError(f"checkpoint in '{self.folder}' was written by {len(positions)} processes")
        return positions[self.processes.rank] if positions else ()

    @property
    def going(self) -> bool:
        """Whether there is something left to do."""
        return self.finished is None and self.failed is None

    def begin(self, first: Callable[[], Float[Tensor, "batch d_in"]]) -> None:
        """Make the trainer, anew or from the checkpoint."""
        if self.header is None:
            x = first()
        else:  # any activations will do: what they determine is restored
            size = (self.recipe.batch_size, self.feed.d_in)
            x = torch.randn(size, generator=seeds.generator(0, "placeholder")).to(self.feed.device)
        self.trainer = Trainer(self.architecture, self.recipe, x, start=self.start, processes=self.processes)
        self.sums = Sums(self.feed.device, self.header.interval if self.header else None)
        if self.header is not None:
            checkpoint.restore(self.folder, self.header, self.trainer)
        self._file: MetricsFile | None = None
        if self.processes.rank == 0:
            write_atomic(self.folder / RECIPE, _pretty(self.recipe.model_dump(mode="json")))
            self._file = MetricsFile(self.folder, self.step)
        self._before = self.header.seconds if self.header else 0.0
        self._began = time.monotonic()
        self._line = self.step, self._began

    def advance(self, x: Float[Tensor, "rows d_in"]) -> StepResult:
        """One step."""
        result = self.trainer.step(x)
        self.sums.add(result, self.step)
        self.step += 1
        return result

    def log(self) -> Figures:
        """End an interval: write its line.

        Raises:
            SaebenchError: the loss was NaN or infinite in it.
        """
        interval, now = self.sums.read(), time.monotonic()
        step, began = self._line
        speed = (self.step - step) * self.recipe.batch_size / max(now - began, 1e-9)
        self._last = metrics.figures(interval, self.recipe, self.step, speed)
        self.sums, self._line = Sums(self.feed.device), (self.step, now)
        if self._file is not None:
            self._file.write(self._last)
        return self._last

    def save(self, positions: tuple[Position, ...]) -> None:
        """Write a checkpoint.

        Raises:
            SaebenchError: the loss or a weight is NaN or infinite; the last checkpoint stays.
            OSError: the disk refuses; the last checkpoint stays.
        """
        interval, tensors = self.sums.read(), self.trainer.tensors()
        if broken := [name for name, t in tensors.items() if not bool(t.isfinite().all())]:
            raise SaebenchError(
                f"'{broken[0]}' is NaN or infinite after step {self.step - 1}: "
                "lower the learning rate, or clip the gradients"
            )
        if self._file is not None:
            self._file.sync()
            header = checkpoint.Header(
                recipe=self.recipe.digest(),
                feed=self.data,
                step=self.step,
                positions=positions,
                interval=interval,
                seconds=self.seconds,
            )
            checkpoint.write(self.folder, header, tensors)

    @property
    def seconds(self) -> float:
        """Taken so far, interruptions left out."""
        return self._before + time.monotonic() - self._began

    def complete(self, batches: Iterator[Float[Tensor, "rows d_in"]]) -> Trained:
        """What follows the last step: the architecture's end, the SAE, its files. `batches` follow the last step's."""
        self.trainer.finish(batches)
        sae = to_sae(self.trainer.export(), self.recipe, self.facts)
        last = self._last or metrics.last_line(self.folder)
        seconds, tokens = self.seconds, self.recipe.steps * self.recipe.batch_size
        training = Training(
            recipe=self.recipe,
            digest=self.recipe.digest(),
            feed=self.identity,
            content_sha256=sae.content_hash(),
            metrics=last.to_json(),
            seconds=seconds,
            tokens_per_second=tokens / seconds,
            versions=versions().model_dump(mode="json"),
        )
        text = _pretty(training.model_dump(mode="json"))
        self.finished = Training.model_validate_json(text)  # as those who read it back have it, to the order of keys
        if self._file is not None:
            self._file.sync()
            self._file.close()
            assert self.form.save is not None
            self.form.save(sae, self.folder / WEIGHTS)
            write_atomic(self.folder / DONE, text)
            (self.folder / checkpoint.FILE_NAME).unlink(missing_ok=True)
        return Trained(self.recipe, sae, self.finished, self.folder)

    def load(self) -> Trained:
        """The finished SAE, read back."""
        assert self.finished is not None
        return _read_back(self.folder, self.finished, self.form, self.feed.device)


def finished_in(folder: Path, recipe: Recipe, form: SAELoader, device: str | torch.device = "cpu") -> Trained | None:
    """The finished SAE of a recipe in a folder, read without the data it was trained on; None if there is none.

    Raises:
        BadFileError: a file is damaged, or the SAE is not the one that was trained.
    """
    found = _finished(folder)
    return None if found is None or found.digest != recipe.digest() else _read_back(folder, found, form, device)


def _read_back(folder: Path, training: Training, form: SAELoader, device: str | torch.device) -> Trained:
    sae = form.load(str(folder / WEIGHTS), device=device, dtype=torch.float32)
    if sae.content_hash() != training.content_sha256:
        raise BadFileError(f"'{folder / WEIGHTS}' has changed since it was trained: train anew (--force)")
    return Trained(training.recipe, sae, training, folder)


def to_sae(exported: Exported, recipe: Recipe, facts: SiteFacts) -> SAE:
    """The canonical SAE of what a trainer gives."""
    if exported.start is not None:
        return _with_decoder(exported.start, exported, recipe, facts)
    d_in, d_sae = exported.W_enc.shape
    k = exported.k if exported.k is not None else recipe.hyperparameters.get("k")
    info = SAEInfo(
        name=recipe.label,
        site=facts.site,
        d_in=d_in,
        d_sae=d_sae,
        architecture=recipe.architecture,
        activation=exported.activation,  # type: ignore[arg-type]  # checked by the model
        k=k if isinstance(k, int) else None,
        prepend_bos=facts.prepend_bos,
        context_size=facts.context_size,
        dataset=facts.dataset,
        folded=("scale of the activations",) if recipe.scaling != "none" else (),
        notes=facts.notes,
    )
    return SAE(
        W_enc=exported.W_enc.contiguous(),
        b_enc=exported.b_enc,
        W_dec=exported.W_dec.contiguous(),
        b_dec=exported.b_dec,
        info=info,
        threshold=exported.threshold,
    )


def _with_decoder(start: SAE, exported: Exported, recipe: Recipe, facts: SiteFacts) -> SAE:
    """The SAE that training started from, with what was trained of it."""
    from saebench_meta.subjects import public_name

    where = f" of {public_name(facts.dataset)}" if facts.dataset else ""
    note = f"decoder retrained on {recipe.steps * recipe.batch_size:,} activations{where}, encoder as it was"
    notes = (*start.info.notes, note, *facts.notes)
    info = start.info.model_copy(update={"name": f"{start.info.name}-retrained", "notes": notes})
    return replace(start, W_dec=exported.W_dec.contiguous(), b_dec=exported.b_dec, info=info)


def clear(folder: Path) -> None:
    """Remove what says that the folder's training was begun or finished."""
    for name in (DONE, checkpoint.FILE_NAME, WEIGHTS, metrics.FILE_NAME):
        (folder / name).unlink(missing_ok=True)


def _finished(folder: Path) -> Training | None:
    path = folder / DONE
    if not path.exists():
        return None
    try:
        with path.open("rb") as file:
            text = file.read(MAX_JSON + 1)
        if len(text) > MAX_JSON:
            raise BadFileError(f"'{path}' has more than {MAX_JSON:,} bytes: remove it")
        return Training.model_validate_json(text)
    except (OSError, ValidationError) as e:
        raise BadFileError(f"'{path}' cannot be read: remove it, or give another folder") from e


def _pretty(value: Any) -> bytes:
    return json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False).encode() + b"\n"
