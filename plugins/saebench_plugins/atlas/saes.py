"""The SAEs of atlas: a family trained by the suite's own trainer, a ladder of degraded ones, and the oracle's encoder.

All are stored in half precision and used in float32; every figure is of the stored weights.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from saebench_meta import seeds
from saebench_meta.plugins import registry
from saebench_meta.sae import SAE, Site
from saebench_meta.training.feed import TensorFeed
from saebench_meta.training.loop import Listeners, train
from saebench_meta.training.recipe import Recipe, make_recipe
from saebench_meta.training.run import SiteFacts
from saebench_meta.training.trainable import unit_rows
from saebench_plugins.atlas.site import (
    DEGRADED,
    DEGRADED_FROM,
    HOOK,
    L1,
    MODEL_REF,
    SEEDS,
    SEEDS_WIDTH,
    WIDTHS,
    K,
)

if TYPE_CHECKING:
    from jaxtyping import Float

FORMAT = "native"
STEPS, BATCH = 1500, 2048
RELU_LR = 1e-3
"""At 3e-3 half of 2,048 ReLU latents die, and nothing brings them back."""
SETTINGS = {"lr": 3e-3, "warmup": 0.05, "decay": 0.2, "clip": 1.0, "batch_size": BATCH}


def recipes(seed: int = 0, steps: int = STEPS, widths: Sequence[int] = WIDTHS) -> dict[str, Recipe]:
    """Name of every trained SAE -> how it is trained; its seeds come after `seed`."""
    known = registry().architectures

    def make(architecture: str, d_sae: int, more: int = 0, **own: float) -> Recipe:
        both = {"seed": seed + more, "data_seed": seed + more}
        given = {**SETTINGS, "tokens": steps * BATCH, **both, **own}
        return make_recipe(known[architecture], architecture, d_sae=d_sae, **given)

    found = {f"batchtopk-{width}": make("batchtopk", width, k=K) for width in widths}
    found |= {f"relu-{width}": make("relu", width, l1=L1, lr=RELU_LR) for width in widths}
    found |= {f"{DEGRADED_FROM}-s{more}": make("batchtopk", SEEDS_WIDTH, more, k=K) for more in SEEDS}
    return found


def train_family(
    x: Float[Tensor, "tokens d_in"], wanted: Mapping[str, Recipe], folder: Path, facts: SiteFacts, listeners: Listeners
) -> dict[str, SAE]:
    """Train every recipe on activations; what is finished in `folder` is kept, what is not goes on."""
    known = registry()
    orders: dict[int, dict[str, Recipe]] = {}
    for name, recipe in wanted.items():
        orders.setdefault(recipe.data_seed, {})[name] = recipe
    found: dict[str, SAE] = {}
    for order, together in orders.items():
        feed = TensorFeed(x, BATCH, order)
        trained = train(
            known.architectures,
            list(together.values()),
            feed,
            folder,
            facts,
            known.loaders[FORMAT],
            listeners=listeners,
        )
        found |= {name: one.sae for name, one in zip(together, trained, strict=True)}
    return {name: found[name] for name in wanted}


def site_facts(context: int) -> SiteFacts:
    """What the SAEs say of their site."""
    return SiteFacts(
        site=Site(model=MODEL_REF, hook=HOOK),
        prepend_bos=True,
        context_size=context,
        dataset="atlas",
        notes=("trained on the split 'train', one document a context, without the BOS position",),
    )


def degraded(sae: SAE, x: Float[Tensor, "tokens d_in"], seed: int) -> dict[str, SAE]:
    """The ladder: `sae` with more and more of its latents made random.

    A replaced latent reads and writes one random direction u: f = ⟨x − b_dec, u⟩ where that is above a threshold, set
    for it to fire as often as the latent it replaces. A step of the ladder keeps the replacements of those before.
    """
    order = torch.randperm(sae.d_sae, generator=seeds.generator(seed, "atlas", "degraded order"))
    rows = torch.randn(sae.d_sae, sae.d_in, generator=seeds.generator(seed, "atlas", "degraded directions"))
    random = _random_latents(sae, x, unit_rows(rows))
    found = {}
    for percent in DEGRADED:
        replaced = torch.zeros(sae.d_sae, dtype=torch.bool)
        replaced[order[: round(percent / 100 * sae.d_sae)]] = True
        info = sae.info.model_copy(
            update={
                "name": f"{DEGRADED_FROM}-degraded{percent}",
                "architecture": "degraded",
                "notes": (*sae.info.notes, f"{int(replaced.sum())} of {sae.d_sae} latents made random"),
            }
        )
        assert sae.threshold is not None
        assert random.threshold is not None
        found[info.name] = SAE(
            W_enc=torch.where(replaced, random.W_enc, sae.W_enc),
            b_enc=torch.where(replaced, random.b_enc, sae.b_enc),
            W_dec=torch.where(replaced[:, None], random.W_dec, sae.W_dec),
            b_dec=sae.b_dec,
            info=info,
            threshold=torch.where(replaced, random.threshold, sae.threshold),
        )
    return found


def _random_latents(sae: SAE, x: Float[Tensor, "tokens d_in"], rows: Float[Tensor, "d_sae d_in"]) -> SAE:
    """Latents of random directions that fire as often on `x` as those of `sae`."""
    share = torch.stack([(sae.encode(part) > 0).double().sum(0) for part in torch.split(x, 8192)]).sum(0) / len(x)
    thresholds = torch.empty(sae.d_sae)
    for latents in torch.split(torch.arange(sae.d_sae), 64):
        products = ((x - sae.b_dec) @ rows[latents].T).sort(0).values
        place = ((1 - share[latents]) * len(x)).long().clamp(0, len(x) - 1)
        thresholds[latents] = products[place, torch.arange(len(latents))].clamp_min(1e-3)
    return replace(sae, W_enc=rows.T.contiguous(), b_enc=-(rows @ sae.b_dec), W_dec=rows, threshold=thresholds)
