"""Built-in judges that are free keep every rule for judges; each rule is broken by a judge made for it."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest

from saebench_meta.errors import SaebenchError
from saebench_meta.judging import Answer, JudgeLoader, Price, Request
from saebench_meta.testing import Check, attempt_all, battery, check_judge
from saebench_meta.testing.judges import CHECKS, judge_checks


def sound(request: Request) -> Answer:
    """The first option, or words."""
    return Answer(choice=0) if request.options else Answer(text="words")


class Each:
    """A judge that answers each request by itself."""

    def __init__(self, answer: Callable[[Request], Answer]) -> None:
        self.answer = answer

    def ask(self, requests: Sequence[Request]) -> list[Answer]:
        return [self.answer(request) for request in requests]


class Whole:
    """A judge that answers a list of requests as a whole."""

    def __init__(self, answers: Callable[[Sequence[Request]], list[Answer]]) -> None:
        self.answers = answers

    def ask(self, requests: Sequence[Request]) -> list[Answer]:
        return self.answers(requests)


def loader(judge: Any, **changes: Any) -> JudgeLoader:
    return JudgeLoader(lambda options, services: judge, **{"summary": "made", **changes})


COUNT = itertools.count()
SOUND = loader(Each(sound), options={"size": 1})
BROKEN = {
    "says what it is": replace(SOUND, options={"words": ["a", "list"]}),
    "its identity can be kept": replace(SOUND, options={"api_key": "s3cret"}),
    "check says what is missing": replace(SOUND, check=lambda options: 1 / 0),
    "every request is answered": loader(Each(lambda request: Answer(choice=len(request.options)))),
    "no request, no answer": loader(Whole(lambda requests: [sound(r) for r in requests] or [Answer(text="hello")])),
    "answers are in order": loader(
        Whole(lambda requests: [Answer(choice=0) if r.options else Answer(text=str(n)) for n, r in enumerate(requests)])
    ),
    "the same answers every time": loader(
        Each(lambda request: Answer(choice=0) if request.options else Answer(text=str(next(COUNT))))
    ),
}


def test_every_rule_has_a_judge_that_breaks_it() -> None:
    assert set(BROKEN) == set(CHECKS)


def test_a_sound_judge_keeps_every_rule() -> None:
    check_judge(SOUND)


@pytest.mark.parametrize("rule", BROKEN)
def test_a_broken_judge_breaks_its_rule(rule: str) -> None:
    checks = [check for check in judge_checks("mine", BROKEN[rule]) if check.title == rule]
    (outcome,) = attempt_all(checks)
    assert outcome.status == "fault" and outcome.reason


def never(options: Mapping[str, Any]) -> None:
    raise SaebenchError("give -J model=NAME")


@pytest.mark.parametrize(
    ("changes", "said"),
    [({"price": lambda options: Price(1, 1)}, "it may cost money"), ({"check": never}, "give -J model=NAME")],
)
def test_a_judge_that_costs_money_or_cannot_be_asked_is_not_asked(changes: dict[str, Any], said: str) -> None:
    def asked(requests: Sequence[Request]) -> list[Answer]:
        raise AssertionError

    checks = {check.title: check for check in judge_checks("mine", loader(Whole(asked), **changes))}
    (outcome,) = attempt_all([checks["every request is answered"]])
    assert outcome.status == "skip" and said in outcome.reason


@pytest.mark.parametrize("check", battery("saebench-meta", kinds=("judge",)), ids=str)
def test_a_built_in_judge_keeps(check: Check) -> None:
    check()
