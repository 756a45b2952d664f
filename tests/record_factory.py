"""A valid record to start from, for tests of everything that reads records."""

from __future__ import annotations

from typing import Any

from saebench_meta.record import Record, RunSettings, Subject, SubjectSAE, TaskRef, Versions
from saebench_meta.sae import SAEInfo, Site

INFO = SAEInfo(name="small", site=Site(model="toy", hook="blocks.0.hook_resid_post"), d_in=4, d_sae=8)


def make_record(**fields: Any) -> Record:
    """A record with status ok and no metrics, with any fields replaced."""
    defaults: dict[str, Any] = {
        "id": "a" * 64,
        "status": "ok",
        "task": TaskRef(name="core", version=1, parameters={}, plugin="saebench-meta:core", plugin_version="0.1.0"),
        "subject": Subject(
            kind="sae",
            name="small",
            saes=[
                SubjectSAE(
                    ref="native:small.safetensors",
                    role="sae",
                    loader="native",
                    loader_version=1,
                    info=INFO,
                    files={"small.safetensors": "0" * 64},
                )
            ],
        ),
        "run": RunSettings(
            seed=0,
            limit=None,
            partial=False,
            profile="default",
            device="cpu",
            batch_size="auto",
            started="2026-01-01T00:00:00+00:00",
            seconds=1.0,
            peak_rss_mb=None,
            peak_gpu_mb=None,
        ),
        "versions": Versions(
            saebench_meta="0.1.0",
            commit=None,
            dirty=None,
            python="3.11",
            torch=None,
            transformer_lens=None,
            platform="test",
            gpu=None,
        ),
    }
    return Record(**{**defaults, **fields})
