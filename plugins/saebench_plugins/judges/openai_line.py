"""The line to a server: one attempt at a time is let through, within the rate, the waits asked for and the purse.

The official client carries each attempt. Its own retries are off: an attempt that may be billed must first be taken out
of the purse and wait its turn in the rate, and the client offers no place for either between two of its attempts.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from saebench_meta.errors import SaebenchError
from saebench_meta.purse import OverBudgetError
from saebench_plugins.judges.openai_dialect import most_tokens
from saebench_plugins.judges.openai_reply import Reply, read_reply
from saebench_plugins.judges.openai_settings import client_options
from saebench_plugins.judges.openai_trouble import LONGEST_ASKED_WAIT, Trouble, pause, trouble_of

if TYPE_CHECKING:
    from aiolimiter import AsyncLimiter
    from openai import AsyncOpenAI

    from saebench_meta.purse import Hold, Purse
    from saebench_plugins.judges.openai_settings import Settings

PURSE_POLL_SECONDS = 0.05
LONG_WAIT = 10.0
"""Seconds of waiting that the user is told of."""


@dataclass
class Tally:
    """What the attempts at one request have come to: tokens as far as the server counted them, and US dollars.

    An attempt whose cost nobody knows counts as the most that it can have cost.
    """

    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    cost: float = 0.0
    model: str | None = None

    def add(self, reply: Reply) -> None:
        self.model = reply.model or self.model
        if reply.prompt_tokens is not None:
            self.prompt_tokens = (self.prompt_tokens or 0) + reply.prompt_tokens
        if reply.completion_tokens is not None:
            self.completion_tokens = (self.completion_tokens or 0) + reply.completion_tokens


class Line:
    """A server, as one judge asks it.

    Attributes:
        failure: why nothing more is sent; None as long as all is well.
    """

    def __init__(self, settings: Settings, key: str, purse: Purse, warn: Callable[[str], None]) -> None:
        self.failure: SaebenchError | None = None
        self._settings, self._key, self._purse, self._warn = settings, key, purse, warn
        self._price = settings.price
        self._resume_at = 0.0
        self._client: AsyncOpenAI | None = None
        self._limiter: AsyncLimiter | None = None

    @asynccontextmanager
    async def open(self) -> AsyncIterator[None]:
        """Connections for the running event loop."""
        import openai
        from aiolimiter import AsyncLimiter

        self.failure = None
        between = 60.0 / self._settings.requests_per_minute if self._settings.requests_per_minute else 0.0
        self._limiter = AsyncLimiter(1, between) if between else None
        http = openai.DefaultAsyncHttpxClient(trust_env=not self._settings.local, follow_redirects=False)
        async with openai.AsyncOpenAI(**client_options(self._settings, self._key), http_client=http) as self._client:
            yield
        self._resume_at = max(self._resume_at, time.monotonic() + between)

    async def attempt(self, body: dict[str, Any], tally: Tally) -> Reply | Trouble:
        """Send a request once, when it is its turn.

        Args:
            tally: counts what the attempt has come to.

        Raises:
            SaebenchError: nothing more is sent.
        """
        worst = 0.0 if self._price is None else self._price.of(*most_tokens(body))
        hold = await self._may_send(worst)
        try:
            reply = read_reply(await self._send(body))
        except Exception as e:
            trouble = trouble_of(e)
            tally.cost += _end(hold, worst, 0.0 if trouble.free else None)
            return trouble
        except BaseException:  # interrupted: the server may go on, and bill it
            hold.settle(None)
            raise
        tally.add(reply)
        tally.cost += _end(hold, worst, self._cost(reply))
        return reply

    async def _send(self, body: dict[str, Any]) -> object:
        assert self._client is not None
        async with asyncio.timeout(self._settings.timeout):  # the whole of it: a server may also send drop by drop
            return await self._client.post("/chat/completions", cast_to=object, body=body)

    def _cost(self, reply: Reply) -> float | None:
        if self._price is None:
            return 0.0
        if reply.prompt_tokens is None or reply.completion_tokens is None:
            return None
        return self._price.of(reply.prompt_tokens, reply.completion_tokens)

    async def _may_send(self, worst: float) -> Hold:
        """Wait until an attempt may start, and take the most it can cost out of the purse."""
        while True:
            await self._turn()
            try:
                return self._purse.reserve(worst)
            except OverBudgetError as e:
                if not e.later:
                    raise
            await asyncio.sleep(PURSE_POLL_SECONDS)

    async def _turn(self) -> None:
        while True:
            await self._resumed()
            if self._limiter is None:
                return
            await self._limiter.acquire()
            if self._resume_at <= time.monotonic():  # else all who got a turn while waiting would come at once
                return

    async def _resumed(self) -> None:
        while (wait := self._resume_at - time.monotonic()) > 0 and self.failure is None:
            await asyncio.sleep(min(wait, 1.0))
        if self.failure is not None:
            raise self.failure

    async def wait(self, trouble: Trouble, attempt: int) -> None:
        """Wait after an attempt, numbered from 0; where the server says how long, everything waits.

        Raises:
            SaebenchError: the server asks to wait for longer than a run should.
        """
        asked = trouble.wait or 0.0
        if asked > LONGEST_ASKED_WAIT:
            raise SaebenchError(
                f"judge openai: {self._settings.place} asks to wait for {asked:,.0f} s; every answer so far is "
                "kept: type the same command again then"
            )
        if asked > LONG_WAIT:
            self._warn(f"judge openai: {self._settings.place} asks to wait; -J requests_per_minute= keeps to a rate")
        self._resume_at = max(self._resume_at, time.monotonic() + asked)
        await asyncio.sleep(pause(attempt))


def _end(hold: Hold, worst: float, actual: float | None) -> float:
    """Settle a hold; what was spent of it."""
    hold.settle(actual)
    return worst if actual is None else actual
