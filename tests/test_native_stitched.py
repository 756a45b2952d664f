"""Native files of stitched SAEs that are broken or hostile: as `test_native_hostile`, for what only they have."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hostile_bytes import extra_memory, fuzz, little_memory, one_error
from test_native_hostile import edit, join, split
from test_stitched import topk_and_jumprelu

from saebench_plugins import native

Header = dict[str, Any]


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return native.save(topk_and_jumprelu(), tmp_path_factory.mktemp("sound") / "x.safetensors").read_bytes()


def refused(tmp_path: Path, raw: bytes, *said: str) -> None:
    path = tmp_path / "hostile.safetensors"
    path.write_bytes(raw)
    one_error(native.load, path, *said)


def refused_by_peek(tmp_path: Path, raw: bytes, *said: str) -> None:
    refused(tmp_path, raw, *said)
    one_error(native.peek, tmp_path / "hostile.safetensors", *said)


def part(number: int, **changes: Any) -> Callable[[Header], None]:
    """Change fields of one part; the value `...` deletes."""

    def change(header: Header) -> None:
        parts = json.loads(header["__metadata__"]["parts"])
        kept = {key: value for key, value in (parts[number] | changes).items() if value is not ...}
        parts[number] = kept
        header["__metadata__"]["parts"] = json.dumps(parts)

    return change


def drop_last_part(header: Header) -> None:
    parts = json.loads(header["__metadata__"]["parts"])
    header["__metadata__"]["parts"] = json.dumps(parts[:-1])


# The sound file has a topk part (3 of 10 latents, k 3), a jumprelu part of 2 and a relu part of 4; d_in is 6.
LIES: list[tuple[Callable[[Header], None], str]] = [
    (edit("__metadata__/parts", ...), "__metadata__.parts: it is missing"),
    (edit("__metadata__/parts", []), "__metadata__.parts: it is []"),
    (edit("__metadata__/parts", "{}"), "expected a JSON list"),
    (edit("__metadata__/parts", "[]"), "their latents come to 0"),
    (edit("__metadata__/parts", "[NaN]"), "NaN is not JSON"),
    (edit("__metadata__/parts", "[" * 200_000), "__metadata__.parts: it is nested too deeply"),
    (edit("__metadata__/parts", '["topk"]'), "parts.0"),
    (edit("__metadata__/parts", "[" + "9" * 5000 + "]"), "__metadata__.parts: it is not valid JSON"),
    (edit("__metadata__/version", "1"), "unknown field 'parts'"),
    (edit("__metadata__/more", "1"), "unknown field 'more'"),
    (edit("info/activation", "jumprelu"), "info.activation: it is 'jumprelu'"),
    (edit("info/d_sae", 10), "their latents come to 9"),
    (edit("info/d_in", 7), "shape"),
    (drop_last_part, "their latents come to 5"),
    (part(0, activation="exec"), "parts.0.activation"),
    (part(0, activation="relu", k=None), "n is d_sae"),
    (part(0, k=None), "k goes with topk"),
    (part(0, k=11), "k goes with topk"),
    (part(0, k=0), "parts.0.k"),
    (part(0, k=True), "parts.0.k"),
    (part(0, k=3.0), "parts.0.k"),
    (part(0, k=...), "parts.0.k"),
    (part(0, n=11), "n is d_sae"),
    (part(0, n=2), "their latents come to 8"),
    (part(0, n=-3), "parts.0.n"),
    (part(0, n=10**4000), "parts.0.n"),
    (part(0, d_sae="10"), "parts.0.d_sae"),
    (part(0, d_sae=9), "part0.W_enc.shape"),
    (part(0, d_sae=10**15), "wider than"),
    (part(0, **{"\x1b[31m": 1}), "parts.0"),
    (part(1, k=1), "k goes with topk"),
    (part(1, d_sae=3), "n is d_sae"),
    (part(1, activation="relu"), "'part1.threshold': unknown tensor"),
    (part(2, activation="jumprelu"), "part2.threshold: this tensor is missing"),
    (edit("W_enc", {"dtype": "F32", "shape": [6, 9], "data_offsets": [0, 216]}), "'W_enc': unknown tensor"),
    (edit("part0.kept", ...), "part0.kept: this tensor is missing"),
    (edit("part0.kept/dtype", "F64"), "part0.kept.dtype"),
    (edit("part0.kept/dtype", "I32"), "part0.kept.dtype"),
    (edit("part0.kept/shape", [3, 1]), "part0.kept.shape"),
    (edit("part0.b_enc/dtype", "I64"), "part0.b_enc.dtype"),
    (edit("part0.W_enc/shape", [10, 6]), "part0.W_enc.shape"),
    (edit("part1.W_enc", ...), "part1.W_enc: this tensor is missing"),
    (edit("b_dec", ...), "b_dec: this tensor is missing"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "said"), LIES, ids=range(len(LIES)))
def test_a_lying_header_is_one_error_that_names_the_field(
    tmp_path: Path, sound: bytes, change: Callable[[Header], None], said: str
) -> None:
    header, data = split(sound)
    change(header)
    refused_by_peek(tmp_path, join(header, data), said)


@pytest.mark.parametrize(
    ("kept", "said"),
    [
        ([7, 2, 10], "part0.kept: it names latents that are not among the 10"),
        ([-1, 2, 3], "part0.kept: it names latents that are not among the 10"),
        ([7, 2**62, 3], "part0.kept: it names latents that are not among the 10"),
        ([7, 2, 7], "part0.kept: a latent stands twice"),
    ],
)
def test_latents_that_are_not_there_or_stand_twice_are_refused(
    tmp_path: Path, sound: bytes, kept: list[int], said: str
) -> None:
    header, data = split(sound)
    begin, end = header["part0.kept"]["data_offsets"]
    refused(tmp_path, join(header, data[:begin] + torch.tensor(kept).numpy().tobytes() + data[end:]), said)


@pytest.mark.parametrize("field", ["part0.W_enc", "part1.threshold", "part2.b_enc", "b_dec"])
def test_a_value_that_is_no_number_is_refused(tmp_path: Path, sound: bytes, field: str) -> None:
    header, data = split(sound)
    begin = header[field]["data_offsets"][0]
    raw = data[:begin] + torch.tensor([math.nan]).numpy().tobytes() + data[begin + 4 :]
    refused(tmp_path, join(header, raw), f"{field}: 1 of", "NaN or infinite")


def test_every_truncation_is_refused(tmp_path: Path, sound: bytes) -> None:
    for length in range(0, len(sound), 31):
        refused(tmp_path, sound[:length])
    refused_by_peek(tmp_path, sound + b"\x00", "something was appended")


def test_random_changes_give_an_error_or_a_sound_sae(tmp_path: Path, sound: bytes) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(sound)
    fuzz(native, path, path, seed=22)


def wide_file(d_in: int, d_sae: int, data: int | None = None) -> bytes:
    """A top-k part of which one latent is kept, every size fitting every other; `data` bytes instead of all."""
    info = topk_and_jumprelu().info.model_copy(update={"d_in": d_in, "d_sae": 1})
    parts = json.dumps([{"activation": "topk", "d_sae": d_sae, "n": 1, "k": 1}])
    metadata = {"format": "saebench-native", "version": "2", "parts": parts, "info": info.model_dump_json()}
    header: Header = {"__metadata__": metadata}
    end = 8
    header["part0.kept"] = {"dtype": "I64", "shape": [1], "data_offsets": [0, 8]}
    shapes = {"W_dec": [1, d_in], "b_dec": [d_in], "part0.W_enc": [d_in, d_sae], "part0.b_enc": [d_sae]}
    for name, shape in shapes.items():
        begin, end = end, end + 4 * math.prod(shape)
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [begin, end]}
    values = torch.ones((end - 8 if data is None else data) // 4).numpy().tobytes()
    return join(header, b"\x00" * 8 + values)


def test_a_part_of_eighty_gigabytes_declared_in_two_megabytes_costs_no_memory(tmp_path: Path) -> None:
    raw = wide_file(20_000, 1_000_000, data=2_000_000)
    with little_memory(3_000_000):
        refused_by_peek(tmp_path, raw, "data: 80,", "are there: the file is cut off")


def test_thousands_of_parts_in_one_header_are_one_short_error(tmp_path: Path, sound: bytes) -> None:
    header, data = split(sound)
    parts = [{"activation": "relu", "d_sae": 1, "n": 1, "k": None}] * 9_000
    edit("__metadata__/parts", json.dumps(parts))(header)
    edit("info/d_sae", 9_000)(header)
    with little_memory(40 << 20):
        refused_by_peek(tmp_path, join(header, data + b"\x00" * 9_000), "this tensor is missing")


def test_loading_takes_little_more_memory_than_the_file_has(tmp_path: Path) -> None:
    small, large = tmp_path / "small.safetensors", tmp_path / "large.safetensors"
    small.write_bytes(wide_file(4, 4))
    large.write_bytes(wide_file(1_000, 20_000))
    declared = large.stat().st_size
    assert 0.9 * declared < extra_memory("saebench_plugins.native", small, large) <= 1.2 * declared


def test_peeking_at_a_stitched_file_imports_no_torch(tmp_path: Path, sound: bytes) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(sound)
    script = (
        "import sys; from pathlib import Path; from saebench_plugins import native; "
        f"info = native.peek({str(path)!r}).info; assert native.claims(Path({str(path)!r})); "
        "print(info.architecture, info.d_sae, sorted({'torch', 'numpy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.split() == ["stitched", "9", "[]"]
