"""Gemma Scope: the JumpReLU SAEs of Gemma 2 (Lieberum et al. 2024, equations 1–3), one `params.npz` each.

    gemma-scope:2b-pt-res/layer_20/width_16k/average_l0_71             from the hub
    gemma-scope:2b-pt-res/layer_20/width_16k/average_l0_71@COMMIT      the same, revision pinned
    gemma-scope:FOLDER   gemma-scope:FILE.npz   FOLDER   FILE.npz      local; the release is read from the path

    f = JumpReLU_theta(x @ w_enc + b_enc)        x_hat = f @ w_dec + b_dec

Nothing is subtracted before encoding and no norm is applied: the files are folded already. The release names model and
site: `res` is `hook_resid_post`, `mlp` is `hook_mlp_out` (after Gemma's second norm), `att` is `attn.hook_z` with its
heads joined, `embedding` is `hook_embed`. A file whose path names no release has an unknown site: pass --model, --hook.

Arrays go from the archive straight into the final tensors, a few megabytes at a time, so that a file of N bytes costs
N bytes; what it declares is held against the archive's directory before anything is reserved. No pickle is ever opened.
"""

from __future__ import annotations

import math
import os
import re
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from saebench_meta.errors import SaebenchError
from saebench_meta.hookspecs import SAEHeader, SAELoader, hookimpl
from saebench_plugins.native_header import show
from saebench_plugins.untrusted import Reader

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from saebench_meta.sae import SAE, SAEInfo

saebench_api = 1

FILE_NAME = "params.npz"
TENSORS = {"w_enc": "W_enc", "b_enc": "b_enc", "w_dec": "W_dec", "b_dec": "b_dec", "threshold": "threshold"}
"""Name in the file -> canonical name."""
OPTIONAL = "scaling_factor"
"""Written by some fine-tuned releases; nothing else than ones is accepted."""
DTYPES = {"<f2": ("float16", 2), "<f4": ("float32", 4), "<f8": ("float64", 8)}
HOOKS = {"res": "blocks.{}.hook_resid_post", "mlp": "blocks.{}.hook_mlp_out", "att": "blocks.{}.attn.hook_z"}
UNKNOWN_MODEL, UNKNOWN_HOOK = "unknown (pass --model)", "unknown (pass --hook)"
"""Not names of anything, so that a user who passes neither is told what to type instead of getting a guess."""

RELEASE = re.compile(
    r"(?:models--)?(?:google(?:--|-))?(?:gemma-scope-)?(2b|9b|27b)-(pt|it)-(res|mlp|att|transcoders)(?:-canonical|-all)?"
)
INSIDE = re.compile(r"(?:layer_\d{1,3}|embedding)/width_[0-9a-z]{1,8}/average_l0_\d{1,5}")
NPY_HEADER = re.compile(
    r"\{'descr': '([^']{1,16})', 'fortran_order': (True|False), 'shape': \(((?:\d{1,12}(?:, ?)?)*)\), \} *\n"
)

MAX_DIRECTORY = 1 << 20
"""Bytes read at once while the archive's directory is parsed; an honest one has under a thousand."""
MAX_DEFLATE = 1032
"""More than this, deflate cannot expand (zlib's own bound): a larger ratio is a lie, or a bomb."""
CHUNK = 1 << 20

READER = Reader("gemma-scope", "Download the file again.")
bad = READER.bad
BROKEN = (zipfile.BadZipFile, zlib.error, EOFError, OSError, ValueError, NotImplementedError, OverflowError)
"""What the standard library raises on broken archives."""


@hookimpl
def saebench_loaders() -> Mapping[str, SAELoader]:
    """Gemma Scope files, local or from the hub."""
    return {
        "gemma-scope": SAELoader(
            load, peek=peek, claims=claims, version=1, summary="Gemma Scope params.npz, local or by release name"
        )
    }


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
    with _open(path) as archive:
        arrays = _arrays(archive, path)
        info = _info(path, commit, arrays)
        target = dtype or torch.float32
        tensors = {name: _read(archive, path, name, array, target, device) for name, array in arrays.items()}
    if (scale := tensors.pop(OPTIONAL, None)) is not None and not bool((scale == 1).all()):
        raise bad(path, OPTIONAL, "it is not one: how it enters the codes is not documented", "Use another SAE.")
    weights: dict[str, Any] = {TENSORS[name]: tensor for name, tensor in tensors.items()}
    if info.site.hook == "hook_embed":
        _to_scaled_embedding(weights, info.d_in)
    return SAE(info=info, **weights)


def peek(ref: str | Path) -> SAEHeader:
    """Info from the archive's directory and the arrays' headers, without torch or numpy; downloads a hub reference."""
    path, commit = _locate(str(ref))
    with _open(path) as archive:
        return SAEHeader(_info(path, commit, _arrays(archive, path)), {"weights": path})


def claims(path: Path) -> bool:
    """Whether a path is a `params.npz`, a folder with one, or another `.npz` that holds the five arrays."""
    try:
        if path.is_dir():
            return (path / FILE_NAME).is_file()
        if not path.is_file() or path.suffix != ".npz":  # a pipe would wait for ever
            return False
        if path.name == FILE_NAME:
            return True
        with _open(path) as archive:
            return {f"{name}.npy" for name in TENSORS} <= set(archive.namelist())
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
    path = _download(repository, f"{inside}/{FILE_NAME}", revision or None)
    parts = path.parts
    return path, parts[parts.index("snapshots") + 1] if "snapshots" in parts[:-1] else None


def _download(repository: str, name: str, revision: str | None) -> Path:
    """The file from the hub or its cache. Raises `SaebenchError` that says which of the ways it failed."""
    from huggingface_hub import errors as hub
    from huggingface_hub import hf_hub_download

    where = f"gemma-scope loader: {repository}/{name} (revision {revision or 'main'})"
    try:
        return Path(hf_hub_download(repository, name, revision=revision))
    except hub.LocalEntryNotFoundError as e:
        raise SaebenchError(
            f"{where} is not in the local hub cache and the hub cannot be reached: go online once, "
            "or give the path of a downloaded params.npz"
        ) from e
    except hub.GatedRepoError as e:
        raise SaebenchError(f"{where} is gated: accept its terms on its page and log in with `hf auth login`") from e
    except hub.RevisionNotFoundError as e:
        raise SaebenchError(f"{where}: there is no such revision; leave @REVISION out, or give a commit of it") from e
    except hub.EntryNotFoundError as e:
        raise SaebenchError(
            f"{where}: there is no such file. Every layer and width has its own average_l0_N: look them up on its page"
        ) from e
    except hub.RepositoryNotFoundError as e:
        raise SaebenchError(f"{where}: there is no such repository, or it is private") from e
    except (OSError, ValueError) as e:  # other answers of the hub, a full disk, a name the client refuses
        raise SaebenchError(f"{where} could not be downloaded ({str(e)[:200]!a}); try again, or give a path") from e


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


# -- the archive


@dataclass(frozen=True)
class Array:
    """One array of the archive: torch's dtype name, bytes per value, shape, memory order, bytes before the values."""

    dtype: str
    width: int
    shape: tuple[int, ...]
    fortran: bool
    offset: int


class _Guarded:
    """A file that refuses to be read in large pieces: zipfile takes a directory of any size into memory at once."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file, self.limit = file, MAX_DIRECTORY

    def read(self, n: int = -1) -> bytes:
        if n > self.limit:
            raise zipfile.BadZipFile(f"{n:,} bytes of directory are declared")
        return self.file.read(self.limit if n < 0 else n)  # zipfile asks for "the rest" only near the end

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)


@contextmanager
def _open(path: Path) -> Iterator[zipfile.ZipFile]:
    """The archive, if it is one, in a regular file; whatever zipfile raises on a broken one becomes `BadFileError`."""
    with READER.open(path) as file:
        guarded = _Guarded(file)
        try:
            archive = zipfile.ZipFile(guarded)  # it has what zipfile uses
        except BROKEN as e:
            advice = f"Give a Gemma Scope {FILE_NAME}, or a folder that holds it."
            raise bad(path, "file", f"it is not a sound zip archive ({str(e)[:100]!a})", advice) from e
        guarded.limit = CHUNK
        with archive:
            yield archive


def _arrays(archive: zipfile.ZipFile, path: Path) -> dict[str, Array]:
    """Headers of all arrays: the right names, sizes that the archive's bytes allow, shapes that fit each other."""
    members: dict[str, zipfile.ZipInfo] = {}
    for member in archive.infolist():
        name, suffix = member.filename[:-4], member.filename[-4:]
        if suffix != ".npy" or name not in {*TENSORS, OPTIONAL} or name in members:
            what = "it stands twice" if name in members else f"unknown array; expected {', '.join(TENSORS)}"
            raise bad(path, show(member.filename), what)
        members[name] = member
    if missing := [name for name in TENSORS if name not in members]:
        raise bad(path, missing[0], "this array is missing", "Is it a Gemma Scope file? Download it again.")
    _check_sizes(path, members)
    arrays = {name: _array(archive, path, name, member) for name, member in members.items()}
    _check_shapes(path, arrays)
    return arrays


def _check_sizes(path: Path, members: Mapping[str, zipfile.ZipInfo]) -> None:
    for name, m in members.items():
        if m.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) or m.flag_bits & 1:
            raise bad(path, name, "it is encrypted, or compressed in a way numpy does not write")
        most = m.compress_size * (MAX_DEFLATE if m.compress_type else 1)
        if m.file_size > most or (not m.compress_type and m.file_size != m.compress_size):
            raise bad(path, name, f"it declares {m.file_size:,} bytes and {m.compress_size:,} are stored")
    stored, size = sum(m.compress_size for m in members.values()), path.stat().st_size
    if stored > size:
        raise bad(path, "file", f"its arrays declare {stored:,} bytes and it has {size:,}: cut off, or they overlap")


def _array(archive: zipfile.ZipFile, path: Path, name: str, member: zipfile.ZipInfo) -> Array:
    with _failing_as(path, name), archive.open(member) as stream:
        first = stream.read(10)
        long = first[6:7] > b"\x01"
        length = int.from_bytes(first[8:10] + (stream.read(2) if long else b""), "little")
        text = stream.read(min(length, 4096)).decode("latin-1")
    match = NPY_HEADER.fullmatch(text)
    if first[:6] != b"\x93NUMPY" or match is None or len(text) != length:
        raise bad(path, name, "it is not an array as numpy writes it")
    dtype, fortran, sizes = match.groups()
    if dtype not in DTYPES:
        raise bad(path, f"{name}.dtype", f"it is {show(dtype)}, expected one of {', '.join(DTYPES)}")
    shape = tuple(int(n) for n in re.findall(r"\d+", sizes))
    array = Array(*DTYPES[dtype], shape, fortran == "True", len(first) + 2 * long + length)
    if array.offset + math.prod(shape) * array.width != member.file_size:
        raise bad(path, f"{name}.shape", f"{list(shape)} of {dtype} is not what its {member.file_size:,} bytes hold")
    return array


def _check_shapes(path: Path, arrays: Mapping[str, Array]) -> None:
    shape = arrays["w_enc"].shape
    if len(shape) != 2 or not all(shape):
        raise bad(path, "w_enc.shape", f"it is {list(shape)}, expected [d_in, d_sae]")
    d_in, d_sae = shape
    expected = {"b_enc": (d_sae,), "w_dec": (d_sae, d_in), "b_dec": (d_in,), "threshold": (d_sae,)}
    for name, want in expected.items():
        if (found := arrays[name].shape) != want:
            raise bad(path, f"{name}.shape", f"it is {list(found)}, expected {list(want)} from w_enc")
    if OPTIONAL in arrays and arrays[OPTIONAL].shape not in ((), (1,), (d_sae,)):
        raise bad(path, f"{OPTIONAL}.shape", f"it is {list(arrays[OPTIONAL].shape)}, expected [{d_sae}]")


def _read(
    archive: zipfile.ZipFile, path: Path, name: str, array: Array, dtype: torch.dtype, device: str | torch.device
) -> Tensor:
    """One array, chunk by chunk into a tensor that is reserved once."""
    import torch

    shape = array.shape[::-1] if array.fortran else array.shape
    tensor = torch.empty(shape, dtype=dtype, device=device)
    flat, done, wrong = tensor.view(-1), 0, 0
    with _failing_as(path, name), archive.open(f"{name}.npy") as stream:
        stream.read(array.offset)
        while done < flat.numel():
            raw = bytearray(stream.read(min(CHUNK, (flat.numel() - done) * array.width)))
            if not raw or len(raw) % array.width:
                raise bad(path, name, "its values end early")
            chunk = torch.frombuffer(raw, dtype=getattr(torch, array.dtype)).to(dtype)
            wrong += int((~chunk.isfinite()).sum())
            flat[done : done + chunk.numel()] = chunk
            done += chunk.numel()
        stream.read(1)  # past the last value the archive's checksum is compared
    if wrong:
        shown = str(dtype).removeprefix("torch.")
        raise bad(path, name, f"{wrong:,} of {flat.numel():,} values are NaN or infinite as {shown}")
    return tensor.permute(*reversed(range(tensor.ndim))) if array.fortran else tensor


@contextmanager
def _failing_as(path: Path, name: str) -> Iterator[None]:
    try:
        yield
    except BROKEN as e:
        raise bad(path, name, f"it cannot be read ({str(e)[:100]!a}): cut off or changed") from e
