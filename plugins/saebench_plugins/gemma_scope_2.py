"""Gemma Scope 2: the JumpReLU SAEs of Gemma 3 (Google DeepMind 2025), `params.safetensors` and `config.json` each.

    gemma-scope-2:4b-pt/resid_post/layer_17_width_16k_l0_medium           from the hub
    gemma-scope-2:4b-pt/resid_post/layer_17_width_16k_l0_medium@COMMIT    the same, revision pinned
    gemma-scope-2:FOLDER   FOLDER   FOLDER/params.safetensors             local

    f = JumpReLU_theta(x @ w_enc + b_enc)        x_hat = f @ w_dec + b_dec

Nothing is subtracted before encoding and no norm is applied. The configuration names model and site in the words of
Hugging Face's modules, the folders above (`resid_post`, `mlp_out`, `attn_out`, also with `_all`) name them again:

    layers.L.output                              hook_resid_post
    layers.L.post_feedforward_layernorm.output   hook_mlp_out, after Gemma's second norm
    layers.L.self_attn.o_proj.input              attn.hook_z with its heads joined, before the output projection

Where one of the two is silent the other is taken; where they disagree neither is: pass --model, --hook. Transcoders
(with and without an affine connection), cross-layer transcoders and crosscoders are refused by name.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from saebench_meta.errors import SaebenchError
from saebench_meta.hook_names import hook_of, norm_after
from saebench_meta.hookspecs import SAEHeader, SAELoader, hookimpl
from saebench_plugins.checkpoints import find_pair
from saebench_plugins.formats import PARAMETERS
from saebench_plugins.gemma_hub import HubFile, commit_of, fetch, fetch_if_there
from saebench_plugins.gemma_scope import TENSORS, UNKNOWN_HOOK, UNKNOWN_MODEL
from saebench_plugins.native_header import Slot, show
from saebench_plugins.untrusted import Reader

if TYPE_CHECKING:
    import torch

    from saebench_meta.sae import SAE, SAEInfo

saebench_api = 1

SCHEME, WEIGHTS, CONFIG = "gemma-scope-2", "params.safetensors", "config.json"
FIRST_OF_MANY = "params_layer_0.safetensors"
"""What a crosscoder or cross-layer transcoder has instead of WEIGHTS; claimed so that it is refused by name."""

RELEASE = re.compile(r"(?:google/)?(?:gemma-scope-2-)?(270m|1b|4b|12b|27b)-(pt|it)")
RELEASE_FOLDER = re.compile(r"(?:models--google--|google--|google-)?gemma-scope-2-(270m|1b|4b|12b|27b)-(pt|it)")
MODEL = re.compile(r"(?:google/)?gemma-v?3-(270m|1b|4b|12b|27b)-(pt|it)")
INSIDE = re.compile(
    r"(resid_post|mlp_out|attn_out|transcoder|crosscoder|clt)(?:_all)?/"
    r"(?:layer_(\d{1,3})(?:_\d{1,3})*_)?width_[0-9a-z]{1,8}_l0_[0-9a-z_]{1,32}"
)
SITES = {"resid_post": "hook_resid_post", "mlp_out": "hook_mlp_out", "attn_out": "attn.hook_z"}
POINTS = {
    "post_feedforward_layernorm.output": "hook_mlp_out",
    "post_attention_layernorm.output": "hook_attn_out",
    "self_attn.o_proj.input": "attn.hook_z",
}
"""Points that are no output of a block or sublayer, and their hooks."""
POINT = re.compile(r"(?:\w+\.)*layers\.(\d{1,3})\.(\w+(?:\.\w+)+)")
KINDS = {"transcoder": "transcoder", "clt": "cross-layer transcoder", "crosscoder": "crosscoder"}
EXAMPLE = "4b-pt/resid_post/layer_17_width_16k_l0_medium"

READER = Reader(SCHEME, f"Give a folder with {CONFIG} and {WEIGHTS}; download it again if it is one.")
bad = READER.bad


@hookimpl
def saebench_loaders() -> Mapping[str, SAELoader]:
    """Gemma Scope 2 folders, local or from the hub."""
    summary = "Gemma Scope 2 params.safetensors, local or by release name"
    return {SCHEME: SAELoader(load, peek, claims, summary=summary, parameters=PARAMETERS[SCHEME])}


@dataclass(frozen=True)
class Source:
    """The files of an SAE; the configuration is None where there is none."""

    weights: Path
    config: Path | None
    commit: str | None = None

    @property
    def files(self) -> dict[str, Path]:
        """Name -> path, as records hash them."""
        return {"weights": self.weights} | ({"config": self.config} if self.config else {})


@dataclass(frozen=True)
class Origin:
    """What either the configuration or the path tells: model, hook, a short name, what must be said."""

    model: str | None = None
    hook: str | None = None
    name: str | None = None
    notes: tuple[str, ...] = ()


def load(ref: str | Path, *, device: str | torch.device = "cpu", dtype: torch.dtype | None = None) -> SAE:
    """Open a Gemma Scope 2 SAE.

    Args:
        ref: folder, its `params.safetensors`, or `SIZE-TUNING/SITE/layer_L_width_W_l0_N`, with or without `@REVISION`.
        dtype: what the weights are cast to while they are read; float32 unless said otherwise.

    Raises:
        BadFileError: whatever is wrong with a file, naming file and field.
        SaebenchError: a transcoder or crosscoder; or the hub does not have it, or cannot be reached.
    """
    import torch

    from saebench_meta.sae import SAE

    source = _locate(str(ref))
    info, slots = _plan(source)
    path, weights = source.weights, dict[str, Any]()
    with READER.open(path) as file:
        for name, canonical in TENSORS.items():
            tensor = READER.tensor(file, path, name, slots[name], dtype or torch.float32)
            READER.check_finite(path, {name: tensor})
            weights[canonical] = tensor.to(device)
    return SAE(info=info, **weights)


def peek(ref: str | Path) -> SAEHeader:
    """Info from the configuration and the header of the weights, without torch; downloads a hub reference."""
    source = _locate(str(ref))
    return SAEHeader(_plan(source)[0], source.files)


def claims(path: Path) -> bool:
    """Whether a path is a folder with parameters and a configuration or a published name, or the parameters in one."""
    try:
        folder = path if path.is_dir() else path.parent
        if not path.is_dir() and path.name != WEIGHTS:
            return False
        known = (folder / CONFIG).is_file() or INSIDE.fullmatch("/".join(folder.absolute().parts[-2:]))
        return bool(known) and any((folder / name).is_file() for name in (WEIGHTS, FIRST_OF_MANY))
    except (OSError, ValueError):
        return False


# -- references


def _locate(ref: str) -> Source:
    """The files a reference means."""
    release, _, inside = ref.removeprefix("google/").partition("/")
    if inside and RELEASE.fullmatch(release) and not os.path.exists(ref):  # noqa: PTH110  # never raises, Path does
        return _from_hub(release, inside)
    weights, config = find_pair(ref, WEIGHTS, CONFIG, READER)
    return Source(weights, config if config.is_file() else None)


def _from_hub(release: str, inside: str) -> Source:
    """The configuration first, which is small and may refuse, then the parameters of the same commit."""
    match = RELEASE.fullmatch(release)
    assert match is not None  # asked by the caller
    repository = f"google/gemma-scope-2-{match[1]}-{match[2]}"
    inside, _, revision = inside.partition("@")
    inside = inside.removesuffix(f"/{WEIGHTS}").rstrip("/")
    found = INSIDE.fullmatch(inside)
    if found is None:
        raise SaebenchError(
            f"{SCHEME} loader: '{inside[:80]!a}' is no folder of {repository}. Write it as {EXAMPLE} "
            "(sites: resid_post, mlp_out, attn_out, and the same with _all)."
        )
    if found[1] in KINDS:
        raise _other_kind(f"{repository}/{inside}", found[1])
    hint = "Layers, widths and l0_small, l0_medium, l0_big differ between the folders: look them up on its page"
    config = HubFile(SCHEME, repository, f"{inside}/{CONFIG}", revision or None, hint)
    config_path = fetch_if_there(config)
    commit = commit_of(config, config_path) if config_path else None
    weights = HubFile(SCHEME, repository, f"{inside}/{WEIGHTS}", commit or revision or None, hint)
    weights_path = fetch(weights)
    return Source(weights_path, config_path, commit_of(weights, weights_path))


def _other_kind(what: object, kind: str) -> SaebenchError:
    return SaebenchError(
        f"{SCHEME} loader: '{what}' is a {KINDS[kind]}: it reads and writes different or several sites, which no task "
        "here measures. Use an SAE (resid_post, mlp_out or attn_out)."
    )


# -- what is there


def _plan(source: Source) -> tuple[SAEInfo, dict[str, Slot]]:
    """Everything that is known without reading a matrix. Raises as `load` does."""
    named = _named(source.weights)
    settings = READER.json_file(source.config) if source.config else {}
    stated = _stated(source.config, settings) if source.config else Origin()
    slots = _slots(source.weights)
    d_in, d_sae = slots["w_enc"].shape
    if source.config and (width := READER.size(source.config, settings, "width")) not in (None, d_sae):
        what = f"it is {width:,}, and w_enc has {d_sae:,} latents"
        raise bad(source.config, "width", what, "Is it another SAE's configuration? Download both files again.")
    return _info(source, named, stated, d_in, d_sae), slots


def _named(weights: Path) -> Origin:
    """What the folders above the parameters name. Raises `SaebenchError` for what is no SAE."""
    parts = weights.absolute().parent.parts
    inside = INSIDE.fullmatch("/".join(parts[-2:]))
    if inside is None:
        return Origin(name=parts[-1] or None)
    site, layer = inside.groups()
    if site in KINDS:
        raise _other_kind(weights, site)
    hook = f"blocks.{int(layer)}.{SITES[site]}" if layer else None
    release = next((m for m in map(RELEASE_FOLDER.fullmatch, reversed(parts)) if m), None)
    if release is None:
        return Origin(hook=hook, name=inside[0])
    size, tuning = release.groups()
    return Origin(_model(size, tuning), hook, f"{SCHEME}-{size}-{tuning}/{inside[0]}")


def _model(size: str, tuning: str) -> str:
    """The language model's name on the hub; the smallest is published without `-pt`."""
    return f"google/gemma-3-{size}" + ("" if (size, tuning) == ("270m", "pt") else f"-{tuning}")


def _stated(config: Path, settings: Mapping[str, Any]) -> Origin:
    """What the configuration names. Raises `SaebenchError` for what is no SAE, `BadFileError` for nonsense."""
    kind = READER.text(config, settings, "type") or "sae"
    point = READER.text(config, settings, "hf_hook_point_in")
    out = READER.text(config, settings, "hf_hook_point_out") or point
    if kind in KINDS:
        raise _other_kind(config.parent, kind)
    if READER.flag(config, settings, "affine_connection", False) or out != point:
        raise _other_kind(config.parent, "transcoder")
    if kind != "sae":
        raise bad(config, "type", f"it is {show(kind)}, expected sae")
    architecture = READER.text(config, settings, "architecture")
    if architecture != "jump_relu":
        raise bad(config, "architecture", f"it is {show(architecture)}, expected jump_relu")
    model = READER.text(config, settings, "model_name")
    if model and (match := MODEL.fullmatch(model)):
        model = _model(*match.groups())
    hook, notes = _hook(point or "", model or "")
    return Origin(model, hook, notes=notes)


def _hook(point: str, model: str) -> tuple[str | None, tuple[str, ...]]:
    """The hook of a Hugging Face module's input or output, and what must be said of it."""
    if (match := POINT.fullmatch(point)) and match[2] in POINTS:
        return f"blocks.{int(match[1])}.{POINTS[match[2]]}", ()
    hook = hook_of(point.removesuffix(".output")) if point else None
    if hook is None:
        return None, (f"the configuration's place {show(point)} is none that is known",) if point else ()
    if norm_after(model, hook):
        return hook, (f"WARNING: {model} has a norm between {point} and {hook}: the SAE was trained before it",)
    return hook, ()


def _info(source: Source, named: Origin, stated: Origin, d_in: int, d_sae: int) -> SAEInfo:
    from saebench_meta.sae import SAEInfo, Site

    model, about_model = _agreed("model", stated.model, named.model, UNKNOWN_MODEL)
    hook, about_hook = _agreed("hook", stated.hook, named.hook, UNKNOWN_HOOK)
    notes = [*stated.notes, *about_model, *about_hook]
    notes += [] if source.config else [f"there is no {CONFIG}: model and hook are those its path names"]
    notes.append("its training contexts are not documented: a BOS token and 1,024 tokens are taken, as in Gemma Scope")
    notes += [f"hub commit {source.commit}"] if source.commit else []
    return SAEInfo(
        name=named.name or SCHEME,
        site=Site(model=model, hook=hook),
        d_in=d_in,
        d_sae=d_sae,
        architecture="jumprelu",
        activation="jumprelu",
        prepend_bos=True,
        context_size=1024,
        notes=tuple(notes),
    )


def _agreed(what: str, stated: str | None, named: str | None, unknown: str) -> tuple[str, tuple[str, ...]]:
    """What configuration and path say of the model or hook, if they do not contradict each other."""
    if stated and named and stated != named:
        note = f"the configuration names {stated} and the path {named}: neither {what} is taken, pass --{what}"
        return unknown, (f"WARNING: {note}",)
    return stated or named or unknown, ()


def _slots(path: Path) -> dict[str, Slot]:
    """The five tensors, which must fit each other. Raises `SaebenchError` for a transcoder's."""
    slots = READER.tensor_slots(path)
    if "affine_skip_connection" in slots:
        raise _other_kind(path, "transcoder")
    if "w_enc" not in slots:
        raise bad(path, "w_enc", "this tensor is missing")
    shape = slots["w_enc"].shape
    if len(shape) != 2 or not all(shape):
        raise bad(path, "w_enc.shape", f"it is {show(list(shape))}, expected [d_in, d_sae]")
    d_in, d_sae = shape
    shapes: dict[str, tuple[int, ...]] = {
        "w_enc": (d_in, d_sae),
        "b_enc": (d_sae,),
        "w_dec": (d_sae, d_in),
        "b_dec": (d_in,),
        "threshold": (d_sae,),
    }
    READER.match_shapes(path, slots, shapes)
    return slots
