"""Folders that sae-lens itself wrote, opened by both: the same codes and reconstructions, to 1e-5 of the largest.

Runs where sae-lens is installed. Where its own loading leaves something unfolded that lies in the folder (a norm
factor, a whitening), or refuses (batchtopk), the comparison is with sae-lens after its own folding, or as it exports.
"""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

from saebench_meta.errors import SaebenchError
from saebench_meta.sae import SAE, SAEInfo, Site
from saebench_plugins import saelens
from saebench_plugins.saelens_export import to_saelens

pytest.importorskip("sae_lens", reason="sae-lens is an optional extra")

from sae_lens import registry as their_registry
from sae_lens.saes import sae as theirs_module
from sae_lens.saes.sae import SAEMetadata, TrainingSAE
from sae_lens.training.activation_scaler import ActivationScaler, ActivationWhitening

D, F = 16, 40
NORMALIZATIONS = ("none", "layer_norm", "constant_norm_rescale", "expected_average_only_in", "covariance_whitening")
HOOK = "blocks.2.hook_resid_post"
load_theirs = theirs_module.SAE.load_from_disk


@pytest.fixture(autouse=True)
def _quiet() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def make(architecture: str, *, training: bool = False, hook: str = HOOK, **settings: Any) -> Any:
    """An SAE of theirs with random weights, and decoder rows whose norms are all but 1."""
    find = their_registry.get_sae_training_class if training else their_registry.get_sae_class
    kind, config = find(architecture)
    metadata = SAEMetadata(model_name="org/model", hook_name=hook, context_size=33, prepend_bos=True, dataset_path="d")
    sae = kind(config(d_in=D, d_sae=F, metadata=metadata, **settings))
    g = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, p in sae.named_parameters():
            p.copy_(torch.randn(p.shape, generator=g) * (0.5 if p.ndim == 1 else 0.3))
            if "threshold" in name:
                p.abs_()
        sae.W_dec.mul_(torch.rand(F, 1, generator=g) * 3 + 0.2)
        if hasattr(sae, "topk_threshold"):
            sae.topk_threshold = torch.tensor(1.1, dtype=torch.float64)
    return sae


def activations(*shape: int) -> torch.Tensor:
    g = torch.Generator().manual_seed(2)
    return torch.randn(*(shape or (80, D)), generator=g) * 5 + torch.randn(D, generator=g) * 2


def whitening() -> ActivationWhitening:
    g = torch.Generator().manual_seed(3)
    M = torch.randn(D, D, generator=g, dtype=torch.float64) * 0.05 + 0.4 * torch.eye(D, dtype=torch.float64)
    return ActivationWhitening(torch.randn(D, generator=g, dtype=torch.float64), M, torch.linalg.inv(M).contiguous())


def beside(path: Path, sae: Any, normalization: str) -> None:
    """Write the factor or the whitening as their trainer does, and fold it into their SAE."""
    if normalization == "expected_average_only_in":
        ActivationScaler(scaling_factor=0.3).save(str(path / "activation_scaler.json"))
        sae.fold_activation_norm_scaling_factor(0.3)
    if normalization == "covariance_whitening":
        w = whitening()
        ActivationScaler(whitening=w).save(str(path / "activation_scaler.json"))
        sae.fold_activation_whitening(w.mean, w.matrix, w.inverse_matrix)


def assert_same(ours: SAE, theirs: Any, x: torch.Tensor) -> None:
    with torch.no_grad():
        f = theirs.encode(x)
        x_hat = theirs.decode(f)
    ours_f, ours_x = ours.encode(x), ours.reconstruct(x)
    assert 0 < float((f != 0).float().mean()) < 1, "the test says nothing if no latent, or every latent, is active"
    assert float((ours_f - f).abs().max()) <= 1e-5 * float(f.abs().max())
    assert float((ours_x - x_hat).abs().max()) <= 1e-5 * float(x_hat.abs().max())


INFERENCE = [
    ("standard", {}),
    ("gated", {}),
    ("jumprelu", {}),
    ("topk", {"k": 5}),
    ("topk", {"k": 5, "rescale_acts_by_decoder_norm": True}),
]


@pytest.mark.parametrize("subtract", [True, False])
@pytest.mark.parametrize("normalization", NORMALIZATIONS)
@pytest.mark.parametrize(("architecture", "settings"), INFERENCE)
def test_inference_saes_of_every_architecture_and_normalisation(
    tmp_path: Path, architecture: str, settings: dict[str, Any], normalization: str, subtract: bool
) -> None:
    sae = make(architecture, normalize_activations=normalization, apply_b_dec_to_input=subtract, **settings)
    sae.save_model(tmp_path)
    if normalization not in ("expected_average_only_in", "covariance_whitening"):
        assert_same(saelens.load(tmp_path), load_theirs(tmp_path), activations())
    beside(tmp_path, sae, normalization)
    assert_same(saelens.load(tmp_path), sae, activations())


@pytest.mark.parametrize("normalization", ["expected_average_only_in", "covariance_whitening"])
@pytest.mark.parametrize(("architecture", "settings"), INFERENCE)
def test_without_the_factor_the_sae_is_run_as_sae_lens_runs_it(
    tmp_path: Path, architecture: str, settings: dict[str, Any], normalization: str
) -> None:
    make(architecture, normalize_activations=normalization, **settings).save_model(tmp_path)
    ours = saelens.load(tmp_path)
    assert any(note.startswith("WARNING") for note in ours.info.notes)
    assert_same(ours, load_theirs(tmp_path), activations())


TRAINING = [
    ("standard", {}),
    ("gated", {}),
    ("jumprelu", {}),
    ("topk", {"k": 5, "rescale_acts_by_decoder_norm": True}),
    ("topk", {"k": 5, "rescale_acts_by_decoder_norm": False}),
    ("batchtopk", {"k": 4.5, "rescale_acts_by_decoder_norm": True}),
    ("batchtopk", {"k": 4.5, "rescale_acts_by_decoder_norm": False}),
    ("matryoshka_batchtopk", {"k": 4, "matryoshka_widths": [10, F], "rescale_acts_by_decoder_norm": True}),
]


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
@pytest.mark.parametrize(("architecture", "settings"), TRAINING)
def test_trainer_checkpoints_are_what_sae_lens_exports_from_them(
    tmp_path: Path, architecture: str, settings: dict[str, Any], normalization: str
) -> None:
    """Their export is fold, then `save_inference_model`; a batchtopk's is a JumpReLU SAE."""
    sae = make(architecture, training=True, normalize_activations=normalization, **settings)
    (tmp_path / "checkpoint").mkdir()
    sae.save_model(tmp_path / "checkpoint")
    beside(tmp_path / "checkpoint", sae, normalization)
    sae.save_inference_model(tmp_path / "exported")
    exported = load_theirs(tmp_path / "exported")
    assert_same(saelens.load(tmp_path / "checkpoint"), exported, activations())
    ours = saelens.load(tmp_path / "exported")
    assert_same(ours, exported, activations())
    assert ours.info.architecture == ("relu" if architecture == "standard" else architecture)


def test_batchtopk_checkpoints_are_refused_by_sae_lens_and_read_here(tmp_path: Path) -> None:
    sae = make("batchtopk", training=True, k=4.0)
    sae.save_model(tmp_path)
    with pytest.raises(KeyError):
        load_theirs(tmp_path)
    assert isinstance(TrainingSAE.load_from_disk(tmp_path), TrainingSAE)
    info = saelens.peek(tmp_path).info
    assert (info.architecture, info.activation, info.k) == ("batchtopk", "jumprelu", 4)


@pytest.mark.parametrize("architecture", ["standard", "topk", "jumprelu"])
def test_hook_z_is_read_with_its_heads_side_by_side(tmp_path: Path, architecture: str) -> None:
    hook = "blocks.0.attn.hook_z"
    settings: dict[str, Any] = {"k": 5} if architecture == "topk" else {}
    make(architecture, hook=hook, reshape_activations="hook_z", **settings).save_model(tmp_path)
    ours, theirs = saelens.load(tmp_path), load_theirs(tmp_path)
    x = activations()
    with torch.no_grad():
        f = theirs.encode(x.view(-1, 4, D // 4))
        x_hat = theirs.decode(f).flatten(1)
    assert torch.allclose(ours.encode(x), f, atol=1e-5 * float(f.abs().max()))
    assert torch.allclose(ours.reconstruct(x), x_hat, atol=1e-5 * float(x_hat.abs().max()))


@pytest.mark.parametrize("architecture", ["transcoder", "skip_transcoder", "jumprelu_transcoder"])
def test_their_transcoders_are_refused_by_name(tmp_path: Path, architecture: str) -> None:
    make(architecture, d_out=D, apply_b_dec_to_input=False).save_model(tmp_path)
    with pytest.raises(SaebenchError, match=f"'{architecture}' is not read"):
        saelens.peek(tmp_path)


@pytest.mark.parametrize(
    "cfg",
    [
        {"hook_point": "blocks.1.attn.hook_z", "normalize_activations": False},
        {"hook_name": "blocks.1.hook_resid_pre", "normalize_activations": None, "apply_b_dec_to_input": False},
        {"hook_point": HOOK, "activation_fn_str": "topk", "activation_fn_kwargs": {"k": 3}},
        {"hook_name": HOOK, "sae_lens_training_version": "5.3.0", "activation_fn": "relu", "architecture": "standard"},
    ],
)
def test_flat_configurations_of_versions_3_to_5(tmp_path: Path, cfg: dict[str, Any]) -> None:
    make("standard").save_model(tmp_path)
    flat = {"model_name": "gpt2-small", "d_in": D, "d_sae": F, "dtype": "torch.float32", "context_size": 128}
    (tmp_path / "cfg.json").write_text(json.dumps(flat | cfg))
    ours, theirs = saelens.load(tmp_path), load_theirs(tmp_path)
    theirs.turn_off_forward_pass_hook_z_reshaping()
    assert_same(ours, theirs, activations())
    assert ours.info.site.hook == theirs.cfg.metadata.hook_name
    assert ours.info.context_size == theirs.cfg.metadata.context_size


@pytest.mark.parametrize("transform", ["none", "center", "layer_norm", "norm_rescale"])
@pytest.mark.parametrize("activation", ["relu", "jumprelu", "topk"])
def test_what_is_exported_opens_in_sae_lens_with_the_same_codes(
    tmp_path: Path, activation: str, transform: str
) -> None:
    g = torch.Generator().manual_seed(8)
    info = SAEInfo(
        name="mine",
        site=Site(model="gpt2", hook=HOOK),
        d_in=D,
        d_sae=F,
        activation=activation,  # type: ignore[arg-type]
        k=4 if activation == "topk" else None,
        input_transform=transform,  # type: ignore[arg-type]
        context_size=50,
        prepend_bos=False,
    )
    W = [torch.randn(s, generator=g) * 0.4 for s in ((D, F), (F,), (F, D), (D,))]
    sae = SAE(W[0], W[1], W[2], W[3], info, torch.linspace(-1, 2, F) if activation == "jumprelu" else None)
    theirs = load_theirs(to_saelens(sae, tmp_path / "out"))
    x = activations()
    with torch.no_grad():
        f = theirs.encode(x)
        x_hat = theirs.decode(f) + (x.mean(1, keepdim=True) if transform == "center" else 0)
    assert torch.allclose(sae.encode(x), f, atol=1e-5 * float(f.abs().max()), rtol=0)
    assert torch.allclose(sae.reconstruct(x), x_hat, atol=1e-5 * float(x_hat.abs().max()), rtol=0)
    metadata = theirs.cfg.metadata
    assert (metadata.hook_name, metadata.model_name, metadata.context_size) == (HOOK, "gpt2-small", 50)
    assert metadata.prepend_bos is False
    centred = bool((metadata.model_from_pretrained_kwargs or {}).get("center_writing_weights"))
    assert centred == (transform == "center")


def test_the_registry_of_releases_is_read_as_sae_lens_reads_it() -> None:
    from sae_lens.loading.pretrained_saes_directory import get_pretrained_saes_directory

    from saebench_plugins.saelens_releases import CENTRED_RELEASES, find_release

    theirs = get_pretrained_saes_directory()
    for name, release in CENTRED_RELEASES.items():
        assert theirs[name].repo_id == release.repo
        assert theirs[name].config_overrides["model_from_pretrained_kwargs"] == {"center_writing_weights": True}
        for sae_id, path in theirs[name].saes_map.items():
            found = find_release(f"{name}/{sae_id}")
            assert (found.repo, found.folder) == (release.repo, path)
            assert found.scaling == theirs[name].norm_scaling_factor.get(sae_id)
            assert found.overrides["model_from_pretrained_kwargs"] == {"center_writing_weights": True}
    others = {
        name
        for name, lookup in theirs.items()
        if "center_writing_weights" in str(lookup.config_overrides) and name not in CENTRED_RELEASES
    }
    assert not others, "a release that needs centring is missing from the table"
