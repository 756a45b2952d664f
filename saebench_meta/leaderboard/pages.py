"""Writes the leaderboard's site: one page that opens from disk without a server, its scripts, and its data in chunks.

What stands on the board comes from strangers. The page loads nothing but the scripts beside it (its content security
policy), and whatever a chunk holds becomes text nodes only.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from saebench_meta.errors import SaebenchError
from saebench_meta.leaderboard.board import Board
from saebench_meta.leaderboard.page_data import chunks
from saebench_meta.store import write_atomic

PAGE, DATA, INDEX = "index.html", "data", "board"
TEMPLATES = Path(__file__).parents[1] / "templates" / "leaderboard"
VENDOR = ("vendor/tabulator.min.js", "vendor/tabulator.min.css", "vendor/LICENSE")
STYLES = ("vendor/tabulator.min.css", "leaderboard.css")
SCRIPTS = (
    "vendor/tabulator.min.js",
    "numbers.js",
    "board.js",
    "state.js",
    "cells.js",
    "table.js",
    "filters.js",
    "detail.js",
    "scales.js",
    "chart.js",
    "plot.js",
    "compare.js",
    "download.js",
    "site.js",
)
"""In the order in which the page reads them; the data come after `BEFORE_DATA`."""
BEFORE_DATA = "board.js"


def write(board: Board, folder: Path, title: str = "saebench-meta leaderboard") -> None:
    """Write the site into a folder that is new, empty or an earlier site. The same board gives the same bytes.

    Raises:
        SaebenchError: the folder holds something else, is a link, or cannot be written.
        ValueError: a number on the board is not finite.
    """
    try:
        _make_room(folder)
        first: Sequence[int] = ()
        for name, value in chunks(board, title):
            _write_text(folder / DATA / f"{name}.js", f'board.put("{name}", {_json(value)});\n')
            if name == INDEX:
                first = sorted({column["within"]["cells"] for column in value["columns"] if column["shown"]})
        for name in dict.fromkeys((*VENDOR, *STYLES, *SCRIPTS)):
            _write_text(folder / name, (TEMPLATES / name).read_text(encoding="utf-8"))
        write_atomic(folder / PAGE, page(title, first).encode())
    except OSError as e:
        raise SaebenchError(f"the leaderboard's pages cannot be written to '{folder}': {e.strerror or e}") from e


def page(title: str, first: Sequence[int]) -> str:
    """The page; `first` are the chunks of cells its first view needs."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    pages = Environment(
        loader=PackageLoader("saebench_meta", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    ours = SCRIPTS.index(BEFORE_DATA) + 1
    data = (f"{DATA}/{INDEX}.js", *(f"{DATA}/cells/{k}.js" for k in first))
    scripts = (*SCRIPTS[:ours], *data, *SCRIPTS[ours:])
    return pages.get_template(f"leaderboard/{PAGE}").render(title=title, styles=STYLES, scripts=scripts)


def _make_room(folder: Path) -> None:
    """An earlier site's data are taken away, so that none of its columns stay."""
    data = folder / DATA
    if folder.is_symlink() or data.is_symlink():
        raise SaebenchError(f"'{folder}' is or holds a link to another folder: remove it, the site is written anew")
    if data.joinpath(f"{INDEX}.js").is_file():
        shutil.rmtree(data)
    elif folder.is_dir() and next(folder.iterdir(), None) is not None:
        raise SaebenchError(f"'{folder}' holds files that are no leaderboard site: name an empty folder")


def _write_text(file: Path, text: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text, encoding="utf-8", newline="\n")


def _json(value: Any) -> str:
    """JSON that is a script too, and no markup wherever it is put."""
    return json.dumps(value, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
