"""Toy worlds: a few features with known directions, in which it is plain what an SAE should learn."""

from __future__ import annotations

from collections.abc import Mapping

from saebench_meta.hookspecs import hookimpl
from saebench_meta.worlds import WorldLoader
from saebench_plugins.toys.named import SCHEME, WORLDS

saebench_api = 1


@hookimpl
def saebench_worlds() -> Mapping[str, WorldLoader]:
    """By scheme."""
    loader = WorldLoader(make=WORLDS.__getitem__, names=tuple(WORLDS), summary="a few features, and which are on")
    return {SCHEME: loader}
