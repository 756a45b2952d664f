"""What a server's reply holds, read with care: servers differ, and some leave parts out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Reply:
    """A chat completion.

    Attributes:
        text: what the model wrote; empty where it wrote nothing.
        finish: why it ended: `stop`, `length`, `content_filter`, …
        refused: whether the model, or the server for it, declined.
        model: the model that the server says it used.
        prompt_tokens, completion_tokens: as the server counts them; None where it does not.
    """

    text: str
    finish: str
    refused: bool
    model: str | None
    prompt_tokens: int | None
    completion_tokens: int | None


def read_reply(raw: object) -> Reply:
    """A reply from the decoded body.

    Raises:
        ValueError: it is no chat completion.
    """
    choices = raw.get("choices") if isinstance(raw, dict) else None
    if not isinstance(raw, dict) or not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
        raise ValueError("no chat completion")
    message = choices[0].get("message")
    if not isinstance(message, dict):
        raise ValueError("no message in the chat completion")
    finish = str(choices[0].get("finish_reason") or "")
    model, usage = raw.get("model"), raw.get("usage")
    return Reply(
        text=_text(message.get("content")),
        finish=finish,
        refused=bool(message.get("refusal")) or finish == "content_filter",
        model=model if isinstance(model, str) and model else None,
        prompt_tokens=_count(usage, "prompt_tokens"),
        completion_tokens=_count(usage, "completion_tokens"),
    )


def _text(content: Any) -> str:
    """The text of a message: a string, or parts of which some are text."""
    if isinstance(content, list):
        return "".join(_text(part.get("text")) for part in content if isinstance(part, dict))
    return content if isinstance(content, str) else ""


def _count(usage: Any, name: str) -> int | None:
    found = usage.get(name) if isinstance(usage, dict) else None
    return found if isinstance(found, int) and not isinstance(found, bool) and found >= 0 else None
