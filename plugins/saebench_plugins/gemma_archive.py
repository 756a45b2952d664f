"""The archive of a Gemma Scope SAE, `params.npz`: five arrays, each checked against the directory before it is read.

Arrays go from the archive straight into the final tensors, a few megabytes at a time, so that a file of N bytes costs
N bytes; what it declares is held against the archive's directory before anything is reserved. No pickle is ever opened.
"""

from __future__ import annotations

import math
import re
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from saebench_plugins.native_header import show
from saebench_plugins.untrusted import Reader

if TYPE_CHECKING:
    import torch
    from torch import Tensor

FILE_NAME = "params.npz"
NAMES = ("w_enc", "b_enc", "w_dec", "b_dec", "threshold")
OPTIONAL = "scaling_factor"
"""Written by some fine-tuned releases; nothing else than ones is accepted."""
DTYPES = {"<f2": ("float16", 2), "<f4": ("float32", 4), "<f8": ("float64", 8)}
NPY_HEADER = re.compile(
    r"\{'descr': '([^']{1,16})', 'fortran_order': (True|False), 'shape': \(((?:\d{1,12}(?:, ?)?)*)\), \} *\n"
)

MAX_DIRECTORY = 1 << 20
"""Bytes read at once while the archive's directory is parsed; an honest one has under a thousand."""
MAX_DEFLATE = 1032
"""More than this, deflate cannot expand (zlib's own bound): a larger ratio is a lie, or a bomb."""
MAX_RATIO, FREE_BYTES = 20, 64 << 20
"""How far all arrays together may be compressed, beyond the first 64 MB: more is a bomb of zeros."""
CHUNK = 1 << 20

READER = Reader("gemma-scope", "Download the file again.")
bad = READER.bad
BROKEN = (zipfile.BadZipFile, zlib.error, EOFError, OSError, ValueError, NotImplementedError, OverflowError)
"""What the standard library raises on broken archives."""


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
def open_archive(path: Path) -> Iterator[zipfile.ZipFile]:
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


def read_headers(archive: zipfile.ZipFile, path: Path) -> dict[str, Array]:
    """Headers of all arrays: the right names, sizes that the archive's bytes allow, shapes that fit each other."""
    members: dict[str, zipfile.ZipInfo] = {}
    for member in archive.infolist():
        name, suffix = member.filename[:-4], member.filename[-4:]
        if suffix != ".npy" or name not in {*NAMES, OPTIONAL} or name in members:
            what = "it stands twice" if name in members else f"unknown array; expected {', '.join(NAMES)}"
            raise bad(path, show(member.filename), what)
        members[name] = member
    if missing := [name for name in NAMES if name not in members]:
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
    declared = sum(m.file_size for m in members.values())
    if declared > MAX_RATIO * stored + FREE_BYTES:
        raise bad(path, "file", f"its {stored:,} bytes declare {declared:,}: trained weights are never so compressible")
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


def read_array(
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
