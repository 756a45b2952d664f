"""SAEs that a run trains for itself: what is trained, on what, how long it may take. No torch.

A variant is named by its recipe and its data, so it is known before anything is loaded, and found again in the cache.
It never sees a document that the run evaluates: it is trained on the corpus's split for that (`train_split`), or on the
corpus without the documents of the sample.
"""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from saebench_meta.cache import default_root
from saebench_meta.inputs import Inputs
from saebench_meta.record import canonical_hash
from saebench_meta.resolve import ResolvedData, ResolvedSAE, resolve_data
from saebench_meta.sae import SAEInfo, Site
from saebench_meta.training.kept import FINISHED, FOLDER
from saebench_meta.training.recipe import Recipe, make_recipe

if TYPE_CHECKING:
    from saebench_meta.plugins import Registry
    from saebench_meta.settings import Settings

SCHEME = "trained"
"""What stands before the label in the reference of a trained SAE; nothing can be loaded by it."""
TRAINER_VERSION = 1
"""Raise it when the same recipe on the same data would give other weights."""
REFERENCE_ARCHITECTURE = "batchtopk"
REFERENCE_TOKENS = 4_096_000
REFERENCE_K = 32
"""Active latents of a reference where the SAE under test does not say its own."""

FLOPS_PER_THREAD, FLOPS_GPU = 4e10, 2e13
"""Of float32 matrix products in training; a GPU's figure is a guess on the safe side."""
SAE_FLOPS, LM_FLOPS = 4, 2
"""Operations a token per weight: of the encoder, with all else of a step; of the language model's forward pass."""
START_SECONDS = 5.0
LM_PARAMETERS, D_IN = 10**8, 768
"""Assumed where a model's size is not known before it is opened."""


@dataclass(frozen=True, eq=False)
class Training:
    """One SAE to be trained at a site.

    Attributes:
        recipe: how.
        inputs: model, hook, context and the sample that is evaluated.
        data: corpus it is trained on.
        d_in: width of the site.
        dtype: of the language model.
    """

    recipe: Recipe
    inputs: Inputs
    data: ResolvedData
    d_in: int
    dtype: str

    def key(self) -> dict[str, Any]:
        """What determines the weights; part of the ids of records that use them."""
        inputs = self.inputs.key()
        if not self.excludes_sample:  # then only these of the sampling matter
            inputs["data"] = None
            inputs["sampling"] = {name: inputs["sampling"][name] for name in ("context", "prepend_bos", "text_field")}
        said = {"recipe": self.recipe.digest(), "inputs": inputs, "data": self.data.key(), "dtype": self.dtype}
        return {"trainer": TRAINER_VERSION, **said}

    @property
    def excludes_sample(self) -> bool:
        """Whether documents of the evaluated sample must be left out of the training data."""
        return self.data.key() == self.inputs.data.key()

    def seconds(self, settings: Settings) -> float:
        """How long it takes, roughly."""
        return training_seconds(self.recipe, self.d_in, self.inputs.model.identity.parameters, settings)


def training_of(registry: Registry, recipe: Recipe, inputs: Inputs, d_in: int, dtype: str) -> Training:
    """A training on the corpus of some inputs, or on the split of it that is kept for training."""
    data = inputs.data
    split = data.loader.train_split
    if split is not None and split != data.identity.split:
        data = resolve_data(registry, data.ref, split=split, revision=data.identity.revision)
    return Training(recipe, inputs, data, d_in, dtype)


def reference_training(registry: Registry, sae: ResolvedSAE, inputs: Inputs, settings: Settings) -> Training | None:
    """A narrower SAE at the site of one that has none: half its width, its own k where it has one."""
    d_sae = sae.info.d_sae // 2
    if d_sae < 2 or REFERENCE_ARCHITECTURE not in registry.architectures:
        return None
    recipe = make_recipe(
        registry.architectures[REFERENCE_ARCHITECTURE],
        REFERENCE_ARCHITECTURE,
        d_sae=d_sae,
        k=min(sae.info.k or REFERENCE_K, max(1, d_sae // 4)),
        tokens=REFERENCE_TOKENS,
        lr=1e-3,
        warmup=0.05,
        decay=0.2,
        seed=settings.seed,
        data_seed=settings.seed,
    )
    return training_of(registry, recipe, inputs, sae.info.d_in, settings.dtype)


def any_kept(settings: Settings) -> bool:
    """Whether the run has a cache and there is anything in it that was trained."""
    return settings.cache and (_cache(settings) / FOLDER).is_dir()


def is_kept(training: Training, settings: Settings) -> bool:
    """Whether it was finished before and is in the cache; its weights are read, and checked, when it is used."""
    folder = _cache(settings) / FOLDER / canonical_hash(training.key())[:32] / training.recipe.label
    try:
        said = json.loads((folder / FINISHED).read_bytes())
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(said, dict) and said.get("digest") == training.recipe.digest()


def _cache(settings: Settings) -> Path:
    return settings.cache_dir or default_root()


def trained_reference(sae: ResolvedSAE, training: Training) -> ResolvedSAE:
    """The reference as the plan knows it: its info is completed when it has been trained."""
    recipe, info = training.recipe, sae.info
    made = SAEInfo(
        name=recipe.label,
        site=Site(model=info.site.model, hook=info.site.hook, revision=info.site.revision),
        d_in=training.d_in,
        d_sae=recipe.d_sae,
        architecture=recipe.architecture,
        prepend_bos=bool(training.inputs.sampling["prepend_bos"]),
        context_size=training.inputs.sampling["context"],
    )
    return replace(
        sae, ref=f"{SCHEME}:{recipe.label}", scheme=SCHEME, rest=recipe.label, info=made, files={}, training=training
    )


def training_seconds(recipe: Recipe, d_in: int | None, lm_parameters: int | None, settings: Settings) -> float:
    """A rough estimate from the operations of a step and of the model's forward pass."""
    gpu = settings.device.startswith("cuda") or (settings.device == "auto" and has_gpu())
    rate = FLOPS_GPU if gpu else FLOPS_PER_THREAD * (settings.threads or _threads())
    model = LM_PARAMETERS if lm_parameters is None else lm_parameters
    per_token = SAE_FLOPS * (d_in or D_IN) * recipe.d_sae + LM_FLOPS * model
    return START_SECONDS + recipe.tokens * per_token / rate


def has_gpu() -> bool:
    """Whether this machine seems to have an NVIDIA GPU; asked without torch."""
    return Path("/proc/driver/nvidia/version").exists() or shutil.which("nvidia-smi") is not None


def _threads() -> int:
    said = os.environ.get("OMP_NUM_THREADS", "")
    return int(said) if said.isdigit() and int(said) > 0 else os.cpu_count() or 1


def in_words(seconds: float) -> str:
    """A duration for people: `40 s`, `12 min`, `3.5 h`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
