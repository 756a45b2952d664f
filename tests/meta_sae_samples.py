"""SAEs whose latents are sums of known atoms, and a context that trains meta-SAEs in memory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from fakes import FakeContext, info
from torch import Tensor

from saebench_meta import seeds
from saebench_meta.sae import SAE
from saebench_meta.training.recipe import Recipe, make_recipe
from saebench_meta.training.trainable import unit_rows
from saebench_meta.training.trainer import Trainer
from saebench_plugins.architectures import saebench_architectures
from saebench_tasks.meta_sae import build

ARCHITECTURES = saebench_architectures()
PARAMETERS: dict[str, Any] = {
    "width": 0,
    "k": 4,
    "steps": 20,
    "lr": 1e-3,
    "held_out": 0.1,
    "seeds": 1,
    "curve": (),
}


def recipe(architecture: str, **given: Any) -> Recipe:
    """What a task is given to make recipes with."""
    return make_recipe(ARCHITECTURES[architecture], architecture, **given)


@dataclass
class TrainingContext(FakeContext):
    """Trains as a run does, but keeps nothing."""

    recipes: tuple[Recipe, ...] = ()
    trained: list[Tensor] = field(default_factory=list)
    """The rows of every training."""

    def train(self, recipe: Recipe, rows: Tensor, start: SAE | None = None) -> SAE:
        assert recipe in self.recipes
        self.trained.append(rows)
        g = seeds.generator(recipe.seed, "order")
        batch = recipe.batch_size
        batches = [rows[torch.randperm(len(rows), generator=g)[:batch]] for _ in range(recipe.steps)]
        given = {} if start is None else {"start": start}
        trainer = Trainer(ARCHITECTURES[recipe.architecture], recipe, batches[0], **given)
        for x in batches:
            trainer.step(x)
        trainer.finish(iter(batches[: recipe.threshold_batches]))
        made = trainer.export()
        about = info(rows.shape[1], recipe.d_sae, name=recipe.label, activation="jumprelu")
        return SAE(made.W_enc, made.b_enc, made.W_dec, made.b_dec, about, threshold=made.threshold)


def context(trains: Any, saes: list[SAE], **given: Any) -> TrainingContext:
    """With the recipes of a task on these SAEs."""
    infos = tuple(sae.info for sae in saes)
    return TrainingContext(recipes=tuple(trains(infos, {**PARAMETERS, **given}, recipe)))


single = partial(context, build.trains)
pair = partial(context, build.trains_pair)
family = partial(context, build.trains_family)


def own(parameters: Mapping[str, Any], *names: str) -> dict[str, Any]:
    """Those of the parameters that the task itself reads, or that are named here."""
    return {name: parameters[name] for name in names if name in parameters}


def with_decoder(W_dec: Tensor, **changes: Any) -> SAE:
    """Relu, the encoder the decoder's transpose, no bias."""
    n, d = W_dec.shape
    return SAE(W_dec.T.contiguous(), torch.zeros(n), W_dec, torch.zeros(d), info(d, n, **changes))


def hierarchy(atoms: int, d_in: int, latents: int, k: int, seed: int = 0) -> tuple[SAE, Tensor]:
    """Latents that are sums of `k` atoms each, with weights from .7 to 1.3; and the atoms, unit rows."""
    g = torch.Generator().manual_seed(seed)
    truth = unit_rows(torch.randn(atoms, d_in, generator=g))
    chosen = torch.rand(latents, atoms, generator=g).topk(k).indices
    weights = torch.zeros(latents, atoms).scatter_(1, chosen, 0.7 + 0.6 * torch.rand(latents, k, generator=g))
    return with_decoder(3 * weights @ truth), truth


def random_sae(latents: int, d_in: int, seed: int = 0, **changes: Any) -> SAE:
    """Decoder rows without any structure."""
    return with_decoder(torch.randn(latents, d_in, generator=torch.Generator().manual_seed(seed)), **changes)
