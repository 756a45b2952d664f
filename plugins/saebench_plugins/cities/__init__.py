"""Well-known cities for ordinary language models: country, main language, continent and currency, as of 2025.

Names and values of several words are in the table too; a tokenizer decides which are single tokens.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

from saebench_meta.cities import Cities, CityLoader, read_cities
from saebench_meta.hookspecs import DataIdentity, hookimpl

saebench_api = 1

NAME = "well-known"
FILE = Path(__file__).parent / "cities.json"


@hookimpl
def saebench_cities() -> Mapping[str, CityLoader]:
    return {NAME: CityLoader(load, peek, summary="well-known cities, for any English language model")}


def load() -> Cities:
    """The shipped table."""
    return read_cities(FILE)


def peek() -> DataIdentity:
    """Its file by its hash."""
    return DataIdentity(ref=NAME, sha256=hashlib.sha256(FILE.read_bytes()).hexdigest())
