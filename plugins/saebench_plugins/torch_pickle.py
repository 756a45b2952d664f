"""What a `torch.save` pickle says, worked out without running it: names, shapes and places of tensors.

A pickle is a program. This reads it as data: a small machine that knows the few instructions a checkpoint of tensors
needs, and calls nothing. What it cannot know (a class, a function) is refused by name. Needs no torch, so that an SAE's
header can be looked at while planning.

Format: the pickle protocol as the standard library documents it; `torch.save` stores a tensor as a call of
`_rebuild_tensor_v2(storage, offset, shape, stride, …)` whose storage is a persistent id
`("storage", type, key, device, values)`.
"""

from __future__ import annotations

import math
import pickletools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

STORAGES: Mapping[str, tuple[str, int]] = {
    "DoubleStorage": ("float64", 8),
    "FloatStorage": ("float32", 4),
    "HalfStorage": ("float16", 2),
    "BFloat16Storage": ("bfloat16", 2),
    "LongStorage": ("int64", 8),
    "IntStorage": ("int32", 4),
    "ShortStorage": ("int16", 2),
    "CharStorage": ("int8", 1),
    "ByteStorage": ("uint8", 1),
    "BoolStorage": ("bool", 1),
}
"""Class of a storage in module `torch` -> torch's dtype name and bytes per value."""

MAX_PICKLE = 1 << 19
"""Bytes of pickle read at most: an honest one has a few hundred per tensor."""

INERT = {"torch.device", "torch.Size", *(f"torch.{dtype}" for dtype, _ in STORAGES.values())}
"""Names that stand in settings beside the weights; they are kept as names and mean nothing here."""


class PickleError(ValueError):
    """What is wrong with a pickle, in words that end without a full stop."""


@dataclass(frozen=True)
class Storage:
    """A block of values in the archive: member `data/<key>`, torch's dtype name, bytes per value, number of values."""

    key: str
    dtype: str
    width: int
    numel: int

    @property
    def nbytes(self) -> int:
        return self.width * self.numel


@dataclass(frozen=True)
class TensorEntry:
    """A tensor that was declared: a view of a storage, inside its bounds, without two indices at one place."""

    storage: Storage
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int

    @property
    def numel(self) -> int:
        return math.prod(self.shape)


@dataclass(frozen=True)
class Name:
    """A class or function the pickle names; never looked up."""

    text: str


@dataclass
class _Machine:
    stack: list[object] = field(default_factory=list)
    outer: list[list[object]] = field(default_factory=list)
    memo: dict[int, object] = field(default_factory=dict)

    def pop(self) -> object:
        if not self.stack:
            raise PickleError("it takes more from the stack than was put there")
        return self.stack.pop()

    def top(self, kind: type | tuple[type, ...]) -> object:
        if not self.stack or not isinstance(self.stack[-1], kind):
            raise PickleError("it fills something that is no container")
        return self.stack[-1]

    def to_mark(self) -> list[object]:
        if not self.outer:
            raise PickleError("it refers to a mark that is not there")
        items, self.stack = self.stack, self.outer.pop()
        return items


def read_pickle(data: bytes) -> object:
    """The object a pickle describes, built of dicts, lists, tuples, numbers, strings and `TensorEntry`.

    Raises:
        PickleError: it is broken, too long, or names something a checkpoint of tensors has no use for.
    """
    if len(data) > MAX_PICKLE:
        raise PickleError(f"it has {len(data):,} bytes, at most {MAX_PICKLE:,} are read")
    machine = _Machine()
    try:
        for opcode, arg, _ in pickletools.genops(data):
            if opcode.name == "STOP":
                return machine.pop()
            _step(machine, opcode.name, arg)
    except PickleError:
        raise
    except (ValueError, TypeError, IndexError, OverflowError, RecursionError) as e:
        raise PickleError(f"it is not a valid pickle ({ascii(str(e))[:80]})") from e
    raise PickleError("it has no end")


LITERALS = {"BINUNICODE", "SHORT_BINUNICODE", "BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT"}
EMPTY: Mapping[str, Callable[[], object]] = {"EMPTY_DICT": dict, "EMPTY_LIST": list, "EMPTY_TUPLE": tuple}
CONSTANTS: Mapping[str, object] = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
PUTS, GETS = {"BINPUT", "LONG_BINPUT"}, {"BINGET", "LONG_BINGET"}


def _step(m: _Machine, name: str, arg: object) -> None:
    """One instruction."""
    if name in LITERALS:
        m.stack.append(arg)
    elif name in EMPTY:
        m.stack.append(EMPTY[name]())
    elif name in CONSTANTS:
        m.stack.append(CONSTANTS[name])
    elif name in PUTS and isinstance(arg, int) and m.stack:
        m.memo[arg] = m.stack[-1]
    elif name == "MEMOIZE" and m.stack:
        m.memo[len(m.memo)] = m.stack[-1]
    elif name in GETS and isinstance(arg, int) and arg in m.memo:
        m.stack.append(m.memo[arg])
    elif name == "MARK":
        m.outer.append(m.stack)
        m.stack = []
    elif name not in ("PROTO", "FRAME"):
        _build(m, name, arg)


def _build(m: _Machine, name: str, arg: object) -> None:
    """The instructions that make one object of others."""
    match name:
        case "TUPLE":
            items = m.to_mark()
            m.stack.append(tuple(items))
        case "TUPLE1" | "TUPLE2" | "TUPLE3":
            n = int(name[-1])
            m.stack.append(tuple(reversed([m.pop() for _ in range(n)])))
        case "APPEND" | "APPENDS":
            new = [m.pop()] if name == "APPEND" else m.to_mark()
            target = m.top(list)
            assert isinstance(target, list)
            target.extend(new)
        case "SETITEM" | "SETITEMS":
            items = list(reversed([m.pop(), m.pop()])) if name == "SETITEM" else m.to_mark()
            _set_items(m.top(dict), items)
        case "GLOBAL":
            m.stack.append(_name(str(arg).replace(" ", ".", 1)))
        case "STACK_GLOBAL":
            attribute, module = m.pop(), m.pop()
            m.stack.append(_name(f"{module}.{attribute}" if isinstance(module, str) else "?"))
        case "BINPERSID":
            m.stack.append(_storage(m.pop()))
        case "REDUCE":
            args, function = m.pop(), m.pop()
            m.stack.append(_call(function, args))
        case "BUILD":
            m.pop()
            m.top(dict)  # `_metadata` of a module's state dict: of no use here
        case _:
            raise PickleError(f"instruction {name} has no place in a checkpoint of tensors")


def _set_items(target: object, items: list[object]) -> None:
    if len(items) % 2 or not isinstance(target, dict):
        raise PickleError("a key stands without a value")
    for key, value in zip(items[::2], items[1::2], strict=True):
        if not (isinstance(key, str) or (type(key) is int and 0 <= key < 1 << 31)):
            raise PickleError(f"a key is a {type(key).__name__}, expected a name or a number")
        if key in target:
            raise PickleError(f"key {ascii(key)[:60]} stands twice")
        target[key] = value


def _name(text: str) -> Name:
    module, _, attribute = text.rpartition(".")
    if text in INERT or text in CALLS or (module == "torch" and attribute in STORAGES):
        return Name(text)
    raise PickleError(f"it asks for {ascii(text)[:80]}, which a checkpoint of tensors has no use for; nothing was run")


def _storage(pid: object) -> Storage:
    if not isinstance(pid, tuple) or len(pid) != 5 or pid[0] != "storage" or not isinstance(pid[1], Name):
        raise PickleError("a tensor's storage is not described as torch does")
    _, kind, key, _, numel = pid
    if (known := STORAGES.get(kind.text.removeprefix("torch."))) is None:
        raise PickleError(f"a storage is of type {ascii(kind.text)[:60]}")
    if not isinstance(key, str) or not _is_size(numel):
        raise PickleError("a storage has no proper key or size")
    return Storage(key, *known, numel)


def _call(function: object, args: object) -> object:
    if not isinstance(function, Name) or not isinstance(args, tuple):
        raise PickleError("it calls something that is no function")
    if (known := CALLS.get(function.text)) is not None:
        return known(*args)
    return function  # a device, a size: settings beside the weights


def _tensor(storage: object, offset: object, shape: object, stride: object, *_: object) -> TensorEntry:
    """A declared tensor. Refused: what reaches out of its storage, and views that show one value at two places."""
    if not isinstance(storage, Storage) or not _is_size(offset) or not _are_sizes(shape) or not _are_sizes(stride):
        raise PickleError("a tensor is not described as torch does")
    assert isinstance(offset, int) and isinstance(shape, tuple) and isinstance(stride, tuple)
    if len(shape) != len(stride) or len(shape) > 8:
        raise PickleError(f"a tensor has {len(shape)} sizes and {len(stride)} strides")
    dims = sorted((step, size) for step, size in zip(stride, shape, strict=True) if size != 1)
    reach = 1
    for step, size in dims:
        if size and step < reach:
            raise PickleError(
                f"a tensor of shape {list(shape)} has strides {list(stride)}: an expanded view that shows one stored "
                "value at several places, as `torch.save` of a clone would not write it"
            )
        reach += step * (size - 1)
    if math.prod(shape) and offset + reach > storage.numel:
        raise PickleError(
            f"a tensor of shape {list(shape)} needs {offset + reach:,} stored values and storage "
            f"{ascii(storage.key)[:20]} declares {storage.numel:,}"
        )
    return TensorEntry(storage, shape, stride, offset)


def _parameter(data: object, *_: object) -> object:
    if not isinstance(data, TensorEntry):
        raise PickleError("a parameter holds no tensor")
    return data


def _ordered_dict(*args: object) -> dict[object, object]:
    if args:  # never written so; and one long list could be copied again and again
        raise PickleError("an OrderedDict is made of a list")
    return {}


CALLS: Mapping[str, Callable[..., object]] = {
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_parameter": _parameter,
    "collections.OrderedDict": _ordered_dict,
}


def _is_size(value: object) -> bool:
    return type(value) is int and 0 <= value < 1 << 48


def _are_sizes(value: object) -> bool:
    return isinstance(value, tuple) and all(_is_size(v) for v in value)
