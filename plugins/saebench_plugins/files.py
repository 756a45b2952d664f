"""Corpora in local files: txt, jsonl, json, csv and parquet. The format follows the suffix.

.txt             one document a line; where the file has blank lines, one document between two of them
.jsonl, .ndjson  one JSON value a line: a text, or an object with the text field
.json            a list of texts, or of objects with the text field
.csv, .parquet   the column named by the text field
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from saebench_meta.errors import BadFileError, SaebenchError, did_you_mean
from saebench_meta.hookspecs import DataIdentity


def claims(path: Path) -> bool:
    """A file with one of the suffixes above."""
    return path.is_file() and path.suffix.lower() in READERS


def documents(
    ref: str, *, split: str | None = None, revision: str | None = None, text_field: str = "text"
) -> list[str]:
    """All documents of a file, in its order. Empty ones are kept, so that a document's index is its place in the file.

    Raises:
        SaebenchError: no such file, an unknown suffix, a split or revision (a file has none).
        BadFileError: names the file, the line or item, and the field.
    """
    path = _file(ref, split, revision)
    try:
        return READERS[path.suffix.lower()](path, text_field)
    except UnicodeDecodeError as e:
        raise BadFileError(f"corpus '{path}' is not UTF-8 text (byte {e.start}); convert it first") from e
    except OSError as e:
        raise SaebenchError(f"corpus '{path}' cannot be read: {e.strerror or e}") from e


def peek(ref: str, *, split: str | None = None, revision: str | None = None) -> DataIdentity:
    """sha256 of the file and of its suffix, which decides how it is read."""
    from saebench_meta.resolve import file_sha256

    path = _file(ref, split, revision)
    content = f"{path.suffix.lower()} {file_sha256(path)}"
    return DataIdentity(ref=path.name, sha256=hashlib.sha256(content.encode()).hexdigest())


def _file(ref: str, split: str | None, revision: str | None) -> Path:
    path = Path(ref).expanduser()
    if not path.is_file():
        raise SaebenchError(f"corpus '{ref}': there is no such file")
    if path.suffix.lower() not in READERS:
        raise SaebenchError(f"corpus '{ref}': unknown suffix '{path.suffix}'; known: {', '.join(READERS)}")
    if split is not None or revision is not None:
        name = "split" if split is not None else "revision"
        raise SaebenchError(f"corpus '{ref}' is a file and has no {name}: leave it out")
    return path


def _txt(path: Path, field: str) -> list[str]:  # noqa: ARG001
    text = path.read_text(encoding="utf-8-sig")
    blocks = re.split(r"\n(?:[ \t]*\n)+", text.strip("\n"))
    # Not splitlines: it also splits at characters that stand inside a line of text, such as U+2028.
    return blocks if len(blocks) > 1 else text.strip("\n").split("\n")


def _jsonl(path: Path, field: str) -> list[str]:
    found = []
    with path.open(encoding="utf-8-sig") as lines:
        for number, line in enumerate(lines, 1):
            if line.strip():
                found.append(_text(_parse(line, path, f"line {number}"), field, path, f"line {number}"))
    return found


def _json(path: Path, field: str) -> list[str]:
    items = _parse(path.read_text(encoding="utf-8-sig"), path, "the file")
    if not isinstance(items, list):
        raise BadFileError(f"corpus '{path}' holds a JSON {type(items).__name__}, not a list of texts or objects")
    return [_text(item, field, path, f"item {i}") for i, item in enumerate(items)]


def _parse(text: str, path: Path, where: str) -> Any:
    try:
        return json.loads(text)
    except (json.JSONDecodeError, RecursionError) as e:
        raise BadFileError(f"corpus '{path}': {where} is not JSON ({e})") from e


def _text(item: object, field: str, path: Path, where: str) -> str:
    """The text of one item; null is an empty document."""
    if isinstance(item, dict):
        if field not in item:
            raise _no_field(path, field, [str(k) for k in item], where)
        item = item[field]
    if item is None:
        return ""
    if not isinstance(item, str):
        raise BadFileError(f"corpus '{path}': {where} has {type(item).__name__} for text (field '{field}')")
    return item


def _csv(path: Path, field: str) -> list[str]:
    import pandas as pd

    try:
        columns = pd.read_csv(path, nrows=0).columns.tolist()
        if field not in columns:
            raise _no_field(path, field, columns, "the table")
        table = pd.read_csv(path, usecols=[field], dtype=str, keep_default_na=False)
    except (pd.errors.ParserError, pd.errors.EmptyDataError) as e:
        raise BadFileError(f"corpus '{path}' is not CSV: {e}") from e
    return [str(text) for text in table[field]]


def _parquet(path: Path, field: str) -> list[str]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        names = pq.read_schema(path).names
        if field not in names:
            raise _no_field(path, field, names, "the table")
        column = pq.read_table(path, columns=[field]).column(field)
    except pa.ArrowException as e:
        raise BadFileError(f"corpus '{path}' is not parquet: {e}") from e
    return [_text(item, field, path, f"row {i}") for i, item in enumerate(column.to_pylist())]


def _no_field(path: Path, field: str, known: Iterable[str], where: str) -> BadFileError:
    names = list(known)
    return BadFileError(
        f"corpus '{path}': {where} has no field '{field}'{did_you_mean(field, names)} Name it with --text-field."
    )


READERS: dict[str, Callable[[Path, str], list[str]]] = {
    ".txt": _txt,
    ".jsonl": _jsonl,
    ".ndjson": _jsonl,
    ".json": _json,
    ".csv": _csv,
    ".parquet": _parquet,
}
