"""Labelled sets in local files: csv, jsonl or parquet with the columns `text`, `label` and perhaps `split`.

A label is text, a whole number or a truth value. `split` says `train` or `test` (or `validation`, which counts as
training) of every row; without that column a fifth of each class is tested on, those with the smallest hashes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from saebench_meta.errors import BadFileError, SaebenchError, did_you_mean
from saebench_meta.hookspecs import DataIdentity, LabelledSet

TEXT, LABEL, SPLIT = "text", "label", "split"
SPLITS = ("train", "validation", "test")
TEST_SHARE = 0.2
"""Of the texts of a class, where the file has no column `split`."""
FEWEST = 5
"""Texts of a class."""

Row = tuple[str, dict[str, Any]]
"""Where in the file it stands, in words, and its columns."""


def claims(path: Path) -> bool:
    """A file with one of the suffixes above."""
    return path.is_file() and path.suffix.lower() in READERS


def peek(ref: str) -> DataIdentity:
    """sha256 of the file and of its suffix, which decides how it is read; the file is read, so that faults show early.

    Raises:
        SaebenchError, BadFileError: as `load`.
    """
    load(ref)
    path = _file(ref)
    content = f"{path.suffix.lower()} {_sha256(path)}"
    return DataIdentity(ref=path.name, sha256=hashlib.sha256(content.encode()).hexdigest())


def load(ref: str) -> LabelledSet:
    """The set in a file.

    Raises:
        SaebenchError: no such file, or an unknown suffix.
        BadFileError: names the file and the row or column that is wrong, or the class that has too few texts.
    """
    path = _file(ref)
    return _load(path, _sha256(path))


def _file(ref: str) -> Path:
    path = Path(ref).expanduser()
    if not path.is_file():
        raise SaebenchError(f"labelled set '{ref}': there is no such file")
    if path.suffix.lower() not in READERS:
        raise SaebenchError(f"labelled set '{ref}': unknown suffix '{path.suffix}'; known: {', '.join(READERS)}")
    return path


def _sha256(path: Path) -> str:
    from saebench_meta.resolve import file_sha256

    return file_sha256(path)


@lru_cache(maxsize=16)
def _load(path: Path, _sha256: str) -> LabelledSet:
    try:
        rows = list(READERS[path.suffix.lower()](path))
    except UnicodeDecodeError as e:
        raise BadFileError(f"labelled set '{path}' is not UTF-8 text (byte {e.start}); convert it first") from e
    except OSError as e:
        raise SaebenchError(f"labelled set '{path}' cannot be read: {e.strerror or e}") from e
    if not rows:
        raise BadFileError(f"labelled set '{path}' has no rows")
    texts = [_checked(path, row, TEXT, str) for row in rows]
    labels = [_checked(path, row, LABEL, str, int) for row in rows]
    classes = _classes(path, labels, texts)
    numbers = [classes.index(label) for label in labels]
    splits = _given(path, rows) if SPLIT in rows[0][1] else _by_hash(texts, numbers)
    parts = {split: [i for i, one in enumerate(splits) if one == split] for split in SPLITS}
    parts = {split: chosen for split, chosen in parts.items() if chosen or split != "validation"}
    return LabelledSet(
        tuple(str(c) for c in classes),
        texts={split: tuple(texts[i] for i in chosen) for split, chosen in parts.items()},
        labels={split: tuple(numbers[i] for i in chosen) for split, chosen in parts.items()},
    )


def _checked(path: Path, row: Row, column: str, *kinds: type) -> Any:
    """The row's value in a column, which must be there and of one of these types."""
    where, values = row
    if column not in values:
        raise BadFileError(f"labelled set '{path}': {where} has no '{column}'{did_you_mean(column, list(values))}")
    value = values[column]
    if not isinstance(value, kinds):
        words = {str: "text", int: "a whole number"}
        said = "nothing" if value is None else f"{type(value).__name__} {value!r}"
        raise BadFileError(
            f"labelled set '{path}': {where} has {said} as '{column}', expected {' or '.join(words[k] for k in kinds)}"
        )
    return value


def _classes(path: Path, labels: list[Any], texts: list[str]) -> list[Any]:
    """The labels there are, in order; each has enough different texts."""
    found = set(labels)
    if "" in found:
        raise BadFileError(f"labelled set '{path}': row {labels.index('') + 1} has an empty label")
    if len({isinstance(label, str) for label in found}) > 1:
        raise BadFileError(f"labelled set '{path}': some labels are text, some numbers ({_few(found)}); use one kind")
    if len(found) < 2:
        raise BadFileError(f"labelled set '{path}': all rows have the label {_few(found)}; give two classes or more")
    texts_of: dict[Any, set[str]] = {label: set() for label in found}
    for label, text in zip(labels, texts, strict=True):
        texts_of[label].add(text)
    for label, own in sorted(texts_of.items(), key=str):
        if len(own) < FEWEST:
            raise BadFileError(
                f"labelled set '{path}': class '{label}' has {len(own)} different texts of {len(texts)}, at least "
                f"{FEWEST} are needed. Is '{LABEL}' the class?"
            )
    return sorted(found)


def _few(labels: set[Any]) -> str:
    return ", ".join(repr(label) for label in sorted(labels, key=str)[:4])


def _given(path: Path, rows: list[Row]) -> list[str]:
    """The split of each row as the file says."""
    found = [str(_checked(path, row, SPLIT, str)).strip().lower() for row in rows]
    if unknown := [s for s in found if s not in SPLITS]:
        raise BadFileError(f"labelled set '{path}': '{unknown[0]}' is no split{did_you_mean(unknown[0], list(SPLITS))}")
    for split in ("train", "test"):
        if split not in found:
            raise BadFileError(
                f"labelled set '{path}': no row's split is '{split}'; give both, or leave the column out"
            )
    return found


def _by_hash(texts: list[str], labels: list[int]) -> list[str]:
    """`test` for those texts of each class whose hashes are smallest, `train` for the others."""
    test: set[tuple[int, str]] = set()
    for label in set(labels):
        own = {text for text, one in zip(texts, labels, strict=True) if one == label}
        ranked = sorted(own, key=lambda text: hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest())
        test |= {(label, text) for text in ranked[: max(1, round(TEST_SHARE * len(ranked)))]}
    return ["test" if pair in test else "train" for pair in zip(labels, texts, strict=True)]


def _csv(path: Path) -> Iterator[Row]:
    """Every value is text, as it stands."""
    import pandas as pd

    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False, encoding="utf-8-sig")
    except (pd.errors.ParserError, pd.errors.EmptyDataError) as e:
        raise BadFileError(f"labelled set '{path}' is not CSV: {str(e).strip()}") from e
    _check_columns(path, [str(c) for c in table.columns])
    for number, values in enumerate(table.to_dict("records"), 1):
        yield f"row {number}", {str(name): value for name, value in values.items()}


def _jsonl(path: Path) -> Iterator[Row]:
    with path.open(encoding="utf-8-sig") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                values = json.loads(line)
            except (json.JSONDecodeError, RecursionError) as e:
                raise BadFileError(f"labelled set '{path}': line {number} is not JSON ({e})") from e
            if not isinstance(values, dict):
                raise BadFileError(f"labelled set '{path}': line {number} is no object with '{TEXT}' and '{LABEL}'")
            yield f"line {number}", values


def _parquet(path: Path) -> Iterator[Row]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        names = pq.read_schema(path).names
        _check_columns(path, names)
        table = pq.read_table(path, columns=[n for n in (TEXT, LABEL, SPLIT) if n in names])
    except pa.ArrowException as e:
        raise BadFileError(f"labelled set '{path}' is not parquet: {e}") from e
    for number, values in enumerate(table.to_pylist(), 1):
        yield f"row {number}", values


def _check_columns(path: Path, names: list[str]) -> None:
    for column in (TEXT, LABEL):
        if column not in names:
            raise BadFileError(f"labelled set '{path}' has no column '{column}'{did_you_mean(column, names)}")


READERS: Mapping[str, Callable[[Path], Iterator[Row]]] = {
    ".csv": _csv,
    ".jsonl": _jsonl,
    ".ndjson": _jsonl,
    ".parquet": _parquet,
}
