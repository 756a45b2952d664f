"""A hub of the tests' own on the loopback, for the hub's own client: files by commit, refusals, a log of requests.

Answers what the clients ask for: `resolve`, repository information, `tree` and `paths-info`.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote

COMMIT = "0123456789abcdef0123456789abcdef01234567"
TOKEN = "hf_allowed"


@dataclass
class Repo:
    """Files of each commit, and the branches and tags that name commits. Without TOKEN a gated one gives no file."""

    commits: dict[str, dict[str, bytes]]
    refs: dict[str, str]
    gated: bool = False

    @classmethod
    def of(cls, files: Mapping[str, bytes], *, commit: str = COMMIT, tags: tuple[str, ...] = (), **of: Any) -> Repo:
        """One commit, which `main` and the tags name."""
        return cls({commit: dict(files)}, dict.fromkeys(("main", *tags), commit), **of)


@dataclass
class Hub:
    """The running server.

    Attributes:
        repos: `owner/name`, or `datasets/owner/name` -> repository.
        asked: requests so far, `METHOD path` and the range where one is asked for.
    """

    repos: dict[str, Repo]
    endpoint: str = ""
    asked: list[str] = field(default_factory=list)

    def env(self, home: Path, *, offline: bool = False, token: str = "") -> dict[str, str]:
        """The environment of a process that takes this server for the hub, with its caches under `home`."""
        clients = ("HF_", "TRANSFORMERS_", "HUGGING")
        kept = {k: v for k, v in os.environ.items() if not k.startswith(clients) and not k.lower().endswith("_proxy")}
        flags = {"HF_HUB_OFFLINE": str(int(offline)), "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
        return kept | flags | {"HF_ENDPOINT": self.endpoint, "HF_HOME": str(home), "HF_TOKEN": token}

    def python(self, code: str, home: Path, *arguments: str, offline: bool = False, token: str = "") -> str:
        """What code prints in a process of its own, since clients read where the hub is when they are imported."""
        done = subprocess.run(
            [sys.executable, "-c", code, *arguments],
            env=self.env(home, offline=offline, token=token),
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout


@contextmanager
def serving(repos: dict[str, Repo]) -> Iterator[Hub]:
    """Serve these repositories while the context lasts."""
    hub = Hub(repos)
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    hub.endpoint = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        given = self.headers.get("Range", "")
        self.hub.asked.append(f"{self.command} {self.path} {given}".strip())
        parts = [unquote(p) for p in self.path.partition("?")[0].strip("/").split("/")]
        if api := parts[0] == "api":
            parts = parts[1:]
        kind = parts.pop(0) if parts[0] in ("datasets", "models") else "models"
        if len(parts) < 2:  # as when asked who the token belongs to
            return self.refuse(404, "EntryNotFound")
        name = "/".join(parts[:2])
        repo = self.hub.repos.get(f"datasets/{name}" if kind == "datasets" else name)
        known = TOKEN in self.headers.get("Authorization", "")
        if repo is None:
            return self.refuse(404 if known else 401, "RepoNotFound")
        verb, revision, *rest = [*parts[2:], "revision", "main"][: max(2, len(parts) - 2)]
        commit = repo.refs.get(revision, revision)
        if commit not in repo.commits:
            return self.refuse(404, "RevisionNotFound")
        files, path = repo.commits[commit], "/".join(rest)
        if api:
            return self.tell(verb, name, commit, files, path)
        if repo.gated and not known:
            return self.refuse(403 if "Authorization" in self.headers else 401, "GatedRepo", commit)
        return self.give(files[path], commit, given) if path in files else self.refuse(404, "EntryNotFound", commit)

    do_HEAD = do_POST = do_GET

    def tell(self, verb: str, name: str, commit: str, files: Mapping[str, bytes], path: str) -> None:
        """What the API says of a repository or of paths in it."""
        sent = self.rfile.read(int(self.headers.get("Content-Length", 0))).decode()
        if verb == "revision":
            siblings = [{"rfilename": file} for file in sorted(files)]
            return self.give(_json({"id": name, "sha": commit, "siblings": siblings, "tags": []}), commit)
        if verb == "paths-info":
            return self.give(_json([e for p in json.loads(sent)["paths"] if (e := _entry(files, p))]), commit)
        inside = {f.removeprefix(f"{path}/") for f in files if not path or f.startswith(f"{path}/")}
        if path and not inside:
            return self.refuse(404, "EntryNotFound", commit)
        deep = "recursive=true" in self.path.lower()
        shown = {"/".join(f.split("/")[: i + 1]) for f in inside for i in range(len(f.split("/")) if deep else 1)}
        return self.give(_json([_entry(files, f"{path}/{s}".strip("/")) for s in sorted(shown)]), commit)

    def give(self, data: bytes, commit: str, asked: str = "") -> None:
        part = data
        if asked:
            first, _, last = asked.removeprefix("bytes=").partition("-")
            part = data[int(first) : int(last or len(data)) + 1]
        self.send_response(206 if asked else 200)
        if asked:
            self.send_header("Content-Range", f"bytes {first}-{int(first) + len(part) - 1}/{len(data)}")
        self.send_header("X-Repo-Commit", commit)
        self.send_header("ETag", f'"{hashlib.sha256(data).hexdigest()}"')
        self.send_header("Content-Length", str(len(part)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(part)

    def refuse(self, status: int, code: str, commit: str = "") -> None:
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        self.send_header("X-Error-Message", code)
        if commit:
            self.send_header("X-Repo-Commit", commit)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Silent."""


def _entry(files: Mapping[str, bytes], path: str) -> dict[str, Any] | None:
    """A file or folder as `tree` and `paths-info` list it."""
    if path in files:
        oid = hashlib.sha1(files[path], usedforsecurity=False).hexdigest()
        return {"type": "file", "path": path, "size": len(files[path]), "oid": oid}
    inside = any(f.startswith(f"{path}/") for f in files)
    return {"type": "directory", "path": path, "size": 0, "oid": "0" * 40} if inside else None


def _json(value: object) -> bytes:
    return json.dumps(value).encode()
