"""A large leaderboard's site: time to write it, its size, and in headless Chromium the times to first view and sort.

A time in the browser ends with the next frame. Where cores are shared it is the machine that is measured: the load and
the processor time of the page's main thread are told beside it.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parents[1]))

import board_samples
from browser import Tab, opened

from saebench_meta.leaderboard import pages

ROWS, COLUMNS = 5000, 60
GOALS = {"written, s": 30.0, "size, MB": 10.0, "first view, s": 1.0, "sort, s": 0.2}
RUNS = 5
FRAME = "await new Promise((resolve) => requestAnimationFrame(() => setTimeout(resolve)))"
SORTS = [(f"task_0@1.metric_{i}", direction) for i in (0, 6, 12) for direction in ("desc", "asc")]


def main() -> None:
    board = board_samples.large(ROWS, COLUMNS)
    found: dict[str, tuple[list[float], list[float]]] = {name: ([], []) for name in GOALS}
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as scratch:
        folder = Path(scratch) / "site"
        started, used = time.perf_counter(), time.process_time()
        pages.write(board, folder)
        _add(found["written, s"], time.perf_counter() - started, time.process_time() - used)
        size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
        _add(found["size, MB"], size / 1e6)
        for _ in range(RUNS):
            with opened(Path(tempfile.mkdtemp(dir=scratch))) as tab:
                tab.look(1280, "light")
                tab.call("Performance.enable", timeDomain="threadTicks")
                _add(found["first view, s"], *_first_view(tab, folder / pages.PAGE))
                for metric, direction in SORTS:
                    _add(found["sort, s"], *_sort(tab, metric, direction))
    Console().print(f"{ROWS:,} rows, {COLUMNS} columns; load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
    Console().print(_table(found))


def _add(kept: tuple[list[float], list[float]], wall: float, processor: float | None = None) -> None:
    kept[0].append(wall)
    if processor is not None:
        kept[1].append(processor)


def _busy(tab: Tab) -> float:
    """Processor time of the page's main thread so far, in seconds."""
    metrics = {m["name"]: m["value"] for m in tab.call("Performance.getMetrics")["metrics"]}
    return float(metrics["TaskDuration"])


def _first_view(tab: Tab, page: Path) -> tuple[float, float]:
    """From opening until the table stands."""
    before, started = _busy(tab), time.perf_counter()
    tab.open(page)
    tab.wait("document.documentElement?.dataset.ready === 'yes'")
    tab.value(f"(async () => {{ {FRAME} }})()")
    return time.perf_counter() - started, _busy(tab) - before


def _sort(tab: Tab, metric: str, direction: str) -> tuple[float, float]:
    """From asking for an order until it is drawn."""
    before = _busy(tab)
    ask = f"state.set({{ sort: '{metric}', dir: '{direction}' }})"
    wall = tab.value(f"(async () => {{ const t = performance.now(); {ask}; {FRAME}; return performance.now() - t }})()")
    return wall / 1000, _busy(tab) - before


def _table(found: dict[str, tuple[list[float], list[float]]]) -> Table:
    table = Table("", "goal", "median", "worst", "processor, median")
    for name, (walls, processor) in found.items():
        middle = f"{sorted(processor)[len(processor) // 2]:.2f}" if processor else ""
        median = sorted(walls)[len(walls) // 2]
        table.add_row(name, f"{GOALS[name]:g}", f"{median:.2f}", f"{max(walls):.2f}", middle)
    return table


if __name__ == "__main__":
    main()
