"""What a folder of the `dictionary_learning` library holds: names, shapes and settings, checked without torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from saebench_meta.calibration import uncalibrated_note
from saebench_meta.hook_names import hook_of, norm_after
from saebench_plugins.native_header import show
from saebench_plugins.torch_file import TorchFile, check_declared, read_values
from saebench_plugins.torch_pickle import TensorEntry
from saebench_plugins.untrusted import Reader

if TYPE_CHECKING:
    from saebench_meta.sae import ActivationName, SAEInfo

SCHEME, WEIGHTS, CONFIG = "dictionary_learning", "ae.pt", "config.json"
READER = Reader(SCHEME, f"Give a folder with {WEIGHTS} and {CONFIG} as the library saves them.")


@dataclass(frozen=True)
class Layout:
    """How one class keeps its weights: names in the file of what the canonical form needs, and what they mean.

    Attributes:
        linear: matrices are kept as `torch.nn.Linear` does, (outputs, inputs).
        subtract: whether `b_dec` is taken from the input before encoding.
        other: further tensors that must be there, with their shapes in terms of "d_in" and "d_sae".
        free: further tensors that may be there.
    """

    architecture: str
    activation: ActivationName
    W_enc: str = "encoder.weight"
    b_enc: str = "encoder.bias"
    W_dec: str = "decoder.weight"
    b_dec: str = "b_dec"
    linear: bool = True
    subtract: bool = True
    other: tuple[str, ...] = ()
    free: tuple[str, ...] = ()


LAYOUTS: Mapping[str, Layout] = {
    "AutoEncoder": Layout("relu", "relu", b_dec="bias"),
    "AutoEncoderNew": Layout("relu", "relu", b_dec="decoder.bias", subtract=False),
    "AutoEncoderTopK": Layout("topk", "topk", free=("k", "threshold")),
    "BatchTopKSAE": Layout("batchtopk", "jumprelu", free=("k", "threshold")),
    "MatryoshkaBatchTopKSAE": Layout(
        "matryoshka_batchtopk",
        "jumprelu",
        *("W_enc", "b_enc", "W_dec", "b_dec"),
        linear=False,
        free=("k", "threshold", "group_sizes"),
    ),
    "JumpReluAutoEncoder": Layout(
        "jumprelu",
        "jumprelu",
        *("W_enc", "b_enc", "W_dec", "b_dec"),
        linear=False,
        subtract=False,
        other=("threshold",),
    ),
    "GatedAutoEncoder": Layout(
        "gated", "jumprelu", b_enc="mag_bias", b_dec="decoder_bias", other=("r_mag", "gate_bias")
    ),
}
ONE_THRESHOLD = {"batchtopk", "matryoshka_batchtopk"}
REFUSED = {
    "CrossCoder": "a crosscoder reads several layers at once, which no task here measures",
    "BatchTopKCrossCoder": "a crosscoder reads several layers at once, which no task here measures",
    "IdentityDict": "it has no weights",
}
NO_BOS_WORD = "the config does not say whether a BOS token stood before every context: taken as yes"
BACKUP = {"ae", "norm_factor", "step"}


@dataclass(frozen=True)
class Plan:
    """What will be done with a file: everything that is known without reading a matrix."""

    info: SAEInfo
    layout: Layout
    entries: Mapping[str, TensorEntry]
    threshold: float | None
    norm_factor: float


def make_plan(file: TorchFile, config: Path) -> Plan:
    """Check names, shapes and settings of an open file against its config. Raises `BadFileError`."""
    settings = READER.json_file(config)
    trainer = _section(config, settings, "trainer")
    kind = _kind(config, trainer)
    layout = LAYOUTS[kind]
    state, norm_factor = _state(file)
    entries = _tensors(file, state, layout, kind)
    d_in, d_sae = _widths(file, entries, layout)
    _agree(config, trainer, d_in, d_sae)
    check_declared(file, entries)
    k = _k(file, config, trainer, entries, layout, d_sae)
    threshold = _threshold(file, entries) if layout.architecture in ONE_THRESHOLD else None
    info = _info(config, settings, layout, d_in, d_sae, k, threshold, norm_factor)
    return Plan(info, layout, entries, threshold, norm_factor)


def _section(config: Path, settings: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    section = settings.get(key, {})
    if not isinstance(section, dict):
        raise READER.bad(config, key, f"it is {show(section)}, expected an object")
    return section


def _kind(config: Path, trainer: Mapping[str, Any]) -> str:
    kind = READER.text(config, trainer, "dict_class")
    if kind is None:
        raise READER.bad(config, "trainer.dict_class", f"it is missing; known are {', '.join(LAYOUTS)}")
    kind = kind.rpartition(".")[2].removesuffix("'>")
    if kind in REFUSED:
        raise READER.bad(config, "trainer.dict_class", f"it is {kind}: {REFUSED[kind]}")
    if kind not in LAYOUTS:
        raise READER.bad(config, "trainer.dict_class", f"it is {show(kind)}; known are {', '.join(LAYOUTS)}")
    return kind


def _state(file: TorchFile) -> tuple[Mapping[Any, Any], float]:
    """The state dict, and the factor its SAE's inputs were divided by (1 but in a backup)."""
    root = file.root
    if not isinstance(root, dict):
        raise file.bad("file", f"it holds a {type(root).__name__}, expected a state dict")
    if not (root.keys() >= {"ae"} and root.keys() & (BACKUP - {"ae"})):
        return root, 1.0
    if not isinstance(state := root["ae"], dict):
        raise file.bad("ae", f"it is a {type(state).__name__}, expected a state dict")
    factor = root.get("norm_factor")
    if isinstance(factor, TensorEntry) and factor.numel == 1:
        factor = read_values(file, "norm_factor", factor)[0]
    if factor is None:
        return state, 1.0
    if isinstance(factor, bool) or not isinstance(factor, int | float) or not 1e-12 < factor < 1e12:
        raise file.bad("norm_factor", f"it is {_shown(factor)}, expected a positive number")
    return state, float(factor)


def _shown(value: object) -> str:
    return show(value) if isinstance(value, int | float | str | None) else f"a {type(value).__name__}"


def _tensors(file: TorchFile, state: Mapping[Any, Any], layout: Layout, kind: str) -> dict[str, TensorEntry]:
    needed = (layout.W_enc, layout.b_enc, layout.W_dec, layout.b_dec, *layout.other)
    if missing := [name for name in needed if name not in state]:
        raise file.bad(missing[0], f"this tensor is missing; the config says {kind}, which has {', '.join(needed)}")
    if unknown := [name for name in state if name not in (*needed, *layout.free)]:
        raise file.bad(show(unknown[0]).strip("'"), f"unknown tensor; the config says {kind}, which has no such one")
    for name, value in state.items():
        if not isinstance(value, TensorEntry):
            raise file.bad(name, f"it is {_shown(value)}, expected a tensor")
        if name in needed and not value.storage.dtype.startswith(("float", "bfloat")):
            raise file.bad(name, f"its values are {value.storage.dtype}, expected floating point")
    return dict(state)


def _widths(file: TorchFile, entries: Mapping[str, TensorEntry], layout: Layout) -> tuple[int, int]:
    """d_in and d_sae from the decoder, with every other shape held against them."""
    shape = entries[layout.W_dec].shape
    if len(shape) != 2 or 0 in shape:
        raise file.bad(layout.W_dec, f"it has shape {list(shape)}, expected a matrix")
    d_in, d_sae = shape if layout.linear else shape[::-1]
    expected = {
        layout.W_enc: (d_sae, d_in) if layout.linear else (d_in, d_sae),
        layout.b_enc: (d_sae,),
        layout.b_dec: (d_in,),
        **dict.fromkeys(layout.other, (d_sae,)),
    }
    for name, wanted in expected.items():
        if entries[name].shape != wanted:
            raise file.bad(name, f"it has shape {list(entries[name].shape)}, expected {list(wanted)}")
    return d_in, d_sae


def _agree(config: Path, trainer: Mapping[str, Any], d_in: int, d_sae: int) -> None:
    for key, found in (("activation_dim", d_in), ("dict_size", d_sae)):
        if READER.size(config, trainer, key) not in (None, found):
            raise READER.bad(config, f"trainer.{key}", f"it is {show(trainer[key])}, the weights have {found:,}")


def _one(file: TorchFile, entries: Mapping[str, TensorEntry], name: str) -> float | None:
    """A setting kept as a tensor of one value; None where it is not there."""
    if name not in entries:
        return None
    if entries[name].numel != 1:
        raise file.bad(name, f"it has shape {list(entries[name].shape)}, expected one value")
    return read_values(file, name, entries[name])[0]


def _k(
    file: TorchFile,
    config: Path,
    trainer: Mapping[str, Any],
    entries: Mapping[str, TensorEntry],
    layout: Layout,
    d: int,
) -> int | None:
    if layout.architecture != "topk" and layout.architecture not in ONE_THRESHOLD:
        return None
    stored, said = _one(file, entries, "k"), READER.size(config, trainer, "k")
    if stored is not None and said is not None and stored != said:
        raise file.bad("k", f"it is {stored:g}, the config says {said}")
    k = said if stored is None else stored
    if k is None:
        raise READER.bad(config, "trainer.k", "it is missing, and the weights do not say it either")
    if not 1 <= k <= d or k != int(k):
        raise file.bad("k", f"it is {k:g}, expected a whole number from 1 to the {d:,} latents")
    return int(k)


def _threshold(file: TorchFile, entries: Mapping[str, TensorEntry]) -> float | None:
    """The stored threshold, or None where there is none or it was never estimated (-1)."""
    value = _one(file, entries, "threshold")
    if value is not None and not -1e30 < value < 1e30:
        raise file.bad("threshold", f"it is {value}, expected a number")
    return None if value is None or value < 0 else value


def _info(
    config: Path,
    settings: Mapping[str, Any],
    layout: Layout,
    d_in: int,
    d_sae: int,
    k: int | None,
    threshold: float | None,
    norm_factor: float,
) -> SAEInfo:
    from saebench_meta.sae import SAEInfo, Site

    trainer, buffer = _section(config, settings, "trainer"), _section(config, settings, "buffer")
    model = READER.text(config, trainer, "lm_name")
    hook, notes = _site(config, trainer, buffer, model or "")
    if model is None:
        notes.append("the config does not name the language model: pass --model")
    if layout.architecture in ONE_THRESHOLD and threshold is None and k is not None:
        notes.append(uncalibrated_note(k, "training ended before a threshold was estimated"))
    notes.append(NO_BOS_WORD)
    context = READER.size(config, buffer, "ctx_len") or READER.size(config, trainer, "ctx_len")
    return SAEInfo(
        name=READER.text(config, trainer, "wandb_name") or f"{config.parent.name or 'sae'}_{d_sae}",
        site=Site(model=model or "unknown", hook=hook),
        d_in=d_in,
        d_sae=d_sae,
        architecture=layout.architecture,
        activation=layout.activation,
        k=k,
        context_size=context,
        folded=_folded(layout, norm_factor),
        notes=tuple(notes),
    )


def _site(config: Path, trainer: Mapping[str, Any], buffer: Mapping[str, Any], model: str) -> tuple[str, list[str]]:
    """The hook, and what a reader must know of how it was found."""
    layer = trainer.get("layer")
    if layer is not None and (type(layer) is not int or not 0 <= layer < 10_000):
        raise READER.bad(config, "trainer.layer", f"it is {show(layer)}, expected the number of a layer")
    name, io = READER.text(config, trainer, "submodule_name"), READER.text(config, buffer, "io")
    if io == "in_and_out":
        raise READER.bad(config, "buffer.io", "it is in_and_out: a transcoder, which no task here measures")
    if name is None:
        if layer is None:
            return "unknown", ["the config says neither layer nor submodule: pass --hook"]
        hook = f"blocks.{layer}.hook_resid_post"
        notes = [f"the config names no submodule: {hook} was taken from its layer"]
    elif (known := hook_of(name, layer)) is None:
        return "unknown", [f"the config's submodule {show(name)} (layer {layer}) is no known place: pass --hook"]
    else:
        hook, notes = known, []
    if io == "in":
        if not hook.endswith("resid_post"):
            return "unknown", [
                f"it was trained on the input of {show(name)}, which has no hook of its own: pass --hook"
            ]
        hook = hook.replace("resid_post", "resid_pre")
    if norm_after(model, hook):
        notes.append(f"{model} has a norm between the module's output and {hook}: what it was trained on may differ")
    return hook, notes


def _folded(layout: Layout, norm_factor: float) -> tuple[str, ...]:
    return tuple(
        text
        for text, applies in (
            (f"norm factor {norm_factor:g} into biases and threshold", norm_factor != 1),
            ("decoder norms", layout.b_dec == "bias"),
            ("the subtraction of b_dec into b_enc", layout.subtract),
            ("the gate into thresholds", layout.architecture == "gated"),
            ("one threshold for all latents", layout.architecture in ONE_THRESHOLD),
        )
        if applies
    )
