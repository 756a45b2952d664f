"""Checkpoints of the BatchTopK repository: its formulas, stringified configs, hostile files."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hostile_bytes import fuzz

from saebench_meta.calibration import calibrate_threshold, is_uncalibrated
from saebench_meta.errors import BadFileError
from saebench_meta.plugins import Registry
from saebench_plugins import batchtopk_repo as repo

D, F, K = 6, 12, 3
KINDS = ["vanilla", "topk", "batchtopk", "jumprelu"]
CONFIG: dict[str, Any] = {
    "seed": 49,
    "seq_len": 128,
    "dtype": "torch.float32",
    "model_name": "gpt2-small",
    "site": "resid_pre",
    "layer": 8,
    "act_size": D,
    "dict_size": F,
    "dataset_path": "Skylion007/openwebtext",
    "input_unit_norm": True,
    "top_k": K,
    "hook_point": "blocks.8.hook_resid_pre",
    "name": "gpt2-small_x",
}


def state_of(kind: str) -> dict[str, torch.Tensor]:
    g = torch.Generator().manual_seed(2)
    shapes = {"b_dec": (D,), "b_enc": (F,), "W_enc": (D, F), "W_dec": (F, D)}
    state = {name: torch.randn(shape, generator=g) for name, shape in shapes.items()}
    return state | ({"jumprelu.log_threshold": torch.randn(F, generator=g)} if kind == "jumprelu" else {})


def write(folder: Path, kind: str, *, state: Any = None, strings: bool = False, **changes: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(state_of(kind) if state is None else state, folder / "sae.pt")
    config = {k: v for k, v in (CONFIG | {"sae_type": kind} | changes).items() if v is not ...}
    if strings:
        config = {key: str(value) for key, value in config.items()}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def sample(n: int = 200) -> torch.Tensor:
    return torch.randn(n, D, generator=torch.Generator().manual_seed(5)) * 3 + 1


def formula(
    kind: str, s: dict[str, torch.Tensor], x: torch.Tensor, *, unit: bool, bias: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes and reconstruction in float64, one token at a time where that is what is meant."""
    s, x = {name: t.double() for name, t in s.items()}, x.double()
    mean = x.mean(1, keepdim=True) if unit else torch.zeros(len(x), 1, dtype=torch.float64)
    std = (x - mean).std(1, keepdim=True) if unit else torch.ones(len(x), 1, dtype=torch.float64)
    z = (x - mean) / (std + 1e-5) if unit else x
    if kind == "jumprelu":
        f = torch.relu(z @ s["W_enc"] + s["b_enc"])
        f = f * (f > s["jumprelu.log_threshold"].exp())
    else:
        pre = (z - s["b_dec"]) @ s["W_enc"] + (s["b_enc"] if bias or kind == "vanilla" else 0)
        f = torch.relu(pre)
        if kind == "topk":
            f = torch.zeros_like(f).scatter(1, f.topk(K).indices, f.topk(K).values)
        if kind == "batchtopk":
            best = f.flatten().topk(K * len(f))
            f = torch.zeros(f.numel(), dtype=torch.float64).scatter(0, best.indices, best.values).view(f.shape)
    return f, (f @ s["W_dec"] + s["b_dec"]) * std + mean


@pytest.mark.parametrize("strings", [False, True])
@pytest.mark.parametrize("unit", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_codes_and_reconstructions_are_those_of_the_repository(
    tmp_path: Path, kind: str, unit: bool, strings: bool
) -> None:
    """The repository undoes its norm without the 1e-5 it divided with: a difference far below the tolerance here."""
    sae = repo.load(write(tmp_path, kind, input_unit_norm=unit, strings=strings))
    x = sample()
    f, x_hat = formula(kind, state_of(kind), x, unit=unit)
    if kind == "batchtopk":
        sae = calibrate_threshold(sae, [x], K)  # on the same batch, so that the batch's own selection comes out
    torch.testing.assert_close(sae.encode(x), f.float(), atol=2e-5, rtol=1e-5)
    torch.testing.assert_close(sae.reconstruct(x), x_hat.float(), atol=3e-4, rtol=1e-5)


def test_a_batchtopk_checkpoint_is_uncalibrated_and_says_so(tmp_path: Path) -> None:
    sae = repo.load(write(tmp_path, "batchtopk"))
    assert is_uncalibrated(sae.info) and sae.info.k == K
    assert sae.threshold is not None and sae.threshold.tolist() == [0.0] * F
    assert not is_uncalibrated(repo.peek(write(tmp_path, "topk")).info)


def test_an_encoder_bias_is_used_only_where_the_config_says_so(tmp_path: Path) -> None:
    x = sample()
    for said in (True, False):
        f, _ = formula("topk", state_of("topk"), x, unit=True, bias=said)
        sae = repo.load(write(tmp_path, "topk", use_encoder_bias=said))
        torch.testing.assert_close(sae.encode(x), f.float(), atol=2e-5, rtol=1e-5)


def test_tied_weights_decode_with_the_encoder(tmp_path: Path) -> None:
    sae = repo.load(write(tmp_path, "topk", tied_weights="True"))
    assert torch.equal(sae.W_dec, state_of("topk")["W_enc"].T) and sae.W_dec.is_contiguous()


def test_buffers_of_the_training_loop_are_passed_over(tmp_path: Path) -> None:
    state = {**state_of("topk"), "num_batches_not_active": torch.zeros(F)}
    assert repo.load(write(tmp_path, "topk", state=state)).d_sae == F


@pytest.mark.parametrize("strings", [False, True])
def test_the_config_tells_site_context_and_norm(tmp_path: Path, strings: bool) -> None:
    header = repo.peek(write(tmp_path, "topk", strings=strings))
    info = header.info
    assert (info.site.model, info.site.hook) == ("gpt2-small", "blocks.8.hook_resid_pre")
    assert (info.context_size, info.input_transform, info.k, info.activation) == (128, "layer_norm", K, "topk")
    assert (info.dataset, info.name) == ("Skylion007/openwebtext", "gpt2-small_x")
    assert header.info == repo.load(tmp_path).info


def test_a_hook_that_is_not_named_is_made_of_site_and_layer_or_left_to_the_user(tmp_path: Path) -> None:
    assert repo.peek(write(tmp_path, "topk", hook_point=...)).info.site.hook == "blocks.8.hook_resid_pre"
    info = repo.peek(write(tmp_path, "topk", hook_point=..., site=..., model_name=...)).info
    assert info.site.hook == "unknown" and "pass --hook" in info.notes[1] and "pass --model" in info.notes[0]


def test_claims_takes_its_own_and_nothing_else(tmp_path: Path) -> None:
    write(tmp_path / "mine", "topk")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "ae.pt").write_bytes(b"")
    assert repo.claims(tmp_path / "mine") and repo.claims(tmp_path / "mine" / "sae.pt")
    paths = (tmp_path, tmp_path / "other", tmp_path / "mine" / "config.json", tmp_path / "none", Path("a\0b"))
    assert not any(repo.claims(path) for path in paths)


def test_peek_and_claims_import_no_torch(tmp_path: Path) -> None:
    write(tmp_path, "topk")
    script = (
        "import sys; from pathlib import Path; from saebench_plugins import batchtopk_repo as m; "
        f"p = Path({str(tmp_path)!r}); print(m.claims(p), m.peek(p).info.k, {{'torch', 'numpy'}} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "True 3 set()"


def test_the_plugin_registers_one_loader() -> None:
    registry = Registry()
    registry.register(repo)
    assert "batchtopk" in registry.loaders


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"sae_type": ...}, "sae_type"),
        ({"sae_type": "quantile"}, "known are vanilla, topk, batchtopk, jumprelu"),
        ({"sae_type": "jumprelu"}, "jumprelu.log_threshold: this tensor is missing"),
        ({"activation": "gelu"}, "activation: it is 'gelu'"),
        ({"top_k": ...}, "top_k"),
        ({"top_k": F + 1}, "top_k"),
        ({"top_k": "many"}, "top_k"),
        ({"act_size": D + 1}, "act_size: it is 7, the weights have 6"),
        ({"dict_size": "11"}, "dict_size"),
        ({"input_unit_norm": "maybe"}, "input_unit_norm"),
        ({"model_name": 3}, "model_name"),
        ({"hook_point": "a\nb"}, "hook_point"),
        ({"seq_len": -1}, "seq_len"),
    ],
)
def test_a_config_that_does_not_fit_is_one_error(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    folder = write(tmp_path, "topk", **changes)
    for function in (repo.peek, repo.load):
        with pytest.raises(BadFileError) as caught:
            function(folder)
        assert said in str(caught.value) and str(folder) in str(caught.value)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"b_enc": torch.zeros(F + 1)}, "b_enc: it has shape"),
        ({"W_enc": torch.zeros(F, D)}, "W_enc: it has shape"),
        ({"W_dec": torch.zeros(2)}, "expected a matrix"),
        ({"b_dec": torch.zeros(D, dtype=torch.int32)}, "int32"),
        ({"b_dec": "x"}, "b_dec: it is a str"),
        ({"b_dec": torch.full((D,), float("nan"))}, "NaN"),
        ({"more": torch.zeros(1)}, "unknown tensor"),
        ({"W_dec": torch.zeros(1).expand(F, D)}, "expanded view"),
    ],
)
def test_weights_that_do_not_fit_are_one_error(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    with pytest.raises(BadFileError) as caught:
        repo.load(write(tmp_path, "topk", state={**state_of("topk"), **change}))
    assert said in str(caught.value) and "sae.pt" in str(caught.value)


@pytest.mark.parametrize("kind", ["batchtopk", "jumprelu"])
def test_damaged_files_give_an_error_or_a_sound_sae(tmp_path: Path, kind: str) -> None:
    folder = write(tmp_path, kind)
    fuzz(repo, folder, folder / "sae.pt", folder / "config.json", seed=3)
