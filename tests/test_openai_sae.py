"""OpenAI's autoencoder files: the repository's formulas written out, sites from paths, hostile archives refused."""

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
from hostile_bytes import Sabotage, fuzz, little_memory, one_error
from torch import Tensor

from saebench_meta.errors import BadFileError
from saebench_meta.plugins import Registry
from saebench_meta.resolve import resolve_sae
from saebench_plugins import openai_sae

D, F, K = 6, 10, 3
PLACE = Path("gpt2-small") / "resid_post_mlp_v5_32k" / "autoencoders" / "8.pt"
State = dict[str, Any]


def published(activation: str = "TopK", dtype: torch.dtype = torch.float32, **changes: Any) -> State:
    """A state dict as `Autoencoder.state_dict` makes it, counters included."""
    g = torch.Generator().manual_seed(4)
    state: State = OrderedDict(
        pre_bias=torch.randn(D, generator=g).to(dtype),
        latent_bias=torch.randn(F, generator=g).to(dtype),
        stats_last_nonzero=torch.zeros(F, dtype=torch.long),
        latents_activation_frequency=torch.ones(F),
        latents_mean_square=torch.zeros(F),
    )
    state["encoder.weight"] = torch.randn(F, D, generator=g).to(dtype)
    state["decoder.weight"] = torch.randn(D, F, generator=g).to(dtype)
    state["activation"] = activation
    settings: State = OrderedDict(k=K, postact_fn="ReLU") if activation == "TopK" else OrderedDict()
    state["activation_state_dict"] = settings
    state._metadata = OrderedDict({"": {"version": 1}, "encoder": {"version": 1}})  # type: ignore[attr-defined]
    for key, value in changes.items():
        key = key.replace("__", ".")
        if value is ...:
            del state[key]
        else:
            state[key] = value
    return state


def write(path: Path, state: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(state, path)
    return path


def upstream(state: State, x: Tensor) -> tuple[Tensor, Tensor]:
    """`Autoencoder.encode` and `decode`, token by token in float64."""
    pre_bias, latent_bias = state["pre_bias"].double(), state["latent_bias"].double()
    encoder, decoder = state["encoder.weight"].double(), state["decoder.weight"].double()
    codes, x_hat = torch.zeros(len(x), F).double(), torch.zeros(len(x), D).double()
    for t, token in enumerate(x.double()):
        mean, std, eps = torch.tensor(0.0), torch.tensor(1.0), 0.0
        if state["activation"] == "TopK":
            mean = token.sum() / D
            std, eps = (((token - mean) ** 2).sum() / (D - 1)).sqrt(), 1e-5  # eps in the division only
        pre = [float(encoder[i] @ ((token - mean) / (std + eps) - pre_bias) + latent_bias[i]) for i in range(F)]
        kept = sorted(range(F), key=lambda i: -pre[i])[: K if state["activation"] == "TopK" else F]
        for i in kept:
            codes[t, i] = max(pre[i], 0.0)
        x_hat[t] = (decoder @ codes[t] + pre_bias) * std + mean
    return codes, x_hat


def tokens() -> Tensor:
    return torch.randn(60, D, generator=torch.Generator().manual_seed(2)) * 3 + 1


# -- what is read


@pytest.mark.parametrize("activation", ["TopK", "ReLU"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_codes_and_reconstruction_are_upstreams(tmp_path: Path, activation: str, dtype: torch.dtype) -> None:
    state, x = published(activation, dtype), tokens()
    sae = openai_sae.load(write(tmp_path / "x.pt", state))
    codes, x_hat = upstream(state, x)
    assert 0.1 < float((codes > 0).double().mean()) < 0.9
    torch.testing.assert_close(sae.encode(x).double(), codes, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(sae.reconstruct(x).double(), x_hat, atol=1e-5, rtol=1e-5)


def test_codes_are_those_of_upstreams_modules_in_torch(tmp_path: Path) -> None:
    """The same formulas once more with torch's own operations, at a width where ties and small std matter."""
    state, x = published(), torch.cat([tokens(), torch.ones(1, D), tokens()[:1] * 1e-4])
    sae = openai_sae.load(write(tmp_path / "x.pt", state))
    z = x - x.mean(dim=-1, keepdim=True)
    z = z / (z.std(dim=-1, keepdim=True) + 1e-5)
    pre = torch.nn.functional.linear(z - state["pre_bias"], state["encoder.weight"], state["latent_bias"])
    top = torch.topk(pre, k=K, dim=-1)
    expected = torch.zeros_like(pre).scatter_(-1, top.indices, torch.relu(top.values))
    torch.testing.assert_close(sae.encode(x), expected, atol=1e-5, rtol=1e-5)


def test_topk_alone_means_layer_norm_and_a_missing_activation_is_relu(tmp_path: Path) -> None:
    top = openai_sae.peek(write(tmp_path / "a.pt", published())).info
    assert (top.activation, top.k, top.input_transform) == ("topk", K, "layer_norm")
    bare = published("ReLU", activation_state_dict=...)
    del bare["activation"]
    relu = openai_sae.peek(write(tmp_path / "b.pt", bare)).info
    assert (relu.activation, relu.k, relu.input_transform) == ("relu", None, "none")
    assert top.folded == relu.folded and "pre_bias" in top.folded[0]


def test_weights_that_lie_column_by_column_and_parameters_are_read(tmp_path: Path) -> None:
    state = published()
    odd = {"decoder__weight": state["decoder.weight"].T.contiguous().T}
    odd |= {"pre_bias": torch.nn.Parameter(state["pre_bias"])}
    sae, plain = (
        openai_sae.load(write(tmp_path / "odd.pt", published(**odd))),
        openai_sae.load(write(tmp_path / "plain.pt", state)),
    )
    assert torch.equal(sae.W_dec, plain.W_dec) and torch.equal(sae.b_enc, plain.b_enc)


@pytest.mark.parametrize(
    ("place", "hook"),
    [
        (PLACE, "blocks.8.hook_resid_post"),
        (Path("resid_post_attn_v5_128k/autoencoders/0.pt"), "blocks.0.hook_resid_mid"),
        (Path("resid_delta_attn_v5_32k/autoencoders/11.pt"), "blocks.11.hook_attn_out"),
        (Path("resid_delta_mlp_v4/autoencoders/3.pt"), "blocks.3.hook_mlp_out"),
        (Path("mlp_post_act/autoencoders/5.pt"), "blocks.5.mlp.hook_post"),
    ],
)
def test_the_site_comes_from_location_and_layer_in_the_path(tmp_path: Path, place: Path, hook: str) -> None:
    path = write(tmp_path / place, published())
    info = openai_sae.peek(path).info
    assert (info.site.model, info.site.hook) == ("gpt2", hook)
    assert info == openai_sae.load(path).info


def test_a_file_elsewhere_needs_the_users_word_for_model_and_hook(tmp_path: Path) -> None:
    path = write(tmp_path / "8.pt", published())
    site = openai_sae.peek(path).info.site
    assert (site.model, site.hook) == ("unknown (pass --model)", "unknown (pass --hook)")
    registry = Registry()
    registry.register(openai_sae)
    found = resolve_sae(registry, str(path), model="gpt2", hook="blocks.8.hook_resid_post")
    assert found.scheme == "openai"
    assert str(found.load().info.site) == "gpt2/blocks.8.hook_resid_post"


def test_peek_and_claims_import_neither_torch_nor_numpy(tmp_path: Path) -> None:
    path = write(tmp_path / PLACE, published())
    script = (
        "import json, sys; from pathlib import Path; from saebench_plugins import openai_sae as g; "
        f"path = Path({str(path)!r}); found = [g.peek(path).info.d_sae, g.claims(path)]; "
        "print(json.dumps([*found, sorted({'torch', 'numpy', 'transformers'} & set(sys.modules))]))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60)
    assert json.loads(done.stdout) == [F, True, []]


def test_claims_knows_its_files_and_no_others(tmp_path: Path) -> None:
    write(tmp_path / "mine.pt", published())
    write(tmp_path / "other.pt", {"encoder.weight": torch.zeros(2, 2), "bias": torch.zeros(2)})
    write(tmp_path / "list.pt", [torch.zeros(2)])
    write(tmp_path / "mine.bin", published())
    (tmp_path / "broken.pt").write_bytes(b"PK\x03\x04")
    os.mkfifo(tmp_path / "pipe.pt")
    assert {p.name for p in tmp_path.iterdir() if openai_sae.claims(p)} == {"mine.pt"}
    assert not openai_sae.claims(tmp_path / "nul\x00.pt")


# -- what is refused


def refused(path: Path, *said: str) -> None:
    one_error(openai_sae.load, path, *said)


def settings(**changes: Any) -> State:
    return {"activation_state_dict": {"k": K, "postact_fn": "ReLU"} | changes}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"pre_bias": ...}, "pre_bias"),
        ({"encoder__weight": ...}, "encoder.weight: this tensor is missing"),
        ({"decoder__weight": ...}, "decoder.weight"),
        ({"latent_bias": ...}, "latent_bias"),
        ({"decoder__linear__weight": torch.zeros(F, D)}, "decoder.linear.weight': unknown tensor"),
        ({"pre_bias": torch.zeros(D + 1)}, "pre_bias.shape"),
        ({"pre_bias": torch.zeros(())}, "pre_bias.shape"),
        ({"latent_bias": torch.zeros(F, 1)}, "latent_bias.shape"),
        ({"encoder__weight": torch.zeros(D, F)}, "shape"),
        ({"encoder__weight": torch.zeros(F * D)}, "encoder.weight.shape"),
        ({"encoder__weight": torch.zeros(0, D)}, "encoder.weight.shape"),
        ({"decoder__weight": torch.zeros(F, D)}, "decoder.weight.shape"),
        ({"pre_bias": torch.zeros(D, dtype=torch.int64)}, "no tensor of floats"),
        ({"pre_bias": [0.0] * D}, "no tensor of floats"),
        ({"pre_bias": None}, "no tensor of floats"),
        ({"step": 7}, "'step': it is no tensor of floats"),
        ({"pre_bias": torch.full((D,), float("nan"))}, "pre_bias: 6 of 6 values are NaN"),
        ({"encoder__weight": torch.full((F, D), float("inf"))}, "encoder.weight: 60 of 60"),
        ({"pre_bias": torch.full((D,), 3e38), "encoder__weight": torch.full((F, D), 3e38)}, "after folding"),
        ({"activation": "Identity"}, "activation: it is 'Identity'"),
        ({"activation": "GELU"}, "activation: it is 'GELU'"),
        ({"activation": ["TopK"]}, "activation: it is ['TopK']"),
        (settings(postact_fn="Identity"), "activation_state_dict.postact_fn: it is 'Identity'"),
        (settings(k=0), "activation_state_dict.k"),
        (settings(k=-1), "activation_state_dict.k"),
        (settings(k=True), "activation_state_dict.k"),
        (settings(k=3.0), "activation_state_dict.k"),
        (settings(k=F + 1), "activation_state_dict.k"),
        (settings(k=1 << 70), "activation_state_dict.k"),
        ({"activation_state_dict": ...}, "activation_state_dict.k"),
        ({"activation_state_dict": "k"}, "activation_state_dict.k"),
        ({"encoder__weight": torch.zeros(1).expand(F, D)}, "expanded view"),
        ({"encoder__weight": torch.zeros(1).expand(10**10, D)}, "expanded view"),
        ({"pre_bias": torch.zeros(2 * D)[::2]}, "strides"),
    ],
    ids=range(34),
)
def test_a_state_that_is_not_the_formats_is_one_clear_error(tmp_path: Path, changes: State, said: str) -> None:
    refused(write(tmp_path / "x.pt", published(**changes)), said)


@pytest.mark.parametrize("saved", [[torch.zeros(2)], torch.zeros(2), 7, "text", None, {}])
def test_what_is_no_state_dict_is_refused(tmp_path: Path, saved: object) -> None:
    refused(write(tmp_path / "x.pt", saved))


def test_eighty_gigabytes_declared_in_two_kilobytes_cost_no_memory(tmp_path: Path) -> None:
    n = 10**10
    path = write(tmp_path / "x.pt", published(latent_bias=torch.zeros(1).expand(n), encoder__weight=torch.zeros(F, D)))
    assert path.stat().st_size < 10_000
    with little_memory(5_000_000):
        refused(path, "expanded view")


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("field", ["pre_bias", "activation", "activation_state_dict", "other"])
def test_pickled_code_is_refused_and_never_run(tmp_path: Path, zipped: bool, field: str) -> None:
    bait = tmp_path / "executed"
    state = published() | {field: Sabotage(bait)}
    torch.save(state, tmp_path / "x.pt", _use_new_zipfile_serialization=zipped)
    refused(tmp_path / "x.pt")
    assert not openai_sae.claims(tmp_path / "x.pt")
    assert not bait.exists()
    torch.load(tmp_path / "x.pt", weights_only=False)
    assert bait.exists()  # the bait works


@pytest.mark.timeout(30)
def test_what_is_no_regular_file_is_refused_without_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.pt")
    for ref in (tmp_path / "pipe.pt", tmp_path, "/dev/zero", tmp_path / "missing.pt", "nul\x00byte", "n" * 5000):
        with pytest.raises(BadFileError, match="file: "):
            openai_sae.peek(str(ref))


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return write(tmp_path_factory.mktemp("sound") / "x.pt", published()).read_bytes()


def test_every_truncation_is_refused(tmp_path: Path, sound: bytes) -> None:
    for length in range(0, len(sound), 41):
        (tmp_path / "x.pt").write_bytes(sound[:length])
        refused(tmp_path / "x.pt")


def test_random_changes_give_an_error_or_a_sound_sae(tmp_path: Path) -> None:
    path = write(tmp_path / "x.pt", published())
    fuzz(openai_sae, path, path, seed=7)
