"""The local server: only the site's files, only on this machine."""

from __future__ import annotations

import http.client
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from saebench_meta.errors import SaebenchError
from saebench_meta.leaderboard.serve import HOST, server


@pytest.fixture
def site(tmp_path: Path) -> Path:
    folder = tmp_path / "site"
    (folder / "data").mkdir(parents=True)
    (folder / "index.html").write_text("<p>board</p>")
    (folder / "site.js").write_text("1")
    (folder / "data" / "board.json").write_text("{}")
    (tmp_path / "secret.txt").write_text("secret")
    (folder / "link.txt").symlink_to(tmp_path / "secret.txt")
    return folder


@pytest.fixture
def port(site: Path) -> Iterator[int]:
    with server(site) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield running.server_address[1]
        running.shutdown()


def get(port: int, path: str) -> tuple[int, str, bytes]:
    connection = http.client.HTTPConnection(HOST, port, timeout=10)
    connection.putrequest("GET", path, skip_host=False)
    connection.endheaders()
    answer = connection.getresponse()
    return answer.status, answer.headers.get("Content-Type", ""), answer.read()


@pytest.mark.parametrize(
    ("path", "kind"),
    [("/", "text/html"), ("/site.js", "text/javascript"), ("/data/board.json", "application/json")],
)
def test_files_come_with_their_types(port: int, path: str, kind: str) -> None:
    status, found, _ = get(port, path)
    assert (status, found) == (200, kind)


@pytest.mark.parametrize(
    "path", ["/data/", "/data", "/link.txt", "/../secret.txt", "/%2e%2e/secret.txt", "//../../secret.txt", "/nothing"]
)
def test_nothing_else_does(port: int, path: str) -> None:
    status, _, body = get(port, path)
    assert status in (301, 404) and b"secret" not in body.replace(b"secret.txt", b"")
    assert b"board.json" not in body


def test_it_listens_here_only(site: Path) -> None:
    with server(site) as running:
        assert running.server_address[0] == HOST


def test_a_site_that_is_not_built_or_a_port_that_is_taken_is_an_error(site: Path, tmp_path: Path) -> None:
    with pytest.raises(SaebenchError, match="leaderboard build"):
        server(tmp_path / "none")
    with server(site) as running, pytest.raises(SaebenchError, match="--port"):
        server(site, running.server_address[1])
