"""Llama Scope: the library's own inference written out, names that say the model, hostile files refused."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hostile_bytes import fuzz
from safetensors.torch import load_file, save, save_file
from torch import Tensor

from saebench_meta.errors import BadFileError, SaebenchError
from saebench_meta.plugins import Registry
from saebench_meta.resolve import resolve_sae
from saebench_plugins import llama_scope

D, F = 6, 10
NAME = "Llama3_1-8B-Base-L15R-8x"
Config = dict[str, Any]


def published(**changes: Any) -> Config:
    config: Config = {
        "hook_point_in": "blocks.15.hook_resid_post",
        "hook_point_out": "blocks.15.hook_resid_post",
        "d_model": D,
        "d_sae": F,
        "expansion_factor": 8,
        "use_decoder_bias": True,
        "apply_decoder_bias_to_pre_encoder": False,
        "use_glu_encoder": False,
        "act_fn": "jumprelu",
        "jump_relu_threshold": 0.25,
        "norm_activation": "dataset-wise",
        "dataset_average_activation_norm": {"in": 5.5, "out": 5.5},
        "sparsity_include_decoder_norm": True,
        "top_k": 4,
    }
    return {key: value for key, value in (config | changes).items() if value is not ...}


def weights(dtype: torch.dtype = torch.bfloat16) -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(1)
    shapes = {"encoder.weight": (F, D), "encoder.bias": (F,), "decoder.weight": (D, F), "decoder.bias": (D,)}
    return {name: torch.randn(shape, generator=g).to(dtype) for name, shape in shapes.items()}


def write(folder: Path, config: Config | None = None, tensors: dict[str, Tensor] | None = None) -> Path:
    (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
    (folder / "hyperparams.json").write_text(json.dumps(config or published()))
    save_file(tensors or weights(), folder / "checkpoints" / "final.safetensors")
    return folder


def upstream(config: Config, w: dict[str, Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
    """The library's inference: `standardize_parameters_of_dataset_norm`, then encode, one latent at a time, float64.

    Codes are given in units of the unit-norm decoder, which is what `transform_to_unit_decoder_norm` makes of them.
    """
    w = {name: tensor.double() for name, tensor in w.items()}
    b_dec = w.get("decoder.bias", torch.zeros(D).double())
    norm = config["norm_activation"]
    scale_in = scale_out = 1.0
    if norm == "dataset-wise":
        scale_in = math.sqrt(D) / config["dataset_average_activation_norm"]["in"]
        scale_out = math.sqrt(D) / config["dataset_average_activation_norm"].get("out", math.sqrt(D) / scale_in)
    b_enc, decoder = w["encoder.bias"] / scale_in, w["decoder.weight"] * scale_in / scale_out
    b_dec = b_dec / scale_out
    codes, x_hat = torch.zeros(len(x), F).double(), torch.zeros(len(x), D).double()
    for t, token in enumerate(x.double()):
        per_token = math.sqrt(D) / token.norm() if norm == "token-wise" else torch.tensor(1.0)
        token = token * per_token
        if config["apply_decoder_bias_to_pre_encoder"]:
            token = token - b_dec
        for i in range(F):
            hidden, length = float(w["encoder.weight"][i] @ token + b_enc[i]), float(decoder[:, i].norm())
            score = hidden * length if config["sparsity_include_decoder_norm"] else hidden
            active = hidden if score > config["jump_relu_threshold"] else 0.0
            x_hat[t] += active * decoder[:, i]
            codes[t, i] = active * length if config["sparsity_include_decoder_norm"] else active
        x_hat[t] = (x_hat[t] + b_dec) / per_token
    return codes, x_hat


def tokens() -> Tensor:
    return torch.randn(60, D, generator=torch.Generator().manual_seed(2)) * 2


# -- what is read


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"sparsity_include_decoder_norm": False},
        {"dataset_average_activation_norm": {"in": 0.7, "out": 0.7}},
        {"dataset_average_activation_norm": {"in": 17.125}},
        {"norm_activation": "inference"},
        {"norm_activation": "token-wise"},
        {"apply_decoder_bias_to_pre_encoder": True},
        {"apply_decoder_bias_to_pre_encoder": True, "sparsity_include_decoder_norm": False},
        {"jump_relu_threshold": 0},
    ],
    ids=str,
)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_codes_and_reconstruction_are_the_librarys(tmp_path: Path, changes: Config, dtype: torch.dtype) -> None:
    config, w, x = published(**changes), weights(dtype), tokens()
    sae = llama_scope.load(write(tmp_path / NAME, config, w))
    codes, x_hat = upstream(config, w, x)
    assert 0.1 < float((codes > 0).double().mean()) < 0.9
    torch.testing.assert_close(sae.encode(x).double(), codes, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(sae.reconstruct(x).double(), x_hat, atol=1e-5, rtol=1e-5)


def test_codes_and_reconstruction_are_those_of_sae_lens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """sae-lens leaves the decoder norm out, so it is compared where that is 1; its config keeps s for folding."""
    pytest.importorskip("sae_lens")
    from sae_lens import JumpReLUSAE, JumpReLUSAEConfig
    from sae_lens.loading import pretrained_sae_loaders as theirs

    w, x = weights(torch.float32), tokens()
    w["decoder.weight"] /= w["decoder.weight"].norm(dim=0)
    folder = write(tmp_path / NAME, published(), w)
    files = {"hyperparams.json": folder / "hyperparams.json", "final.safetensors": folder / llama_scope.WEIGHTS}
    monkeypatch.setattr(theirs, "hf_hub_download", lambda *a, **k: str(files[Path((*a, *k.values())[1]).name]))
    config, state, _ = theirs.llama_scope_sae_huggingface_loader("repo", NAME, cfg_overrides={"dtype": "float32"})
    other = JumpReLUSAE(JumpReLUSAEConfig(d_in=D, d_sae=F, apply_b_dec_to_input=False))
    other.load_state_dict(state)
    other.cfg.normalize_activations = config["normalize_activations"]
    other.fold_activation_norm_scaling_factor(math.sqrt(D) / 5.5)
    ours, s = llama_scope.load(folder), math.sqrt(D) / 5.5
    torch.testing.assert_close(ours.encode(x) * s, other.encode(x).detach(), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(ours.reconstruct(x), other(x).detach(), atol=1e-5, rtol=1e-5)


def test_a_latent_by_hand(tmp_path: Path) -> None:
    """d_model 4, average norm 4, so s = 1/2; decoder norm 3; h = 2·1 + 1/s = 4, h n = 12 > 11.5."""
    config = published(d_model=4, d_sae=1, dataset_average_activation_norm={"in": 4, "out": 4})
    w = {
        "encoder.weight": torch.tensor([[2.0, 0, 0, 0]]),
        "encoder.bias": torch.tensor([1.0]),
        "decoder.weight": torch.tensor([[0.0], [3.0], [0], [0]]),
        "decoder.bias": torch.tensor([0.0, 0, 1, 0]),
    }
    x = torch.tensor([[1.0, 5, 5, 5]])
    on = llama_scope.load(write(tmp_path / "on", config | {"jump_relu_threshold": 11.5}, w))
    assert on.encode(x).tolist() == [[12.0]] and on.reconstruct(x).tolist() == [[0, 12, 2, 0]]
    off = llama_scope.load(write(tmp_path / "off", config | {"jump_relu_threshold": 12}, w))
    assert off.encode(x).tolist() == [[0.0]]
    without = config | {"sparsity_include_decoder_norm": False, "jump_relu_threshold": 4}
    assert llama_scope.load(write(tmp_path / "without", without, w)).encode(x).tolist() == [[0.0]]


def test_decoder_rows_are_of_norm_one_after_folding_unless_the_norm_is_left_out(tmp_path: Path) -> None:
    unit = llama_scope.load(write(tmp_path / "a"))
    torch.testing.assert_close(unit.W_dec.norm(dim=1), torch.ones(F))
    plain = llama_scope.load(write(tmp_path / "b", published(sparsity_include_decoder_norm=False)))
    torch.testing.assert_close(plain.W_dec.T, weights()["decoder.weight"].float())
    assert any("decoder norms" in words for words in unit.info.folded)
    assert not any("decoder norms" in words for words in plain.info.folded)


def test_a_latent_that_writes_nothing_stays_dead_and_finite(tmp_path: Path) -> None:
    w = weights(torch.float32)
    w["decoder.weight"][:, 3] = 0
    w["encoder.bias"][3] = 100
    sae = llama_scope.load(write(tmp_path / NAME, published(jump_relu_threshold=0), w))
    assert (sae.encode(tokens())[:, 3] == 0).all() and sae.reconstruct(tokens()).isfinite().all()


def test_a_missing_decoder_bias_is_zero_if_the_configuration_says_so(tmp_path: Path) -> None:
    w = weights()
    del w["decoder.bias"]
    assert not llama_scope.load(write(tmp_path / "a", published(use_decoder_bias=False), w)).b_dec.any()
    with pytest.raises(BadFileError, match=r"decoder\.bias: this tensor is missing"):
        llama_scope.load(write(tmp_path / "b", published(), w))


@pytest.mark.parametrize("hook", ["blocks.15.hook_resid_post", "blocks.15.hook_attn_out", "blocks.15.hook_mlp_out"])
def test_the_site_is_the_configurations_and_the_model_the_releases(tmp_path: Path, hook: str) -> None:
    folder = write(tmp_path / "Llama3_1-8B-Base-LXM-8x" / "L15", published(hook_point_in=hook, hook_point_out=...))
    info = llama_scope.peek(folder).info
    assert (info.site.model, info.site.hook) == ("meta-llama/Llama-3.1-8B", hook)
    assert (info.d_in, info.d_sae, info.activation, info.architecture) == (D, F, "jumprelu", "topk")
    assert info == llama_scope.load(folder).info == llama_scope.peek(folder / llama_scope.WEIGHTS).info


def test_a_folder_of_another_name_needs_the_users_word_for_the_model(tmp_path: Path) -> None:
    folder = write(tmp_path / "mine")
    assert llama_scope.peek(folder).info.site.model == "unknown (pass --model)"
    registry = Registry()
    registry.register(llama_scope)
    found = resolve_sae(registry, str(folder), model="meta-llama/Llama-3.1-8B")
    assert found.load().info.site.model == "meta-llama/Llama-3.1-8B"
    assert set(found.files) == {"weights", "config"}


def test_other_dtypes_on_request_are_the_cast_of_the_folded_weights(tmp_path: Path) -> None:
    folder = write(tmp_path / NAME)
    half, full = llama_scope.load(folder, dtype=torch.bfloat16), llama_scope.load(folder)
    assert torch.equal(half.W_enc, full.W_enc.bfloat16()) and torch.equal(half.b_enc, full.b_enc.bfloat16())
    torch.testing.assert_close(llama_scope.load(folder, dtype=torch.float64).W_dec, full.W_dec.double())


def test_peek_and_claims_import_neither_torch_nor_numpy(tmp_path: Path) -> None:
    folder = write(tmp_path / NAME)
    script = (
        "import json, sys; from pathlib import Path; from saebench_plugins import llama_scope as g; "
        f"path = Path({str(folder)!r}); found = [g.peek(path).info.d_sae, g.claims(path), g.claims(path / g.WEIGHTS)]; "
        "print(json.dumps([*found, sorted({'torch', 'numpy', 'transformers'} & set(sys.modules))]))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60)
    assert json.loads(done.stdout) == [F, True, True, []]


def test_claims_needs_both_files(tmp_path: Path) -> None:
    write(tmp_path / "both")
    for name, lost in (("no config", "hyperparams.json"), ("no weights", "checkpoints/final.safetensors")):
        (write(tmp_path / name) / lost).unlink()
    save_file(weights(), tmp_path / "final.safetensors")
    assert {p.name for p in tmp_path.iterdir() if llama_scope.claims(p)} == {"both"}
    assert not llama_scope.claims(tmp_path / "nul\x00")


# -- what is refused


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"hook_point_in": "blocks.15.ln2.hook_normalized"}, "it is a transcoder"),
        ({"hook_point_in": ...}, "hook_point_in: it is missing"),
        ({"hook_point_in": "\x1b[31m"}, "hook_point_in"),
        ({"hook_point_in": 3}, "hook_point_in"),
        ({"use_glu_encoder": True}, "use_glu_encoder"),
        ({"use_glu_encoder": "no"}, "use_glu_encoder"),
        ({"act_fn": "topk"}, "act_fn: it is 'topk'"),
        ({"act_fn": ["jumprelu"]}, "act_fn"),
        ({"norm_activation": "batch-wise"}, "norm_activation: it is 'batch-wise'"),
        ({"jump_relu_threshold": ...}, "jump_relu_threshold: it is None"),
        ({"jump_relu_threshold": -1}, "jump_relu_threshold"),
        ({"jump_relu_threshold": float("nan")}, "jump_relu_threshold"),
        ({"jump_relu_threshold": float("inf")}, "jump_relu_threshold"),
        ({"jump_relu_threshold": True}, "jump_relu_threshold"),
        ({"dataset_average_activation_norm": ...}, "dataset_average_activation_norm"),
        ({"dataset_average_activation_norm": 17.1}, "dataset_average_activation_norm"),
        ({"dataset_average_activation_norm": {}}, "dataset_average_activation_norm.in: it is missing"),
        ({"dataset_average_activation_norm": {"in": 0}}, "in: it is 0"),
        ({"dataset_average_activation_norm": {"in": "1"}}, "in: it is '1'"),
        ({"dataset_average_activation_norm": {"in": 1, "out": -1}}, "out: it is -1"),
        ({"dataset_average_activation_norm": {"in": 1e-30, "out": 1e29}}, "NaN or infinite"),
        ({"d_model": ...}, "d_model: it is missing"),
        ({"d_model": 7}, "encoder.weight.shape"),
        ({"d_model": 10**30}, "d_model"),
        ({"d_model": 6.0}, "d_model"),
        ({"sparsity_include_decoder_norm": 1}, "sparsity_include_decoder_norm"),
        ({"top_k": -3}, "top_k"),
    ],
    ids=str,
)
def test_a_configuration_that_cannot_be_followed_is_one_clear_error(tmp_path: Path, changes: Config, said: str) -> None:
    folder = write(tmp_path / NAME, published(**changes))
    with pytest.raises(SaebenchError) as caught:
        llama_scope.load(folder)
    assert said in str(caught.value) and str(folder) in str(caught.value) and str(caught.value).isprintable()


@pytest.mark.parametrize(
    ("name", "tensor", "said"),
    [
        ("encoder.weight", None, "encoder.weight: this tensor is missing"),
        ("decoder.weight", None, "decoder.weight: this tensor is missing"),
        ("encoder_glu.weight", torch.zeros(F, D), "unknown tensor"),
        ("encoder.weight", torch.zeros(D, F), "encoder.weight.shape"),
        ("encoder.weight", torch.zeros(0, D), "encoder.weight.shape"),
        ("encoder.weight", torch.zeros(F * D), "encoder.weight.shape"),
        ("decoder.weight", torch.zeros(F, D), "decoder.weight.shape"),
        ("encoder.bias", torch.zeros(F + 1), "encoder.bias.shape"),
        ("encoder.bias", torch.zeros(F, dtype=torch.int64), "dtype"),
        ("encoder.bias", torch.full((F,), float("nan")), "encoder.bias: 10 of 10 values are NaN"),
        ("decoder.weight", torch.full((D, F), float("inf")), "decoder.weight: 60 of 60 values"),
    ],
    ids=range(11),
)
def test_tensors_that_do_not_fit_are_one_clear_error(
    tmp_path: Path, name: str, tensor: Tensor | None, said: str
) -> None:
    tensors = weights(torch.float32)
    if tensor is None:
        del tensors[name]
    else:
        tensors[name] = tensor
    with pytest.raises(BadFileError) as caught:
        llama_scope.load(write(tmp_path / NAME, tensors=tensors))
    assert said in str(caught.value) and "final.safetensors" in str(caught.value)


def test_the_statistics_the_library_writes_among_the_tensors_are_passed_over(tmp_path: Path) -> None:
    extra = {f"{llama_scope.STATISTIC}.blocks.15.hook_resid_post": torch.tensor(5.5)}
    sae = llama_scope.load(write(tmp_path / NAME, tensors=weights() | extra))
    assert torch.equal(sae.W_enc, llama_scope.load(write(tmp_path / NAME)).W_enc)


@pytest.mark.timeout(30)
def test_files_that_are_none_are_refused_without_waiting(tmp_path: Path) -> None:
    for lost in ("hyperparams.json", "checkpoints/final.safetensors"):
        folder = write(tmp_path / lost.replace("/", " "))
        (folder / lost).unlink()
        with pytest.raises(BadFileError, match="there is no such file"):
            llama_scope.peek(folder)
        os.mkfifo(folder / lost)
        with pytest.raises(BadFileError, match="not a regular file"):
            llama_scope.peek(folder)
    for ref in ("nul\x00byte", "n" * 5000, tmp_path / "missing"):
        with pytest.raises(BadFileError):
            llama_scope.load(ref)


def test_random_changes_give_an_error_or_a_finite_sae(tmp_path: Path) -> None:
    folder = write(tmp_path / NAME)
    fuzz(llama_scope, folder, folder / llama_scope.CONFIG, folder / llama_scope.WEIGHTS, seed=6)


def test_a_changed_value_changes_only_what_it_may(tmp_path: Path) -> None:
    """The fuzz above would pass a loader that ignores its file: here the file's values are what is returned."""
    folder = write(tmp_path / NAME, published(norm_activation="inference", sparsity_include_decoder_norm=False))
    stored = load_file(folder / llama_scope.WEIGHTS)
    sae = llama_scope.load(folder)
    assert torch.equal(sae.W_enc.T, stored["encoder.weight"].float())
    assert torch.equal(sae.b_dec, stored["decoder.bias"].float())
    assert len(save(stored)) == (folder / llama_scope.WEIGHTS).stat().st_size
