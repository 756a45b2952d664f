"""Sets of cities: the built-in ones, a user's file, which is chosen for a model, and what goes into a record's id."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import saebench_meta
from saebench_meta.cities import Cities, CityLoader, read_cities, resolve_cities
from saebench_meta.errors import BadFileError, SaebenchError
from saebench_meta.hookspecs import DataIdentity, hookimpl
from saebench_meta.plan import make_plan
from saebench_meta.plugins import Registry, registry
from saebench_meta.settings import Settings

FILE: dict[str, Any] = {
    "cities": {"Upton": {"river": "Ash"}, "Downton": {"river": "Birch"}},
    "selection": {"river": ["The river of {city} is the"]},
    "heldout": {"river": ["A boat to {city} goes up the"]},
}


def written(folder: Path, **changes: Any) -> Path:
    path = folder / "towns.json"
    path.write_text(json.dumps({**FILE, **changes}))
    return path


def test_a_file_is_read_as_it_stands(tmp_path: Path) -> None:
    found = read_cities(written(tmp_path))
    assert found == Cities(
        FILE["cities"], {"river": ("The river of {city} is the",)}, {"river": ("A boat to {city} goes up the",)}
    )
    assert found.attributes == ("river",)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"cities": {"Upton": {"hill": "Oak"}}}, "city 'Upton' has no 'river'"),
        ({"heldout": {"hill": ["{city} has"]}}, "must be for the same attributes"),
        ({"heldout": {"river": []}}, "has no heldout frame"),
        ({"heldout": FILE["selection"]}, "is in both splits"),
        ({"heldout": {"river": ["A boat goes up the"]}}, r"must hold \{city\} once"),
        ({"heldout": {"river": ["({city}) is on the"]}}, r"must hold \{city\} once, after a space"),
        ({"heldout": {"river": ["A boat to {city} goes up the "]}}, "end without one"),
        ({"cities": {"Up\u202eton": {"river": "Ash"}}}, "printable"),
        ({"cities": {"Upton": {"river": 3}}}, "3 is not a text"),
        ({"cities": ["Upton"]}, "no attribute|has no"),
    ],
)
def test_a_file_that_is_not_right_says_why(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    path = written(tmp_path, **changes)
    with pytest.raises(BadFileError, match=message) as caught:
        read_cities(path)
    assert str(path) in str(caught.value)


def test_a_file_without_a_part_or_that_is_no_json_says_so(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_text(json.dumps({"cities": {}, "selection": {}}))
    with pytest.raises(BadFileError, match="no 'heldout'; give 'cities', 'selection' and 'heldout'"):
        read_cities(path)
    for text in ("{", "[" * 100_000):
        path.write_text(text)
        with pytest.raises(BadFileError, match="not a JSON file"):
            read_cities(path)


def test_a_set_for_the_model_comes_before_one_for_any(tmp_path: Path) -> None:
    def loader(*models: str) -> CityLoader:
        return CityLoader(lambda: read_cities(written(tmp_path)), lambda: DataIdentity(ref="x", sha256="0"), models)

    @hookimpl
    def saebench_cities() -> dict[str, CityLoader]:
        return {"any": loader(), "own": loader("gpt2")}

    plugin = ModuleType("towns")
    plugin.__dict__.update(saebench_api=1, saebench_cities=saebench_cities)
    found = Registry()
    assert resolve_cities(found, "", "gpt2") is None
    found.register(plugin)
    chosen = [resolve_cities(found, *given) for given in (("", "gpt2"), ("", "pythia"), ("own", "pythia"))]
    assert [c.name for c in chosen if c] == ["own", "any", "own"]


def test_what_is_neither_a_set_nor_a_file_is_refused() -> None:
    with pytest.raises(SaebenchError, match="neither a file nor a set of a plugin; did you mean 'atlas'"):
        resolve_cities(registry(), "atlass", "gpt2")


def test_a_files_content_is_part_of_a_records_id(tmp_path: Path) -> None:
    def place() -> str:
        settings = Settings(
            saes=("atlas:batchtopk-256",),
            tasks=("city_steering",),
            parameters={"city_steering": {"cities": str(tmp_path / "towns.json")}},
        )
        (unit,) = make_plan(registry(), settings).units
        return unit.place.id

    written(tmp_path)
    first = place()
    assert first == place()
    written(tmp_path, heldout={"river": ["A boat from {city} comes down the"]})
    assert place() != first


def test_the_shipped_cities_are_whole() -> None:
    found = registry().cities["well-known"].load()
    assert len(found.facts) >= 50 and found.attributes == ("country", "language", "continent", "currency")
    continents = {facts["continent"] for facts in found.facts.values()}
    assert continents <= {"Europe", "Asia", "Africa", "Oceania", "North America", "South America"}
    for attribute in ("language", "continent", "currency"):
        by_country: dict[str, set[str]] = {}
        for facts in found.facts.values():
            by_country.setdefault(facts["country"], set()).add(facts[attribute])
        # one value a country, but for countries of two continents or languages
        assert {c for c, v in by_country.items() if len(v) > 1} <= {"Turkey", "Canada", "Switzerland", "Russia"}, (
            attribute
        )


def test_the_built_in_model_knows_all_of_its_cities_and_a_run_says_so(tmp_path: Path) -> None:
    from saebench_plugins.atlas import world

    (tmp_path / "texts.json").write_text(json.dumps(world.documents(12, 3, "evaluation")))
    small = {"pairs": 2, "edits": 4, "steps": 5, "side_tokens": 64}
    result = saebench_meta.run(
        "atlas:batchtopk-128",
        tasks="city_steering",
        out=tmp_path / "out",
        corpus=str(tmp_path / "texts.json"),
        parameters={"city_steering": small},
        cache=False,
    )
    assert result.failed == {}
    (record,) = result.records
    values = {name: metric.value for name, metric in record.metrics.items()}
    assert values["eligible"] == values["heldout_accuracy"] == 1.0
    assert any(note.startswith("cities: atlas (sha256 ") for note in record.notes)
    tables = {path.name for path in (tmp_path / "out").rglob("*.csv")}
    assert tables >= {f"{name}.csv" for name in ("eligible", "cities", "pairs", "subsets", "logprobs", "shared")}
