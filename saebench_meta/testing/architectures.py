"""Checks of architectures: a few steps on planted data, and what comes of them.

The data are sparse sums of unit directions with noise (`planted`), so that a dictionary is there to be found.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from itertools import count, islice
from typing import TYPE_CHECKING, Any

from saebench_meta.errors import SaebenchError
from saebench_meta.hookspecs import Architecture
from saebench_meta.sae import SAE, SAEInfo, Site
from saebench_meta.testing.checks import Check, Scratch, checks_of, described, expect, own_randomness

if TYPE_CHECKING:
    from collections.abc import Iterator

    from jaxtyping import Float
    from torch import Tensor

    from saebench_meta.training.recipe import Recipe
    from saebench_meta.training.trainable import Loss, TrainableSAE
    from saebench_meta.training.trainer import Trainer

D_IN, D_SAE, BATCH, STEPS = 12, 24, 128, 120
SMALL = {"d_sae": D_SAE, "batch_size": BATCH, "tokens": BATCH * STEPS, "lr": 3e-3, "threshold_batches": 4}
ODD = (-1, 0, 1e30)
"""Values of a number that its `check` may refuse or take, but must not fail on."""


@dataclass(frozen=True)
class ArchitectureTrial:
    """An architecture with the recipe it is tried under: its own defaults, small, with what is given over them."""

    name: str
    architecture: Architecture
    given: Callable[[], Mapping[str, Any]] = field(default=dict)

    @cached_property
    def settings(self) -> dict[str, Any]:
        """What the recipe is made of."""
        few = {"k": 3} if isinstance(self.architecture.hyperparameters.get("k"), int) else {}
        return {**SMALL, **few, **self.given()}

    @cached_property
    def recipe(self) -> Recipe:
        from saebench_meta.training.recipe import make_recipe

        return make_recipe(self.architecture, self.name, **self.settings)

    def trainer(self) -> Trainer:
        """One before its first step."""
        from saebench_meta.training.trainer import Trainer

        start = start_sae(self.recipe.d_sae) if self.architecture.starts else None
        return Trainer(self.architecture, self.recipe, next(self.batches()), start=start)

    def batches(self) -> Iterator[Float[Tensor, "batch d_in"]]:
        return planted(self.recipe.batch_size)

    @cached_property
    def trained(self) -> tuple[list[float], Trainer]:
        """Share of variance unexplained at each step of a whole run, and the trainer after it."""
        trainer, unexplained = self.trainer(), []
        for x in islice(self.batches(), self.recipe.steps):
            result = trainer.step(x)
            unexplained.append(float(result.sse / result.sst))
        more = self.batches()
        trainer.finish(next(more) for _ in range(self.recipe.threshold_batches))
        return unexplained, trainer

    def sae(self, trainer: Trainer) -> SAE:
        from saebench_meta.training.run import SiteFacts, to_sae

        return to_sae(trainer.export(), self.recipe, SiteFacts(site=start_sae(D_SAE).info.site))


def planted(batch: int) -> Iterator[Float[Tensor, "batch d_in"]]:
    """Batches without end: 3 of 16 unit directions each, off centre, with a little noise."""
    import torch

    from saebench_meta import seeds

    directions = torch.nn.functional.normalize(
        torch.randn(16, D_IN, generator=seeds.generator(0, "planted directions")), dim=1
    )
    for number in count():
        g = seeds.generator(number, "planted batch")
        on = torch.rand(batch, 16, generator=g).argsort(1) < 3
        size = 1 + torch.rand(batch, 16, generator=g)
        yield (on * size) @ directions + 0.5 + 0.02 * torch.randn(batch, D_IN, generator=g)


def start_sae(d_sae: int) -> SAE:
    """An SAE to start from, whose decoder can be bettered: of a width, relu, its encoder the transpose."""
    import torch

    from saebench_meta import seeds

    W = torch.nn.functional.normalize(torch.randn(d_sae, D_IN, generator=seeds.generator(0, "start")), dim=1)
    site = Site(model="planted", hook="x")
    info = SAEInfo(
        name="start", site=site, d_in=D_IN, d_sae=d_sae, architecture="batchtopk", activation="jumprelu", k=3,
        prepend_bos=False,
    )  # fmt: skip
    b_dec = torch.full((D_IN,), 0.5)
    return SAE(W.T.contiguous(), -W @ b_dec, W, b_dec, info, threshold=torch.full((d_sae,), 0.5))


def architecture_checks(
    name: str, architecture: Architecture, recipe: Mapping[str, Any] | Callable[[], Mapping[str, Any]] | None = None
) -> list[Check]:
    """Every check of an architecture.

    Args:
        recipe: fields of the recipe and hyperparameters over the defaults, or what gives them when they are needed.
    """
    given = recipe if callable(recipe) else lambda: recipe or {}
    trial = ArchitectureTrial(name, architecture, given)
    return checks_of(f"architecture '{name}'", CHECKS, trial)


# -- what it says


def _says_what_it_is(trial: ArchitectureTrial) -> None:
    from saebench_meta.training.recipe import Recipe

    architecture = trial.architecture
    described(architecture.summary, architecture.version)
    for name, value in architecture.hyperparameters.items():
        expect(name not in Recipe.model_fields, f"its hyperparameter '{name}' is a field of every recipe: rename it")
        expect(
            isinstance(value, bool | int | float | str | tuple),
            f"its hyperparameter '{name}' is a {type(value).__name__}: give a number, a text or a tuple of numbers",
        )


def _recipes(trial: ArchitectureTrial) -> None:
    from saebench_meta.training.recipe import make_recipe

    expect(trial.recipe.architecture == trial.name, "its recipe is of another architecture")
    numbers = [
        name
        for name, value in trial.architecture.hyperparameters.items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    ]
    for name in numbers:
        for odd in ODD:
            value = type(trial.architecture.hyperparameters[name])(odd)
            try:
                make_recipe(trial.architecture, trial.name, **{**trial.settings, name: value})
            except SaebenchError as e:
                expect(name in str(e), f"its `check` refuses {name}={value} without naming it: {e}")
            except Exception as e:
                expect(False, f"its `check` fails on {name}={value}: {type(e).__name__}: {e}")


# -- before the first step


def _parameters(trial: ArchitectureTrial) -> None:
    import torch

    made = trial.trainer().sae
    expect(bool(made.parameters), "it has no `parameters`")
    for name, tensor in made.parameters.items():
        expect(tensor.is_leaf and tensor.requires_grad, f"parameter '{name}' is no leaf that requires a gradient")
        expect(tensor.dtype == torch.float32, f"parameter '{name}' is {tensor.dtype}, not float32")
        expect(bool(tensor.isfinite().all()), f"parameter '{name}' starts with NaN or infinite values")
        if name in ("W_enc", "W_dec"):
            right = (trial.recipe.d_sae, D_IN)
            expect(tuple(tensor.shape) == right, f"parameter '{name}' is {tuple(tensor.shape)}, not {right}")
    strange = set(made.constrained) - set(made.parameters)
    expect(not strange, f"`constrained` names no parameter: {', '.join(sorted(strange))}")
    expect(isinstance(made.state, dict), "it has no `state`: give an empty mapping if nothing else changes")


def _loss(trial: ArchitectureTrial) -> None:
    import torch

    from saebench_meta.training.trainable import Moment

    d_sae = trial.recipe.d_sae
    for what, dead in (("no latent", None), ("every latent", torch.ones(d_sae, dtype=torch.bool))):
        trainer = trial.trainer()
        x = next(trial.batches()) * trainer.scale
        loss = trainer.sae.loss(x, Moment(0, trial.recipe.steps, 0, dead))
        where = f"where {what} is dead"
        _shapes(loss, d_sae, where)
        torch.autograd.backward(loss.total)
        _gradients(trainer.sae, where)


def _shapes(loss: Loss, d_sae: int, where: str) -> None:
    import torch

    expect(loss.total.ndim == 0 and loss.total.requires_grad, f"`total` is no scalar with a graph, {where}")
    expect(bool(loss.total.isfinite()), f"the loss is {float(loss.total.detach())}, {where}")
    for name, value in {"sse": loss.sse, "active": loss.active, **loss.parts}.items():
        expect(value.ndim == 0 and not value.requires_grad, f"`{name}` is no detached scalar, {where}")
    right = tuple(loss.fired.shape) == (d_sae,) and loss.fired.dtype == torch.bool
    expect(right, f"`fired` is no truth value a latent, {where}")
    expect(bool(loss.fired.any()) == bool(loss.active > 0), f"`fired` and `active` disagree, {where}")


def _gradients(made: TrainableSAE, where: str) -> None:
    gradients = {name: tensor.grad for name, tensor in made.parameters.items() if tensor.grad is not None}
    expect(bool(gradients), f"no parameter gets a gradient, {where}")
    for name, gradient in gradients.items():
        expect(bool(gradient.isfinite().all()), f"the gradient of '{name}' is NaN or infinite, {where}")


# -- training


def _learns(trial: ArchitectureTrial) -> None:
    unexplained, _ = trial.trained
    tenth = max(1, len(unexplained) // 10)
    first, last = (sum(part) / tenth for part in (unexplained[:tenth], unexplained[-tenth:]))
    expect(
        last < first,
        f"{len(unexplained)} steps do not lower the share of variance unexplained: {first:.3f} first, {last:.3f} last",
    )


def _unit_rows(trial: ArchitectureTrial) -> None:
    _, trainer = trial.trained
    for name in trainer.sae.constrained:
        norms = trainer.sae.parameters[name].detach().norm(dim=1)
        off = float((norms - 1).abs().max())
        expect(
            off < 1e-4, f"rows of '{name}' are constrained to norm 1, and are off by {off:.2g}: zero rows at the start?"
        )


def _repeats(trial: ArchitectureTrial) -> None:
    import torch

    runs = []
    for seed in (0, 1):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            with own_randomness():
                runs.append(_after(trial, 5))
    unlike = [name for name, tensor in runs[0].items() if not torch.equal(tensor, runs[1][name])]
    expect(not unlike, f"trained twice by one recipe, these differ: {', '.join(unlike)}")


def _after(trial: ArchitectureTrial, steps: int) -> dict[str, Tensor]:
    trainer = trial.trainer()
    for x in islice(trial.batches(), steps):
        trainer.step(x)
    return trainer.tensors()


def _continues(trial: ArchitectureTrial) -> None:
    import torch

    xs = list(islice(trial.batches(), 8))
    whole, first, second = (trial.trainer() for _ in range(3))
    for x in xs:
        whole.step(x)
    for x in xs[:4]:
        first.step(x)
    second.restore({name: tensor.clone() for name, tensor in first.tensors().items()}, 4)
    for x in xs[4:]:
        second.step(x)
    held = second.tensors()
    unlike = [name for name, tensor in whole.tensors().items() if not torch.equal(tensor, held[name])]
    expect(
        not unlike,
        f"continued from a checkpoint, these differ: {', '.join(unlike)}. What changes in training belongs into "
        "`parameters` or `state`",
    )


# -- what comes of it


def _exports(trial: ArchitectureTrial) -> None:
    import torch

    _, trainer = trial.trained
    sae = trial.sae(trainer)
    expect(sae.info.architecture == trial.name or trial.architecture.starts, "the SAE is of another architecture")
    x = torch.cat(list(islice(trial.batches(), 4)))
    unexplained = float((x - sae.reconstruct(x)).square().sum() / (x - x.mean(0)).square().sum())
    expect(unexplained < 1, f"the exported SAE rebuilds worse than the mean: {unexplained:.3f} of the variance is left")
    expect(bool((sae.encode(x) > 0).any()), "no latent of the exported SAE is ever active")


def _kept(trial: ArchitectureTrial) -> None:
    from saebench_meta.plugins import registry

    scratch, form = Scratch(), registry().loaders["native"]
    sae = trial.sae(trial.trained[1])
    assert form.save is not None
    path = form.save(sae, scratch.folder("kept") / "sae.safetensors")
    back = form.load(str(path), device="cpu", dtype=sae.dtype)
    expect(back.content_hash() == sae.content_hash(), "saved and loaded, the SAE is another")


CHECKS: Mapping[str, Callable[[ArchitectureTrial], None]] = {
    "says what it is": _says_what_it_is,
    "its check refuses odd values in words": _recipes,
    "parameters are float32 leaves": _parameters,
    "loss and gradients are finite": _loss,
    "training lowers the error": _learns,
    "constrained rows have norm 1": _unit_rows,
    "the same recipe gives the same weights": _repeats,
    "it continues from a checkpoint": _continues,
    "the exported SAE rebuilds": _exports,
    "saved and loaded it is the same": _kept,
}
"""By title, in the order in which they run."""
