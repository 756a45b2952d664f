"""Where records stand on the leaderboard, and which SAE a record is of.

    results/<slug of the SAE's name>-<weights[:12]>/<task>@<version>/<id[:12]>/{record.json, documents.parquet}

Beside a record that a maintainer has run again with the same result stands `reproduced.json`. Nothing else is kept: no
tables, no figures, no text that a model has read.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from saebench_meta.record import Record, SubjectSAE, canonical_hash
from saebench_meta.store import ID_CHARS, slug

RESULTS = Path("leaderboard/results")
RECORD, DOCUMENTS, REPRODUCED = "record.json", "documents.parquet", "reproduced.json"
MAX_BYTES = {RECORD: 1_000_000, DOCUMENTS: 20_000_000, REPRODUCED: 100_000}
"""Files that may stand in a record's folder, and how large they may be."""
AT_ROOT = (".gitkeep", "README.md")
"""Files that may stand beside the SAEs' folders."""


def subject_sae(record: Record) -> SubjectSAE | None:
    """The SAE under test: whose row the record stands in; None for a family."""
    return next((s for s in record.subject.saes if s.role == "sae"), None)


def reference_sae(record: Record) -> SubjectSAE | None:
    """The SAE a pair is held against."""
    return next((s for s in record.subject.saes if s.role == "reference"), None)


def weights_of(sae: SubjectSAE) -> str | None:
    """The hash an SAE's weights are known by: of their content, else of the files they come in; None if unknown."""
    if sae.trained is not None:
        return sae.trained.content_sha256
    if "weights" in sae.files:
        return sae.files["weights"]
    hashes = sorted(set(sae.files.values()))
    return None if not hashes else hashes[0] if len(hashes) == 1 else canonical_hash(hashes)


def row_id(sae: SubjectSAE) -> str:
    """12 hex digits that name an SAE's row: its weights, and everything else that changes its codes or its site."""
    return canonical_hash([weights_of(sae), sae.info.identity()])[:ID_CHARS]


def place(record: Record) -> PurePosixPath:
    """Where a record stands under the results; it needs an SAE under test whose weights are known."""
    sae = subject_sae(record)
    weights = None if sae is None else weights_of(sae)
    if sae is None or weights is None:
        raise ValueError("a record of a family, or of an SAE without a hash, has no place on the leaderboard")
    task = f"{record.task.name}@{record.task.version}"
    return PurePosixPath(f"{slug(sae.info.name)}-{weights[:ID_CHARS]}") / task / record.id[:ID_CHARS]


def record_folders(results: Path) -> Iterator[Path]:
    """Folders three levels down, in a stable order; links are not followed."""
    for sae in _folders(results):
        for task in _folders(sae):
            yield from _folders(task)


def _folders(parent: Path) -> list[Path]:
    return sorted(p for p in parent.iterdir() if p.is_dir() and not p.is_symlink())
