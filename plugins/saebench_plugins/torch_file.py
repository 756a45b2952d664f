"""Reading tensors of a `.pt` file that `torch.save` wrote, without unpickling anything.

    archive/data.pkl      names, shapes, strides of the tensors (see torch_pickle)
    archive/byteorder     "little"
    archive/data/<key>    the values of one storage, not compressed

Every size the pickle declares is held against the member of the archive that would have to hold it before memory is
reserved; values are read in pieces straight into their place, cast and checked on the way. So a file costs its weights
in the dtype asked for and a few megabytes. Looking at names and shapes, and at small values, needs no torch.
"""

from __future__ import annotations

import math
import os
import struct
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, BinaryIO

from saebench_plugins.torch_pickle import MAX_PICKLE, PickleError, TensorEntry, read_pickle

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from saebench_meta.errors import BadFileError
    from saebench_plugins.untrusted import Reader

MAX_DIRECTORY = 1 << 20
"""Bytes of the archive's directory read at most: an honest one has about a hundred per storage."""

CHUNK = 1 << 20
"""Bytes read at once."""

MAX_VALUES = 1 << 14
"""Values that `read_values` reads at most; it is for settings kept as tensors."""

ZIP_ERRORS = (
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
    EOFError,
    OSError,
    ValueError,
    KeyError,
    RuntimeError,
    NotImplementedError,
    OverflowError,
    IndexError,
)
"""What the standard library's zip reader raises for broken archives."""

RESAVE = "Save it again: torch.save(state_dict, path)."
CODES = {
    "float64": "d",
    "float32": "f",
    "float16": "e",
    "int64": "q",
    "int32": "i",
    "int16": "h",
    "int8": "b",
    "uint8": "B",
    "bool": "?",
}


@dataclass(frozen=True, eq=False)
class TorchFile:
    """An open `.pt` file.

    Attributes:
        root: what was saved: dicts, lists, numbers, strings, and a `TensorEntry` for every tensor.
        size: bytes of the whole file.
    """

    path: Path
    reader: Reader
    root: object
    archive: zipfile.ZipFile
    members: Mapping[str, zipfile.ZipInfo]
    prefix: str
    size: int

    def bad(self, field: str, what: str, advice: str = RESAVE) -> BadFileError:
        """The loader's error, about this file."""
        return self.reader.bad(self.path, field, what, advice)


@contextmanager
def open_torch_file(path: Path, reader: Reader) -> Iterator[TorchFile]:
    """Open a `.pt` file and read what it declares. Needs no torch.

    Args:
        reader: the loader's name and advice, for messages.

    Raises:
        BadFileError: the file cannot be opened, is no archive of `torch.save`, or its pickle is refused.
    """
    with reader.open(path) as file:
        size = os.fstat(file.fileno()).st_size
        archive = _archive(file, size, path, reader)
        with archive:
            members = _members(archive, path, reader)
            prefix = _prefix(members, path, reader)
            torch_file = TorchFile(path, reader, None, archive, members, prefix, size)
            _check_byte_order(torch_file)
            data = _read_small(torch_file, "data.pkl", MAX_PICKLE)
            try:
                root = read_pickle(data)
            except PickleError as e:
                raise torch_file.bad("data.pkl", str(e)) from e
            yield TorchFile(path, reader, root, archive, members, prefix, size)


# -- the archive


def _archive(file: BinaryIO, size: int, path: Path, reader: Reader) -> zipfile.ZipFile:
    first = file.read(4)
    if first[:1] == b"\x80":
        what = "it is a bare pickle (of torch before 1.6?), which is never opened"
        raise reader.bad(path, "file", what, "In a safe place: torch.save(torch.load(path, weights_only=True), path).")
    if first != b"PK\x03\x04":
        raise reader.bad(path, "file", "it is not an archive that `torch.save` wrote")
    try:
        if (length := _directory_size(file, size)) > MAX_DIRECTORY:
            raise reader.bad(path, "archive", f"its directory has {length:,} bytes, at most {MAX_DIRECTORY:,} are read")
        return zipfile.ZipFile(file)
    except ZIP_ERRORS as e:
        raise reader.bad(path, "archive", f"it is broken or cut off ({ascii(str(e))[:80]})") from e


def _directory_size(file: BinaryIO, size: int) -> int:
    """Bytes the archive's directory says it has (APPNOTE 4.3.14 to 4.3.16); raises ValueError if there is none."""
    start = max(0, size - (1 << 16) - 22 - 76)
    file.seek(start)
    tail = file.read()
    at = tail.rfind(b"PK\x05\x06")
    if at < 0 or len(tail) - at < 22:
        raise ValueError("no end of the directory")
    length: int = struct.unpack_from("<L", tail, at + 12)[0]
    if (locator := at - 20) >= 0 and tail[locator : locator + 4] == b"PK\x06\x07":
        file.seek(struct.unpack_from("<Q", tail, locator + 8)[0])
        long_end = file.read(56)
        if len(long_end) == 56 and long_end[:4] == b"PK\x06\x06":
            length = max(0 if length == 0xFFFFFFFF else length, struct.unpack_from("<Q", long_end, 40)[0])
    return length


def _members(archive: zipfile.ZipFile, path: Path, reader: Reader) -> dict[str, zipfile.ZipInfo]:
    members: dict[str, zipfile.ZipInfo] = {}
    for info in archive.infolist():
        if info.filename in members:
            raise reader.bad(path, "archive", f"member {ascii(info.filename)[:60]} stands twice")
        members[info.filename] = info
    return members


def _prefix(members: Iterable[str], path: Path, reader: Reader) -> str:
    found = [name for name in members if name.rpartition("/")[2] == "data.pkl"]
    if len(found) != 1:
        raise reader.bad(path, "archive", f"it has {len(found)} members named data.pkl, expected 1")
    return found[0].removesuffix("data.pkl")


def _member(file: TorchFile, name: str) -> zipfile.ZipInfo:
    """A member whose declared bytes are all there, uncompressed."""
    if (info := file.members.get(file.prefix + name)) is None:
        raise file.bad(ascii(name).strip("'")[:60], "this member of the archive is missing")
    if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1 or info.file_size != info.compress_size:
        raise file.bad(
            ascii(name).strip("'")[:60], "this member is compressed or encrypted, as `torch.save` never does"
        )
    if info.header_offset + 30 + info.file_size > file.size:
        raise file.bad(ascii(name).strip("'")[:60], f"it declares {info.file_size:,} bytes, which are not there")
    return info


def _read_small(file: TorchFile, name: str, limit: int) -> bytes:
    info = _member(file, name)
    if info.file_size > limit:
        raise file.bad(name, f"it has {info.file_size:,} bytes, at most {limit:,} are read")
    try:
        return file.archive.read(info)
    except ZIP_ERRORS as e:
        raise file.bad(name, f"it cannot be read ({ascii(str(e))[:80]})") from e


def _check_byte_order(file: TorchFile) -> None:
    if file.prefix + "byteorder" in file.members and (found := _read_small(file, "byteorder", 64)) != b"little":
        raise file.bad("byteorder", f"it is {ascii(found)[:30]}, expected little")


# -- tensors


def check_declared(file: TorchFile, wanted: Mapping[str, TensorEntry]) -> None:
    """Hold every tensor to be read against the archive: its storage's bytes are there, once for every tensor."""
    for field, entry in wanted.items():
        held = _member(file, f"data/{entry.storage.key}").file_size
        if held != entry.storage.nbytes:
            raise file.bad(field, f"its storage declares {entry.storage.nbytes:,} bytes, the archive holds {held:,}")
    total = sum(entry.numel * entry.storage.width for entry in wanted.values())
    if total > file.size:
        raise file.bad("tensors", f"together they declare {total:,} bytes, the file has {file.size:,}: shared storage?")


def read_values(file: TorchFile, field: str, entry: TensorEntry) -> list[float]:
    """The values of a small tensor, without torch. Raises `BadFileError`."""
    check_declared(file, {field: entry})
    if entry.storage.numel > MAX_VALUES or _layout(file, field, entry):
        raise file.bad(field, f"a setting with {entry.storage.numel:,} values, at most {MAX_VALUES:,} are read")
    raw = _read_small(file, f"data/{entry.storage.key}", MAX_VALUES * 8)
    if entry.storage.dtype == "bfloat16":
        halves = struct.unpack(f"<{entry.storage.numel}H", raw)
        values = struct.unpack(f"<{len(halves)}f", b"".join(struct.pack("<L", half << 16) for half in halves))
    else:
        values = struct.unpack(f"<{entry.storage.numel}{CODES[entry.storage.dtype]}", raw)
    return list(values[entry.offset : entry.offset + entry.numel])


def load_tensor(
    file: TorchFile, field: str, entry: TensorEntry, dtype: torch.dtype, *, transpose: bool = False
) -> Tensor:
    """A tensor of one or two dimensions in the dtype asked for, contiguous.

    Args:
        transpose: give a matrix the other way round; it is laid so while it is read.

    Raises:
        BadFileError: bytes are missing or damaged, the tensor is not a whole block of numbers, or a value is NaN or
            infinite in `dtype`.
    """
    import torch

    check_declared(file, {field: entry})
    turned = _layout(file, field, entry) != transpose  # whether the result lies in memory the other way than the file
    stored = entry.shape[::-1] if _layout(file, field, entry) else entry.shape
    out = torch.empty(stored[::-1] if turned else stored, dtype=dtype)
    if entry.numel == 0:
        return out
    rows = out.T if turned else out.view(-1)
    width = stored[1] if turned else 1
    step = max(1, CHUNK // (width * entry.storage.width))
    wrong = at = 0
    for raw in _pieces(file, field, entry, step * width * entry.storage.width):
        part = torch.frombuffer(raw, dtype=getattr(torch, entry.storage.dtype)).to(dtype)
        wrong += int((~part.isfinite()).sum())
        part = part.view(-1, width) if turned else part
        rows[at : at + part.shape[0]] = part
        at += part.shape[0]
    if wrong:
        shown = str(dtype).removeprefix("torch.")
        raise file.bad(field, f"{wrong:,} of {entry.numel:,} values are NaN or infinite as {shown}")
    return out


def _layout(file: TorchFile, field: str, entry: TensorEntry) -> bool:
    """Whether a block lies column by column; a view that leaves values out is refused."""
    shape, stride = entry.shape, entry.stride
    row_major = tuple(math.prod(shape[i + 1 :]) for i in range(len(shape)))
    if entry.numel == 0 or all(s == r or n == 1 for s, r, n in zip(stride, row_major, shape, strict=True)):
        return False
    if len(shape) == 2 and stride == (1, shape[0]):
        return True
    raise file.bad(field, f"a view with strides {list(stride)} of a larger tensor; save a clone of it")


def _pieces(file: TorchFile, field: str, entry: TensorEntry, nbytes: int) -> Iterator[bytearray]:
    """The tensor's bytes, piece by piece; the archive's checksum is compared where the tensor ends its storage."""
    skip, left = entry.offset * entry.storage.width, entry.numel * entry.storage.width
    try:
        with file.archive.open(_member(file, f"data/{entry.storage.key}")) as stream:
            while skip:
                skip -= len(_exactly(stream, min(skip, CHUNK)))
            while left:
                piece = _exactly(stream, min(left, nbytes))
                left -= len(piece)
                yield piece
            while stream.read(CHUNK):
                pass
    except ZIP_ERRORS as e:
        raise file.bad(field, f"its values cannot be read ({ascii(str(e))[:80]})") from e


def _exactly(stream: IO[bytes], count: int) -> bytearray:
    piece = bytearray()
    while len(piece) < count:
        if not (more := stream.read(min(count - len(piece), CHUNK))):
            raise EOFError("the bytes end too early")
        piece += more
    return piece
