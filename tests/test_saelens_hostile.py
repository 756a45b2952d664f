"""SAELens folders that are broken, lying or hostile: each is one clear error, nothing runs, little memory is used."""

from __future__ import annotations

import json
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hostile_bytes import Sabotage, fuzz, little_memory, one_error
from safetensors.torch import save

from saebench_meta.errors import BadFileError, SaebenchError
from saebench_plugins import saelens
from saebench_plugins.untrusted import MAX_JSON

D, F = 4, 6
NAMES = ("cfg.json", "sae_weights.safetensors", "activation_scaler.json", "activation_whitening.safetensors")
Files = dict[str, bytes]

CFG: dict[str, Any] = {
    "architecture": "jumprelu",
    "d_in": D,
    "d_sae": F,
    "dtype": "float32",
    "device": "cpu",
    "apply_b_dec_to_input": True,
    "normalize_activations": "none",
    "metadata": {
        "sae_lens_version": "6.54.12",
        "model_name": "m",
        "hook_name": "blocks.1.hook_resid_pre",
        "context_size": 64,
        "training_architecture": "batchtopk",
        "training_architecture_details": {"k": 2.0},
    },
}


def tensors(dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    g = torch.Generator().manual_seed(3)
    shapes = {"W_enc": (D, F), "b_enc": (F,), "W_dec": (F, D), "b_dec": (D,), "threshold": (F,)}
    return {name: torch.rand(shape, generator=g).to(dtype) + 0.1 for name, shape in shapes.items()}


def files(cfg: dict[str, Any] | bytes | None = None, weights: dict[str, torch.Tensor] | bytes | None = None) -> Files:
    text = cfg if isinstance(cfg, bytes) else json.dumps(CFG if cfg is None else cfg).encode()
    raw = weights if isinstance(weights, bytes) else save(tensors() if weights is None else weights)
    return {NAMES[0]: text, NAMES[1]: raw}


def put(path: Path, content: Files) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    for name, data in content.items():
        (path / name).write_bytes(data)
    return path


def refused(path: Path, *said: str) -> str:
    return one_error(saelens.load, path, *said)


def test_the_folder_that_is_mutated_here_is_sound(tmp_path: Path) -> None:
    sae = saelens.load(put(tmp_path / "x", files()))
    assert (sae.info.architecture, sae.info.k) == ("batchtopk", 2) and sae.threshold is not None


# -- configurations


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("d_in", 5, "d_in: it is 5, but W_dec has 4"),
        ("d_sae", 10**12, "d_sae: it is 1,000,000,000,000"),
        ("d_sae", 10**30, "d_sae"),
        ("d_sae", -6, "d_sae"),
        ("d_sae", 6.0, "d_sae"),
        ("d_sae", True, "d_sae"),
        ("d_sae", "6", "d_sae"),
        ("d_sae", [6], "d_sae"),
        ("architecture", 3, "architecture"),
        ("architecture", ["jumprelu"], "architecture"),
        ("apply_b_dec_to_input", "yes", "apply_b_dec_to_input"),
        ("apply_b_dec_to_input", 1, "apply_b_dec_to_input"),
        ("normalize_activations", {"a": 1}, "normalize_activations"),
        ("normalize_activations", 1.5, "normalize_activations"),
        ("metadata", [1], "metadata"),
        ("metadata", "x", "metadata"),
        ("metadata", {"model_name": 3}, "model_name"),
        ("metadata", {"model_name": "a\u001b[2J"}, "model_name"),
        ("metadata", {"model_name": "\ud800"}, "model_name"),
        ("metadata", {"hook_name": "x" * 5000}, "hook_name"),
        ("metadata", {"hook_name": {"a": 1}}, "hook_name"),
        ("metadata", {"context_size": -1}, "context_size"),
        ("metadata", {"context_size": 1e400}, "context_size"),
        ("metadata", {"prepend_bos": "no"}, "prepend_bos"),
        ("metadata", {"dataset_path": ["a"]}, "dataset_path"),
        ("metadata", {"training_architecture_details": {"k": float("nan")}}, "k: it is nan"),
        ("metadata", {"training_architecture_details": {"k": -3}}, "k: it is -3"),
        ("metadata", {"model_from_pretrained_kwargs": [1]}, "model_from_pretrained_kwargs"),
    ],
)
def test_a_setting_of_the_wrong_kind_is_named(tmp_path: Path, key: str, value: Any, said: str) -> None:
    path = put(tmp_path / "x", files(CFG | {key: value}))
    message = refused(path, said, "cfg.json")
    with pytest.raises(BadFileError) as caught:
        saelens.peek(path)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        (b"", "not valid JSON"),
        (b"{", "not valid JSON"),
        (b"\xff\xfe\x00", "not valid JSON"),
        (b"[]", "expected a JSON object"),
        (b"null", "expected a JSON object"),
        (b'{"a": 1, "a": 2}', "stands twice"),
        (b"[" * 200_000, "nested too deeply"),
        (b'{"a":' * 100_000, "nested too deeply"),
        (b'{"d_in": ' + b"9" * 5000 + b"}", "not valid JSON"),
        (pickle.dumps({"a": 1}), "not valid JSON"),
        (b" " * (MAX_JSON + 1), "at most"),
    ],
)
def test_a_configuration_that_is_no_json_object_is_refused(tmp_path: Path, raw: bytes, said: str) -> None:
    refused(put(tmp_path / "x", files(raw)), said, "cfg.json")


@pytest.mark.parametrize("architecture", ["batchtopk", "matryoshka_batchtopk"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_checkpoint_threshold_that_is_no_number_is_refused(tmp_path: Path, architecture: str, value: float) -> None:
    t = tensors() | {"topk_threshold": torch.tensor(value, dtype=torch.float64)}
    del t["threshold"]
    refused(put(tmp_path / "x", files(CFG | {"architecture": architecture}, t)), "topk_threshold")


@pytest.mark.parametrize("value", ["0", "-1", '"1"', "NaN", "1e400", "[1]", "true", "1" + "0" * 400])
def test_a_norm_factor_that_is_no_positive_number_is_refused(tmp_path: Path, value: str) -> None:
    content = files(CFG | {"normalize_activations": "expected_average_only_in"})
    content[NAMES[2]] = f'{{"scaling_factor": {value}}}'.encode()
    refused(put(tmp_path / "x", content), "scaling_factor", NAMES[2])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"matrix": torch.ones(D, D + 1)}, "matrix.shape"),
        ({"mean": torch.full((D,), float("nan"))}, "mean"),
        ({"inverse_matrix": torch.full((D, D), 1e300, dtype=torch.float64)}, "after folding"),
        ({"extra": torch.ones(1)}, "'extra': unknown tensor"),
    ],
)
def test_a_whitening_that_does_not_fit_is_refused(tmp_path: Path, change: dict[str, torch.Tensor], said: str) -> None:
    content = files(CFG | {"normalize_activations": "covariance_whitening"})
    white = {"mean": torch.ones(D), "matrix": torch.eye(D), "inverse_matrix": torch.eye(D)}
    refused(put(tmp_path / "x", content | {NAMES[3]: save(white | change)}), said)


# -- weights


def edited(change: Callable[[dict[str, Any]], None]) -> bytes:
    raw: bytes = save(tensors())
    n = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + n])
    change(header)
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + raw[8 + n :]


def setting(tensor: str, key: str, value: Any) -> Callable[[dict[str, Any]], None]:
    return lambda header: header[tensor].__setitem__(key, value)


LIES: list[tuple[Callable[[dict[str, Any]], None], str]] = [
    (lambda h: h.pop("W_enc"), "overlaps another tensor or leaves a gap"),
    (setting("W_enc", "shape", [F, D]), "W_enc.shape"),
    (setting("W_enc", "shape", [10**9, 10**9]), "'W_enc'.data_offsets"),
    (setting("W_enc", "shape", [10**4000]), "'W_enc'.shape"),
    (setting("W_enc", "shape", [-D, -F]), "'W_enc'.shape"),
    (setting("W_enc", "shape", [4.0, 6.0]), "'W_enc'.shape"),
    (setting("W_enc", "shape", "46"), "'W_enc'.shape"),
    (setting("W_enc", "shape", [1] * 10_000), "'W_enc'.shape"),
    (setting("W_enc", "dtype", "F16"), "'W_enc'.data_offsets"),
    (setting("W_enc", "dtype", "I32"), "'W_enc'.dtype"),
    (setting("W_enc", "dtype", ["F32"]), "'W_enc'.dtype"),
    (setting("W_enc", "stride", [0, 0]), "'W_enc': expected dtype"),
    (setting("W_enc", "data_offsets", [0, 80 * 10**9]), "'W_enc'.data_offsets"),
    (setting("W_enc", "data_offsets", [-96, 0]), "'W_enc'.data_offsets"),
    (setting("W_enc", "data_offsets", [10**12, 10**12 + 96]), "overlaps another tensor or leaves a gap"),
    (setting("W_enc", "data_offsets", {"0": 1}), "'W_enc'.data_offsets"),
    (lambda h: h.__setitem__("W_enc", [1]), "'W_enc': expected dtype"),
    (lambda h: h.__setitem__("../../x", h.pop("W_enc")), "W_enc: this tensor is missing"),
    (lambda h: h.clear(), "the header declares"),
]


@pytest.mark.parametrize("n", range(len(LIES)))
def test_a_lying_header_is_refused_before_anything_is_reserved(tmp_path: Path, n: int) -> None:
    change, said = LIES[n]
    path = put(tmp_path / "x", files(weights=edited(change)))
    with little_memory(8 << 20):
        refused(path, said, NAMES[1])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"W_enc": torch.full((D, F), float("nan"))}, "W_enc: 24 of 24 values are NaN"),
        ({"b_dec": torch.full((D,), float("inf"))}, "b_dec: 4 of 4"),
        (
            {"b_enc": torch.full((F,), 1e300, dtype=torch.float64)},
            "b_enc: 6 of 6 values are NaN or infinite as float32",
        ),
        ({"b_dec": torch.full((D,), 3e38), "W_enc": torch.full((D, F), 3e38)}, "b_enc: 6 of 6"),
        ({"W_skip": torch.ones(D, D)}, "'W_skip': unknown tensor"),
        ({"W_dec": torch.ones(F * D)}, "W_dec.shape"),
        ({"W_dec": torch.ones(0, D)}, "W_dec.shape"),
        ({"b_enc": torch.ones(F, 1)}, "b_enc.shape"),
        ({"b_enc": torch.ones(F, dtype=torch.int64)}, "'b_enc'.dtype"),
    ],
)
def test_values_and_shapes_no_sae_can_have_are_refused(
    tmp_path: Path, change: dict[str, torch.Tensor], said: str
) -> None:
    refused(put(tmp_path / "x", files(weights=tensors() | change)), said)


def test_pickles_and_archives_are_never_opened(tmp_path: Path) -> None:
    sabotage = Sabotage(tmp_path / "executed")
    torch.save(sabotage, tmp_path / "x.pt")
    with zipfile.ZipFile(tmp_path / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("../W_enc", b"\0" * (1 << 24))
    for raw in (pickle.dumps(sabotage), (tmp_path / "x.pt").read_bytes(), (tmp_path / "bomb.zip").read_bytes()):
        refused(put(tmp_path / "x", files(weights=raw)), "never opened")
    assert not (tmp_path / "executed").exists()


def test_devices_pipes_and_loops_are_refused_and_not_claimed(tmp_path: Path) -> None:
    path = put(tmp_path / "x", files())
    (path / NAMES[1]).unlink()
    os.mkfifo(path / NAMES[1])
    refused(path, "not a regular file")
    assert not saelens.claims(path)
    (path / NAMES[1]).unlink()
    (path / NAMES[1]).symlink_to(path / NAMES[1])
    refused(path, "cannot be opened")
    assert not saelens.claims(path)
    with pytest.raises(SaebenchError):
        saelens.load("a\0b")
    with pytest.raises(BadFileError, match="no such folder"):
        saelens.load(tmp_path / "absent")


def test_links_to_files_elsewhere_are_fine(tmp_path: Path) -> None:
    """The hub's cache is made of them."""
    blobs = put(tmp_path / "blobs", files())
    (tmp_path / "x").mkdir()
    for name in NAMES[:2]:
        (tmp_path / "x" / name).symlink_to(blobs / name)
    assert saelens.load(tmp_path / "x").d_sae == F


# -- random mutations


def varieties() -> list[Files]:
    t = tensors()
    scaled = files(CFG | {"normalize_activations": "expected_average_only_in"})
    scaled[NAMES[2]] = b'{"scaling_factor": 0.5, "has_whitening": false}'
    white = files(CFG | {"normalize_activations": "covariance_whitening"})
    white[NAMES[3]] = save({"mean": torch.ones(D), "matrix": torch.eye(D), "inverse_matrix": torch.eye(D)})
    rest = {name: x for name, x in t.items() if name != "threshold"}
    batch = {**rest, "topk_threshold": torch.tensor(0.7, dtype=torch.float64)}
    gated = {name: t[name] for name in ("W_enc", "W_dec", "b_dec")}
    gated |= dict.fromkeys(("b_gate", "b_mag", "r_mag"), t["b_enc"])
    return [
        files(),
        scaled,
        white,
        files(CFG | {"architecture": "batchtopk", "k": 2.0, "rescale_acts_by_decoder_norm": True}, batch),
        files(CFG | {"architecture": "gated"}, {name: x.clone() for name, x in gated.items()}),
        files({"hook_point": "blocks.0.hook_z", "model_name": "m", "activation_fn_str": "relu"}, rest),
    ]


@pytest.mark.parametrize("variety", range(6))
def test_random_mutations_load_soundly_or_are_one_clear_error(tmp_path: Path, variety: int) -> None:
    content = varieties()[variety]
    path = put(tmp_path / "x", content)
    fuzz(saelens, path, *(path / name for name in content), seed=11 + variety)
