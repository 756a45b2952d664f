"""What a run may spend on judges: the worst case of every paid attempt is taken out before the attempt is made.

So the sum of what was spent and of what is out can never be more than the limit, however many attempts are under way,
as long as no attempt costs more than its worst case.
"""

from __future__ import annotations

import threading

from saebench_meta.errors import SaebenchError


class OverBudgetError(SaebenchError):
    """An attempt does not fit into what is left.

    Attributes:
        later: whether it may fit once attempts that are under way turn out cheaper than their worst case.
    """

    def __init__(self, message: str, later: bool) -> None:
        super().__init__(message)
        self.later = later


class Purse:
    """US dollars that may be spent; None for no limit. Safe between threads, and never waits, so also in asyncio."""

    def __init__(self, limit: float | None = None) -> None:
        if limit is not None and not limit >= 0:
            raise SaebenchError(f"--max-cost {limit} is no amount of US dollars; give 0 or more")
        self.limit = limit
        self._spent = 0.0
        self._held: dict[Hold, float] = {}
        self._lock = threading.Lock()

    @property
    def spent(self) -> float:
        """What finished attempts cost; one whose cost nobody knows counts as its worst case."""
        with self._lock:
            return self._spent

    def reserve(self, worst: float) -> Hold:
        """Take the worst case of one attempt out.

        Args:
            worst: US dollars that the attempt can cost at most.

        Raises:
            OverBudgetError: it is more than what is left.
        """
        with self._lock:
            if self.limit is not None and self._spent + sum(self._held.values()) + worst > self.limit:
                raise OverBudgetError(
                    self._too_much(worst), later=self._spent + worst <= self.limit and bool(self._held)
                )
            hold = Hold(self)
            self._held[hold] = worst
            return hold

    def _too_much(self, worst: float) -> str:
        return (
            f"the next request to the judge may cost up to ${worst:.6f}, and ${self._spent:.6f} of --max-cost "
            f"{self.limit:g} is spent; every answer so far is kept: the same command again goes on from there"
        )

    def _end(self, hold: Hold, actual: float | None) -> None:
        """Put a hold back and count what it cost; a second end of the same hold does nothing."""
        with self._lock:
            if (worst := self._held.pop(hold, None)) is not None:
                self._spent += worst if actual is None else actual


class Hold:
    """The worst case of one attempt, out of the purse until the attempt has ended."""

    def __init__(self, purse: Purse) -> None:
        self._purse = purse

    def settle(self, actual: float | None) -> None:
        """The attempt cost this much; None: nobody knows, so that the worst case is spent."""
        self._purse._end(self, actual)

    def release(self) -> None:
        """The attempt cost nothing."""
        self._purse._end(self, 0.0)
