"""Every format against every kind of hostile file: one clear error, nothing run or written, nothing reserved.

What only one format can get wrong is in that format's tests; random damage is in all of them, by `hostile_bytes.fuzz`.
"""

from __future__ import annotations

import json
import os
import pickle
import shutil
import struct
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from format_samples import FORMATS, D, F, Tensors, packed, saved, tensors, write
from hostile_bytes import (
    MEMORY,
    Sabotage,
    extra_memory,
    little_memory,
    members,
    nothing_is_run,
    one_error,
    outcome,
    zipped,
)
from torch import Tensor

every_format = pytest.mark.parametrize("scheme", FORMATS)


# -- kinds of hostile weights: from the sound file's bytes and tensors to bytes

Make = Callable[[str, bytes, Tensors, Path], bytes]


def retold(raw: bytes, change: Callable[[str, dict[str, Any]], tuple[str, dict[str, Any]]]) -> bytes:
    """A safetensors file whose header tells something else of each tensor."""
    length = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + length])
    told = dict([item if item[0] == "__metadata__" else change(*item) for item in header.items()])
    text = json.dumps(told).encode()
    return len(text).to_bytes(8, "little") + text + raw[8 + length :]


def eighty_gigabytes(name: str, entry: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    shape = [entry["shape"][0] * 10**9, *entry["shape"][1:]]
    return name, entry | {"shape": shape, "data_offsets": [n * 10**9 for n in entry["data_offsets"]]}


def without_last(t: Tensors) -> Tensors:
    return dict(list(t.items())[:-1])


def lying_directory(raw: bytes) -> bytes:
    """An archive whose directory gives one of its tensors 3 GB that are not there."""
    victim = next(name for name in members(raw) if name.endswith(("/data/0", "w_enc.npy")))
    place = raw.rfind(victim.encode()) - 46
    assert raw[place : place + 4] == b"PK\x01\x02"
    return raw[: place + 20] + struct.pack("<LL", 3_200_000_000, 3_200_000_000) + raw[place + 28 :]


def bomb(raw: bytes) -> bytes:
    """Every member 16 MB longer than it should be, and compressed a thousand times."""
    return zipped({name: data + bytes(1 << 24) for name, data in members(raw).items()}, zipfile.ZIP_DEFLATED)


def huge_shape(npy: bytes) -> bytes:
    """An array whose header, as long as before, tells of 80 GB where it is the encoder's."""
    return npy.replace(b"(6, 10), }" + b" " * 9, b"(10000000000, 2), }")


def first(t: Tensors, change: Callable[[Tensor], Any]) -> Tensors:
    """The tensors with the first matrix changed."""
    name = next(name for name, value in t.items() if value.ndim == 2)
    return t | {name: change(t[name])}


ANY: dict[str, Make] = {
    "empty": lambda s, raw, t, bait: b"",
    "cut off": lambda s, raw, t, bait: raw[:-1],
    "cut in half": lambda s, raw, t, bait: raw[: len(raw) // 2],
    "bare pickle": lambda s, raw, t, bait: pickle.dumps(Sabotage(bait)),
    "old checkpoint": lambda s, raw, t, bait: saved({"W": Sabotage(bait)}, _use_new_zipfile_serialization=False),
    "text": lambda s, raw, t, bait: b"version https://git-lfs.github.com/spec/v1\nsize 7\n",
}
WEIGHTS: dict[str, Make] = {
    "shape": lambda s, raw, t, bait: packed(s, first(t, lambda W: W.T.contiguous())),
    "flat": lambda s, raw, t, bait: packed(s, first(t, lambda W: W.flatten())),
    "dtype": lambda s, raw, t, bait: packed(s, first(t, lambda W: W.to(torch.int32))),
    "missing key": lambda s, raw, t, bait: packed(s, without_last(t)),
    "unknown key": lambda s, raw, t, bait: packed(s, t | {"surplus": torch.ones(2)}),
    "climbing key": lambda s, raw, t, bait: packed(s, without_last(t) | {"../../" + list(t)[-1]: list(t.values())[-1]}),
    "NaN": lambda s, raw, t, bait: packed(s, first(t, lambda W: W * float("nan"))),
}
SAFETENSORS: dict[str, Make] = {
    "huge header": lambda s, raw, t, bait: (2**63).to_bytes(8, "little") + raw[8:],
    "lying sizes": lambda s, raw, t, bait: retold(raw, eighty_gigabytes),
    "stride-0": lambda s, raw, t, bait: retold(raw, lambda n, e: (n, e | {"stride": [0, 0]})),
    "shape": lambda s, raw, t, bait: retold(raw, lambda n, e: (n, e | {"shape": e["shape"][::-1]})),
    "flat": lambda s, raw, t, bait: retold(raw, lambda n, e: (n, e | {"shape": [int(np.prod(e["shape"]))]})),
    "dtype": lambda s, raw, t, bait: retold(raw, lambda n, e: (n, e | {"dtype": "I32"})),
    "key": lambda s, raw, t, bait: retold(raw, lambda n, e: ("surplus" if n in ("b_dec", "decoder.bias") else n, e)),
    "climbing key": lambda s, raw, t, bait: retold(raw, lambda n, e: ("../../" + n, e)),
    "zip bomb": lambda s, raw, t, bait: zipped({"../x": raw + bytes(1 << 24)}, zipfile.ZIP_DEFLATED),
}
ARCHIVE: dict[str, Make] = {
    "lying sizes": lambda s, raw, t, bait: lying_directory(raw),
    "zip bomb": lambda s, raw, t, bait: bomb(raw),
}
PT: dict[str, Make] = {
    "stride-0": lambda s, raw, t, bait: packed(s, first(t, lambda W: W[:1, :1].clone().expand(W.shape))),
    "huge stride-0": lambda s, raw, t, bait: packed(s, first(t, lambda W: torch.ones(1).expand(10**5, 10**6))),
    "storage cut": lambda s, raw, t, bait: zipped(
        {name: data[:8] if "/data/" in name else data for name, data in members(raw).items()}
    ),
    "code": lambda s, raw, t, bait: packed(s, t | {next(iter(t)): Sabotage(bait)}),
    "code as the whole": lambda s, raw, t, bait: saved(Sabotage(bait)),
}
NPZ: dict[str, Make] = {
    "huge shape": lambda s, raw, t, bait: zipped({name: huge_shape(data) for name, data in members(raw).items()}),
    "code": lambda s, raw, t, bait: packed(s, t | {"b_dec": np.array([Sabotage(bait)] * D, dtype=object)}),
    "climbing member": lambda s, raw, t, bait: zipped({"../" + name: data for name, data in members(raw).items()}),
}
KINDS: dict[str, dict[str, Make]] = {
    "safetensors": ANY | WEIGHTS | SAFETENSORS,
    "pt": ANY | WEIGHTS | ARCHIVE | PT,
    "npz": ANY | WEIGHTS | ARCHIVE | NPZ,
}
CASES = [
    (scheme, kind)
    for scheme, form in FORMATS.items()
    for kind in KINDS[form.container]
    if scheme != "native" or kind not in WEIGHTS.keys() - SAFETENSORS.keys()  # which would lack its metadata besides
]


@pytest.mark.parametrize(("scheme", "kind"), CASES)
def test_hostile_weights_are_one_clear_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scheme: str, kind: str
) -> None:
    form, bait = FORMATS[scheme], tmp_path / "executed"
    ref = write(tmp_path / "x", scheme)
    assert outcome(form.loader, ref) == "loaded"
    path = tmp_path / "x" / form.weights
    path.write_bytes(KINDS[form.container][kind](scheme, path.read_bytes(), tensors(scheme), bait))
    before, empty = sorted(tmp_path.rglob("*")), torch.empty
    monkeypatch.setattr(torch, "empty", lambda *sizes, **options: empty(*few(sizes), **options))
    with nothing_is_run(), little_memory():
        one_error(form.loader.load, ref, form.weights)
    assert outcome(form.loader, ref) == "refused"  # peek, too, gives an error or none
    assert sorted(tmp_path.rglob("*")) == before and not bait.exists()


@pytest.mark.parametrize("scheme", [scheme for scheme in FORMATS if scheme != "native"])
def test_sizes_that_all_agree_reserve_nothing_where_the_bytes_are_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scheme: str
) -> None:
    """Configuration, names, shapes and offsets fit each other; only the values are not there."""
    form = FORMATS[scheme]
    ref, path = write(tmp_path / "x", scheme, f=100_000), tmp_path / "x" / form.weights
    raw = path.read_bytes()
    if form.container == "safetensors":
        path.write_bytes(raw[: 64 + int.from_bytes(raw[:8], "little")])
    else:
        cut = {
            name: data[:128] if name.endswith(".npy") or "/data/" in name else data
            for name, data in members(raw).items()
        }
        path.write_bytes(zipped(cut))
    empty = torch.empty
    monkeypatch.setattr(torch, "empty", lambda *sizes, **options: empty(*few(sizes), **options))
    with little_memory():
        one_error(form.loader.load, ref, form.weights)


def few(sizes: tuple[Any, ...]) -> tuple[Any, ...]:
    """Sizes of a tensor, if it is no larger than those of the sound file; what is only reserved is not measured."""
    shape = sizes[0] if isinstance(sizes[0], Iterable) else sizes
    assert np.prod([float(n) for n in shape]) <= D * F
    return sizes


@pytest.mark.parametrize("scheme", [s for s, form in FORMATS.items() if form.container == "pt"])
def test_members_whose_names_climb_are_read_and_never_written(tmp_path: Path, scheme: str) -> None:
    form = FORMATS[scheme]
    ref, path = write(tmp_path / "x", scheme), tmp_path / "x" / form.weights
    path.write_bytes(zipped({"../../" + name: data for name, data in members(path.read_bytes()).items()}))
    before = sorted(tmp_path.rglob("*"))
    assert outcome(form.loader, ref) == "loaded" and sorted(tmp_path.rglob("*")) == before


def test_the_bait_works(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="executed"), nothing_is_run():
        pickle.loads(pickle.dumps(Sabotage(tmp_path / "executed")))
    assert (tmp_path / "executed").is_dir()


# -- configurations

CONFIGS: dict[str, bytes] = {
    "empty": b"",
    "cut off": b'{"d_in": 6, ',
    "no object": b"[]",
    "no text": b"\xff\xfe\x00",
    "a pickle": pickle.dumps({"a": 1}),
    "deep": b'{"a":' * 100_000,
    "huge number": b'{"d_in": ' + b"9" * 5000 + b"}",
    "a key twice": b'{"d_in": 6, "d_in": 7}',
    "too long": b" " * (1 << 21) + b"{}",
    "wrong kinds": json.dumps(
        {key: [1] for key in ("d_in", "d_model", "trainer", "sae_type", "k", "architecture", "hook_point_in")}
    ).encode(),
}


@pytest.mark.parametrize("kind", CONFIGS)
@pytest.mark.parametrize("scheme", [scheme for scheme, form in FORMATS.items() if form.config])
def test_a_hostile_configuration_is_one_clear_error(tmp_path: Path, scheme: str, kind: str) -> None:
    form, ref = FORMATS[scheme], write(tmp_path / "x", scheme)
    (tmp_path / "x" / str(form.config)).write_bytes(CONFIGS[kind])
    for function in (form.loader.load, form.loader.peek):
        one_error(function, ref, str(form.config))


# -- what is no file


@pytest.mark.timeout(60)
@pytest.mark.parametrize("what", ["nothing", "pipe", "device", "loop", "folder"])
@every_format
def test_what_is_no_regular_file_is_refused_without_waiting(tmp_path: Path, scheme: str, what: str) -> None:
    form, folder = FORMATS[scheme], tmp_path / "x"
    ref = write(folder, scheme)
    for name in filter(None, (form.config, form.weights)):
        path = folder / name
        path.unlink()
        match what:
            case "pipe":
                os.mkfifo(path)
            case "device":
                path.symlink_to("/dev/zero")
            case "loop":
                path.symlink_to(path)
            case "folder":
                path.mkdir()
        one_error(form.loader.load, ref)
        assert not form.loader.claims(ref) or (scheme == "gemma-scope" and what == "nothing")
        shutil.rmtree(folder)
        write(folder, scheme)


# -- memory


@every_format
def test_loading_takes_at_most_twice_what_is_declared(tmp_path: Path, scheme: str) -> None:
    """In half precision, since read as float32 it is twice what is declared by itself: nothing else may be held."""
    half = torch.float16 if scheme == "gemma-scope" else torch.bfloat16  # numpy has no bfloat16
    small, large = write(tmp_path / "small", scheme), write(tmp_path / "large", scheme, d=512, f=40_000, dtype=half)
    declared = sum(t.nbytes for t in tensors(scheme, 512, 40_000, half).values())
    used = extra_memory(FORMATS[scheme].loader.__name__, small, large)
    assert 1.9 * declared < used <= 2 * declared + MEMORY
