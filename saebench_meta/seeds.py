"""Named random streams: a draw comes from the run's seed and the name of its purpose, never a global generator."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    import torch


def derive(seed: int, *purpose: object) -> int:
    """A 63-bit seed for a purpose; the same on every machine and in every process."""
    text = "\x1f".join([str(seed), *map(str, purpose)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def rng(seed: int, *purpose: object) -> np.random.Generator:
    """A numpy generator for a purpose."""
    import numpy as np

    return np.random.default_rng(derive(seed, *purpose))


def generator(seed: int, *purpose: object) -> torch.Generator:
    """A torch generator on the CPU for a purpose; draws are moved to the device, so that devices agree."""
    import torch

    return torch.Generator().manual_seed(derive(seed, *purpose))
