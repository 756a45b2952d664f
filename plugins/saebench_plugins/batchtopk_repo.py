"""Checkpoints of the BatchTopK paper's repository: a folder with `sae.pt` and `config.json`.

    vanilla         f = relu((z - b_dec) W_enc + b_enc)
    topk, batchtopk f = relu((z - b_dec) W_enc), the k largest of a token or k·B of a batch kept; b_enc is not used
    jumprelu        f = relu(z W_enc + b_enc), kept where it exceeds exp(log_threshold)

`input_unit_norm` is a layer norm without gain of every token, undone on the output. Values of the config may be strings
of what they were. No inference threshold is stored for batchtopk, so it comes out uncalibrated. Source: Bussmann,
Leask, Nanda 2024, "BatchTopK Sparse Autoencoders", sections 2 and 3, and the repository's `sae.py`. A variant of the
repository's history with `use_encoder_bias`, `tied_weights` and other activations is understood as far as it is linear.
Nothing is unpickled.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from saebench_meta.calibration import uncalibrated_note
from saebench_meta.hookspecs import SAEHeader, SAELoader, hookimpl
from saebench_plugins.checkpoints import find_pair, is_pair, load_torch, peek_torch
from saebench_plugins.folding import left_product
from saebench_plugins.native_header import show
from saebench_plugins.torch_file import TorchFile, check_declared, load_tensor
from saebench_plugins.torch_pickle import TensorEntry
from saebench_plugins.untrusted import Reader

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from saebench_meta.sae import SAE, ActivationName, SAEInfo

saebench_api = 1

SCHEME, WEIGHTS, CONFIG = "batchtopk", "sae.pt", "config.json"
READER = Reader(SCHEME, f"Give a folder with {WEIGHTS} and {CONFIG} as the repository saves them.")

ACTIVATIONS: Mapping[str, tuple[str, ActivationName]] = {
    "vanilla": ("relu", "relu"),
    "topk": ("topk", "topk"),
    "batchtopk": ("batchtopk", "jumprelu"),
    "jumprelu": ("jumprelu", "jumprelu"),
}
"""`sae_type` -> what it was trained as, activation function at inference."""

LOG_THRESHOLD = "jumprelu.log_threshold"
UNUSED = {"num_batches_not_active", "quantile_threshold"}
WORDS: Mapping[str, Any] = {"True": True, "true": True, "False": False, "false": False, "None": None, "": None}


@dataclass(frozen=True)
class Plan:
    """What will be done with a file: everything that is known without reading a matrix."""

    info: SAEInfo
    entries: Mapping[str, TensorEntry]
    encoder_bias: bool
    tied: bool
    subtract: bool


@hookimpl
def saebench_loaders() -> Mapping[str, SAELoader]:
    return {
        SCHEME: SAELoader(
            load, peek=peek, claims=claims, version=1, summary="sae.pt and config.json of the BatchTopK repository"
        )
    }


def load(ref: str | Path, *, device: str | torch.device = "cpu", dtype: torch.dtype | None = None) -> SAE:
    """Open a folder with `sae.pt` and `config.json`, or the former; weights are float32 unless said otherwise.

    Raises:
        BadFileError: whatever is wrong with the files, naming file and field.
    """
    pair = find_pair(ref, WEIGHTS, CONFIG, READER)
    return load_torch(pair, READER, make_plan, _canonical, device=device, dtype=dtype)


def peek(ref: str | Path) -> SAEHeader:
    """The SAE's info from config and declared shapes, without torch. Raises `BadFileError` as `load` does."""
    return peek_torch(find_pair(ref, WEIGHTS, CONFIG, READER), READER, make_plan)


def claims(path: Path) -> bool:
    """Whether a path is a folder with `sae.pt` and a config, or that file."""
    return is_pair(path, WEIGHTS, CONFIG)


# -- what is there


def parsed(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings whose strings may be what `str` made of a truth value or a number."""
    return {key: _parse(value) for key, value in settings.items()}


def _parse(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    text = value.strip()
    if text in WORDS:
        return WORDS[text]
    return int(text) if text.isascii() and text.isdigit() and len(text) < 16 else value


def make_plan(file: TorchFile, config: Path) -> Plan:
    """Check names, shapes and settings of an open file against its config. Raises `BadFileError`."""
    settings = parsed(READER.json_file(config))
    kind = READER.text(config, settings, "sae_type")
    if kind is None or kind not in ACTIVATIONS:
        raise READER.bad(config, "sae_type", f"it is {show(kind)}; known are {', '.join(ACTIVATIONS)}")
    if (activation := READER.text(config, settings, "activation")) not in (None, "relu"):
        raise READER.bad(
            config, "activation", f"it is {show(activation)}: codes other than relu's cannot be represented"
        )
    entries = _tensors(file, kind)
    d_sae, d_in = _widths(file, config, settings, entries)
    check_declared(file, entries)
    k = READER.size(config, settings, "top_k") if kind in ("topk", "batchtopk") else None
    if kind in ("topk", "batchtopk") and (k is None or k > d_sae):
        raise READER.bad(config, "top_k", f"it is {show(k)}, expected a number from 1 to the {d_sae:,} latents")
    simple = kind in ("topk", "batchtopk")
    return Plan(
        info=_info(config, settings, kind, d_in, d_sae, k),
        entries=entries,
        encoder_bias=not simple or READER.flag(config, settings, "use_encoder_bias", False),
        tied=simple and READER.flag(config, settings, "tied_weights", False),
        subtract=kind != "jumprelu",
    )


def _tensors(file: TorchFile, kind: str) -> dict[str, TensorEntry]:
    state = file.root
    if not isinstance(state, dict):
        raise file.bad("file", f"it holds a {type(state).__name__}, expected a state dict")
    needed = ["W_enc", "b_enc", "W_dec", "b_dec", *([LOG_THRESHOLD] if kind == "jumprelu" else [])]
    if missing := [name for name in needed if name not in state]:
        raise file.bad(missing[0], f"this tensor is missing; {kind} has {', '.join(needed)}")
    if unknown := [name for name in state if name not in needed and name not in UNUSED]:
        raise file.bad(show(unknown[0]).strip("'"), f"unknown tensor; {kind} has {', '.join(needed)}")
    for name in needed:
        if not isinstance(entry := state[name], TensorEntry):
            raise file.bad(name, f"it is a {type(entry).__name__}, expected a tensor")
        if not entry.storage.dtype.startswith(("float", "bfloat")):
            raise file.bad(name, f"its values are {entry.storage.dtype}, expected floating point")
    return {name: state[name] for name in needed}


def _widths(
    file: TorchFile, config: Path, settings: Mapping[str, Any], entries: Mapping[str, TensorEntry]
) -> tuple[int, int]:
    shape = entries["W_dec"].shape
    if len(shape) != 2 or 0 in shape:
        raise file.bad("W_dec", f"it has shape {list(shape)}, expected a matrix")
    d_sae, d_in = shape
    wanted = {"W_enc": (d_in, d_sae), "b_enc": (d_sae,), "b_dec": (d_in,), LOG_THRESHOLD: (d_sae,)}
    for name, entry in entries.items():
        if entry.shape != wanted.get(name, shape):
            raise file.bad(name, f"it has shape {list(entry.shape)}, expected {list(wanted[name])}")
    for key, found in (("act_size", d_in), ("dict_size", d_sae)):
        if READER.size(config, settings, key) not in (None, found):
            raise READER.bad(config, key, f"it is {show(settings[key])}, the weights have {found:,}")
    return d_sae, d_in


def _info(config: Path, settings: Mapping[str, Any], kind: str, d_in: int, d_sae: int, k: int | None) -> SAEInfo:
    from saebench_meta.sae import SAEInfo, Site

    architecture, activation = ACTIVATIONS[kind]
    model, hook = READER.text(config, settings, "model_name"), _hook(config, settings)
    notes = [] if model else ["the config does not name the language model: pass --model"]
    if hook is None:
        notes.append("the config does not name the hook: pass --hook")
    if kind == "batchtopk" and k is not None:
        notes.append(uncalibrated_note(k, "this format stores no inference threshold"))
    return SAEInfo(
        name=READER.text(config, settings, "name") or config.parent.name or "sae",
        site=Site(model=model or "unknown", hook=hook or "unknown"),
        d_in=d_in,
        d_sae=d_sae,
        architecture=architecture,
        activation=activation,
        k=k,
        input_transform="layer_norm" if READER.flag(config, settings, "input_unit_norm", False) else "none",
        context_size=READER.size(config, settings, "seq_len"),
        dataset=READER.text(config, settings, "dataset_path"),
        folded=("the subtraction of b_dec into b_enc",) if kind != "jumprelu" else (),
        notes=tuple(notes),
    )


def _hook(config: Path, settings: Mapping[str, Any]) -> str | None:
    if hook := READER.text(config, settings, "hook_point"):
        return hook
    site, layer = READER.text(config, settings, "site"), settings.get("layer")
    return f"blocks.{layer}.hook_{site}" if site and type(layer) is int and 0 <= layer < 10_000 else None


# -- the weights


def _canonical(file: TorchFile, plan: Plan, dtype: torch.dtype) -> dict[str, Tensor]:
    """The canonical tensors; matrices in `dtype`, vectors in float64 until everything is folded."""
    import torch

    entries = plan.entries

    def read(name: str, kind: torch.dtype = torch.float64) -> Tensor:
        return load_tensor(file, name, entries[name], kind)

    W_enc, b_dec, b_enc = read("W_enc", dtype), read("b_dec"), read("b_enc")
    W_dec = W_enc.T.clone(memory_format=torch.contiguous_format) if plan.tied else read("W_dec", dtype)
    if not plan.encoder_bias:
        b_enc.zero_()
    tensors = {"W_enc": W_enc, "b_enc": b_enc, "W_dec": W_dec, "b_dec": b_dec}
    if LOG_THRESHOLD in entries:
        tensors["threshold"] = read(LOG_THRESHOLD).exp()
    elif plan.info.activation == "jumprelu":
        tensors["threshold"] = torch.zeros_like(b_enc)
    if plan.subtract:
        b_enc -= left_product(b_dec, W_enc)
    return tensors
