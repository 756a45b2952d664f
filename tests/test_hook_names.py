"""Places as training code and Hugging Face name them, against the hooks that hold the same activation."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from saebench_meta.errors import SaebenchError
from saebench_meta.hook_names import hook_of
from saebench_meta.models import load_bridge
from saebench_meta.resolve import named_hook


@pytest.mark.parametrize(
    ("name", "layer", "hook"),
    [
        ("transformer.h.3", None, "blocks.3.hook_resid_post"),
        ("model.layers.12.mlp", 12, "blocks.12.hook_mlp_out"),
        ("gpt_neox.layers.3", 3, "blocks.3.hook_resid_post"),
        ("gpt_neox.layers.3.attention", None, "blocks.3.hook_attn_out"),
        ("model.layers.0.self_attn", None, "blocks.0.hook_attn_out"),
        ("layers.3", None, "blocks.3.hook_resid_post"),
        ("h.11.attn", None, "blocks.11.hook_attn_out"),
        ("resid_post_layer_8", 8, "blocks.8.hook_resid_post"),
        ("mlp_out_layer5", None, "blocks.5.hook_mlp_out"),
        ("attention_out", 2, "blocks.2.hook_attn_out"),
        ("blocks.8.hook_resid_pre", None, "blocks.8.hook_resid_pre"),
        ("gpt_neox.embed_in", None, "hook_embed"),
        ("resid_post_layer_8", 7, None),
        ("model.layers.12.mlp", 1, None),
        ("mlp", None, None),
        ("model.layers.3.mlp.gate_proj", None, None),
        ("model.norm", None, None),
        ("something", 3, None),
        ("", None, None),
    ],
)
def test_places_become_hooks(name: str, layer: int | None, hook: str | None) -> None:
    assert hook_of(name, layer) == hook


@pytest.mark.parametrize(
    "module", ["model.layers.2", "model.layers.1.mlp", "model.layers.3.self_attn", "model.embed_tokens"]
)
def test_the_hook_of_a_module_holds_its_output(stories_model_dir: Path, module: str) -> None:
    from transformers import AutoModelForCausalLM

    hf = AutoModelForCausalLM.from_pretrained(stories_model_dir, local_files_only=True)
    seen: list[torch.Tensor] = []
    hf.get_submodule(module).register_forward_hook(
        lambda _module, _inputs, out: seen.append(out[0] if isinstance(out, tuple) else out)
    )
    tokens = torch.tensor([[1, 300, 17, 256, 40]])
    with torch.no_grad():
        hf(tokens)
    lm = load_bridge(str(stories_model_dir), ref="stories")
    torch.testing.assert_close(lm.activations(tokens, named_hook(module, "stories")), seen[0], atol=2e-5, rtol=0)


def test_a_module_before_a_norm_is_not_taken_for_the_hook_after_it() -> None:
    with pytest.raises(SaebenchError, match=r"--hook model.layers.3.mlp: .* norm .*blocks.3.hook_mlp_out"):
        named_hook("model.layers.3.mlp", "google/gemma-2-2b")
    assert named_hook("model.layers.3", "google/gemma-2-2b") == "blocks.3.hook_resid_post"


def test_what_is_no_known_place_is_left_for_the_model_to_refuse() -> None:
    assert named_hook("model.layers.3.mlp.gate_proj", "m") == "model.layers.3.mlp.gate_proj"
    assert named_hook("blocks.0.hook_resid_pre", "m") == "blocks.0.hook_resid_pre"
