"""How a request is put to a server, and what is put otherwise once the server has refused some of it.

Servers differ in what they take: a JSON schema or none, `max_tokens` or its successor, a temperature and a seed or, as
with models that reason, neither. What is refused is left out of all that follows.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from saebench_plugins.judges.openai_parse import FIELD

if TYPE_CHECKING:
    from saebench_meta.judging import Request
    from saebench_plugins.judges.openai_settings import Settings

LIMITS = ("max_tokens", "max_completion_tokens")
FALLBACK = {"json_schema": "json_object", "json_object": "none"}
REFUSABLE = ("temperature", "seed")
REFUSALS = (400, 404, 422, 501)
"""Statuses with which servers refuse a part of a request."""
OVERHEAD_TOKENS = 256
"""What a server may add to a prompt at most: the marks between messages and its words for a schema."""

_FORM = re.compile(r"response_format|json_schema|json_object|structured|grammar|schema|guided", re.IGNORECASE)
_TOO_LONG = re.compile(r"context.{0,12}(length|size|window)|maximum context|too (long|many tokens)", re.IGNORECASE)


@dataclass(frozen=True)
class Dialect:
    """What a server is asked for.

    Attributes:
        form: how an answer's form is prescribed: `json_schema`, `json_object` or `none`.
        limit: the name of the bound on an answer's tokens.
        switched: whether that name is the second that was tried.
        left_out: what the server has refused.
    """

    form: str
    limit: str
    switched: bool = False
    left_out: tuple[str, ...] = ()


def first_dialect(settings: Settings) -> Dialect:
    """What a server is asked for at first."""
    form = "json_schema" if settings.structured == "auto" else settings.structured
    return Dialect(form, LIMITS[1] if settings.official else LIMITS[0])


def body_of(request: Request, settings: Settings, dialect: Dialect, reminder: bool = False) -> dict[str, Any]:
    """The body of a request for a chat completion; the reminder says once more what an answer looks like."""
    user = request.user + _wanted(request, dialect, reminder)
    messages = [{"role": "system", "content": request.system}] if request.system else []
    body: dict[str, Any] = {
        "model": settings.model,
        "messages": [*messages, {"role": "user", "content": user}],
        dialect.limit: request.max_tokens + settings.reasoning_tokens,
        "temperature": settings.temperature,
        "seed": settings.seed + request.sample,
    }
    if settings.reasoning_effort:
        body["reasoning_effort"] = settings.reasoning_effort
    if request.options and (form := _response_format(len(request.options), dialect)):
        body["response_format"] = form
    return {name: value for name, value in body.items() if name not in dialect.left_out}


def _wanted(request: Request, dialect: Dialect, reminder: bool) -> str:
    n = len(request.options)
    if n and dialect.form == "json_object":  # servers insist that the prompt speaks of JSON
        return f'\n\nAnswer with JSON: {{"{FIELD}": the number of one option, from 1 to {n}}}'
    if not reminder:
        return ""
    if n:
        return f"\n\nAnswer with the number of one option, from 1 to {n}, and nothing else."
    return "\n\nAnswer in plain words; an empty answer does not count."


def _response_format(n: int, dialect: Dialect) -> dict[str, Any] | None:
    if dialect.form == "json_object":
        return {"type": "json_object"}
    if dialect.form == "none":
        return None
    schema = {
        "type": "object",
        "properties": {FIELD: {"type": "integer", "enum": list(range(1, n + 1))}},
        "required": [FIELD],
        "additionalProperties": False,
    }
    return {"type": "json_schema", "json_schema": {"name": "choice", "strict": True, "schema": schema}}


def most_tokens(body: dict[str, Any]) -> tuple[int, int]:
    """The most prompt and completion tokens that a body can come to: a token is at least one byte."""
    import json

    asked = [body["messages"], body.get("response_format", "")]
    prompt = len(json.dumps(asked, ensure_ascii=False).encode())
    return prompt + OVERHEAD_TOKENS, next(body[name] for name in LIMITS if name in body)


def without_refused(dialect: Dialect, settings: Settings, error: dict[str, Any], sure: bool) -> Dialect | None:
    """What to ask for after a refusal; None where there is nothing left to leave out.

    Args:
        error: what the server said, as `read_error` has it.
        sure: whether the server has answered in this dialect before, so that a refusal which names no part of the
            request is about this request and no reason to ask the others otherwise.
    """
    named = error["param"] or error["message"]
    for name in REFUSABLE:
        if re.search(rf"\b{name}\b", named) and name not in dialect.left_out:
            return replace(dialect, left_out=(*dialect.left_out, name))
    if dialect.limit in named and not dialect.switched:
        other = LIMITS[1 - LIMITS.index(dialect.limit)]
        return replace(dialect, limit=other, switched=True)
    if settings.structured == "auto" and dialect.form in FALLBACK and (_FORM.search(named) or not sure):
        return replace(dialect, form=FALLBACK[dialect.form], left_out=(*dialect.left_out, dialect.form))
    return None


def read_error(body: object, message: str) -> dict[str, Any]:
    """`message`, `code` and `param` of what a server says of an error, in the forms that servers use."""
    found = body if isinstance(body, dict) else {}
    if isinstance(inner := found.get("error"), dict):
        found = inner
    param = found.get("param")
    if isinstance(detail := found.get("detail"), list):  # of servers that check with pydantic: where, and what
        param = " ".join(str(part) for item in detail if isinstance(item, dict) for part in item.get("loc", ()))
    said = found.get("message") or found.get("detail") or found.get("error") or message
    return {"message": str(said), "code": str(found.get("code") or ""), "param": str(param or "")}


def is_too_long(error: dict[str, Any]) -> bool:
    """Whether a refusal says that the prompt does not fit into the model's context."""
    return error["code"] == "context_length_exceeded" or bool(_TOO_LONG.search(error["message"]))
