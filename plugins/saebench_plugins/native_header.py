"""Reading a native file's header: strictly, without torch, every size held against the bytes that are there.

    <8 bytes: header length, little endian> <header: JSON> <tensor data>

The safetensors library is not asked, because its errors name neither file nor field.
"""

from __future__ import annotations

import json
import math
import os
import stat
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from saebench_meta.errors import BadFileError

if TYPE_CHECKING:
    from saebench_meta.sae import SAEInfo

FORMAT, VERSION, FILE_NAME = "saebench-native", "1", "sae.safetensors"
MAX_HEADER = 1 << 20
"""Bytes of header read at most: an honest one has a few thousand, and parsed JSON takes many times its text."""

DTYPES = {"F64": ("float64", 8), "F32": ("float32", 4), "F16": ("float16", 2), "BF16": ("bfloat16", 2)}
"""Name in the file -> torch's name and bytes per value."""


@dataclass(frozen=True)
class Slot:
    """Where one tensor lies: torch's dtype name, shape, first byte counted from the start of the file, bytes."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    nbytes: int


@dataclass(frozen=True)
class Header:
    """A header that was checked against the file's size: nothing in it can ask for more than is there."""

    info: SAEInfo
    slots: Mapping[str, Slot]


REWRITE = "Write the file again with saebench_plugins.native.save."


def bad(path: Path, field: str, what: str, advice: str = REWRITE) -> BadFileError:
    """The one error of this format: file, field, what is wrong, what to do."""
    return BadFileError(f"native loader: '{path}': {field}: {what}. {advice}")


def show(value: object) -> str:
    """A foreign value in an error message: escaped, so that it cannot touch the terminal, and short."""
    try:
        text = ascii(value)
    except RecursionError:
        text = f"a deeply nested {type(value).__name__}"
    return text if len(text) <= 60 else text[:57] + "..."


def open_file(ref: str | Path) -> tuple[BinaryIO, Path]:
    """The file a reference names, if it is a regular one: a device or a pipe would never end."""
    path, advice = Path(ref), f"Give a native file, or a folder that holds {FILE_NAME}."
    try:
        path = path.expanduser()
        if path.is_dir():
            path = path / FILE_NAME
        if not stat.S_ISREG(path.stat().st_mode):
            raise bad(path, "file", "it is neither a file nor a folder", advice)
        return path.open("rb"), path
    except FileNotFoundError as e:
        raise bad(path, "file", "there is no such file", advice) from e
    except (OSError, ValueError, RuntimeError) as e:  # loops of links, permissions, NUL in the name, no home for '~'
        reason = getattr(e, "strerror", None) or str(e)
        raise bad(path, "file", f"it cannot be opened ({show(reason)})", advice) from e


def read_header(file: BinaryIO, path: Path) -> Header:
    """Read and check everything but the values. Raises `BadFileError`."""
    size = os.fstat(file.fileno()).st_size
    length = _header_length(file, size, path)
    header = _json_object(path, "header", file.read(length))
    info = _info(path, header.pop("__metadata__", None))
    if max(info.d_in, info.d_sae) > size:
        raise bad(path, "info.d_in, info.d_sae", f"wider than the {size:,} bytes of the file allow")
    return Header(info, _slots(path, header, info, start=8 + length, size=size))


def _header_length(file: BinaryIO, size: int, path: Path) -> int:
    first = file.read(8)
    length = int.from_bytes(first, "little")
    if len(first) == 8 and 2 <= length <= min(MAX_HEADER, size - 8):
        return length
    if first[:4] == b"PK\x03\x04" or (first[:1] == b"\x80" and first[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05")):
        raise bad(path, "file", "it is a pickle or a zip archive (of `torch.save`?), which is never opened")
    if len(first) < 8:
        raise bad(path, "file", f"it has {size} bytes, too few for a header: empty or cut off")
    limit = f"{size - 8:,} bytes follow" if size - 8 < MAX_HEADER else f"at most {MAX_HEADER:,} are read"
    raise bad(path, "header length", f"{length:,} bytes are declared and {limit}: cut off, or not a safetensors file")


def _json_object(path: Path, field: str, raw: bytes | str) -> dict[str, Any]:
    """A JSON object, read strictly: UTF-8, no key twice, no NaN, no depth that exhausts the stack."""

    def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
        if len(found := dict(items)) != len(items):
            twice, _ = Counter(key for key, _ in items).most_common(1)[0]
            raise ValueError(f"key {show(twice)} stands twice")
        return found

    def constant(name: str) -> None:
        raise ValueError(f"{name} is not JSON")

    try:
        text = raw.decode("utf-8") if isinstance(raw, bytes) else raw
        value = json.loads(text, object_pairs_hook=pairs, parse_constant=constant)
    except RecursionError as e:
        raise bad(path, field, "it is nested too deeply") from e
    except ValueError as e:  # JSONDecodeError and UnicodeDecodeError are ValueErrors
        raise bad(path, field, f"it is not valid JSON ({str(e)[:120]})") from e
    if not isinstance(value, dict):
        raise bad(path, field, f"it is {show(value)}, expected a JSON object")
    return value


def _info(path: Path, metadata: object) -> SAEInfo:
    from pydantic import ValidationError

    from saebench_meta.sae import SAEInfo

    if not isinstance(metadata, dict) or metadata.get("format") != FORMAT:
        found = metadata.get("format") if isinstance(metadata, dict) else metadata
        raise bad(path, "__metadata__.format", f"it is {show(found)}, expected '{FORMAT}': another format's file?")
    if metadata.get("version") != VERSION:
        what = f"it is {show(metadata.get('version'))}, this release reads '{VERSION}' (is a newer one out?)"
        raise bad(path, "__metadata__.version", what)
    if unknown := sorted(metadata.keys() - {"format", "version", "info"}):
        raise bad(path, "__metadata__", f"unknown field {show(unknown[0])}")
    if not isinstance(text := metadata.get("info"), str):
        raise bad(path, "__metadata__.info", f"it is {show(text)}, expected the JSON of SAEInfo")
    _json_object(path, "__metadata__.info", text)
    try:
        return SAEInfo.model_validate_json(text, strict=True)
    except ValidationError as e:
        first = e.errors(include_url=False, include_context=False)[0]
        field = ".".join(["info", *(str(part) for part in first["loc"])])
        raise bad(path, show(field).strip("'"), f"{show(first['msg'])} (found {show(first['input'])})") from e


def tensor_shapes(info: SAEInfo) -> dict[str, tuple[int, ...]]:
    """The tensors an SAE of this kind has, and their shapes."""
    d_in, d_sae = info.d_in, info.d_sae
    shapes: dict[str, tuple[int, ...]] = {
        "W_enc": (d_in, d_sae),
        "b_enc": (d_sae,),
        "W_dec": (d_sae, d_in),
        "b_dec": (d_in,),
    }
    return shapes | ({"threshold": (d_sae,)} if info.activation == "jumprelu" else {})


def _slots(path: Path, entries: dict[str, Any], info: SAEInfo, *, start: int, size: int) -> dict[str, Slot]:
    """The tensors, which must be those of `info` and fill the data to the byte, without gap or overlap."""
    shapes = tensor_shapes(info)
    if missing := sorted(shapes.keys() - entries.keys()):
        raise bad(path, missing[0], "this tensor is missing")
    if unknown := sorted(entries.keys() - shapes.keys()):
        raise bad(path, show(unknown[0]), f"unknown tensor; a {info.activation} SAE has {', '.join(shapes)}")
    slots = {name: _slot(path, name, entries[name], shape, start) for name, shape in shapes.items()}
    end = start
    for name, slot in sorted(slots.items(), key=lambda item: item[1].begin):
        if slot.begin != end:
            what = "overlaps another tensor" if slot.begin < end else "leaves a gap before it"
            raise bad(
                path, f"{name}.data_offsets", f"it {what} (starts at {show(slot.begin - start)}, not {end - start})"
            )
        end += slot.nbytes
    if end != size:
        short = "the file is cut off" if end > size else "something was appended"
        raise bad(path, "data", f"{end - start:,} bytes are declared, {size - start:,} are there: {short}")
    return slots


def _slot(path: Path, name: str, entry: object, shape: tuple[int, ...], start: int) -> Slot:
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise bad(path, name, f"expected dtype, shape and data_offsets, found {show(entry)}")
    if not isinstance(code := entry["dtype"], str) or code not in DTYPES:
        raise bad(path, f"{name}.dtype", f"it is {show(code)}, expected one of {', '.join(DTYPES)}")
    if not _is_sizes(entry["shape"]) or tuple(entry["shape"]) != shape:
        raise bad(
            path,
            f"{name}.shape",
            f"it is {show(entry['shape'])}, expected {list(shape)} from info.d_in and info.d_sae",
        )
    offsets = entry["data_offsets"]
    dtype, width = DTYPES[code]
    nbytes = math.prod(shape) * width
    if not _is_sizes(offsets) or len(offsets) != 2 or offsets[1] - offsets[0] != nbytes:
        raise bad(path, f"{name}.data_offsets", f"it is {show(offsets)}, expected two offsets {nbytes:,} bytes apart")
    return Slot(dtype, shape, start + offsets[0], nbytes)


def _is_sizes(value: object) -> bool:
    return isinstance(value, list) and all(type(n) is int and n >= 0 for n in value)
