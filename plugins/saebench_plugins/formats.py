"""The loaders of other projects' formats, offered without importing them: listing SAEs and tasks stays instant.

Each is a module of this package with `load`, `peek` and `claims`, which is imported when one of them is first called.
Every module can also be registered by itself; the tests hold what is said here against it.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from typing import Any

from saebench_meta.hookspecs import SAELoader, hookimpl

saebench_api = 1

FORMATS = {
    "saelens": ("saelens", 1, True, "folder, release or hub repository of sae-lens"),
    "gemma-scope": ("gemma_scope", 1, False, "Gemma Scope params.npz, local or by release name"),
    "gemma-scope-2": ("gemma_scope_2", 1, False, "Gemma Scope 2 params.safetensors, local or by release name"),
    "llama-scope": ("llama_scope", 1, False, "Llama Scope folder: hyperparams.json and safetensors"),
    "openai": ("openai_sae", 1, False, "OpenAI's GPT-2 small SAEs, .pt files"),
    "dictionary_learning": ("dictionary_learning", 1, False, "ae.pt and config.json, as the library saves"),
    "batchtopk": ("batchtopk_repo", 1, False, "sae.pt and config.json of the BatchTopK repository"),
    "sparsify": ("sparsify", 1, False, "cfg.json and sae.safetensors of EleutherAI's sparsify"),
}
"""Scheme -> module, version, whether it also writes, summary."""

_BY_COSINE = ("novel_latents", "novel_latents_family", "stitching", "stitching_family", "frankenstein")
_GEMMA_SCOPE = {f"{task}.threshold": 0.4 for task in _BY_COSINE}
PARAMETERS: Mapping[str, Mapping[str, Any]] = {"gemma-scope": _GEMMA_SCOPE, "gemma-scope-2": _GEMMA_SCOPE}
"""Scheme -> defaults of task parameters. Theta, Leask et al., section 4.2: "we set the cosine threshold to 0.7 for the
GPT-2 SAEs, and 0.4 for the Gemmascope SAEs, based on our exploratory analysis"; those were of Gemma 2, and the second
suite, which the paper does not have, follows the first."""


@hookimpl
def saebench_loaders() -> Mapping[str, SAELoader]:
    return {
        scheme: SAELoader(
            load=_later(module, "load"),
            peek=_later(module, "peek"),
            claims=_later(module, "claims"),
            save=_later(module, "save") if writes else None,
            version=version,
            summary=summary,
            parameters=PARAMETERS.get(scheme, {}),
        )
        for scheme, (module, version, writes, summary) in FORMATS.items()
    }


def _later(module: str, name: str) -> Callable[..., Any]:
    """A function of a module of this package, which is imported at the first call."""

    def call(*args: Any, **kwargs: Any) -> Any:
        return getattr(importlib.import_module(f"saebench_plugins.{module}"), name)(*args, **kwargs)

    return call
