"""SIGINT and SIGTERM between two steps, so that a checkpoint can be written before the process leaves."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, NoReturn

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupts:
    """Notes signals while it is entered; a second one takes effect at once.

    Attributes:
        asked: the signal that came, 0 before. Outside the main thread none ever does.
    """

    def __init__(self) -> None:
        self.asked = 0
        self._at_once = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Interrupts:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._note) for number in SIGNALS}
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)

    def _note(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002
        again, self.asked = bool(self.asked), number
        if again or self._at_once:
            leave(number)

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """Let a signal end the block, as `leave` does: for long work that may be cut short anywhere."""
        self._at_once = True
        try:
            if self.asked:
                leave(self.asked)
            yield
        finally:
            self._at_once = False


def leave(number: int) -> NoReturn:
    """End as the signal would have: `KeyboardInterrupt`, or an exit status of 128 and its number."""
    if number == signal.SIGINT:
        raise KeyboardInterrupt
    raise SystemExit(128 + number)
