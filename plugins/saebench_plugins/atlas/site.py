"""Names, sizes and places of what atlas ships: light enough to import for a listing."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

DATA = Path(__file__).parent / "data"
"""The built files: ``model/``, ``saes/`` and the manifest."""

MANIFEST = "atlas.json"
MODEL_REF = "atlas"
"""The language model, as `--model` takes it."""

MODEL_PARAMETERS = 1_195_008

SITE_LAYER = 1
D_MODEL = 128
HOOK = f"blocks.{SITE_LAYER}.hook_resid_post"
"""The SAEs' site: the last place where a city's own position still holds its facts alone."""

CORPUS_DOCUMENTS, CORPUS_SEED = 2000, 0
"""The evaluation corpus ``atlas``: its size, and the seed of its stream of the split ``evaluation``."""

WIDTHS = (128, 256, 512, 1024, 2048)
"""Of the family: 1 to 16 times d_model."""

SEEDS_WIDTH, SEEDS = 512, (1, 2)
"""The width trained with more seeds of initialisation and of the order of the data than 0."""

K = 4
L1 = 0.015

DEGRADED_FROM = f"batchtopk-{SEEDS_WIDTH}"
DEGRADED = (12, 25, 50, 75)
"""Per cent of the latents that are replaced by random ones, each step keeping those replaced before."""

ORACLE = "oracle"

TRUTH_VERSION = 1
"""Raised whenever the same document gets other features."""

LABELLED = (
    *("professions-1", "professions-2", "professions-3", "categories"),
    *("sentiment", "code", "topics", "tongues"),
)
"""The labelled sets; their references are ``atlas:`` and these."""


@dataclass(frozen=True)
class Shipped:
    """One SAE of atlas; its reference is ``atlas:`` and the name."""

    name: str
    architecture: str
    d_sae: int | None
    note: str


def shipped() -> tuple[Shipped, ...]:
    """Every SAE of atlas, in the order of the tables. The oracle is as wide as there are features."""
    family = [Shipped(f"{a}-{w}", a, w, "trained") for a in ("batchtopk", "relu") for w in WIDTHS]
    seeds = [Shipped(f"{DEGRADED_FROM}-s{s}", "batchtopk", SEEDS_WIDTH, f"trained, seed {s}") for s in SEEDS]
    degraded = [
        Shipped(f"{DEGRADED_FROM}-degraded{p}", "degraded", SEEDS_WIDTH, f"{p} % of the latents made random")
        for p in DEGRADED
    ]
    return (*family, *seeds, *degraded, Shipped(ORACLE, "oracle", None, "supervised: from the true features"))
