"""Posts what the leaderboard workflow said of a pull request as a comment on it.

That workflow ran in the pull request's name and may have been changed by it, so its artifact is hostile: it is taken
only if it is one small zip file with one small text file, which is never written to disk, and its text is made
harmless before it is posted. Which pull request it belongs to is asked of the API, never of the artifact.
"""

from __future__ import annotations

import io
import json
import os
import sys
import urllib.parse
import urllib.request
import zipfile
from pathlib import Path
from typing import Any

from neutral import neutral

ARTIFACT = "leaderboard-diff"
FILE = "comment.md"
MAX_ZIP = 200_000
MAX_TEXT = 400_000
MAX_JSON = 5_000_000
SECONDS = 30
AUTHOR = "github-actions[bot]"
MARK = "<!-- saebench-meta leaderboard -->"
EMPTY = "The check of the records ended without a report; its log says why."


class RefusedError(Exception):
    """Nothing is posted; the message says why."""


class API:
    """The few calls that are needed, of one repository."""

    def __init__(self, root: str, repository: str, token: str) -> None:
        self.root, self.repository, self._token = root.rstrip("/"), repository, token

    def call(self, method: str, path: str, body: Any = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        return json.loads(self._read(method, path, MAX_JSON, data) or b"null")

    def download(self, path: str, limit: int) -> bytes:
        return self._read("GET", path, limit, None)

    def _read(self, method: str, path: str, limit: int, data: bytes | None) -> bytes:
        request = urllib.request.Request(f"{self.root}/repos/{self.repository}{path}", data, method=method)
        request.add_header("Accept", "application/vnd.github+json")
        # Downloads are redirected to another host, which must not see the token.
        request.add_unredirected_header("Authorization", f"Bearer {self._token}")
        with urllib.request.urlopen(request, timeout=SECONDS) as answer:
            read: bytes = answer.read(limit + 1)
        if len(read) > limit:
            raise RefusedError(f"the answer to {path} is larger than {limit:,} bytes")
        return read


def report(api: API, run: int) -> str:
    """The text the run left, as it is: hostile. Empty where it left none."""
    found = api.call("GET", f"/actions/runs/{run}/artifacts?name={ARTIFACT}")["artifacts"]
    if not found:
        return ""
    if len(found) != 1:
        raise RefusedError(f"the run left {len(found)} artifacts of the name {ARTIFACT}")
    if found[0]["expired"] or found[0]["size_in_bytes"] > MAX_ZIP:
        raise RefusedError("the artifact has expired or is too large")
    return unpacked(api.download(f"/actions/artifacts/{int(found[0]['id'])}/zip", MAX_ZIP))


def unpacked(data: bytes) -> str:
    """The one text file of a zip file; it is read in memory and its name is not used."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            entries = archive.infolist()
            if [e.filename for e in entries] != [FILE]:
                raise RefusedError(f"the artifact holds {len(entries)} files and not the one that is expected")
            with archive.open(entries[0]) as file:
                text = file.read(MAX_TEXT + 1)
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError, OSError) as e:
        raise RefusedError("the artifact cannot be unpacked") from e
    if len(text) > MAX_TEXT:
        raise RefusedError(f"the text in the artifact is larger than {MAX_TEXT:,} bytes")
    return text.decode(errors="replace")


def pull_request(api: API, run: dict[str, Any], base: str) -> int:
    """Number of the open pull request into `base` whose newest commit the run is of."""
    head = run["head_repository"]
    query = urllib.parse.urlencode(
        {"state": "open", "base": base, "head": f"{head['owner']['login']}:{run['head_branch']}"}
    )
    matching = [
        p
        for p in api.call("GET", f"/pulls?{query}")
        if p["head"]["sha"] == run["head_sha"]
        and (p["head"]["repo"] or {}).get("id") == head["id"]
        and p["base"]["ref"] == base
        and p["base"]["repo"]["full_name"] == api.repository
    ]
    if len(matching) != 1:
        raise RefusedError(f"{len(matching)} open pull requests have the run's commit as their newest")
    return int(matching[0]["number"])


def post(api: API, number: int, body: str) -> None:
    """One comment a pull request: the one that is there is brought up to date."""
    comments = api.call("GET", f"/issues/{number}/comments?per_page=100")
    ours = [c for c in comments if c["user"]["login"] == AUTHOR and c["body"].startswith(MARK)]
    if ours:
        api.call("PATCH", f"/issues/comments/{int(ours[0]['id'])}", {"body": body})
    else:
        api.call("POST", f"/issues/{number}/comments", {"body": body})


def comment(api: API, event: dict[str, Any]) -> str:
    """Post the comment of a `workflow_run` event; says what was done."""
    run = event["workflow_run"]
    if run["event"] != "pull_request":
        raise RefusedError(f"the run is of a {run['event']}, not of a pull request")
    number = pull_request(api, run, event["repository"]["default_branch"])
    text = neutral(report(api, int(run["id"]))).strip() or EMPTY
    post(api, number, f"{MARK}\n{text}\n\n[Log of the check]({run['html_url']})\n")
    return f"commented on pull request {number}"


def main() -> None:
    event = json.loads(Path(os.environ["GITHUB_EVENT_PATH"]).read_text())
    api = API(os.environ["GITHUB_API_URL"], os.environ["GITHUB_REPOSITORY"], os.environ["GH_TOKEN"])
    try:
        said = comment(api, event)
    except RefusedError as e:
        said = f"no comment: {e}"
    sys.stdout.write(f"{said}\n")


if __name__ == "__main__":
    main()
