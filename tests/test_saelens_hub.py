"""SAELens folders of a hub repository, through the hub's own client and a server of this test on the loopback."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from safetensors.torch import save

COMMIT = "0123456789abcdef0123456789abcdef01234567"
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


class Hub(BaseHTTPRequestHandler):
    """`/<owner>/<name>/resolve/<revision>/<file>`, as the client asks for it."""

    files = content()

    def answer(self, body: bool) -> None:
        _owner, name, _, revision, *rest = self.path.split("?")[0].strip("/").split("/")
        data = self.files.get("/".join(rest))
        if name == "gated":
            return self.refuse(403, "GatedRepo")
        if name == "absent":
            return self.refuse(401, "RepoNotFound")
        if revision not in ("main", "v1", COMMIT):
            return self.refuse(404, "RevisionNotFound")
        if data is None:
            return self.refuse(404, "EntryNotFound")
        self.send_response(200)
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("ETag", f'"{hashlib.sha256(data).hexdigest()}"')
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if body:
            self.wfile.write(data)
        return None

    def refuse(self, status: int, code: str) -> None:
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        self.send_header("X-Error-Message", code)
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def do_HEAD(self) -> None:
        self.answer(body=False)

    def do_GET(self) -> None:
        self.answer(body=True)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


def peeked(ref: str, endpoint: str, home: Path, *, offline: bool = False) -> str:
    """What `peek` says in a process of its own: folded, notes and files, or the error."""
    code = (
        "import sys\nfrom saebench_plugins import saelens\nfrom saebench_meta.errors import SaebenchError\n"
        "try:\n"
        f"    h = saelens.peek({ref!r})\n"
        "    print(h.info.name, h.info.folded, h.info.notes, sorted(h.files))\n"
        "except SaebenchError as e: print('error:', e)\n"
        "assert 'torch' not in sys.modules\n"
    )
    kept = {k: v for k, v in os.environ.items() if not k.lower().endswith("_proxy")}
    env = kept | {"HF_ENDPOINT": endpoint, "HF_HOME": str(home), "HF_HUB_OFFLINE": "1" if offline else "0"}
    env |= {"HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1", "HF_TOKEN": ""}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_folder_of_a_repository_is_fetched_at_one_commit_and_kept(endpoint: str, tmp_path: Path) -> None:
    said = peeked("owner/repo/scaled@v1", endpoint, tmp_path)
    assert f"from hub repository owner/repo at {COMMIT}" in said and "activation norm factor 0.5" in said
    assert "['config', 'scaling', 'weights']" in said
    assert peeked("owner/repo/scaled@v1", endpoint, tmp_path, offline=True) == said


def test_a_factor_that_is_not_on_the_hub_is_known_to_be_absent_offline_too(endpoint: str, tmp_path: Path) -> None:
    said = peeked("owner/repo/lost", endpoint, tmp_path)
    assert "WARNING" in said and "no factor is there" in said
    assert peeked("owner/repo/lost", endpoint, tmp_path, offline=True) == said


@pytest.mark.parametrize(
    ("ref", "said"),
    [
        ("owner/gated/scaled", "it is gated"),
        ("owner/absent/scaled", "no such repository"),
        ("owner/repo/scaled@nowhere", "no such revision"),
        ("owner/repo/empty", "no SAELens SAE is there"),
    ],
)
def test_what_the_hub_refuses_is_said_plainly(endpoint: str, tmp_path: Path, ref: str, said: str) -> None:
    assert said in peeked(ref, endpoint, tmp_path)


def test_nested_folders_and_a_cold_cache_offline(endpoint: str, tmp_path: Path) -> None:
    assert "cannot be reached" in peeked("owner/repo/deep/plain", endpoint, tmp_path, offline=True)
    assert f"at {COMMIT}" in peeked("owner/repo/deep/plain", endpoint, tmp_path)
