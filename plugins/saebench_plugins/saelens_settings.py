"""What the settings of a SAELens configuration mean here: which are read, which are refused, and what to say of them.

Keys of versions 3 to 6 are taken alike: `cfg` is the configuration itself, `meta` the same with version 6's `metadata`
laid over it. Imports no torch.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from saebench_meta.errors import SaebenchError, did_you_mean
from saebench_plugins.native_header import show
from saebench_plugins.saelens_releases import centred_release
from saebench_plugins.untrusted import Reader

CONFIG, WEIGHTS = "cfg.json", "sae_weights.safetensors"
SCALER, WHITENING = "activation_scaler.json", "activation_whitening.safetensors"

UNKNOWN = "unknown"
"""Stands for a model or hook that a folder does not name, until the user names it."""

READER = Reader("saelens", "Save the SAE again with sae-lens 6 or newer, or fetch the folder again.")

ACTIVATIONS = {"standard": "relu", "topk": "topk", "jumprelu": "jumprelu", "gated": "jumprelu"}
TRAINED_ONLY = {"batchtopk": "jumprelu", "matryoshka_batchtopk": "jumprelu"}
KINDS = ACTIVATIONS | TRAINED_ONLY
REFUSED = {
    "temporal": "its codes depend on earlier tokens",
    "matching_pursuit": "its codes are found step by step and not by an encoder",
    "abstopk": "its codes may be negative",
}
TRANSFORMS = {
    "none": "none",
    "layer_norm": "layer_norm",
    "constant_norm_rescale": "norm_rescale",
    "expected_average_only_in": "none",
    "covariance_whitening": "none",
}
WRITES_TO_RESIDUAL = re.compile(r"hook_(resid_(pre|mid|post)|attn_out|mlp_out|embed|pos_embed)$")

MODEL_NAMES = {
    "gpt2-small": "gpt2",
    "gemma-2b": "google/gemma-2b",
    "gemma-2-2b": "google/gemma-2-2b",
    "gemma-2-9b": "google/gemma-2-9b",
    "mistral-7b": "mistralai/Mistral-7B-v0.1",
    "pythia-70m-deduped": "EleutherAI/pythia-70m-deduped",
    "pythia-160m-deduped": "EleutherAI/pythia-160m-deduped",
    "tiny-stories-1L-21M": "roneneldan/TinyStories-1Layer-21M",
}
"""TransformerLens' short names -> hub names, for models that published SAEs name by the short one."""


@dataclass(frozen=True)
class Folds:
    """What is to be folded into the weights.

    Attributes:
        scaling: factor of `expected_average_only_in`.
        whitening: file of mean, matrix and inverse_matrix.
        finetuned: whether codes are multiplied by the file's `scaling_factor` before decoding.
        rescale: whether codes are those of the decoder brought to norm 1.
        threshold: the one threshold of a batchtopk checkpoint, in units of its (rescaled) pre-activations.
    """

    subtract_b_dec: bool
    rescale: bool
    finetuned: bool
    scaling: float | None
    whitening: Path | None
    threshold: float | None


def kind_of(path: Path, cfg: Mapping[str, Any], meta: Mapping[str, Any]) -> str:
    kind = READER.text(path, cfg, "architecture") or "standard"
    activation = READER.text(path, cfg, "activation_fn") or READER.text(path, cfg, "activation_fn_str") or "relu"
    if kind == "standard" and activation == "topk":
        kind = "topk"
    out = READER.text(path, meta, "hook_name_out")
    if kind not in KINDS or cfg.get("d_out") is not None or (out and out != meta.get("hook_name")):
        what = REFUSED.get(kind, "")
        if not what and kind in KINDS:
            what = f"it reads '{show(meta.get('hook_name'))[1:-1]}' and writes elsewhere, so it is a transcoder"
        elif not what and re.search(r"transcoder|crosscoder|clt", kind):
            what = "it reconstructs another place than it reads, and every task here measures a reconstruction"
        elif not what:
            what = f"this suite reads {', '.join(KINDS)}{did_you_mean(kind, list(KINDS))}"
        raise SaebenchError(f"saelens loader: '{path}': architecture {show(kind)} is not read: {what}.")
    if activation not in ("relu", "topk"):
        raise SaebenchError(
            f"saelens loader: '{path}': activation_fn {show(activation)} is not read, only relu and topk. "
            "sae-lens 6 would silently use relu instead."
        )
    head = meta.get("hook_head_index")
    if head is not None:
        raise SaebenchError(
            f"saelens loader: '{path}': hook_head_index {show(head)}: it reads one attention head, but a site here is "
            "a whole hook. Train or choose an SAE of all heads."
        )
    return kind


def normalization(path: Path, cfg: Mapping[str, Any]) -> str:
    value = cfg.get("normalize_activations")
    if isinstance(value, bool):
        return "expected_average_only_in" if value else "none"
    mode = READER.text(path, cfg, "normalize_activations") or "none"
    if mode not in TRANSFORMS:
        raise SaebenchError(
            f"saelens loader: '{path}': normalize_activations {show(mode)} is not read"
            f"{did_you_mean(mode, list(TRANSFORMS))}"
        )
    return mode


# -- centring


def centring(
    folder: Path, path: Path, cfg: Mapping[str, Any], meta: Mapping[str, Any], d_sae: int
) -> tuple[bool, list[str]]:
    """Whether the SAE reads a residual stream whose mean was taken out, and why this is thought so."""
    kwargs = meta.get("model_from_pretrained_kwargs") or {}
    if not isinstance(kwargs, dict):
        raise READER.bad(path, "model_from_pretrained_kwargs", f"it is {show(kwargs)}, expected an object")
    others = sorted(str(k) for k in kwargs.keys() - {"center_writing_weights", "dtype", "device", "n_devices"})
    notes = [f"its model was opened with {show(others)}, which this suite does not do"] if others else []
    said = kwargs.get("center_writing_weights")
    hook = meta.get("hook_name")
    if said is None and (release := centred_release(folder, {**cfg, **meta, "d_sae": d_sae})):
        return True, [*notes, f"it is taken for release {release}, whose SAEs read centred activations: centred"]
    if not said:
        return False, notes
    if not isinstance(hook, str) or not WRITES_TO_RESIDUAL.search(hook):
        return False, notes
    return True, [*notes, "its model had center_writing_weights on: each token's mean is taken out before encoding"]


def transform_of(path: Path, normalize: str, centred: bool) -> str:
    transform = TRANSFORMS[normalize]
    if not centred or transform == "layer_norm":  # layer norm takes the mean out and puts it back by itself
        return "center" if centred and transform == "none" else transform
    if transform == "none":
        return "center"
    raise SaebenchError(
        f"saelens loader: '{path}': it needs centred activations and normalize_activations '{normalize}' at once, "
        "which this suite cannot do."
    )


# -- words


def folded(kind: str, folds: Folds) -> Iterator[str]:
    """What will be folded into the weights, in words."""
    if kind == "gated":
        yield "gate and magnitude paths as one JumpReLU"
    if folds.finetuned:
        yield "finetuning scaling factor into W_dec"
    if folds.threshold is not None:
        yield f"one threshold for all latents ({folds.threshold:.6g})"
    if folds.scaling is not None:
        yield f"activation norm factor {folds.scaling:.6g}"
    if folds.rescale:
        yield "decoder norms into the encoder"
    if folds.whitening is not None:
        yield "covariance whitening"
    if folds.subtract_b_dec:
        yield "b_dec subtracted before encoding"


def notes_on(
    path: Path, cfg: Mapping[str, Any], meta: Mapping[str, Any], normalize: str, folds: Folds
) -> Iterator[str]:
    """What a reader of a result should know."""
    if missing := [key for key in ("model_name", "hook_name") if READER.text(path, meta, key) is None]:
        yield f"{CONFIG} has no {' and no '.join(missing)}: pass --model and --hook"
    if normalize == "expected_average_only_in" and folds.scaling is None:
        yield (
            f"WARNING: it was trained on activations scaled to norm sqrt(d_in), and no factor is there: it is run "
            f'unscaled, as sae-lens does; write {{"scaling_factor": …}} into {SCALER} beside it'
        )
    if normalize == "covariance_whitening" and folds.whitening is None:
        yield f"WARNING: it was trained on whitened activations, and {WHITENING} is not there: it is run unwhitened"
    if folds.threshold is not None and folds.threshold <= 0:
        what = f"its batchtopk threshold is {folds.threshold:g}, so it was never estimated"
        yield f"WARNING: {what}: every positive latent is active"
    if cfg.get("reshape_activations") == "hook_z" or str(meta.get("hook_name") or "").endswith("hook_z"):
        yield "it reads all heads of hook_z side by side: d_in = heads x d_head"
    if (positions := meta.get("seqpos_slice")) not in (None, [None], [None, None], [None, None, None]):
        yield f"it was trained on positions {show(positions)} only"
    if meta.get("exclude_special_tokens"):
        yield "special tokens were left out of its training"
