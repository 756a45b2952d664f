"""Leaderboards made by hand: one as real runs give it, one whose every text would be markup if let, and a large one."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any

import numpy as np

from saebench_meta.leaderboard.board import Badge, Board, Cell, Column, Difference, OrderSeen, Row, RowKind, Source

EVIL = "</script><script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\">\u2028{{7*7}}"

TRAINED = "trained>random"
REBUILDS = "a dictionary trained to rebuild activations does so better than random directions at the same L0"
CORE = (
    Column("core@1.l0", "core", 1, "l0", "latents", "neither", True, "Active latents per token."),
    Column(
        "core@1.mse", "core", 1, "mse", "squared activation", "lower", True,
        "Squared reconstruction error, mean over tokens and dimensions.", TRAINED, REBUILDS,
    ),
    Column(
        "core@1.explained_variance", "core", 1, "explained_variance", "fraction", "higher", True, "1 − NMSE.", TRAINED,
        REBUILDS,
    ),
    Column(
        "core@1.ce_recovered_mean", "core", 1, "ce_recovered_mean", "fraction", "higher", True,
        "Share of the damage of mean ablation that splicing avoids.", TRAINED,
        "what is rebuilt better disturbs the language model less",
    ),
    Column("core@1.dead_fraction", "core", 1, "dead_fraction", "fraction", "lower", False, "Share of dead latents."),
)  # fmt: skip
OTHERS = (
    Column(
        "novel_latents@2.novel_ratio", "novel_latents", 2, "novel_ratio", "fraction", "neither", True,
        "Share of the latents that the reference has no counterpart for.",
    ),
    Column(
        "novel_latents@1.novel_ratio", "novel_latents", 1, "novel_ratio", "fraction", "neither", True,
        "As version 2, unsigned.", current=False,
    ),
    Column(
        "sparse_probing@1.balanced_accuracy_k1", "sparse_probing", 1, "balanced_accuracy_k1", "fraction", "higher",
        True, "Balanced accuracy of probes on the one chosen latent, mean over classes.", "oracle>trained>random",
        "a sound dictionary holds a concept in one latent",
    ),
    Column(
        "autointerp@1.detection~0badcafe", "autointerp", 1, "detection", "fraction", "higher", True,
        "Balanced accuracy of the judge in telling which passages a latent is active on.", TRAINED,
        "what a latent stands for can be told from its passages", {"judge": {"name": "lexical", "prompt": "b5" * 16}},
        "judge lexical",
    ),
    Column(
        "autointerp@1.detection~c0ffee00", "autointerp", 1, "detection", "fraction", "higher", True,
        "Balanced accuracy of the judge in telling which passages a latent is active on.", TRAINED,
        "what a latent stands for can be told from its passages", {"judge": {"name": "openai:small", "questions": 40}},
        "judge openai:small",
    ),
    Column(
        "meta_sae@1.variance_explained", "meta_sae", 1, "variance_explained", "fraction", "neither", True,
        "Share of the variance of the decoder rows that the meta-SAE explains.",
    ),
)  # fmt: skip
RESID_1, RESID_8 = ("atlas", "blocks.1.hook_resid_post"), ("gpt2", "blocks.8.hook_resid_pre")


@dataclass(frozen=True)
class Made:
    """An SAE that was never trained: its site, shape, and how good it is, from 0 to 1."""

    name: str
    site: tuple[str, str]
    architecture: str
    d_sae: int
    l0: float
    good: float


SAES = (
    Made("atlas-batchtopk-128", RESID_1, "batchtopk", 128, 3.99, 0.45),
    Made("atlas-batchtopk-256", RESID_1, "batchtopk", 256, 3.96, 0.66),
    Made("atlas-batchtopk-512", RESID_1, "batchtopk", 512, 4.02, 0.79),
    Made("atlas-jumprelu-1024", RESID_1, "jumprelu", 1024, 6.1, 0.91),
    Made("atlas-relu-1024", RESID_1, "relu", 1024, 8.8, 0.655),
    Made("atlas-relu-256", RESID_1, "relu", 256, 9.4, 0.64),
    Made("atlas-topk-512-k8", RESID_1, "topk", 512, 8.0, 0.93),
    Made("gpt2-small-res-jb/blocks.8.hook_resid_pre", RESID_8, "relu", 24576, 68.3, 0.7),
    Made("gpt2-small-resid-post-v5-32k-layer-8", RESID_8, "topk", 32768, 32.0, 0.6),
)
LEVELS = {"mse": (0.0, 8.0), "l0": (0.0, 0.0), "variance_explained": (0.3, 0.4), "novel_ratio": (0.1, 0.7)}
"""Value of the worst and the best, by metric; others run from 0.55 to 0.99."""


def sha(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def realistic() -> Board:
    """Nine SAEs at two sites and their reference rows, with ranks, ties, gaps, reasons and a failed order."""
    rng = np.random.default_rng(0)
    columns = (*CORE, *OTHERS)
    rows = [_row(made, columns, rng) for made in SAES]
    kinds: tuple[RowKind, ...] = ("control", "chance")
    rows += [_reference(site, kind, columns, rng) for site in (RESID_1, RESID_8) for kind in kinds]
    return tested(columns, rows)


def tested(columns: Sequence[Column], rows: Sequence[Row]) -> Board:
    """With differences of all pairs of a site, ranks, order counts and sources."""
    differences = {c.key: tuple(_difference(c, a, b) for a, b in _pairs(rows) if _has(c, a, b)) for c in columns}
    better = {c.key: c.better for c in columns}
    ranked = [
        replace(row, cells={k: _ranked(row, better[k], c, differences[k]) for k, c in row.cells.items()})
        for row in rows
    ]
    counted = tuple(
        replace(
            c,
            order_failed=sum(r.cells[c.key].order == "fails" for r in ranked if c.key in r.cells),
            order_tested=sum(r.cells[c.key].order in ("holds", "fails") for r in ranked if c.key in r.cells),
        )
        for c in columns
    )
    sources = {
        cell.record: _source(row, c, cell)
        for row in ranked
        for c in columns
        if (cell := row.cells.get(c.key)) is not None and cell.record
    }
    return Board(counted, tuple(ranked), differences, sources)


def _pairs(rows: Sequence[Row]) -> list[tuple[Row, Row]]:
    sites: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        if row.kind == "sae":
            sites.setdefault((row.model, row.hook), []).append(row)
    return [pair for of_site in sites.values() for pair in itertools.combinations(of_site, 2)]


def _has(column: Column, *rows: Row) -> bool:
    return all(column.key in row.cells for row in rows)


def _row(made: Made, columns: Sequence[Column], rng: np.random.Generator) -> Row:
    cells = {}
    for i, column in enumerate(columns):
        if column in OTHERS and rng.random() < 0.3:
            continue
        cells[column.key] = _cell(made, column, rng, sha(f"{made.name} {column.task}@{column.version}{column.setting}"))
        if column.task == "sparse_probing" and i % 2 and made.architecture == "relu":
            cells[column.key] = replace(cells[column.key], order="fails")
    main = [c.key for c in columns if c.main and c.current]
    return Row(
        sha(made.name)[:12], "sae", made.name, f"made:{made.name}", *made.site, made.architecture, 128, made.d_sae,
        sha(f"weights {made.name}"), cells, made.l0, _level("mse", made.good), sum(k in cells for k in main), len(main),
        "reproduced" if made.good > 0.9 else "self-reported",
    )  # fmt: skip


def _level(metric: str, good: float) -> float:
    best, worst = LEVELS.get(metric, (0.99, 0.55))
    return worst + (best - worst) * good


def _cell(made: Made, column: Column, rng: np.random.Generator, record: str) -> Cell:
    value = made.l0 if column.metric == "l0" else _level(column.metric, made.good) + float(rng.normal(0, 0.002))
    if column.metric in ("dead_fraction", "novel_ratio", "variance_explained"):
        return Cell(abs(value) / 4, None, None, made.d_sae, "latents", "census", record)
    if column.metric == "detection" and made.d_sae == 256:
        return Cell(None, None, None, 0, "latents", "none", record, "fewer than 10 latents have passages enough")
    half = 0.03 * abs(value)
    random = value * (5 if column.better == "lower" else 0.4)
    controls = {
        "random": (random, random * 0.95, random * 1.06),
        "permuted_rows": (None, None, None),
    }
    order: OrderSeen = "none" if column.expects is None else "untested" if made.d_sae == 128 else "holds"
    badge: Badge = "reproduced" if made.good > 0.9 or (column.metric == "mse" and made.good > 0.78) else "self-reported"
    return Cell(
        value,
        value - half,
        value + 1.2 * half,
        868,
        "documents",
        "bootstrap",
        record,
        None,
        controls,
        order,
        None,
        badge,
    )


def _reference(site: tuple[str, str], kind: RowKind, columns: Sequence[Column], rng: np.random.Generator) -> Row:
    """A control's mean over the SAEs of a site, or chance: nothing of it is ranked."""
    name = "random" if kind == "control" else "chance"
    made = Made(name, site, "", 0, 4.0, 0.05)
    known = [c for c in columns if (c.better != "neither" if kind == "control" else c.metric.startswith("balanced"))]
    cells = {c.key: replace(_cell(made, c, rng, ""), controls={}, order="none", badge="self-reported") for c in known}
    if kind == "chance":
        cells = {key: replace(cell, value=0.5, low=None, high=None, method="exact") for key, cell in cells.items()}
    id = sha(f"{name} {site}")[:12]
    l0 = 4.0 if kind == "control" else None
    return Row(id, kind, name, name, *site, "", 0, 0, "", cells, l0)


def _difference(column: Column, a: Row, b: Row) -> Difference:
    one, two = a.cells[column.key], b.cells[column.key]
    if one.value is None or two.value is None:
        return Difference(a.id, b.id, "untested", reason="no value on one side")
    if one.low is None or one.high is None:
        return Difference(a.id, b.id, "untested", reason="both are exact over their dictionary (census)")
    d, half = one.value - two.value, (one.high - one.low) / 2
    if abs(d) <= half:
        return Difference(a.id, b.id, "tie", d - half, d + half)
    if column.better == "neither":
        return Difference(a.id, b.id, "differs", d - half, d + half)
    return Difference(a.id, b.id, "a" if (d > 0) == (column.better == "higher") else "b", d - half, d + half)


def _ranked(row: Row, better: str, cell: Cell, found: Sequence[Difference]) -> Cell:
    mine = [d for d in found if row.id in (d.a, d.b)]
    if better == "neither" or not any(d.verdict in ("a", "b", "tie") for d in mine):
        return cell
    ahead = sum(d.verdict == ("b" if d.a == row.id else "a") for d in mine)
    return replace(cell, rank=1 + ahead)


def _source(row: Row, column: Column, cell: Cell) -> Source:
    n = int(cell.record[:4], 16)
    facts = {
        "task": {"name": column.task, "version": column.version, "parameters": {"ce_tokens": 16384}},
        "sae": {"ref": row.ref, "weights": row.weights, "loader": "atlas", "folded": ["scale of the activations"]},
        "model": {"ref": row.model, "files": {"model.safetensors": sha(row.model)}, "dtype": "float32"},
        "data": {"ref": "atlas", "split": "evaluation", "sampling": {"tokens": 131072, "context": 128, "seed": 0}},
        "judge": column.setting.get("judge"),
        "run": {
            "seed": 0,
            "partial": False,
            "profile": "default",
            "started": f"2026-11-21T18:{n % 60:02}:{n % 59:02}+00:00",
            "seconds": n / 1000,
        },
        "versions": {"saebench_meta": "0.1.0", "torch": "2.9.0", "python": "3.12.4", "commit": sha("commit")},
        "notes": ["Reconstruction, L0 and dead latents: 131072 tokens of 868 documents."],
        "record": f"{row.name}-{row.weights[:12]}/{column.task}@{column.version}/{cell.record[:12]}",
        "again": f"saebench run --from-record {cell.record[:12]}/record.json",
    }
    return Source(cell.record, column.task, cell.badge, facts)


# -- hostile


def hostile() -> Board:
    """The realistic board with every text that a stranger writes turned into markup, kept apart by a number."""
    board = realistic()
    rows = tuple(_spoilt(row, i) for i, row in enumerate(board.rows))
    keys = {c.key: f"{EVIL} key {i}" for i, c in enumerate(board.columns)}
    ids = {row.id: f"{EVIL} id {i}" for i, row in enumerate(board.rows)}
    columns = tuple(
        replace(
            c, key=keys[c.key], task=f"{EVIL} {c.task}", metric=f"{EVIL} {c.metric}", unit=EVIL, help=EVIL, why=EVIL,
            expects=EVIL, setting={EVIL: {EVIL: [EVIL, {EVIL: EVIL}]}}, setting_label=EVIL,
        )
        for c in board.columns
    )  # fmt: skip
    renamed = tuple(replace(r, id=ids[r.id], cells={keys[k]: c for k, c in r.cells.items()}) for r in rows)
    differences = {
        keys[key]: tuple(replace(d, a=ids[d.a], b=ids[d.b], reason=EVIL) for d in found)
        for key, found in board.differences.items()
    }
    sources = {EVIL: Source(EVIL, EVIL, "self-reported", {EVIL: EVIL, "nested": {EVIL: [EVIL, None, 1.5, True]}})}
    return Board(columns, renamed, differences, sources, (EVIL, f"a warning {EVIL}"))


def _spoilt(row: Row, i: int) -> Row:
    cells = {
        key: replace(
            cell, n_unit=EVIL, method=EVIL, reason=EVIL, record=EVIL,
            controls={f"{EVIL} {name}": found for name, found in cell.controls.items()},
        )
        for key, cell in row.cells.items()
    }  # fmt: skip
    return replace(
        row, name=f"{EVIL} {i}", ref=EVIL, model=f"{EVIL} {row.model}", hook=EVIL, architecture=EVIL, weights=EVIL,
        cells=cells,
    )  # fmt: skip


def texts_of(value: Any) -> set[str]:
    """Every text in a board."""
    if isinstance(value, str):
        return {value}
    if is_dataclass(value):
        return set().union(*(texts_of(getattr(value, f.name)) for f in fields(value)))
    if isinstance(value, Mapping):
        return set().union(*(texts_of(v) for pair in value.items() for v in pair))
    if isinstance(value, list | tuple):
        return set().union(*(texts_of(v) for v in value))
    return set()


# -- large


TESTED = 6
"""SAEs of a site that are tested against each other: a board tests few pairs where it has many rows."""


def large(n_rows: int, n_columns: int, *, per_site: int = 10, per_task: int = 15) -> Board:
    """As large as wished: full rows, half of the columns with intervals, two controls and tested pairs, one metric in
    three main, a record of the row for every `per_task` columns."""
    rng = np.random.default_rng(0)
    sampled = [i % 2 == 0 for i in range(n_columns)]
    columns = tuple(
        Column(
            f"task_{i // per_task}@1.metric_{i}", f"task_{i // per_task}", 1, f"metric_{i}", "fraction",
            "higher" if has else "neither", i % 3 == 0, f"What metric {i} stands for, in a sentence of usual length.",
            TRAINED if has else None, REBUILDS if has else "", order_failed=3, order_tested=n_rows,
        )
        for i, has in enumerate(sampled)
    )  # fmt: skip
    good = rng.random(n_rows)
    values = np.clip(good[:, None] * 0.8 + rng.normal(0, 0.02, (n_rows, n_columns)) + 0.1, 0, None)
    halves = rng.uniform(0.005, 0.02, (n_rows, n_columns))
    rows = [_large_row(i, values[i], halves[i], columns, sampled, per_site, per_task) for i in range(n_rows)]
    sites = [rows[i : i + per_site] for i in range(0, n_rows, per_site)]
    differences = {
        c.key: tuple(_difference(c, a, b) for of_site in sites for a, b in itertools.combinations(of_site[:TESTED], 2))
        for c, has in zip(columns, sampled, strict=True)
        if has and c.main
    }
    sources = {
        cell.record: _source(row, column, cell)
        for row in rows
        for column in columns[::per_task]
        if (cell := row.cells[column.key])
    }
    return Board(columns, tuple(rows), differences, sources)


def _large_row(
    i: int,
    values: np.ndarray,
    halves: np.ndarray,
    columns: Sequence[Column],
    sampled: Sequence[bool],
    per_site: int,
    per_task: int,
) -> Row:
    records = [sha(f"{i} {task}") for task in range(len(columns) // per_task + 1)]
    cells = {
        c.key: _large_cell(float(v), float(h), has, records[j // per_task])
        for j, (c, v, h, has) in enumerate(zip(columns, values, halves, sampled, strict=True))
    }
    site, width, l0, main = i // per_site, 1024 << (i % 7), 8 + i % 97, len(columns) // 3
    place = f"model-{site // 26}", f"blocks.{site % 26}.hook_resid_post"
    architecture = ("relu", "topk", "jumprelu", "batchtopk")[i % 4]
    name, ref = f"some-model-res-{width // 1024}k-l0-{l0}-{i}", f"hub:someone/saes-{i}/layer_{site % 26}"
    return Row(
        sha(f"row {i}")[:12], "sae", name, ref, *place, architecture, 2304, width, sha(f"weights {i}"), cells,
        float(l0), float(values[0]), main, main,
    )  # fmt: skip


def _large_cell(value: float, half: float, sampled: bool, record: str) -> Cell:
    if not sampled:
        return Cell(value, None, None, 4096, "latents", "census", record)
    controls = {
        name: (value * factor, value * factor - half, value * factor + half)
        for name, factor in (("random", 0.3), ("permuted_rows", 0.1))
    }
    record_of = (868, "documents", "bootstrap", record, None)
    return Cell(value, value - half, value + half, *record_of, controls, "holds", 1)
