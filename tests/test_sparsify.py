"""sparsify's SAEs: codes and reconstructions by its formula, hooks from folders' names, refusals, hostile files."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from hostile_bytes import fuzz

from saebench_meta.errors import BadFileError
from saebench_meta.plugins import Registry
from saebench_plugins import sparsify

D, F, K = 6, 12, 3
CONFIG: dict[str, Any] = {
    "activation": "topk",
    "expansion_factor": 2,
    "normalize_decoder": True,
    "num_latents": 0,
    "k": K,
    "multi_topk": False,
    "skip_connection": False,
    "transcode": False,
    "d_in": D,
}


def state_of(**changes: torch.Tensor) -> dict[str, torch.Tensor]:
    g = torch.Generator().manual_seed(2)
    shapes = {"encoder.weight": (F, D), "encoder.bias": (F,), "W_dec": (F, D), "b_dec": (D,)}
    return {name: torch.randn(shape, generator=g) for name, shape in shapes.items()} | changes


def write(
    folder: Path, *, state: dict[str, torch.Tensor] | None = None, run: dict[str, Any] | None = None, **changes: Any
) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    safetensors.torch.save_file(state_of() if state is None else state, folder / "sae.safetensors")
    (folder / "cfg.json").write_text(json.dumps({k: v for k, v in (CONFIG | changes).items() if v is not ...}))
    if run is not None:
        (folder.parent / "config.json").write_text(json.dumps(run))
    return folder


def sample(n: int = 200) -> torch.Tensor:
    return torch.randn(n, D, generator=torch.Generator().manual_seed(5)) * 3 + 1


@pytest.mark.parametrize("latents", [{}, {"num_latents": F, "expansion_factor": 99}, {"num_latents": ...}])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_codes_and_reconstructions_are_those_of_the_library(
    tmp_path: Path, latents: dict[str, Any], dtype: torch.dtype
) -> None:
    state = {name: t.to(dtype) for name, t in state_of().items()}
    sae = sparsify.load(write(tmp_path / "layers.3", state=state, **latents))
    s, x = {name: t.double() for name, t in state.items()}, sample()
    pre = torch.relu((x.double() - s["b_dec"]) @ s["encoder.weight"].T + s["encoder.bias"])
    f = pre * (pre >= pre.sort(dim=1, descending=True).values[:, K - 1 : K])
    torch.testing.assert_close(sae.encode(x), f.float(), atol=1e-5, rtol=1e-5)
    x_hat = (f @ s["W_dec"] + s["b_dec"]).float()
    torch.testing.assert_close(sae.reconstruct(x), x_hat, atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("place", "hook"),
    [
        ("layers.3", "blocks.3.hook_resid_post"),
        ("layers.3.mlp", "blocks.3.hook_mlp_out"),
        ("h.11.attn", "blocks.11.hook_attn_out"),
        ("layers.0.self_attn", "blocks.0.hook_attn_out"),
        ("embed_in", "hook_embed"),
        ("my sae", "unknown"),
    ],
)
def test_the_folder_says_the_hook(tmp_path: Path, place: str, hook: str) -> None:
    info = sparsify.peek(write(tmp_path / place)).info
    assert info.site.hook == hook
    assert any("pass --hook" in note for note in info.notes) == (hook == "unknown")


def test_folders_of_several_seeds_take_the_place_from_the_folder_above(tmp_path: Path) -> None:
    run = {"hookpoints": ["layers.3"], "model": "m"}
    folder = write(tmp_path / "layers.3" / "seed1")
    (tmp_path / "config.json").write_text(json.dumps(run))
    info = sparsify.peek(folder).info
    assert (info.site.hook, info.site.model, info.name) == ("blocks.3.hook_resid_post", "m", "layers.3")


def test_the_run_above_names_model_data_and_context(tmp_path: Path) -> None:
    run = {"hookpoints": ["h.3"], "model": "EleutherAI/pythia-160m", "dataset": "x/y", "ctx_len": 2048, "revision": "r"}
    info = sparsify.peek(write(tmp_path / "h.3", run=run)).info
    assert (info.site.model, info.site.revision) == ("EleutherAI/pythia-160m", "r")
    assert (info.dataset, info.context_size) == ("x/y", 2048)


def test_another_programs_config_above_says_nothing(tmp_path: Path) -> None:
    info = sparsify.peek(write(tmp_path / "h.3", run={"model": {"type": "gpt2"}})).info
    assert info.site.model == "unknown" and any("pass --model" in note for note in info.notes)


def test_peek_and_load_tell_the_same(tmp_path: Path) -> None:
    header = sparsify.peek(write(tmp_path / "layers.3"))
    assert header.info == sparsify.load(tmp_path / "layers.3").info
    assert set(header.files) == {"weights", "config"}
    assert (header.info.d_in, header.info.d_sae, header.info.k, header.info.activation) == (D, F, K, "topk")


def test_claims_takes_its_own_and_not_a_native_sae(tmp_path: Path) -> None:
    folder = write(tmp_path / "layers.3")
    assert sparsify.claims(folder) and sparsify.claims(folder / "sae.safetensors")
    assert not sparsify.claims(folder / "cfg.json") and not sparsify.claims(tmp_path)
    (folder / "sae.safetensors").write_bytes(b"\x20" + b"\0" * 7 + b'{"format":"saebench-native"}')
    assert not sparsify.claims(folder) and not sparsify.claims(Path("a\0b"))


def test_peek_and_claims_import_no_torch(tmp_path: Path) -> None:
    folder = write(tmp_path / "layers.3")
    script = (
        "import sys; from pathlib import Path; from saebench_plugins import sparsify as m; "
        f"p = Path({str(folder)!r}); print(m.claims(p), m.peek(p).info.k, {{'torch', 'numpy'}} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "True 3 set()"


def test_the_plugin_registers_one_loader() -> None:
    registry = Registry()
    registry.register(sparsify)
    assert "sparsify" in registry.loaders


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"transcode": True}, "transcode: it is true: a transcoder"),
        ({"skip_connection": True}, "skip_connection: it is true"),
        ({"activation": "groupmax"}, "groupmax"),
        ({"activation": "relu"}, "expected topk"),
        ({"d_in": ...}, "d_in: it is missing"),
        ({"d_in": D + 1}, "shape"),
        ({"num_latents": F + 1}, "shape"),
        ({"num_latents": -1}, "num_latents"),
        ({"num_latents": "12"}, "num_latents"),
        ({"expansion_factor": 3}, "shape"),
        ({"k": F + 1}, "k: it is 13, more than the 12 latents"),
        ({"k": 0}, "k: it is 0"),
        ({"transcode": "no"}, "transcode"),
    ],
)
def test_a_config_that_does_not_fit_is_one_error(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    folder = write(tmp_path / "layers.3", **changes)
    for function in (sparsify.peek, sparsify.load):
        with pytest.raises(BadFileError) as caught:
            function(folder)
        assert said in str(caught.value) and str(folder) in str(caught.value)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"W_skip": torch.zeros(D, D)}, "W_skip"),
        ({"W_dec": torch.zeros(D, F)}, "W_dec.shape"),
        ({"b_dec": torch.zeros(D, dtype=torch.int32)}, "b_dec"),
        ({"b_dec": torch.full((D,), float("nan"))}, "b_dec: 6 of 6 values are NaN"),
        ({"encoder.bias": torch.full((F,), float("inf"))}, "NaN or infinite"),
    ],
)
def test_weights_that_do_not_fit_are_one_error(tmp_path: Path, change: dict[str, torch.Tensor], said: str) -> None:
    folder = write(tmp_path / "layers.3", state=state_of(**change))
    with pytest.raises(BadFileError) as caught:
        sparsify.load(folder)
    assert said in str(caught.value) and "sae.safetensors" in str(caught.value)


def test_damaged_files_give_an_error_or_a_sound_sae(tmp_path: Path) -> None:
    folder = write(tmp_path / "layers.3")
    fuzz(sparsify, folder, folder / "sae.safetensors", folder / "cfg.json", seed=7)


def test_a_damaged_config_of_the_run_above_gives_an_error_or_a_sound_sae(tmp_path: Path) -> None:
    folder = write(tmp_path / "h.3", run={"hookpoints": ["h.3"], "model": "m", "dataset": "x", "ctx_len": 8})
    fuzz(sparsify, folder, tmp_path / "config.json", seed=8)
