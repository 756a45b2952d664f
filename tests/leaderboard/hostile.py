"""Hundreds of records that nobody should believe, and some that want to do harm: what validation must refuse.

`hostile()` gives everything, as files to put under the results. `hostile_texts()` gives records that are sound but for
one text, which holds markup: what the pages must show as it is written if validation ever let it through.
"""

from __future__ import annotations

import copy
import hashlib
import json
import random
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from itertools import cycle
from pathlib import Path
from typing import Any

import board_records as samples
import numpy as np
import pyarrow as pa
from hostile_changes import CHANGES
from pydantic import ValidationError

from saebench_meta.leaderboard.assemble import of_checks
from saebench_meta.leaderboard.board import Board
from saebench_meta.leaderboard.results import DOCUMENTS, RECORD, REPRODUCED, place
from saebench_meta.leaderboard.rules import Bench
from saebench_meta.leaderboard.validate import Checked, Checks
from saebench_meta.plugins import registry
from saebench_meta.record import JudgeUsed, LabelledUsed, Record, TrainedSAE

MARKER = "__pwned"
"""Every script among the payloads sets `window.__pwned`."""
MARKUP = (
    f"<script>window.{MARKER}=1</script>",
    f"<img src=x onerror=window.{MARKER}=1>",
    f'"><svg onload=window.{MARKER}=1>',
    f"</script><script>window.{MARKER}=1</script>",
    f"javascript:window.{MARKER}=1",
    f"<iframe srcdoc='<script>parent.{MARKER}=1</script>'>",
    f"&lt;script&gt;window.{MARKER}=1&lt;/script&gt;",
    f"<a href='javascript:window.{MARKER}=1'>x</a>",
)
UNSEEN = ("right\u202eleft", "null\x00byte", "es\x1b[31mcape", "two\nlines", "zero\u200bwidth")
PATHS = (
    "/home/someone/sae", "/etc/passwd", "../../up", "x/../../y", "~/secret", "C:\\Users\\x", "file:///etc/passwd",
    "\\\\host\\share", "see /root/.ssh/id_rsa", "./here",
)  # fmt: skip
NUMBERS = ("NaN", "Infinity", "-Infinity", "1e308", "1e999", "-1e305", '"0.5"', "[]", "1" + "0" * 400)

Touch = Callable[[Path], None]


@dataclass(frozen=True)
class Hostile:
    """One attack: the files of a record's folder, and where it is put. `touch` does what no bytes can."""

    name: str
    record: bytes | None
    documents: bytes | None
    where: str
    touch: Touch | None = None

    def put(self, results: Path) -> None:
        folder = results / self.where
        folder.mkdir(parents=True, exist_ok=True)
        for name, data in ((RECORD, self.record), (DOCUMENTS, self.documents)):
            if data is not None:
                (folder / name).write_bytes(data)
        if self.touch is not None:
            self.touch(folder)


@lru_cache(maxsize=1)
def sound() -> tuple[dict[str, Any], bytes, str]:
    """A record that is in order and has every field filled, its documents, and its place."""
    hashed = samples.sha("x")
    labelled = LabelledUsed(name="sets:one", revision="r1", sha256=hashed, texts=5, test=2, tokens=9, classes={"a": 5})
    trained = TrainedSAE(
        label="topk-8", recipe={"lr": 0.1, "architecture": "topk"}, recipe_sha256=hashed, data={"sha256": hashed},
        content_sha256=hashed, info=samples.sae("meta").info, seconds=1.0, metrics={"mse": 0.5},
    )  # fmt: skip
    made, documents = samples.make(
        "wide", 0.5, against="narrow", judge=JudgeUsed(name="lexical", version="1"), labelled=[labelled],
        trained=[trained], notes=["a note"], extra={"toy": {"why": "because"}},
    )  # fmt: skip
    return json.loads(made.to_json()), documents, str(place(made))


def hostile() -> Iterator[Hostile]:
    """Every attack."""
    base, documents, where = sound()
    for name, record in _changed_records():
        yield Hostile(name, _text(record), documents, where)
    for name, data in _broken_json(base):
        yield Hostile(name, data, documents, where)
    for name, record, data in _forged_documents():
        yield Hostile(name, _text(record), data, where)
    yield from _misplaced(base, documents, where)
    yield from _badges(base, documents, where)


def hostile_texts() -> Iterator[tuple[str, dict[str, Any]]]:
    """Records with markup in one text or key; without validation they still read as records where the field is free."""
    base = sound()[0]
    payloads = cycle(MARKUP)
    for path, value in leaves(base):
        if isinstance(value, str):
            yield f"markup in {'.'.join(map(str, path))}", replaced(base, path, next(payloads))
    for path in KEYED:
        inner = _at(base, path)
        changed = {next(payloads): v for v in inner.values()}
        yield f"markup in a key of {'.'.join(map(str, path))}", replaced(base, path, changed)


def unchecked_board() -> Board:
    """The board of those of them that a schema lets through, as if nothing had been validated."""
    found = []
    for i, (name, data) in enumerate(hostile_texts()):
        with suppress(ValidationError):
            files = data["subject"]["saes"][0]["files"]
            files |= {"weights": samples.sha("weights", i)} if files.get("weights") == WEIGHTS else {}  # a row each
            record = Record.model_validate({**data, "id": samples.sha(i)})
            found.append(Checked(Path("nowhere"), name, record, ()))
    return of_checks(Checks(tuple(found)), Bench(registry(), intervals=False))


WEIGHTS = samples.sha("weights", "wide")
KEYED: tuple[tuple[Any, ...], ...] = (
    ("metrics",), ("metrics", "error", "controls"), ("extra",), ("extra", "toy"), ("data", "sampling"),
    ("subject", "saes", 0, "files"), ("model", "files"), ("labelled", 0, "classes"), ("trained", 0, "recipe"),
    ("trained", 0, "metrics"),
)  # fmt: skip
FREE = (0, "data", "sha256")
"""Of a training: like its recipe and `extra`, plain data of any form."""

# -- the record's text


def _changed_records() -> Iterator[tuple[str, dict[str, Any]]]:
    base = sound()[0]
    yield from hostile_texts()
    texts = [path for path, value in leaves(base) if isinstance(value, str)]
    for i, payload in enumerate((*UNSEEN, *PATHS, "x" * 3_000, "word " * 2_000)):
        for path in texts[i::15]:
            yield f"{payload[:12]!r} in {'.'.join(map(str, path))}", replaced(base, path, payload)
    for path, value in leaves(base):
        if value is None or isinstance(value, bool) or {"recipe", "extra"} & set(path) or path[-3:] == FREE:
            continue
        yield f"an object in {'.'.join(map(str, path))}", replaced(base, path, {"a": {"b": {}}})
    for name, change in CHANGES.items():
        record = copy.deepcopy(base)
        change(record)
        yield name, record


def _broken_json(base: dict[str, Any]) -> Iterator[tuple[str, bytes]]:
    whole = _text(base)
    draw = random.Random(10)
    for at in sorted(draw.sample(range(1, len(whole) - 2), 25)):
        yield f"cut off at {at}", whole[:at]
    numbers = [p for p, v in leaves(base) if isinstance(v, int | float) and not isinstance(v, bool)]
    for path, token in zip(numbers, cycle(NUMBERS), strict=False):
        marked = _text(replaced(base, path, "@@"))
        yield f"{token[:9]} in {'.'.join(map(str, path))}", marked.replace(b'"@@"', token.encode())
    yield "empty", b""
    yield "a list", b"[]"
    yield "null", b"null"
    yield "binary", bytes(range(256))
    yield "UTF-16", whole.decode().encode("utf-16")
    yield "not UTF-8", whole.replace(b"a note", b"\xff\xfe")
    yield "half a surrogate", whole.replace(b"a note", b"\\ud800")
    yield "deep", b'{"a":' * 50_000 + b"1" + b"}" * 50_000
    yield "deep lists", whole.replace(b'"a note"', b"[" * 60 + b"]" * 60)
    yield "a key twice", whole.replace(b'"status": "ok",', b'"status": "failed", "status": "ok",')
    yield "2 MB", whole.replace(b"a note", b"word " * 400_000)


# -- the documents


def _forged_documents() -> Iterator[tuple[str, dict[str, Any], bytes]]:
    base, documents, _ = sound()
    table = _table(documents)
    better = copy.deepcopy(base)
    for limits in ("value", "ci_low", "ci_high"):
        better["metrics"]["error"][limits] *= 0.9
    yield "forged value", better, documents
    narrow = copy.deepcopy(base)
    m = narrow["metrics"]["error"]
    m["ci_low"], m["ci_high"] = (m["value"] + (m[end] - m["value"]) / 10 for end in ("ci_low", "ci_high"))
    yield "forged interval", narrow, documents
    control = copy.deepcopy(base)
    control["metrics"]["gain"]["controls"]["random"].update(value=0.1, ci_low=0.05, ci_high=0.15, margin=None)
    yield "forged control", control, documents
    yield "no documents", base, b""
    for name, changed in _tables(table):
        data = samples.parquet(changed)
        yield name, _with_documents(base, data), data
    for name, data in (("no Parquet", b"PAR1" + b"\0" * 64 + b"PAR1"), ("cut off Parquet", documents[:-40])):
        yield name, _with_documents(base, data), data


def _tables(table: dict[str, list[Any]]) -> Iterator[tuple[str, dict[str, Any]]]:
    n = len(table["document"])
    yield "other documents", {**table, "errors": [e * 1.01 for e in table["errors"]]}
    yield "one document less", {k: v[1:] for k, v in table.items()}
    yield "infinite column", {**table, "errors": [float("inf"), *table["errors"][1:]]}
    yield "nulls", {**table, "errors": pa.array([None, *table["errors"][1:]], pa.float64())}
    yield "texts in a column", {**table, "text": ["Once upon a time"] * n}
    yield "lists in a column", {**table, "list": [[1.0, 2.0]] * n}
    yield "objects in a column", {**table, "object": [{"a": 1}] * n}
    yield "bytes in a column", {**table, "bytes": [b"MZ"] * n}
    yield "times in a column", {**table, "time": pa.array([0] * n, pa.timestamp("s"))}
    yield "texts as identifiers", {**table, "document": ["Once upon a time there was " * 20 + str(i) for i in range(n)]}
    yield "one document twice", {**table, "document": ["d0"] * n}
    yield "no identifiers", {k: v for k, v in table.items() if k != "document"}
    yield "no such role", {**table, "role": ["winner"] * n}
    yield "only controls", {**table, "role": ["random"] * n}
    yield "missing column", {k: v for k, v in table.items() if k != "errors"}
    yield "many columns", {**table, **{f"c{i}": np.zeros(n) for i in range(500)}}
    yield "nothing in it", {k: v[:0] for k, v in table.items()}


def _with_documents(base: dict[str, Any], data: bytes) -> dict[str, Any]:
    record = copy.deepcopy(base)
    record["artifacts"][0].update(sha256=hashlib.sha256(data).hexdigest(), bytes=len(data))
    return record


def _table(documents: bytes) -> dict[str, list[Any]]:
    import io

    import pyarrow.parquet as pq

    return {k: list(v) for k, v in pq.read_table(io.BytesIO(documents)).to_pydict().items()}


# -- where it stands, and what stands beside it


def _misplaced(base: dict[str, Any], documents: bytes, where: str) -> Iterator[Hostile]:
    sae, task, id = where.split("/")
    record = _text(base)
    moved = {
        "another SAE": f"other-{sae[-12:]}/{task}/{id}", "other weights": f"wide-{'0' * 12}/{task}/{id}",
        "another task": f"{sae}/other@1/{id}", "another version": f"{sae}/toy_errors@2/{id}",
        "another id": f"{sae}/{task}/{'0' * 12}", "capitals": f"{sae.upper()}/{task}/{id}",
        "odd name": f"wide <b>-{sae[-12:]}/{task}/{id}", "hidden": f".{sae}/{task}/{id}",
        "one level less": f"{sae}/{id}", "one level more": f"{sae}/{task}/{id}/inner",
    }  # fmt: skip
    for name, place_ in moved.items():
        yield Hostile(f"in the place of {name}", record, documents, place_)

    def grow(file: str, size: int) -> Touch:
        return lambda folder: (folder / file).touch() or _resize(folder / file, size)

    def beside(name: str, data: bytes = b"x") -> Touch:
        return lambda folder: _put(folder / name, data)

    touches = {
        "100 MB record": grow(RECORD, 100_000_000), "100 MB of documents": grow(DOCUMENTS, 100_000_000),
        "100 MB badge": grow(REPRODUCED, 100_000_000), "a page beside it": beside("index.html", MARKUP[0].encode()),
        "a pickle beside it": beside("sae.pt"), "a table beside it": beside("tables/latents.csv"),
        "a program beside it": beside("run.sh"), "a hidden file beside it": beside(".git/config"),
        "a file at the root": lambda folder: _put(folder.parents[2] / "index.html", b"x"),
        "a file beside a task": lambda folder: _put(folder.parents[1] / "notes.txt", b"x"),
        "a name with a line break": beside("a\nb"), "a name of markup": beside("<img src=x onerror=1>"),
        "a link as record": lambda folder: _link(folder / RECORD),
        "a link as documents": lambda folder: _link(folder / DOCUMENTS),
        "a link to a folder": lambda folder: (folder.parents[2] / "linked").symlink_to(folder),
        "a folder as record": lambda folder: ((folder / RECORD).unlink(), (folder / RECORD).mkdir()),
        "no documents there": lambda folder: (folder / DOCUMENTS).unlink(),
        "no record there": lambda folder: (folder / RECORD).unlink(),
        "its id twice": lambda folder: _twin(folder, base, documents),
        "its task declared twice": lambda folder: _redeclared(folder),
    }  # fmt: skip
    for name, touch in touches.items():
        yield Hostile(name, record, documents, where, touch)  # type: ignore[arg-type]


def _resize(path: Path, size: int) -> None:
    with path.open("r+b") as f:
        f.truncate(size)  # sparse: takes no room


def _put(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def _link(path: Path) -> None:
    away = path.parents[4] / path.name  # outside the results, so that only the link is wrong
    away.write_bytes(path.read_bytes())
    path.unlink()
    path.symlink_to(away)


def _twin(folder: Path, base: dict[str, Any], documents: bytes) -> None:
    """The same id, on another SAE."""
    made, _ = samples.make("other", id=base["id"])
    samples.write(folder.parents[2] / place(made), made.to_json().encode(), samples.make("other")[1])


def _redeclared(folder: Path) -> None:
    """Another record of the same task version, whose metric is better the other way."""
    from dataclasses import replace

    metrics = tuple(replace(m, better="neither", expects=None) for m in samples.METRICS)
    samples.put(folder.parents[2], samples.make("zz-other", toy=samples.toy_task(metrics)))


def _badges(base: dict[str, Any], documents: bytes, where: str) -> Iterator[Hostile]:
    record = _text(base)
    sound_badge = {
        "schema_version": 1, "record": base["id"], "record_sha256": hashlib.sha256(record).hexdigest(),
        "metrics": dict.fromkeys(base["metrics"], "equal"), "device": "cpu", "versions": base["versions"],
    }  # fmt: skip
    changes: dict[str, dict[str, Any]] = {
        "of another record": {"record": samples.sha("other")},
        "of other bytes": {"record_sha256": samples.sha("other")},
        "of fewer metrics": {"metrics": {"error": "equal"}}, "that did not agree": {"metrics": {"error": "differs"}},
        "made dirty": {"versions": {**base["versions"], "dirty": True}}, "with markup": {"device": MARKUP[0]},
        "with a field too much": {"by": "me"}, "to come": {"schema_version": 2},
    }  # fmt: skip
    for name, change in changes.items():
        data = json.dumps({**sound_badge, **change}).encode()
        yield Hostile(f"a badge {name}", record, documents, where, lambda f, d=data: _put(f / REPRODUCED, d))  # type: ignore[misc]
    for name, data in (("that is no JSON", b"{"), ("that is a list", b"[]")):
        yield Hostile(f"a badge {name}", record, documents, where, lambda f, d=data: _put(f / REPRODUCED, d))  # type: ignore[misc]


# -- JSON values


def leaves(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[tuple[Any, ...], Any]]:
    """Every value that is no object and no list, with its path."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from leaves(inner, (*path, key))
    elif isinstance(value, list):
        for i, inner in enumerate(value):
            yield from leaves(inner, (*path, i))
    else:
        yield path, value


def replaced(base: dict[str, Any], path: tuple[Any, ...], value: Any) -> dict[str, Any]:
    record = copy.deepcopy(base)
    _at(record, path[:-1])[path[-1]] = value
    return record


def _at(value: Any, path: tuple[Any, ...]) -> Any:
    for key in path:
        value = value[key]
    return value


def _text(record: dict[str, Any]) -> bytes:
    return json.dumps(record).encode()
