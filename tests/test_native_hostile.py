"""Native files that are broken, lying or hostile: each is one clear error, nothing runs, little memory is used."""

from __future__ import annotations

import json
import math
import os
import pickle
import random
import re
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hostile_bytes import Sabotage, fuzz, little_memory, one_error

from saebench_meta.errors import BadFileError
from saebench_meta.sae import SAE, SAEInfo, Site
from saebench_plugins import native
from saebench_plugins.native_header import MAX_HEADER

D_IN, D_SAE = 4, 6
WEIGHTS = ("W_enc", "b_enc", "W_dec", "b_dec", "threshold")
Header = dict[str, Any]


def jumprelu_sae() -> SAE:
    g = torch.Generator().manual_seed(3)
    info = SAEInfo(
        name="victim",
        site=Site(model="m", hook="blocks.1.hook_resid_pre"),
        d_in=D_IN,
        d_sae=D_SAE,
        activation="jumprelu",
    )
    shapes = ((D_IN, D_SAE), (D_SAE,), (D_SAE, D_IN), (D_IN,))
    W = [torch.randn(shape, generator=g) for shape in shapes]
    return SAE(W[0], W[1], W[2], W[3], info, torch.rand(D_SAE, generator=g))


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return native.save(jumprelu_sae(), tmp_path_factory.mktemp("sound") / "x.safetensors").read_bytes()


def split(raw: bytes) -> tuple[Header, bytes]:
    n = int.from_bytes(raw[:8], "little")
    return json.loads(raw[8 : 8 + n]), raw[8 + n :]


def join(header: Header | bytes, data: bytes) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def refused(tmp_path: Path, raw: bytes, *said: str) -> str:
    """Both ways in refuse the file with one error that names it; returns the message."""
    path = tmp_path / "hostile.safetensors"
    path.write_bytes(raw)
    return one_error(native.load, path, *said)


def refused_by_peek(tmp_path: Path, raw: bytes, *said: str) -> None:
    message = refused(tmp_path, raw, *said)
    with pytest.raises(BadFileError, match=re.escape(message)):
        native.peek(tmp_path / "hostile.safetensors")


# -- lying headers


def edit(path: str, value: Any) -> Callable[[Header], None]:
    """Set one field of the header; `info.x` is inside the JSON of SAEInfo; the value `...` deletes."""

    def change(header: Header) -> None:
        *parents, last = path.split("/")
        target = header
        if parents[:1] == ["info"] or path.startswith("info/"):
            inner = json.loads(header["__metadata__"]["info"])
            spot = inner
            for key in parents[1:]:
                spot = spot[key]
            _put(spot, last, value)
            header["__metadata__"]["info"] = json.dumps(inner)
            return
        for key in parents:
            target = target[key]
        _put(target, last, value)

    return change


def _put(target: Any, key: str, value: Any) -> None:
    if value is ...:
        del target[key]
    else:
        target[key] = value


LIES: list[tuple[str, Any, str]] = [
    ("W_enc", ..., "W_enc: this tensor is missing"),
    ("threshold", ..., "threshold: this tensor is missing"),
    ("scale", {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}, "'scale': unknown tensor"),
    ("W_enc", [1, 2], "W_enc: expected dtype"),
    ("W_enc", None, "W_enc: expected dtype"),
    ("W_enc/dtype", "F16", "W_enc.data_offsets"),
    ("W_enc/dtype", "F64", "W_enc.data_offsets"),
    ("W_enc/dtype", "BF16", "W_enc.data_offsets"),
    ("W_enc/dtype", "I32", "W_enc.dtype"),
    ("W_enc/dtype", "U8", "W_enc.dtype"),
    ("W_enc/dtype", "f32", "W_enc.dtype"),
    ("W_enc/dtype", None, "W_enc.dtype"),
    ("W_enc/dtype", ["F32"], "W_enc.dtype"),
    ("W_enc/dtype", ..., "W_enc: expected dtype"),
    ("W_enc/stride", [0, 0], "W_enc: expected dtype"),
    ("W_enc/shape", [D_SAE, D_IN], "W_enc.shape"),
    ("W_enc/shape", [D_IN * D_SAE], "W_enc.shape"),
    ("W_enc/shape", [D_IN, D_SAE, 1], "W_enc.shape"),
    ("W_enc/shape", [], "W_enc.shape"),
    ("W_enc/shape", [-D_IN, -D_SAE], "W_enc.shape"),
    ("W_enc/shape", [4.0, 6.0], "W_enc.shape"),
    ("W_enc/shape", [True, 6], "W_enc.shape"),
    ("W_enc/shape", "46", "W_enc.shape"),
    ("W_enc/shape", [10**11, 2], "W_enc.shape"),
    ("W_enc/shape", [10**4000, 2], "W_enc.shape"),
    ("W_enc/data_offsets", [0, 80 * 10**9], "W_enc.data_offsets"),
    ("W_enc/data_offsets", [96, 0], "W_enc.data_offsets"),
    ("W_enc/data_offsets", [-96, 0], "W_enc.data_offsets"),
    ("W_enc/data_offsets", [0], "W_enc.data_offsets"),
    ("W_enc/data_offsets", [0.0, 96.0], "W_enc.data_offsets"),
    ("W_enc/data_offsets", {"0": 0}, "W_enc.data_offsets"),
    ("W_enc/data_offsets", [10**4000, 10**4000 + 96], "data_offsets"),
    ("W_dec/data_offsets", [0, 96], "overlaps another tensor"),
    ("W_dec/data_offsets", [10**12, 10**12 + 96], "leaves a gap"),
    ("__metadata__", ..., "__metadata__.format: it is None"),
    ("__metadata__", "saebench-native", "__metadata__.format"),
    ("__metadata__", [], "__metadata__.format"),
    ("__metadata__/format", ..., "__metadata__.format"),
    ("__metadata__/format", "pt", "it is 'pt'"),
    ("__metadata__/format", "\x1b[31m\ud800" * 50, "__metadata__.format"),
    ("__metadata__/version", "3", "__metadata__.version: it is '3'"),
    ("__metadata__/version", "2", "__metadata__.parts: it is missing"),
    ("__metadata__/version", 1, "__metadata__.version"),
    ("__metadata__/version", ..., "__metadata__.version"),
    ("__metadata__/extra", "x", "unknown field 'extra'"),
    ("__metadata__/info", ..., "__metadata__.info"),
    ("__metadata__/info", {"d_in": 4}, "__metadata__.info"),
    ("__metadata__/info", "", "__metadata__.info: it is not valid JSON"),
    ("__metadata__/info", "[]", "__metadata__.info"),
    ("__metadata__/info", "{}", "info.name"),
    ("__metadata__/info", "[" * 200_000, "__metadata__.info: it is nested too deeply"),
    ("__metadata__/info", '{"d_in": NaN}', "NaN is not JSON"),
    ("__metadata__/info", '{"d_in": 4, "d_in": 5}', "'d_in' stands twice"),
    ("info/d_in", 5, "W_enc.shape"),
    ("info/d_sae", 7, "W_enc.shape"),
    ("info/d_in", 0, "info.d_in"),
    ("info/d_in", -4, "info.d_in"),
    ("info/d_in", "4", "info.d_in"),
    ("info/d_in", 4.0, "info.d_in"),
    ("info/d_in", True, "info.d_in"),
    ("info/d_in", 20_000_000_000, "wider than"),
    ("info/d_sae", 10**4000, "info.d_"),
    ("info/d_sae", ..., "info.d_sae"),
    ("info/site", ..., "info.site"),
    ("info/site/hook", "", "info.site.hook"),
    ("info/site/hook", 3, "info.site.hook"),
    ("info/name", "", "info.name"),
    ("info/name", None, "info.name"),
    ("info/width", 6, "info.width"),
    ("info/\x1b]0;owned\x07", 6, "info.\\x1b]0;owned\\x07"),
    ("info/name", "\ud800", "info"),
    ("info/activation", "relu", "'threshold': unknown tensor"),
    ("info/activation", "exec", "info.activation"),
    ("info/activation", "topk", "'topk' needs 'k'"),
    ("info/input_transform", "whiten", "info.input_transform"),
    ("info/prepend_bos", "yes", "info.prepend_bos"),
    ("info/context_size", 0, "info.context_size"),
    ("info/notes", "a sentence", "info.notes"),
    ("info/notes", [["nested"]], "info.notes"),
]


@pytest.mark.parametrize(("field", "value", "said"), LIES, ids=[f"{i}-{lie[0][:24]!a}" for i, lie in enumerate(LIES)])
def test_a_lying_header_is_one_error_that_names_the_field(
    tmp_path: Path, sound: bytes, field: str, value: Any, said: str
) -> None:
    header, data = split(sound)
    edit(field, value)(header)
    refused_by_peek(tmp_path, join(header, data), said)


def test_tensors_exchanged_in_place_are_refused_by_shape(tmp_path: Path, sound: bytes) -> None:
    header, data = split(sound)
    header["W_enc"], header["W_dec"] = header["W_dec"], header["W_enc"]
    refused_by_peek(tmp_path, join(header, data), "shape")


def test_a_key_that_stands_twice_is_refused(tmp_path: Path, sound: bytes) -> None:
    header, data = split(sound)
    text = json.dumps(header)
    doubled = text[:-1] + ', "W_enc": ' + json.dumps(header["W_enc"]) + "}"
    refused_by_peek(tmp_path, join(doubled.encode(), data), "'W_enc' stands twice")


def test_a_hundred_thousand_keys_twice_do_not_hang(tmp_path: Path) -> None:
    text = "{" + ",".join(f'"{i % 40_000:x}":0' for i in range(80_000)) + "}"
    refused_by_peek(tmp_path, join(text.encode(), b""), "stands twice")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (b"[]", "expected a JSON object"),
        (b"null", "expected a JSON object"),
        (b'"text"', "expected a JSON object"),
        (b"{}", "__metadata__.format"),
        (b"{} {}", "not valid JSON"),
        (b"\xff\xfe{}", "not valid JSON"),
        (b"\xef\xbb\xbf{}", "not valid JSON"),
        (b'{"a": "\xff"}', "not valid JSON"),
        (b'{"a": Infinity}', "not JSON"),
        (b'{"a": ' + b"9" * 5000 + b"}", "not valid JSON"),
        (b"[" * 500_000, "nested too deeply"),
        (b'{"a":' * 100_000, "nested too deeply"),
        (b'{"__metadata__":' + b"[" * 300 + b"]" * 300 + b"}", "__metadata__.format"),
        (b"\x00" * 64, "not valid JSON"),
    ],
    ids=range(14),
)
def test_a_header_that_is_no_json_object_of_ours_is_refused(tmp_path: Path, text: bytes, said: str) -> None:
    refused_by_peek(tmp_path, join(text, b"\x00" * 16), said)


# -- files that are something else


def test_every_truncation_is_refused(tmp_path: Path, sound: bytes) -> None:
    for length in range(0, len(sound), 7):
        refused(tmp_path, sound[:length])
    refused_by_peek(tmp_path, b"", "empty or cut off")
    refused_by_peek(tmp_path, sound[:-1], "the file is cut off")


def test_anything_appended_is_refused(tmp_path: Path, sound: bytes) -> None:
    refused_by_peek(tmp_path, sound + b"\x00", "something was appended")


@pytest.mark.parametrize("length", [0, 1, MAX_HEADER + 1, 10**8 + 1, 2**63, 2**64 - 1])
def test_an_impossible_header_length_is_refused(tmp_path: Path, sound: bytes, length: int) -> None:
    refused_by_peek(tmp_path, length.to_bytes(8, "little") + sound[8:], "header length")


def test_a_header_above_the_limit_is_refused_though_its_bytes_are_there(tmp_path: Path) -> None:
    text = b"{}" + b" " * MAX_HEADER
    refused_by_peek(tmp_path, join(text, b""), "header length", f"at most {MAX_HEADER:,}")


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_pickle_is_refused_and_never_run(tmp_path: Path, protocol: int) -> None:
    bait = tmp_path / "executed"
    refused_by_peek(tmp_path, pickle.dumps(Sabotage(bait), protocol=protocol) + b"\x00" * 64)
    assert not bait.exists()
    pickle.loads(pickle.dumps(Sabotage(bait), protocol=protocol))
    assert bait.exists()  # the bait works


@pytest.mark.parametrize("zipped", [True, False])
def test_a_torch_checkpoint_is_refused_and_never_run(tmp_path: Path, zipped: bool) -> None:
    bait = tmp_path / "executed"
    torch.save({"W_enc": Sabotage(bait)}, tmp_path / "ck.pt", _use_new_zipfile_serialization=zipped)
    refused_by_peek(tmp_path, (tmp_path / "ck.pt").read_bytes(), "never opened")
    assert not bait.exists()


def test_a_zip_archive_of_a_sound_file_is_refused(tmp_path: Path, sound: bytes) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as z:
        z.writestr("sae.safetensors", sound)
    refused_by_peek(tmp_path, (tmp_path / "a.zip").read_bytes(), "zip archive")


def test_a_pickle_in_place_of_the_data_is_only_numbers(tmp_path: Path, sound: bytes) -> None:
    header, data = split(sound)
    bait = tmp_path / "executed"
    blob = pickle.dumps(Sabotage(bait))
    path = tmp_path / "numbers.safetensors"
    path.write_bytes(join(header, (blob + data[len(blob) :])[: len(data)]))
    try:
        assert native.load(path).W_enc.isfinite().all()
    except BadFileError as e:
        assert "NaN" in str(e)
    assert not bait.exists()


# -- values


@pytest.mark.parametrize("field", ["W_enc", "b_enc", "W_dec", "b_dec", "threshold"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_value_that_is_no_number_is_refused(tmp_path: Path, sound: bytes, field: str, value: float) -> None:
    header, data = split(sound)
    begin = header[field]["data_offsets"][0]
    raw = torch.tensor([value]).numpy().tobytes()
    refused(
        tmp_path, join(header, data[:begin] + raw + data[begin + 4 :]), f"{field}: 1 of", "NaN or infinite as float32"
    )


@pytest.mark.parametrize("zero", [b"\x00\x00\x00\x00", b"\x00\x00\x00\x80"], ids=["zero", "minus zero"])
def test_a_decoder_row_of_zeros_is_refused(tmp_path: Path, sound: bytes, zero: bytes) -> None:
    header, data = split(sound)
    begin = header["W_dec"]["data_offsets"][0] + 2 * D_IN * 4
    raw = data[:begin] + zero * D_IN + data[begin + D_IN * 4 :]
    refused(tmp_path, join(header, raw), "W_dec: 1 decoder rows are all zero (the first is latent 2)")


def test_values_that_the_dtype_asked_for_cannot_hold_are_refused(tmp_path: Path) -> None:
    sae = jumprelu_sae()
    path = native.save(replace(sae, b_dec=torch.full((D_IN,), 1e6)), tmp_path / "big.safetensors")
    assert native.load(path).b_dec.tolist() == [1e6] * D_IN
    with pytest.raises(BadFileError, match="b_dec: 4 of 4 values are NaN or infinite as float16"):
        native.load(path, dtype=torch.float16)


# -- paths


@pytest.mark.parametrize("name", ["missing.safetensors", "missing/sae.safetensors", "nul\x00byte", "n" * 5000])
def test_a_path_that_cannot_be_opened_is_one_error(tmp_path: Path, name: str) -> None:
    for function in (native.load, native.peek):
        with pytest.raises(BadFileError, match="file: "):
            function(str(tmp_path / name))


def test_a_folder_without_the_file_says_which_file_it_lacks(tmp_path: Path) -> None:
    with pytest.raises(BadFileError, match=re.escape(f"'{tmp_path / 'sae.safetensors'}': file: there is no such file")):
        native.peek(str(tmp_path))


def test_links_in_a_circle_end_in_an_error(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to(tmp_path / "b")
    (tmp_path / "b").symlink_to(tmp_path / "a")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "sae.safetensors").symlink_to(tmp_path / "a")
    for name in ("a", "folder"):
        with pytest.raises(BadFileError, match="file: "):
            native.peek(str(tmp_path / name))
        assert not native.claims(tmp_path / name)


@pytest.mark.timeout(30)
def test_a_pipe_or_a_device_is_refused_without_waiting_for_it(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "sae.safetensors")
    os.mkfifo(tmp_path / "other.safetensors")
    for ref in (tmp_path, tmp_path / "sae.safetensors", tmp_path / "other.safetensors", Path("/dev/zero")):
        with pytest.raises(BadFileError, match="neither a file nor a folder"):
            native.peek(str(ref))
        assert not native.claims(ref)


def test_a_link_to_a_sound_file_is_followed(tmp_path: Path, sound: bytes) -> None:
    (tmp_path / "real").write_bytes(sound)
    (tmp_path / "link.safetensors").symlink_to(tmp_path / "real")
    assert native.load(tmp_path / "link.safetensors").info.name == "victim"


# -- memory, and everything at random


def consistent_lie(d_in: int, d_sae: int) -> bytes:
    """A header in which every size fits every other, and no data at all."""
    info = jumprelu_sae().info.model_copy(update={"d_in": d_in, "d_sae": d_sae, "activation": "relu"})
    header: Header = {"__metadata__": {"format": "saebench-native", "version": "1", "info": info.model_dump_json()}}
    end = 0
    for name, shape in {"W_enc": [d_in, d_sae], "b_enc": [d_sae], "W_dec": [d_sae, d_in], "b_dec": [d_in]}.items():
        begin, end = end, end + 4 * math.prod(shape)
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [begin, end]}
    return join(header, b"\x00" * 2_000_000)


def test_eighty_gigabytes_declared_in_two_megabytes_cost_no_memory(tmp_path: Path) -> None:
    raw = consistent_lie(10_000, 1_000_000)
    with little_memory(3_000_000):
        refused_by_peek(tmp_path, raw, "data: 80,", "are there: the file is cut off")


def test_random_changes_give_an_error_or_a_sound_sae(tmp_path: Path, sound: bytes) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(sound)
    fuzz(native, path, path, seed=20)


def test_a_flipped_bit_of_a_weight_changes_that_weight_or_is_refused(tmp_path: Path, sound: bytes) -> None:
    rng = random.Random(21)
    reference = torch.cat([getattr(jumprelu_sae(), name).flatten() for name in WEIGHTS])
    path = tmp_path / "x.safetensors"
    start = 8 + int.from_bytes(sound[:8], "little")
    for _ in range(200):
        raw = bytearray(sound)
        raw[rng.randrange(start, len(raw))] ^= 1 << rng.randrange(8)
        path.write_bytes(raw)
        try:
            sae = native.load(path)
        except BadFileError as e:
            assert "NaN or infinite" in str(e)
        else:
            found = torch.cat([getattr(sae, name).flatten() for name in WEIGHTS])
            assert int((found != reference).sum()) == 1 and found.isfinite().all()
