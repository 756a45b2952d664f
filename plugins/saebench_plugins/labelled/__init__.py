"""Labelled sets: local files, and the eight sets that probes are tried on in the literature (paper, A.9.1).

    --labelled reviews.csv           a local file with columns `text` and `label`, and perhaps `split`
    --labelled hub:ag-news           one of the eight; `hub:ag-news@COMMIT` at a commit of its repository
    --labelled hub                   all eight

- ``files.py``: local files;
- ``hub_sets.py``: which repositories, classes and columns the eight are, and how their texts are chosen.
"""

from __future__ import annotations

from collections.abc import Mapping

from saebench_meta.hookspecs import LabelledLoader, hookimpl
from saebench_plugins.labelled import files, hub_sets

saebench_api = 1


@hookimpl
def saebench_labelled() -> Mapping[str, LabelledLoader]:
    return {
        "file": LabelledLoader(
            files.load,
            peek=files.peek,
            claims=files.claims,
            summary="csv, jsonl or parquet file with text and label",
        ),
        hub_sets.SCHEME: LabelledLoader(
            hub_sets.load,
            peek=hub_sets.peek,
            names=tuple(hub_sets.SETS),
            summary="the eight sets of the literature, from the Hugging Face hub",
        ),
    }
