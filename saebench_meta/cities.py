"""Cities and their facts, and the prompts that ask a language model for them.

A set of cities comes from a plugin (`saebench_cities`) or from a file of the user's. A set may say which models it is
for; any other model gets a set that names none. No torch.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from saebench_meta.errors import BadFileError, SaebenchError, did_you_mean

if TYPE_CHECKING:
    from saebench_meta.hookspecs import DataIdentity
    from saebench_meta.plugins import Registry

SLOT = "{city}"
SPLITS = ("selection", "heldout")
"""Edits are chosen on the prompts of the first and scored on those of the second."""

Frames = Mapping[str, tuple[str, ...]]


@dataclass(frozen=True)
class Cities:
    """Facts of cities, and frames to ask for them.

    Attributes:
        facts: city -> attribute -> value.
        selection, heldout: attribute -> frames. A frame holds `{city}` once, after a space or at its beginning, and
            ends right before the value, without a space. No frame is in both.

    Raises:
        ValueError: a city lacks an attribute that is asked for, or a frame is not of that form.
    """

    facts: Mapping[str, Mapping[str, str]]
    selection: Frames
    heldout: Frames

    def __post_init__(self) -> None:
        if set(self.selection) != set(self.heldout) or not self.selection:
            raise ValueError("selection and held-out frames must be for the same attributes, at least one")
        for attribute in self.attributes:
            if without := [city for city, facts in self.facts.items() if not facts.get(attribute)]:
                raise ValueError(f"city '{without[0]}' has no '{attribute}'")
            self._check_frames(attribute)

    def _check_frames(self, attribute: str) -> None:
        for split in SPLITS:
            frames = self.frames(split)[attribute]
            if not frames:
                raise ValueError(f"attribute '{attribute}' has no {split} frame")
            for frame in frames:
                before, *rest = frame.split(SLOT)
                if len(rest) != 1 or frame != frame.strip() or (before and not before.endswith(" ")):
                    raise ValueError(f"frame {frame!r}: it must hold {SLOT} once, after a space, and end without one")
        if both := set(self.selection[attribute]) & set(self.heldout[attribute]):
            raise ValueError(f"frame {sorted(both)[0]!r} of '{attribute}' is in both splits")

    @property
    def attributes(self) -> tuple[str, ...]:
        """In the order of the selection frames."""
        return tuple(self.selection)

    def frames(self, split: str) -> Frames:
        """Of `selection` or `heldout`."""
        return {"selection": self.selection, "heldout": self.heldout}[split]


@dataclass(frozen=True)
class CityLoader:
    """How a set of cities is had.

    Attributes:
        load: gives the set, always the same.
        peek: gives its identity; its `sha256` or `revision` is part of a record's id.
        models: references of the models (`SAEInfo.site.model`) that it is for; empty for any model.
        summary: one line for `saebench plugins`.
    """

    load: Callable[[], Cities]
    peek: Callable[[], DataIdentity]
    models: tuple[str, ...] = ()
    summary: str = ""


@dataclass(frozen=True, eq=False)
class ResolvedCities:
    """A set of cities chosen for a model, by the name of a plugin's set or of a file, and its loader."""

    name: str
    loader: CityLoader

    def key(self) -> dict[str, Any]:
        """What of it goes into a record's id."""
        identity = self.loader.peek()
        if identity.sha256:
            return {"sha256": identity.sha256}
        return {"ref": identity.ref, "revision": identity.revision}


def resolve_cities(registry: Registry, ref: str, model: str) -> ResolvedCities | None:
    """The set of cities that the user names, or the first that is for a model, or for any; None if there is none.

    Args:
        ref: name of a plugin's set, path of a file (`read_cities`), or nothing.

    Raises:
        SaebenchError: no set and no file is called so, or the file is not as it must be.
    """
    if ref in registry.cities:
        return ResolvedCities(ref, registry.cities[ref])
    if ref:
        return _of_file(registry, ref)
    sets = registry.cities.items()
    own = next((name for name, loader in sets if model in loader.models), None)
    chosen = own or next((name for name, loader in sets if not loader.models), None)
    return None if chosen is None else ResolvedCities(chosen, registry.cities[chosen])


def _of_file(registry: Registry, ref: str) -> ResolvedCities:
    from saebench_meta.hookspecs import DataIdentity
    from saebench_meta.resolve import file_sha256

    path = Path(ref)
    if not path.is_file():
        raise SaebenchError(
            f"cities '{ref}': neither a file nor a set of a plugin{did_you_mean(ref, list(registry.cities))}"
        )
    read_cities(path)
    identity = DataIdentity(ref=path.name, sha256=file_sha256(path))
    return ResolvedCities(path.name, CityLoader(lambda: read_cities(path), lambda: identity))


def read_cities(path: Path) -> Cities:
    """A set of cities from a JSON file: `{"cities": {CITY: {ATTRIBUTE: VALUE}}, "selection": {ATTRIBUTE: [FRAME]},
    "heldout": {ATTRIBUTE: [FRAME]}}`.

    Raises:
        BadFileError: it cannot be read, or is not of that form.
    """
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as e:
        raise BadFileError(f"{path}: not a JSON file that can be read ({e})") from e
    try:
        facts = {_text(city): _texts(values) for city, values in raw["cities"].items()}
        selection, heldout = (
            {_text(name): tuple(map(_text, frames)) for name, frames in raw[split].items()} for split in SPLITS
        )
        return Cities(facts, selection, heldout)
    except KeyError as e:
        raise BadFileError(f"{path}: no {e}; give 'cities', 'selection' and 'heldout'") from e
    except (AttributeError, TypeError, ValueError) as e:
        raise BadFileError(f"{path}: {e}") from e


def _texts(values: Mapping[str, Any]) -> dict[str, str]:
    return {_text(name): _text(value) for name, value in values.items()}


def _text(value: Any) -> str:
    """Texts end up in tables and pages: no control characters."""
    if not isinstance(value, str) or not value.isprintable():
        raise ValueError(f"{value!r} is not a text of printable characters")
    return value
