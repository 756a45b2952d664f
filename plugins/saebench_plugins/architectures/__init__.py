"""SAEs that `saebench train` trains: what they are called, their settings with the sources' defaults. No torch."""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from saebench_meta.hookspecs import Architecture, hookimpl
from saebench_plugins.architectures.topk_settings import MATRYOSHKA, TOPK, check_matryoshka, check_topk

if TYPE_CHECKING:
    from saebench_meta.training.recipe import Recipe

saebench_api = 1

L1 = {"l1": 8e-5, "l1_warmup": 0.05}
"""The paper's A.6, for errors that are means over dimensions; the rise over 5 % of the steps is said in `relu`."""
A6 = {"lr": 4e-4}
DECODER = {"lr": 3e-3, "decay": 0.5, "scaling": "none"}
"""Ours: the post gives no rate. At 1e-3 a million activations are too few to come near the least-squares decoder."""


def _later(module: str, name: str) -> Callable[..., Any]:
    """A class of a module of this package, which is imported at the first call."""

    def build(*args: Any, **kwargs: Any) -> Any:
        return getattr(importlib.import_module(f"{__name__}.{module}"), name)(*args, **kwargs)

    return build


def _within(**ranges: tuple[float, float]) -> Callable[[Recipe], str | None]:
    """A check that hyperparameters lie in ranges, ends included."""

    def check(recipe: Recipe) -> str | None:
        for name, (low, high) in ranges.items():
            value = recipe.hyperparameters[name]
            if isinstance(value, str | tuple) or not low <= value <= high:
                return f"{name} is {value}; it must be from {low:g} to {high:g}"
        return None

    return check


def _as_it_encodes(recipe: Recipe) -> str | None:
    """Codes of a frozen encoder are to be those that it gives elsewhere."""
    if recipe.precision != "float32":
        return f"precision is {recipe.precision}; codes of the SAE it starts from are worked out in float32"
    return None


@hookimpl
def saebench_architectures() -> Mapping[str, Architecture]:
    """By name."""
    return {
        "topk": Architecture(
            build=_later("topk", "TopK"),
            hyperparameters=TOPK,
            check=check_topk,
            summary="the k largest of each token, AuxK for dead latents (Gao et al. 2024)",
        ),
        "batchtopk": Architecture(
            build=_later("topk", "BatchTopK"),
            hyperparameters=TOPK,
            check=check_topk,
            summary="the k·batch largest of a batch, a threshold at inference (Bussmann et al. 2024)",
        ),
        "matryoshka": Architecture(
            build=_later("matryoshka", "Matryoshka"),
            hyperparameters=MATRYOSHKA,
            check=check_matryoshka,
            summary="BatchTopK whose prefixes all reconstruct (Bussmann et al. 2025)",
        ),
        "relu": Architecture(
            build=_later("relu", "ReLU"),
            hyperparameters=L1,
            recipe=A6,
            check=_within(l1=(0, math.inf), l1_warmup=(0, 1)),
            summary="L1 penalty, decoder rows of norm 1 (Bricken et al. 2023)",
        ),
        "jumprelu": Architecture(
            build=_later("jumprelu", "JumpReLU"),
            hyperparameters={"l0_coefficient": 0.0018, "l0_warmup": 0.0, "bandwidth": 0.001, "threshold": 1.0},
            check=_within(
                l0_coefficient=(0, math.inf), l0_warmup=(0, 1), bandwidth=(1e-9, math.inf), threshold=(0, math.inf)
            ),
            summary="L0 penalty, a learnt threshold a latent (Rajamanoharan et al. 2024b)",
        ),
        "gated": Architecture(
            build=_later("gated", "Gated"),
            hyperparameters=L1,
            recipe=A6,
            check=_within(l1=(0, math.inf), l1_warmup=(0, 1)),
            summary="apart: which latents fire, and how strongly (Rajamanoharan et al. 2024a)",
        ),
        "tied": Architecture(
            build=_later("tied", "Tied"),
            hyperparameters={
                **L1,
                "ortho": 0.0,
                "ortho_delay": 1 / 3,
                "ortho_warmup": 1 / 3,
                "ortho_peak": 0.7,
                "jumprelu": False,
                "unit_norm": True,
            },
            recipe=A6,
            check=_within(
                l1=(0, math.inf),
                l1_warmup=(0, 1),
                ortho=(0, math.inf),
                ortho_delay=(0, 1),
                ortho_warmup=(0, 1),
                ortho_peak=(0, 1),
            ),
            summary="encoder and decoder are one matrix; ortho: orthogonal to what it fires weakly on",
        ),
        "decoder": Architecture(
            build=_later("decoder", "Decoder"),
            recipe=DECODER,
            check=_as_it_encodes,
            summary="the decoder of a given SAE, its encoder frozen (the post on stitching)",
            starts=True,
        ),
        "encoder": Architecture(
            build=_later("encoder", "Encoder"),
            hyperparameters=TOPK,
            recipe={"scaling": "none"},
            check=check_topk,
            summary="the encoder of a given BatchTopK SAE, its decoder frozen (the paper, figure 23)",
            starts=True,
        ),
    }
