"""Which of several options that a judge finds equally good it names: as good as chance, and the same every time."""

from __future__ import annotations

from collections.abc import Sequence

from saebench_meta.judging import Request
from saebench_meta.seeds import derive


def pick(request: Request, tied: Sequence[int], about: str) -> int:
    """One of the tied options, by a hash of what they say and of what is asked about.

    Where an option stands does not matter, so that a tie never favours the first.

    Args:
        tied: indices into the request's options, at least one.
        about: what the options are compared with.
    """

    def drawn(i: int) -> int:
        twins_before = request.options[:i].count(request.options[i])
        return derive(request.sample, "tie", about, request.options[i], twins_before)

    return min(tied, key=drawn)
