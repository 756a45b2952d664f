"""The native format: what is saved comes back, bit for bit, and the header is read without torch."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from saebench_meta.errors import SaebenchError
from saebench_meta.sae import SAE, SAEInfo, Site
from saebench_plugins import native

NAMES = ("W_enc", "b_enc", "W_dec", "b_dec", "threshold")


def make(d_in: int = 5, d_sae: int = 9, dtype: torch.dtype = torch.float32, **fields: Any) -> SAE:
    g = torch.Generator().manual_seed(0)
    known: dict[str, Any] = {
        "name": "straße",
        "site": Site(model="hf:some/model", hook="blocks.3.hook_resid_pre", revision="abc"),
        "d_in": d_in,
        "d_sae": d_sae,
        "context_size": 128,
        "folded": ("decoder norms",),
        "notes": ('a "quoted" note', "日本"),
    }
    info = SAEInfo(**(known | fields))
    shapes = ((d_in, d_sae), (d_sae,), (d_sae, d_in), (d_in,))
    W: Any = [torch.randn(shape, generator=g).to(dtype) for shape in shapes]
    threshold = torch.rand(d_sae, generator=g).to(dtype) if info.activation == "jumprelu" else None
    return SAE(W[0], W[1], W[2], W[3], info, threshold)


def assert_same(a: SAE, b: SAE) -> None:
    assert a.info == b.info
    for name in NAMES:
        one, other = getattr(a, name), getattr(b, name)
        assert (one is None and other is None) or torch.equal(one, other)


@pytest.mark.parametrize(
    "fields", [{}, {"activation": "jumprelu"}, {"activation": "topk", "k": 4, "prepend_bos": False}]
)
def test_float32_comes_back_bit_for_bit(tmp_path: Path, fields: dict[str, Any]) -> None:
    sae = make(**fields)
    loaded = native.load(str(native.save(sae, tmp_path / "one.safetensors")), device="cpu", dtype=torch.float32)
    assert_same(loaded, sae)
    assert loaded.content_hash() == sae.content_hash()


def test_one_latent_whose_encoder_is_a_transposed_row_comes_back(tmp_path: Path) -> None:
    one = make(d_sae=1)
    tied = replace(one, W_enc=one.W_dec.T)
    assert_same(native.load(native.save(tied, tmp_path / "one.safetensors")), tied)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_dtypes_come_back_exactly_and_as_float32_unless_asked(tmp_path: Path, dtype: torch.dtype) -> None:
    sae = make(dtype=dtype, activation="jumprelu")
    path = native.save(sae, tmp_path / "one.safetensors")
    assert_same(native.load(path, dtype=dtype), sae)
    assert_same(native.load(path), sae.to(dtype=torch.float32))


def test_tensors_of_different_dtypes_in_one_file_come_back(tmp_path: Path) -> None:
    sae = make(d_in=3, d_sae=5)
    mixed = replace(sae, W_enc=sae.W_enc.bfloat16(), b_enc=sae.b_enc.double(), b_dec=sae.b_dec.half())
    assert_same(native.load(native.save(mixed, tmp_path / "m.safetensors")), mixed.to(dtype=torch.float32))


def test_the_safetensors_library_reads_the_same_file(tmp_path: Path) -> None:
    sae = make(activation="jumprelu", dtype=torch.bfloat16)
    path = native.save(sae, tmp_path / "one.safetensors")
    tensors = safetensors.torch.load_file(path)
    assert set(tensors) == set(NAMES)
    assert all(torch.equal(tensors[name], getattr(sae, name)) for name in NAMES)
    with safetensors.safe_open(path, framework="pt") as f:
        assert SAEInfo.model_validate_json(f.metadata()["info"]) == sae.info


def test_a_file_written_by_the_safetensors_library_is_read(tmp_path: Path) -> None:
    sae = make()
    tensors = {name: getattr(sae, name) for name in NAMES[:4]}
    metadata = {"format": "saebench-native", "version": "1", "info": sae.info.model_dump_json()}
    safetensors.torch.save_file(tensors, tmp_path / "lib.safetensors", metadata=metadata)
    assert_same(native.load(tmp_path / "lib.safetensors"), sae)


def test_a_folder_and_its_file_are_the_same_reference(tmp_path: Path) -> None:
    written = native.save(make(), tmp_path / "made" / "for it")
    assert written == tmp_path / "made" / "for it" / "sae.safetensors"
    assert_same(native.load(str(written.parent)), native.load(str(written)))
    assert native.peek(str(written.parent)).files == {"weights": written} == native.peek(str(written)).files


def test_the_same_sae_always_gives_the_same_bytes(tmp_path: Path) -> None:
    first = native.save(make(), tmp_path / "a.safetensors").read_bytes()
    again = native.save(native.load(tmp_path / "a.safetensors"), tmp_path / "b.safetensors").read_bytes()
    assert first == again


def test_views_and_tensors_with_gradients_are_saved_by_value(tmp_path: Path) -> None:
    sae = make(4, 6)
    odd = replace(sae, W_enc=sae.W_dec.T, W_dec=sae.W_dec.clone().requires_grad_())
    loaded = native.load(native.save(odd, tmp_path / "v.safetensors"))
    assert torch.equal(loaded.W_enc, sae.W_dec.T) and torch.equal(loaded.W_dec, sae.W_dec)
    assert not loaded.W_dec.requires_grad


def test_saving_replaces_a_file_as_a_whole_and_leaves_nothing_else(tmp_path: Path) -> None:
    native.save(make(4, 8), tmp_path / "x.safetensors")
    native.save(make(5, 9), tmp_path / "x.safetensors")
    assert native.load(tmp_path / "x.safetensors").info.d_sae == 9
    assert [p.name for p in tmp_path.iterdir()] == ["x.safetensors"]


def test_a_refused_save_leaves_the_old_file_as_it_was(tmp_path: Path) -> None:
    path = native.save(make(), tmp_path / "x.safetensors")
    before = path.read_bytes()
    with pytest.raises(SaebenchError):
        native.save(replace(make(), W_dec=torch.zeros(9, 5)), path)
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"encoder": torch.relu}, "encoder of its own"),
        ({"W_dec": torch.zeros(9, 5)}, "W_dec: 9 decoder rows are all zero"),
        ({"b_dec": torch.tensor([0, 0, float("nan"), 0, float("inf")])}, "b_dec: 2 of 5 values are NaN or infinite"),
        ({"b_enc": torch.zeros(9, dtype=torch.int64)}, "b_enc is torch.int64"),
        ({"info": make(notes=("x" * 2_000_000,)).info}, "shorten them"),
    ],
)
def test_what_load_would_refuse_is_not_saved(tmp_path: Path, changes: dict[str, Any], problem: str) -> None:
    with pytest.raises(SaebenchError, match=problem):
        native.save(replace(make(), **changes), tmp_path / "x.safetensors")
    assert not list(tmp_path.iterdir())


def test_a_place_that_cannot_be_written_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(SaebenchError, match="cannot be written"):
        native.save(make(), tmp_path / "file" / "x.safetensors")


def test_findings_of_inspection_are_no_errors_of_the_file(tmp_path: Path) -> None:
    sae = make(activation="jumprelu")
    assert sae.threshold is not None
    odd = replace(sae, W_enc=torch.zeros(5, 9), W_dec=sae.W_dec * 7, threshold=-sae.threshold)
    assert_same(native.load(native.save(odd, tmp_path / "odd.safetensors")), odd)


def test_peek_reads_the_info_of_a_file_whose_values_are_broken(tmp_path: Path) -> None:
    path = native.save(make(), tmp_path / "x.safetensors")
    path.write_bytes(path.read_bytes()[:-4] + b"\x00\x00\xc0\x7f")  # the last value becomes a NaN
    assert native.peek(path).info == make().info


def test_peek_claims_and_the_hook_import_no_torch(tmp_path: Path) -> None:
    path = native.save(make(), tmp_path / "x.safetensors")
    script = (
        "import json, sys; from pathlib import Path; from saebench_plugins import native; "
        f"loader = native.saebench_loaders()['native']; path = {str(path)!r}; "
        "header = loader.peek(path); claimed = loader.claims(Path(path)); "
        "heavy = sorted({'torch', 'numpy', 'safetensors', 'transformers'} & set(sys.modules)); "
        "print(json.dumps([header.info.d_sae, claimed, heavy]))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60)
    assert json.loads(done.stdout) == [9, True, []]


def test_claims_knows_its_files_whatever_their_name(tmp_path: Path) -> None:
    native.save(make(), tmp_path / "folder")
    mine = native.save(make(), tmp_path / "mine.safetensors")
    safetensors.torch.save_file({"a": torch.ones(2)}, tmp_path / "other.safetensors", metadata={"format": "pt"})
    (tmp_path / "empty").mkdir()
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(mine.read_bytes()[:300])
    claimed = {p.name for p in tmp_path.iterdir() if native.claims(p)}
    assert claimed == {"folder", "mine.safetensors", "cut.safetensors"}
    assert not native.claims(tmp_path / "missing")


def test_the_plugin_offers_one_loader_by_the_documented_hook() -> None:
    assert native.saebench_api == 1
    (scheme, loader), *others = native.saebench_loaders().items()
    assert (scheme, loader.version, others) == ("native", 1, [])
    assert loader.summary
