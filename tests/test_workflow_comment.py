"""What the comment's workflow makes of a hostile artifact: nothing but text, on no other pull request."""

from __future__ import annotations

import html
import io
import json
import re
import threading
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

comment = pytest.importorskip("comment", reason="an sdist holds no workflows")
neutral = pytest.importorskip("neutral", reason="an sdist holds no workflows")

KEPT = {"h1", "h2", "h3", "h4", "h5", "h6", "p", "strong", "ul", "li", "table", "thead", "tbody", "tr", "th", "td"}
GITHUB = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"])
"""Markdown as GitHub renders it, but for what it makes of the text afterwards: see REACTS."""
REACTS = re.compile(r"@\w|#\d|\bGH-\d|://|\bwww\.\w|mailto:\w|:\w+:", re.IGNORECASE)
"""Mentions, references, addresses and emoji in the text of a rendered page."""

REPORT = """### Leaderboard: this change adds 2 records

**It cannot be merged as it is:**

- results/a\\-0123/toy\\_errors@\u200b1: changes a record

#### sae-a-0123/core@\u200b1/0123

| metric | this | best of the others | next | against the next |
| --- | --: | --: | --: | --- |
| error | .50 [.48, .52] ✓ rank 1 | .51 (b \\| c) | | not tested: \\<2 documents |
"""

HOSTILE = (
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "![x](https://evil.example/pixel.png)",
    "[click](https://evil.example)",
    "[click][1]\n\n[1]: https://evil.example",
    "[1]: <https://evil.example>\n\n[1]",
    "\\[click](https://evil.example)",
    "\\\\[click](https://evil.example)",
    "&#91;click&#93;(https://evil.example)",
    "https://evil.example www.evil.example HTTPS://evil.example",
    "<https://evil.example> <a@evil.example>",
    "@everyone @org/team a@b.example &commat;octocat &#64;octocat &amp;#64;octocat",
    "#1 org/repo#2 GH-3 gh-4 &num;5 &#35;6",
    "| @octocat | #1 |\n| --- | --- |\n| <b>x</b> | ![](x) |",
    "```\ncode\n```\n~~~\n",
    "    indented code",
    "> quoted",
    "- [x] done",
    "# [a](b)\n## <h1>x",
    "Title\n=====\n\nOther\n-----",
    "* * *\n---\n___",
    "**[a](b)**",
    "*a* _b_ `c` ~~d~~ $e$ ==f==",
    "/close\n/ok-to-test",
    "a\u202eb\u2066c\u200bd\x00e\x1b[31mf\ud800".encode("utf-16", "surrogatepass").decode("utf-16", "replace"),
    "<!-- saebench-meta leaderboard -->",
    "<details><summary>x</summary>",
    "a  \nb\\\nc",
    ":warning: :+1:",
)


def rendered(markdown: str) -> str:
    return str(GITHUB.render(markdown))


def tags(page: str) -> set[str]:
    return set(re.findall(r"<\s*/?\s*([^\s/>]+)", page))


def visible(page: str) -> str:
    """A rendered page's text, which the host then looks through for mentions and references."""
    return html.unescape(re.sub(r"<[^>]*>", " ", page))


def words(page: str) -> list[str]:
    """What a reader reads."""
    return visible(page).replace("\u200b", "").split()


# -- the text


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_text_is_only_text(text: str) -> None:
    page = rendered(neutral.neutral(text))
    assert tags(page) <= KEPT
    assert not re.search(r"<\w+ (?!style=\"text-align)", page)
    assert not REACTS.search(visible(page))


@given(st.text(alphabet="[]()<>!@#`*_|\\&;:/\n\t -=+~$^{}.\"'ab19wGH\u200b\u202e", max_size=120))
def test_any_text_is_only_text(text: str) -> None:
    page = rendered(neutral.neutral(text))
    assert tags(page) <= KEPT
    assert not REACTS.search(visible(page))


def test_the_report_says_the_same_as_before() -> None:
    before, after = rendered(REPORT), rendered(neutral.neutral(REPORT))
    assert words(before) == words(after)
    assert re.findall(r"<(\w+)", before) == re.findall(r"<(\w+)", after)


@pytest.mark.parametrize("text", ["x" * 10**6, "a\n" * 10**5, "<" * 2000 + "\n" + "&" * 10**5, "| a " * 10**5 + "|"])
def test_a_comment_stays_short_enough(text: str) -> None:
    assert len(neutral.neutral(text)) <= 60_100


def test_a_report_that_is_cut_says_so() -> None:
    assert neutral.neutral("a\n" * 10**5).strip().endswith(neutral.CUT)


# -- the artifact


def zipped(**files: bytes) -> bytes:
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return sink.getvalue()


def forged_size() -> bytes:
    """A zip file whose one entry says that it unpacks to ten bytes and unpacks to ten million."""
    data = bytearray(zipped(**{"comment.md": b"a" * 10**7}))
    size = (10**7).to_bytes(4, "little")
    return bytes(data.replace(size, (10).to_bytes(4, "little")))


HOSTILE_ZIPS = {
    "no zip": b"not a zip file",
    "empty": b"",
    "no file": zipped(),
    "two files": zipped(**{"comment.md": b"a", "other.md": b"b"}),
    "another name": zipped(**{"../comment.md": b"a"}),
    "absolute": zipped(**{"/etc/passwd": b"a"}),
    "folder": zipped(**{"comment.md/": b""}),
    "bomb": zipped(**{"comment.md": b"a" * 10**7}),
    "forged size": forged_size(),
    "cut": zipped(**{"comment.md": b"abc" * 1000})[:-30],
}


@pytest.mark.parametrize("data", HOSTILE_ZIPS.values(), ids=HOSTILE_ZIPS)
def test_a_hostile_artifact_is_refused(data: bytes) -> None:
    with pytest.raises(comment.RefusedError):
        comment.unpacked(data)


def test_bytes_that_are_no_text_are_shown_as_such() -> None:
    assert comment.unpacked(zipped(**{"comment.md": b"a\xff\xfeb"})) == "a\ufffd\ufffdb"


# -- the pull request

RUN = {
    "id": 7,
    "event": "pull_request",
    "head_sha": "a" * 40,
    "head_branch": "my branch&state=closed",
    "head_repository": {"id": 5, "owner": {"login": "stranger"}},
    "html_url": "https://host.example/owner/repo/actions/runs/7",
}
EVENT = {"workflow_run": RUN, "repository": {"default_branch": "main"}}


def pull(number: int, **changes: Any) -> dict[str, Any]:
    head = {"sha": changes.get("sha", RUN["head_sha"]), "repo": {"id": changes.get("repo", 5)}}
    base = {"ref": changes.get("base", "main"), "repo": {"full_name": changes.get("into", "owner/repo")}}
    return {"number": number, "head": head, "base": base}


class Host:
    """A host with one repository, on this machine; `posted` is what was written to it."""

    def __init__(self) -> None:
        self.artifacts = [{"id": 9, "expired": False, "size_in_bytes": 100}]
        self.zip = zipped(**{"comment.md": REPORT.encode()})
        self.pulls = [pull(3)]
        self.comments: list[dict[str, Any]] = []
        self.posted: list[tuple[str, str, str]] = []
        self.asked: list[str] = []
        self.tokens: dict[str, str | None] = {}

    def answer(self, method: str, path: str, body: bytes) -> Any:
        self.asked.append(path)
        if method != "GET":
            self.posted.append((method, path, json.loads(body)["body"]))
            return {}
        where = path.partition("?")[0].removeprefix("/repos/owner/repo")
        return {
            "/actions/runs/7/artifacts": {"artifacts": self.artifacts},
            "/pulls": self.pulls,
            "/issues/3/comments": self.comments,
        }[where]


@contextmanager
def running(host: Host) -> Iterator[Any]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            host.tokens[self.path] = self.headers["Authorization"]
            body = self.rfile.read(int(self.headers["Content-Length"] or 0))
            if self.path.endswith("/9/zip"):
                self.send_response(302)
                self.send_header("Location", f"http://127.0.0.1:{self.server.server_address[1]}/elsewhere.zip")
                self.end_headers()
                return
            data = host.zip
            if self.path != "/elsewhere.zip":
                data = json.dumps(host.answer(self.command, self.path, body)).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        do_POST = do_PATCH = do_GET

        def log_message(self, *arguments: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        try:
            yield comment.API(f"http://127.0.0.1:{server.server_address[1]}", "owner/repo", "the-token")
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture
def host() -> Host:
    return Host()


def said(host: Host, event: dict[str, Any] = EVENT) -> str:
    with running(host) as api:
        return str(comment.comment(api, event))


def test_the_report_is_posted_with_a_link_to_its_log(host: Host) -> None:
    assert said(host) == "commented on pull request 3"
    [(method, path, body)] = host.posted
    assert (method, path) == ("POST", "/repos/owner/repo/issues/3/comments")
    assert body.startswith(comment.MARK) and body.rstrip().endswith(f"({RUN['html_url']})")
    assert words(rendered(body.partition("\n")[2]))[: len(words(rendered(REPORT)))] == words(rendered(REPORT))


def test_the_comment_that_is_there_is_brought_up_to_date(host: Host) -> None:
    stranger = {"id": 1, "user": {"login": "stranger"}, "body": comment.MARK}
    host.comments = [stranger, {"id": 2, "user": {"login": comment.AUTHOR}, "body": f"{comment.MARK}\nold"}]
    said(host)
    [(method, path, _)] = host.posted
    assert (method, path) == ("PATCH", "/repos/owner/repo/issues/comments/2")


def test_a_run_without_a_report_is_said_to_have_failed(host: Host) -> None:
    host.artifacts = []
    said(host)
    assert comment.EMPTY in host.posted[0][2]


def test_the_token_is_not_sent_to_where_downloads_are(host: Host) -> None:
    said(host)
    assert host.tokens.pop("/elsewhere.zip") is None
    assert set(host.tokens.values()) == {"Bearer the-token"}


def test_a_branchs_name_does_not_change_what_is_asked(host: Host) -> None:
    said(host)
    [asked] = [path for path in host.asked if "/pulls?" in path]
    assert asked.endswith("state=open&base=main&head=stranger%3Amy+branch%26state%3Dclosed")


@pytest.mark.parametrize(
    "pulls",
    [
        [],
        [pull(3, sha="b" * 40)],
        [pull(3, repo=6)],
        [pull(3, base="other")],
        [pull(3, into="owner/other")],
        [pull(3), pull(4)],
    ],
    ids=["closed", "newer commit", "another fork", "another branch", "another repository", "two"],
)
def test_nothing_is_posted_where_the_pull_request_is_not_certain(host: Host, pulls: list[dict[str, Any]]) -> None:
    host.pulls = pulls
    with pytest.raises(comment.RefusedError, match="open pull requests have the run's commit"):
        said(host)
    assert host.posted == []


@pytest.mark.parametrize(
    "artifacts",
    [
        [{"id": 9, "expired": True, "size_in_bytes": 100}],
        [{"id": 9, "expired": False, "size_in_bytes": 10**9}],
        [{"id": 9, "expired": False, "size_in_bytes": 100}, {"id": 10, "expired": False, "size_in_bytes": 100}],
    ],
    ids=["expired", "large", "two"],
)
def test_nothing_is_posted_for_an_artifact_that_is_not_as_expected(host: Host, artifacts: list[Any]) -> None:
    host.artifacts = artifacts
    with pytest.raises(comment.RefusedError):
        said(host)
    assert host.posted == []


def test_a_download_that_is_larger_than_it_was_said_to_be_is_cut_off(host: Host) -> None:
    host.zip = b"a" * (comment.MAX_ZIP + 1)
    with pytest.raises(comment.RefusedError, match="larger than"):
        said(host)
    assert host.posted == []


def test_a_run_of_something_else_is_left_alone(host: Host) -> None:
    with pytest.raises(comment.RefusedError, match="of a push"):
        said(host, {**EVENT, "workflow_run": {**RUN, "event": "push"}})
    assert host.asked == []
