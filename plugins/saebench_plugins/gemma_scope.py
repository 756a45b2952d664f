"""Gemma Scope: the JumpReLU SAEs of Gemma 2 (Lieberum et al. 2024, equations 1–3), one `params.npz` each.

    gemma-scope:2b-pt-res/layer_20/width_16k/average_l0_71             from the hub
    gemma-scope:2b-pt-res/layer_20/width_16k/average_l0_71@COMMIT      the same, revision pinned
    gemma-scope:FOLDER   gemma-scope:FILE.npz   FOLDER   FILE.npz      local; the release is read from the path

    f = JumpReLU_theta(x @ w_enc + b_enc)        x_hat = f @ w_dec + b_dec

Nothing is subtracted before encoding and no norm is applied: the files are folded already. The release names model and
site: `res` is `hook_resid_post`, `mlp` is `hook_mlp_out` (after Gemma's second norm), `att` is `attn.hook_z` with its
heads joined, `embedding` is `hook_embed`. A file whose path names no release has an unknown site: pass --model, --hook.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from saebench_meta.errors import SaebenchError
from saebench_meta.hookspecs import SAEHeader, SAELoader, hookimpl
from saebench_plugins.formats import PARAMETERS
from saebench_plugins.gemma_archive import (
    BROKEN,
    FILE_NAME,
    NAMES,
    OPTIONAL,
    Array,
    bad,
    open_archive,
    read_array,
    read_headers,
)
from saebench_plugins.gemma_hub import HubFile, commit_of, fetch

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from saebench_meta.sae import SAE, SAEInfo

saebench_api = 1

SCHEME = "gemma-scope"
TENSORS = {"w_enc": "W_enc", "b_enc": "b_enc", "w_dec": "W_dec", "b_dec": "b_dec", "threshold": "threshold"}
"""Name in the file -> canonical name."""
HOOKS = {"res": "blocks.{}.hook_resid_post", "mlp": "blocks.{}.hook_mlp_out", "att": "blocks.{}.attn.hook_z"}
UNKNOWN_MODEL, UNKNOWN_HOOK = "unknown (pass --model)", "unknown (pass --hook)"
"""Not names of anything, so that a user who passes neither is told what to type instead of getting a guess."""

RELEASE = re.compile(
    r"(?:models--)?(?:google(?:--|-))?(?:gemma-scope-)?(2b|9b|27b)-(pt|it)-(res|mlp|att|transcoders)(?:-canonical|-all)?"
)
INSIDE = re.compile(r"(?:layer_\d{1,3}|embedding)/width_[0-9a-z]{1,8}/average_l0_\d{1,5}")


@hookimpl
def saebench_loaders() -> Mapping[str, SAELoader]:
    """Gemma Scope files, local or from the hub."""
    summary = "Gemma Scope params.npz, local or by release name"
    return {SCHEME: SAELoader(load, peek, claims, summary=summary, parameters=PARAMETERS[SCHEME])}


def load(ref: str | Path, *, device: str | torch.device = "cpu", dtype: torch.dtype | None = None) -> SAE:
    """Open a Gemma Scope SAE.

    Args:
        ref: file, folder, or `RELEASE/layer_L/width_W/average_l0_N`, with or without `@REVISION`.
        dtype: what the weights are cast to while they are read; float32 unless said otherwise.

    Raises:
        BadFileError: whatever is wrong with the file, naming file and field.
        SaebenchError: the hub does not have it, or cannot be reached.
    """
    import torch

    from saebench_meta.sae import SAE

    path, commit = _locate(str(ref))
    with open_archive(path) as archive:
        arrays = read_headers(archive, path)
        info = _info(path, commit, arrays)
        target = dtype or torch.float32
        tensors = {name: read_array(archive, path, name, array, target, device) for name, array in arrays.items()}
    if (scale := tensors.pop(OPTIONAL, None)) is not None and not bool((scale == 1).all()):
        raise bad(path, OPTIONAL, "it is not one: how it enters the codes is not documented", "Use another SAE.")
    weights: dict[str, Any] = {TENSORS[name]: tensor for name, tensor in tensors.items()}
    if info.site.hook == "hook_embed":
        _to_scaled_embedding(weights, info.d_in)
    return SAE(info=info, **weights)


def peek(ref: str | Path) -> SAEHeader:
    """Info from the archive's directory and the arrays' headers, without torch or numpy; downloads a hub reference."""
    path, commit = _locate(str(ref))
    with open_archive(path) as archive:
        return SAEHeader(_info(path, commit, read_headers(archive, path)), {"weights": path})


def claims(path: Path) -> bool:
    """Whether a path is a `params.npz`, a folder with one, or another `.npz` that holds the five arrays."""
    try:
        if path.is_dir():
            return (path / FILE_NAME).is_file()
        if not path.is_file() or path.suffix != ".npz":  # a pipe would wait for ever
            return False
        if path.name == FILE_NAME:
            return True
        with open_archive(path) as archive:
            return {f"{name}.npy" for name in NAMES} <= set(archive.namelist())
    except (SaebenchError, *BROKEN):
        return False


def _to_scaled_embedding(weights: dict[str, Tensor], d_in: int) -> None:
    """In place: these SAEs read token embeddings before Gemma multiplies them by √d_in, `hook_embed` is after it."""
    root = math.sqrt(d_in)
    weights["W_enc"].div_(root)
    weights["W_dec"].mul_(root)
    weights["b_dec"].mul_(root)


# -- references


def _locate(ref: str) -> tuple[Path, str | None]:
    """The local file a reference means, and the hub commit it came from."""
    release, _, inside = ref.removeprefix("google/").partition("/")
    if inside and RELEASE.fullmatch(release) and not os.path.exists(ref):  # noqa: PTH110  # never raises, Path does
        return _from_hub(release, inside)
    path = Path(ref)
    try:
        path = path.expanduser()
        return (path / FILE_NAME if path.is_dir() else path), None
    except (OSError, ValueError, RuntimeError) as e:
        raise bad(path, "file", "it cannot be opened", "Give a file or a folder.") from e


def _from_hub(release: str, inside: str) -> tuple[Path, str | None]:
    match = RELEASE.fullmatch(release)
    assert match is not None  # asked by the caller
    size, tuning, site = match.groups()
    inside, _, revision = inside.partition("@")
    inside = inside.removesuffix(f"/{FILE_NAME}").rstrip("/")
    repository = f"google/gemma-scope-{size}-{tuning}-{site}"
    if site == "transcoders":
        raise _transcoder(repository)
    if not INSIDE.fullmatch(inside):
        hint = " ('canonical' is a name of sae-lens; the folders here end in average_l0_N)" if "canon" in inside else ""
        raise SaebenchError(
            f"gemma-scope loader: '{inside[:80]!a}' is no folder of {repository}{hint}. "
            "Write it as layer_20/width_16k/average_l0_71 (or embedding/width_4k/average_l0_111)."
        )
    hint = "Every layer and width has its own average_l0_N: look them up on its page"
    file = HubFile(SCHEME, repository, f"{inside}/{FILE_NAME}", revision or None, hint)
    path = fetch(file)
    return path, commit_of(file, path)


def _transcoder(what: object) -> SaebenchError:
    return SaebenchError(
        f"gemma-scope loader: '{what}' is a transcoder: it reads one site and writes another, which no task here "
        "measures. Use an SAE (res, mlp or att)."
    )


@dataclass(frozen=True)
class Origin:
    """What a path tells of an SAE."""

    model: str
    hook: str
    name: str
    known: bool


def _origin(path: Path) -> Origin:
    """Model, hook and name from the release, layer, width and L0 in a path; unknown where it names no release."""
    parts = path.absolute().parent.parts
    found = [m for m in (RELEASE.fullmatch(part) for part in parts) if m]
    inside = "/".join(parts[-3:])
    if not found or not INSIDE.fullmatch(inside):
        return Origin(UNKNOWN_MODEL, UNKNOWN_HOOK, f"gemma-scope {path.parent.name or path.name}", known=False)
    size, tuning, site = found[-1].groups()
    if site == "transcoders":
        raise _transcoder(path)
    place, width, l0 = inside.split("/")
    hook = "hook_embed" if place == "embedding" else HOOKS[site].format(int(place.removeprefix("layer_")))
    name = f"gemma-scope-{size}-{tuning}-{site}/{place}/{width}/{l0}"
    return Origin(f"google/gemma-2-{size}" + ("-it" if tuning == "it" else ""), hook, name, known=True)


def _info(path: Path, commit: str | None, arrays: Mapping[str, Array]) -> SAEInfo:
    from saebench_meta.sae import SAEInfo, Site

    origin = _origin(path)
    embedding = origin.hook == "hook_embed"
    folded = (
        ("√d_in, by which Gemma scales embeddings, into W_enc, W_dec and b_dec (sae-lens leaves b_dec out)",)
        if embedding
        else ()
    )
    notes = [] if origin.known else ["its path names no Gemma Scope release: model and hook are the user's word"]
    notes += [f"hub commit {commit}"] if commit else []
    d_in, d_sae = arrays["w_enc"].shape
    return SAEInfo(
        name=origin.name,
        site=Site(model=origin.model, hook=origin.hook),
        d_in=d_in,
        d_sae=d_sae,
        architecture="jumprelu",
        activation="jumprelu",
        prepend_bos=True,
        context_size=1024,
        folded=folded,
        notes=tuple(notes),
    )
