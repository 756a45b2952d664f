"""The HTML page of a run folder: no script, no network, readable in the dark, on a phone and by keyboard.

Its figures are images; each links to an interactive one (`saebench_meta.interactive`). Of a transcript it shows counts
and examples, and links to a page with all of its questions (`saebench_meta.transcripts`).
"""

from __future__ import annotations

import base64
import csv
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from saebench_meta import explorer, interactive, tables, transcripts
from saebench_meta.record import Artifact, JudgeUsed, Record
from saebench_meta.store import find_records, slug, write_atomic

if TYPE_CHECKING:
    from jinja2 import Environment

REPORT = "report.html"
ROWS_SHOWN = 50
CELL_CHARS = 200
KINDS = ("table", "figure", "transcript", "sae")


@dataclass(frozen=True)
class ShownTable:
    """The first rows of a table artifact."""

    title: str
    caption: str
    href: str
    heads: list[str]
    rows: list[list[str]]
    total: int


@dataclass(frozen=True)
class ShownFigure:
    """A figure artifact as an image inside the page.

    Attributes:
        href: of the SVG.
        source: the SVG as a data URL.
        spec: what the interactive figure is drawn from, None if it cannot be read.
    """

    title: str
    caption: str
    href: str
    source: str | None
    spec: dict[str, Any] | None


@dataclass(frozen=True)
class ShownFile:
    """An artifact to be downloaded, such as an SAE."""

    title: str
    caption: str
    href: str


@dataclass(frozen=True)
class ShownRecord:
    """One record with everything the page says of it."""

    anchor: str
    record: Record
    rows: list[tables.Row]
    tables: list[ShownTable]
    figures: list[ShownFigure]
    transcripts: list[transcripts.Page]
    saes: list[ShownFile]
    settings: dict[str, str]
    provenance: dict[str, str]

    @property
    def title(self) -> str:
        return _title(self.record)

    @property
    def page(self) -> str:
        """Where its interactive figures are, from the report."""
        return f"{interactive.FOLDER}/{self.record.id[:16]}.html"


@dataclass(frozen=True)
class Summary:
    """The main metrics of one task: a row a subject, a column a metric."""

    task: str
    heads: list[tables.Row]
    rows: list[tuple[str, str, list[tables.Row | None]]]


def write_report(folder: Path, *, skipped: Mapping[str, str] | None = None) -> Path:
    """Write `report.html` and the interactive figures into a run folder from the records in it; the former's path.

    Args:
        folder: what a run wrote to.
        skipped: task and subject -> reason, of units that have no record.

    Raises:
        SaebenchError: the folder or a record in it cannot be read, or the page cannot be written.
    """
    found = [_shown(folder, at, record, i) for i, (at, record) in enumerate(find_records(folder))]
    finished, environment = [r for r in found if r.record.status == "ok"], _environment()
    interactive.write_pages(folder, [_page(r) for r in finished if any(f.spec for f in r.figures)], environment)
    transcripts.write_pages(folder, [t for r in finished for t in r.transcripts], environment)
    page = environment.get_template("report.html").render(
        title=folder.resolve().name,
        summaries=summaries(found),
        records=finished,
        failed=_reasons(found, "failed"),
        skipped={**_reasons(found, "skipped"), **(skipped or {})},
        legend=tables.LEGEND,
        interval_head=tables.interval_head(r.record for r in found),
        rows_shown=ROWS_SHOWN,
        transcripts=any(r.transcripts for r in finished),
        explorer=_explorer(folder),
    )  # fmt: skip
    target = folder / REPORT
    write_atomic(target, page.encode())
    return target


def _explorer(folder: Path) -> str | None:
    """Where the explorer of the folder is, from the report; None if there is none."""
    page = Path(explorer.FOLDER) / explorer.PAGE
    return page.as_posix() if (folder / page).is_file() else None


def summary_html(records: Sequence[Record], skipped: Mapping[str, str], failed: Mapping[str, str]) -> str:
    """The summary tables alone, for notebooks."""
    found = [ShownRecord("", r, tables.rows([r]), [], [], [], [], {}, {}) for r in records]
    return _environment().get_template("summary.html").render(
        summaries=summaries(found), legend=tables.LEGEND, skipped=skipped, failed=failed
    )  # fmt: skip


def summaries(found: Iterable[ShownRecord]) -> list[Summary]:
    """Finished records by task, their main metrics side by side."""
    by_task: dict[str, list[ShownRecord]] = {}
    for shown in found:
        if shown.record.status == "ok":
            by_task.setdefault(f"{shown.record.task.name}@{shown.record.task.version}", []).append(shown)
    return [_summary(task, members) for task, members in by_task.items()]


def _summary(task: str, members: list[ShownRecord]) -> Summary:
    heads: dict[str, tables.Row] = {}
    for shown in members:
        main = [r for r in shown.rows if r.main] or shown.rows
        heads |= {row.metric: row for row in main if row.metric not in heads}
    rows = []
    for shown in members:
        by_name = {row.metric: row for row in shown.rows}
        partial = " (partial)" if shown.record.run.partial else ""
        rows.append((shown.record.subject.name + partial, shown.anchor, [by_name.get(name) for name in heads]))
    return Summary(task, list(heads.values()), rows)


def _reasons(found: Iterable[ShownRecord], status: str) -> dict[str, str]:
    return {
        f"{s.record.task.name} on {s.record.subject.name}": s.record.reason or ""
        for s in found
        if s.record.status == status
    }


def _environment() -> Environment:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    return Environment(
        loader=PackageLoader("saebench_meta"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


# -- one record


def _shown(root: Path, folder: Path, record: Record, index: int) -> ShownRecord:
    of_kind = {kind: [a for a in record.artifacts if a.kind == kind] for kind in KINDS}
    anchor = f"record-{index + 1}"
    pages = (_transcript(root, folder, record, anchor, a) for a in of_kind["transcript"])
    return ShownRecord(
        anchor=anchor,
        record=record,
        rows=tables.rows([record], all_metrics=True),
        tables=[t for a in of_kind["table"] if (t := _table(root, folder, a)) is not None],
        figures=[_figure(root, folder, a) for a in of_kind["figure"]],
        transcripts=[t for t in pages if t is not None],
        saes=[f for a in of_kind["sae"] if (f := _file(root, folder, a)) is not None],
        settings=_settings(record),
        provenance=_provenance(record),
    )


def _title(record: Record) -> str:
    return f"{record.task.name}@{record.task.version} on {record.subject.name}"


def _inside(folder: Path, path: str) -> Path | None:
    """A file of a record; None if it is not there, or not inside the record's folder (records come from strangers)."""
    file = (folder / path).resolve()
    return file if file.is_file() and file.is_relative_to(folder.resolve()) else None


def _href(root: Path, file: Path) -> str:
    return quote(file.relative_to(root.resolve()).as_posix())


def _file(root: Path, folder: Path, artifact: Artifact) -> ShownFile | None:
    file = _inside(folder, artifact.path)
    return None if file is None else ShownFile(artifact.title, artifact.caption, _href(root, file))


def _table(root: Path, folder: Path, artifact: Artifact) -> ShownTable | None:
    file = _inside(folder, artifact.path)
    if file is None:
        return None
    with file.open(encoding="utf-8", errors="replace", newline="") as f:
        lines = csv.reader(f)
        heads = next(lines, [])
        rows = [[_short(cell) for cell in row] for row in islice(lines, ROWS_SHOWN)]
        total = len(rows) + sum(1 for _ in lines)
    return ShownTable(artifact.title, artifact.caption, _href(root, file), heads, rows, total)


def _short(text: str) -> str:
    """A cell, with floats at the digits a reader can use and long texts cut."""
    try:
        value = float(text)
    except ValueError:
        return text if len(text) <= CELL_CHARS else text[:CELL_CHARS] + "…"
    return text if len(text) <= 8 or value != value else f"{value:.6g}"


def _figure(root: Path, folder: Path, artifact: Artifact) -> ShownFigure:
    svg = _inside(folder, artifact.path.removesuffix(".vl.json") + ".svg")
    # As an image, not inline: scripts in an SVG from a stranger then never run.
    source = None if svg is None else "data:image/svg+xml;base64," + base64.b64encode(svg.read_bytes()).decode()
    drawn = _inside(folder, artifact.path)
    spec = None if drawn is None else interactive.read_spec(drawn)
    return ShownFigure(artifact.title, artifact.caption, _href(root, svg) if svg else "", source, spec)


def _transcript(root: Path, folder: Path, record: Record, anchor: str, artifact: Artifact) -> transcripts.Page | None:
    file = _inside(folder, artifact.path)
    if file is None:
        return None
    return transcripts.Page(
        name=f"{record.id[:16]}-{slug(Path(artifact.path).stem)}.html",
        title=artifact.title,
        caption=artifact.caption,
        about=_title(record),
        back=f"../{REPORT}#{anchor}",
        source=_href(root, file),
        questions=transcripts.read_questions(file),
    )


def _page(shown: ShownRecord) -> interactive.Page:
    figures = [(f.title, f.caption, f.spec) for f in shown.figures]
    return interactive.Page(Path(shown.page).name, shown.title, f"../{REPORT}#{shown.anchor}", figures)


def _settings(record: Record) -> dict[str, str]:
    parameters = {f"{record.task.name}.{k}": v for k, v in record.task.parameters.items()}
    run = record.run
    data: dict[str, Any] = {}
    if record.model is not None:
        data |= {"model": record.model.ref, "model revision": record.model.revision, "hook": record.model.hook}
        data |= {"dtype": record.model.dtype}
    if record.data is not None:
        data |= {"data": record.data.ref, "documents": record.data.documents, "evaluated tokens": record.data.tokens}
        data |= {f"sampling: {k}": v for k, v in record.data.sampling.items()}
    data |= {f"labelled set {s.name}": f"{s.texts:,} texts" for s in record.labelled if s.texts is not None}
    if (judge := record.judge) is not None:
        data |= {"judge": f"{judge.name} {judge.version}", **{f"judge: {k}": v for k, v in judge.options.items()}}
        data |= {f"prompt {name}": f"sha256 {digest[:16]}…" for name, digest in judge.prompts.items()}
    limit = {"limit": run.limit} if run.limit is not None else {}
    return _texts({**parameters, **data, "seed": run.seed, "profile": run.profile, **limit})


def _provenance(record: Record) -> dict[str, str]:
    run, versions = record.run, record.versions
    saes = {
        f"{s.role}: {s.ref}": f"{s.info.architecture}, {s.info.d_sae:,} latents, {s.info.site}; "
        + ", ".join(f"{name} sha256 {digest[:16]}…" for name, digest in s.files.items())
        for s in record.subject.saes
    }
    dirty = " with changes" if versions.dirty else ""
    return _texts(
        {
            "record": record.id,
            "task's plugin": f"{record.task.plugin} {record.task.plugin_version}",
            **saes,
            "model backend": record.model.backend if record.model else None,
            "content of the data": record.data.content_sha256 if record.data else None,
            **{f"content of {s.name}": s.content_sha256 for s in record.labelled},
            **({} if record.judge is None else _judge(record.judge)),
            "saebench-meta": versions.saebench_meta,
            "commit": f"{versions.commit}{dirty}" if versions.commit else None,
            "Python": versions.python,
            "torch": versions.torch,
            "transformer-lens": versions.transformer_lens,
            "platform": versions.platform,
            "GPU": versions.gpu,
            "device": run.device,
            "started": run.started,
            "seconds": f"{run.seconds:,.1f}",
            "peak memory": None if run.peak_rss_mb is None else f"{run.peak_rss_mb:,.0f} MB",
            "peak GPU memory": None if run.peak_gpu_mb is None else f"{run.peak_gpu_mb:,.0f} MB",
        }
    )


def _judge(judge: JudgeUsed) -> dict[str, str | None]:
    """What came of asking it."""
    tokens = [n for n in (judge.prompt_tokens, judge.completion_tokens) if n is not None]
    asked = [f"{judge.asked:,} requests"] + ([f"{judge.cached:,} of them from the cache"] if judge.cached else [])
    asked += [f"{number:,} unanswered ({why})" for why, number in judge.unanswered.items()]
    return {
        "judge's plugin": judge.plugin,
        "judge's model": ", ".join(f"{model} ({number:,} answers)" for model, number in judge.models.items()) or None,
        "judge asked": ", ".join(asked),
        "judge's tokens": " + ".join(f"{n:,}" for n in tokens) or None,
        "judge's cost": None if judge.cost_usd is None else f"${judge.cost_usd:,.4f}",
        "judge's seconds": None if judge.seconds is None else f"{judge.seconds:,.1f}",
    }


def _texts(values: Mapping[str, Any]) -> dict[str, str]:
    return {name: str(value) for name, value in values.items() if value is not None}
