"""dictionary_learning's SAEs: codes and reconstructions as its classes define them, sites, thresholds, hostile files.

The formulas below are written out from the library's documentation and not from the loader.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from hostile_bytes import fuzz

from saebench_meta.calibration import is_uncalibrated
from saebench_meta.errors import BadFileError
from saebench_meta.plugins import Registry
from saebench_plugins import dictionary_learning as dl

D, F, K = 6, 10, 3
State = dict[str, torch.Tensor]


def state_of(kind: str, threshold: float = 0.3) -> State:
    g = torch.Generator().manual_seed(4)

    def r(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=g)

    k, one = torch.tensor(K, dtype=torch.int), torch.tensor(threshold)
    linear = {"encoder.weight": r(D, F).T, "decoder.weight": r(D, F)}
    own = {"W_enc": r(D, F), "b_enc": r(F), "W_dec": r(F, D), "b_dec": r(D)}
    match kind:
        case "AutoEncoder":
            return {"bias": r(D), **linear, "encoder.bias": r(F)}
        case "AutoEncoderNew":
            return {**linear, "encoder.bias": r(F), "decoder.bias": r(D)}
        case "AutoEncoderTopK" | "BatchTopKSAE":
            return {"b_dec": r(D), "k": k, "threshold": one, **linear, "encoder.bias": r(F)}
        case "MatryoshkaBatchTopKSAE":
            return {**own, "k": k, "threshold": one, "group_sizes": torch.tensor([4, 6])}
        case "JumpReluAutoEncoder":
            return {**own, "threshold": torch.rand(F, generator=g)}
        case "GatedAutoEncoder":
            gates = {"decoder_bias": r(D), "r_mag": r(F) / 2, "gate_bias": r(F), "mag_bias": r(F)}
            return {**gates, **linear}
    raise AssertionError(kind)


def formula(kind: str, s: State, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes and reconstruction in float64, as the class's own encode and decode."""
    s, x = {name: t.double() for name, t in s.items()}, x.double()
    match kind:
        case "AutoEncoder":
            norms = s["decoder.weight"].norm(dim=0)
            f = torch.relu((x - s["bias"]) @ s["encoder.weight"].T + s["encoder.bias"]) * norms
            return f, (f / norms) @ s["decoder.weight"].T + s["bias"]
        case "AutoEncoderNew":
            f = torch.relu(x @ s["encoder.weight"].T + s["encoder.bias"])
            return f, f @ s["decoder.weight"].T + s["decoder.bias"]
        case "AutoEncoderTopK":
            f = torch.relu((x - s["b_dec"]) @ s["encoder.weight"].T + s["encoder.bias"])
            f = f * (f >= f.sort(dim=1, descending=True).values[:, K - 1 : K])
            return f, f @ s["decoder.weight"].T + s["b_dec"]
        case "BatchTopKSAE":
            f = torch.relu((x - s["b_dec"]) @ s["encoder.weight"].T + s["encoder.bias"])
            f = f * (f > s["threshold"])
            return f, f @ s["decoder.weight"].T + s["b_dec"]
        case "MatryoshkaBatchTopKSAE":
            f = torch.relu((x - s["b_dec"]) @ s["W_enc"] + s["b_enc"])
            f = f * (f > s["threshold"])
            return f, f @ s["W_dec"] + s["b_dec"]
        case "JumpReluAutoEncoder":
            pre = x @ s["W_enc"] + s["b_enc"]
            f = torch.relu(pre * (pre > s["threshold"]))
            return f, f @ s["W_dec"] + s["b_dec"]
        case "GatedAutoEncoder":
            h = (x - s["decoder_bias"]) @ s["encoder.weight"].T
            f = (h + s["gate_bias"] > 0) * torch.relu(s["r_mag"].exp() * h + s["mag_bias"])
            return f, f @ s["decoder.weight"].T + s["decoder_bias"]
    raise AssertionError(kind)


KINDS = [
    "AutoEncoder",
    "AutoEncoderNew",
    "AutoEncoderTopK",
    "BatchTopKSAE",
    "MatryoshkaBatchTopKSAE",
    "JumpReluAutoEncoder",
    "GatedAutoEncoder",
]
CONFIG: dict[str, Any] = {
    "activation_dim": D,
    "dict_size": F,
    "layer": 3,
    "lm_name": "EleutherAI/pythia-70m-deduped",
    "submodule_name": "resid_post_layer_3",
    "wandb_name": "a name",
}


def write(folder: Path, kind: str, *, state: Any = None, buffer: dict[str, Any] | None = None, **trainer: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(state_of(kind) if state is None else state, folder / "ae.pt")
    known = CONFIG | ({"k": K} if "TopK" in kind else {}) | {"dict_class": kind} | trainer
    config: dict[str, Any] = {"trainer": {key: value for key, value in known.items() if value is not ...}}
    if buffer is not None:
        config["buffer"] = buffer
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def sample(n: int = 200) -> torch.Tensor:
    return torch.randn(n, D, generator=torch.Generator().manual_seed(9)) * 2


def check(folder: Path, kind: str, state: State, x: torch.Tensor | None = None, scale: float = 1.0) -> None:
    x = sample() if x is None else x
    sae = dl.load(folder)
    f, x_hat = formula(kind, state, x / scale)
    assert (f > 0).any() and (f == 0).any()
    torch.testing.assert_close(sae.encode(x), (f * scale).float(), atol=1e-5 * scale, rtol=1e-5)
    torch.testing.assert_close(sae.reconstruct(x), (x_hat * scale).float(), atol=1e-5 * scale, rtol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_codes_and_reconstructions_are_those_of_the_class(tmp_path: Path, kind: str) -> None:
    check(write(tmp_path, kind), kind, state_of(kind))


@pytest.mark.parametrize("kind", KINDS)
def test_an_ordered_state_dict_and_contiguous_or_turned_matrices_are_the_same(tmp_path: Path, kind: str) -> None:
    state = OrderedDict((name, t.contiguous()) for name, t in state_of(kind).items())
    check(write(tmp_path, kind, state=state), kind, state_of(kind))


@pytest.mark.parametrize("kind", KINDS)
def test_a_backup_gives_the_sae_of_unscaled_activations(tmp_path: Path, kind: str) -> None:
    optimizer = {"state": {0: {"step": torch.tensor(3.0), "exp_avg": torch.ones(5)}}, "param_groups": [{"params": [0]}]}
    backup = {
        "step": 12,
        "ae": state_of(kind),
        "optimizer": optimizer,
        "config": {"lr": 1e-3, "device": "cpu", "seed": None, "layers": (1, 2)},
        "norm_factor": 7.25,
    }
    folder = write(tmp_path, kind, state=backup)
    check(folder, kind, state_of(kind), x=sample() * 7.25, scale=7.25)
    assert "norm factor 7.25" in dl.peek(folder).info.folded[0]


def test_a_norm_factor_kept_as_a_tensor_is_the_same(tmp_path: Path) -> None:
    backup = {"step": 1, "ae": state_of("BatchTopKSAE"), "norm_factor": torch.tensor(2.0)}
    folder = write(tmp_path, "BatchTopKSAE", state=backup)
    check(folder, "BatchTopKSAE", state_of("BatchTopKSAE"), x=sample() * 2, scale=2.0)


def test_a_backup_without_a_norm_factor_is_not_scaled(tmp_path: Path) -> None:
    backup = {"step": 1, "ae": state_of("AutoEncoder"), "norm_factor": None}
    check(write(tmp_path, "AutoEncoder", state=backup), "AutoEncoder", state_of("AutoEncoder"))


@pytest.mark.parametrize("kind", KINDS)
def test_peek_and_load_tell_the_same(tmp_path: Path, kind: str) -> None:
    header = dl.peek(write(tmp_path, kind))
    assert header.info == dl.load(tmp_path).info
    assert header.files == {"weights": tmp_path / "ae.pt", "config": tmp_path / "config.json"}
    assert (header.info.d_in, header.info.d_sae) == (D, F)
    assert header.info.site.hook == "blocks.3.hook_resid_post"
    assert header.info.site.model == "EleutherAI/pythia-70m-deduped"


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_the_dtype_asked_for_is_given(tmp_path: Path, dtype: torch.dtype) -> None:
    sae = dl.load(write(tmp_path, "JumpReluAutoEncoder"), dtype=dtype)
    assert sae.threshold is not None
    assert {t.dtype for t in (sae.W_enc, sae.b_enc, sae.W_dec, sae.b_dec, sae.threshold)} == {dtype}


# -- thresholds and k


@pytest.mark.parametrize("kind", ["BatchTopKSAE", "MatryoshkaBatchTopKSAE"])
@pytest.mark.parametrize("stored", [-1.0, None])
def test_a_threshold_that_was_never_estimated_is_said_so(tmp_path: Path, kind: str, stored: float | None) -> None:
    state = state_of(kind, threshold=-1.0)
    if stored is None:
        del state["threshold"]
    sae = dl.load(write(tmp_path, kind, state=state))
    assert is_uncalibrated(sae.info) and sae.info.k == K and sae.info.activation == "jumprelu"
    assert sae.threshold is not None and sae.threshold.tolist() == [0.0] * F
    assert not is_uncalibrated(dl.load(write(tmp_path / "known", kind)).info)


def test_a_threshold_of_zero_was_estimated(tmp_path: Path) -> None:
    state = state_of("BatchTopKSAE", threshold=0.0)
    assert not is_uncalibrated(dl.peek(write(tmp_path, "BatchTopKSAE", state=state)).info)


def test_k_is_found_in_the_weights_or_the_config_and_must_agree(tmp_path: Path) -> None:
    state = state_of("AutoEncoderTopK")
    assert dl.peek(write(tmp_path / "a", "AutoEncoderTopK", k=...)).info.k == K
    with pytest.raises(BadFileError, match="k: it is 3, the config says 4"):
        dl.peek(write(tmp_path / "b", "AutoEncoderTopK", k=4))
    del state["k"]
    assert dl.peek(write(tmp_path / "c", "AutoEncoderTopK", state=state)).info.k == K
    with pytest.raises(BadFileError, match=r"trainer\.k: it is missing"):
        dl.peek(write(tmp_path / "d", "AutoEncoderTopK", state=state, k=...))


# -- sites


def test_a_submodule_is_believed_over_the_habit_of_reading_the_residual(tmp_path: Path) -> None:
    info = dl.peek(write(tmp_path, "AutoEncoder", submodule_name="gpt_neox.layers.3.mlp")).info
    assert info.site.hook == "blocks.3.hook_mlp_out"


def test_without_a_submodule_the_layer_is_taken_and_said(tmp_path: Path) -> None:
    info = dl.peek(write(tmp_path, "AutoEncoder", submodule_name=None)).info
    assert info.site.hook == "blocks.3.hook_resid_post" and "names no submodule" in info.notes[0]


def test_an_unknown_place_or_model_is_left_to_the_user(tmp_path: Path) -> None:
    info = dl.peek(write(tmp_path, "AutoEncoder", submodule_name="elsewhere", lm_name=None)).info
    assert (info.site.hook, info.site.model) == ("unknown", "unknown")
    assert "pass --hook" in info.notes[0] and "pass --model" in info.notes[1]


@pytest.mark.parametrize(
    ("submodule", "io", "hook"),
    [
        ("gpt_neox.layers.3", "in", "blocks.3.hook_resid_pre"),
        ("gpt_neox.layers.3", "out", "blocks.3.hook_resid_post"),
        ("gpt_neox.layers.3.mlp", "in", "unknown"),
    ],
)
def test_the_input_of_a_block_is_another_place_than_its_output(
    tmp_path: Path, submodule: str, io: str, hook: str
) -> None:
    folder = write(tmp_path, "AutoEncoder", submodule_name=submodule, buffer={"io": io, "ctx_len": 128})
    info = dl.peek(folder).info
    assert info.site.hook == hook and info.context_size == 128


def test_a_gemma_mlp_is_noted_because_a_norm_lies_between(tmp_path: Path) -> None:
    folder = write(tmp_path, "AutoEncoder", lm_name="google/gemma-2-2b", submodule_name="model.layers.3.mlp")
    assert any("norm between" in note for note in dl.peek(folder).info.notes)


def test_a_config_without_a_buffer_or_other_settings_is_enough(tmp_path: Path) -> None:
    folder = write(tmp_path, "AutoEncoderNew", activation_dim=..., dict_size=..., layer=..., wandb_name=...)
    assert dl.peek(folder).info.context_size is None


# -- references and claims


def test_a_checkpoint_on_the_way_takes_the_config_above(tmp_path: Path) -> None:
    write(tmp_path, "AutoEncoder")
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "ae.pt").rename(tmp_path / "checkpoints" / "ae_1000.pt")
    path = tmp_path / "checkpoints" / "ae_1000.pt"
    assert dl.claims(path) and not dl.claims(tmp_path)
    assert dl.peek(path).files == {"weights": path, "config": tmp_path / "config.json"}


def test_claims_takes_its_own_and_nothing_else(tmp_path: Path) -> None:
    write(tmp_path / "mine", "AutoEncoder")
    (tmp_path / "empty").mkdir()
    (tmp_path / "half").mkdir()
    (tmp_path / "half" / "ae.pt").write_bytes(b"")
    os.mkfifo(tmp_path / "ae.pt")
    claimed = {p.name for p in [*tmp_path.iterdir(), tmp_path / "missing", Path("a\0b")] if dl.claims(p)}
    assert claimed == {"mine"} and dl.claims(tmp_path / "mine" / "ae.pt")


def test_peek_and_claims_import_no_torch(tmp_path: Path) -> None:
    write(tmp_path, "BatchTopKSAE")
    script = (
        "import sys; from pathlib import Path; from saebench_plugins import dictionary_learning as m; "
        f"p = Path({str(tmp_path)!r}); print(m.claims(p), m.peek(p).info.k, {{'torch', 'numpy'}} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "True 3 set()"


def test_the_plugin_registers_one_loader() -> None:
    registry = Registry()
    registry.register(dl)
    assert "dictionary_learning" in registry.loaders


# -- what is refused


@pytest.mark.parametrize(
    ("trainer", "said"),
    [
        ({"dict_class": ...}, "trainer.dict_class: it is missing"),
        ({"dict_class": "Other"}, "known are AutoEncoder"),
        ({"dict_class": "CrossCoder"}, "several layers"),
        ({"dict_class": 3}, "dict_class"),
        ({"dict_class": "GatedAutoEncoder"}, "this tensor is missing; the config says GatedAutoEncoder"),
        ({"dict_class": "BatchTopKSAE"}, "missing"),
        ({"activation_dim": 7}, "trainer.activation_dim: it is 7, the weights have 6"),
        ({"dict_size": 9}, "trainer.dict_size"),
        ({"layer": -1}, "trainer.layer"),
        ({"layer": "3"}, "trainer.layer"),
        ({"lm_name": ["x"]}, "lm_name"),
        ({"submodule_name": "a\u0007b"}, "submodule_name"),
    ],
)
def test_a_config_that_does_not_fit_is_one_error(tmp_path: Path, trainer: dict[str, Any], said: str) -> None:
    folder = write(tmp_path, "AutoEncoder", **trainer)
    for function in (dl.peek, dl.load):
        with pytest.raises(BadFileError) as caught:
            function(folder)
        assert said in str(caught.value) and str(folder) in str(caught.value)


def test_a_transcoder_is_refused(tmp_path: Path) -> None:
    folder = write(tmp_path, "AutoEncoder", buffer={"io": "in_and_out"})
    with pytest.raises(BadFileError, match="transcoder"):
        dl.peek(folder)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"encoder.bias": torch.zeros(F + 1)}, "encoder.bias: it has shape [11], expected [10]"),
        ({"encoder.weight": torch.zeros(D, F)}, "encoder.weight: it has shape"),
        ({"decoder.weight": torch.zeros(D)}, "expected a matrix"),
        ({"decoder.weight": torch.zeros(0, F)}, "expected a matrix"),
        ({"bias": torch.zeros(D, dtype=torch.int64)}, "bias: its values are int64"),
        ({"bias": [1.0]}, "bias: it is a list"),
        ({"bias": torch.full((D,), float("nan"))}, "bias: 6 of 6 values are NaN"),
        ({"bias": torch.full((D,), float("inf"))}, "NaN or infinite"),
        ({"more": torch.zeros(1)}, "more: unknown tensor"),
        ({"encoder.bias": torch.zeros(1).expand(F)}, "expanded view"),
        ({5: torch.zeros(1)}, "unknown tensor"),
    ],
)
def test_weights_that_do_not_fit_are_one_error(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    folder = write(tmp_path, "AutoEncoder", state={**state_of("AutoEncoder"), **change})
    with pytest.raises(BadFileError) as caught:
        dl.load(folder)
    assert said in str(caught.value) and "ae.pt" in str(caught.value)


@pytest.mark.parametrize("factor", [0.0, -1.0, float("nan"), float("inf"), "2", True, [2.0]])
def test_a_norm_factor_that_is_no_positive_number_is_refused(tmp_path: Path, factor: Any) -> None:
    backup = {"step": 1, "ae": state_of("AutoEncoder"), "norm_factor": factor}
    with pytest.raises(BadFileError, match="norm_factor"):
        dl.peek(write(tmp_path, "AutoEncoder", state=backup))


@pytest.mark.parametrize("threshold", [float("nan"), float("inf")])
def test_a_threshold_that_is_no_number_is_refused(tmp_path: Path, threshold: float) -> None:
    with pytest.raises(BadFileError, match="threshold"):
        dl.peek(write(tmp_path, "BatchTopKSAE", state=state_of("BatchTopKSAE", threshold=threshold)))


def test_values_that_overflow_while_folding_are_refused(tmp_path: Path) -> None:
    state = state_of("GatedAutoEncoder")
    state["r_mag"] = torch.full((F,), 800.0)
    with pytest.raises(BadFileError, match="after folding"):
        dl.load(write(tmp_path, "GatedAutoEncoder", state=state))


@pytest.mark.parametrize("text", ["", "[]", "{", '{"trainer": 3}', '{"trainer": {}, "trainer": {}}', "[" * 100_000])
def test_a_broken_config_is_one_error(tmp_path: Path, text: str) -> None:
    folder = write(tmp_path, "AutoEncoder")
    (folder / "config.json").write_text(text)
    with pytest.raises(BadFileError, match=r"config\.json"):
        dl.peek(folder)


@pytest.mark.parametrize("missing", ["ae.pt", "config.json"])
def test_a_missing_file_is_named(tmp_path: Path, missing: str) -> None:
    folder = write(tmp_path, "AutoEncoder")
    (folder / missing).unlink()
    with pytest.raises(BadFileError, match=missing.replace(".", r"\.")):
        dl.peek(folder)


@pytest.mark.parametrize("kind", ["BatchTopKSAE", "GatedAutoEncoder"])
def test_damaged_files_give_an_error_or_a_sound_sae(tmp_path: Path, kind: str) -> None:
    folder = write(tmp_path, kind)
    fuzz(dl, folder, folder / "ae.pt", folder / "config.json", seed=len(kind))
