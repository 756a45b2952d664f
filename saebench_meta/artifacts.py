"""What a task gives as files: tables, figures, transcripts, SAEs, per-document statistics.

CSV; Vega-Lite with SVG beside it; JSON lines; the suite's own SAE format; Parquet.
"""

from __future__ import annotations

import io
import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from saebench_meta.measure import SUBJECT, document_rows
from saebench_meta.store import Draft, slug
from saebench_meta.task import Figure, Output
from saebench_meta.transcripts import json_lines

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

    from saebench_meta.hookspecs import SAELoader
    from saebench_meta.plugins import Registry
    from saebench_meta.sae import SAE


def draft(outputs: Mapping[str, Output], registry: Registry) -> Draft:
    """Files of a record: those of the subject, and per-document statistics also of its controls.

    Raises:
        SaebenchError: an SAE cannot be written in the suite's own format, or a row of a transcript is no question.
    """
    from saebench_meta.training.job import FORMAT

    made = Draft()
    output = outputs[SUBJECT]
    for name, table in output.tables.items():
        data = table.data.to_csv(index=False, float_format="%.9g", lineterminator="\n").encode()
        made.add(f"tables/{slug(name)}.csv", data, kind="table", title=table.title, caption=table.caption)
    for name, figure in output.figures.items():
        spec, svg = _render(figure)
        made.add(f"figures/{slug(name)}.vl.json", spec, kind="figure", title=figure.title, caption=figure.caption)
        made.add_file(f"figures/{slug(name)}.svg", svg)
    for name, transcript in output.transcripts.items():
        data = json_lines(name, transcript)
        path = f"transcripts/{slug(name)}.jsonl"
        made.add(path, data, kind="transcript", title=transcript.title, caption=transcript.caption)
    for name, sae in output.saes.items():
        caption = f"{sae.d_sae:,} latents, {sae.info.activation}; saebench run --sae takes this file."
        data = _sae_file(sae, registry.loaders[FORMAT])
        made.add(f"saes/{slug(name)}.safetensors", data, kind="sae", title=sae.info.name, caption=caption)
    rows = document_rows(outputs)
    if rows is not None:
        made.add("documents.parquet", _parquet(rows), kind="documents", title="Per-document sufficient statistics")
    return made


def _render(figure: Figure) -> tuple[bytes, bytes]:
    spec = json.dumps(figure.chart.to_dict(), sort_keys=True, allow_nan=False).encode()
    buffer = io.StringIO()
    figure.chart.save(buffer, format="svg")
    return spec, buffer.getvalue().encode()


def _sae_file(sae: SAE, form: SAELoader) -> bytes:
    assert form.save is not None
    with tempfile.TemporaryDirectory(prefix="saebench-sae-") as folder:
        return form.save(sae, Path(folder) / "sae.safetensors").read_bytes()


def _parquet(rows: Mapping[str, list[ArrayLike]]) -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    buffer = io.BytesIO()
    pq.write_table(pa.table(dict(rows)), buffer, compression="zstd")
    return buffer.getvalue()
