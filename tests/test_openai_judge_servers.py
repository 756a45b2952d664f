"""The judge `openai` and the ways of servers: what they refuse, what they leave out, and what is said before a run."""

from __future__ import annotations

import logging
import subprocess
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from judge_server import KEY, OPTIONS, JudgeServer, Refuse, always, judge_at, options_for, question, right, serving

from saebench_meta.errors import SaebenchError
from saebench_meta.judging import Answer, Request
from saebench_plugins.judges import openai_settings, openai_trouble
from saebench_plugins.judges.openai import LOADER


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openai_trouble, "FIRST_WAIT", 0.005)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


@pytest.fixture
def server() -> Iterator[JudgeServer]:
    with serving(JudgeServer()) as running:
        yield running


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch, server: JudgeServer) -> JudgeServer:
    """The server, as if it ran on another machine."""
    monkeypatch.setattr(openai_settings, "LOCAL_HOSTS", ())
    return server


def refusing(*names: str, status: int = 400, tell: bool = True, param: bool = False) -> Refuse:
    """A server that takes no body in which one of the names occurs."""

    def refuse(body: dict[str, Any]) -> tuple[int, dict[str, Any]] | None:
        form = body.get("response_format", {}).get("type")
        for name in names:
            if name in body or name == form:
                said = f"Unsupported parameter: '{name}' is not supported." if tell else "Bad request"
                return status, {"error": {"message": said, "param": name if param else None, "code": None}}
        return None

    return refuse


# -- what a server refuses


@pytest.mark.parametrize("status", [400, 422, 501])
@pytest.mark.parametrize(
    ("refused", "form"),
    [((), "json_schema"), (("json_schema",), "json_object"), (("json_schema", "json_object"), None)],
)
def test_a_form_is_prescribed_as_far_as_the_server_takes_it(
    tmp_path: Path, server: JudgeServer, refused: tuple[str, ...], form: str | None, status: int
) -> None:
    server.refuses = refusing(*refused, status=status)
    judge, _ = judge_at(server, tmp_path, concurrency=2)
    answers = judge.ask([question(n) for n in range(20)])
    assert [a.choice for a in answers] == [right(f"question {n}") for n in range(20)]
    taken = [body.get("response_format", {}).get("type") for body in server.bodies]
    early = [kind for kind in taken if kind != form]  # from before it was refused, or already on the way then
    assert len(early) <= 2 * len(refused) and len(taken) == 20 + len(early)
    assert server.asked.total() <= 20 + 2 * len(refused)
    assert answers[-1].left_out == refused


def test_a_refusal_without_a_word_is_tried_to_be_about_the_form(tmp_path: Path, server: JudgeServer) -> None:
    server.refuses = refusing("json_schema", "json_object", tell=False)
    answers = judge_at(server, tmp_path)[0].ask([question(n) for n in range(10)])
    assert all(a.problem is None for a in answers)


def test_one_bad_request_does_not_change_how_the_others_are_put(tmp_path: Path, server: JudgeServer) -> None:
    judge, _ = judge_at(server, tmp_path, concurrency=1)
    judge.ask([question(0)])
    server.refuses = _refuse_question(1)
    answers = judge.ask([question(n) for n in range(1, 5)])
    assert [a.problem for a in answers] == ["rejected", None, None, None]
    assert all("response_format" in body for body in server.bodies)


def _refuse_question(n: int, message: str = "Bad request", code: str | None = None) -> Refuse:
    def refuse(body: dict[str, Any]) -> tuple[int, dict[str, Any]] | None:
        asked = body["messages"][-1]["content"].startswith(f"question {n}\n")
        return (400, {"error": {"message": message, "code": code}}) if asked else None

    return refuse


@pytest.mark.parametrize(
    ("message", "code"),
    [
        ("This model's maximum context length is 128 tokens; lower max_tokens.", "context_length_exceeded"),
        ("the request exceeds the available context size, try increasing it", None),
    ],
)
def test_a_prompt_that_does_not_fit_is_no_reason_to_ask_otherwise(
    tmp_path: Path, server: JudgeServer, message: str, code: str | None
) -> None:
    server.refuses = _refuse_question(0, message, code)
    answers = judge_at(server, tmp_path, concurrency=1)[0].ask([question(0), question(1)])
    assert [a.problem for a in answers] == ["too long", None]
    assert answers[1].left_out == ()


@pytest.mark.parametrize("param", [False, True])
def test_models_that_reason_are_asked_without_temperature_and_seed(
    tmp_path: Path, server: JudgeServer, param: bool
) -> None:
    server.refuses = refusing("temperature", "seed", "max_tokens", param=param)
    warned: list[str] = []
    options = {"reasoning_tokens": 500, "reasoning_effort": "low", "concurrency": 1}
    judge, _ = judge_at(server, tmp_path, warned=warned, **options)
    answers = judge.ask([question(n) for n in range(5)])
    assert all(a.problem is None and set(a.left_out) == {"temperature", "seed"} for a in answers)
    last = server.bodies[-1]
    assert last["max_completion_tokens"] == 516
    assert last["reasoning_effort"] == "low"
    assert "response_format" in last
    assert not {"temperature", "seed", "max_tokens"} & set(last)
    assert server.asked.total() == 8
    assert sorted("temperature" in w for w in warned) == [False, True]
    again: list[str] = []
    judge_at(server, tmp_path, warned=again, **options)[0].ask([question(0)])
    assert sorted(again) == sorted(warned)


def test_a_form_that_was_asked_for_is_not_dropped(tmp_path: Path, server: JudgeServer) -> None:
    server.refuses = refusing("json_schema")
    (answer,) = judge_at(server, tmp_path, structured="json_schema")[0].ask([question(0)])
    assert answer.problem == "rejected"


@pytest.mark.parametrize("structured", ["json_object", "none"])
def test_another_form_can_be_asked_for(tmp_path: Path, server: JudgeServer, structured: str) -> None:
    (answer,) = judge_at(server, tmp_path, structured=structured)[0].ask([question(0)])
    assert answer.choice == right("question 0")
    (body,) = server.bodies
    assert body.get("response_format", {"type": "none"})["type"] == structured
    assert ("JSON" in body["messages"][-1]["content"]) == (structured == "json_object")


def test_the_form_admits_the_options_numbers_and_nothing_else(tmp_path: Path, server: JudgeServer) -> None:
    judge_at(server, tmp_path)[0].ask([question(0)])
    schema = server.bodies[0]["response_format"]["json_schema"]
    assert schema["strict"] is True
    assert schema["schema"]["properties"] == {"answer": {"type": "integer", "enum": [1, 2, 3, 4, 5]}}
    assert schema["schema"]["additionalProperties"] is False


# -- what a server leaves out


def test_an_answer_tells_model_tokens_and_cost(tmp_path: Path, server: JudgeServer) -> None:
    judge, purse = judge_at(server, tmp_path)
    (answer,) = judge.ask([question(0)])
    assert answer.model == server.served != "tiny-judge"
    assert answer.completion_tokens == 16
    assert answer.cost == pytest.approx(server.bill) == purse.spent


def test_tokens_that_nobody_counts_cost_the_most_they_can(tmp_path: Path, server: JudgeServer) -> None:
    server.usage = False
    judge, purse = judge_at(server, tmp_path)
    (answer,) = judge.ask([question(0)])
    assert (answer.prompt_tokens, answer.completion_tokens) == (None, None)
    assert answer.cost == purse.spent > server.bill


def test_a_cost_is_not_made_up_where_the_price_is_not_known(tmp_path: Path, elsewhere: JudgeServer) -> None:
    judge, purse = judge_at(elsewhere, tmp_path, price_in=-1.0, price_out=-1.0, key_env="")
    (answer,) = judge.ask([question(0)])
    assert (answer.cost, purse.spent) == (None, 0.0)
    assert answer.prompt_tokens is not None


def test_a_server_on_this_machine_costs_nothing(tmp_path: Path, server: JudgeServer) -> None:
    judge, _ = judge_at(server, tmp_path, limit=0.0, price_in=-1.0, price_out=-1.0)
    assert judge.ask([question(0)])[0].cost == 0.0


@pytest.mark.parametrize("words", ["{n}", "({n})", "Answer: {n}", "**Option {n}**", '```json\n{{"answer": {n}}}\n```'])
def test_answers_are_understood_however_they_are_put(tmp_path: Path, server: JudgeServer, words: str) -> None:
    server.content = lambda body, name: words.format(n=right(name) + 1)
    answers = judge_at(server, tmp_path)[0].ask([question(n) for n in range(5)])
    assert [a.choice for a in answers] == [right(f"question {n}") for n in range(5)]


def test_an_option_may_be_named_by_its_words(tmp_path: Path, server: JudgeServer) -> None:
    server.content = lambda body, name: f"I would say {OPTIONS[right(name)]}."
    assert judge_at(server, tmp_path)[0].ask([question(0)])[0].choice == right("question 0")


# -- the check before a run


def complaint(options: dict[str, Any]) -> str:
    with pytest.raises(SaebenchError) as caught:
        assert LOADER.check is not None
        LOADER.check(options)
    said = str(caught.value)
    assert "\n" not in said
    return said


def passes(options: dict[str, Any]) -> None:
    assert LOADER.check is not None
    LOADER.check(options)


def test_no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = "no key for api.openai.com/v1; set OPENAI_API_KEY, or name another variable with -J key_env="
    assert expected in complaint(dict(LOADER.options))
    monkeypatch.setenv("OPENAI_API_KEY", "  ")
    assert expected in complaint(dict(LOADER.options))
    assert "set MY_KEY" in complaint({**LOADER.options, "key_env": "MY_KEY"})


def test_what_is_no_key_is_not_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "export KEY=sk-secret")
    said = complaint(dict(LOADER.options))
    assert "OPENAI_API_KEY holds is no key" in said
    assert "sk-secret" not in said


@pytest.mark.parametrize("official", [False, True])
def test_a_wrong_key(monkeypatch: pytest.MonkeyPatch, elsewhere: JudgeServer, official: bool) -> None:
    elsewhere.key = KEY
    monkeypatch.setenv("OPENAI_API_KEY", "sk-wrong-12345678")
    if official:
        monkeypatch.setattr(openai_settings, "OFFICIAL", elsewhere.url)
    said = complaint(options_for(elsewhere))
    assert "refuses the key in OPENAI_API_KEY" in said
    assert "set OPENAI_API_KEY to a key of this server" in said
    assert "12345678" not in said


@pytest.mark.parametrize("official", [False, True])
def test_the_right_key(monkeypatch: pytest.MonkeyPatch, elsewhere: JudgeServer, official: bool) -> None:
    elsewhere.key = KEY
    monkeypatch.setenv("MY_KEY", KEY)
    if official:
        monkeypatch.setattr(openai_settings, "OFFICIAL", elsewhere.url)
    passes(options_for(elsewhere, key_env="MY_KEY"))
    completions = [path for path in elsewhere.paths if path.endswith("/chat/completions")]
    assert len(completions) == (0 if official else 1)


def test_a_wrong_key_where_the_list_of_models_is_open(monkeypatch: pytest.MonkeyPatch, elsewhere: JudgeServer) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    elsewhere.refuses = lambda body: (401, {"error": {"message": "No auth credentials found", "code": 401}})
    assert "refuses the key in OPENAI_API_KEY (No auth credentials found)" in complaint(options_for(elsewhere))


@pytest.mark.parametrize("official", [False, True])
def test_an_unknown_model(monkeypatch: pytest.MonkeyPatch, elsewhere: JudgeServer, official: bool) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    if official:
        monkeypatch.setattr(openai_settings, "OFFICIAL", elsewhere.url)
    elsewhere.refuses = _no_model
    said = complaint(options_for(elsewhere, model="tiny-juge"))
    assert "has no model 'tiny-juge'; did you mean 'tiny-judge'?" in said
    assert "set -J model=" in said


def _no_model(body: dict[str, Any]) -> tuple[int, dict[str, Any]] | None:
    if body["model"] == "tiny-judge":
        return None
    return 404, {"error": {"message": f"The model `{body['model']}` does not exist.", "code": "model_not_found"}}


def test_a_local_server_may_take_names_that_it_does_not_list(server: JudgeServer) -> None:
    passes(options_for(server, model="anything"))
    server.models = None
    passes(options_for(server))
    server.refuses = _no_model
    assert "has no model 'other'" in complaint(options_for(server, model="other"))


def test_a_local_server_that_lists_the_model_is_not_made_to_load_it(server: JudgeServer) -> None:
    passes(options_for(server))
    assert server.paths == ["/v1/models"]


def test_no_network() -> None:
    with serving(JudgeServer()) as server:
        gone = options_for(server)
    said = complaint(gone)
    assert "cannot be reached; see to the network, or set -J base_url=" in said


def test_a_wrong_path(server: JudgeServer) -> None:
    options = options_for(server) | {"base_url": server.url.replace("/v1", "/api")}
    assert "nothing answers chat completions at 127.0.0.1" in complaint(options)


def test_a_busy_server_is_no_reason_to_stop(monkeypatch: pytest.MonkeyPatch, elsewhere: JudgeServer) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    elsewhere.fault = always("429")
    passes(options_for(elsewhere))


# -- the key stays where it is


def echo(body: dict[str, Any], name: str) -> str:
    return f"3 because your key is {KEY}"


@pytest.mark.parametrize("ending", ["answers", "refuses", "rejects"])
def test_the_key_is_written_nowhere(
    tmp_path: Path,
    server: JudgeServer,
    ending: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    caplog.set_level(logging.DEBUG)
    server.key, server.served, server.content = KEY, f"model of {KEY}", echo
    if ending != "answers":
        status = 401 if ending == "refuses" else 400
        server.refuses = lambda body: (status, {"error": {"message": f"who is Bearer {KEY}, then", "code": KEY}})
    warned: list[str] = []
    judge, _ = judge_at(server, tmp_path, warned=warned, concurrency=1)
    answers: list[Answer] = []
    said = ""
    try:
        answers += judge.ask([question(n) for n in range(25)] + [Request("explain", "", "why", max_tokens=9)])
    except SaebenchError as e:
        said = "".join(traceback.format_exception(e))
    assert bool(said) == (ending != "answers")
    kept = b"".join(path.read_bytes() for path in tmp_path.iterdir())
    output = capfd.readouterr()
    identity = LOADER.identity(options_for(server)) if LOADER.identity else {}
    everything = [said, repr(answers), *warned, caplog.text, output.out, output.err, repr(identity)]
    assert not any(KEY in text for text in everything)
    assert KEY.encode() not in kept
    assert (b"because your key is ***" in kept) == (ending == "answers")


def test_a_key_in_the_address_is_refused_without_being_repeated() -> None:
    for url in (f"http://user:{KEY}@127.0.0.1/v1", f"https://judge.example/v1?key={KEY}"):
        said = complaint({**LOADER.options, "base_url": url})
        assert "-J key_env=" in said
        assert KEY not in said


# -- start-up


def test_listing_judges_imports_no_client() -> None:
    code = (
        "import sys; from saebench_plugins.judges import openai; "
        "print([m for m in ('openai', 'httpx', 'httpx2', 'aiolimiter', 'sqlite3', 'asyncio') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout.strip() == "[]"
