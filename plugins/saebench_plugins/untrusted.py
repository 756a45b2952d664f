"""Checks that every loader of foreign files needs: nothing is trusted, nothing reserved before it is known to be there.

A loader makes one `Reader` with its name and its advice; every refusal is then one `BadFileError` that names loader,
file and field, says what is wrong and what to do. JSON and safetensors headers are read without torch.
"""

from __future__ import annotations

import json
import math
import os
import stat
import struct
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from saebench_meta.errors import BadFileError
from saebench_plugins.native_header import DTYPES, MAX_HEADER, Slot, show

if TYPE_CHECKING:
    import torch
    from torch import Tensor

MAX_JSON = 1 << 20
"""Bytes of a JSON file read at most: parsed JSON takes many times its text."""

BLOCK = 1 << 20
"""Bytes of a tensor held twice while it is cast, so that casting never doubles a file."""

MAX_TEXT = 4096
"""Characters of a name or path in a configuration at most."""

_SCALARS = {"float64": "<d", "float32": "<f", "float16": "<e"}


@dataclass(frozen=True)
class Reader:
    """One loader's way of opening files: its name and what it advises when a file is refused."""

    loader: str
    advice: str

    def bad(self, path: Path, field: str, what: str, advice: str = "") -> BadFileError:
        """The error of this loader: file, field, what is wrong, what to do."""
        return BadFileError(f"{self.loader} loader: '{path}': {field}: {what}. {advice or self.advice}")

    def open(self, path: Path) -> BinaryIO:
        """A regular file for reading: a device or a pipe would never end. Raises `BadFileError`."""
        try:
            if not stat.S_ISREG(path.stat().st_mode):
                raise self.bad(path, "file", "it is not a regular file")
            return path.open("rb")
        except FileNotFoundError as e:
            raise self.bad(path, "file", "there is no such file") from e
        except (OSError, ValueError) as e:  # loops of links, permissions, a NUL in the name
            raise self.bad(path, "file", f"it cannot be opened ({show(getattr(e, 'strerror', None) or str(e))})") from e

    # -- JSON

    def json_file(self, path: Path, *, limit: int = MAX_JSON) -> dict[str, Any]:
        """A JSON file that holds one object. Raises `BadFileError`."""
        with self.open(path) as file:
            size = os.fstat(file.fileno()).st_size
            if size > limit:
                raise self.bad(path, "file", f"it has {size:,} bytes, at most {limit:,} are read")
            return self.json_object(path, "file", file.read(limit))

    def json_object(self, path: Path, field: str, raw: bytes) -> dict[str, Any]:
        """A JSON object: UTF-8, no key twice, no depth that exhausts the stack. NaN is left to whoever uses it."""

        def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
            if len(found := dict(items)) != len(items):
                twice, _ = Counter(key for key, _ in items).most_common(1)[0]
                raise ValueError(f"key {show(twice)} stands twice")
            return found

        try:
            value = json.loads(raw.decode("utf-8"), object_pairs_hook=pairs)
        except RecursionError as e:
            raise self.bad(path, field, "it is nested too deeply") from e
        except ValueError as e:  # JSONDecodeError and UnicodeDecodeError are ValueErrors
            raise self.bad(path, field, f"it is not valid JSON ({show(str(e))})") from e
        if not isinstance(value, dict):
            raise self.bad(path, field, f"it is {show(value)}, expected a JSON object")
        return value

    def text(self, path: Path, values: Mapping[str, Any], key: str) -> str | None:
        """A printable string, None where it is absent or null or empty. Raises `BadFileError`."""
        value = values.get(key)
        if value is None or value == "":
            return None
        if not isinstance(value, str) or len(value) > MAX_TEXT or not value.isprintable():
            raise self.bad(path, key, f"it is {show(value)}, expected a short printable text")
        return value

    def flag(self, path: Path, values: Mapping[str, Any], key: str, default: bool) -> bool:
        """True or false. Raises `BadFileError`."""
        value = values.get(key)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise self.bad(path, key, f"it is {show(value)}, expected true or false")
        return value

    def size(self, path: Path, values: Mapping[str, Any], key: str) -> int | None:
        """A positive whole number below 2⁴⁰, None where it is absent or null. Raises `BadFileError`."""
        value = values.get(key)
        if value is None:
            return None
        if type(value) is not int or not 0 < value < 1 << 40:
            raise self.bad(path, key, f"it is {show(value)}, expected a positive whole number")
        return value

    def positive(self, path: Path, values: Mapping[str, Any], key: str) -> float | None:
        """A positive finite number, None where it is absent or null. Raises `BadFileError`."""
        value = values.get(key)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1e30:
            raise self.bad(path, key, f"it is {show(value)}, expected a positive number")
        return float(value)

    # -- safetensors

    def tensor_slots(self, path: Path) -> dict[str, Slot]:
        """Where each tensor of a safetensors file lies, every offset held against the bytes that are there.

        Raises:
            BadFileError: no safetensors file, cut off, overlapping or lying offsets, a dtype that is no float.
        """
        with self.open(path) as file:
            size = os.fstat(file.fileno()).st_size
            length = self._header_length(file, size, path)
            entries = self.json_object(path, "header", file.read(length))
        entries.pop("__metadata__", None)
        slots = {name: self._slot(path, name, entry, 8 + length) for name, entry in entries.items()}
        end = 8 + length
        for name, slot in sorted(slots.items(), key=lambda item: item[1].begin):
            if slot.begin != end:
                raise self.bad(path, f"{show(name)}.data_offsets", "it overlaps another tensor or leaves a gap")
            end += slot.nbytes
        if end != size:
            raise self.bad(path, "file", f"the header declares {end:,} bytes, the file has {size:,}: cut off or padded")
        return slots

    def _header_length(self, file: BinaryIO, size: int, path: Path) -> int:
        first = file.read(8)
        length = int.from_bytes(first, "little")
        if len(first) == 8 and 2 <= length <= min(MAX_HEADER, size - 8):
            return length
        if first[:4] == b"PK\x03\x04" or (first[:1] == b"\x80" and first[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05")):
            raise self.bad(path, "file", "it is a pickle or a zip archive, which is never opened as safetensors")
        raise self.bad(path, "header length", f"{length:,} bytes in a file of {size:,}: cut off, or not safetensors")

    def _slot(self, path: Path, name: str, entry: object, start: int) -> Slot:
        field = show(name)
        if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
            raise self.bad(path, field, "expected dtype, shape and data_offsets")
        code, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
        if not isinstance(code, str) or code not in DTYPES:
            raise self.bad(path, f"{field}.dtype", f"it is {show(code)}, expected one of {', '.join(DTYPES)}")
        if not _is_sizes(shape) or len(shape) > 4:
            raise self.bad(path, f"{field}.shape", f"it is {show(shape)}, expected up to four sizes")
        dtype, width = DTYPES[code]
        nbytes = math.prod(shape) * width
        if not _is_sizes(offsets) or len(offsets) != 2 or offsets[1] - offsets[0] != nbytes:
            raise self.bad(path, f"{field}.data_offsets", f"it is {show(offsets)}, which does not fit shape and dtype")
        return Slot(dtype, tuple(shape), start + offsets[0], nbytes)

    def match_shapes(self, path: Path, slots: Mapping[str, Slot], shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Exactly these tensors, in exactly these shapes. Raises `BadFileError`."""
        if missing := sorted(shapes.keys() - slots.keys()):
            raise self.bad(path, missing[0], "this tensor is missing")
        if unknown := sorted(slots.keys() - shapes.keys()):
            raise self.bad(path, show(unknown[0]), f"unknown tensor; expected {', '.join(shapes)}")
        for name, shape in shapes.items():
            if slots[name].shape != shape:
                raise self.bad(path, f"{name}.shape", f"it is {show(list(slots[name].shape))}, expected {list(shape)}")

    def scalar(self, path: Path, name: str, slot: Slot) -> float:
        """A tensor of one value, read without torch. Raises `BadFileError`."""
        with self.open(path) as file:
            file.seek(slot.begin)
            raw = file.read(slot.nbytes)
        if math.prod(slot.shape) != 1 or not raw:
            raise self.bad(path, name, f"it has shape {show(list(slot.shape))}, expected one value")
        if slot.dtype == "bfloat16":
            return float(struct.unpack("<f", b"\0\0" + raw)[0])
        return float(struct.unpack(_SCALARS[slot.dtype], raw)[0])

    def tensor(self, file: BinaryIO, path: Path, name: str, slot: Slot, dtype: torch.dtype) -> Tensor:
        """One tensor, cast block by block so that the raw bytes are never all held beside it."""
        import torch

        out = torch.empty(slot.shape, dtype=dtype)
        flat, source = out.view(-1), getattr(torch, slot.dtype)
        file.seek(slot.begin)
        step = BLOCK // source.itemsize
        for start in range(0, flat.numel(), step):
            raw = bytearray(min(step, flat.numel() - start) * source.itemsize)
            if file.readinto(raw) != len(raw):  # type: ignore[attr-defined]  # a regular file has it
                raise self.bad(path, name, "the file became shorter while it was read")
            part = torch.frombuffer(raw, dtype=source)
            flat[start : start + len(part)] = part
        return out

    def check_finite(self, path: Path, tensors: Mapping[str, Tensor], what: str = "") -> None:
        """No NaN, no infinity. Raises `BadFileError`."""
        for name, tensor in tensors.items():
            if wrong := not_finite(tensor):
                dtype = str(tensor.dtype).removeprefix("torch.")
                found = f"{wrong:,} of {tensor.numel():,} values are NaN or infinite as {dtype}{what}"
                raise self.bad(path, name, found)


def not_finite(tensor: Tensor) -> int:
    """How many values are NaN or infinite, counted block by block: `isfinite` makes several copies."""
    import torch

    parts = torch.split(tensor, max(1, BLOCK // (8 * _row(tensor))))
    return sum(rows.numel() - int(rows.isfinite().sum()) for rows in parts)


def _row(tensor: Tensor) -> int:
    return max(1, tensor.numel() // max(1, tensor.shape[0]))


def _is_sizes(value: object) -> bool:
    return isinstance(value, list) and all(type(n) is int and 0 <= n < 1 << 60 for n in value)
