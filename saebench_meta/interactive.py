"""Interactive figures of a report: a page a record that opens from disk without a network, and Vega once beside them.

Records come from strangers. A page loads nothing but the two scripts next to it (its content security policy), nothing
in a figure's specification is evaluated as code (Vega's expressions are interpreted), and a specification can neither
have a file or an address loaded nor change how it is embedded.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from saebench_meta.cache import default_root
from saebench_meta.errors import SaebenchError
from saebench_meta.store import write_atomic

if TYPE_CHECKING:
    from jinja2 import Environment

FOLDER = "interactive"
VEGA, DRAW = "vega.js", "draw.js"
MAX_SPEC = 16 << 20
"""Bytes of a specification; larger ones are shown as SVG only."""


@dataclass(frozen=True)
class Page:
    """The figures of one record.

    Attributes:
        name: of the file.
        title: task and subject.
        back: where the report tells of the record.
        figures: title, caption and specification of each; None for one that cannot be read.
    """

    name: str
    title: str
    back: str
    figures: Sequence[tuple[str, str, Mapping[str, Any] | None]]


def read_spec(file: Path) -> dict[str, Any] | None:
    """A Vega-Lite specification without its wishes for the embedding, or None if it is not one."""
    if not file.is_file() or file.stat().st_size > MAX_SPEC:
        return None
    try:
        spec = json.loads(file.read_bytes(), parse_constant=_refuse)
    except (ValueError, RecursionError):
        return None
    if not isinstance(spec, dict):
        return None
    spec.pop("usermeta", None)
    return _zoomable(spec)


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no JSON")


def _zoomable(spec: dict[str, Any]) -> dict[str, Any]:
    """With wheel and drag to zoom and move, where both axes are numbers and the figure says nothing else."""
    layers = spec.get("layer")
    unit = layers[0] if isinstance(layers, list) and layers else spec
    axes = unit.get("encoding") if isinstance(unit, dict) and "params" not in {*unit, *spec} else None
    if not isinstance(axes, dict) or not all(_is_number(axes.get(name)) for name in ("x", "y")):
        return spec
    unit = {**unit, "params": [{"name": "zoom", "select": "interval", "bind": "scales"}]}
    return {**spec, "layer": [unit, *layers[1:]]} if isinstance(layers, list) and layers else unit


def _is_number(axis: object) -> bool:
    return isinstance(axis, dict) and axis.get("type") == "quantitative" and not axis.get("bin")


def own_folder(folder: Path) -> Path:
    """Where the pages that a run folder's report links to are.

    Raises:
        SaebenchError: it is a link to another folder.
    """
    at = folder / FOLDER
    if at.is_symlink():
        raise SaebenchError(f"'{at}' is a link to another folder: remove it, it is written anew")
    return at


def _vega() -> bytes:
    """Vega in one script. Bundling it takes seconds and gives the same for a release, so the user's cache keeps it."""
    import vl_convert

    kept = default_root() / f"vega-{metadata.version('vl-convert-python')}.js"
    with contextlib.suppress(OSError):
        return kept.read_bytes()
    made = vl_convert.javascript_bundle().encode()  # type: ignore[call-arg]  # its stub forgets the defaults
    with contextlib.suppress(OSError):
        write_atomic(kept, made)
    return made


def write_pages(folder: Path, pages: Sequence[Page], environment: Environment) -> None:
    """Write the pages into a run folder, with the scripts they need; nothing where there is no figure.

    Raises:
        SaebenchError: the folder for them is a link to another one.
    """
    if not pages:
        return
    at = own_folder(folder)
    # Written each time: what lies there may come from somebody else.
    write_atomic(at / VEGA, _vega())
    write_atomic(at / DRAW, environment.get_template(DRAW).render().encode())
    template = environment.get_template("interactive.html")
    for page in pages:
        write_atomic(at / page.name, template.render(page=page, scripts=(VEGA, DRAW)).encode())
