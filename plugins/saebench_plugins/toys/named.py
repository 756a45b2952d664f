"""The worlds of the post on tied SAEs and broken latents, by name. No torch.

The post gives no probabilities for its first world, which it takes over from an earlier one; those here are ours.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from saebench_plugins.toys.world import ToyWorld

if TYPE_CHECKING:
    from collections.abc import Mapping

    from saebench_plugins.toys.world import Relation

SCHEME = "toy"
SOURCE = "Chanin, Dulka and Bloom 2024, broken latents in tied SAEs"

LINEAR_P = tuple(0.3 * (i + 1) / 20 for i in range(20))
LINEAR_M = tuple(20.0 - i for i in range(20))
"""Firing probabilities rise to .3, magnitudes fall from 20 to 1: p m² is largest for features 4 to 8 (6 first)."""


def _four(
    name: str, d_in: int, p: tuple[float, ...], pulled: tuple[Relation, ...] = (), given: tuple[Relation, ...] = ()
) -> ToyWorld:
    return ToyWorld(f"{SCHEME}:{name}", d_in, p, (1.0,) * len(p), pulled, given, source=SOURCE)


def _twenty(name: str, d_in: int, *pulled: Relation) -> ToyWorld:
    return ToyWorld(f"{SCHEME}:{name}", d_in, LINEAR_P, LINEAR_M, pulled, source=SOURCE)


WORLDS: Mapping[str, ToyWorld] = {
    world.name.removeprefix(f"{SCHEME}:"): world
    for world in (
        _four("absorption-4", 50, (0.25, 0.2, 0.05, 0.05), given=((0, (1,)),)),
        _four("independent-4", 20, (0.2,) * 4),
        _four("two-children-4", 20, (0.2,) * 4, pulled=((0, (1, 2)),)),
        _twenty("linear-20", 50),
        _twenty("small-parent-20", 50, (12, (5, 7))),
        _twenty("large-parent-20", 50, (6, (5, 7))),
        _twenty("superposed-20", 19, (6, (5, 7))),
        _four("single-parent-4", 50, (0.3, 0.4, 0.4, 0.2), given=((0, (1, 2)),)),
    )
}
"""By name without the scheme."""
