"""The record: written strictly, read tolerantly within a major version, named by what was asked."""

from __future__ import annotations

import json
import math
from typing import Any

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from record_factory import make_record

from saebench_meta.errors import BadFileError
from saebench_meta.record import (
    ControlResult,
    Interval,
    MetricResult,
    Order,
    Record,
    canonical_hash,
    json_schema,
    parse_record,
)


def full_record() -> Record:
    margin = Interval(value=0.5, ci_low=0.4, ci_high=0.6, level=0.95, n=10, n_unit="documents", method="bootstrap")
    control = ControlResult(value=0.1, n=10, n_unit="documents", method="bootstrap", margin=margin)
    metric = MetricResult(
        value=0.6,
        ci_low=0.5,
        ci_high=0.7,
        level=0.95,
        n=10,
        n_unit="documents",
        method="bootstrap",
        better="higher",
        unit="fraction",
        main=True,
        of="1 - sse / sst",
        controls={"random": control},
        order=Order(expected="trained>random", observed="trained>random", holds=True, why="it fits"),
    )
    return make_record(metrics={"explained_variance": metric}, notes=["a", "b"], extra={"mine": {"x": [1, None]}})


def test_a_record_comes_back_unchanged() -> None:
    record = full_record()
    assert parse_record(record.to_json(), "here") == record


def test_records_fit_the_published_schema() -> None:
    schema = json_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.validate(json.loads(full_record().to_json()), schema)


def test_an_unknown_field_is_an_error_on_writing_and_ignored_on_reading() -> None:
    with pytest.raises(ValidationError):
        make_record(novel=1)
    raw = json.loads(full_record().to_json())
    raw["novel"] = 1
    raw["run"]["novel"] = 1
    raw["metrics"]["explained_variance"]["novel"] = 1
    raw["metrics"]["explained_variance"]["controls"]["random"]["margin"]["novel"] = 1
    raw["subject"]["saes"][0]["info"]["site"]["novel"] = 1
    assert parse_record(json.dumps(raw), "here") == full_record()


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_no_number_that_is_not_finite_gets_in_or_out(number: float) -> None:
    with pytest.raises(ValidationError):
        Interval(value=number, n=1, n_unit="documents", method="census")
    with pytest.raises(BadFileError, match="not valid JSON"):
        constant = str(number).replace("nan", "NaN").replace("inf", "Infinity")
        parse_record(full_record().to_json().replace("0.6", constant), "x")
    with pytest.raises(ValueError, match="JSON"):
        make_record(extra={"mine": {"x": number}}).to_json()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema_version": 2}, "schema_version is 2"),
        ({"id": "short"}, "field 'id'"),
        ({"status": "fine"}, "field 'status'"),
        ({"metrics": {"m": {"value": 1}}}, r"field 'metrics\.m\."),
        ({"subject": None}, "field 'subject'"),
    ],
)
def test_a_wrong_field_is_named(change: dict[str, Any], message: str) -> None:
    raw = {**json.loads(full_record().to_json()), **change}
    with pytest.raises(BadFileError, match=message):
        parse_record(json.dumps(raw), "here")


@pytest.mark.parametrize("text", ["", "[]", "null", "{", "[" * 100_000])
def test_what_is_no_record_is_said_to_be_none(text: str) -> None:
    with pytest.raises(BadFileError, match=r"^here:"):
        parse_record(text, "here")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.text(), JSON, max_size=5))
def test_the_id_does_not_depend_on_the_order_of_keys(value: dict[str, Any]) -> None:
    assert canonical_hash(value) == canonical_hash(dict(reversed(list(value.items()))))
