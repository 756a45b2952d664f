"""Size of an explorer's folder, and time until its pages stand in headless Chromium: from opening to the heading."""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parents[1]))

from browser import opened
from explorer_samples import large

from saebench_meta.explorer.folder import folder_bytes, write_folder

D_SAE, N_METAS, K, SHOWN = 50_000, 2304, 4, 300
PAGES = {"start": "", "latent 7": "#latent/7", "meta-latent 9": "#meta/9", "search token12": "#search/token12"}


def main() -> None:
    table = Table("explained latents", "folder, MB", *(f"{name}, s" for name in PAGES))
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as scratch:
        for explained in (0, D_SAE):
            page = write_folder(
                Path(scratch) / str(explained), large(D_SAE, N_METAS, k=K, explained=explained, shown=SHOWN)
            )
            times = [f"{_seconds(page, fragment, Path(scratch)):.2f}" for fragment in PAGES.values()]
            table.add_row(f"{explained:,}", f"{folder_bytes(page.parent) / 1e6:.1f}", *times)
    Console().print(f"{D_SAE:,} latents, {N_METAS:,} meta-latents, {K} a latent, passages of {SHOWN}", table)


def _seconds(page: Path, fragment: str, scratch: Path) -> float:
    """Until the page has its heading and the next frame is due, each time in a new browser."""
    with opened(Path(tempfile.mkdtemp(dir=scratch))) as tab:
        started = time.perf_counter()
        tab.open(page, fragment)
        tab.wait("!!document.querySelector('main h1')")
        tab.value("new Promise((resolve) => requestAnimationFrame(() => setTimeout(resolve)))")
        return time.perf_counter() - started


if __name__ == "__main__":
    main()
