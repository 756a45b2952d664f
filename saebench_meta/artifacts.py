"""A task's tables, figures and per-document statistics as files: CSV, Vega-Lite with SVG beside it, Parquet."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from typing import TYPE_CHECKING

from saebench_meta.measure import SUBJECT, document_rows
from saebench_meta.store import Draft, slug
from saebench_meta.task import Figure, Output

if TYPE_CHECKING:
    from numpy.typing import ArrayLike


def draft(outputs: Mapping[str, Output]) -> Draft:
    """Files of a record: tables and figures of the subject, per-document statistics of the subject and its controls."""
    made = Draft()
    output = outputs[SUBJECT]
    for name, table in output.tables.items():
        data = table.data.to_csv(index=False, float_format="%.9g", lineterminator="\n").encode()
        made.add(f"tables/{slug(name)}.csv", data, kind="table", title=table.title, caption=table.caption)
    for name, figure in output.figures.items():
        spec, svg = _render(figure)
        made.add(f"figures/{slug(name)}.vl.json", spec, kind="figure", title=figure.title, caption=figure.caption)
        made.add_file(f"figures/{slug(name)}.svg", svg)
    rows = document_rows(outputs)
    if rows is not None:
        made.add("documents.parquet", _parquet(rows), kind="documents", title="Per-document sufficient statistics")
    return made


def _render(figure: Figure) -> tuple[bytes, bytes]:
    spec = json.dumps(figure.chart.to_dict(), sort_keys=True, allow_nan=False).encode()
    buffer = io.StringIO()
    figure.chart.save(buffer, format="svg")
    return spec, buffer.getvalue().encode()


def _parquet(rows: Mapping[str, list[ArrayLike]]) -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    buffer = io.BytesIO()
    pq.write_table(pa.table(dict(rows)), buffer, compression="zstd")
    return buffer.getvalue()
