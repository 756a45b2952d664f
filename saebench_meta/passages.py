"""Tokens of a sample as text, with what stands around them."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jaxtyping import Int

    from saebench_meta.context import Context

BEFORE, AFTER = 12, 4
"""Tokens of context shown."""


def quoting(ctx: Context) -> Callable[[int], dict[str, Any]]:
    """Number of a token in the order of the activations -> its document, and its surroundings as text."""
    sample, tokenizer = ctx.sample(), ctx.lm().tokenizer
    rows, positions = sample.evaluated.nonzero(as_tuple=True)

    def decode(ids: Int[Any, " tokens"]) -> str:
        return str(tokenizer.decode(ids.tolist())) if tokenizer is not None else " ".join(map(str, ids.tolist()))

    def quote(token: int) -> dict[str, Any]:
        row, at = int(rows[token]), int(positions[token])
        document = int(sample.document[row, at])
        same = (sample.document[row] == document).nonzero().squeeze(1)
        first, last = max(int(same[0]), at - BEFORE), min(int(same[-1]), at + AFTER)
        ids = sample.tokens[row]
        parts = (ids[first:at], ids[at : at + 1], ids[at + 1 : last + 1])
        before, here, after = (decode(part) for part in parts)
        return {"document": sample.document_ids[document], "text": f"{before}«{here}»{after}"}

    return quote
