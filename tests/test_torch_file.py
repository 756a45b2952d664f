"""`.pt` files: the same tensors as torch reads, nothing unpickled, nothing reserved that is not there."""

from __future__ import annotations

import struct
import subprocess
import sys
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hostile_bytes import Sabotage, fuzz_count, little_memory, mutations, nothing_is_run, one_error

from saebench_meta.errors import BadFileError
from saebench_plugins.torch_file import load_tensor, open_torch_file, read_values
from saebench_plugins.torch_pickle import MAX_PICKLE, PickleError, TensorEntry, read_pickle
from saebench_plugins.untrusted import Reader

READER = Reader("test", "Do something about it.")


def save(path: Path, value: Any, **options: Any) -> Path:
    torch.save(value, path, **options)
    return path


def read(path: Path, dtype: torch.dtype = torch.float32, *, transpose: bool = False) -> dict[str, torch.Tensor]:
    with open_torch_file(path, READER) as file:
        assert isinstance(file.root, dict)
        return {
            name: load_tensor(file, name, entry, dtype, transpose=transpose and len(entry.shape) == 2)
            for name, entry in file.root.items()
            if isinstance(entry, TensorEntry)
        }


def refused(path: Path, *said: str) -> None:
    one_error(read, path, *said)


def sample() -> dict[str, torch.Tensor]:
    g = torch.Generator().manual_seed(0)
    return {"W": torch.randn(7, 5, generator=g), "b": torch.randn(5, generator=g), "one": torch.tensor(2.5)}


# -- what is read


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("kind", [dict, OrderedDict])
def test_tensors_are_those_torch_reads(tmp_path: Path, protocol: int, kind: type) -> None:
    path = save(tmp_path / "x.pt", kind(sample()), pickle_protocol=protocol)
    found, expected = read(path), torch.load(path, weights_only=False)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_the_state_dict_of_a_module_is_read(tmp_path: Path) -> None:
    module = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.BatchNorm1d(3))
    path = save(tmp_path / "x.pt", module.state_dict())
    found = read(path)
    assert all(torch.equal(found[name], value.float()) for name, value in module.state_dict().items())


def test_a_parameter_is_read_as_its_tensor(tmp_path: Path) -> None:
    path = save(tmp_path / "x.pt", {"p": torch.nn.Parameter(torch.arange(6.0).view(2, 3))})
    assert read(path)["p"].tolist() == [[0, 1, 2], [3, 4, 5]]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_other_dtypes_are_cast_on_the_way(tmp_path: Path, dtype: torch.dtype) -> None:
    tensors = {name: t.to(dtype) for name, t in sample().items()}
    found = read(save(tmp_path / "x.pt", tensors))
    assert all(torch.equal(found[name], t.float()) for name, t in tensors.items())


@pytest.mark.parametrize("transpose", [False, True])
@pytest.mark.parametrize("stored_transposed", [False, True])
@pytest.mark.parametrize("shape", [(7, 5), (1, 5), (5, 1), (1, 1), (1500, 1000)])
def test_a_matrix_comes_contiguous_whichever_way_it_lies(
    tmp_path: Path, shape: tuple[int, int], stored_transposed: bool, transpose: bool
) -> None:
    W = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    if stored_transposed:
        W = W.T.clone().T
    found = read(save(tmp_path / "x.pt", {"W": W}), transpose=transpose)["W"]
    assert torch.equal(found, W.T if transpose else W) and found.is_contiguous()


def test_a_block_inside_a_larger_storage_is_read_and_a_strided_view_is_refused(tmp_path: Path) -> None:
    base = torch.arange(40.0).view(8, 5)
    assert torch.equal(read(save(tmp_path / "a.pt", {"W": base[2:5]}))["W"], base[2:5])
    refused(save(tmp_path / "b.pt", {"W": base[:, 1:3]}), "W: ", "larger tensor", "clone")


@pytest.mark.parametrize(
    "dtype", ["int64", "int32", "int16", "uint8", "bool", "float32", "float64", "float16", "bfloat16"]
)
def test_small_values_are_read_without_torch(tmp_path: Path, dtype: str) -> None:
    values = torch.tensor([1, 0, 1, 1]).to(getattr(torch, dtype))
    path = save(tmp_path / "x.pt", {"k": values, "part": values[1:3]})
    with open_torch_file(path, READER) as file:
        assert isinstance(file.root, dict)
        assert read_values(file, "k", file.root["k"]) == [1, 0, 1, 1]
        assert read_values(file, "part", file.root["part"]) == [0, 1]


def test_a_negative_half_precision_setting_keeps_its_value(tmp_path: Path) -> None:
    path = save(tmp_path / "x.pt", {"t": torch.tensor(-1.5, dtype=torch.bfloat16)})
    with open_torch_file(path, READER) as file:
        assert isinstance(file.root, dict)
        assert read_values(file, "t", file.root["t"]) == [-1.5]


def test_looking_at_a_file_imports_no_torch(tmp_path: Path) -> None:
    path = save(tmp_path / "x.pt", sample())
    script = (
        "import sys; from pathlib import Path; from saebench_plugins.torch_file import open_torch_file, read_values; "
        "from saebench_plugins.untrusted import Reader; reader = Reader('t', 'a')\n"
        f"with open_torch_file(Path({str(path)!r}), reader) as f:\n"
        " print(f.root['W'].shape, read_values(f, 'one', f.root['one']), {'torch', 'numpy'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.split("\n")[0] == "(7, 5) [2.5] set()"


# -- sizes that lie


def test_an_expanded_tensor_of_eighty_gigabytes_is_refused_before_anything_is_copied(tmp_path: Path) -> None:
    path = save(tmp_path / "x.pt", {"W": torch.ones(1).expand(100_000, 200_000)})
    assert path.stat().st_size < 2000
    with little_memory(3_000_000):
        refused(path, "expanded view", "100000, 200000")


@pytest.mark.parametrize(
    ("shape", "stride"), [((4, 3), (1, 1)), ((2, 2), (0, 1)), ((3, 3), (2, 1)), ((2, 3, 4), (12, 0, 1)), ((3,), (0,))]
)
def test_views_that_show_a_value_twice_are_refused(tmp_path: Path, shape: tuple[int, ...], stride: Any) -> None:
    refused(save(tmp_path / "x.pt", {"W": torch.ones(100).as_strided(shape, stride)}), "expanded view")


def test_tensors_that_share_one_storage_cannot_multiply_it(tmp_path: Path) -> None:
    """Each is sound; a hundred of them would cost a hundred times the file."""
    base = torch.ones(5000)
    path = save(tmp_path / "x.pt", {f"t{i}": base.view(50, 100) for i in range(100)})
    from saebench_plugins.torch_file import check_declared

    with open_torch_file(path, READER) as file, pytest.raises(BadFileError, match="shared storage"):
        assert isinstance(file.root, dict)
        check_declared(file, file.root)


def rewrite(path: Path, change: Callable[[str, bytes], bytes | None], **options: Any) -> Path:
    """The archive with members changed, or left out where `change` gives None."""
    with zipfile.ZipFile(path) as old:
        members = [(i.filename, old.read(i)) for i in old.infolist()]
    with zipfile.ZipFile(path, "w", **options) as new:
        for name, data in members:
            if (changed := change(name, data)) is not None:
                new.writestr(name, changed)
    return path


def test_a_storage_smaller_than_declared_is_refused(tmp_path: Path) -> None:
    path = save(tmp_path / "x.pt", {"W": torch.ones(1000)})
    rewrite(path, lambda name, data: data[:100] if name.endswith("data/0") else data)
    refused(path, "W: ", "4,000 bytes", "holds 100")


def test_a_missing_storage_is_refused(tmp_path: Path) -> None:
    path = save(tmp_path / "x.pt", {"W": torch.ones(10)})
    refused(rewrite(path, lambda name, data: None if name.endswith("data/0") else data), "data/0", "missing")


def test_a_zip_bomb_is_refused(tmp_path: Path) -> None:
    path = save(tmp_path / "x.pt", {"W": torch.zeros(50_000_000)})
    rewrite(path, lambda name, data: data, compression=zipfile.ZIP_DEFLATED)
    assert path.stat().st_size < 1_000_000
    with little_memory(5_000_000):
        refused(path, "compressed")


def test_another_byte_order_is_refused(tmp_path: Path) -> None:
    path = save(tmp_path / "x.pt", sample())
    refused(rewrite(path, lambda name, data: b"big" if name.endswith("byteorder") else data), "byteorder")


def test_names_that_climb_out_of_the_folder_are_only_names(tmp_path: Path) -> None:
    path = save(tmp_path / "x.pt", sample())
    with zipfile.ZipFile(path) as old:
        members = [(i.filename.replace("x/", "../../x/", 1), old.read(i)) for i in old.infolist()]
    with zipfile.ZipFile(path, "w") as new:
        for name, data in members:
            new.writestr(name, data)
    before = sorted(tmp_path.rglob("*"))
    assert torch.equal(read(path)["W"], sample()["W"])
    assert sorted(tmp_path.rglob("*")) == before


def test_two_members_of_one_name_are_refused(tmp_path: Path) -> None:
    path = save(tmp_path / "x.pt", sample())
    with pytest.warns(UserWarning, match="Duplicate"), zipfile.ZipFile(path, "a") as z:
        z.writestr("x/data/0", b"\0" * 140)
    refused(path, "stands twice")


def test_a_huge_directory_is_refused_before_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "x.pt"
    path.write_bytes(
        b"PK\x03\x04" + b"\0" * 6_000_000 + b"PK\x05\x06" + struct.pack("<HHHHLLH", 0, 0, 9, 9, 5_999_999, 4, 0)
    )
    refused(path, "directory has 5,999,999 bytes")


def test_a_flipped_bit_of_a_weight_is_found_by_the_checksum(tmp_path: Path) -> None:
    path = save(tmp_path / "x.pt", {"W": torch.full((64,), 1.25)})
    raw = bytearray(path.read_bytes())
    raw[raw.index(struct.pack("<f", 1.25) * 8)] ^= 1
    path.write_bytes(raw)
    refused(path, "W: ", "CRC")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_value_that_is_no_number_is_refused(tmp_path: Path, value: float) -> None:
    refused(save(tmp_path / "x.pt", {"W": torch.tensor([1.0, value, 2.0])}), "W: 1 of 3 values are NaN or infinite")


def test_peak_memory_stays_below_twice_the_file_and_64_megabytes(tmp_path: Path) -> None:
    """Half-precision weights read as float32, turned: the result is twice the file, and nothing else is held."""
    path = save(tmp_path / "x.pt", {"W": torch.zeros(2000, 20_000, dtype=torch.float16)})
    script = (
        "import torch; from pathlib import Path; "
        "from saebench_plugins.untrusted import Reader; torch.zeros(10).isfinite()\n"
        "import saebench_plugins.torch_file as m\n"
        "def peak(): return int(open('/proc/self/status').read().split('VmHWM:')[1].split()[0]) * 1024\n"
        "before = peak()\n"
        f"with m.open_torch_file(Path({str(path)!r}), Reader('t', 'a')) as f:\n"
        " W = m.load_tensor(f, 'W', f.root['W'], torch.float32, transpose=True)\n"
        "print(peak() - before)"
    )
    if not Path("/proc/self/status").exists():
        pytest.skip("peak memory is read from /proc")
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60)
    assert int(done.stdout) < 2 * path.stat().st_size + 64e6


# -- code in the file


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("wrap", [lambda s: s, lambda s: {"W": s}, lambda s: [{"a": [s]}]])
def test_code_in_an_archive_is_refused_and_never_run(tmp_path: Path, wrap: Callable[[Any], Any], protocol: int) -> None:
    bait = tmp_path / "executed"
    path = save(tmp_path / "x.pt", wrap(Sabotage(bait)), pickle_protocol=protocol)
    refused(path, "posix.mkdir", "nothing was run")
    assert not bait.exists()
    torch.load(path, weights_only=False)
    assert bait.exists()  # the bait works


def test_an_old_style_checkpoint_is_refused_and_never_run(tmp_path: Path) -> None:
    bait = tmp_path / "executed"
    path = save(tmp_path / "x.pt", {"W": Sabotage(bait)}, _use_new_zipfile_serialization=False)
    refused(path, "bare pickle", "never opened")
    assert not bait.exists()


def test_a_whole_module_is_refused_by_the_name_of_its_class(tmp_path: Path) -> None:
    refused(save(tmp_path / "x.pt", torch.nn.Linear(2, 2)), "torch.nn.modules.linear.Linear")


@pytest.mark.parametrize(
    "program",
    [
        b"",
        b".",
        b"\x80\x02",
        b"\x80\x02}q\x00",
        b"\x80\x02u.",
        b"\x80\x02(]u.",
        b"\x80\x02]K\x01K\x02s.",
        b"\x80\x02}]K\x02s.",
        b"\x80\x02h\x07.",
        b"\x80\x02j\xff\xff\xff\x7f.",
        b"\x80\x02}r\xff\xff\xff\x7f0.",
        b"\x80\x02X\xff\xff\xff\x7fa.",
        b"\x80\x02K\x01K\x02\x86Q.",
        b"\x80\x02K\x01K\x01R.",
        b"\x80\x02ccollections\nOrderedDict\nK\x01\x85R.",
        b"\x80\x02ccollections\nOrderedDict\n]]a\x85R.",
        b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n)R.",
        b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n(K\x01K\x00))tR.",
        b"\x80\x02ctorch._utils\n_rebuild_parameter\nK\x01\x85R.",
        b"\x80\x02cos\nsystem\n.",
        b"\x80\x02\x8c\x02os\x8c\x06system\x93.",
        b"\x80\x02I" + b"9" * 5000 + b"\n.",
        b"\x82\x01.",
        b"(" * 400_000,
    ],
)
def test_a_broken_program_is_one_error(program: bytes) -> None:
    with pytest.raises(PickleError):
        read_pickle(program)


def test_a_list_that_holds_itself_a_billion_times_costs_nothing(tmp_path: Path) -> None:
    inner: list[Any] = []
    for _ in range(60):
        inner = [inner, inner]
    path = save(tmp_path / "x.pt", {"W": inner})
    with open_torch_file(path, READER) as file:
        assert isinstance(file.root, dict)


def test_a_pickle_above_the_limit_is_refused_though_its_bytes_are_there(tmp_path: Path) -> None:
    path = save(tmp_path / "x.pt", {"text": "x" * (MAX_PICKLE + 1)})
    refused(path, "data.pkl", "at most")


# -- everything at random


@pytest.mark.parametrize("raw", [b"", b"PK\x03\x04", b"\x80\x02.", b"hello", b"PK\x05\x06" + b"\0" * 18])
def test_a_file_that_is_no_archive_is_one_error(tmp_path: Path, raw: bytes) -> None:
    (tmp_path / "x.pt").write_bytes(raw)
    refused(tmp_path / "x.pt")


def test_damaged_files_give_an_error_or_sound_tensors(tmp_path: Path) -> None:
    """Half of them past the archive's checksums: what someone would write who means harm."""
    path = save(tmp_path / "x.pt", OrderedDict(sample()))
    counts = {"refused": 0, "accepted": 0}
    for raw, _ in zip(mutations(path.read_bytes(), seed=1), range(fuzz_count()), strict=False):
        path.write_bytes(raw)
        try:
            with nothing_is_run():
                found = tensors(path)
        except BadFileError as e:
            assert str(path) in str(e) and str(e).isprintable()
            counts["refused"] += 1
        else:
            assert all(t.isfinite().all() and t.numel() <= len(raw) for t in found)
            counts["accepted"] += 1
    assert counts["refused"] > fuzz_count() // 4 and counts["accepted"] > fuzz_count() // 50


def tensors(path: Path) -> list[torch.Tensor]:
    with open_torch_file(path, READER) as file:
        entries = file.root.values() if isinstance(file.root, dict) else ()
        flat = [entry for entry in entries if isinstance(entry, TensorEntry) and len(entry.shape) <= 2]
        return [load_tensor(file, "t", entry, torch.float32) for entry in flat]
