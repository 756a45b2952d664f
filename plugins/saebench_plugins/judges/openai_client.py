"""The judge `openai`: requests side by side, each asked until it is answered or cannot be."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from saebench_meta.errors import SaebenchError
from saebench_meta.judge_cache import answer_key
from saebench_meta.judging import Answer, JudgeServices, Request
from saebench_plugins.judges.openai_dialect import (
    REFUSABLE,
    Dialect,
    body_of,
    first_dialect,
    is_too_long,
    without_refused,
)
from saebench_plugins.judges.openai_line import Line, Tally
from saebench_plugins.judges.openai_parse import choice_of, without_thoughts
from saebench_plugins.judges.openai_reply import Reply
from saebench_plugins.judges.openai_settings import Settings, redact, without_key
from saebench_plugins.judges.openai_trouble import Trouble

REMINDERS = 2
"""How often a model is asked again that answered with nothing, or with nothing that can be read."""
UNREADABLE = ("empty", "malformed")
GIVE_UP_AFTER = 20
"""Requests in a row that the server leaves unanswered, after which the run ends: it is down, or takes none of them."""
KEPT = "every answer so far is kept: type the same command again to go on"


@dataclass
class Round:
    """The requests of one call, shared by those who work on them."""

    requests: Sequence[Request]
    keys: Sequence[str]
    answers: list[Answer | None]
    left: Iterator[int] = field(default_factory=lambda: iter(()))
    done: int = 0


class OpenAIJudge:
    """Asks a server that speaks the protocol of chat completions; implements `saebench_meta.judging.Judge`."""

    def __init__(self, settings: Settings, services: JudgeServices) -> None:
        self._settings, self._services, self._key = settings, services, settings.key()
        if services.purse.limit is not None and settings.price is None:
            raise SaebenchError(
                f"--max-cost: what {settings.model} costs at {settings.place} is not known; "
                "give -J price_in= and -J price_out=, in US dollars per million tokens"
            )
        self._line = Line(settings, self._key, services.purse, self._tell)
        self._dialect = self._first = first_dialect(settings)
        self._sure = False
        self._in_a_row = 0
        self._told: set[str] = set()

    # -- many requests

    def ask(self, requests: Sequence[Request]) -> list[Answer]:
        """One answer a request, in order; also from within a running event loop, as in a notebook.

        Raises:
            SaebenchError: the key is refused, the purse is empty, or the server does not answer any more. What was
                answered before is kept.
        """
        keys = [self._cache_key(request) for request in requests]
        answers = [self._services.cache.get(key) for key in keys]
        todo = [i for i, answer in enumerate(answers) if answer is None]
        for answer in answers:
            self._tell_left_out(answer.left_out if answer else ())
        round_ = Round(requests, keys, answers, iter(todo), len(requests) - len(todo))
        self._services.progress(round_.done, len(requests))
        if todo:
            _run(self._ask_all(round_, min(self._settings.concurrency, len(todo))), self._stop)
            if self._line.failure is not None:
                raise self._line.failure
        return [answer for answer in answers if answer is not None]

    def _cache_key(self, request: Request) -> str:
        """A hash of what the server is asked at first: whatever of it is refused, the question is the same."""
        return answer_key(
            {
                "provider": "openai",
                "base_url": self._settings.base_url,
                "model": self._settings.model,
                "structured": self._settings.structured,
                "body": body_of(request, self._settings, self._first),
                "options": list(request.options),
                "sample": request.sample,
            }
        )

    async def _ask_all(self, round_: Round, workers: int) -> None:
        async with self._line.open(), asyncio.TaskGroup() as group:
            for _ in range(workers):
                group.create_task(self._work(round_))

    async def _work(self, round_: Round) -> None:
        try:
            for i in round_.left:
                answer = await self._answer(round_.requests[i])
                self._services.cache.put(round_.keys[i], answer)
                round_.answers[i] = answer
                round_.done += 1
                self._services.progress(round_.done, len(round_.requests))
        except SaebenchError as e:  # the others end what they have begun, since it may be paid for
            self._line.failure = self._line.failure or e

    def _stop(self) -> None:
        self._line.failure = SaebenchError("interrupted")

    # -- one request

    async def _answer(self, request: Request) -> Answer:
        """Ask until there is an answer, or there will be none."""
        tally, troubles, reminders = Tally(), 0, 0
        while True:
            dialect = self._dialect
            body = body_of(request, self._settings, dialect, reminder=reminders > 0)
            outcome = await self._line.attempt(body, tally)
            if isinstance(outcome, Reply):
                self._sure, self._in_a_row = True, 0
                answer = self._read(request, outcome, tally, dialect)
                if answer.problem not in UNREADABLE or reminders == REMINDERS:
                    return answer
                reminders += 1
            elif outcome.is_about_the_form and self._adapted(dialect, outcome):
                continue
            elif outcome.again and troubles < self._settings.retries and not self._is_final(outcome):
                await self._line.wait(outcome, troubles)
                troubles += 1
            else:
                return self._unanswered(outcome, tally, dialect)

    def _read(self, request: Request, reply: Reply, tally: Tally, dialect: Dialect) -> Answer:
        text = without_key(reply.text, self._key)
        if reply.refused:
            return self._made(tally, dialect, text=text or None, problem="refusal")
        if not without_thoughts(text):
            return self._made(tally, dialect, problem="empty")
        if not request.options:
            return self._made(tally, dialect, text=without_thoughts(text))
        choice = None if reply.finish == "length" else choice_of(text, request.options)
        return self._made(tally, dialect, text=text, choice=choice, problem="malformed" if choice is None else None)

    def _made(self, tally: Tally, dialect: Dialect, **what: Any) -> Answer:
        return Answer(
            **what,
            model=None if tally.model is None else redact(tally.model, self._key),
            prompt_tokens=tally.prompt_tokens,
            completion_tokens=tally.completion_tokens,
            cost=None if self._settings.price is None else tally.cost,
            left_out=dialect.left_out,
        )

    # -- trouble

    def _adapted(self, dialect: Dialect, trouble: Trouble) -> bool:
        """Whether the request can be put otherwise: another one has found out how, or what is refused tells it."""
        if self._dialect != dialect:
            return True
        error = dict(trouble.error or {})
        adapted = None if is_too_long(error) else without_refused(dialect, self._settings, error, self._sure)
        if adapted is None:
            return False
        self._dialect = adapted
        self._tell_left_out(adapted.left_out)
        return True

    def _is_final(self, trouble: Trouble) -> bool:
        return bool(trouble.error) and "quota" in str((trouble.error or {}).get("code"))

    def _unanswered(self, trouble: Trouble, tally: Tally, dialect: Dialect) -> Answer:
        """The answer that says why there is none.

        Raises:
            SaebenchError: there will be none for other requests either.
        """
        where, said = self._settings.place, redact(trouble.said, self._key)
        if trouble.status == 401:
            raise SaebenchError(f"judge openai: {where} refuses the key in {self._settings.key_env}: {said}; {KEPT}")
        if trouble.status == 402 or self._is_final(trouble):
            raise SaebenchError(f"judge openai: {where} wants to be paid before it answers ({said}); {KEPT}")
        if trouble.problem == "unreachable":
            raise SaebenchError(f"judge openai: {where} cannot be reached any more; {KEPT}")
        if trouble.problem == "refusal":
            return self._made(tally, dialect, problem="refusal")
        if is_too_long(dict(trouble.error or {"code": "", "message": ""})):
            return self._made(tally, dialect, problem="too long")
        self._in_a_row += 1
        if self._in_a_row >= GIVE_UP_AFTER:
            raise SaebenchError(
                f"judge openai: {where} has left {self._in_a_row} requests in a row unanswered (the last: "
                f"{trouble.problem}, {said}); {KEPT}, with a longer -J timeout= or lower -J concurrency= if it is slow"
            )
        return self._made(tally, dialect, problem=trouble.problem)

    # -- telling

    def _tell(self, message: str) -> None:
        if message not in self._told:
            self._told.add(message)
            self._services.warn(redact(message, self._key))

    def _tell_left_out(self, left_out: tuple[str, ...]) -> None:
        for name in left_out:
            if name in REFUSABLE:
                self._tell(
                    f"judge openai: {self._settings.model} takes no {name}; it is left out, and answers may differ "
                    "from run to run"
                )


def _run(work: Coroutine[Any, Any, None], stop: Callable[[], None]) -> None:
    """Run to the end, in a thread of its own where an event loop is running already.

    Args:
        stop: called when the caller is interrupted, so that the thread does not begin anything more.
    """
    if not _in_a_loop():
        asyncio.run(work)
        return
    from concurrent.futures import ThreadPoolExecutor
    from contextvars import copy_context

    with ThreadPoolExecutor(max_workers=1) as pool:
        done = pool.submit(copy_context().run, asyncio.run, work)
        try:
            done.result()
        except BaseException:
            stop()
            raise


def _in_a_loop() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True
