"""SAEs of EleutherAI's sparsify, current format: a folder named after the place, with `cfg.json` and `sae.safetensors`.

    f = topk(relu((x - b_dec) encoder.weightᵀ + encoder.bias)),   x_hat = f W_dec + b_dec

`num_latents` 0 means d_in · expansion_factor; W_dec is kept (d_sae, d_in). The folder's name is the path of a Hugging
Face module (`layers.3`, `layers.3.mlp`, `h.3.attn`), whose output was read. Transcoders, skip connections and the
groupmax activation are refused: what they compute is no SAE in the canonical form. Source: the library's
`sparse_coder.py` and `fused_encoder.py`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from saebench_meta.hook_names import hook_of, norm_after
from saebench_meta.hookspecs import SAEHeader, SAELoader, hookimpl
from saebench_plugins.checkpoints import find_pair, is_pair, place
from saebench_plugins.folding import left_product
from saebench_plugins.native_header import Slot, show
from saebench_plugins.untrusted import Reader

if TYPE_CHECKING:
    import torch

    from saebench_meta.sae import SAE, SAEInfo

saebench_api = 1

SCHEME, WEIGHTS, CONFIG, RUN_CONFIG = "sparsify", "sae.safetensors", "cfg.json", "config.json"
READER = Reader(SCHEME, f"Give a folder with {CONFIG} and {WEIGHTS} as the library saves them.")
NO_TASK = "which no task here measures"
DEFAULTS: Mapping[str, Any] = {"expansion_factor": 32, "k": 32}
"""What the library takes where the config is silent."""


@dataclass(frozen=True)
class Plan:
    """What will be done with a folder: everything that is known without reading a matrix."""

    info: SAEInfo
    slots: Mapping[str, Slot]


@hookimpl
def saebench_loaders() -> Mapping[str, SAELoader]:
    return {
        SCHEME: SAELoader(
            load, peek=peek, claims=claims, version=1, summary="cfg.json and sae.safetensors of EleutherAI's sparsify"
        )
    }


def load(ref: str | Path, *, device: str | torch.device = "cpu", dtype: torch.dtype | None = None) -> SAE:
    """Open a folder with `cfg.json` and `sae.safetensors`, or the latter; weights are float32 unless said otherwise.

    Raises:
        BadFileError: whatever is wrong with the files, naming file and field.
    """
    import torch

    weights, config = find_pair(ref, WEIGHTS, CONFIG, READER)
    plan = make_plan(weights, config)
    with READER.open(weights) as file:
        read = {
            name: READER.tensor(
                file, weights, name, slot, (dtype or torch.float32) if len(slot.shape) == 2 else torch.float64
            )
            for name, slot in plan.slots.items()
        }
    READER.check_finite(weights, read)
    W_enc, b_dec = read.pop("encoder.weight").T, read["b_dec"]
    tensors = read | {"W_enc": W_enc, "b_enc": read.pop("encoder.bias") - left_product(b_dec, W_enc)}
    return place(plan.info, tensors, READER, weights, device=device, dtype=dtype)


def peek(ref: str | Path) -> SAEHeader:
    """The SAE's info from config and header, without torch. Raises `BadFileError` as `load` does, values apart."""
    weights, config = find_pair(ref, WEIGHTS, CONFIG, READER)
    return SAEHeader(make_plan(weights, config).info, {"weights": weights, "config": config})


def claims(path: Path) -> bool:
    """Whether a path is a folder with both files, or its weights, and these are not native."""
    if not is_pair(path, WEIGHTS, CONFIG):
        return False
    try:
        with (path / WEIGHTS if path.is_dir() else path).open("rb") as file:
            return b"saebench-native" not in file.read(4096)
    except (OSError, ValueError):
        return False


# -- what is there


def make_plan(weights: Path, config: Path) -> Plan:
    """Check settings and the weights' header. Raises `BadFileError`."""
    settings = READER.json_file(config)
    _refuse(config, settings)
    d_in = READER.size(config, settings, "d_in")
    if d_in is None:
        raise READER.bad(config, "d_in", "it is missing")
    d_sae = _d_sae(config, settings, d_in)
    k = READER.size(config, settings, "k") or DEFAULTS["k"]
    if k > d_sae:
        raise READER.bad(config, "k", f"it is {k:,}, more than the {d_sae:,} latents")
    slots = READER.tensor_slots(weights)
    shapes: dict[str, tuple[int, ...]] = {
        "encoder.weight": (d_sae, d_in),
        "encoder.bias": (d_sae,),
        "W_dec": (d_sae, d_in),
        "b_dec": (d_in,),
    }
    READER.match_shapes(weights, slots, shapes)
    return Plan(_info(weights, d_in, d_sae, k), {name: slots[name] for name in shapes})


def _refuse(config: Path, settings: Mapping[str, Any]) -> None:
    """What is no SAE in the canonical form. Raises `BadFileError`."""
    if READER.flag(config, settings, "transcode", False):
        raise READER.bad(
            config, "transcode", f"it is true: a transcoder writes to another place than it reads, {NO_TASK}"
        )
    if READER.flag(config, settings, "skip_connection", False):
        raise READER.bad(config, "skip_connection", f"it is true: W_skip adds a linear map of the input, {NO_TASK}")
    activation = READER.text(config, settings, "activation") or "topk"
    if activation == "groupmax":
        what = "it is groupmax: the largest of each of k groups is kept, which no activation function here does"
        raise READER.bad(config, "activation", what)
    if activation != "topk":
        raise READER.bad(config, "activation", f"it is {show(activation)}, expected topk")


def _d_sae(config: Path, settings: Mapping[str, Any], d_in: int) -> int:
    if settings.get("num_latents") not in (None, 0) and (stated := READER.size(config, settings, "num_latents")):
        return stated
    return d_in * (READER.size(config, settings, "expansion_factor") or int(DEFAULTS["expansion_factor"]))


def _info(weights: Path, d_in: int, d_sae: int, k: int) -> SAEInfo:
    from saebench_meta.sae import SAEInfo, Site

    folder = weights.resolve().parent
    if re.fullmatch(r"seed\d+", folder.name):  # several seeds of one place lie in folders of their own
        folder = folder.parent
    above = folder.parent / RUN_CONFIG
    run = _run_settings(above)
    model, hook = READER.text(above, run, "model"), hook_of(folder.name)
    notes = [] if model else ["no config names the language model: pass --model"]
    if hook is None:
        notes.append(f"the folder's name {show(folder.name)} is no known place in a model: pass --hook")
    elif norm_after(model or "", hook):
        notes.append(f"{model} has a norm between the module's output and {hook}: what it was trained on may differ")
    notes.append("the config does not say whether a BOS token stood before every context: taken as yes")
    return SAEInfo(
        name=folder.name or "sae",
        site=Site(model=model or "unknown", hook=hook or "unknown", revision=READER.text(above, run, "revision")),
        d_in=d_in,
        d_sae=d_sae,
        architecture="topk",
        activation="topk",
        k=k,
        context_size=READER.size(above, run, "ctx_len"),
        dataset=READER.text(above, run, "dataset"),
        folded=("the subtraction of b_dec into b_enc",),
        notes=tuple(notes),
    )


def _run_settings(above: Path) -> Mapping[str, Any]:
    """The run's own config, which the library puts into the folder above and which alone names the model."""
    try:
        there = above.is_file()
    except OSError:
        there = False
    settings = READER.json_file(above) if there else {}
    return settings if "hookpoints" in settings else {}  # else it is some other program's
