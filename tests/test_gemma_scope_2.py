"""Gemma Scope 2: the formula from files of the published layout, sites by configuration and path, refusals, damage."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import pytest
import safetensors.torch
import torch
from hostile_bytes import extra_memory, fuzz, one_error
from hub_server import COMMIT, Repo, serving
from huggingface_hub import errors as hub
from test_gemma_scope import D, F, paper, peeked, published, tokens, wide

from saebench_meta.errors import SaebenchError
from saebench_meta.plugins import Registry
from saebench_meta.resolve import resolve_sae
from saebench_plugins import formats, gemma_scope_2, huggingface, native

INSIDE = "resid_post/layer_17_width_16k_l0_medium"
PLACES = {
    "resid_post": ("model.layers.17.output", "blocks.17.hook_resid_post"),
    "mlp_out": ("model.layers.17.post_feedforward_layernorm.output", "blocks.17.hook_mlp_out"),
    "attn_out": ("model.layers.17.self_attn.o_proj.input", "blocks.17.attn.hook_z"),
}
"""Folder -> place in the published configurations, hook."""
CONFIG: dict[str, Any] = {
    "hf_hook_point_in": PLACES["resid_post"][0],
    "hf_hook_point_out": PLACES["resid_post"][0],
    "width": F,
    "model_name": "google/gemma-3-4b-pt",
    "architecture": "jump_relu",
    "l0": 60,
    "affine_connection": False,
    "type": "sae",
}
UNKNOWN = ("unknown (pass --model)", "unknown (pass --hook)")
Tensors = dict[str, torch.Tensor]


def state_of(**changes: torch.Tensor) -> Tensors:
    return {name: torch.from_numpy(array) for name, array in published().items()} | changes


def write(folder: Path, *, state: Tensors | None = None, **changes: Any) -> Path:
    """A folder as published; a change to `...` leaves the field out."""
    folder.mkdir(parents=True, exist_ok=True)
    safetensors.torch.save_file(state_of() if state is None else state, folder / "params.safetensors")
    config = {key: value for key, value in (CONFIG | changes).items() if value is not ...}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def at(tmp_path: Path, inside: str = INSIDE, release: str = "gemma-scope-2-4b-pt") -> Path:
    return tmp_path / release / inside


def placed(place: str) -> dict[str, str]:
    return {"hf_hook_point_in": place, "hf_hook_point_out": place}


def site(folder: Path) -> tuple[str, str]:
    found = gemma_scope_2.peek(folder).info.site
    return found.model, found.hook


# -- what is read


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_codes_and_reconstruction_are_the_papers_formula(tmp_path: Path, dtype: torch.dtype) -> None:
    state, x = {name: t.to(dtype) for name, t in state_of().items()}, tokens()
    sae = gemma_scope_2.load(write(at(tmp_path), state=state))
    codes, x_hat = paper({name: t.double().numpy() for name, t in state.items()}, x)
    assert 0.1 < (codes > 0).mean() < 0.9
    np.testing.assert_allclose(sae.encode(torch.from_numpy(x)).numpy(), codes, atol=1e-6)
    np.testing.assert_allclose(sae.reconstruct(torch.from_numpy(x)).numpy(), x_hat, atol=5e-6)
    exact = gemma_scope_2.load(at(tmp_path), dtype=torch.float64)
    np.testing.assert_allclose(exact.reconstruct(torch.from_numpy(x).double()).numpy(), x_hat, atol=1e-12)


def test_codes_and_reconstruction_are_those_of_sae_lens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("sae_lens")
    from sae_lens import JumpReLUSAE, JumpReLUSAEConfig
    from sae_lens.loading import pretrained_sae_loaders as theirs

    folder, x = write(at(tmp_path)), torch.from_numpy(tokens())

    def local(repo_id: str, filename: str, **_: object) -> str:
        return str(folder / Path(filename).name)

    monkeypatch.setattr(theirs, "hf_hub_download", local)
    shapes = {name: list(t.shape) for name, t in state_of().items()}
    monkeypatch.setattr(theirs, "get_safetensors_tensor_shapes", lambda *_: shapes)
    config, state, _ = theirs.gemma_3_sae_huggingface_loader("google/gemma-scope-2-4b-pt", INSIDE)
    other = JumpReLUSAE(JumpReLUSAEConfig(d_in=D, d_sae=F, apply_b_dec_to_input=config["apply_b_dec_to_input"]))
    other.load_state_dict(state)
    ours = gemma_scope_2.load(folder)
    assert (config["model_name"], config["hook_name"]) == site(folder)
    assert (config["prepend_bos"], config["context_size"]) == (ours.info.prepend_bos, ours.info.context_size)
    torch.testing.assert_close(ours.encode(x), other.encode(x).detach(), atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(ours.reconstruct(x), other(x).detach(), atol=1e-5, rtol=1e-5)


def test_peek_and_load_tell_the_same_of_a_folder_and_of_its_file(tmp_path: Path) -> None:
    folder = write(at(tmp_path))
    header = gemma_scope_2.peek(folder)
    assert header.info == gemma_scope_2.load(folder / "params.safetensors").info
    assert header.files == {"weights": folder / "params.safetensors", "config": folder / "config.json"}
    info = header.info
    assert (info.name, info.d_in, info.d_sae) == (f"gemma-scope-2-4b-pt/{INSIDE}", D, F)
    assert info.activation == info.architecture == "jumprelu" and info.prepend_bos and info.context_size == 1024
    assert "contexts are not documented" in info.notes[-1]


# -- sites


@pytest.mark.parametrize("folder", PLACES)
@pytest.mark.parametrize("known", ["configuration", "path", "both"])
def test_the_configuration_or_the_path_names_model_and_hook(tmp_path: Path, folder: str, known: str) -> None:
    place, hook = PLACES[folder]
    path = at(tmp_path, f"{folder}_all/layer_17_width_262k_l0_small") if known != "configuration" else tmp_path / "mine"
    write(path, **placed(place))
    if known == "path":
        (path / "config.json").unlink()
    assert site(path) == ("google/gemma-3-4b-pt", hook)
    assert any("there is no config.json" in note for note in gemma_scope_2.peek(path).info.notes) == (known == "path")


@pytest.mark.parametrize(
    ("stated", "release", "model"),
    [
        ("google/gemma-3-270m-pt", "gemma-scope-2-270m-pt", "google/gemma-3-270m"),
        ("gemma-v3-27b-it", "models--google--gemma-scope-2-27b-it/snapshots/0a1b", "google/gemma-3-27b-it"),
        (..., "google-gemma-scope-2-1b-it", "google/gemma-3-1b-it"),
        ("me/my-gemma", "mine", "me/my-gemma"),
        (..., "mine", UNKNOWN[0]),
        ("google/gemma-3-4b-it", "gemma-scope-2-4b-pt", UNKNOWN[0]),
    ],
)
def test_models_have_their_names_on_the_hub(tmp_path: Path, stated: Any, release: str, model: str) -> None:
    assert site(write(at(tmp_path, release=release), model_name=stated))[0] == model


def test_what_configuration_and_path_contradict_is_left_to_the_user(tmp_path: Path) -> None:
    folder = write(at(tmp_path, "attn_out/layer_17_width_16k_l0_small"), model_name="google/gemma-3-4b-it")
    info = gemma_scope_2.peek(folder).info
    assert (info.site.model, info.site.hook) == UNKNOWN
    said = [note for note in info.notes if note.startswith("WARNING")]
    assert ["pass --model" in said[0], "pass --hook" in said[1]] == [True, True]
    assert "blocks.17.hook_resid_post" in said[1] and "blocks.17.attn.hook_z" in said[1]


def test_a_file_that_names_nothing_needs_the_users_word(tmp_path: Path) -> None:
    folder = write(tmp_path / "mine", model_name=..., **dict.fromkeys(placed(""), ...))
    assert site(folder) == UNKNOWN
    found = Registry()
    found.register(gemma_scope_2)
    resolved = resolve_sae(found, str(folder), model="google/gemma-3-1b-pt", hook="blocks.3.hook_resid_post")
    assert str(resolved.load().info.site) == "google/gemma-3-1b-pt/blocks.3.hook_resid_post"


def test_a_place_before_a_norm_is_a_warning_and_an_unknown_one_is_said(tmp_path: Path) -> None:
    info = gemma_scope_2.peek(write(tmp_path / "mine", **placed("model.layers.3.mlp.output"))).info
    assert info.site.hook == "blocks.3.hook_mlp_out" and info.notes[0].startswith(
        "WARNING: google/gemma-3-4b-pt has a norm"
    )
    info = gemma_scope_2.peek(write(tmp_path / "mine", **placed("model.layers.3.mlp.up_proj.output"))).info
    assert info.site.hook == UNKNOWN[1] and "'model.layers.3.mlp.up_proj.output' is none that is known" in info.notes[0]


def test_hooks_are_the_places_that_the_configurations_name(tmp_path: Path) -> None:
    """On a Gemma 3 of random weights: what TransformerLens gives at the hook is what the module reads or writes."""
    folder, layer = gemma_3(tmp_path / "model"), 1
    model = huggingface.load_model(str(folder))
    ids = torch.arange(3, 12)[None]
    expected = module_activations(folder, ids, layer)
    for site_folder, (place, _) in PLACES.items():
        hook = site(write(tmp_path / site_folder, **placed(place.replace("17", str(layer)))))[1]
        kind = place.removeprefix("model.layers.17.")
        torch.testing.assert_close(model.activations(ids, hook).cpu(), expected[kind], atol=1e-5, rtol=1e-5)


def gemma_3(folder: Path) -> Path:
    """A folder with a small Gemma 3 whose norms are no identity, and a tokenizer of numbers."""
    from tokenizers import Tokenizer, models
    from transformers import Gemma3ForCausalLM, Gemma3TextConfig, PreTrainedTokenizerFast

    sizes = {"hidden_size": 16, "intermediate_size": 32, "head_dim": 12, "vocab_size": 64, "sliding_window": 8}
    heads = {"num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1}
    torch.manual_seed(0)
    model = Gemma3ForCausalLM(Gemma3TextConfig(**sizes, **heads, max_position_embeddings=64))
    for name, weight in model.named_parameters():
        if "norm" in name:
            torch.nn.init.normal_(weight)
    model.save_pretrained(folder)
    words = Tokenizer(models.WordLevel({str(i): i for i in range(64)}, unk_token="0"))
    special = {"bos_token": "2", "eos_token": "1", "pad_token": "0", "unk_token": "0"}
    PreTrainedTokenizerFast(tokenizer_object=words, **special).save_pretrained(folder)
    return folder


def module_activations(folder: Path, ids: torch.Tensor, layer: int) -> dict[str, torch.Tensor]:
    """What Hugging Face's own modules read or write, by the end of the place's name."""
    from transformers import Gemma3ForCausalLM

    model, found = Gemma3ForCausalLM.from_pretrained(folder), {}
    block = model.model.layers[layer]
    norm, projection = block.post_feedforward_layernorm, block.self_attn.o_proj
    block.register_forward_hook(lambda _, x, out: found.update({"output": out[0] if isinstance(out, tuple) else out}))
    norm.register_forward_hook(lambda _, x, out: found.update({"post_feedforward_layernorm.output": out}))
    projection.register_forward_pre_hook(lambda _, x: found.update({"self_attn.o_proj.input": x[0]}))
    with torch.no_grad():
        model(ids)
    return found


# -- what is refused


@pytest.mark.parametrize(
    ("changes", "kind"),
    [
        ({"type": "transcoder"}, "transcoder"),
        ({"type": "crosscoder"}, "crosscoder"),
        ({"type": "clt"}, "cross-layer transcoder"),
        ({"affine_connection": True}, "transcoder"),
        (
            {"type": ..., **placed("model.layers.3.mlp.output"), "hf_hook_point_out": "model.layers.3.output"},
            "transcoder",
        ),
    ],
)
def test_a_configuration_of_something_else_is_refused_by_name(
    tmp_path: Path, changes: dict[str, Any], kind: str
) -> None:
    folder = write(tmp_path / "mine", **changes)
    for function in (gemma_scope_2.peek, gemma_scope_2.load):
        with pytest.raises(SaebenchError, match=f"mine' is a {kind}:"):
            function(folder)


@pytest.mark.parametrize(
    ("inside", "kind"),
    [
        ("transcoder/layer_17_width_16k_l0_big", "transcoder"),
        ("transcoder_all/layer_0_width_262k_l0_small_affine", "transcoder"),
        ("crosscoder/layer_5_9_12_15_width_1m_l0_big", "crosscoder"),
        ("clt/width_262k_l0_big_affine", "cross-layer transcoder"),
    ],
)
def test_a_folder_or_hub_reference_of_something_else_is_refused_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, inside: str, kind: str
) -> None:
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", lambda *_, **__: pytest.fail("asked"))
    folder = write(at(tmp_path, inside))
    (folder / "config.json").unlink()
    (folder / "params.safetensors").rename(folder / "params_layer_0.safetensors")
    assert gemma_scope_2.claims(folder)
    for ref in (folder, f"4b-pt/{inside}"):
        with pytest.raises(SaebenchError, match=f"is a {kind}:"):
            gemma_scope_2.peek(ref)


def test_an_affine_connection_among_the_tensors_is_refused_by_name(tmp_path: Path) -> None:
    folder = write(at(tmp_path), state=state_of(affine_skip_connection=torch.zeros(D, D)))
    with pytest.raises(SaebenchError, match="is a transcoder"):
        gemma_scope_2.load(folder)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"architecture": "topk"}, "architecture: it is 'topk', expected jump_relu"),
        ({"architecture": ...}, "architecture: it is None"),
        ({"architecture": 3}, "architecture: it is 3, expected a short"),
        ({"type": "probe"}, "type: it is 'probe', expected sae"),
        ({"width": F + 1}, f"width: it is {F + 1}, and w_enc has {F} latents"),
        ({"width": -1}, "width: it is -1"),
        ({"affine_connection": "no"}, "affine_connection: it is 'no'"),
        ({"model_name": "a\x1b[2J"}, "model_name"),
        ({"hf_hook_point_in": ["model"]}, "hf_hook_point_in"),
    ],
)
def test_a_configuration_that_does_not_fit_is_one_error(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    folder = write(tmp_path / "mine", **changes)
    for function in (gemma_scope_2.peek, gemma_scope_2.load):
        one_error(function, folder, said, "config.json")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"w_enc": None}, "w_enc: this tensor is missing"),
        ({"threshold": None}, "threshold: this tensor is missing"),
        ({"../../etc/passwd": torch.zeros(2)}, "'../../etc/passwd': unknown tensor"),
        ({"W_enc": torch.zeros(D, F)}, "'W_enc': unknown tensor"),
        ({"w_enc": torch.zeros(F, D)}, "shape"),
        ({"w_enc": torch.zeros(0, F)}, "w_enc.shape"),
        ({"w_dec": torch.zeros(F, 4, D)}, "w_dec.shape"),
        ({"b_dec": torch.zeros(D + 1)}, "b_dec.shape"),
        ({"threshold": torch.zeros(())}, "threshold.shape"),
        ({"b_enc": torch.zeros(F, dtype=torch.int32)}, "b_enc"),
    ],
)
def test_tensors_that_do_not_fit_are_one_error(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    state = {name: t for name, t in (state_of() | change).items() if t is not None}
    folder = write(tmp_path / "mine", state=state, width=...)
    for function in (gemma_scope_2.peek, gemma_scope_2.load):
        one_error(function, folder, said, "params.safetensors")


@pytest.mark.parametrize(("value", "dtype"), [(float("nan"), None), (float("inf"), None), (1e30, torch.float16)])
def test_values_that_are_not_finite_are_one_error(tmp_path: Path, value: float, dtype: torch.dtype | None) -> None:
    folder = write(tmp_path / "mine", state=state_of(b_dec=torch.full((D,), value)))
    one_error(
        lambda path: gemma_scope_2.load(path, dtype=dtype), folder, f"b_dec: {D} of {D} values are NaN or infinite"
    )


def test_a_header_that_declares_what_is_not_there_is_refused_before_anything_is_reserved(tmp_path: Path) -> None:
    folder = write(tmp_path / "mine", width=...)
    header = {"w_enc": {"dtype": "F32", "shape": [1 << 30, 1 << 20], "data_offsets": [0, 1 << 52]}}
    text = json.dumps(header).encode()
    (folder / "params.safetensors").write_bytes(len(text).to_bytes(8, "little") + text)
    one_error(gemma_scope_2.load, folder, "cut off or padded")


@pytest.mark.timeout(30)
def test_what_is_no_regular_file_is_refused_without_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "params.safetensors")
    (tmp_path / "a").symlink_to(tmp_path / "a")
    for ref in (tmp_path, Path("/dev/zero"), tmp_path / "a", tmp_path / "missing", Path("n" * 5000)):
        one_error(gemma_scope_2.peek, ref, "file: ")


def test_every_truncation_is_refused(tmp_path: Path) -> None:
    file = write(tmp_path / "mine") / "params.safetensors"
    sound = file.read_bytes()
    for length in range(0, len(sound), 23):
        file.write_bytes(sound[:length])
        one_error(gemma_scope_2.load, file)


def test_damaged_files_give_an_error_or_a_sound_sae(tmp_path: Path) -> None:
    folder = write(tmp_path / "mine")
    fuzz(gemma_scope_2, folder, folder / "params.safetensors", folder / "config.json", seed=11)


def test_loading_takes_little_more_memory_than_the_weights(tmp_path: Path) -> None:
    state = {name: torch.from_numpy(array) for name, array in wide().items()}
    small, large = write(tmp_path / "small"), write(tmp_path / "large", state=state, width=...)
    declared = sum(tensor.nbytes for tensor in state.values())
    assert 0.9 * declared < extra_memory("saebench_plugins.gemma_scope_2", small, large) <= 1.2 * declared


# -- what is recognised


def test_claims_knows_its_folders_and_no_others(tmp_path: Path) -> None:
    folder = write(tmp_path / "mine")
    bare = write(at(tmp_path))
    (bare / "config.json").unlink()
    alone = write(tmp_path / "alone")
    (alone / "config.json").unlink()
    assert gemma_scope_2.claims(folder) and gemma_scope_2.claims(folder / "params.safetensors")
    assert gemma_scope_2.claims(bare) and not gemma_scope_2.claims(alone)
    assert not gemma_scope_2.claims(folder / "config.json") and not gemma_scope_2.claims(tmp_path)
    assert not gemma_scope_2.claims(Path("a\0b"))


def test_no_other_loader_claims_such_a_folder(tmp_path: Path) -> None:
    folder, found = write(tmp_path / "mine"), Registry()
    found.register(formats)
    found.register(native)
    assert [name for name, loader in found.loaders.items() if loader.claims and loader.claims(folder)] == [
        "gemma-scope-2"
    ]


def test_peek_and_claims_import_neither_torch_nor_numpy(tmp_path: Path) -> None:
    folder = write(at(tmp_path))
    script = (
        "import sys; from pathlib import Path; from saebench_plugins import gemma_scope_2 as g; "
        f"p = Path({str(folder)!r}); print(g.claims(p), g.peek(p).info.d_sae, {{'torch', 'numpy'}} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == f"True {F} set()"


# -- the hub


def test_both_files_are_downloaded_from_the_same_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    snapshot = tmp_path / "models--google--gemma-scope-2-4b-pt" / "snapshots" / COMMIT
    write(snapshot / INSIDE)
    asked = []

    def download(repository: str, name: str, *, revision: str | None) -> str:
        asked.append((repository, name.removeprefix(f"{INSIDE}/"), revision))
        return str(snapshot / name)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    for ref in (f"4b-pt/{INSIDE}", f"google/gemma-scope-2-4b-pt/{INSIDE}/params.safetensors@main"):
        info = gemma_scope_2.peek(ref).info
        assert info == gemma_scope_2.load(ref).info
        assert (str(info.site), info.notes[-1]) == (
            "google/gemma-3-4b-pt/blocks.17.hook_resid_post",
            f"hub commit {COMMIT}",
        )
    repository = "google/gemma-scope-2-4b-pt"
    assert set(asked) == {(repository, "config.json", r) for r in (None, "main")} | {
        (repository, "params.safetensors", COMMIT)
    }


@pytest.mark.timeout(120)
def test_the_hubs_own_client_against_a_server_on_loopback(tmp_path: Path) -> None:
    folder = write(tmp_path / "served")
    files = {f"{INSIDE}/{file.name}": file.read_bytes() for file in folder.iterdir()}
    bare = "attn_out_all/layer_3_width_16k_l0_small"
    files[f"{bare}/params.safetensors"] = files[f"{INSIDE}/params.safetensors"]
    repos = {"google/gemma-scope-2-4b-pt": Repo.of(files), "google/gemma-scope-2-1b-pt": Repo.of(files, gated=True)}
    ref, silent, absent = f"4b-pt/{INSIDE}", f"4b-pt/{bare}", f"4b-pt/{INSIDE}".replace("17", "18")
    refs = [ref, f"{ref}@{COMMIT}", silent, f"{ref}@nosuch", absent, ref.replace("4b", "1b"), ref.replace("4b", "12b")]
    with serving(repos) as server:
        online = peeked(refs, server.env(tmp_path / "hf"), "gemma_scope_2")
    sites = ["blocks.17.hook_resid_post", "blocks.17.hook_resid_post", "blocks.3.attn.hook_z"]
    for line, hook in zip(online[:3], sites, strict=True):
        assert line.startswith(f"google/gemma-3-4b-pt/{hook} ") and line.endswith(f"hub commit {COMMIT}")
    said = ("no such revision", "no such file", "is gated", "no such repository")
    assert all(words in line for words, line in zip(said, online[3:], strict=True))
    offline = peeked([ref, silent, absent], server.env(tmp_path / "hf", offline=True), "gemma_scope_2")
    assert offline[:2] == [online[0], online[2]] and "not in the local hub cache" in offline[2]


def test_a_hub_that_cannot_be_reached_does_not_count_as_a_folder_without_configuration(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def download(repository: str, name: str, *, revision: str | None) -> str:
        if name.endswith("config.json"):
            raise hub.LocalEntryNotFoundError("the client says so")
        return pytest.fail("weights were asked for")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    with pytest.raises(SaebenchError, match=r"config\.json .* is not in the local hub cache"):
        gemma_scope_2.peek(f"4b-pt/{INSIDE}")
