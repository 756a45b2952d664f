"""Writes the explorer: a page, its scripts, and the data in chunks that are read when they are first needed.

A chunk is a script `explorer.put("NAME", VALUE);`, since a page opened from disk may load scripts but no other files.
Names in it are ours and texts stand in lists only, so that no text of a stranger becomes the name of anything.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from saebench_meta.errors import SaebenchError
from saebench_meta.explorer import PAGE
from saebench_meta.store import write_atomic

if TYPE_CHECKING:
    from jaxtyping import Int
    from numpy import ndarray

    from saebench_meta.explorer.activity import Activity
    from saebench_meta.explorer.passages import Passage
    from saebench_meta.explorer.sources import Decomposition, Steering

DATA, INDEX = "data", "index"
SCRIPTS = ("explorer.js", "tables.js", "graph.js", "histogram.js", "views.js", "search.js")
"""In the order in which the page reads them; templates of these names lie in `templates/explorer`."""
MAX_PAIRS = 1_000_000
"""Pairs of latent and meta-latent in the folder; of denser decompositions the strongest of each latent are kept."""
DIGITS = 4


@dataclass(frozen=True)
class Shown:
    """What is shown of one of the chosen latents; token ids are already texts.

    Attributes:
        passages: with the text of each token.
        histogram: how many activations lie in each of equal parts of the range from 0 to the largest.
        logits: the tokens it boosts and those it suppresses, with their logits; None where there is no lens.
    """

    passages: Sequence[tuple[Passage, list[str]]]
    histogram: Sequence[int]
    logits: tuple[list[tuple[str, float]], list[tuple[str, float]]] | None


@dataclass(frozen=True)
class Contents:
    """Everything the explorer shows of one SAE.

    Attributes:
        title: of the page.
        facts: name -> value, shown at the start.
        d_sae: number of latents.
        notes: what a reader should know of what is missing or was left out.
        report: where the run's report is, from the page.
        vocabulary: text of every type of token in `activity`.
        shown: latent -> passages and logits.
    """

    title: str
    facts: Mapping[str, str]
    d_sae: int
    notes: Sequence[str] = ()
    report: str | None = None
    activity: Activity | None = None
    vocabulary: Mapping[int, str] = field(default_factory=dict)
    decomposition: Decomposition | None = None
    explanations: Mapping[int, str] = field(default_factory=dict)
    steering: Steering | None = None
    shown: Mapping[int, Shown] = field(default_factory=dict)


def write_folder(out: Path, contents: Contents) -> Path:
    """Write the explorer into a folder that is new, empty or an earlier explorer; the page's path.

    Raises:
        SaebenchError: the folder holds something else, is a link, or cannot be written.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined

    templates = PackageLoader("saebench_meta", "templates")
    pages = Environment(loader=templates, autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    try:
        _clear(out)
        for name, value in chunks(contents):
            file = out / DATA / f"{name}.js"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(f'explorer.put("{name}", {_json(value)});\n', encoding="utf-8")
        for script in SCRIPTS:
            source, _, _ = templates.get_source(pages, f"explorer/{script}")
            (out / script).write_text(source, encoding="utf-8")
        page = pages.get_template(f"explorer/{PAGE}").render(title=contents.title, scripts=SCRIPTS)
        write_atomic(out / PAGE, page.encode())
    except OSError as e:
        raise SaebenchError(f"the explorer cannot be written to '{out}': {e.strerror or e}. Pass another -o.") from e
    return out / PAGE


def _clear(out: Path) -> None:
    """Make the folder, or take an earlier explorer's data out of it."""
    if out.is_symlink() or (out / DATA).is_symlink():
        raise SaebenchError(f"'{out}' is a link to another folder, or holds one: remove it, or pass another -o")
    if out.is_dir() and any(out.iterdir()) and not (out / DATA / f"{INDEX}.js").is_file():
        raise SaebenchError(f"'{out}' holds files that are no explorer: pass an empty folder with -o")
    if (out / DATA).is_dir():
        shutil.rmtree(out / DATA)
    out.mkdir(parents=True, exist_ok=True)


def folder_bytes(out: Path) -> int:
    """Size of all files of an explorer."""
    return sum(file.stat().st_size for file in out.rglob("*") if file.is_file())


def _json(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"), allow_nan=False)


def short(value: float) -> float:
    """A number with the digits a reader can use."""
    return float(f"{value:.{DIGITS}g}")


# -- chunks


def chunks(contents: Contents) -> list[tuple[str, Any]]:
    """Name and value of every chunk; `index` comes last, so that a folder that has it is whole."""
    made: list[tuple[str, Any]] = [(f"latents/{i}", _shown(shown)) for i, shown in contents.shown.items()]
    if contents.explanations:
        latents, texts = zip(*sorted(contents.explanations.items()), strict=True)
        made.append(("explanations", {"latents": latents, "texts": texts}))
    notes = list(contents.notes)
    if contents.decomposition is not None:
        decomposition, dropped = strongest(contents.decomposition, contents.d_sae)
        made.append(("decomposition", _pairs(decomposition, contents.d_sae)))
        notes += [dropped] if dropped else []
    if contents.steering is not None:
        made += [(f"steering/{i}", _logprobs(rows)) for i, rows in enumerate(contents.steering.logprobs.values())]
    return [*made, (INDEX, _index(contents, notes))]


def _index(contents: Contents, notes: Sequence[str]) -> dict[str, Any]:
    """What the first view and the search need."""
    steering = contents.steering
    return {
        "title": contents.title,
        "facts": list(contents.facts.items()),
        "notes": list(notes),
        "report": contents.report,
        "d_sae": contents.d_sae,
        "shown": sorted(contents.shown),
        "activity": None if contents.activity is None else _activity(contents.activity, contents.vocabulary),
        "metas": None if contents.decomposition is None else _metas(contents.decomposition),
        "explained": bool(contents.explanations),
        "steering": None
        if steering is None
        else {"heads": steering.heads, "pairs": steering.pairs, "cities": list(steering.logprobs)},
    }


def _activity(found: Activity, vocabulary: Mapping[int, str]) -> dict[str, Any]:
    """Token ids become places in the list of the texts that occur."""
    place = {token: at for at, token in enumerate(found.types)} | {-1: -1}
    return {
        "tokens_seen": found.n_tokens,
        "counts": found.counts.tolist(),
        "maxima": [short(v) for v in found.maxima.tolist()],
        "top": found.tokens.shape[1],
        "tokens": [place[t] for t in found.tokens.flatten().tolist()],
        "vocabulary": [vocabulary[i] for i in found.types],
    }


def strongest(found: Decomposition, d_sae: int) -> tuple[Decomposition, str | None]:
    """The decomposition with at most `MAX_PAIRS` pairs, and what was left out, in words."""
    from dataclasses import replace

    if len(found.latents) <= MAX_PAIRS:
        return found, None
    few = max(1, MAX_PAIRS // d_sae)
    keep = _places(found.latents) < few
    kept = {name: getattr(found, name)[keep] for name in ("latents", "metas", "activations")}
    return replace(found, **kept), f"only the {few} strongest meta-latents of each latent are here"


def _places(latents: Int[ndarray, " pairs"]) -> Int[ndarray, " pairs"]:
    """Place of each pair among its latent's, from 0."""
    import numpy as np

    _, first, sizes = np.unique(latents, return_index=True, return_counts=True)
    places: Int[ndarray, " pairs"] = np.arange(len(latents)) - np.repeat(first, sizes)
    return places


def _pairs(found: Decomposition, d_sae: int) -> dict[str, Any]:
    import numpy as np

    return {
        "counts": np.bincount(found.latents, minlength=d_sae).tolist(),
        "metas": found.metas.tolist(),
        "activations": [short(v) for v in found.activations.tolist()],
    }


def _metas(found: Decomposition) -> dict[str, list[int]]:
    """Of each meta-latent the number of its latents, and the one it is most active on (-1: none)."""
    import numpy as np

    top = np.full(found.n_metas, -1)
    order = found.activations.argsort(kind="stable")
    top[found.metas[order]] = found.latents[order]
    return {"latents": np.bincount(found.metas, minlength=found.n_metas).tolist(), "top": top.tolist()}


def _shown(shown: Shown) -> dict[str, Any]:
    passages = [
        {"document": p.document, "peak": p.peak, "texts": texts, "activations": [short(v) for v in p.activations]}
        for p, texts in shown.passages
    ]
    made = {"passages": passages, "histogram": list(shown.histogram)}
    if shown.logits is None:
        return {**made, "boosted": None, "suppressed": None}
    boosted, suppressed = ([[text, short(v)] for text, v in ranked] for ranked in shown.logits)
    return {**made, "boosted": boosted, "suppressed": suppressed}


def _logprobs(rows: Sequence[tuple[str, str, str, str, float]]) -> dict[str, Any]:
    """Rows of one city; texts that recur stand in a list once, rows hold their places."""
    *texts, logprobs = zip(*rows, strict=True)
    names = [list(dict.fromkeys(column)) for column in texts]
    places = [{text: i for i, text in enumerate(column)} for column in names]
    coded = [[p[t] for t in column] for p, column in zip(places, texts, strict=True)]
    heads = ("targets", "edits", "attributes", "candidates")
    return {
        **dict(zip(heads, names, strict=True)),
        "rows": [list(row) for row in zip(*coded, [short(v) for v in logprobs], strict=True)],
    }
