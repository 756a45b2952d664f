"""Gemma Scope: the paper's formula from files of the published layout, sites by release, hostile archives refused."""

from __future__ import annotations

import importlib
import io
import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import httpx
import huggingface_hub
import numpy as np
import pytest
import torch
from hostile_bytes import extra_memory, fuzz
from hub_server import COMMIT, Repo, serving
from huggingface_hub import errors as hub

from saebench_meta.errors import BadFileError, SaebenchError
from saebench_meta.plugins import Registry
from saebench_meta.resolve import resolve_sae
from saebench_plugins import formats, gemma_scope, gemma_scope_2

D, F = 6, 10
MEMORY_MB = 128
INSIDE = "layer_20/width_16k/average_l0_71"
Arrays = dict[str, Any]


def published(d: int = D, f: int = F, dtype: str = "<f4", seed: int = 0) -> Arrays:
    rng = np.random.default_rng(seed)
    made = {
        "w_enc": rng.normal(size=(d, f)),
        "w_dec": rng.normal(size=(f, d)),
        "b_enc": rng.normal(size=f),
        "b_dec": rng.normal(size=d),
        "threshold": rng.random(f),
    }
    return {name: array.astype(dtype) for name, array in made.items()}


def write(path: Path, arrays: Arrays, *, compressed: bool = False) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    (np.savez_compressed if compressed else np.savez)(path, **arrays)
    return path


def at(tmp_path: Path, release: str = "gemma-scope-2b-pt-res", inside: str = INSIDE) -> Path:
    return tmp_path / release / inside / "params.npz"


def paper(p: Arrays, x: Any) -> tuple[Any, Any]:
    """Lieberum et al. 2024, equations 1 to 3, token by token and latent by latent in float64."""
    p = {name: array.astype(np.float64) for name, array in p.items()}
    codes = np.zeros((len(x), p["b_enc"].size))
    for t, token in enumerate(x.astype(np.float64)):
        for i in range(p["b_enc"].size):
            pre = sum(token[j] * p["w_enc"][j, i] for j in range(token.size)) + p["b_enc"][i]
            codes[t, i] = max(pre, 0.0) if pre > p["threshold"][i] else 0.0
    return codes, codes @ p["w_dec"] + p["b_dec"]


def tokens(d: int = D, n: int = 40) -> Any:
    return np.random.default_rng(9).normal(size=(n, d)).astype("<f4")


# -- what is read


@pytest.mark.parametrize("compressed", [False, True])
def test_codes_and_reconstruction_are_the_papers_formula(tmp_path: Path, compressed: bool) -> None:
    p, x = published(), tokens()
    sae = gemma_scope.load(write(at(tmp_path), p, compressed=compressed))
    codes, x_hat = paper(p, x)
    assert 0.1 < (codes > 0).mean() < 0.9
    np.testing.assert_allclose(sae.encode(torch.from_numpy(x)).numpy(), codes, atol=1e-6)
    np.testing.assert_allclose(sae.reconstruct(torch.from_numpy(x)).numpy(), x_hat, atol=5e-6)
    exact = gemma_scope.load(at(tmp_path), dtype=torch.float64)
    np.testing.assert_allclose(exact.reconstruct(torch.from_numpy(x).double()).numpy(), x_hat, atol=1e-12)


def test_a_pre_activation_at_its_threshold_is_not_active(tmp_path: Path) -> None:
    p = published(1, 2)
    p |= {"w_enc": np.ones((1, 2), "<f4"), "b_enc": np.zeros(2, "<f4"), "threshold": np.array([0.5, 0.25], "<f4")}
    sae = gemma_scope.load(write(at(tmp_path), p))
    assert sae.encode(torch.tensor([[0.5], [0.75], [-1.0]])).tolist() == [[0.0, 0.5], [0.75, 0.75], [0.0, 0.0]]


@pytest.mark.parametrize("dtype", ["<f2", "<f8"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_other_dtypes_and_memory_orders_give_the_same_values(tmp_path: Path, dtype: str, order: str) -> None:
    p = {name: np.array(a, order=order) for name, a in published(dtype=dtype).items()}  # type: ignore[call-overload]
    sae = gemma_scope.load(write(at(tmp_path), p), dtype=torch.float64)
    for name, canonical in gemma_scope.TENSORS.items():
        assert getattr(sae, canonical).tolist() == p[name].astype(np.float64).tolist()


@pytest.mark.parametrize(
    ("release", "inside", "model", "hook"),
    [
        ("gemma-scope-2b-pt-res", INSIDE, "google/gemma-2-2b", "blocks.20.hook_resid_post"),
        ("9b-it-res", "layer_9/width_131k/average_l0_10", "google/gemma-2-9b-it", "blocks.9.hook_resid_post"),
        ("gemma-scope-27b-pt-mlp", INSIDE, "google/gemma-2-27b", "blocks.20.hook_mlp_out"),
        ("models--google--gemma-scope-2b-pt-att/snapshots/0a1b", INSIDE, "google/gemma-2-2b", "blocks.20.attn.hook_z"),
        ("gemma-scope-2b-pt-res", "embedding/width_4k/average_l0_6", "google/gemma-2-2b", "hook_embed"),
    ],
)
def test_model_and_hook_come_from_the_release(tmp_path: Path, release: str, inside: str, model: str, hook: str) -> None:
    path = write(at(tmp_path, release, inside), published())
    info = gemma_scope.peek(path).info
    assert (info.site.model, info.site.hook) == (model, hook)
    assert info.prepend_bos and info.activation == info.architecture == "jumprelu"
    assert (info.d_in, info.d_sae) == (D, F)
    assert info == gemma_scope.peek(path.parent).info == gemma_scope.load(path).info


def test_an_embedding_sae_reads_embeddings_after_gemma_scaled_them(tmp_path: Path) -> None:
    p, x = published(), tokens()
    sae = gemma_scope.load(write(at(tmp_path, inside="embedding/width_4k/average_l0_6"), p), dtype=torch.float64)
    codes, x_hat = paper(p, x)
    scaled = torch.from_numpy(x).double() * D**0.5
    np.testing.assert_allclose(sae.encode(scaled).numpy(), codes, atol=1e-12)
    np.testing.assert_allclose(sae.reconstruct(scaled).numpy(), x_hat * D**0.5, atol=1e-12)
    assert sae.info.folded


def test_a_bare_file_needs_the_users_word_for_model_and_hook(tmp_path: Path) -> None:
    path = write(tmp_path / "params.npz", published())
    info = gemma_scope.peek(path).info
    assert info.site.model == "unknown (pass --model)" and info.site.hook == "unknown (pass --hook)"
    assert "no Gemma Scope release" in info.notes[0]
    registry = Registry()
    registry.register(gemma_scope)
    found = resolve_sae(registry, str(path), model="google/gemma-2-2b", hook="blocks.3.hook_resid_post")
    assert found.scheme == "gemma-scope"
    assert str(found.load().info.site) == "google/gemma-2-2b/blocks.3.hook_resid_post"


def test_a_scaling_factor_of_ones_is_accepted_and_another_is_refused(tmp_path: Path) -> None:
    path = write(at(tmp_path), published() | {"scaling_factor": np.ones(F, "<f4")})
    assert gemma_scope.load(path).W_enc.tolist() == published()["w_enc"].tolist()
    write(path, published() | {"scaling_factor": np.full(F, 2, "<f4")})
    with pytest.raises(BadFileError, match="scaling_factor"):
        gemma_scope.load(path)


def test_transcoders_are_refused_by_name(tmp_path: Path) -> None:
    path = write(at(tmp_path, "gemma-scope-2b-pt-transcoders"), published())
    for ref in (str(path), f"2b-pt-transcoders/{INSIDE}"):
        with pytest.raises(SaebenchError, match="is a transcoder"):
            gemma_scope.peek(ref)


def test_peek_and_claims_import_neither_torch_nor_numpy(tmp_path: Path) -> None:
    path = write(at(tmp_path), published(), compressed=True)
    script = (
        "import json, sys; from pathlib import Path; from saebench_plugins import gemma_scope as g; "
        f"path = Path({str(path)!r}); found = [g.peek(path).info.d_sae, g.claims(path), g.claims(path.parent)]; "
        "print(json.dumps([*found, sorted({'torch', 'numpy', 'transformers'} & set(sys.modules))]))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60)
    assert json.loads(done.stdout) == [F, True, True, []]


def test_claims_knows_its_files_and_no_others(tmp_path: Path) -> None:
    write(tmp_path / "folder" / "params.npz", published())
    write(tmp_path / "mine.npz", published())
    write(tmp_path / "other.npz", {"a": np.ones(2)})
    (tmp_path / "broken.npz").write_bytes(b"PK\x03\x04")
    os.mkfifo(tmp_path / "pipe.npz")
    assert {p.name for p in tmp_path.iterdir() if gemma_scope.claims(p)} == {"folder", "mine.npz"}
    assert not gemma_scope.claims(tmp_path / "nul\x00")


@pytest.mark.parametrize("scheme", ["gemma-scope", "gemma-scope-2"])
def test_the_papers_threshold_for_pairs_is_the_default_of_both_suites(scheme: str) -> None:
    module = importlib.import_module(f"saebench_plugins.{formats.FORMATS[scheme][0]}")
    offered, own = formats.saebench_loaders()[scheme], module.saebench_loaders()[scheme]
    tasks = ("novel_latents", "novel_latents_family", "stitching", "stitching_family", "frankenstein")
    assert offered.parameters == own.parameters == {f"{task}.threshold": 0.4 for task in tasks}


def test_codes_and_reconstruction_are_those_of_sae_lens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("sae_lens")
    from sae_lens import JumpReLUSAE, JumpReLUSAEConfig
    from sae_lens.loading import pretrained_sae_loaders as theirs

    path, x = write(at(tmp_path), published()), torch.from_numpy(tokens())
    monkeypatch.setattr(theirs, "hf_hub_download", lambda **_: str(path))
    config, state, _ = theirs.gemma_2_sae_huggingface_loader(
        "google/gemma-scope-2b-pt-res", INSIDE, cfg_overrides={"d_in": D, "d_sae": F}
    )
    other = JumpReLUSAE(JumpReLUSAEConfig(d_in=D, d_sae=F, apply_b_dec_to_input=False))
    other.load_state_dict(state)
    ours = gemma_scope.load(path)
    assert (config["hook_name"], config["prepend_bos"]) == (ours.info.site.hook, ours.info.prepend_bos)
    torch.testing.assert_close(ours.encode(x), other.encode(x).detach(), atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(ours.reconstruct(x), other(x).detach(), atol=1e-5, rtol=1e-5)


# -- the hub, whose client is replaced


def test_a_release_name_downloads_one_file_at_the_revision_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = "ab" * 20
    cached = write(at(tmp_path, f"models--google--gemma-scope-2b-pt-res/snapshots/{commit}"), published())
    asked = []

    def download(repository: str, name: str, *, revision: str | None) -> str:
        asked.append((repository, name, revision))
        return str(cached)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    for ref in (f"2b-pt-res/{INSIDE}", f"google/gemma-scope-2b-pt-res/{INSIDE}@{commit}"):
        header = gemma_scope.peek(ref)
        assert header.info.site.hook == "blocks.20.hook_resid_post"
        assert f"hub commit {commit}" in header.info.notes
        assert gemma_scope.load(ref).info == header.info
    file = f"{INSIDE}/params.npz"
    assert set(asked) == {("google/gemma-scope-2b-pt-res", file, r) for r in (None, commit)}


@pytest.mark.parametrize(
    ("error", "status", "said"),
    [
        (hub.LocalEntryNotFoundError, None, "not in the local hub cache"),
        (hub.GatedRepoError, 403, "is gated"),
        (hub.RevisionNotFoundError, 404, "no such revision"),
        (hub.RemoteEntryNotFoundError, 404, "no such file"),
        (hub.RepositoryNotFoundError, 401, "no such repository"),
        (hub.HfHubHTTPError, 500, "could not be downloaded"),
        (OSError, None, "could not be downloaded"),
    ],
)
def test_whatever_the_hub_answers_is_one_clear_error(
    monkeypatch: pytest.MonkeyPatch, error: type[Exception], status: int | None, said: str
) -> None:
    def download(*_: object, **__: object) -> str:
        if status is None:
            raise error("the client says so")
        response = httpx.Response(status, request=httpx.Request("GET", "http://localhost"))
        raise error("the client says so", response=response)  # type: ignore[call-arg]

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    with pytest.raises(SaebenchError, match=said) as caught:
        gemma_scope.peek(f"2b-pt-res/{INSIDE}")
    assert f"google/gemma-scope-2b-pt-res/{INSIDE}/params.npz" in str(caught.value)


@pytest.mark.parametrize(
    ("suite", "release", "example"),
    [(gemma_scope, "2b-pt-res", INSIDE), (gemma_scope_2, "4b-pt", "4b-pt/resid_post/layer_17_width_16k_l0_medium")],
)
@pytest.mark.parametrize(
    "inside",
    [
        "layer_20/width_16k/canonical",
        "layer_17_width_16k_l0_medium",
        "../../etc/passwd",
        "layer_20",
        f"{INSIDE}/../x",
        f"x\x1b/{INSIDE}",
        "n" * 5000,
        "nul\x00",
    ],
)
def test_the_hub_is_not_asked_for_what_no_release_has(
    monkeypatch: pytest.MonkeyPatch, suite: Any, release: str, example: str, inside: str
) -> None:
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", lambda *_, **__: pytest.fail("asked"))
    with pytest.raises(SaebenchError, match=f"Write it as {example}") as caught:
        suite.peek(f"{release}/{inside}")
    assert str(caught.value).isprintable()


@pytest.mark.timeout(120)
def test_the_hubs_own_client_against_a_server_on_loopback(tmp_path: Path) -> None:
    files = {f"{INSIDE}/params.npz": write(tmp_path / "params.npz", published()).read_bytes()}
    repos = {"google/gemma-scope-2b-pt-res": Repo.of(files), "google/gemma-scope-9b-pt-res": Repo.of(files, gated=True)}
    ref = f"2b-pt-res/{INSIDE}"
    refs = [ref, f"{ref}@{COMMIT}", f"{ref}@nosuch", ref.replace("71", "72"), ref.replace("2b", "9b")]
    with serving(repos) as server:
        online = peeked(refs, server.env(tmp_path / "hf"))
    sound = f"google/gemma-2-2b/blocks.20.hook_resid_post hub commit {COMMIT}"
    assert online[:2] == [sound, sound]
    said = ("no such revision", "no such file", "is gated")
    assert all(words in line for words, line in zip(said, online[2:], strict=True))
    offline = peeked([ref, ref.replace("71", "72")], server.env(tmp_path / "hf", offline=True))
    assert offline[0] == sound and "not in the local hub cache" in offline[1]


def peeked(refs: list[str], env: dict[str, str], module: str = "gemma_scope") -> list[str]:
    """What `peek` says of each reference in a process of its own: site and notes, or the error."""
    script = (
        f"import sys\nfrom saebench_meta.errors import SaebenchError\nfrom saebench_plugins import {module} as module\n"
        "for ref in sys.argv[1:]:\n"
        "    try:\n        info = module.peek(ref).info; print(info.site, *info.notes)\n"
        "    except SaebenchError as e:\n        print(e)\n"
    )
    command = [sys.executable, "-c", script, *refs]
    return subprocess.run(command, env=env, capture_output=True, text=True, check=True).stdout.splitlines()


# -- memory


@pytest.mark.parametrize("compressed", [False, True])
def test_loading_takes_little_more_memory_than_the_weights(tmp_path: Path, compressed: bool) -> None:
    p = wide()
    small = write(tmp_path / "small" / "params.npz", published())
    large = write(tmp_path / "large" / "params.npz", p, compressed=compressed)
    declared = sum(array.nbytes for array in p.values())
    assert 0.9 * declared < extra_memory("saebench_plugins.gemma_scope", small, large) <= 1.2 * declared


def wide(d: int = 256) -> Arrays:
    """Arrays of MEMORY_MB megabytes."""
    f = MEMORY_MB * 1_000_000 // (8 * d)
    values = np.random.default_rng(0).standard_normal((d, f), np.float32)
    p: Arrays = {"w_enc": values, "w_dec": np.ascontiguousarray(values.T)}
    return p | {"b_enc": np.zeros(f, "<f4"), "b_dec": np.zeros(d, "<f4"), "threshold": np.ones(f, "<f4")}


def test_a_bomb_of_zeros_is_refused_before_anything_is_reserved(tmp_path: Path) -> None:
    zeros = {name: np.zeros_like(array) for name, array in wide().items()}
    large = write(tmp_path / "params.npz", zeros, compressed=True)
    small = write(tmp_path / "small" / "params.npz", published())
    with pytest.raises(BadFileError, match="never so compressible"):
        gemma_scope.load(str(large))
    assert extra_memory("saebench_plugins.gemma_scope", small, large) < 10_000_000


# -- hostile archives


def members(raw: bytes) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(raw)) as z:
        return {name: z.read(name) for name in z.namelist()}


def archive(parts: list[tuple[str, bytes]], method: int = zipfile.ZIP_STORED) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", method) as z:
        for name, data in parts:
            z.writestr(name, data)
    return out.getvalue()


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return write(tmp_path_factory.mktemp("sound") / "params.npz", published()).read_bytes()


def refused(tmp_path: Path, raw: bytes, *said: str) -> None:
    path = tmp_path / "params.npz"
    path.write_bytes(raw)
    with pytest.raises(BadFileError) as caught:
        gemma_scope.load(path)
    message = str(caught.value)
    assert str(path) in message and message.isprintable() and len(message) < 800 + len(str(path))
    for words in said:
        assert words in message


def npy(header: str, data: bytes = b"", version: bytes = b"\x01\x00") -> bytes:
    text = header.encode("latin-1")
    return b"\x93NUMPY" + version + len(text).to_bytes(2 if version[0] == 1 else 4, "little") + text + data


def declared(descr: str, shape: str, order: str = "False") -> str:
    return f"{{'descr': '{descr}', 'fortran_order': {order}, 'shape': {shape}, }}\n"


LIES: list[tuple[str, bytes | None, str]] = [
    ("w_enc", None, "w_enc: this array is missing"),
    ("threshold", None, "threshold: this array is missing"),
    ("b_dec", npy(declared("<f4", "(7,)"), bytes(28)), "b_dec.shape"),
    ("b_dec", npy(declared("<f4", "(6, 1)"), bytes(24)), "b_dec.shape"),
    ("b_dec", npy(declared("<f4", "(999999999999,)"), bytes(24)), "b_dec.shape"),
    ("b_dec", npy(declared("<f4", "(-6,)"), bytes(24)), "not an array as numpy writes it"),
    ("b_dec", npy(declared("<f4", "(6, x)"), bytes(24)), "not an array as numpy writes it"),
    ("b_dec", npy(declared("|O", "(6,)"), bytes(24)), "b_dec.dtype"),
    ("b_dec", npy(declared(">f4", "(6,)"), bytes(24)), "b_dec.dtype"),
    ("b_dec", npy(declared("<i4", "(6,)"), bytes(24)), "b_dec.dtype"),
    ("b_dec", npy(declared("<f4", "(6,)"), bytes(20)), "b_dec.shape"),
    ("b_dec", npy(declared("<f4", "(6,)"), bytes(28)), "b_dec.shape"),
    ("b_dec", npy("{'descr': __import__('os').getcwd(), }\n", bytes(24)), "not an array as numpy writes it"),
    ("b_dec", npy("[" * 4000, bytes(24)), "not an array as numpy writes it"),
    ("b_dec", npy("x" * 60_000, bytes(24)), "not an array as numpy writes it"),
    ("b_dec", b"", "not an array as numpy writes it"),
    ("b_dec", b"\x80\x04N.", "not an array as numpy writes it"),
    ("b_dec", npy(declared("<f4", "(6,)"), np.full(6, np.nan, "<f4").tobytes()), "6 of 6 values are NaN"),
    ("w_enc", npy(declared("<f4", "()"), bytes(4)), "w_enc.shape"),
    ("w_enc", npy(declared("<f4", "(0, 10)")), "w_enc.shape"),
    ("w_enc", npy(declared("<f4", "(10, 6)"), bytes(240)), "shape"),
    ("../w_enc", npy(declared("<f4", "(6,)"), bytes(24)), "unknown array"),
    ("/etc/x\x1b", npy(declared("<f4", "(6,)"), bytes(24)), "unknown array"),
]


@pytest.mark.parametrize(("name", "data", "said"), LIES, ids=range(len(LIES)))
def test_a_lying_array_is_one_error_that_names_it(
    tmp_path: Path, sound: bytes, name: str, data: bytes | None, said: str
) -> None:
    parts = members(sound) | ({f"{name}.npy": data} if data is not None else {})
    if data is None:
        del parts[f"{name}.npy"]
    refused(tmp_path, archive(list(parts.items())), said)


def test_headers_of_later_numpy_versions_are_read(tmp_path: Path, sound: bytes) -> None:
    data = np.arange(6, dtype="<f4").tobytes()
    parts = members(sound) | {"b_dec.npy": npy(declared("<f4", "(6,)"), data, b"\x02\x00")}
    (tmp_path / "params.npz").write_bytes(archive(list(parts.items())))
    assert gemma_scope.load(tmp_path / "params.npz").b_dec.tolist() == [0, 1, 2, 3, 4, 5]


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_an_array_that_stands_twice_is_refused(tmp_path: Path, sound: bytes) -> None:
    parts = [*members(sound).items(), ("b_dec.npy", members(sound)["b_dec.npy"])]
    refused(tmp_path, archive(parts), "stands twice")


def test_an_array_compressed_in_another_way_is_refused(tmp_path: Path, sound: bytes) -> None:
    refused(tmp_path, archive(list(members(sound).items()), zipfile.ZIP_LZMA), "compressed in a way")


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_sizes_that_the_archive_cannot_hold_cost_no_memory(tmp_path: Path, sound: bytes, method: int) -> None:
    """A sound archive whose directory and header agree on 3 GB that are not there."""
    text = declared("<f4", "(800000000,)")
    parts = members(sound) | {"b_enc.npy": npy(text)}
    raw = bytearray(archive(list(parts.items()), method))
    size = len(npy(text))
    place = raw.rfind(b"b_enc.npy") - 46  # its entry in the directory
    assert raw[place : place + 4] == b"PK\x01\x02" and int.from_bytes(raw[place + 24 : place + 28], "little") == size
    raw[place + 24 : place + 28] = (size + 3_200_000_000).to_bytes(4, "little")
    refused(tmp_path, bytes(raw), "b_enc: it declares 3,200,000,")


def test_a_directory_of_many_megabytes_is_not_read(tmp_path: Path) -> None:
    raw = archive([(f"{i:0200d}", b"") for i in range(6000)])
    refused(tmp_path, raw, "not a sound zip archive", "of directory are declared")


@pytest.mark.timeout(30)
def test_what_is_no_regular_file_is_refused_without_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "params.npz")
    (tmp_path / "a").symlink_to(tmp_path / "a")
    for ref in (tmp_path, "/dev/zero", tmp_path / "a", tmp_path / "missing", "nul\x00byte", "n" * 5000):
        with pytest.raises(BadFileError, match="file: "):
            gemma_scope.peek(str(ref))


def test_every_truncation_is_refused(tmp_path: Path, sound: bytes) -> None:
    for length in range(0, len(sound), 37):
        refused(tmp_path, sound[:length])


def test_random_changes_give_an_error_or_the_sound_values(tmp_path: Path) -> None:
    path = write(tmp_path / "params.npz", published())
    fuzz(gemma_scope, path, path, seed=5)
