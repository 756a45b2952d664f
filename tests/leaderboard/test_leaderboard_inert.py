"""Records with markup in their texts, validation skipped: a browser shows them as they are written and runs nothing."""

from __future__ import annotations

import re
from pathlib import Path

from browser import opened
from hostile import MARKER, MARKUP, unchecked_board
from test_leaderboard_browser import set_state, settle, visit

from saebench_meta.leaderboard import pages
from saebench_meta.leaderboard.markdown import table_md


def test_nothing_of_a_record_is_run(tmp_path: Path) -> None:
    board = unchecked_board()
    saes = [row for row in board.rows if row.kind == "sae"]
    assert len(saes) > 40 and any(row.name in MARKUP for row in saes)
    pages.write(board, tmp_path / "site")
    with opened(tmp_path / "profile") as tab:
        visit(tab, tmp_path / "site")
        for row in saes:
            set_state(tab, row=row.id, at=next(iter(row.cells)))
            settle(tab)
        for view in ("plot", "compare"):
            set_state(tab, view=view, row="", pick=[row.id for row in saes[:4]])
            settle(tab)
        assert tab.value(f"typeof window.{MARKER}") == "undefined"
        assert tab.value("document.querySelectorAll('body :is(script[src^=x], img, iframe, object)').length") == 0
        assert tab.errors == []


def test_nothing_of_it_is_markup_in_the_table() -> None:
    text = re.sub(r"`[^`\n]*`|\\<", "", table_md(unchecked_board(), "x"))  # code spans and escapes
    assert not any(f"<{tag}" in text for tag in ("script", "img", "svg", "iframe", "a "))
