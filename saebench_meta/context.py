"""What a task is given. Everything expensive goes through it: cached, seeded, counted, shown as progress.

`Context` is the documented surface (a snapshot test guards it); `saebench_meta.task_context.TaskContext` implements it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeVar

if TYPE_CHECKING:
    import numpy as np
    import torch
    from jaxtyping import Float
    from numpy.typing import ArrayLike
    from torch import Tensor

    from saebench_meta.activations import Activations, Chunk
    from saebench_meta.annotation import Truth
    from saebench_meta.cities import Cities
    from saebench_meta.codes import Codes
    from saebench_meta.corpus import Sample
    from saebench_meta.judging import JudgeDesk
    from saebench_meta.labelled import Labelled
    from saebench_meta.models import LanguageModel
    from saebench_meta.sae import SAE
    from saebench_meta.stats import Estimate
    from saebench_meta.training.recipe import Recipe
    from saebench_meta.worlds import World

T = TypeVar("T")


class Context(Protocol):
    """The surface a task may use."""

    @property
    def seed(self) -> int:
        """Seed of the run."""
        ...

    @property
    def limit(self) -> int | None:
        """`--limit` in this task's own unit, or None. Already applied where the unit is documents."""
        ...

    @property
    def batch_size(self) -> int | None:
        """Tokens a forward pass, as the user asked for; None leaves it to whoever runs the model."""
        ...

    @property
    def device(self) -> torch.device:
        """Where tensors of this run live."""
        ...

    @property
    def workdir(self) -> Path:
        """A folder of this unit's own for scratch files; emptied when the unit ends."""
        ...

    def rng(self, purpose: str) -> np.random.Generator:
        """A random stream derived from the run's seed, the task's name and `purpose`; never a global generator."""
        ...

    def generator(self, purpose: str) -> torch.Generator:
        """The same as a torch generator on the CPU."""
        ...

    def sample(self) -> Sample:
        """The tokenised documents of this run: the same for every SAE, baseline and control."""
        ...

    def activations(self) -> Activations:
        """Activations at the site on the sample's evaluated tokens, in chunks; one forward pass feeds every task."""
        ...

    def codes(self, sae: SAE) -> Codes:
        """Sparse codes of the activations, in the order of `activations()`; worked out once per SAE."""
        ...

    def code_chunks(self, sae: SAE) -> Iterator[tuple[Chunk, Codes]]:
        """Chunks of `activations()` with their codes, in order; streamed where the codes of the sample do not fit."""
        ...

    def lm(self) -> LanguageModel:
        """The language model, read-only: gradients off, hooks removed even after an exception."""
        ...

    def judge(self) -> JudgeDesk:
        """The judge of this run; its requests are counted, and paid for, by subject and controls together."""
        ...

    @property
    def control(self) -> str | None:
        """Name of the control that the task is run on at the moment; None on the subject itself."""
        ...

    def truth(self) -> Truth:
        """Which generating features are on at each token, in the order of `activations()`; worked out once."""
        ...

    @property
    def labelled_sets(self) -> tuple[str, ...]:
        """Names of the labelled sets of this run, such as `atlas:topics`."""
        ...

    def labelled(self, name: str) -> Labelled:
        """A labelled set at the site: texts with their classes, pooled activations and pooled codes of any SAE.

        Opened once for all tasks, SAEs and controls, and every text goes through the model once. Where the task's unit
        is texts, `--limit` is applied already.
        """
        ...

    def cities(self) -> Cities:
        """Cities with their facts, and the prompts that ask for them."""
        ...

    def world(self, ref: str) -> World:
        """A world drawn directly, such as `toy:absorption-4`; its features and their directions are known."""
        ...

    @property
    def recipes(self) -> tuple[Recipe, ...]:
        """What this task declared that it trains for this subject (`trains`), in that order."""
        ...

    def train(self, recipe: Recipe, rows: Float[Tensor, "rows d_in"] | None = None, start: SAE | None = None) -> SAE:
        """An SAE trained by a recipe that the task declared (`trains`): once, cached, locked, resumable.

        Args:
            rows: what it is trained on, such as decoder rows; without them, activations at the unit's site on documents
                that the run does not evaluate.
            start: the SAE that an architecture such as `decoder` starts from. How wide it is may not be known before
                the task has made it: a declared recipe then counts for every width, its own is what plans reckon with.
        """
        ...

    def memo(self, key: tuple[object, ...], make: Callable[[], T]) -> T:
        """`make()` once per run for this key, shared by all tasks, subjects and controls on the same inputs."""
        ...

    def track(self, items: Iterable[T], what: str, total: int | None = None) -> Iterable[T]:
        """The items, with progress shown."""
        ...

    def warn(self, message: str) -> None:
        """Tell the user something; kept in the record's notes too."""
        ...

    def bootstrap(self, values: ArrayLike, statistic: Callable[..., ArrayLike] | None = None) -> Estimate:
        """A statistic of per-document values (default the mean) with its bootstrap interval over documents."""
        ...

    def groups(
        self, arrays: Sequence[ArrayLike], statistic: Callable[..., float | None], *, n: int, n_unit: str = "documents"
    ) -> Estimate:
        """A statistic of sums kept by groups of documents, (groups, …) each, with its bootstrap over the groups."""
        ...

    def proportion(self, successes: int, trials: int, *, n_unit: str) -> Estimate:
        """A share of independent trials with its Wilson interval."""
        ...

    def census(self, value: float | None, n: int, *, n_unit: str = "latents", reason: str | None = None) -> Estimate:
        """A quantity over a whole dictionary: exact, so without an interval."""
        ...

    def latents(self, n_latents: int) -> Sequence[int]:
        """Which latents to look at: all, or the seeded subset of `--limit` where the task's unit is latents."""
        ...
