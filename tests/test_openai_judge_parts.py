"""Parts of the judge `openai` by themselves: reading answers, waits, errors and options."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from saebench_meta.errors import SaebenchError
from saebench_meta.judging import Price
from saebench_plugins.judges.openai import LOADER
from saebench_plugins.judges.openai_dialect import is_too_long, read_error
from saebench_plugins.judges.openai_parse import choice_of
from saebench_plugins.judges.openai_reply import read_reply
from saebench_plugins.judges.openai_settings import NO_KEY, PRICES, read_settings, redact
from saebench_plugins.judges.openai_trouble import retry_after

OPTIONS = ["cats", "dogs and cats", "rivers", "stones", "the number 7"]


# -- which option an answer names

THIRD = [
    "3",
    " 3\n",
    "(3)",
    "3)",
    "**3**",
    "3.",
    "#3",
    "Answer: 3",
    "answer = 3",
    "The answer is option 3.",
    "The best passage is **3**.",
    "Option 3",
    "My choice would be number 3",
    r"\boxed{3}",
    "3. The one about water",
    "Option 1 is about cats. Option 2 is not. The answer is 3",
    '{"answer": 3}',
    '{"answer": "3"}',
    '{"Answer": 3.0, "why": "because of 2"}',
    '{"choice": 3}',
    '{"pick": 3}',
    '{"answer": [3]}',
    '{"answer": "rivers"}',
    '```json\n{"answer": 3}\n```',
    'Sure! Here it is: {"answer": 3}. Anything else, 1 or 2?',
    '{"answer": 3} {"answer": 3}',
    '<think>1? or 2? {"answer": 1}</think>3',
    "rivers",
    "I think it is Rivers.",
    "“RIVERS”",
]
NOTHING = [
    "",
    "   ",
    "none of these",
    "1 or 2",
    "Either 1 or 2, I would say.",
    "Answer: 3 or 4",
    "Answer: 3, 4",
    "Option 1 and option 2",
    "3. about 2 dogs",
    "There are 5 options.",
    "It is not option 3",
    "The answer isn't 3.",
    "0",
    "6",
    "-3",
    "3.5",
    "Answer: 3.5",
    '{"answer": 0}',
    '{"answer": 9}',
    '{"answer": true}',
    '{"answer": null}',
    '{"answer": 2.5}',
    '{"answer": 1e400}',
    '{"answer": 3} {"answer": 4}',
    '{"a": 3, "b": 4}',
    "<think>surely 3",
    "cats or stones",
    "{" * 5000,
    "[" * 100_000,
    "1" * 5000,
]


@pytest.mark.parametrize("text", THIRD)
def test_an_answer_names_an_option(text: str) -> None:
    assert choice_of(text, OPTIONS) == 2


@pytest.mark.parametrize("text", NOTHING, ids=lambda text: text[:40])
def test_an_answer_that_could_mean_two_or_none_means_none(text: str) -> None:
    assert choice_of(text, OPTIONS) is None


@pytest.mark.parametrize(("text", "choice"), [("cats", 0), ("dogs and cats", 1), ("the number 7", 4), ("7", None)])
def test_an_option_within_another_is_the_longer_one(text: str, choice: int | None) -> None:
    assert choice_of(text, OPTIONS) == choice


@given(st.text(max_size=200))
def test_any_text_is_read_without_a_fault(text: str) -> None:
    assert choice_of(text, OPTIONS) in {None, 0, 1, 2, 3, 4}


@given(st.integers(1, 5), st.sampled_from(["{}", "({})", "Answer: {}", "Option {}.", '{{"answer": {}}}']))
def test_every_number_stands_for_its_option(number: int, words: str) -> None:
    assert choice_of(words.format(number), [f"text {'x' * n}" for n in range(5)]) == number - 1


# -- replies


def reply(**changes: Any) -> dict[str, Any]:
    message = {"role": "assistant", "content": "3"} | changes.pop("message", {})
    choice = {"message": message, "finish_reason": "stop"}
    usage = {"prompt_tokens": 5, "completion_tokens": 1}
    return {"model": "m", "choices": [choice], "usage": usage} | changes


def test_a_reply_is_read() -> None:
    read = read_reply(reply())
    assert (read.text, read.finish, read.refused, read.model) == ("3", "stop", False, "m")
    assert (read.prompt_tokens, read.completion_tokens) == (5, 1)


def test_parts_may_be_missing() -> None:
    read = read_reply({"choices": [{"message": {"content": None}}]})
    assert (read.text, read.finish, read.model, read.prompt_tokens) == ("", "", None, None)
    parts = [{"type": "text", "text": "3"}, {"type": "audio"}, {"type": "text", "text": "!"}]
    assert read_reply(reply(message={"content": parts})).text == "3!"
    assert read_reply(reply(usage={"prompt_tokens": -1, "completion_tokens": True})).prompt_tokens is None


@pytest.mark.parametrize("raw", [None, "", "<html>", [], {}, {"choices": []}, {"choices": [1]}, {"choices": [{}]}])
def test_what_is_no_completion_is_none(raw: object) -> None:
    with pytest.raises(ValueError, match="chat completion"):
        read_reply(raw)


# -- errors and waits


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ({"error": {"message": "no", "param": "seed", "code": "c"}}, {"message": "no", "param": "seed", "code": "c"}),
        ({"message": "no", "param": None, "code": None}, {"message": "no", "param": "", "code": ""}),
        ({"detail": "no"}, {"message": "no", "param": "", "code": ""}),
        ({"error": "no"}, {"message": "no", "param": "", "code": ""}),
        ("<html>", {"message": "given", "param": "", "code": ""}),
        (None, {"message": "given", "param": "", "code": ""}),
    ],
)
def test_errors_are_read_in_the_forms_that_servers_use(body: object, expected: dict[str, str]) -> None:
    assert read_error(body, "given") == expected


def test_what_a_checking_server_objects_to_is_where_it_says() -> None:
    detail = [{"loc": ["body", "seed"], "msg": "Extra inputs are not permitted", "input": "temperature"}]
    assert read_error({"detail": detail}, "")["param"] == "body seed"


def test_only_a_long_prompt_is_too_long() -> None:
    assert is_too_long({"code": "", "message": "Requested tokens (700) exceed context window of 512"})
    assert not is_too_long({"code": "", "message": "Unsupported parameter: 'max_tokens'"})


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"retry-after": "7"}, 7.0),
        ({"retry-after": "0.25"}, 0.25),
        ({"retry-after": "90"}, 90.0),
        ({"retry-after": "3600"}, 3600.0),
        ({"retry-after-ms": "250", "retry-after": "7"}, 0.25),
        ({"retry-after-ms": "x", "retry-after": "7"}, 7.0),
        ({"retry-after": "Sat, 01 Jan 2000 00:00:00 GMT"}, 0.0),
        ({"retry-after": "-3"}, None),
        ({"retry-after": "inf"}, None),
        ({"retry-after": "nan"}, None),
        ({"retry-after": "soon"}, None),
        ({"retry-after": "Sat, 99 Foo 2000"}, None),
        ({}, None),
    ],
)
def test_a_server_says_how_long_to_wait(headers: dict[str, str], seconds: float | None) -> None:
    assert retry_after(headers) == seconds


def test_a_server_says_until_when_to_wait() -> None:
    until = format_datetime(datetime.now(UTC) + timedelta(minutes=5), usegmt=True)
    assert 200 < (retry_after({"retry-after": until}) or 0) <= 300


# -- options


def test_the_identity_is_what_answers_depend_on() -> None:
    assert LOADER.identity is not None
    plain = LOADER.identity(LOADER.options)
    assert plain == {
        "model": "gpt-4o-mini",
        "base_url": "api.openai.com/v1",
        "temperature": 0.0,
        "seed": 0,
        "structured": "auto",
    }
    others = {"concurrency": 1, "key_env": "X", "retries": 0, "timeout": 1.0, "price_in": 1.0, "price_out": 1.0}
    assert LOADER.identity({**LOADER.options, **others}) == plain
    assert LOADER.identity({**LOADER.options, "reasoning_effort": "low"})["reasoning_effort"] == "low"
    json.dumps(plain)


@pytest.mark.parametrize(
    ("options", "price"),
    [
        ({}, Price(0.15, 0.60)),
        ({"model": "gpt-4o-mini-2024-07-18"}, Price(0.15, 0.60)),
        ({"model": "gpt-99"}, None),
        ({"model": "ft:gpt-4o-mini:me"}, None),
        ({"base_url": "https://judge.example/v1"}, None),
        ({"base_url": "http://localhost:8000/v1"}, Price(0.0, 0.0)),
        ({"base_url": "http://[::1]:8000/v1"}, Price(0.0, 0.0)),
        ({"base_url": "http://localhost:8000/v1", "price_in": 1.0, "price_out": 2.0}, Price(1.0, 2.0)),
        ({"base_url": "https://judge.example/v1", "price_in": 0.0, "price_out": 2.0}, Price(0.0, 2.0)),
    ],
)
def test_prices_are_given_or_known_or_unknown(options: dict[str, Any], price: Price | None) -> None:
    assert LOADER.price is not None
    assert LOADER.price({**LOADER.options, **options}) == price


def test_the_default_model_has_a_price() -> None:
    assert LOADER.options["model"] in PRICES
    assert all(0 < p.prompt < p.completion for p in PRICES.values())


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"concurrency": 0}, "-J concurrency=0 is less than 1"),
        ({"retries": -1}, "-J retries=-1"),
        ({"requests_per_minute": -1.0}, "-J requests_per_minute="),
        ({"timeout": 0.0}, "-J timeout=0.0"),
        ({"model": " "}, "-J model="),
        ({"structured": "xml"}, "-J structured=xml is none of auto, json_schema, json_object, none"),
        ({"price_in": 1.0}, "give both -J price_in= and -J price_out="),
        ({"base_url": "judge.example/v1"}, "-J base_url= is no address such as http://"),
        ({"base_url": "ftp://judge.example/v1"}, "-J base_url="),
        ({"base_url": "http://[::1"}, "-J base_url="),
        ({"base_url": "http://host:99999/v1"}, "-J base_url="),
    ],
)
def test_an_option_that_cannot_be_says_so(options: dict[str, Any], expected: str) -> None:
    with pytest.raises(SaebenchError) as caught:
        read_settings({**LOADER.options, **options})
    assert expected in str(caught.value)


def test_texts_from_outside_are_cut_to_a_line_without_keys() -> None:
    assert redact("your key\n sk-abc is wrong", "sk-abc") == "your key *** is wrong"
    assert redact("your key sk-proj-123456789 is wrong", NO_KEY) == "your key sk-*** is wrong"
    assert len(redact("x" * 10_000, NO_KEY)) < 400
    assert redact("none of it", NO_KEY) == "none of it"
