"""Writing an SAE as a folder that sae-lens 6 opens with the same codes, and `saelens.load` too."""

from __future__ import annotations

import json
import os
import shutil
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any

from saebench_meta.errors import SaebenchError
from saebench_plugins.saelens_settings import CONFIG, MODEL_NAMES, UNKNOWN, WEIGHTS, WRITES_TO_RESIDUAL

if TYPE_CHECKING:
    from torch import Tensor

    from saebench_meta.sae import SAE

LAYOUT = "6.0.0"
"""Version of the layout written; without one sae-lens takes a folder for an older one and drops its metadata."""

ARCHITECTURES = {"relu": "standard", "jumprelu": "jumprelu", "topk": "topk"}
NORMALIZE = {
    "none": "none",
    "center": "none",
    "layer_norm": "layer_norm",
    "norm_rescale": "constant_norm_rescale",
}


def to_saelens(sae: SAE, folder: str | Path) -> Path:
    """Write `cfg.json` and `sae_weights.safetensors`, as a whole or not at all.

    An SAE that centres its input is written with `center_writing_weights` in its metadata, as sae-lens marks such SAEs,
    and with the centring folded into `W_enc`: codes are the same on raw activations too, reconstructions are of the
    centred ones.

    Args:
        folder: must not exist, or be empty.

    Returns:
        The folder.

    Raises:
        SaebenchError: sae-lens has no form for this SAE; the folder is not empty; the disk refuses.
    """
    from safetensors.torch import save

    target = Path(folder).expanduser()
    _check(sae, target)
    files = {CONFIG: json.dumps(_config(sae), indent=1).encode(), WEIGHTS: save(_tensors(sae))}
    try:
        _write_folder(target, files)
    except OSError as e:
        raise SaebenchError(f"saelens: '{target}' cannot be written: {e.strerror or e}. Give another path.") from e
    return target


def _check(sae: SAE, target: Path) -> None:
    name = sae.info.name
    if sae.encoder is not None:
        raise SaebenchError(f"saelens: '{name}' has an encoder of its own ({sae.info.architecture}); keep its format.")
    if sae.info.input_transform == "center" and not WRITES_TO_RESIDUAL.search(sae.info.site.hook):
        raise SaebenchError(
            f"saelens: '{name}' centres its input at '{sae.info.site.hook}', which sae-lens can only say of hooks that "
            "write to the residual stream. Keep it as --format native."
        )
    for field, tensor in _tensors(sae).items():
        if not bool(tensor.isfinite().all()):
            raise SaebenchError(f"saelens: '{name}' is not written: {field} has NaN or infinite values")
    if target.exists() and not (target.is_dir() and not any(target.iterdir())):
        raise SaebenchError(f"saelens: '{target}' is there already and not empty. Give another folder, or remove it.")


def _tensors(sae: SAE) -> dict[str, Tensor]:
    names = ["W_enc", "b_enc", "W_dec", "b_dec", *(["threshold"] if sae.info.activation == "jumprelu" else [])]
    tensors = {name: getattr(sae, name).detach().cpu().contiguous() for name in names}
    if sae.info.input_transform == "center":  # (x − mean(x)) @ W = x @ (W − column means of W)
        tensors["W_enc"] = tensors["W_enc"] - tensors["W_enc"].mean(0, keepdim=True)
    if "threshold" in tensors:  # sae-lens lets a negative one pass what its ReLU then stops; written as it acts
        tensors["threshold"] = tensors["threshold"].clamp_min(0)
    return tensors


def _config(sae: SAE) -> dict[str, Any]:
    """The configuration in sae-lens 6's layout."""
    info = sae.info
    return {
        "architecture": ARCHITECTURES[info.activation],
        "d_in": info.d_in,
        "d_sae": info.d_sae,
        "dtype": str(sae.dtype).removeprefix("torch."),
        "device": "cpu",
        "apply_b_dec_to_input": False,
        "normalize_activations": NORMALIZE[info.input_transform],
        "reshape_activations": "hook_z" if info.site.hook.endswith("hook_z") else "none",
        **({"k": info.k, "rescale_acts_by_decoder_norm": False} if info.activation == "topk" else {}),
        "metadata": _metadata(sae),
    }


def _metadata(sae: SAE) -> dict[str, Any]:
    info = sae.info
    short = {hub: name for name, hub in MODEL_NAMES.items()}
    model = info.site.model.removeprefix("hf:")
    known = {
        "sae_lens_version": LAYOUT,
        "sae_lens_training_version": None,
        "model_name": None if model == UNKNOWN else short.get(model, model),
        "hook_name": None if info.site.hook == UNKNOWN else info.site.hook,
        "prepend_bos": info.prepend_bos,
        "context_size": info.context_size,
        "dataset_path": info.dataset,
        "model_from_pretrained_kwargs": {"center_writing_weights": True} if info.input_transform == "center" else {},
        "training_architecture": "standard" if info.architecture == "relu" else info.architecture,
        "training_architecture_details": {} if info.k is None else {"k": info.k},
    }
    return {key: value for key, value in known.items() if value is not None}


def _write_folder(target: Path, files: dict[str, bytes]) -> None:
    """A folder that is there with all its files or not at all."""
    from saebench_meta.store import sync_folder, write_synced

    target.parent.mkdir(parents=True, exist_ok=True)
    staging = target.parent / f".{target.name}.{uuid.uuid4().hex}.tmp"
    staging.mkdir()
    try:
        for name, data in files.items():
            write_synced(staging / name, data)
        sync_folder(staging)
        if target.exists() and os.name == "nt":  # only there an empty folder is in the way
            target.rmdir()
        staging.replace(target)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    sync_folder(target.parent)
