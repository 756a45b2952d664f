"""Trains one SAE or several in one pass over the same activations.

    feed ─ batch ─► a step of every SAE ─► a line of figures an interval ─► checkpoints ─► SAEs

Each SAE is exactly the one it would be if it were trained alone on that feed, whose order is its own seed's; each ends
after its own number of steps.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from saebench_meta.errors import SaebenchError
from saebench_meta.training import checkpoint
from saebench_meta.training.interrupt import Interrupts, leave
from saebench_meta.training.metrics import Figures
from saebench_meta.training.run import Run, SiteFacts, Trained, clear
from saebench_meta.training.trainable import Processes
from saebench_meta.training.trainer import check_start

if TYPE_CHECKING:
    from torch import Tensor

    from saebench_meta.hookspecs import Architecture, SAELoader
    from saebench_meta.sae import SAE
    from saebench_meta.training.feed import Feed, Position
    from saebench_meta.training.recipe import Recipe

AGREE_EVERY = 10
"""Steps between which several processes do not ask one another whether it is time for a checkpoint."""


@dataclass(frozen=True)
class Pace:
    """How often something is written.

    Attributes:
        log_every: steps in an interval of the metrics.
        checkpoint_steps: a checkpoint after every so many steps; None for none by steps.
        checkpoint_seconds: a checkpoint when the last one is so old; None for none by time.
    """

    log_every: int = 100
    checkpoint_steps: int | None = None
    checkpoint_seconds: float | None = 600.0


@dataclass(frozen=True)
class Listeners:
    """Who is told what.

    Attributes:
        notice: told in words what the user should know.
        progress: told the name of an SAE's folder and its figures at every line, after a checkpoint that is due then.

    Of several processes only the first tells them anything.
    """

    notice: Callable[[str], None] = lambda _message: None
    progress: Callable[[str, Figures], None] = lambda _label, _figures: None


def train(
    architectures: Mapping[str, Architecture],
    recipes: Sequence[Recipe],
    feed: Feed,
    folder: Path,
    facts: SiteFacts,
    form: SAELoader,
    *,
    start: SAE | None = None,
    pace: Pace | None = None,
    listeners: Listeners | None = None,
    processes: Processes | None = None,
    resume: bool = True,
) -> list[Trained]:
    """Train an SAE for every recipe; those that are finished already are read back.

    Args:
        architectures: by name, such as a registry's.
        folder: each SAE gets a folder in it, by its recipe's label (with the digest's beginning where labels coincide).
        form: format in which SAEs are written.
        start: the SAE that all of them start from, where their architecture says so.
        resume: go on from what is in the folders; False trains anew.

    Returns:
        In the order of the recipes.

    Raises:
        SaebenchError: recipes that do not fit the feed; a folder with another training; a loss that is NaN or infinite
            (the other SAEs are trained to their end first).
        KeyboardInterrupt, SystemExit: SIGINT or SIGTERM came; checkpoints are written.
    """
    pace, processes = pace or Pace(), processes or Processes()
    listeners = listeners if listeners is not None and processes.rank == 0 else Listeners()
    if form.save is None:
        raise SaebenchError("SAEs cannot be written in this format: give one that has `save`")
    _check(recipes, feed)
    for recipe in recipes:
        check_start(architectures[recipe.architecture], recipe, start, feed.d_in)
    folders = [folder / name for name in names(recipes)]
    with _held(folders, processes, listeners.notice, resume):
        runs = [
            Run(architectures[recipe.architecture], recipe, place, feed, facts, form, processes, start)
            for recipe, place in zip(recipes, folders, strict=True)
        ]
        done = {id(run): run.load() for run in runs if run.finished is not None}
        todo = [run for run in runs if run.going]
        if todo:
            with Interrupts() as interrupts:
                made = _Pass(todo, feed, pace, listeners, processes, interrupts).train()
            done |= made
            if interrupts.asked:
                leave(interrupts.asked)
    for run in runs:
        if run.failed is not None:
            raise run.failed
    return [done[id(run)] for run in runs]


def names(recipes: Sequence[Recipe]) -> list[str]:
    """What each recipe's folder is called."""
    labels = Counter(recipe.label for recipe in recipes)
    return [r.label if labels[r.label] == 1 else f"{r.label}-{r.digest()[:8]}" for r in recipes]


def _check(recipes: Sequence[Recipe], feed: Feed) -> None:
    if not recipes:
        raise SaebenchError("there is no recipe to train by")
    for recipe in recipes:
        if recipe.batch_size != feed.batch_size:
            raise SaebenchError(
                f"'{recipe.label}' wants batches of {recipe.batch_size}, the data come in batches of "
                f"{feed.batch_size}: SAEs trained in one pass share their batch size"
            )
    if len(orders := {recipe.data_seed for recipe in recipes}) > 1:
        raise SaebenchError(
            f"SAEs trained in one pass share the order of their data; these have seeds {sorted(orders)}"
        )
    digests = Counter(recipe.digest() for recipe in recipes)
    for recipe in recipes:
        if digests[recipe.digest()] > 1:
            raise SaebenchError(f"the recipe '{recipe.label}' is given {digests[recipe.digest()]} times")


@contextmanager
def _held(folders: Sequence[Path], processes: Processes, notice: Callable[[str], None], resume: bool) -> Iterator[None]:
    """Hold the folders against other runs, and have them in order."""
    from filelock import FileLock, Timeout

    with ExitStack() as held:
        for folder in sorted(folders) if processes.rank == 0 else ():
            folder.mkdir(parents=True, exist_ok=True)
            lock = FileLock(folder / ".lock")
            try:
                lock.acquire(timeout=0)
            except Timeout:
                notice(f"another process trains in '{folder}': waiting for it")
                lock.acquire()
            held.callback(lock.release)
            checkpoint.remove_leftovers(folder)
            if not resume:
                clear(folder)
        processes.sum(torch.zeros(1, device=_device(processes)))  # nobody reads before the first process is here
        yield


def _device(processes: Processes) -> torch.device:
    """Where tensors must lie that processes exchange."""
    nccl = processes.count > 1 and torch.distributed.get_backend() == "nccl"
    return torch.device("cuda", torch.cuda.current_device()) if nccl else torch.device("cpu")


class _Pass:
    """Runs over one feed, all at the same batch; those that are further wait for the others."""

    def __init__(
        self,
        runs: list[Run],
        feed: Feed,
        pace: Pace,
        listeners: Listeners,
        processes: Processes,
        interrupts: Interrupts,
    ) -> None:
        self.runs, self.feed, self.pace, self.listeners = runs, feed, pace, listeners
        self.processes, self.interrupts = processes, interrupts
        self.done: dict[int, Trained] = {}
        self._first: Tensor | None = None
        self._saved = time.monotonic()

    @property
    def going(self) -> list[Run]:
        return [run for run in self.runs if run.going]

    def train(self) -> dict[int, Trained]:
        start = min(self.runs, key=lambda run: run.step)
        self.step = start.step
        with self._at_once():
            for run in self.runs:
                run.begin(self._first_batch)
        self._first = None
        self.batches = self.feed.batches(self.step, start.position)
        self._complete()
        while self.going:
            x = self._next()
            at_work = [run for run in self.going if run.step == self.step]
            for run in at_work:
                run.advance(x)
            self.step += 1
            lines = [(run, line) for run in at_work if (line := self._line(run)) is not None]
            self._checkpoint_if_due()
            for run, line in lines:
                self.listeners.progress(run.folder.name, line)
            self._complete()
        return self.done

    def _first_batch(self) -> Tensor:
        if self._first is None:
            self._first = self.feed.first()
        return self._first

    def _next(self) -> Tensor:
        """The next batch. It may take long to make; where there is one process, a signal cuts that short."""
        try:
            with self._at_once():
                return next(self.batches)
        except (KeyboardInterrupt, SystemExit):
            self._checkpoint()
            raise

    def _at_once(self) -> AbstractContextManager[None]:
        """Several processes heed a signal only when they have agreed on it."""
        return self.interrupts.at_once() if self.processes.count == 1 else nullcontext()

    def _line(self, run: Run) -> Figures | None:
        if run.step % self.pace.log_every and run.step < run.recipe.steps:
            return None
        try:
            return run.log()
        except SaebenchError as e:
            self._fail(run, e)
            return None

    def _fail(self, run: Run, error: SaebenchError) -> None:
        run.failed = SaebenchError(f"{run.recipe.label}: {error}")
        self.listeners.notice(str(run.failed))

    # -- checkpoints

    def _checkpoint_if_due(self) -> None:
        by_step = self.pace.checkpoint_steps is not None and self.step % self.pace.checkpoint_steps == 0
        by_time, asked = self._agreed()
        if by_step or by_time or asked:
            self._checkpoint()
        if asked:
            leave(asked)

    def _agreed(self) -> tuple[bool, int]:
        """Whether any process thinks it is time for a checkpoint, or was sent a signal, and which."""
        limit = self.pace.checkpoint_seconds
        due = limit is not None and time.monotonic() - self._saved >= limit
        if self.processes.count == 1:
            return due, self.interrupts.asked
        if self.step % AGREE_EVERY:
            return False, 0
        said = torch.tensor([due, self.interrupts.asked], device=_device(self.processes))
        due, asked = self.processes.max(said).tolist()
        return bool(due), asked

    def _checkpoint(self) -> None:
        self._saved = time.monotonic()
        positions = self._positions()
        for run in self.going:
            if run.step != self.step:  # it waits for the others, its checkpoint stands
                continue
            try:
                run.save(positions)
            except SaebenchError as e:
                self._fail(run, e)
            except OSError as e:
                self.listeners.notice(
                    f"no checkpoint of {run.recipe.label} at step {run.step}: {e}; the last one stays"
                )

    def _positions(self) -> tuple[Position, ...]:
        """Of the feed in every process."""
        here = self.feed.position(self.step)
        if not here:
            return ()
        there = self.processes.gather(torch.tensor(here, device=_device(self.processes)))
        return tuple(map(tuple, there.tolist()))

    # -- ends

    def _complete(self) -> None:
        """End the runs that have made their last step, each with the batches that follow it."""
        ended = [run for run in self.going if run.step == run.recipe.steps == self.step]
        for run in ended:
            # The last of all goes on in the batches of the pass, which may be dear to make.
            last = [run] == self.going
            batches = self.batches if last else self.feed.batches(self.step, self.feed.position(self.step))
            self.done[id(run)] = run.complete(islice(batches, run.recipe.threshold_batches))
