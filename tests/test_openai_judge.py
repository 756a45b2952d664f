"""The judge `openai` against a server that fails, limits, bills and hangs: every question ends, within bounds."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from judge_server import (
    FAULTS,
    JudgeServer,
    always,
    judge_at,
    options_for,
    question,
    right,
    seeded_faults,
    serving,
)

from saebench_meta.errors import SaebenchError
from saebench_meta.judge_cache import AnswerCache
from saebench_meta.judging import Answer, JudgeServices, Request
from saebench_meta.purse import OverBudgetError, Purse
from saebench_plugins.judges import openai_trouble
from saebench_plugins.judges.openai import LOADER

PROBLEMS = {"rate limited", "server error", "timeout", "unreadable", "empty", "malformed", "refusal"}
EXPECTED = {
    "429": ("rate limited", 3),
    "500": ("server error", 3),
    "hang": ("timeout", 3),
    "cut": ("unreadable", 3),
    "garbled": ("unreadable", 3),
    "empty": ("empty", 3),
    "malformed": ("malformed", 3),
    "length": ("malformed", 3),
    "refusal": ("refusal", 1),
    "content_filter": ("refusal", 1),
}


@pytest.fixture(autouse=True)
def _short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openai_trouble, "FIRST_WAIT", 0.005)


@pytest.fixture
def server() -> Iterator[JudgeServer]:
    with serving(JudgeServer()) as running:
        yield running


def is_right(request: Request, answer: Answer) -> bool:
    return answer.choice == right(request.user.partition("\n")[0])


# -- every question ends


@pytest.mark.slow
def test_a_thousand_questions_and_thirty_per_cent_faults(tmp_path: Path, server: JudgeServer) -> None:
    server.fault = seeded_faults(0.3, seed=1)
    questions = [question(n) for n in range(1000)]
    judge, purse = judge_at(server, tmp_path, timeout=0.5)
    answers = judge.ask(questions)
    assert len(answers) == 1000
    answered = [(q, a) for q, a in zip(questions, answers, strict=True) if a.problem is None]
    assert all(is_right(q, a) for q, a in answered)
    unanswered = [a for a in answers if a.problem is not None]
    assert {a.problem for a in unanswered} <= PROBLEMS
    assert all(a.choice is None for a in unanswered)
    assert 10 < sum(a.problem == "refusal" for a in unanswered) < 150
    assert len(answered) > 850
    assert set(server.asked) == {q.user.partition("\n")[0] for q in questions}
    assert server.most_at_once <= 8
    assert server.bill <= purse.spent * (1 + 1e-9)
    assert purse.spent == pytest.approx(sum(a.cost or 0.0 for a in answers))
    assert {a.model for _, a in answered} == {server.served}


@pytest.mark.parametrize("kind", EXPECTED)
def test_what_never_ends_well_is_recorded_after_a_bounded_number_of_tries(
    tmp_path: Path, server: JudgeServer, kind: str
) -> None:
    server.fault = always(kind)
    judge, purse = judge_at(server, tmp_path, timeout=0.3 if kind == "hang" else 10.0, retries=2)
    answers = judge.ask([question(n) for n in range(3)])
    problem, tries = EXPECTED[kind]
    assert [(a.problem, a.choice) for a in answers] == [(problem, None)] * 3
    assert set(server.asked.values()) == {tries}
    assert server.bill <= purse.spent * (1 + 1e-9)
    assert (purse.spent == 0.0) == (kind in ("429", "500"))


def test_the_table_of_outcomes_names_every_fault() -> None:
    assert set(FAULTS) <= set(EXPECTED)


def test_an_unreadable_answer_is_asked_again_with_a_reminder(tmp_path: Path, server: JudgeServer) -> None:
    server.fault = lambda name, attempt: "malformed" if attempt < 2 else None
    judge, _ = judge_at(server, tmp_path)
    (answer,) = judge.ask([question(0)])
    assert answer.choice == right("question 0")
    said = [body["messages"][-1]["content"] for body in server.bodies]
    assert ["and nothing else" in text for text in said] == [False, True, True]


def test_free_text_is_given_back_as_it_is(tmp_path: Path, server: JudgeServer) -> None:
    server.content = lambda body, name: "<think>what could 3 be</think>\n Words about rivers. \n"
    judge, _ = judge_at(server, tmp_path)
    (answer,) = judge.ask([Request("explain", "You explain.", "what is it", max_tokens=20)])
    assert (answer.text, answer.choice, answer.problem) == ("Words about rivers.", None, None)
    assert "response_format" not in server.bodies[0]


# -- bounds


def test_requests_run_side_by_side_and_never_more_than_asked_for(tmp_path: Path, server: JudgeServer) -> None:
    together = threading.Barrier(5, timeout=30)  # lets five in only once all five are there
    server.content = lambda body, name: (together.wait(), str(right(name) + 1))[1]
    judge, _ = judge_at(server, tmp_path, concurrency=5, timeout=60.0)
    server.work_seconds = 0.02
    answers = judge.ask([question(n) for n in range(25)])
    assert all(a.problem is None for a in answers)
    assert server.most_at_once == 5


def test_a_rate_is_kept_between_requests_and_between_calls(tmp_path: Path, server: JudgeServer) -> None:
    judge, _ = judge_at(server, tmp_path, requests_per_minute=1200.0)
    judge.ask([question(n) for n in range(6)])
    judge.ask([question(n) for n in range(6, 12)])
    span = server.arrivals[-1] - server.arrivals[0]
    assert span > 11 * 60 / 1200 * 0.8


def test_when_the_server_says_how_long_to_wait_everything_waits(tmp_path: Path, server: JudgeServer) -> None:
    server.headers = {"Retry-After": "0.5"}
    server.fault = lambda name, attempt: "429" if name == "question 0" and attempt == 0 else None
    judge, _ = judge_at(server, tmp_path, concurrency=2)
    judge.ask([question(n) for n in range(40)])
    gaps = [b - a for a, b in zip(server.arrivals, server.arrivals[1:], strict=False)]
    assert max(gaps) > 0.4
    assert server.asked["question 0"] == 2


def test_a_wait_of_hours_ends_the_run_and_says_so(tmp_path: Path, server: JudgeServer) -> None:
    server.headers = {"Retry-After": "7200"}
    server.fault = always("429")
    judge, _ = judge_at(server, tmp_path, concurrency=1)
    with pytest.raises(SaebenchError, match="asks to wait for 7,200 s; every answer so far is kept"):
        judge.ask([question(0), question(1)])
    assert server.asked.total() == 1


# -- cost


def test_the_bill_stays_within_the_limit_and_the_rest_can_be_had_later(tmp_path: Path, server: JudgeServer) -> None:
    server.fault = seeded_faults(0.3, seed=2)
    questions = [question(n) for n in range(120)]
    judge, purse = judge_at(server, tmp_path, limit=0.06, timeout=0.3)
    with pytest.raises(OverBudgetError, match=r"--max-cost 0\.06"):
        judge.ask(questions)
    assert 0.03 < server.bill <= purse.spent <= 0.06
    before = Counter(server.asked)
    judge, purse = judge_at(server, tmp_path, limit=5.0, timeout=0.3)
    answers = judge.ask(questions)
    assert len(answers) == 120
    assert server.bill <= 0.06 + purse.spent
    kept = [q for q, a in zip(questions, answers, strict=True) if a.cached]
    assert len(kept) > 20
    assert all(server.asked[name] == before[name] for q in kept for name in [q.user.partition("\n")[0]])


def test_the_bill_stays_within_the_limit_when_every_attempt_hangs(tmp_path: Path, server: JudgeServer) -> None:
    server.fault = always("hang")
    judge, purse = judge_at(server, tmp_path, limit=0.005, timeout=0.2)
    with pytest.raises(SaebenchError):
        judge.ask([question(n) for n in range(100)])
    assert 0 < server.bill <= purse.spent <= 0.005


def test_what_is_under_way_is_waited_for_before_the_purse_is_called_empty(tmp_path: Path, server: JudgeServer) -> None:
    server.completion_tokens = 1
    judge, purse = judge_at(server, tmp_path, limit=0.04, concurrency=8)
    # Together they cost less than the limit; eight worst cases at a time are more than it.
    answers = judge.ask([question(n, max_tokens=2000) for n in range(25)])
    assert all(a.problem is None for a in answers)
    assert purse.spent == pytest.approx(server.bill)


def test_a_limit_needs_a_price(tmp_path: Path) -> None:
    options = {"base_url": "https://judge.example/v1", "key_env": "", "model": "m"}
    services = JudgeServices(AnswerCache(tmp_path / "a"), Purse(1.0), lambda done, total: None, print)
    with pytest.raises(SaebenchError, match=r"--max-cost: what m costs at judge\.example/v1 .* -J price_in= and"):
        LOADER.make(options, services)


# -- what was answered is not asked again


def test_a_second_call_asks_nothing(tmp_path: Path, server: JudgeServer) -> None:
    questions = [question(n) for n in range(10)]
    first = judge_at(server, tmp_path)[0].ask(questions)
    asked = server.asked.total()
    second = judge_at(server, tmp_path, concurrency=1, timeout=3.0, retries=0)[0].ask(questions)
    assert server.asked.total() == asked == 10
    assert [a.choice for a in second] == [a.choice for a in first]
    assert all(a.cached for a in second)


@pytest.mark.parametrize("changed", [{"model": "other"}, {"temperature": 1.0}, {"seed": 1}, {"structured": "none"}])
def test_another_judge_is_asked_anew(tmp_path: Path, server: JudgeServer, changed: dict[str, object]) -> None:
    judge_at(server, tmp_path)[0].ask([question(0)])
    judge_at(server, tmp_path, **changed)[0].ask([question(0)])
    assert server.asked["question 0"] == 2


def test_another_sample_is_asked_anew_with_another_seed(tmp_path: Path, server: JudgeServer) -> None:
    from dataclasses import replace

    judge, _ = judge_at(server, tmp_path, seed=7)
    judge.ask([question(0), replace(question(0), sample=1)])
    assert sorted(body["seed"] for body in server.bodies) == [7, 8]


SCRIPT = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from judge_server import JudgeServer, judge_at, question
judge, _ = judge_at(JudgeServer(url=sys.argv[2]), Path(sys.argv[3]))
judge.ask([question(n) for n in range(200)])
"""


def test_after_a_kill_no_more_is_asked_twice_than_was_under_way(tmp_path: Path, server: JudgeServer) -> None:
    command = [sys.executable, "-c", SCRIPT, str(Path(__file__).parent), server.url, str(tmp_path)]
    process = subprocess.Popen(command)
    server.on_request = lambda n: os.kill(process.pid, signal.SIGKILL) if n == 90 else None
    assert process.wait(timeout=120) == -signal.SIGKILL
    server.on_request = lambda n: None
    killed_at = server.asked.total()
    answers = judge_at(server, tmp_path)[0].ask([question(n) for n in range(200)])
    assert all(a.problem is None for a in answers)
    assert sum(a.cached for a in answers) >= killed_at - 8
    assert sum(n - 1 for n in server.asked.values()) <= 8
    assert len(server.asked) == 200


# -- how a run ends early


def test_a_server_that_answers_nothing_any_more_ends_the_run(tmp_path: Path, server: JudgeServer) -> None:
    server.fault = lambda name, attempt: "500" if int(name.split()[1]) >= 30 else None
    judge, _ = judge_at(server, tmp_path, concurrency=1, retries=1)
    with pytest.raises(SaebenchError, match=r"has left 20 requests in a row unanswered \(the last: server error"):
        judge.ask([question(n) for n in range(100)])
    assert len(server.asked) == 50
    server.fault = lambda name, attempt: None
    answers = judge.ask([question(n) for n in range(100)])
    assert sum(a.cached for a in answers) == 30


def test_a_server_that_goes_away_ends_the_run(tmp_path: Path) -> None:
    with serving(JudgeServer()) as server:
        judge, _ = judge_at(server, tmp_path, retries=1)
        judge.ask([question(0)])
    with pytest.raises(SaebenchError, match="cannot be reached any more; every answer so far is kept"):
        judge.ask([question(n) for n in range(50)])


@pytest.mark.parametrize(
    ("status", "error", "expected"),
    [
        (401, {"message": "Incorrect API key", "code": "invalid_api_key"}, "refuses the key in OPENAI_API_KEY"),
        (402, {"message": "Insufficient credits", "code": 402}, "wants to be paid"),
        (429, {"message": "You exceeded your current quota", "code": "insufficient_quota"}, "wants to be paid"),
    ],
)
def test_what_holds_for_every_request_ends_the_run_at_once(
    tmp_path: Path, server: JudgeServer, status: int, error: dict[str, object], expected: str
) -> None:
    server.refuses = lambda body: (status, {"error": error})
    judge, _ = judge_at(server, tmp_path, concurrency=2)
    with pytest.raises(SaebenchError, match=expected):
        judge.ask([question(n) for n in range(50)])
    assert server.asked.total() <= 4


def interrupted(judge_services: Callable[[Callable[[int, int], None]], JudgeServices], server: JudgeServer) -> None:
    def progress(done: int, total: int) -> None:
        if done == 20:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        LOADER.make(options_for(server), judge_services(progress)).ask([question(n) for n in range(100)])


@pytest.mark.parametrize("in_a_loop", [False, True])
def test_an_interruption_leaves_everything_accounted_for(tmp_path: Path, server: JudgeServer, in_a_loop: bool) -> None:
    purse = Purse(1.0)
    cache = AnswerCache(tmp_path / "answers.sqlite")

    def services(progress: Callable[[int, int], None]) -> JudgeServices:
        return JudgeServices(cache, purse, progress, print)

    async def within() -> None:
        interrupted(services, server)

    if in_a_loop:
        asyncio.run(within())
    else:
        interrupted(services, server)
    assert server.bill <= purse.spent * (1 + 1e-9)
    answers = judge_at(server, tmp_path)[0].ask([question(n) for n in range(100)])
    assert sum(a.cached for a in answers) >= 20
    assert sum(n - 1 for n in server.asked.values()) <= 8


def test_it_works_where_an_event_loop_is_running(tmp_path: Path, server: JudgeServer) -> None:
    judge, _ = judge_at(server, tmp_path)

    async def notebook() -> list[Answer]:
        return list(judge.ask([question(n) for n in range(10)]))

    answers = asyncio.run(notebook())
    assert [a.choice for a in answers] == [right(f"question {n}") for n in range(10)]
    assert judge.ask([question(99)])[0].choice == right("question 99")
