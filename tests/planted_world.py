"""A plugin for tests: worlds of orthogonal features, small enough to be followed by hand."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from types import ModuleType

import torch
from torch import Tensor

from saebench_meta.hookspecs import PROJECT, hookimpl
from saebench_meta.plugins import Registry
from saebench_meta.sae import SAE, SAEInfo, Site
from saebench_meta.worlds import WORLD_HOOK, WorldLoader

saebench_api = 1
P = 0.25


@dataclass(frozen=True)
class Planted:
    """Feature i is on with probability `P`, with magnitude i + 1, along dimension i of `n` + 1."""

    n: int

    @property
    def name(self) -> str:
        return f"planted:{self.n}"

    @property
    def features(self) -> tuple[str, ...]:
        return tuple(f"along {i}" for i in range(self.n))

    @property
    def directions(self) -> Tensor:
        return torch.eye(self.n, self.n + 1)

    def sample(self, n: int, seed: int) -> tuple[Tensor, Tensor]:
        on = torch.rand(n, self.n, generator=torch.Generator().manual_seed(seed)) < P
        magnitudes = on * torch.arange(1.0, self.n + 1)
        return magnitudes @ self.directions, magnitudes


WORLDS = {str(n): Planted(n) for n in (1, 3, 5)}


@hookimpl
def saebench_worlds() -> Mapping[str, WorldLoader]:
    return {"planted": WorldLoader(WORLDS.__getitem__, names=tuple(WORLDS), version=7)}


def sae_of(rows: Tensor, bias: float = -0.5, world: str = "planted:3") -> SAE:
    """An SAE on a world with these decoder rows, the encoder their transpose."""
    d_sae, d_in = rows.shape
    info = SAEInfo(name="by hand", site=Site(model=world, hook=WORLD_HOOK), d_in=d_in, d_sae=d_sae, prepend_bos=False)
    return SAE(rows.T.contiguous(), torch.full((d_sae,), bias), rows, torch.zeros(d_in), info)


def registry_with(*modules: ModuleType) -> Registry:
    """The installed plugins, and these."""
    found = Registry()
    found.discover(metadata.entry_points(group=PROJECT))
    for module in modules:
        assert found.register(module).problems == []
    return found
