"""`TaskContext`: what a task sees of a session, for one unit of work; it implements `saebench_meta.context.Context`."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from saebench_meta import seeds, stats
from saebench_meta.errors import SaebenchError, UnknownNameError, UnmetNeedError, did_you_mean
from saebench_meta.plan import Unit
from saebench_meta.session import Session, Site
from saebench_meta.worlds import open_world

if TYPE_CHECKING:
    import numpy as np
    import torch
    from jaxtyping import Float
    from numpy.typing import ArrayLike
    from torch import Tensor

    from saebench_meta.activations import Activations
    from saebench_meta.annotation import Truth
    from saebench_meta.cities import Cities
    from saebench_meta.codes import Codes
    from saebench_meta.corpus import Sample
    from saebench_meta.judge_desk import Desk
    from saebench_meta.labelled import Labelled
    from saebench_meta.models import LanguageModel
    from saebench_meta.sae import SAE
    from saebench_meta.stats import Estimate
    from saebench_meta.training.recipe import Recipe
    from saebench_meta.training.run import Trained
    from saebench_meta.worlds import World

T = TypeVar("T")


class TaskContext:
    """The `Context` of one unit of work."""

    def __init__(self, session: Session, unit: Unit) -> None:
        self._session, self._unit = session, unit
        self.notes: list[str] = []
        self.trained: list[Trained] = []
        self._workdir: Path | None = None
        self._control: str | None = None
        self.desk: Desk | None = None
        """The judge at work for this unit, once it was asked for."""

    # -- settings

    @property
    def seed(self) -> int:
        return self._session.settings.seed

    @property
    def limit(self) -> int | None:
        return self._session.settings.limit

    @property
    def batch_size(self) -> int | None:
        return self._session.settings.batch_size

    @property
    def device(self) -> torch.device:
        return self._session.device

    @property
    def workdir(self) -> Path:
        if self._workdir is None:
            self._workdir = Path(tempfile.mkdtemp(prefix="saebench-"))
        return self._workdir

    def close(self) -> None:
        """Empty the scratch folder."""
        if self._workdir is not None:
            shutil.rmtree(self._workdir, ignore_errors=True)
            self._workdir = None

    # -- chance

    def rng(self, purpose: str) -> np.random.Generator:
        return seeds.rng(self.seed, self._unit.task.name, purpose)

    def generator(self, purpose: str) -> torch.Generator:
        return seeds.generator(self.seed, self._unit.task.name, purpose)

    # -- inputs

    @property
    def site(self) -> Site:
        """Model and data of this unit."""
        if self._unit.inputs is None:
            raise UnmetNeedError(
                f"task '{self._unit.task.name}' asks for data or the model without declaring it: add "
                "'activations' or 'lm' to its needs"
            )
        return self._session.site(self._unit.inputs)

    def sample(self) -> Sample:
        return self.site.sample

    def activations(self) -> Activations:
        return self.site.activations

    def codes(self, sae: SAE) -> Codes:
        return self.site.codes(sae)

    def code_chunks(self, sae: SAE) -> Iterator[tuple[Any, Codes]]:
        return self.site.code_chunks(sae)

    def lm(self) -> LanguageModel:
        return self.site.lm

    def judge(self) -> Desk:
        if self._unit.judge is None:
            raise UnmetNeedError(
                f"task '{self._unit.task.name}' asks for a judge without declaring it: add 'judge' to its needs"
            )
        if self.desk is None:
            from saebench_meta.judge_desk import Desk, seated

            self.desk = Desk(seated(self._session, self._unit.judge), self._unit.prompts)
            self.desk.control = self._control
        return self.desk

    @property
    def control(self) -> str | None:
        return self._control

    @contextmanager
    def running(self, control: str) -> Iterator[None]:
        """While the block runs, the task is run on a control."""
        self._run_on(control)
        try:
            yield
        finally:
            self._run_on(None)

    def _run_on(self, control: str | None) -> None:
        self._control = control
        if self.desk is not None:
            self.desk.control = control

    def truth(self) -> Truth:
        if self._unit.truth is None:
            raise UnmetNeedError(
                f"task '{self._unit.task.name}' asks for the truth without declaring it: add 'truth' to its needs"
            )
        return self.site.truth(self._unit.truth)

    @property
    def labelled_sets(self) -> tuple[str, ...]:
        return tuple(one.name for one in self._unit.labelled)

    def labelled(self, name: str) -> Labelled:
        found = next((one for one in self._unit.labelled if one.name == name), None)
        if found is None:
            task, known = self._unit.task, list(self.labelled_sets)
            if "labelled" not in task.needs:
                raise UnmetNeedError(
                    f"task '{task.name}' asks for labelled sets without declaring it: add 'labelled' to its needs"
                )
            raise UnknownNameError(f"this run has no labelled set '{name}'{did_you_mean(name, known)}")
        return self.site.labelled(found, share=len(self._unit.labelled))

    def cities(self) -> Cities:
        if self._unit.cities is None:
            raise UnmetNeedError(
                f"task '{self._unit.task.name}' asks for cities without declaring it: add 'cities' to its needs"
            )
        found = self._unit.cities
        note = f"cities: {found.name} ({', '.join(f'{k} {v}' for k, v in found.key().items())})"
        if note not in self.notes:
            self.notes.append(note)
        return self._unit.cities.loader.load()

    def world(self, ref: str) -> World:
        return open_world(self._session.registry, ref)

    @property
    def recipes(self) -> tuple[Recipe, ...]:
        return self._unit.trains

    def train(self, recipe: Recipe, rows: Float[Tensor, "rows d_in"] | None = None, start: SAE | None = None) -> SAE:
        from saebench_meta.variants import training_of

        name = self._unit.task.name
        if not any(_covers(declared, recipe, start) for declared in self._unit.trains):
            raise SaebenchError(
                f"task '{name}' trains {recipe.label} without declaring it: add it to what `trains` gives"
            )
        if rows is not None:
            trained = self._train_on_rows(recipe, rows, start)
        else:
            d_in = self._unit.subject.members[0].info.d_in
            inputs = self.site.inputs
            training = training_of(self._session.registry, recipe, inputs, d_in, self._session.settings.dtype)
            trained = self._session.trained_for(training, start)
        self.trained.append(trained)
        return trained.sae

    def _train_on_rows(self, recipe: Recipe, rows: Float[Tensor, "rows d_in"], start: SAE | None) -> Trained:
        from saebench_meta.training.feed import TensorFeed
        from saebench_meta.training.run import SiteFacts
        from saebench_meta.variants import TRAINER_VERSION

        feed = TensorFeed(rows.to(self.device), recipe.batch_size, recipe.data_seed)
        key = {"trainer": TRAINER_VERSION, "recipe": recipe.digest(), "rows": feed.identity()}
        site = self._unit.subject.members[0].info.site
        facts = SiteFacts(site=site, prepend_bos=False, notes=(f"trained on {len(rows):,} rows by {self._unit.label}",))
        return self._session.train(recipe, key, lambda: feed, facts, start)

    def memo(self, key: tuple[object, ...], make: Callable[[], T]) -> T:
        memory = self.site.memo
        if key not in memory:
            memory[key] = make()
        found: T = memory[key]
        return found

    # -- telling

    def track(self, items: Iterable[T], what: str, total: int | None = None) -> Iterator[T]:
        if total is None and isinstance(items, Sequence):
            total = len(items)
        for done, item in enumerate(items, 1):
            yield item
            self._session.progress(what, done, total)

    def warn(self, message: str) -> None:
        if message not in self.notes:
            self.notes.append(message)
        self._session.warn_once(message)

    # -- estimates

    def bootstrap(self, values: ArrayLike, statistic: Callable[..., ArrayLike] | None = None) -> Estimate:
        return stats.bootstrap(values, self.rng("bootstrap"), statistic)

    def groups(
        self, arrays: Sequence[ArrayLike], statistic: Callable[..., float | None], *, n: int, n_unit: str = "documents"
    ) -> Estimate:
        return stats.from_groups(arrays, statistic, self.rng("groups"), n=n, n_unit=n_unit)

    def proportion(self, successes: int, trials: int, *, n_unit: str) -> Estimate:
        return stats.proportion(successes, trials, n_unit=n_unit)

    def census(self, value: float | None, n: int, *, n_unit: str = "latents", reason: str | None = None) -> Estimate:
        return stats.census(value, n, n_unit=n_unit, reason=reason)

    def latents(self, n_latents: int) -> Sequence[int]:
        limit = self.limit if self._unit.task.limit_unit == "latents" else None
        if limit is None or limit >= n_latents:
            return range(n_latents)
        chosen = self.rng(f"latents of {n_latents}").choice(n_latents, limit, replace=False)
        return sorted(int(i) for i in chosen)


def _covers(declared: Recipe, recipe: Recipe, start: SAE | None) -> bool:
    """Whether a recipe is the declared one, or, with an SAE to start from, that one for another number of latents."""
    if start is not None:
        declared = declared.model_copy(update={"d_sae": recipe.d_sae})
    return recipe.digest() == declared.digest()
