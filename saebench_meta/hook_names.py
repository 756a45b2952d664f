"""From the names that training code gives a place in a model to TransformerLens hook names.

Three ways of saying the same are met in the wild: the path of a Hugging Face module (`model.layers.3.mlp`,
`gpt_neox.layers.3`, `transformer.h.3.attn`), a word and a layer (`resid_post_layer_3`), and the hook name itself. A
module's output is meant: that of a block is the residual stream after it.
"""

from __future__ import annotations

import re

BLOCK = re.compile(r"(?:^|\.)(?:layers|h|blocks|block|layer)\.(\d{1,4})(?:\.([a-zA-Z_.]+))?$")
WORD = re.compile(r"^([a-z_]+?)(?:_?layer_?(\d{1,4}))?$")
PARTS = {
    "": "hook_resid_post",
    "mlp": "hook_mlp_out",
    "feed_forward": "hook_mlp_out",
    "block_sparse_moe": "hook_mlp_out",
    "attn": "hook_attn_out",
    "self_attn": "hook_attn_out",
    "attention": "hook_attn_out",
}
WORDS = {
    "resid": "hook_resid_post",
    "resid_post": "hook_resid_post",
    "residual": "hook_resid_post",
    "resid_pre": "hook_resid_pre",
    "resid_mid": "hook_resid_mid",
    "mlp": "hook_mlp_out",
    "mlp_out": "hook_mlp_out",
    "attn": "hook_attn_out",
    "attn_out": "hook_attn_out",
    "attention": "hook_attn_out",
    "attention_out": "hook_attn_out",
}
EMBEDDINGS = {"embed_in", "embed_tokens", "wte", "embed"}


def hook_of(name: str, layer: int | None = None) -> str | None:
    """The hook a name means, or None if it means none that is known.

    Args:
        layer: what else says the layer, where the name does not. A name that says another layer means nothing.
    """
    if "hook_" in name:
        return name
    if name.rpartition(".")[2] in EMBEDDINGS:
        return "hook_embed"
    if found := BLOCK.search(name):
        number, part = int(found[1]), PARTS.get(found[2] or "")
    elif found := WORD.match(name):
        number = int(found[2]) if found[2] else layer if layer is not None else -1
        part = WORDS.get(found[1])
    else:
        return None
    if part is None or number < 0 or layer not in (None, number):
        return None
    return f"blocks.{number}.{part}"


def norm_after(model: str, hook: str) -> bool:
    """Whether the model has a norm between a module's output and the hook of that name: Gemma 2 and 3 do."""
    return bool(re.search(r"gemma-?[23]", model.lower())) and hook.endswith(("hook_mlp_out", "hook_attn_out"))
