"""Damage to files, seeded: what the tests of the loaders of foreign formats try on every format."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator


def fuzz_count(default: int) -> int:
    """How many mutations a format gets; `SAEBENCH_FUZZ` raises the number."""
    return max(default, int(os.environ.get("SAEBENCH_FUZZ", "0")))


def mutations(sound: bytes, count: int, *, seed: int, hot: range | None = None) -> Iterator[bytes]:
    """`count` damaged copies: bits flipped, bytes set, pieces cut, doubled or moved, the end cut off.

    Args:
        hot: where structure lies; every second mutation strikes there.
    """
    rng = random.Random(seed)
    for trial in range(count):
        raw = bytearray(sound)
        if trial % 10 == 9:
            yield bytes(raw[: rng.randrange(len(raw))])
            continue
        for _ in range(rng.choice([1, 1, 2, 5])):
            place = rng.choice(hot) if hot and trial % 2 else rng.randrange(len(raw))
            match rng.randrange(5):
                case 0 | 1:
                    raw[place % len(raw)] ^= 1 << rng.randrange(8)
                case 2:
                    raw[place % len(raw)] = rng.choice(b'\x00\xff{}[]",:-9eKMq')
                case 3:
                    del raw[place : place + rng.randrange(1, 9)]
                case 4:
                    raw[place:place] = raw[place // 2 : place // 2 + rng.randrange(1, 9)]
        yield bytes(raw)
