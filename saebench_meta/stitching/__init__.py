"""Stitching two SAEs of one site together: exact algebra that several tasks and `saebench stitch` share.

similarity ─► components ─► schedule        which latents belong together, in which order they move (weights only)
PairSample ─► additions, swaps, walk        what each move does to error and sparsity, without a pass a latent
"""

from saebench_meta.stitching.additions import Additions, additions
from saebench_meta.stitching.graph import (
    LEFTOVER,
    NOVEL,
    PHASES,
    SWAP,
    Components,
    Order,
    Schedule,
    components,
    only_add,
    schedule,
)
from saebench_meta.stitching.path import Path, walk
from saebench_meta.stitching.sample import GROUPS, PairChunk, PairSample, check_same_space
from saebench_meta.stitching.swaps import Swaps, swaps

__all__ = [
    "GROUPS",
    "LEFTOVER",
    "NOVEL",
    "PHASES",
    "SWAP",
    "Additions",
    "Components",
    "Order",
    "PairChunk",
    "PairSample",
    "Path",
    "Schedule",
    "Swaps",
    "additions",
    "check_same_space",
    "components",
    "only_add",
    "schedule",
    "swaps",
    "walk",
]
