"""Files from strangers: sizes before bytes, bytes before values; what does not fit is a `BadFileError` of one line."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from saebench_meta.errors import BadFileError

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

MAX_ROWS = 1_000_000
MAX_COLUMNS = 400
MAX_VALUES = 50_000_000
"""Of all columns together: 400 MB once read."""
MAX_ID_CHARS = 200
ROLE, DOCUMENT = "role", "document"

Documents = Mapping[str, Mapping[str, "np.ndarray"]]
"""Role (`sae`, or a control) -> column -> one number a document."""


def read_limited(path: Path, limit: int) -> bytes:
    """The bytes of a regular file of at most `limit`.

    Raises:
        BadFileError: a link, no file, or too large; nothing of it is read then.
    """
    try:
        if path.is_symlink() or not path.is_file():
            raise BadFileError("is no regular file: links and folders are not taken")
        size = path.stat().st_size
        if size > limit:
            raise BadFileError(f"has {size:,} bytes, and at most {limit:,} are taken")
        return path.read_bytes()
    except OSError as e:
        raise BadFileError(f"cannot be read ({e.strerror or e})") from e


def parse_json(data: bytes) -> Any:
    """A JSON value in UTF-8, without NaN and without a key that stands twice.

    Raises:
        BadFileError: it is not that.
    """
    try:
        return json.loads(data.decode("utf-8"), parse_constant=_no_constant, object_pairs_hook=_once_each)
    except (ValueError, RecursionError) as e:
        raise BadFileError(f"is not valid JSON ({e})") from e


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is not allowed")


def _once_each(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key stands twice in one object")
    return found


def read_documents(path: Path) -> Documents:
    """The per-document columns of a record, by role.

    Raises:
        BadFileError: not a Parquet file of `role`, `document` and columns of numbers, or too large.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path, thrift_string_size_limit=2**24, thrift_container_size_limit=2**20) as file:
            _check_shape(file.metadata.num_rows, file.schema_arrow)
            table = file.read(use_threads=False)
    except (pa.ArrowException, OSError, ValueError, MemoryError) as e:
        raise BadFileError(f"is not a Parquet file that can be read ({str(e).splitlines()[0][:200]})") from e
    return _by_role(table)


def _check_shape(rows: int, schema: pa.Schema) -> None:
    import pyarrow.types as kinds

    if rows > MAX_ROWS or len(schema) > MAX_COLUMNS or rows * len(schema) > MAX_VALUES:
        raise BadFileError(f"has {rows:,} rows of {len(schema)} columns; at most {MAX_VALUES:,} values are taken")
    if len(set(schema.names)) != len(schema.names) or DOCUMENT not in schema.names:
        raise BadFileError("needs one column 'document', and every name once")
    for field in schema:
        number = kinds.is_floating(field.type) or kinds.is_integer(field.type)
        text = kinds.is_string(field.type) or kinds.is_large_string(field.type)
        if not (number or (text and field.name in (ROLE, DOCUMENT))):
            raise BadFileError(f"column {field.name[:60]!r} is of type {str(field.type)[:60]}: only numbers are taken")


def _by_role(table: pa.Table) -> Documents:
    import numpy as np

    if any(column.null_count for column in table.columns):
        raise BadFileError("holds nulls; what was not measured is NaN")
    columns = {n: np.asarray(table[n].to_numpy(zero_copy_only=False)) for n in table.column_names}
    roles = columns.pop(ROLE, np.full(table.num_rows, "sae", dtype=object))
    _check_columns(columns)
    out = {}
    for role in dict.fromkeys(roles.tolist()):
        chosen = roles == role
        out[str(role)] = {n: c[chosen] for n, c in columns.items()}
        if len(set(out[str(role)][DOCUMENT].tolist())) != int(chosen.sum()):
            raise BadFileError(f"names a document twice for {str(role)[:60]!r}")
    return out


def _check_columns(columns: Mapping[str, np.ndarray]) -> None:
    import numpy as np

    ids = columns[DOCUMENT]
    if ids.dtype == object and any(len(i) > MAX_ID_CHARS or not i.isprintable() for i in ids.tolist()):
        raise BadFileError(f"column 'document' holds texts: identifiers have at most {MAX_ID_CHARS} characters")
    for name, column in columns.items():
        if name != DOCUMENT and np.nanmax(np.abs(column), initial=0.0) > 1e300:
            raise BadFileError(f"column {name[:60]!r} holds an infinite or absurdly large number")
