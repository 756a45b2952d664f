"""Names, sizes and places of what atlas ships: light enough to import for a listing."""

from __future__ import annotations

from pathlib import Path

DATA = Path(__file__).parent / "data"
"""The built files: ``model/``, ``saes/`` and the manifest."""

MANIFEST = "atlas.json"
MODEL_REF = "atlas"
"""The language model, as `--model` takes it."""

MODEL_PARAMETERS = 1_136_128

SITE_LAYER = 1
D_MODEL, K = 128, 4
WIDTHS = (128, 256, 512)
HOOK = f"blocks.{SITE_LAYER}.hook_resid_post"
"""The SAEs' site: the last place where a city's own position still holds its facts alone."""

CORPUS_DOCUMENTS, CORPUS_SEED = 2000, 0
"""The evaluation corpus ``atlas``: its size, and the seed of its stream of the split ``evaluation``."""


def sae_name(d_sae: int) -> str:
    """The name of the BatchTopK SAE of a width; its reference is ``atlas:`` and this."""
    return f"batchtopk-{d_sae}"
