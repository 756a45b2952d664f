"""Recipes from what a user types or writes in a file: one, or every combination of lists of settings. No torch."""

from __future__ import annotations

import itertools
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from saebench_meta.errors import BadFileError, SaebenchError, did_you_mean
from saebench_meta.training.recipe import Recipe, make_recipe

if TYPE_CHECKING:
    from saebench_meta.plugins import Registry

TYPED = {"arch": "architecture", "width": "d_sae", "batch-size": "batch_size"}
"""How a user names a setting -> its name in a recipe; other dashes become underscores."""
MULTIPLES = {"k": 10**3, "M": 10**6, "B": 10**9}


def count(text: str | int) -> int:
    """A number of tokens: `2000000`, `500k`, `2M`, `1.5B`."""
    text = str(text)
    number, multiple = (text[:-1], MULTIPLES[text[-1]]) if text[-1:] in MULTIPLES else (text, 1)
    try:
        value = float(number) * multiple
    except ValueError:
        value = 0.0
    if not (value >= 1 and value.is_integer()):
        raise SaebenchError(f"'{text}' is no number of tokens; write e.g. 500k, 2M or 1B")
    return int(value)


def recipe(registry: Registry, settings: Mapping[str, Any]) -> Recipe:
    """A recipe from settings by the names a user types.

    Raises:
        SaebenchError: architecture or width is missing, a name is unknown, or a value is out of range.
    """
    given = {TYPED.get(key, key.replace("-", "_")): value for key, value in settings.items()}
    for name, typed in (("architecture", "--arch"), ("d_sae", "--width"), ("tokens", "--tokens")):
        if given.get(name) is None:
            raise SaebenchError(f"{typed} is missing")
    architecture = str(given.pop("architecture"))
    given["tokens"] = count(given["tokens"])
    return make_recipe(registry.architectures[architecture], architecture, **given)


def combinations(settings: Mapping[str, Any]) -> Iterable[dict[str, Any]]:
    """Every combination of the settings that are lists, the last one varying fastest."""
    lists = [value if isinstance(value, list) else [value] for value in settings.values()]
    for values in itertools.product(*lists):
        yield dict(zip(settings, values, strict=True))


def read_sweep(registry: Registry, path: Path, common: Mapping[str, Any]) -> list[Recipe]:
    """The recipes of a sweep file.

        tokens = "2M"            # settings of all
        [[sweep]]                # one table or more; every combination of its lists
        arch = ["topk", "batchtopk"]
        width = [1024, 4096]
        k = 32
        seed = [0, 1, 2]

    Args:
        common: settings of the command line; those of the file win.

    Raises:
        BadFileError: the file is no such thing.
        SaebenchError: two recipes are the same, or one is wrong.
    """
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as e:
        raise BadFileError(f"{path}: not a TOML file that can be read ({e})") from e
    sweeps = tables.pop("sweep", None)
    if not isinstance(sweeps, list) or not sweeps or not all(isinstance(s, dict) for s in sweeps):
        hint = did_you_mean("sweep", list(tables)) if tables else ""
        raise BadFileError(f"{path}: no [[sweep]] table{hint}; write one with arch, width, k: each one value or a list")
    settings = [one for sweep in sweeps for one in combinations({**tables, **sweep})]
    if not settings:
        raise BadFileError(f"{path}: nothing to train, a list of every [[sweep]] is empty; write values in it")
    recipes = [recipe(registry, {**common, **one}) for one in settings]
    if len({r.digest() for r in recipes}) < len(recipes):
        raise SaebenchError(f"{path}: the sweep names {next(r.label for r in recipes if recipes.count(r) > 1)} twice")
    return recipes
