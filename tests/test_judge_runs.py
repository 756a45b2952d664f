"""Runs that ask a judge: what it is handed, what is checked, counted and recorded, and what ends a unit."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import quiz_plugin
import toy_plugin
from click.testing import CliRunner
from quiz_plugin import SEEN, Bent
from record_samples import record, write

from saebench_meta.cli import saebench
from saebench_meta.compare import compare, judge_difference
from saebench_meta.errors import SaebenchError
from saebench_meta.events import Event, Notice, Progress
from saebench_meta.hookspecs import hookimpl
from saebench_meta.judge_cache import AnswerCache
from saebench_meta.judge_desk import Desk, SeatedJudge
from saebench_meta.judge_kept import kept_answers, remove_answers
from saebench_meta.judging import Answer, JudgeServices, Request
from saebench_meta.plan import make_plan
from saebench_meta.plugins import Registry
from saebench_meta.record import JudgeUsed, Record, parse_record
from saebench_meta.runner import RunResult, UnitResult, execute
from saebench_meta.session import Session
from saebench_meta.settings import Settings
from saebench_meta.worlds import KnownTruth

PRICED = {"price_in": "1", "price_out": "10"}


@pytest.fixture
def registry() -> Registry:
    Bent.reset()
    found = Registry()
    for plugin, name in ((toy_plugin, "toy"), (quiz_plugin, "quizzes")):
        assert found.register(plugin, name).problems == []
    return found


def go(registry: Registry, out: Path, **fields: Any) -> RunResult:
    standard = {"saes": ("toy:x-8",), "tasks": ("quiz",), "judge": "paid", "out": out, "cache_dir": out / "cache"}
    settings = Settings(**{**standard, **fields})
    return execute(registry, make_plan(registry, settings), settings)


def one(result: RunResult) -> tuple[UnitResult, JudgeUsed]:
    (unit,) = result.results
    assert unit.record is not None and unit.record.judge is not None
    return unit, unit.record.judge


# -- a whole run


def test_a_judge_is_made_once_a_run_and_closed_at_its_end(registry: Registry, tmp_path: Path) -> None:
    result = go(registry, tmp_path, saes=("toy:x-8", "toy:x-16"))
    assert [r.status for r in result.results] == ["ok", "ok"]
    assert len(Bent.made) == len(Bent.checked) == Bent.closed == 1
    go(registry, tmp_path, saes=("toy:x-8", "toy:x-16"))
    assert len(Bent.made) == len(Bent.checked) == 1  # all is kept


def test_equal_requests_of_a_unit_and_its_controls_are_asked_once(registry: Registry, tmp_path: Path) -> None:
    _, judge = one(go(registry, tmp_path, parameters={"quiz": {"twice": True}}))
    assert [len(batch) for batch in Bent.asked] == [8, 1]  # the control's first question is another one
    assert judge.asked == 9 and [len(answers) for _, answers in SEEN] == [16, 16]


def test_the_context_names_the_control_and_progress_shows_it(registry: Registry, tmp_path: Path) -> None:
    seen: list[Event] = []
    registry.listen(seen.append)
    go(registry, tmp_path)
    assert [control for control, _ in SEEN] == [None, "permuted_columns"]
    shown = dict.fromkeys(e.what for e in seen if isinstance(e, Progress))
    assert list(shown) == ["numbers chosen", "numbers chosen, control permuted_columns"]


def test_the_record_says_who_judged_and_what_it_took(registry: Registry, tmp_path: Path) -> None:
    def reply(request: Request, services: JudgeServices) -> Answer:
        if request.facts["n"] == 1:
            return Answer(problem="refusal", prompt_tokens=100, completion_tokens=3, cost=1e-4)
        answer = Answer(choice=0, model="small-1", prompt_tokens=100, completion_tokens=5, cost=2e-4)
        return replace(answer, cached=True) if request.facts["n"] == 2 else answer

    Bent.reply = staticmethod(reply)
    unit, judge = one(go(registry, tmp_path, judge_options=PRICED))
    assert (judge.name, judge.version, judge.plugin) == ("paid", "3", "(registered by hand):quizzes")
    assert judge.options == {"model": "small", "seed": 0} and len(judge.prompts["question"]) == 64
    assert (judge.asked, judge.cached, judge.unanswered, judge.models) == (9, 1, {"refusal": 1}, {"small-1": 8})
    assert (judge.prompt_tokens, judge.completion_tokens) == (800, 38)
    assert judge.cost_usd == pytest.approx(7 * 2e-4 + 1e-4) and judge.seconds is not None
    assert unit.record is not None
    assert unit.record.notes == ["judge paid left 1 of 9 requests without an answer: refusal 1"]


def test_what_is_not_told_is_null_and_a_free_judge_costs_nothing(registry: Registry, tmp_path: Path) -> None:
    _, judge = one(go(registry, tmp_path))
    assert judge.prompt_tokens is judge.completion_tokens is judge.cost_usd is None
    _, judge = one(go(registry, tmp_path, judge=None))
    assert (judge.name, judge.cost_usd, judge.prompt_tokens) == ("lexical", 0.0, None)


def test_a_mix_of_models_is_warned_of_and_noted(registry: Registry, tmp_path: Path) -> None:
    Bent.reply = staticmethod(lambda request, services: Answer(choice=0, model="a" if request.facts["n"] == 3 else "b"))
    seen: list[Event] = []
    registry.listen(seen.append)
    unit, judge = one(go(registry, tmp_path))
    said = "judge paid: its answers came from 2 models: a (1), b (8)"
    assert judge.models == {"a": 1, "b": 8} and unit.record is not None and said in unit.record.notes
    assert Notice("warning", said) in seen


def test_a_failing_check_ends_the_run_before_anything_is_loaded(
    registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    go(registry, tmp_path)
    monkeypatch.setattr(toy_plugin, "load", lambda *a, **k: pytest.fail("it was loaded"))
    with pytest.raises(SaebenchError, match="no model 'gone': give another one with -J model=NAME"):
        go(registry, tmp_path, judge_options={"model": "gone"})
    Bent.checked.clear()
    go(registry, tmp_path)  # kept
    go(registry, tmp_path, tasks=("toy_width",), saes=("toy:x-16",), judge="paid", parameters={})
    assert Bent.checked == []


def test_a_limit_needs_a_price(registry: Registry, tmp_path: Path) -> None:
    with pytest.raises(SaebenchError, match=r"--max-cost needs .* 'paid' costs; price not known: give -J price_in="):
        go(registry, tmp_path, max_cost=1.0)
    assert one(go(registry, tmp_path, max_cost=1.0, judge_options=PRICED))[0].status == "ok"


def test_an_empty_purse_fails_the_unit_keeps_the_answers_and_a_fuller_one_goes_on(
    registry: Registry, tmp_path: Path
) -> None:
    def reply(request: Request, services: JudgeServices) -> Answer:
        key = json.dumps(dict(request.facts))
        if (kept := services.cache.get(key)) is not None:
            return kept
        services.purse.reserve(0.01).settle(0.01)
        answer = Answer(choice=0, prompt_tokens=1, completion_tokens=1, cost=0.01)
        services.cache.put(key, answer)
        return answer

    Bent.reply = staticmethod(reply)
    unit, judge = one(go(registry, tmp_path, judge_options=PRICED, max_cost=0.045))
    assert unit.status == "failed" and "--max-cost" in str(unit.reason) and judge.name == "paid"
    unit, judge = one(go(registry, tmp_path, judge_options=PRICED, max_cost=0.06))
    assert unit.status == "ok" and (judge.asked, judge.cached) == (9, 4)
    assert judge.cost_usd == pytest.approx(0.05)
    held = kept_answers(tmp_path / "cache")
    assert held is not None and held.answers == 9


def test_a_failed_unit_says_what_the_judge_had_cost_until_then(registry: Registry, tmp_path: Path) -> None:
    def reply(request: Request, services: JudgeServices) -> Answer:
        if isinstance(request.facts["n"], float) and SEEN:
            raise SaebenchError("the server is gone")
        return Answer(choice=0, cost=0.5, prompt_tokens=2, completion_tokens=2)

    Bent.reply = staticmethod(reply)
    unit, judge = one(go(registry, tmp_path, judge_options=PRICED))
    assert unit.status == "failed" and (judge.asked, judge.cost_usd, judge.prompt_tokens) == (8, 4.0, 16)


def test_what_saes_share_of_the_oracle_is_asked_once_and_reckoned_for_each(registry: Registry, tmp_path: Path) -> None:
    oracles = {toy_plugin.HOOK: "toy:x-32"}
    known = KnownTruth("no-such-model", oracles, (), features=tuple, annotate=lambda ref, *, split: [])
    module = ModuleType("truthful")
    module.__dict__.update(saebench_api=1, saebench_truths=hookimpl(lambda: {"w": known}))
    assert registry.register(module).problems == []
    result = go(registry, tmp_path, saes=("toy:x-8", "toy:x-16"), judge=None)
    assert [control for control, _ in SEEN] == [None, "permuted_columns", "oracle", None, "permuted_columns"]
    assert [r.unit.asked[0].requests for r in result.results if r.unit.asked] == [24, 48]


# -- what a judge may answer


def desk(tmp_path: Path, registry: Registry, reply: Callable[[Request, JudgeServices], Any]) -> Desk:
    Bent.reply = staticmethod(reply)
    settings = Settings(saes=("toy:x-8",), tasks=("quiz",), judge="paid", cache_dir=tmp_path / "cache")
    (unit,) = make_plan(registry, settings).units
    assert unit.judge is not None
    return Desk(SeatedJudge(Session(registry, settings), unit.judge), unit.prompts)


CHOICE = Request("choose", "", "which?", ("a", "b"))
WORDS = Request("explain", "", "what?")


@pytest.mark.parametrize(
    ("request_", "answer", "said"),
    [
        (CHOICE, Answer(choice=2), r"chose 2 of 2 options \(they are numbered from 0\)"),
        (CHOICE, Answer(choice=-1), "chose -1 of 2 options"),
        (CHOICE, Answer(choice=True), "chose True of 2 options"),
        (CHOICE, Answer(choice="a"), "chose 'a' of 2 options"),  # type: ignore[arg-type]
        (WORDS, Answer(choice=0), "chose 0 of 0 options"),
        (CHOICE, Answer(choice=0, problem="timeout"), "with a choice and a problem, 'timeout'"),
        (CHOICE, "a", "answered 'choose' with a str, expected an Answer"),
    ],
)
def test_an_answer_that_cannot_be_is_its_plugins_fault(
    registry: Registry, tmp_path: Path, request_: Request, answer: Any, said: str
) -> None:
    found = desk(tmp_path, registry, lambda request, services: answer)
    with pytest.raises(SaebenchError, match=rf"plugin '\(registered by hand\):quizzes': judge 'paid' .*{said}"):
        found.ask([request_])


@pytest.mark.parametrize(
    ("request_", "answer", "problem"),
    [
        (CHOICE, Answer(), "empty"),
        (CHOICE, Answer(text="the first"), "malformed"),
        (WORDS, Answer(), "empty"),
        (WORDS, Answer(text="a word"), None),
        (CHOICE, Answer(text="I will not", problem="refusal"), "refusal"),
        (CHOICE, Answer(choice=np.int64(1)), None),  # type: ignore[arg-type]
    ],
)
def test_no_answer_is_a_problem_with_a_name(
    registry: Registry, tmp_path: Path, request_: Request, answer: Answer, problem: str | None
) -> None:
    (found,) = desk(tmp_path, registry, lambda request, services: answer).ask([request_])
    assert found.problem == problem and found.text == answer.text and type(found.choice) in (int, type(None))


def test_every_request_must_be_answered(registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = desk(tmp_path, registry, lambda request, services: Answer(choice=0))
    for given, said in (([], "gave 0 answers to 1 requests"), (None, "gave a NoneType to 1 requests")):
        monkeypatch.setattr(Bent, "ask", lambda self, requests, given=given: given)
        with pytest.raises(SaebenchError, match=said):
            found.ask([CHOICE])


def test_requests_are_told_apart_by_facts_and_sample_and_answered_in_order(registry: Registry, tmp_path: Path) -> None:
    found = desk(tmp_path, registry, lambda r, services: Answer(text=f"{r.facts.get('n')} {r.sample}"))
    asked = [replace(WORDS, facts={"n": 1}), WORDS, replace(WORDS, sample=1), WORDS, replace(WORDS, facts={"n": 1})]
    assert [a.text for a in found.ask(asked)] == ["1 0", "None 0", "None 1", "None 0", "1 0"]
    assert [len(batch) for batch in Bent.asked] == [3]
    assert found.name == "paid"


def test_facts_that_are_no_plain_data_are_told(registry: Registry, tmp_path: Path) -> None:
    found = desk(tmp_path, registry, lambda r, services: Answer(text="x"))
    for facts in ({"x": float("nan")}, {"x": np.zeros(2)}):
        with pytest.raises(SaebenchError, match="facts of a request 'explain' are no plain data"):
            found.ask([replace(WORDS, facts=facts)])


# -- records


def judged(judge: JudgeUsed | None) -> Record:
    return record().model_copy(update={"judge": judge})


def test_a_judge_of_two_fields_is_still_read() -> None:
    raw = json.loads(judged(None).to_json()) | {"judge": {"name": "first", "version": "1"}}
    read = parse_record(json.dumps(raw), "old")
    assert read.judge == JudgeUsed(name="first", version="1") and parse_record(read.to_json(), "new") == read


USED = JudgeUsed(name="openai", version="1", options={"model": "m"}, prompts={"q": "0"}, models={"m-1": 3})


@pytest.mark.parametrize(
    ("other", "said"),
    [
        (None, "one of the two had none"),
        (USED.model_copy(update={"name": "lexical"}), "name openai and lexical"),
        (USED.model_copy(update={"version": "2"}), "version 1 and 2"),
        (USED.model_copy(update={"options": {"model": "n"}}), "option 'model' of judge openai is 'm' and 'n'"),
        (USED.model_copy(update={"prompts": {"q": "1"}}), "prompt 'q' of judge openai is not the same"),
    ],
)
def test_records_of_different_judges_are_not_compared(tmp_path: Path, other: JudgeUsed | None, said: str) -> None:
    a, b = write(tmp_path / "a", judged(USED)), write(tmp_path / "b", judged(other))
    with pytest.raises(SaebenchError, match=f"the judges differ: {said}.*or pass --force"):
        compare(a, b)
    (forced,) = compare(a, b, force=True)
    assert any(said in remark for remark in forced.remarks)


def test_records_of_one_judge_are_compared_and_another_served_model_is_remarked(tmp_path: Path) -> None:
    twin = USED.model_copy(update={"models": {"m-2": 3}, "asked": 3, "seconds": 2.0})
    assert judge_difference(judged(USED), judged(twin)) is None and judge_difference(judged(None), judged(None)) is None
    a, b = write(tmp_path / "a", judged(USED)), write(tmp_path / "b", judged(twin))
    (compared,) = compare(a, b)
    assert "the judge was served by other models: m-1 and m-2" in compared.remarks


# -- the cache of answers


def call(*arguments: str) -> str:
    done = CliRunner().invoke(saebench, list(arguments))
    assert done.exit_code == 0, done.output
    return done.stdout


def test_the_cache_shows_answers_and_removes_them_when_asked(tmp_path: Path) -> None:
    where = ("--cache-dir", str(tmp_path))
    assert json.loads(call("cache", "info", "--json", *where))["answers"] is None
    assert remove_answers(tmp_path) is None and "removed 0 answers" in call("cache", "prune", "--answers", *where)
    cache = AnswerCache(tmp_path / "judge" / "answers.sqlite")
    for key in ("a", "b"):
        cache.put(key, Answer(text="x" * 10_000))
    assert json.loads(call("cache", "info", "--json", *where))["answers"]["answers"] == 2
    assert "answers of judges: 2, " in call("cache", "info", *where)
    assert "answers" not in call("cache", "prune", "--all", *where) and cache.get("a") is not None
    (tmp_path / "judge" / "answers.sqlite.damaged-1").write_bytes(b"?")
    assert "removed 2 answers of judges" in call("cache", "prune", "--answers", *where)
    assert cache.get("a") is None and not list((tmp_path / "judge").glob("*damaged*"))
    cache.put("c", Answer(text="on"))  # a run that has it open goes on
    held = kept_answers(tmp_path)
    assert held is not None and held.answers == 1


def test_a_file_of_answers_that_cannot_be_read_is_said_and_one_in_use_is_not_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "judge" / "answers.sqlite"
    file.parent.mkdir()
    file.write_bytes(b"no database, but long enough to look at" * 50)
    assert "answers of judges: cannot be read" in call("cache", "info", "--cache-dir", str(tmp_path))
    file.unlink()
    AnswerCache(file).close()
    monkeypatch.setattr("saebench_meta.judge_kept.WAIT_SECONDS", 0.01)
    writer = sqlite3.connect(file, isolation_level=None)
    writer.execute("BEGIN IMMEDIATE")
    with pytest.raises(SaebenchError, match=r"cannot be removed .*locked"):
        remove_answers(tmp_path)
    writer.close()
