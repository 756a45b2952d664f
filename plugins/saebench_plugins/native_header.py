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
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from saebench_meta.errors import BadFileError

if TYPE_CHECKING:
    from saebench_meta.sae import SAEInfo

FORMAT, FILE_NAME = "saebench-native", "sae.safetensors"
VERSION, STITCHED_VERSION = "1", "2"
"""An SAE whose encoder is `W_enc`, `b_enc` and an activation function; one whose encoder is made of parts."""
MAX_HEADER = 1 << 20
"""Bytes of header read at most: an honest one has a few thousand, and parsed JSON takes many times its text."""

MAX_SIZE = 1 << 60
"""Latents a part may declare: past any file, and short enough to be named in an error."""

DTYPES = {"F64": ("float64", 8), "F32": ("float32", 4), "F16": ("float16", 2), "BF16": ("bfloat16", 2)}
"""Name in the file -> torch's name and bytes per value."""
INDEX_DTYPES = {"I64": ("int64", 8)}
"""Likewise, for numbers of latents."""


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
    parts: tuple[PartLayout, ...] = ()


class PartLayout(BaseModel):
    """A part of a stitched SAE's encoder, as a header gives it."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    activation: Literal["relu", "jumprelu", "topk"]
    d_sae: int = Field(gt=0, le=MAX_SIZE)
    n: int = Field(gt=0, le=MAX_SIZE)
    k: int | None = Field(gt=0, le=MAX_SIZE)

    @model_validator(mode="after")
    def _sizes_fit(self) -> PartLayout:
        if (self.k is not None) != (self.activation == "topk") or (self.k or 0) > self.d_sae:
            raise ValueError("k goes with topk, and is at most d_sae")
        if self.n > self.d_sae or (self.n < self.d_sae and self.activation != "topk"):
            raise ValueError("n is d_sae, and less only for topk")
        return self

    def shapes(self, d_in: int) -> dict[str, tuple[int, ...]]:
        """Its tensors and their shapes."""
        shapes: dict[str, tuple[int, ...]] = {"W_enc": (d_in, self.d_sae), "b_enc": (self.d_sae,)}
        more = {"jumprelu": {"threshold": (self.d_sae,)}, "topk": {"kept": (self.n,)}}
        return shapes | more.get(self.activation, {})


J = TypeVar("J", dict[str, Any], list[Any])
JSON_NAMES = {dict: "object", list: "list"}

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
    header = _json(path, "header", file.read(length), dict)
    metadata = _metadata(path, header.pop("__metadata__", None))
    info = _info(path, metadata.get("info"))
    parts = _parts(path, metadata["parts"], info) if "parts" in metadata else ()
    if max(info.d_in, info.d_sae, *(part.d_sae for part in parts)) > size:
        raise bad(path, "info.d_in, info.d_sae", f"wider than the {size:,} bytes of the file allow")
    return Header(info, _slots(path, header, info, parts, start=8 + length, size=size), parts)


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


def _json(path: Path, field: str, raw: bytes | str, kind: type[J]) -> J:
    """A JSON object or list, read strictly: UTF-8, no key twice, no NaN, no depth that exhausts the stack."""

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
    if not isinstance(value, kind):
        raise bad(path, field, f"it is {show(value)}, expected a JSON {JSON_NAMES[kind]}")
    return value


def _metadata(path: Path, metadata: object) -> dict[str, Any]:
    """The metadata, of this format and of a version that is read here."""
    if not isinstance(metadata, dict) or metadata.get("format") != FORMAT:
        found = metadata.get("format") if isinstance(metadata, dict) else metadata
        raise bad(path, "__metadata__.format", f"it is {show(found)}, expected '{FORMAT}': another format's file?")
    if (version := metadata.get("version")) not in (VERSION, STITCHED_VERSION):
        known = f"this release reads '{VERSION}' and '{STITCHED_VERSION}' (is a newer one out?)"
        raise bad(path, "__metadata__.version", f"it is {show(version)}, {known}")
    fields = {"format", "version", "info"} | ({"parts"} if version == STITCHED_VERSION else set())
    if unknown := sorted(metadata.keys() - fields):
        raise bad(path, "__metadata__", f"unknown field {show(unknown[0])}")
    if missing := sorted(fields - metadata.keys()):
        raise bad(path, f"__metadata__.{missing[0]}", "it is missing")
    return metadata


def _info(path: Path, text: object) -> SAEInfo:
    from saebench_meta.sae import SAEInfo

    if not isinstance(text, str):
        raise bad(path, "__metadata__.info", f"it is {show(text)}, expected the JSON of SAEInfo")
    _json(path, "__metadata__.info", text, dict)
    try:
        return SAEInfo.model_validate_json(text, strict=True)
    except ValidationError as e:
        raise _invalid(path, "info", e) from e


def _invalid(path: Path, field: str, e: ValidationError) -> BadFileError:
    """The first thing that pydantic found wrong."""
    first = e.errors(include_url=False, include_context=False)[0]
    field = ".".join([field, *(str(part) for part in first["loc"])])
    return bad(path, show(field).strip("'"), f"{show(first['msg'])} (found {show(first['input'])})")


def _parts(path: Path, text: object, info: SAEInfo) -> tuple[PartLayout, ...]:
    """The parts of a stitched SAE's encoder, whose latents are together those of `info`."""
    if not isinstance(text, str):
        raise bad(path, "__metadata__.parts", f"it is {show(text)}, expected JSON")
    found = []
    for i, part in enumerate(_json(path, "__metadata__.parts", text, list)):
        try:
            found.append(PartLayout.model_validate(part))
        except ValidationError as e:
            raise _invalid(path, f"parts.{i}", e) from e
    if (n := sum(part.n for part in found)) != info.d_sae:
        raise bad(path, "__metadata__.parts", f"their latents come to {show(n)}, not to info.d_sae")
    if info.activation != "relu":
        raise bad(
            path, "info.activation", f"it is '{info.activation}', and of a stitched SAE 'relu': parts have theirs"
        )
    return tuple(found)


def tensor_shapes(info: SAEInfo, parts: Sequence[PartLayout] = ()) -> dict[str, tuple[int, ...]]:
    """The tensors an SAE of this kind has in a file, and their shapes; `parts` of a stitched SAE."""
    d_in, d_sae = info.d_in, info.d_sae
    if parts:
        encoders = enumerate(part.shapes(d_in) for part in parts)
        of_parts = {f"part{i}.{name}": shape for i, shapes in encoders for name, shape in shapes.items()}
        return {"W_dec": (d_sae, d_in), "b_dec": (d_in,)} | of_parts
    shapes: dict[str, tuple[int, ...]] = {
        "W_enc": (d_in, d_sae),
        "b_enc": (d_sae,),
        "W_dec": (d_sae, d_in),
        "b_dec": (d_in,),
    }
    return shapes | ({"threshold": (d_sae,)} if info.activation == "jumprelu" else {})


def _slots(
    path: Path, entries: dict[str, Any], info: SAEInfo, parts: Sequence[PartLayout], *, start: int, size: int
) -> dict[str, Slot]:
    """The tensors, which must be those of `info` and fill the data to the byte, without gap or overlap."""
    shapes = tensor_shapes(info, parts)
    if missing := sorted(shapes.keys() - entries.keys()):
        raise bad(path, missing[0], "this tensor is missing")
    if unknown := sorted(entries.keys() - shapes.keys()):
        kind = "this stitched" if parts else f"a {info.activation}"
        raise bad(path, show(unknown[0]), f"unknown tensor; {kind} SAE has {', '.join(shapes):.200}")
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


def is_index(name: str) -> bool:
    """Whether a tensor holds numbers of latents."""
    return name.endswith(".kept")


def _slot(path: Path, name: str, entry: object, shape: tuple[int, ...], start: int) -> Slot:
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise bad(path, name, f"expected dtype, shape and data_offsets, found {show(entry)}")
    known = INDEX_DTYPES if is_index(name) else DTYPES
    if not isinstance(code := entry["dtype"], str) or code not in known:
        raise bad(path, f"{name}.dtype", f"it is {show(code)}, expected one of {', '.join(known)}")
    if not _is_sizes(entry["shape"]) or tuple(entry["shape"]) != shape:
        raise bad(
            path,
            f"{name}.shape",
            f"it is {show(entry['shape'])}, expected {list(shape)} from the sizes that are declared",
        )
    offsets = entry["data_offsets"]
    dtype, width = known[code]
    nbytes = math.prod(shape) * width
    if not _is_sizes(offsets) or len(offsets) != 2 or offsets[1] - offsets[0] != nbytes:
        raise bad(path, f"{name}.data_offsets", f"it is {show(offsets)}, expected two offsets {nbytes:,} bytes apart")
    return Slot(dtype, shape, start + offsets[0], nbytes)


def _is_sizes(value: object) -> bool:
    return isinstance(value, list) and all(type(n) is int and n >= 0 for n in value)
