"""SAELens folders of a hub repository, through the hub's own client and a server of this test on the loopback."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hub_server import COMMIT, Hub, Repo, serving
from safetensors.torch import save

D, F = 4, 6
CFG = {
    "model_name": "gpt2-small",
    "hook_point": "blocks.0.hook_resid_pre",
    "d_in": D,
    "d_sae": F,
    "normalize_activations": "expected_average_only_in",
}


def content() -> dict[str, bytes]:
    t = {"W_enc": torch.ones(D, F), "b_enc": torch.ones(F), "W_dec": torch.ones(F, D), "b_dec": torch.ones(D)}
    scaled = {"cfg.json": json.dumps(CFG).encode(), "sae_weights.safetensors": save(t)}
    plain = scaled | {"cfg.json": json.dumps(CFG | {"normalize_activations": "none"}).encode()}
    files = {f"scaled/{name}": data for name, data in scaled.items()}
    files["scaled/activation_scaler.json"] = b'{"scaling_factor": 0.5}'
    files |= {f"lost/{name}": data for name, data in scaled.items()}
    return files | {f"deep/plain/{name}": data for name, data in plain.items()}


@pytest.fixture(scope="module")
def hub() -> Iterator[Hub]:
    repos = {"owner/repo": Repo.of(content(), tags=("v1",)), "owner/gated": Repo.of(content(), gated=True)}
    with serving(repos) as server:
        yield server


def peeked(ref: str, hub: Hub, home: Path, *, offline: bool = False) -> str:
    """What `peek` says in a process of its own: folded, notes and files, or the error."""
    code = (
        "import sys\nfrom saebench_plugins import saelens\nfrom saebench_meta.errors import SaebenchError\n"
        "try:\n"
        f"    h = saelens.peek({ref!r})\n"
        "    print(h.info.name, h.info.folded, h.info.notes, sorted(h.files))\n"
        "except SaebenchError as e: print('error:', e)\n"
        "assert 'torch' not in sys.modules\n"
    )
    return hub.python(code, home, offline=offline)


def test_a_folder_of_a_repository_is_fetched_at_one_commit_and_kept(hub: Hub, tmp_path: Path) -> None:
    said = peeked("owner/repo/scaled@v1", hub, tmp_path)
    assert f"from hub repository owner/repo at {COMMIT}" in said and "activation norm factor 0.5" in said
    assert "['config', 'scaling', 'weights']" in said
    assert peeked("owner/repo/scaled@v1", hub, tmp_path, offline=True) == said


def test_a_factor_that_is_not_on_the_hub_is_known_to_be_absent_offline_too(hub: Hub, tmp_path: Path) -> None:
    said = peeked("owner/repo/lost", hub, tmp_path)
    assert "WARNING" in said and "no factor is there" in said
    assert peeked("owner/repo/lost", hub, tmp_path, offline=True) == said


@pytest.mark.parametrize(
    ("ref", "said"),
    [
        ("owner/gated/scaled", "it is gated"),
        ("owner/absent/scaled", "no such repository"),
        ("owner/repo/scaled@nowhere", "no such revision"),
        ("owner/repo/empty", "no SAELens SAE is there"),
    ],
)
def test_what_the_hub_refuses_is_said_plainly(hub: Hub, tmp_path: Path, ref: str, said: str) -> None:
    assert said in peeked(ref, hub, tmp_path)


def test_nested_folders_and_a_cold_cache_offline(hub: Hub, tmp_path: Path) -> None:
    assert "cannot be reached" in peeked("owner/repo/deep/plain", hub, tmp_path, offline=True)
    assert f"at {COMMIT}" in peeked("owner/repo/deep/plain", hub, tmp_path)
