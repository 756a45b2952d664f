"""Numbers as short texts for the pages: rounded to what can be read, then base-64 VLQ digits as in source maps.

Each number is written in groups of five bits, least significant first, a sixth bit saying that more follow; the lowest
bit of a number is its sign. Five thousand rows stay readable by a browser that way, without a compressor whose bytes
depend on its version.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from jaxtyping import Float, Int

ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
BITS = 5
GROUPS = 12
"""Groups of a number at most, enough for 2^59."""
SIGNIFICANT = 4
"""Digits of a number without an interval."""
OF_INTERVAL = 2
"""Digits of an interval's half-width."""
MAX_DIGITS = 12
MAX_PLACES = 307


def vlq(numbers: Sequence[int] | Int[np.ndarray, " n"]) -> str:
    """Whole numbers, each less than 2^58 in size, one after the other."""
    import numpy as np

    n = np.asarray(numbers, dtype=np.int64)
    z = (np.abs(n) << 1) | (n < 0)
    shifted = z[:, None] >> (BITS * np.arange(GROUPS))
    follows = (shifted[:, 1:] > 0) << BITS
    groups = shifted & ((1 << BITS) - 1)
    groups[:, :-1] |= follows
    kept = np.concatenate([np.ones((len(n), 1), dtype=bool), follows > 0], axis=1)
    letters: bytes = np.frombuffer(ALPHABET.encode(), dtype=np.uint8)[groups[kept]].tobytes()
    return letters.decode()


def one_each(codes: Sequence[int]) -> str:
    """Numbers from 0 to 63, one character each."""
    return "".join(ALPHABET[code] for code in codes)


def coded(values: Sequence[Hashable]) -> dict[str, Any]:
    """Values that recur: `of` lists each once, in the order of first appearance; `at` is where each is in it.

    `at` is empty where all are the same.
    """
    of = {value: i for i, value in enumerate(dict.fromkeys(values))}
    return {"of": list(of), "at": vlq([of[value] for value in values]) if len(of) > 1 else ""}


def estimates(triples: Sequence[tuple[float, float | None, float | None]]) -> str:
    """Values with their intervals, as `decimals, value[, value − low, high − value]` in units of the last decimal.

    With an interval, two digits of its half-width are kept; without, four significant digits, and whole numbers whole.

    Args:
        triples: value, low, high; the latter two None where there is no interval.

    Raises:
        ValueError: a number is not finite.
    """
    import numpy as np

    table = np.array([(v, *((v, v) if low is None else (low, high))) for v, low, high in triples], dtype=np.float64)
    table = table.reshape(-1, 3)
    if not np.isfinite(table).all():
        raise ValueError("a number on the leaderboard is not finite")
    decimals = _decimals(table)
    rounded = np.rint(table * 10.0 ** decimals[:, None]).astype(np.int64)
    value, low, high = rounded.T
    columns = np.stack([decimals, value, value - low, high - value], axis=1)
    kept = np.ones(columns.shape, dtype=bool)
    kept[:, 2:] = np.array([low is not None for _, low, _ in triples], dtype=bool).reshape(-1, 1)
    return vlq(columns[kept])


def _decimals(table: Float[np.ndarray, "n 3"]) -> Int[np.ndarray, " n"]:
    """Decimals that each value and its interval need."""
    import numpy as np

    value, half = table[:, 0], (table[:, 2] - table[:, 1]) / 2
    with np.errstate(divide="ignore", over="ignore"):
        size = np.floor(np.log10(np.abs(table).max(axis=1, initial=0.0)))
        plain = np.where((value == np.rint(value)) & (size < MAX_DIGITS), 0, SIGNIFICANT - 1 - size)
        wanted = np.where(half > 0, OF_INTERVAL - 1 - np.floor(np.log10(half)), plain)
    wanted = np.minimum(np.where(np.isfinite(wanted), wanted, 0), MAX_DIGITS - 1 - np.where(np.isfinite(size), size, 0))
    clipped: Int[np.ndarray, " n"] = np.clip(wanted, -MAX_PLACES, MAX_PLACES).astype(np.int64)
    return clipped


def short(value: float | None) -> float | None:
    """A number with the digits a reader can use."""
    return None if value is None else float(f"{value:.{SIGNIFICANT}g}")
