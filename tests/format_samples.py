"""A small sound SAE of every format: what tests of all formats start from."""

from __future__ import annotations

import io
import json
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import safetensors.torch
import torch
from torch import Tensor

from saebench_meta.sae import SAE, SAEInfo, Site
from saebench_plugins import (
    batchtopk_repo,
    dictionary_learning,
    gemma_scope,
    llama_scope,
    native,
    openai_sae,
    saelens,
    sparsify,
)

D, F, K = 6, 10, 3
Tensors = dict[str, Any]
HOOK = "blocks.3.hook_resid_post"


@dataclass(frozen=True)
class Format:
    """How an SAE of one format is written here.

    Attributes:
        weights, config: the files, inside a folder.
        shapes: name -> shape in terms of "d" and "f".
        settings: what the configuration holds, given d_in and d_sae.
        extra: what the state dict of a `.pt` file holds besides.
    """

    loader: ModuleType
    weights: str
    shapes: dict[str, str]
    config: str | None = None
    settings: Callable[[int, int], dict[str, Any]] = lambda d, f: {}
    extra: dict[str, Any] | None = None

    @property
    def container(self) -> str:
        return self.weights.rpartition(".")[2]


CANONICAL = {"W_enc": "df", "b_enc": "f", "W_dec": "fd", "b_dec": "d"}
LINEAR = {"encoder.weight": "fd", "encoder.bias": "f", "decoder.weight": "df"}
FORMATS = {
    "native": Format(native, "sae.safetensors", CANONICAL),
    "saelens": Format(
        saelens,
        "sae_weights.safetensors",
        CANONICAL | {"threshold": "f"},
        "cfg.json",
        lambda d, f: {
            "architecture": "jumprelu",
            "d_in": d,
            "d_sae": f,
            "apply_b_dec_to_input": True,
            "metadata": {"model_name": "m", "hook_name": HOOK},
        },
    ),
    "gemma-scope": Format(
        gemma_scope,
        "params.npz",
        {"w_enc": "df", "b_enc": "f", "w_dec": "fd", "b_dec": "d", "threshold": "f"},
    ),
    "llama-scope": Format(
        llama_scope,
        "checkpoints/final.safetensors",
        LINEAR | {"decoder.bias": "d"},
        "hyperparams.json",
        lambda d, f: {
            "hook_point_in": HOOK,
            "d_model": d,
            "jump_relu_threshold": 0.25,
            "dataset_average_activation_norm": {"in": 5.5, "out": 5.5},
        },
    ),
    "openai": Format(
        openai_sae,
        "8.pt",
        {"pre_bias": "d", "latent_bias": "f", "encoder.weight": "fd", "decoder.weight": "df"},
        extra={"activation": "TopK", "activation_state_dict": {"k": K, "postact_fn": "ReLU"}},
    ),
    "dictionary_learning": Format(
        dictionary_learning,
        "ae.pt",
        LINEAR | {"b_dec": "d"},
        "config.json",
        lambda d, f: {"trainer": {"dict_class": "AutoEncoderTopK", "activation_dim": d, "dict_size": f, "k": K}},
        extra={},
    ),
    "batchtopk": Format(
        batchtopk_repo,
        "sae.pt",
        CANONICAL,
        "config.json",
        lambda d, f: {"sae_type": "batchtopk", "act_size": d, "dict_size": f, "top_k": K, "model_name": "m"},
        extra={},
    ),
    "sparsify": Format(
        sparsify,
        "sae.safetensors",
        {"encoder.weight": "fd", "encoder.bias": "f", "W_dec": "fd", "b_dec": "d"},
        "cfg.json",
        lambda d, f: {"activation": "topk", "k": K, "d_in": d, "num_latents": f},
    ),
}


def tensors(scheme: str, d: int = D, f: int = F, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    shapes = {name: [{"d": d, "f": f}[c] for c in shape] for name, shape in FORMATS[scheme].shapes.items()}
    return {name: torch.full(shape, 0.5, dtype=dtype) for name, shape in shapes.items()}


def write(folder: Path, scheme: str, d: int = D, f: int = F, dtype: torch.dtype = torch.float32) -> Path:
    """A sound SAE; returns what its loader takes."""
    form, t = FORMATS[scheme], tensors(scheme, d, f, dtype)
    path = folder / form.weights
    path.parent.mkdir(parents=True)
    if scheme == "native":
        info = SAEInfo(name="x", site=Site(model="m", hook=HOOK), d_in=d, d_sae=f)
        native.save(SAE(t["W_enc"], t["b_enc"], t["W_dec"], t["b_dec"], info), path)
    else:
        path.write_bytes(packed(scheme, t))
    if form.config:
        (folder / form.config).write_text(json.dumps(form.settings(d, f)))
    return path if scheme in ("native", "gemma-scope", "openai") else folder


def packed(scheme: str, t: Tensors) -> bytes:
    """The bytes of a file of weights that holds these tensors, or whatever stands in their place."""
    match FORMATS[scheme].container:
        case "safetensors":
            raw: bytes = safetensors.torch.save(t)
            return raw
        case "npz":
            out = io.BytesIO()
            np.savez(out, **{name: value.numpy() if isinstance(value, Tensor) else value for name, value in t.items()})
            return out.getvalue()
    return saved(OrderedDict(t) | (FORMATS[scheme].extra or {}))


def saved(value: object, **options: Any) -> bytes:
    """What `torch.save` writes."""
    out = io.BytesIO()
    torch.save(value, out, **options)
    return out.getvalue()
