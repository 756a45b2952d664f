"""Data sets of the hub: streamed for real, through the hub's own clients and a server on the loopback."""

from __future__ import annotations

import io
import json
import socket
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pytest
from hub_server import COMMIT, TOKEN, Hub, Repo, serving

NEXT = "f" * 40
CONVERTED = "refs/convert/parquet"
FIRST_SHARD = 10_200
"""Documents of the first file: more than the shuffle buffer holds."""

READ = """
import json, sys
from itertools import islice
from saebench_meta.errors import SaebenchError
from saebench_plugins import hub_data
for ref, options in json.loads(sys.argv[1]):
    try:
        named = {k: v for k, v in options.items() if k != "text_field"}
        commit = hub_data.peek(ref, **named).revision
        said = [commit, list(islice(hub_data.stream(ref, **options), 3))]
    except SaebenchError as e:
        said = str(e)
    print(json.dumps(said))
"""
PEEK = """
import sys
from saebench_meta.errors import SaebenchError
from saebench_plugins import hub, hub_data
hub.TIMEOUT = 0.2
for ref in sys.argv[1:]:
    try: print(hub_data.peek(ref).revision)
    except SaebenchError as e: print(e)
assert "torch" not in sys.modules and "datasets" not in sys.modules
"""


def parquet(texts: list[str], **columns: object) -> bytes:
    file = io.BytesIO()
    pd.DataFrame({"text": texts, "n": range(len(texts)), **columns}).to_parquet(file)
    return file.getvalue()


def texts(start: int, stop: int) -> list[str]:
    return [f"document {i}" for i in range(start, stop)]


CONFIGURATIONS = b"""---
configs:
- config_name: en
  data_files: [{split: train, path: en/*}]
- config_name: de
  data_files: [{split: train, path: de/*}]
---
"""


def repositories() -> dict[str, Repo]:
    train = "data/train-00000-of-00001.parquet"
    small = {"README.md": b"---\nlicense: mit\n---\n", train: parquet(texts(0, 3))}
    large = {
        "README.md": small["README.md"],
        "data/train-00000-of-00002.parquet": parquet(texts(0, FIRST_SHARD)),
        "data/train-00001-of-00002.parquet": parquet(texts(FIRST_SHARD, FIRST_SHARD + 50)),
    }
    split = {"data/test-00000-of-00001.parquet": parquet(["a test"])}
    converted = {"plain_text/train/0000.parquet": parquet(["converted"])}
    scripted = {"README.md": b"", "scripted.py": b"raise SystemExit(3)"}
    lines = b'{"text": "compressed"}\n'
    return {
        "datasets/owner/large": Repo.of(large | split),
        "datasets/owner/small": Repo.of(small | split, tags=("v1",)),
        "datasets/owner/moving": Repo({COMMIT: small, NEXT: {train: parquet(["newer"])}}, {"main": COMMIT}),
        "datasets/owner/cardless": Repo.of({train: parquet(["no card"])}),
        "datasets/owner/configured": Repo.of(
            {"README.md": CONFIGURATIONS, "en/a.parquet": parquet(["hello"]), "de/a.parquet": parquet(["hallo"])}
        ),
        "datasets/owner/scripted": Repo({COMMIT: scripted, NEXT: converted}, {"main": COMMIT, CONVERTED: NEXT}),
        "datasets/owner/zstd": Repo.of({"train/00.jsonl.zst": pa.compress(lines, codec="zstd", asbytes=True)}),
        "datasets/owner/gated": Repo.of(small, gated=True),
        "datasets/owner/empty": Repo.of({"README.md": b""}),
    }


@pytest.fixture(scope="module")
def hub() -> Iterator[Hub]:
    with serving(repositories()) as server:
        yield server


def read(hub: Hub, home: Path, *asked: tuple[str, dict[str, str]], **how: Any) -> list[Any]:
    """Commit and first documents of each reference, or what the error says."""
    return [json.loads(line) for line in hub.python(READ, home, json.dumps(asked), **how).splitlines()]


REFERENCES = {
    "owner/small": [COMMIT, texts(0, 3)],
    "owner/small revision=v1 split=test": [COMMIT, ["a test"]],
    f"owner/small revision={COMMIT}": [COMMIT, texts(0, 3)],
    "owner/cardless": [COMMIT, ["no card"]],
    "owner/configured:de": [COMMIT, ["hallo"]],
    f"owner/scripted revision={CONVERTED}": [NEXT, ["converted"]],
    "owner/configured": "name one as 'owner/configured:CONFIG'. Please pick one among the available configs: ['en',",
    "owner/configured:fr": "BuilderConfig 'fr' not found. Available: ['en', 'de']",
    "owner/small split=tst": "Bad split: tst. Available splits: ['train', 'test']",
    "owner/small text_field=txt": "no field 'txt'; did you mean 'text'? Name it with --text-field",
    "owner/small text_field=n": "field 'n' of row 0 is int, not text",
    "owner/small revision=v9": "no such revision: give --data-revision a branch, tag or commit",
    "owner/scripted": f"comes as code, which is never run: try the hub's own conversion, --data-revision {CONVERTED}",
    "owner/empty": "doesn't contain any data files",
    "owner/absent": "neither here nor on the hub; private ones need `hf auth login`",
    "owner/gated": "is gated, and this user has no access",
}


@pytest.fixture(scope="module")
def answers(hub: Hub, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    asked = []
    for line in REFERENCES:
        ref, *options = line.split()
        asked.append((ref, dict(option.split("=") for option in options)))
    return dict(zip(REFERENCES, read(hub, tmp_path_factory.mktemp("hub"), *asked), strict=True))


@pytest.mark.parametrize("reference", REFERENCES)
def test_a_reference_gives_its_documents_and_commit_or_says_why_not(answers: dict[str, Any], reference: str) -> None:
    expected = REFERENCES[reference]
    if isinstance(expected, str):
        assert expected in answers[reference]
    else:
        assert answers[reference] == expected


def test_compressed_files_are_read_or_the_library_for_them_is_named(hub: Hub, tmp_path: Path) -> None:
    (said,) = read(hub, tmp_path, ("owner/zstd", {}))
    if find_spec("zstandard"):
        assert said == [COMMIT, ["compressed"]]
    else:
        assert "pip install zstandard" in said


@pytest.mark.parametrize("token", ["hf_of_another", TOKEN])
def test_a_token_opens_what_is_gated_if_it_has_access(hub: Hub, tmp_path: Path, token: str) -> None:
    gated, absent = read(hub, tmp_path, ("owner/gated", {}), ("owner/absent", {}), token=token)
    assert gated == [COMMIT, texts(0, 3)] if token == TOKEN else "is gated" in gated
    assert "neither here nor on the hub" in absent


def test_every_request_names_the_commit_once_it_is_known(hub: Hub, tmp_path: Path) -> None:
    hub.asked.clear()
    assert read(hub, tmp_path, ("owner/small", {})) == [[COMMIT, texts(0, 3)]]
    of_it = [request for request in hub.asked if "/owner/small/" in request]
    by_branch = [request for request in of_it if "/main/" in request]
    assert by_branch == of_it[: len(by_branch)] and len(by_branch) < len(of_it)
    assert all(COMMIT in request for request in of_it[len(by_branch) :])


DRAW = """
import json
from types import SimpleNamespace
from saebench_meta.corpus import Sampling, draw
from saebench_plugins import hub_data
lm = SimpleNamespace(ref="toy", n_ctx=8, bos_id=0, special_ids=frozenset({0}),
                     tokenize=lambda texts: [[1 + int(t.split()[1]) % 7, 3] for t in texts])
samples = [draw(hub_data.stream("owner/large"), lm, Sampling(tokens=60, context=8, seed=5)) for _ in range(2)]
print(json.dumps([[s.document_ids, s.content_hash()] for s in samples]))
"""


def test_a_seeded_sample_is_the_same_twice_and_reads_no_further_than_it_must(hub: Hub, tmp_path: Path) -> None:
    hub.asked.clear()
    first, again = json.loads(hub.python(DRAW, tmp_path))
    assert first == again
    drawn = [int(i) for i in first[0]]
    assert len(set(drawn)) == 30 and drawn != sorted(drawn) and max(drawn) > 5_000
    assert any("train-00000" in request for request in hub.asked)
    assert not any("train-00001" in request for request in hub.asked)


def test_a_branch_that_moved_is_another_commit_and_the_old_one_stays_to_be_had(hub: Hub, tmp_path: Path) -> None:
    repo = hub.repos["datasets/owner/moving"]
    assert read(hub, tmp_path, ("owner/moving", {})) == [[COMMIT, texts(0, 3)]]
    repo.refs["main"] = NEXT
    assert read(hub, tmp_path, ("owner/moving", {}), ("owner/moving", {"revision": COMMIT})) == [
        [NEXT, ["newer"]],
        [COMMIT, texts(0, 3)],
    ]


def test_offline_the_commit_is_the_cached_one_and_only_prepared_data_are_read(hub: Hub, tmp_path: Path) -> None:
    refs = [("owner/small", {}), ("owner/moving", {"revision": COMMIT})]
    read(hub, tmp_path, *refs)
    hub.asked.clear()
    assert hub.python(PEEK, tmp_path, "owner/small", "owner/cardless", offline=True).splitlines() == [
        COMMIT,
        "'owner/cardless' is not on this machine and the hub cannot be reached: "
        "download it once with a network, or give a local path",
    ]
    assert all("cannot be reached" in said for said in read(hub, tmp_path, *refs, offline=True))
    assert hub.asked == []
    hub.python(f"import datasets; datasets.load_dataset('owner/small', revision='{COMMIT}')", tmp_path)
    hub.asked.clear()
    small, other = read(hub, tmp_path, ("owner/small", {}), ("owner/small", {"revision": NEXT}), offline=True)
    assert small == [COMMIT, texts(0, 3)] and "cannot be reached" in other
    assert hub.asked == []


def test_a_hub_that_never_answers_is_given_up_and_the_cached_commit_taken(hub: Hub, tmp_path: Path) -> None:
    hub.python(PEEK, tmp_path, "owner/small")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        unanswering = Hub({}, f"http://127.0.0.1:{silent.getsockname()[1]}")
        said = unanswering.python(PEEK, tmp_path, "owner/small", "owner/never").splitlines()
    assert said[0] == COMMIT and "cannot be reached" in said[1]
