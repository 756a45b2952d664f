"""What went wrong with an attempt, whether it may have cost something, and how long to wait before the next."""

from __future__ import annotations

import random
import time
from collections.abc import Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any

from saebench_plugins.judges.openai_dialect import REFUSALS, read_error

if TYPE_CHECKING:
    from openai import APIStatusError

FIRST_WAIT, LONGEST_WAIT = 0.5, 8.0
"""Seconds between attempts where the server names none: doubled each time, up to a quarter less at random."""
LONGEST_ASKED_WAIT = 600.0
"""Seconds a server may ask to wait; where it asks for more, the run ends and says so."""
FREE = (409, 429, 500, 503)
"""Statuses of requests that a server has not worked on, and of which none is billed."""
AGAIN = (408, 409, 425, 429)
NEVER_SENT = ("ConnectError", "ConnectTimeout")
"""What the transport raises when it has not reached the server."""
DECLINED = ("content_filter", "content_policy_violation")


@dataclass(frozen=True)
class Trouble:
    """Why an attempt has brought no reply.

    Attributes:
        problem: for the answer: `timeout`, `rate limited`, `server error`, `unreachable`, `unreadable`, `rejected`,
            `refusal`.
        again: whether the same may be asked again.
        free: whether it surely cost nothing.
        wait: seconds that the server asks to wait; None where it names none.
        status: of the response, 0 where there is none.
        error: what the server says, as `read_error` has it.
    """

    problem: str
    again: bool = True
    free: bool = False
    wait: float | None = None
    status: int = 0
    error: Mapping[str, Any] | None = None

    @property
    def is_about_the_form(self) -> bool:
        """Whether the server may take the same question in another form."""
        return self.status in REFUSALS and self.problem == "rejected"

    @property
    def said(self) -> str:
        return str(self.error["message"]) if self.error else self.problem


def trouble_of(error: Exception) -> Trouble:
    """What an exception of the client means.

    Raises:
        Exception: the error itself, where it is none of a server or of the way to it.
    """
    import openai

    if isinstance(error, openai.APITimeoutError | TimeoutError):
        return Trouble("unreachable", free=True) if _never_sent(error) else Trouble("timeout")
    if isinstance(error, openai.APIStatusError):
        return _of_status(error)
    if isinstance(error, openai.APIConnectionError):  # a connection that broke may have carried a paid answer
        return Trouble("unreachable", free=True) if _never_sent(error) else Trouble("unreadable")
    if isinstance(error, openai.APIResponseValidationError | ValueError):
        return Trouble("unreadable")
    raise error


def _never_sent(error: Exception) -> bool:
    return type(error.__cause__).__name__ in NEVER_SENT


def _of_status(error: APIStatusError) -> Trouble:
    status, said = error.status_code, read_error(error.body, error.message)
    free = status in FREE or (400 <= status < 500 and status != 408)
    if said["code"] in DECLINED:
        return Trouble("refusal", again=False, free=True, status=status, error=said)
    if status in AGAIN or (status >= 500 and status not in REFUSALS):
        problem = {408: "timeout", 429: "rate limited"}.get(status, "server error")
        return Trouble(problem, True, free, retry_after(error.response.headers), status, said)
    return Trouble("rejected", again=False, free=free, status=status, error=said)


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds that a response asks to wait: `retry-after-ms`, or `retry-after` in seconds or as a date."""
    for name, unit in (("retry-after-ms", 1000.0), ("retry-after", 1.0)):
        try:
            seconds = float(headers.get(name, "")) / unit
        except ValueError:
            continue
        return seconds if 0 <= seconds < float("inf") else None
    try:
        return max(0.0, parsedate_to_datetime(headers.get("retry-after", "")).timestamp() - time.time())
    except (TypeError, ValueError, OverflowError):
        return None


def pause(attempt: int) -> float:
    """Seconds to wait after an attempt, counted from 0, where the server names none."""
    return float(min(LONGEST_WAIT, FIRST_WAIT * 2 ** min(attempt, 10)) * random.uniform(0.75, 1.0))
