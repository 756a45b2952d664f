"""`saebench leaderboard serve`: the built site on this machine only, for a local look."""

from __future__ import annotations

from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from pathlib import Path
from typing import Any

from saebench_meta.errors import SaebenchError

HOST = "127.0.0.1"
TYPES = {
    ".css": "text/css", ".csv": "text/csv", ".html": "text/html", ".js": "text/javascript",
    ".json": "application/json", ".md": "text/markdown", ".svg": "image/svg+xml", ".woff2": "font/woff2",
}  # fmt: skip


class _Handler(SimpleHTTPRequestHandler):
    """Files below one folder; no listings, no links that lead out of it, no log."""

    extensions_map = {**SimpleHTTPRequestHandler.extensions_map, **TYPES}  # noqa: RUF012

    def list_directory(self, path: Any) -> BytesIO | None:  # noqa: ARG002
        self.send_error(404)
        return None

    def send_head(self) -> Any:
        root, wanted = Path(self.directory).resolve(), Path(self.translate_path(self.path))
        if not wanted.resolve().is_relative_to(root):
            self.send_error(404)
            return None
        return super().send_head()

    def end_headers(self) -> None:
        self.send_header("Cache-Control", "no-store")
        self.send_header("X-Content-Type-Options", "nosniff")
        super().end_headers()

    def log_message(self, *_: Any) -> None:
        """Nothing: the terminal says the address and no more."""


def server(site: Path, port: int = 0) -> ThreadingHTTPServer:
    """A server of a built site, not started; port 0 takes a free one.

    Raises:
        SaebenchError: there is no site, or the port is taken.
    """
    if not (site / "index.html").is_file():
        raise SaebenchError(f"'{site}' holds no index.html: type `saebench leaderboard build` first.")
    try:
        return ThreadingHTTPServer((HOST, port), partial(_Handler, directory=str(site)))
    except OSError as e:
        raise SaebenchError(f"port {port} cannot be had ({e.strerror or e}): give another one with --port") from e
