"""SAELens folders: codes and reconstructions are sae-lens' own, and what a configuration says is understood."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from saebench_meta.errors import BadFileError, SaebenchError, UnknownNameError
from saebench_meta.plugins import Registry
from saebench_meta.resolve import resolve_sae
from saebench_meta.sae import SAE, SAEInfo, Site
from saebench_plugins import native, saelens, saelens_releases
from saebench_plugins.saelens_export import to_saelens

D, F = 12, 30
Tensors = dict[str, torch.Tensor]


def weights(seed: int = 0, *, gated: bool = False, **more: Any) -> Tensors:
    g = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=g)

    norms = torch.rand(F, 1, generator=g) * 2 + 0.2
    t = {"W_enc": draw(D, F) * 0.4, "W_dec": torch.nn.functional.normalize(draw(F, D), dim=1) * norms}
    t["b_dec"] = draw(D)
    per_latent = ("b_gate", "b_mag", "r_mag") if gated else ("b_enc",)
    return t | {name: draw(F) * 0.5 for name in per_latent} | more


FLAT = {
    "model_name": "gpt2-small",
    "hook_point": "blocks.3.hook_resid_pre",
    "d_in": D,
    "d_sae": F,
    "context_size": 64,
    "dataset_path": "some/text",
    "dtype": "torch.float32",
}
V6 = {
    "architecture": "standard",
    "d_in": D,
    "d_sae": F,
    "dtype": "float32",
    "device": "cpu",
    "apply_b_dec_to_input": False,
    "normalize_activations": "none",
    "reshape_activations": "none",
    "metadata": {
        "sae_lens_version": "6.54.12",
        "model_name": "org/model",
        "hook_name": "blocks.1.hook_mlp_out",
        "prepend_bos": False,
        "context_size": 99,
    },
}


def folder(path: Path, cfg: dict[str, Any], tensors: Tensors | None = None) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    (path / "cfg.json").write_text(json.dumps(cfg))
    save_file(tensors or weights(), path / "sae_weights.safetensors")
    return path


def activations(n: int = 64, seed: int = 5) -> torch.Tensor:
    """Tokens with a large mean and the spread of a residual stream."""
    g = torch.Generator().manual_seed(seed)
    return torch.randn(n, D, generator=g) * 4 + torch.randn(D, generator=g) * 3


def close(a: torch.Tensor, b: torch.Tensor) -> bool:
    return float((a - b).abs().max()) <= 1e-5 * max(1.0, float(b.abs().max()))


# -- by hand: formulas written out here, without sae-lens


def test_old_flat_configuration_is_relu_of_the_centred_input(tmp_path: Path) -> None:
    t = weights()
    sae = saelens.load(folder(tmp_path / "x", FLAT, t))
    x = activations()
    f = torch.relu((x - t["b_dec"]) @ t["W_enc"] + t["b_enc"])
    assert close(sae.encode(x), f) and close(sae.reconstruct(x), f @ t["W_dec"] + t["b_dec"])
    i = sae.info
    assert (i.site.model, i.site.hook) == ("gpt2", "blocks.3.hook_resid_pre")
    assert (i.context_size, i.dataset, i.prepend_bos, i.architecture) == (64, "some/text", True, "relu")
    assert i.folded == ("b_dec subtracted before encoding",)


def test_version_6_configuration_keeps_its_metadata_with_or_without_a_version(tmp_path: Path) -> None:
    """sae-lens drops `metadata` where it has no version; here it is read either way."""
    without = V6 | {"metadata": {k: v for k, v in V6["metadata"].items() if k != "sae_lens_version"}}  # type: ignore[attr-defined]
    for n, cfg in enumerate((V6, without)):
        info = saelens.peek(folder(tmp_path / str(n), cfg)).info
        assert (info.site.model, info.site.hook) == ("org/model", "blocks.1.hook_mlp_out")
        assert (info.prepend_bos, info.context_size, info.folded) == (False, 99, ())


def test_old_activation_function_topk_is_topk(tmp_path: Path) -> None:
    cfg = FLAT | {"activation_fn_str": "topk", "activation_fn_kwargs": {"k": 4}}
    sae = saelens.load(folder(tmp_path / "x", cfg))
    assert (sae.info.activation, sae.info.k) == ("topk", 4)
    assert int((sae.encode(activations()) != 0).sum(1).max()) <= 4


def test_topk_without_rescaling_keeps_its_selection(tmp_path: Path) -> None:
    """Folding decoder norms here would choose other latents; with the flag it must be done."""
    t, x = weights(), activations()
    plain = saelens.load(folder(tmp_path / "a", FLAT | {"architecture": "topk", "k": 3}, t))
    rescaled_cfg = FLAT | {"architecture": "topk", "k": 3, "rescale_acts_by_decoder_norm": True}
    rescaled = saelens.load(folder(tmp_path / "b", rescaled_cfg, t))
    pre = (x - t["b_dec"]) @ t["W_enc"] + t["b_enc"]
    top = torch.zeros_like(pre).scatter(1, pre.topk(3).indices, 1) * torch.relu(pre)
    assert close(plain.encode(x), top) and torch.equal(plain.W_dec, t["W_dec"])
    n = t["W_dec"].norm(dim=1)
    top_n = torch.zeros_like(pre).scatter(1, (pre * n).topk(3).indices, 1) * torch.relu(pre * n)
    assert close(rescaled.encode(x), top_n)
    assert close(rescaled.reconstruct(x), (top_n / n) @ t["W_dec"] + t["b_dec"])
    assert not torch.equal(plain.encode(x) != 0, rescaled.encode(x) != 0)
    assert torch.allclose(rescaled.W_dec.norm(dim=1), torch.ones(F))


def test_gated_is_the_jumprelu_it_is_equal_to(tmp_path: Path) -> None:
    t, x = weights(gated=True), activations()
    sae = saelens.load(folder(tmp_path / "x", FLAT | {"architecture": "gated"}, t))
    h = (x - t["b_dec"]) @ t["W_enc"]
    f = (h + t["b_gate"] > 0) * torch.relu(h * t["r_mag"].exp() + t["b_mag"])
    assert sae.encoder is None and sae.info.architecture == "gated"
    assert close(sae.encode(x), f) and close(sae.reconstruct(x), f @ t["W_dec"] + t["b_dec"])
    assert sae.threshold is not None and float(sae.threshold.min()) >= 0
    gate_only = ((h + t["b_gate"] > 0) != (h * t["r_mag"].exp() + t["b_mag"] > 0)).any()
    assert bool(gate_only), "the gate and the magnitude must disagree somewhere, or the test says nothing"


def test_batchtopk_checkpoint_runs_with_its_threshold_on_rescaled_activations(tmp_path: Path) -> None:
    theta = torch.tensor(1.3, dtype=torch.float64)
    t, x = weights(topk_threshold=theta), activations()
    cfg = V6 | {"architecture": "batchtopk", "k": 2.5, "rescale_acts_by_decoder_norm": True}
    sae = saelens.load(folder(tmp_path / "x", cfg, t))
    pre = (x @ t["W_enc"] + t["b_enc"]) * t["W_dec"].norm(dim=1)
    f = pre * (pre > 1.3)
    assert close(sae.encode(x), f)
    assert close(sae.reconstruct(x), (f / t["W_dec"].norm(dim=1)) @ t["W_dec"] + t["b_dec"])
    assert (sae.info.architecture, sae.info.activation, sae.info.k) == ("batchtopk", "jumprelu", 2)


def test_a_batchtopk_threshold_that_was_never_estimated_is_said(tmp_path: Path) -> None:
    tensors = weights(topk_threshold=torch.tensor(0.0, dtype=torch.float64))
    info = saelens.peek(folder(tmp_path / "x", V6 | {"architecture": "matryoshka_batchtopk", "k": 3}, tensors)).info
    assert any("never estimated" in note for note in info.notes)


@pytest.mark.parametrize("flag", [True, "expected_average_only_in"])
def test_factor_beside_a_checkpoint_is_folded(tmp_path: Path, flag: Any) -> None:
    t, x = weights(), activations()
    path = folder(tmp_path / "x", FLAT | {"normalize_activations": flag}, t)
    (path / "activation_scaler.json").write_text('{"scaling_factor": 0.25, "has_whitening": false}')
    sae, header = saelens.load(path), saelens.peek(path)
    f = torch.relu((0.25 * x - t["b_dec"]) @ t["W_enc"] + t["b_enc"])
    assert close(sae.encode(x), f) and close(sae.reconstruct(x), (f @ t["W_dec"] + t["b_dec"]) / 0.25)
    assert set(header.files) == {"config", "weights", "scaling"}


def test_a_factor_that_is_missing_is_said_loudly(tmp_path: Path) -> None:
    info = saelens.peek(folder(tmp_path / "x", FLAT | {"normalize_activations": "expected_average_only_in"})).info
    assert any(note.startswith("WARNING") and "activation_scaler.json" in note for note in info.notes)


def test_a_factor_that_is_folded_already_is_not_folded_again(tmp_path: Path) -> None:
    path = folder(tmp_path / "x", FLAT | {"normalize_activations": "none"})
    (path / "activation_scaler.json").write_text('{"scaling_factor": 0.25}')
    assert saelens.load(path).info.folded == ("b_dec subtracted before encoding",)


@pytest.mark.parametrize("architecture", ["standard", "gated"])
@pytest.mark.parametrize("subtract", [True, False])
def test_whitening_beside_a_checkpoint_is_folded(tmp_path: Path, architecture: str, subtract: bool) -> None:
    t, x = weights(gated=architecture == "gated"), activations()
    cfg = FLAT | {"normalize_activations": "covariance_whitening", "apply_b_dec_to_input": subtract}
    path = folder(tmp_path / "x", cfg | {"architecture": architecture}, t)
    g = torch.Generator().manual_seed(9)
    M = torch.randn(D, D, generator=g, dtype=torch.float64) * 0.1 + torch.eye(D, dtype=torch.float64)
    mean = torch.randn(D, generator=g, dtype=torch.float64)
    white = {"mean": mean, "matrix": M, "inverse_matrix": torch.linalg.inv(M).contiguous()}
    save_file(white, path / "activation_whitening.safetensors")
    z = (x.double() - mean) @ M - (t["b_dec"] if subtract else 0)
    h = z @ t["W_enc"].double()
    if architecture == "gated":
        f = (h + t["b_gate"] > 0) * torch.relu(h * t["r_mag"].exp() + t["b_mag"])
    else:
        f = torch.relu(h + t["b_enc"])
    x_hat = (f @ t["W_dec"].double() + t["b_dec"]) @ white["inverse_matrix"] + mean
    sae = saelens.load(path)
    assert close(sae.encode(x), f.float()) and close(sae.reconstruct(x), x_hat.float())
    assert "covariance whitening" in sae.info.folded


@pytest.mark.parametrize(
    ("mode", "transform"), [("layer_norm", "layer_norm"), ("constant_norm_rescale", "norm_rescale")]
)
def test_per_token_normalisations_become_input_transforms(tmp_path: Path, mode: str, transform: str) -> None:
    assert (
        saelens.load(folder(tmp_path / "x", FLAT | {"normalize_activations": mode})).info.input_transform == transform
    )


def test_finetuning_factor_scales_the_decoder_only_when_it_is_switched_on(tmp_path: Path) -> None:
    factor = torch.rand(F) + 0.5
    t, x = weights(scaling_factor=factor), activations()
    sae = saelens.load(folder(tmp_path / "a", FLAT | {"finetuning_scaling_factor": True}, t))
    f = torch.relu((x - t["b_dec"]) @ t["W_enc"] + t["b_enc"])
    assert close(sae.encode(x), f) and close(sae.reconstruct(x), (f * factor) @ t["W_dec"] + t["b_dec"])
    with pytest.raises(BadFileError, match="scaling_factor"):
        saelens.load(folder(tmp_path / "b", FLAT, t))
    ones = saelens.load(folder(tmp_path / "c", FLAT, weights(scaling_factor=torch.ones(F))))
    assert close(ones.encode(x), f)


def test_log_thresholds_of_older_checkpoints_are_thresholds(tmp_path: Path) -> None:
    log = torch.linspace(-2, 1, F)
    sae = saelens.load(folder(tmp_path / "x", FLAT | {"architecture": "jumprelu"}, weights(log_threshold=log)))
    assert sae.threshold is not None and torch.allclose(sae.threshold, log.exp())


# -- centring


JB = FLAT | {
    "hook_point": "blocks.8.hook_resid_pre",
    "d_in": 768,
    "context_size": 128,
    "dataset_path": "Skylion007/openwebtext",
}


def gpt2_folder(path: Path, cfg: dict[str, Any], d_sae: int) -> Path:
    t = {"W_enc": torch.ones(768, d_sae), "b_enc": torch.zeros(d_sae), "W_dec": torch.ones(d_sae, 768)}
    return folder(path, cfg | {"d_sae": d_sae}, t | {"b_dec": torch.zeros(768)})


def test_feature_splitting_folder_is_known_by_its_settings_and_centred(tmp_path: Path) -> None:
    info = saelens.peek(gpt2_folder(tmp_path / "downloaded", JB, 768)).info
    assert info.input_transform == "center"
    assert any("gpt2-small-res-jb-feature-splitting" in note for note in info.notes)


@pytest.mark.parametrize(
    "change",
    [
        {"dataset_path": "mine"},
        {"context_size": 256},
        {"hook_point": "blocks.7.hook_resid_pre"},
        {"model_name": "EleutherAI/pythia-160m"},
        {"sae_lens_version": "6.1.0"},
        {"architecture": "topk", "k": 5},
        {"model_from_pretrained_kwargs": {"center_writing_weights": False}},
    ],
)
def test_an_sae_of_the_users_own_on_gpt2_is_not_centred(tmp_path: Path, change: dict[str, Any]) -> None:
    assert saelens.peek(gpt2_folder(tmp_path / "x", JB | change, 768)).info.input_transform == "none"


@pytest.mark.parametrize("above", ["gpt2-small-res-jb-feature-splitting", "GPT2-Small-SAEs-Reformatted"])
def test_folder_below_a_releases_name_is_centred(tmp_path: Path, above: str) -> None:
    path = gpt2_folder(tmp_path / above / "blocks.8.hook_resid_pre", JB | {"dataset_path": None}, 5)
    assert saelens.peek(path).info.input_transform == "center"


def test_center_writing_weights_is_a_centred_input_where_the_hook_writes_to_the_stream(tmp_path: Path) -> None:
    kwargs = {"model_from_pretrained_kwargs": {"center_writing_weights": True}}
    t, x = weights(), activations()
    sae = saelens.load(folder(tmp_path / "a", FLAT | kwargs, t))
    mean = x.mean(1, keepdim=True)
    f = torch.relu((x - mean - t["b_dec"]) @ t["W_enc"] + t["b_enc"])
    assert close(sae.encode(x), f) and close(sae.reconstruct(x), f @ t["W_dec"] + t["b_dec"] + mean)
    z = saelens.peek(folder(tmp_path / "b", FLAT | kwargs | {"hook_point": "blocks.3.attn.hook_z"})).info
    assert z.input_transform == "none" and any("heads" in note for note in z.notes)
    layer_norm = FLAT | kwargs | {"normalize_activations": "layer_norm"}
    assert saelens.peek(folder(tmp_path / "c", layer_norm)).info.input_transform == "layer_norm"
    with pytest.raises(SaebenchError, match="centred"):
        saelens.peek(folder(tmp_path / "d", FLAT | kwargs | {"normalize_activations": "constant_norm_rescale"}))


# -- what is refused by name


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"architecture": "transcoder", "d_out": D}, "'transcoder' is not read"),
        ({"architecture": "jumprelu_skip_transcoder"}, "'jumprelu_skip_transcoder' is not read"),
        ({"architecture": "crosscoder"}, "reconstructs another place"),
        ({"d_out": 4}, "writes elsewhere"),
        ({"hook_name_out": "blocks.4.hook_mlp_out"}, "transcoder"),
        ({"architecture": "temporal"}, "earlier tokens"),
        ({"architecture": "matching_pursuit"}, "'matching_pursuit' is not read"),
        ({"architecture": "abstopk", "k": 3}, "negative"),
        ({"architecture": "jumprelo"}, "did you mean 'jumprelu'"),
        ({"activation_fn_str": "tanh-relu"}, "activation_fn 'tanh-relu'"),
        ({"hook_point_head_index": 3}, "one attention head"),
        ({"normalize_activations": "batch_norm"}, "'batch_norm'"),
        ({"architecture": "topk"}, "k: a topk SAE needs it"),
        ({"architecture": "topk", "k": F + 1}, "more than d_sae"),
    ],
)
def test_what_is_not_read_is_refused_by_name(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    path = folder(tmp_path / "x", FLAT | change)
    for way in (saelens.peek, saelens.load):
        with pytest.raises(SaebenchError) as caught:
            way(str(path))
        assert said in str(caught.value) and str(path) in str(caught.value)


# -- being found


@pytest.fixture
def registry() -> Registry:
    found = Registry()
    found.register(native, "native")
    found.register(saelens, "saelens")
    return found


def test_bare_folder_is_claimed_by_this_loader_alone(tmp_path: Path, registry: Registry) -> None:
    path = folder(tmp_path / "x", FLAT)
    assert resolve_sae(registry, str(path)).scheme == "saelens"
    assert resolve_sae(registry, str(path / "sae_weights.safetensors")).scheme == "saelens"
    assert not saelens.claims(tmp_path) and not saelens.claims(path / "cfg.json")
    assert not saelens.claims(tmp_path / ("x" * 5000))
    resolved = resolve_sae(registry, f"saelens:{path}")
    assert resolved.load().info == resolved.info and set(resolved.files) == {"config", "weights"}


def test_a_folder_that_names_no_site_takes_the_users_word(tmp_path: Path, registry: Registry) -> None:
    cfg = {k: v for k, v in V6.items() if k != "metadata"}
    info = saelens.peek(folder(tmp_path / "x", cfg)).info
    assert any("--model and --hook" in note for note in info.notes)
    resolved = resolve_sae(registry, str(tmp_path / "x"), model="m", hook="blocks.0.hook_resid_post")
    assert str(resolved.load().info.site) == "m/blocks.0.hook_resid_post"


def test_peek_and_claims_import_neither_torch_nor_numpy_nor_sae_lens(tmp_path: Path) -> None:
    path = folder(tmp_path / "x", FLAT)
    code = (
        "import sys; from pathlib import Path; from saebench_plugins import saelens\n"
        f"assert saelens.claims(Path({str(path)!r})); saelens.peek({str(path)!r})\n"
        "try: saelens.peek('no-such-release/x')\n"
        "except Exception as e: print(type(e).__name__)\n"
        "assert not {'torch', 'numpy', 'sae_lens', 'transformer_lens'} & sys.modules.keys()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr


REGISTRY = """\
other-release:
  conversion_func: gemma_2
  model: m
  repo_id: google/g
  saes:
  - id: layer_1/x
    path: layer_1/x
my-release:
  config_overrides:
    dataset_path: some/data
  conversion_func: null
  model: gpt2-small
  repo_id: owner/repo
  saes:
  - id: blocks.0.hook_resid_pre
    norm_scaling_factor: 0.5
    path: deep/v0
"""


def test_references_are_looked_up_in_the_registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "pretrained_saes.yaml"
    file.write_text(REGISTRY)
    monkeypatch.setattr(saelens_releases, "registry_file", lambda: file)
    find = saelens_releases.find_release
    found = find("my-release/blocks.0.hook_resid_pre@abc")
    assert (found.repo, found.folder, found.revision, found.scaling) == ("owner/repo", "deep/v0", "abc", 0.5)
    assert found.overrides == {"dataset_path": "some/data"}
    with pytest.raises(UnknownNameError, match=r"did you mean 'blocks\.0\.hook_resid_pre'"):
        find("my-release/blocks.0.hook_resid_pr")
    with pytest.raises(UnknownNameError, match="did you mean 'my-release'"):
        find("my-releas/x")
    with pytest.raises(SaebenchError, match="gemma-scope"):
        find("other-release/layer_1/x")
    with pytest.raises(SaebenchError, match="no folder and no reference"):
        find("owner/repo/../../x")


def test_without_sae_lens_the_message_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(saelens_releases, "registry_file", lambda: None)
    with pytest.raises(SaebenchError, match=r"saebench-meta\[saelens\]"):
        saelens.load("some-release/some-sae")
    found = saelens_releases.find_release("gpt2-small-res-jb/blocks.8.hook_resid_pre")
    assert found.repo == "jbloom/GPT2-Small-SAEs-Reformatted" and found.overrides
    assert saelens_releases.find_release("owner/repo/a/b").folder == "a/b"


def test_an_sae_of_the_hub_is_read_with_what_its_release_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The hub's client is stood in for: the cache's layout, one commit for every file, the factor of the registry."""
    commit = "0123456789abcdef0123456789abcdef01234567"
    snapshot = tmp_path / "models--owner--repo" / "snapshots" / commit
    folder(snapshot / "deep" / "v0", FLAT | {"normalize_activations": True})
    (tmp_path / "r.yaml").write_text(REGISTRY)
    monkeypatch.setattr(saelens_releases, "registry_file", lambda: tmp_path / "r.yaml")
    asked = []

    def fetch(repo: str, file: str, *, revision: str | None) -> str:
        asked.append((repo, file, revision))
        return str(snapshot / file)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", fetch)
    header = saelens.peek("my-release/blocks.0.hook_resid_pre@v1")
    assert asked == [
        ("owner/repo", "deep/v0/cfg.json", "v1"),
        ("owner/repo", "deep/v0/sae_weights.safetensors", commit),
    ]
    assert "activation norm factor 0.5" in header.info.folded and set(header.files) == {"config", "weights", "registry"}
    assert header.info.dataset == "some/data" and any(commit in note for note in header.info.notes)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        ("GatedRepoError", "gated"),
        ("LocalEntryNotFoundError", "cannot be reached"),
        ("RevisionNotFoundError", "no such revision"),
        ("RemoteEntryNotFoundError", "no SAELens SAE is there"),
        ("RepositoryNotFoundError", "no such repository"),
    ],
)
def test_what_goes_wrong_on_the_hub_is_told_by_its_cause(
    monkeypatch: pytest.MonkeyPatch, error: str, said: str
) -> None:
    import httpx
    from huggingface_hub import errors

    kind = getattr(errors, error)
    answer = httpx.Response(404, request=httpx.Request("GET", "http://localhost"))

    def fail(*_: Any, **__: Any) -> str:
        raise kind("no") if error == "LocalEntryNotFoundError" else kind("no", response=answer)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", fail)
    with pytest.raises(SaebenchError, match=said):
        saelens.peek("owner/repo/folder")


# -- export


def canonical(activation: str, transform: str, hook: str = "blocks.2.hook_resid_post") -> SAE:
    t = weights(3)
    info = SAEInfo(
        name="mine",
        site=Site(model="gpt2", hook=hook),
        d_in=D,
        d_sae=F,
        architecture={"jumprelu": "batchtopk"}.get(activation, activation),
        activation=activation,  # type: ignore[arg-type]
        k=None if activation == "relu" else 4,
        input_transform=transform,  # type: ignore[arg-type]
        prepend_bos=False,
        context_size=77,
        dataset="d",
    )
    theta = torch.linspace(-0.5, 1, F) if activation == "jumprelu" else None
    return SAE(t["W_enc"], t["b_enc"], t["W_dec"], t["b_dec"], info, theta)


KINDS = list(itertools.product(("relu", "jumprelu", "topk"), ("none", "center", "layer_norm", "norm_rescale")))


@pytest.mark.parametrize(("activation", "transform"), KINDS)
def test_what_is_exported_comes_back_with_the_same_codes_and_identity(
    tmp_path: Path, activation: str, transform: str
) -> None:
    sae, x = canonical(activation, transform), activations()
    back = saelens.load(to_saelens(sae, tmp_path / "out"))
    assert close(back.encode(x), sae.encode(x)) and close(back.reconstruct(x), sae.reconstruct(x))
    assert back.info.identity() == sae.info.identity()
    assert (back.info.architecture, back.info.dataset) == (sae.info.architecture, sae.info.dataset)


def test_export_writes_a_whole_folder_or_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sae = canonical("relu", "none")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("kept")
    with pytest.raises(SaebenchError, match="not empty"):
        to_saelens(sae, tmp_path / "full")
    (tmp_path / "empty").mkdir()
    to_saelens(sae, tmp_path / "empty")

    def full_disk(path: Path, data: bytes) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("saebench_meta.store.write_synced", full_disk)
    with pytest.raises(SaebenchError, match="No space left"):
        to_saelens(sae, tmp_path / "never")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["empty", "full"]


def test_export_refuses_what_sae_lens_cannot_say(tmp_path: Path) -> None:
    from dataclasses import replace

    with pytest.raises(SaebenchError, match="centres its input"):
        to_saelens(canonical("relu", "center", "blocks.1.attn.hook_z"), tmp_path / "a")
    with pytest.raises(SaebenchError, match="encoder of its own"):
        to_saelens(replace(canonical("relu", "none"), encoder=torch.relu), tmp_path / "b")
    broken = canonical("relu", "none")
    broken.b_enc[0] = float("nan")
    with pytest.raises(SaebenchError, match="b_enc"):
        to_saelens(broken, tmp_path / "c")
