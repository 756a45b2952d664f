"""OpenAI's SAEs of GPT-2 small (Gao et al. 2024), as `sparse_autoencoder` saves them: one `.pt` state dict each.

    openai:FILE.pt     FILE.pt     …/gpt2-small/resid_post_mlp_v5_32k/autoencoders/8.pt

    z = LN(x) for TopK, x for ReLU               LN(x) = (x − mean) / (std + 1e-5), std with n − 1
    f = act(encoder (z − pre_bias) + latent_bias)
    x_hat = decoder f + pre_bias, and back through LN

`pre_bias` is folded into the encoder's bias; LN is the per-token transform `layer_norm`. As upstream, TopK alone means
LN. The location and layer in the path name the site; a file elsewhere has an unknown one: pass --model and --hook.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from saebench_meta.errors import SaebenchError
from saebench_meta.hookspecs import SAEHeader, SAELoader, hookimpl
from saebench_plugins.checkpoints import place
from saebench_plugins.native_header import show
from saebench_plugins.torch_file import TorchFile, check_declared, load_tensor, open_torch_file
from saebench_plugins.torch_pickle import TensorEntry
from saebench_plugins.untrusted import Reader

if TYPE_CHECKING:
    import torch

    from saebench_meta.sae import SAE, SAEInfo

saebench_api = 1

HOOKS = {
    "mlp_post_act": "blocks.{}.mlp.hook_post",
    "resid_delta_attn": "blocks.{}.hook_attn_out",
    "resid_post_attn": "blocks.{}.hook_resid_mid",
    "resid_delta_mlp": "blocks.{}.hook_mlp_out",
    "resid_post_mlp": "blocks.{}.hook_resid_post",
}
"""Location in the release -> TransformerLens hook, as upstream's README pairs them."""
LOCATION = re.compile(rf"({'|'.join(HOOKS)})(?:_v\d+(?:_\d+k)?)?")
LAYER = re.compile(r"\d{1,2}")
TENSORS = {"W_enc": "encoder.weight", "b_enc": "latent_bias", "W_dec": "decoder.weight", "b_dec": "pre_bias"}
"""Canonical name -> upstream's, whose matrices lie the other way round."""

UNKNOWN_MODEL, UNKNOWN_HOOK = "unknown (pass --model)", "unknown (pass --hook)"
"""Not names of anything, so that a user who passes neither is told what to type instead of getting a guess."""

STATISTICS = {"stats_last_nonzero", "latents_activation_frequency", "latents_mean_square"}
"""Counters kept in training; of no use here."""
FLOATS = {"float16", "bfloat16", "float32", "float64"}

READER = Reader("openai", "Give an autoencoder file of openai/sparse_autoencoder; download it again if it is one.")


@hookimpl
def saebench_loaders() -> Mapping[str, SAELoader]:
    """Autoencoder files of openai/sparse_autoencoder."""
    return {
        "openai": SAELoader(load, peek=peek, claims=claims, version=1, summary="OpenAI's GPT-2 small SAEs, .pt files")
    }


@dataclass(frozen=True)
class State:
    """The state dict, checked: its tensors, and k where the activation function is TopK."""

    tensors: Mapping[str, TensorEntry]
    k: int | None

    @property
    def shape(self) -> tuple[int, int]:
        """(d_sae, d_in)."""
        d_sae, d_in = self.tensors["encoder.weight"].shape
        return d_sae, d_in


def load(ref: str | Path, *, device: str | torch.device = "cpu", dtype: torch.dtype | None = None) -> SAE:
    """Open an autoencoder file. Nothing in it is unpickled.

    Args:
        dtype: what the weights are cast to, after folding in float32; float32 unless said otherwise.

    Raises:
        BadFileError: whatever is wrong with the file, naming file and field.
    """
    import torch

    path = _path(ref)
    exact = torch.float64 if dtype == torch.float64 else torch.float32
    with open_torch_file(path, READER) as file:
        state = _state(file)
        tensors = {
            name: load_tensor(file, stored, state.tensors[stored], exact, transpose=name.startswith("W"))
            for name, stored in TENSORS.items()
        }
    tensors["b_enc"] -= tensors["b_dec"] @ tensors["W_enc"]
    return place(_info(path, state), tensors, READER, path, device=device, dtype=dtype)


def peek(ref: str | Path) -> SAEHeader:
    """Info from the names and shapes in the file, without torch. Raises `BadFileError` as `load` does, values apart."""
    path = _path(ref)
    with open_torch_file(path, READER) as file:
        return SAEHeader(_info(path, _state(file)), {"weights": path})


def claims(path: Path) -> bool:
    """Whether a path is a `.pt` archive whose pickle names this format's biases."""
    try:
        if path.suffix != ".pt" or not path.is_file():  # a pipe would wait for ever
            return False
        with open_torch_file(path, READER) as file:
            return isinstance(file.root, dict) and {"pre_bias", "latent_bias"} <= file.root.keys()
    except (SaebenchError, OSError, ValueError):
        return False


def _path(ref: str | Path) -> Path:
    path = Path(ref)
    try:
        return path.expanduser()
    except RuntimeError as e:
        raise READER.bad(path, "file", "there is no home folder for '~'") from e


# -- the state dict


def _state(file: TorchFile) -> State:
    root = file.root
    if not isinstance(root, dict):
        raise file.bad("file", f"it holds {show(type(root).__name__)}, expected a state dict", READER.advice)
    values = dict(root)
    k = _k(file, values.pop("activation", "ReLU"), values.pop("activation_state_dict", {}))
    entries = {str(name): value for name, value in values.items() if name not in STATISTICS}
    for name, value in entries.items():
        if not isinstance(value, TensorEntry) or value.storage.dtype not in FLOATS:
            raise file.bad(show(name), "it is no tensor of floats", READER.advice)
    tensors = {name: value for name, value in entries.items() if isinstance(value, TensorEntry)}
    state = State(tensors, k)
    _check_shapes(file, state)
    check_declared(file, tensors)
    return state


def _k(file: TorchFile, activation: object, settings: object) -> int | None:
    """k of TopK, None for ReLU; other activation functions are refused, which upstream takes for ReLU in silence."""
    if activation == "ReLU":
        return None
    if activation != "TopK":
        raise file.bad("activation", f"it is {show(activation)}, expected ReLU or TopK", "Use another SAE.")
    if not isinstance(settings, dict) or type(settings.get("k")) is not int or settings["k"] < 1:
        raise file.bad("activation_state_dict.k", "it is missing or no positive whole number", READER.advice)
    if settings.get("postact_fn") != "ReLU":
        what = f"it is {show(settings.get('postact_fn'))}; without a ReLU codes would be negative"
        raise file.bad("activation_state_dict.postact_fn", what, "Use another SAE.")
    return int(settings["k"])


def _check_shapes(file: TorchFile, state: State) -> None:
    if "encoder.weight" not in state.tensors:
        raise file.bad("encoder.weight", "this tensor is missing", READER.advice)
    shape = state.tensors["encoder.weight"].shape
    if len(shape) != 2 or not all(shape):
        raise file.bad("encoder.weight.shape", f"it is {show(list(shape))}, expected [d_sae, d_in]", READER.advice)
    d_sae, d_in = shape
    expected = {
        "encoder.weight": (d_sae, d_in),
        "decoder.weight": (d_in, d_sae),
        "latent_bias": (d_sae,),
        "pre_bias": (d_in,),
    }
    if odd := sorted(expected.keys() ^ state.tensors.keys()):
        what = "this tensor is missing" if odd[0] in expected else f"unknown tensor; expected {', '.join(expected)}"
        raise file.bad(show(odd[0]), what, READER.advice)
    for name, want in expected.items():
        if (found := state.tensors[name].shape) != want:
            raise file.bad(f"{name}.shape", f"it is {show(list(found))}, expected {list(want)}", READER.advice)
    if state.k is not None and state.k > d_sae:
        raise file.bad("activation_state_dict.k", f"it is {show(state.k)}, more than the {d_sae:,} latents")


# -- info


def _info(path: Path, state: State) -> SAEInfo:
    from saebench_meta.sae import SAEInfo, Site

    model, hook, name = _origin(path)
    d_sae, d_in = state.shape
    notes = ["the file does not say whether its training contexts began with a BOS token"]
    if model == UNKNOWN_MODEL:
        notes.insert(0, "its path names no location of OpenAI's release: model and hook are the user's word")
    return SAEInfo(
        name=name,
        site=Site(model=model, hook=hook),
        d_in=d_in,
        d_sae=d_sae,
        architecture="relu" if state.k is None else "topk",
        activation="relu" if state.k is None else "topk",
        k=state.k,
        input_transform="none" if state.k is None else "layer_norm",
        prepend_bos=True,
        context_size=64,
        folded=("pre_bias, subtracted before encoding, into b_enc",),
        notes=tuple(notes),
    )


def _origin(path: Path) -> tuple[str, str, str]:
    """Model, hook and a short name, from `…/LOCATION[_VERSION]/autoencoders/LAYER.pt`."""
    parts = path.absolute().parts
    found = [(part, m) for part in parts[-4:-1] if (m := LOCATION.fullmatch(part))]
    if not found or not LAYER.fullmatch(path.stem):
        return UNKNOWN_MODEL, UNKNOWN_HOOK, f"openai {path.stem}"
    part, match = found[-1]
    return "gpt2", HOOKS[match[1]].format(int(path.stem)), f"openai {part} layer {int(path.stem)}"
