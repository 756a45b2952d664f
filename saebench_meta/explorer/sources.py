"""What the records of a run folder hold of one SAE: its meta-latents, explanations and the steering of cities."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from saebench_meta.errors import BadFileError, SaebenchError
from saebench_meta.record import Record, SubjectSAE
from saebench_meta.store import find_records

if TYPE_CHECKING:
    from jaxtyping import Float, Int
    from numpy import ndarray

    from saebench_meta.resolve import ResolvedSAE

META_SAE, CITY_STEERING = "meta_sae", "city_steering"
MAX_METAS = 1_000_000
"""Meta-latents there can be: a larger number in a table is a mistake, or somebody's wish for much memory."""
MAX_EXPLANATION = 1000
"""Characters of an explanation that are shown."""


@dataclass(frozen=True)
class Source:
    """A finished record and its folder."""

    folder: Path
    record: Record

    def table(self, name: str) -> Path | None:
        """One of its tables; None if it is not there, or not inside the record's folder."""
        file = (self.folder / "tables" / f"{name}.csv").resolve()
        return file if file.is_file() and file.is_relative_to(self.folder.resolve()) else None


@dataclass(frozen=True)
class Sources:
    """The finished records of one SAE, the newest first."""

    sae: SubjectSAE
    found: tuple[Source, ...]

    def table(self, name: str, task: str | None = None) -> Path | None:
        """A table of the newest record on this SAE alone that has it."""
        alone = (s for s in self.found if s.record.subject.kind == "sae" and task in (None, s.record.task.name))
        return next((file for s in alone if (file := s.table(name)) is not None), None)

    @property
    def site(self) -> Source | None:
        """The newest record that says which model and which documents were used."""
        return next((s for s in self.found if s.record.model is not None and s.record.data is not None), None)


def find_sources(folder: Path, asked: ResolvedSAE | None = None) -> Sources:
    """The records of the SAE asked for; else of the only one there, or the only one with a meta-SAE.

    Raises:
        SaebenchError: no finished record, none of the SAE asked for, or several SAEs and none asked for.
    """
    by_sae: dict[tuple[object, ...], tuple[SubjectSAE, list[Source]]] = {}
    for at, record in find_records(folder):
        if record.status == "ok":
            for sae in record.subject.saes:
                if sae.trained is None:
                    by_sae.setdefault(_key(sae), (sae, []))[1].append(Source(at, record))
    kept = [Sources(sae, tuple(_newest_first(found))) for sae, found in by_sae.values()]
    if not kept:
        raise SaebenchError(f"'{folder}' holds no finished record. Give the folder a run wrote to (its -o).")
    if asked is not None:
        kept = [s for s in kept if _is(s.sae, asked)]
        if not kept:
            raise SaebenchError(f"no finished record in '{folder}' is of '{asked.ref}': run a task on it first")
        return kept[0]
    decomposed = [s for s in kept if s.table("decomposition", META_SAE) is not None]
    choice = kept if len(kept) == 1 else decomposed
    if len(choice) != 1:
        refs = ", ".join(sorted(s.sae.ref for s in decomposed or kept))
        raise SaebenchError(f"'{folder}' holds results of several SAEs ({refs}): name one with --sae")
    return choice[0]


def _key(sae: SubjectSAE) -> tuple[object, ...]:
    return sae.info.name, sae.info.d_sae, sae.info.site.hook, tuple(sorted(sae.files.items()))


def check_same(sae: SubjectSAE, opened: ResolvedSAE) -> None:
    """Refuse an SAE that is not the one of the records.

    Raises:
        SaebenchError: says how to go on.
    """
    if not _is(sae, opened):
        raise SaebenchError(
            f"'{opened.ref}' is not the SAE of the records: it has changed since, or another has its name. "
            "Give the right one with --sae, or run the tasks again."
        )


def _is(sae: SubjectSAE, asked: ResolvedSAE) -> bool:
    if sae.files or asked.files:
        return sae.files == dict(asked.files)
    return (sae.info.name, sae.info.d_sae) == (asked.info.name, asked.info.d_sae)


def _newest_first(found: list[Source]) -> list[Source]:
    return sorted(found, key=lambda s: s.record.run.started, reverse=True)


# -- tables


@dataclass(frozen=True, eq=False)
class Decomposition:
    """Which meta-latents each latent's decoder row is made of.

    Attributes:
        latents: (pairs,) ascending.
        metas: (pairs,) meta-latent of each pair, the strongest of a latent first.
        activations: (pairs,) float32.
        n_metas: number of meta-latents, those that are never active included.
    """

    latents: Int[ndarray, " pairs"]
    metas: Int[ndarray, " pairs"]
    activations: Float[ndarray, " pairs"]
    n_metas: int


def read_decomposition(sources: Sources) -> Decomposition | None:
    """What the newest `meta_sae` record says; None where there is none.

    Raises:
        BadFileError: the table is not one of this SAE's latents.
    """
    import numpy as np

    file = sources.table("decomposition", META_SAE)
    if file is None:
        return None
    d_sae = sources.sae.info.d_sae
    rows = [
        (_number(latent, where, d_sae), _number(meta, where, MAX_METAS), _real(activation, where))
        for where, (latent, meta, activation) in _rows(file, ("latent", "meta_latent", "activation"))
    ]
    known = (_number(meta, where, MAX_METAS) for where, (meta,) in _optional(sources.table("meta_latents", META_SAE)))
    latents, metas = (np.array([row[i] for row in rows], np.int64) for i in (0, 1))
    activations = np.array([row[2] for row in rows], np.float32)
    n_metas = max(int(metas.max(initial=-1)), max(known, default=-1)) + 1
    order = np.lexsort((-activations, latents))
    return Decomposition(latents[order], metas[order], activations[order], n_metas)


def _optional(file: Path | None) -> Iterator[tuple[str, list[str]]]:
    return iter(()) if file is None else _rows(file, ("meta_latent",))


def read_explanations(sources: Sources) -> dict[int, str]:
    """Explanations of latents that a task has left; empty where there is none."""
    file = sources.table("explanations")
    if file is None:
        return {}
    rows = _rows(file, ("latent", "explanation"))
    d_sae = sources.sae.info.d_sae
    return {_number(latent, where, d_sae): text[:MAX_EXPLANATION] for where, (latent, text) in rows}


@dataclass(frozen=True)
class Steering:
    """What a `city_steering` record says.

    Attributes:
        heads, pairs: the table of ordered pairs of cities, as it stands.
        logprobs: city -> (target, edit, attribute, candidate, log-probability) of every row of the other table.
    """

    heads: list[str]
    pairs: list[list[str]]
    logprobs: dict[str, list[tuple[str, str, str, str, float]]]


def read_steering(sources: Sources) -> Steering | None:
    """What the newest `city_steering` record says; None where there is none."""
    file, pairs = (sources.table(name, CITY_STEERING) for name in ("logprobs", "pairs"))
    if file is None:
        return None
    logprobs: dict[str, list[tuple[str, str, str, str, float]]] = {}
    columns = ("city", "target", "edit", "attribute", "candidate", "logprob")
    for where, (city, target, edit, attribute, candidate, logprob) in _rows(file, columns):
        logprobs.setdefault(city, []).append((target, edit, attribute, candidate, _real(logprob, where)))
    heads, rows = ([], []) if pairs is None else _whole(pairs)
    return Steering(heads, rows, logprobs)


def _whole(file: Path) -> tuple[list[str], list[list[str]]]:
    with file.open(encoding="utf-8", errors="replace", newline="") as f:
        lines = csv.reader(f)
        return next(lines, []), list(lines)


def _rows(file: Path, columns: Sequence[str]) -> Iterator[tuple[str, list[str]]]:
    """Where a row stands, and its cells under these columns."""
    with file.open(encoding="utf-8", errors="replace", newline="") as f:
        lines = csv.reader(f)
        heads = next(lines, [])
        if missing := [c for c in columns if c not in heads]:
            raise BadFileError(f"{file}: it has no column '{missing[0]}'. Run the task again with --force.")
        places = [heads.index(c) for c in columns]
        for cells in lines:
            where = f"{file}, line {lines.line_num}"
            if len(cells) != len(heads):
                raise BadFileError(f"{where}: it has {len(cells)} cells for {len(heads)} columns")
            yield where, [cells[i] for i in places]


def _number(text: str, where: str, below: int) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 11 and int(text) < below):
        raise BadFileError(f"{where}: '{text[:40]}' is no number from 0 to {below - 1}")
    return int(text)


def _real(text: str, where: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise BadFileError(f"{where}: '{text[:40]}' is no finite number")
    return value
