"""Time of 20 bootstrap intervals on the same documents, as a task has: ours against `scipy.stats.bootstrap`."""

from __future__ import annotations

import time

import numpy as np
import scipy.stats
from rich.console import Console
from rich.table import Table

from saebench_meta.stats import RESAMPLES, from_documents

INTERVALS = 20


def theirs(a: np.ndarray, b: np.ndarray) -> None:
    scipy.stats.bootstrap(
        (a, b),
        lambda x, y, axis=-1: 1 - x.sum(axis) / y.sum(axis),
        paired=True,
        vectorized=True,
        n_resamples=RESAMPLES,
        batch=max(1, 2_000_000 // len(a)),
        method="BCa",
        rng=np.random.default_rng(0),
    )


def main() -> None:
    table = Table("documents", "ours, ms", "scipy, ms", "ratio")
    for n in (200, 1000, 4000):
        rng = np.random.default_rng(0)
        b = rng.integers(20, 200, n).astype(float)
        columns = {"document": np.arange(n), "a": rng.gamma(2, b), "b": b}
        runs = (
            lambda columns=columns: from_documents("1 - a / b", columns, np.random.default_rng(0)),
            lambda columns=columns: theirs(columns["a"], columns["b"]),
        )
        times = [sum(_seconds(run) for _ in range(INTERVALS)) * 1e3 for run in runs]
        table.add_row(str(n), f"{times[0]:.1f}", f"{times[1]:.1f}", f"{times[1] / times[0]:.1f}")
    Console().print(table)


def _seconds(run: object) -> float:
    started = time.perf_counter()
    run()  # type: ignore[operator]
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
