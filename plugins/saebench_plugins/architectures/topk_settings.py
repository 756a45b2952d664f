"""Settings of the TopK family: the sources' defaults, and what is wrong with others. No torch."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

    from saebench_meta.training.recipe import Recipe

TOPK: Mapping[str, Any] = {"k": 32, "aux": 1 / 32, "k_aux": 512}
"""The paper's A.2 and A.3."""
MATRYOSHKA: Mapping[str, Any] = {**TOPK, "prefixes": (1 / 16, 1 / 8, 1 / 4, 1 / 2, 1.0)}
"""Bussmann et al. 2025: widths 2304, 4608, 9216, 18432 and 36864."""


def k_of(recipe: Recipe) -> int:
    """Active latents a token."""
    k: Any = recipe.hyperparameters["k"]
    return int(k)


def check_topk(recipe: Recipe) -> str | None:
    """What is wrong with `k`, `aux` or `k_aux`."""
    s: Mapping[str, Any] = recipe.hyperparameters
    if not 0 < s["k"] < recipe.d_sae:
        return f"k is {s['k']}; it must be from 1 to d_sae − 1 = {recipe.d_sae - 1}"
    if s["aux"] < 0 or s["k_aux"] < 0:
        return f"aux is {s['aux']:g} and k_aux {s['k_aux']}; neither may be negative"
    return None


def widths(recipe: Recipe) -> list[int]:
    """Nested widths of a Matryoshka SAE, in latents."""
    shares: Any = recipe.hyperparameters["prefixes"]
    return [round(share * recipe.d_sae) for share in shares]


def check_matryoshka(recipe: Recipe) -> str | None:
    """What is wrong with the settings of TopK or with `prefixes`."""
    found = [0, *widths(recipe)]
    if any(b <= a for a, b in pairwise(found)) or found[-1] != recipe.d_sae:
        return f"prefixes give widths {found[1:]}; they must rise, and end at d_sae = {recipe.d_sae}"
    return check_topk(recipe)
