"""Llama Scope: SAEs of Llama-3.1-8B by OpenMOSS (He et al. 2024), as their library writes them.

    FOLDER/hyperparams.json    FOLDER/checkpoints/final.safetensors

The published parameters expect activations of average norm √d_model. The library's inference form, which is taken here
(`standardize_parameters_of_dataset_norm`, then `transform_to_unit_decoder_norm`), puts that into the weights. With
s = √d_model / (the data set's average norm), E the encoder, D the decoder, theta one threshold for all latents::

    h = E x + b_E / s_in          D' = D s_in / s_out          b_D' = b_D / s_out
    n = ‖D'‖ per latent if `sparsity_include_decoder_norm`, else 1
    f = h n where h n > theta, else 0          x_hat = (D' / n) f + b_D'

`norm_activation: token-wise` is the per-token transform `norm_rescale`; `inference` means that s = 1. Transcoders,
gated linear units and other activation functions are refused.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from saebench_meta.errors import SaebenchError
from saebench_meta.hookspecs import SAEHeader, SAELoader, hookimpl
from saebench_plugins.checkpoints import place
from saebench_plugins.native_header import Slot, show
from saebench_plugins.untrusted import Reader

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from saebench_meta.sae import SAE, InputTransform, SAEInfo

saebench_api = 1

CONFIG, WEIGHTS = "hyperparams.json", Path("checkpoints") / "final.safetensors"
MODEL = "meta-llama/Llama-3.1-8B"
UNKNOWN_MODEL = "unknown (pass --model)"
"""Not the name of anything, so that a user who passes no model is told what to type instead of getting a guess."""

RELEASE = re.compile(r"(?:models--)?(?:\w+--)?Llama-?3[_.]1-8B-Base-L(?:X|\d+)(?:R|A|M|TC)-\d+x")
NORMS: dict[str, InputTransform] = {"dataset-wise": "none", "inference": "none", "token-wise": "norm_rescale"}
STATISTIC = "dataset_average_activation_norm"
"""The library also writes this, one scalar a hook, among the tensors; the configuration's is used."""

READER = Reader("llama-scope", f"Give a folder with {CONFIG} and {WEIGHTS}; download it again if it is one.")
bad = READER.bad


@hookimpl
def saebench_loaders() -> Mapping[str, SAELoader]:
    """Llama Scope folders."""
    return {
        "llama-scope": SAELoader(
            load, peek=peek, claims=claims, version=1, summary="Llama Scope folder: hyperparams.json and safetensors"
        )
    }


@dataclass(frozen=True)
class Config:
    """What of `hyperparams.json` changes the codes, checked."""

    hook: str
    d_in: int
    theta: float
    s_in: float
    s_out: float
    transform: InputTransform
    decoder_bias: bool
    subtract_decoder_bias: bool
    decoder_norm: bool
    k: int | None


def load(ref: str | Path, *, device: str | torch.device = "cpu", dtype: torch.dtype | None = None) -> SAE:
    """Open a Llama Scope SAE.

    Args:
        ref: the folder, or its `checkpoints/final.safetensors`.
        dtype: what the weights are cast to, after folding in float32; float32 unless said otherwise.

    Raises:
        BadFileError: whatever is wrong with a file, naming file and field.
        SaebenchError: a transcoder, or something else that is no SAE of this suite.
    """
    import torch

    folder, weights = _paths(ref)
    config = _config(folder / CONFIG)
    slots = _slots(weights, config)
    exact = torch.float64 if dtype == torch.float64 else torch.float32
    with READER.open(weights) as file:
        tensors = {name: READER.tensor(file, weights, name, slot, exact) for name, slot in slots.items()}
    READER.check_finite(weights, tensors)
    folded = _fold(tensors, config)
    tensors.clear()  # the last other name of the matrices, which would be held while they are cast
    return place(_info(folder, config, slots), folded, READER, weights, device=device, dtype=dtype)


def peek(ref: str | Path) -> SAEHeader:
    """Info from the configuration and the header of the weights, without torch. Raises `BadFileError`."""
    folder, weights = _paths(ref)
    config = _config(folder / CONFIG)
    info = _info(folder, config, _slots(weights, config))
    return SAEHeader(info, {"weights": weights, "config": folder / CONFIG})


def claims(path: Path) -> bool:
    """Whether a path is a folder with both files, or the weights of one."""
    try:
        folder = path if path.is_dir() else path.parent.parent
        if not path.is_dir() and path != folder / WEIGHTS:
            return False
        return (folder / CONFIG).is_file() and (folder / WEIGHTS).is_file()
    except (OSError, ValueError):
        return False


def _paths(ref: str | Path) -> tuple[Path, Path]:
    path = Path(ref)
    try:
        path = path.expanduser()
        folder = path if path.is_dir() or path.name != WEIGHTS.name else path.parent.parent
    except (OSError, ValueError, RuntimeError) as e:
        raise bad(path, "file", "it cannot be opened") from e
    return folder, folder / WEIGHTS


# -- the configuration


def _config(path: Path) -> Config:
    values = READER.json_file(path)
    hook = READER.text(path, values, "hook_point_in")
    d_in = READER.size(path, values, "d_model")
    if hook is None or d_in is None:
        raise bad(path, "hook_point_in" if hook is None else "d_model", "it is missing")
    _refuse_what_is_no_sae(path, values, hook)
    norm = READER.text(path, values, "norm_activation") or "dataset-wise"
    if norm not in NORMS:
        raise bad(path, "norm_activation", f"it is {show(norm)}, expected one of {', '.join(NORMS)}")
    s_in, s_out = _scales(path, values, d_in) if norm == "dataset-wise" else (1.0, 1.0)
    return Config(
        hook=hook,
        d_in=d_in,
        theta=_theta(path, values),
        s_in=s_in,
        s_out=s_out,
        transform=NORMS[norm],
        decoder_bias=READER.flag(path, values, "use_decoder_bias", True),
        subtract_decoder_bias=READER.flag(path, values, "apply_decoder_bias_to_pre_encoder", False),
        decoder_norm=READER.flag(path, values, "sparsity_include_decoder_norm", True),
        k=READER.size(path, values, "top_k"),
    )


def _refuse_what_is_no_sae(path: Path, values: Mapping[str, Any], hook: str) -> None:
    if (out := READER.text(path, values, "hook_point_out") or hook) != hook:
        raise SaebenchError(
            f"llama-scope loader: '{path}': it is a transcoder (it reads {hook} and writes {out}), which no task here "
            "measures. Use an SAE (R, A or M)."
        )
    if READER.flag(path, values, "use_glu_encoder", False):
        raise bad(path, "use_glu_encoder", "gated linear units are not read here", "Use another SAE.")
    function = READER.text(path, values, "act_fn") or "jumprelu"
    if function.lower() != "jumprelu":
        raise bad(path, "act_fn", f"it is {show(function)}; only jumprelu, as published, is read", "Use another SAE.")


def _theta(path: Path, values: Mapping[str, Any]) -> float:
    value = values.get("jump_relu_threshold")
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1e30:
        raise bad(path, "jump_relu_threshold", f"it is {show(value)}, expected a number that is not negative")
    return float(value)


def _scales(path: Path, values: Mapping[str, Any], d_in: int) -> tuple[float, float]:
    """s_in and s_out: √d_model over the data set's average norm before and after."""
    norms = values.get(STATISTIC)
    if not isinstance(norms, dict):
        raise bad(path, STATISTIC, f"it is {show(norms)}, expected 'in' and 'out'")
    found = [READER.positive(path, norms, key) for key in ("in", "out")]
    if found[0] is None:
        raise bad(path, f"{STATISTIC}.in", "it is missing")
    norm_in, norm_out = found[0], found[1] or found[0]
    return math.sqrt(d_in) / norm_in, math.sqrt(d_in) / norm_out


# -- the weights


def _slots(path: Path, config: Config) -> dict[str, Slot]:
    """The tensors of the file, which must be the four (or three) of the format, fitting `d_model` and each other."""
    slots = {name: s for name, s in READER.tensor_slots(path).items() if not name.startswith(STATISTIC)}
    if "encoder.weight" not in slots:
        raise bad(path, "encoder.weight", "this tensor is missing")
    shape = slots["encoder.weight"].shape
    if len(shape) != 2 or not shape[0] or shape[1] != config.d_in:
        raise bad(path, "encoder.weight.shape", f"it is {show(list(shape))}, expected [d_sae, d_model = {config.d_in}]")
    d_sae, d_in = shape
    shapes: dict[str, tuple[int, ...]] = {
        "encoder.weight": (d_sae, d_in),
        "encoder.bias": (d_sae,),
        "decoder.weight": (d_in, d_sae),
    }
    READER.match_shapes(path, slots, shapes | ({"decoder.bias": (d_in,)} if config.decoder_bias else {}))
    return slots


def _info(folder: Path, config: Config, slots: Mapping[str, Slot]) -> SAEInfo:
    from saebench_meta.sae import SAEInfo, Site

    known = any(RELEASE.fullmatch(part) for part in folder.absolute().parts)
    notes = () if known else ("its path names no Llama Scope release: the model is the user's word",)
    return SAEInfo(
        name=folder.absolute().name or "llama-scope",
        site=Site(model=MODEL if known else UNKNOWN_MODEL, hook=config.hook),
        d_in=config.d_in,
        d_sae=slots["encoder.weight"].shape[0],
        architecture="topk" if config.k else "jumprelu",
        activation="jumprelu",
        k=config.k,
        input_transform=config.transform,
        prepend_bos=True,
        context_size=1024,
        folded=_folded(config),
        notes=(*notes, "one threshold for all latents, found after training with top-k") if config.k else notes,
    )


def _folded(config: Config) -> tuple[str, ...]:
    folded = []
    if (config.s_in, config.s_out) != (1, 1):
        folded.append(f"the data set's average norm (factor {config.s_in:.6g}) into b_enc, W_dec and b_dec")
    if config.subtract_decoder_bias and config.decoder_bias:
        folded.append("b_dec, subtracted before encoding, into b_enc")
    if config.decoder_norm:
        folded.append("decoder norms into W_enc and b_enc, before the threshold")
    return tuple(folded)


def _fold(tensors: Mapping[str, Tensor], config: Config) -> dict[str, Tensor]:
    """The formulas at the top of this module, in place wherever a tensor is large."""
    import torch

    E, b_E, D = tensors["encoder.weight"], tensors["encoder.bias"], tensors["decoder.weight"]
    b_D = tensors["decoder.bias"] if config.decoder_bias else D.new_zeros(config.d_in)
    if config.subtract_decoder_bias:
        b_E = b_E - E @ b_D
    b_E, b_D = b_E / config.s_in, b_D / config.s_out
    D.mul_(config.s_in / config.s_out)
    if config.decoder_norm:
        n = torch.linalg.vector_norm(D, dim=0)
        D.div_(n.masked_fill(n == 0, 1))  # a latent that writes nothing has h n = 0: never active, and stays so
        E.mul_(n[:, None])
        b_E = b_E * n
    return {"W_enc": E.T, "b_enc": b_E, "W_dec": D.T, "b_dec": b_D, "threshold": torch.full_like(b_E, config.theta)}
