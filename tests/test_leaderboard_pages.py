"""The leaderboard's site as files: the same bytes every time, numbers that lose nothing, texts that stay texts."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import board_samples
import pytest
from hypothesis import given
from hypothesis import strategies as st

from saebench_meta.errors import SaebenchError
from saebench_meta.leaderboard import page_data, pages
from saebench_meta.leaderboard.board import Board
from saebench_meta.leaderboard.packed import ALPHABET, coded, estimates, one_each, vlq

CHUNK = re.compile(r'board\.put\("([a-z/0-9]+)", (.*)\);\n', re.DOTALL)


def decoded(text: str) -> list[int]:
    """Base-64 VLQ, read by its definition."""
    numbers, bits, n = [], 0, 0
    for letter in text:
        digit = ALPHABET.index(letter)
        n |= (digit & 31) << bits
        bits += 5
        if digit < 32:
            numbers.append(-(n >> 1) if n & 1 else n >> 1)
            bits, n = 0, 0
    return numbers


def chunks(folder: Path) -> dict[str, Any]:
    found = {}
    for file in sorted((folder / "data").rglob("*.js")):
        match = CHUNK.fullmatch(file.read_text(encoding="utf-8"))
        assert match, file
        found[match[1]] = json.loads(match[2])
        assert file.relative_to(folder / "data").with_suffix("").as_posix() == match[1]
    return found


def part(found: dict[str, Any], kind: str, column: int) -> Any:
    """What the chunks hold of a column, where the index says it is."""
    chunk = found[f"{kind}/{found['board']['columns'][column]['within'][kind]}"]
    return chunk["values"][chunk["columns"].index(column)]


def files(folder: Path) -> dict[str, bytes]:
    return {str(f.relative_to(folder)): f.read_bytes() for f in sorted(folder.rglob("*")) if f.is_file()}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("leaderboard") / "site"
    pages.write(board_samples.realistic(), folder)
    return folder


# -- numbers


@pytest.mark.parametrize(("number", "text"), [(0, "A"), (1, "C"), (-1, "D"), (15, "e"), (16, "gB"), (-17, "jB")])
def test_whole_numbers_are_written_as_in_source_maps(number: int, text: str) -> None:
    assert vlq([number]) == text


@given(st.lists(st.integers(-(2**50), 2**50)))
def test_whole_numbers_come_back(numbers: list[int]) -> None:
    assert decoded(vlq(numbers)) == numbers


@pytest.mark.parametrize(
    ("triple", "numbers"),
    [
        ((0.89546, 0.88602, 0.90364), [4, 8955, 95, 81]),  # half-width 0.0088: two digits of it are four decimals
        ((5113.7, 4713.2, 5593.2), [-1, 511, 40, 48]),
        ((4.0, 4.0, 4.0), [0, 4, 0, 0]),
        ((256.0, None, None), [0, 256]),
        ((0.123456, None, None), [4, 1235]),
        ((0.0, None, None), [0, 0]),
        ((-1e308, None, None), [-305, -1000]),
        ((1.5e-12, None, None), [15, 1500]),
    ],
)
def test_a_number_keeps_the_digits_its_interval_leaves(
    triple: tuple[float, float | None, float | None], numbers: list[int]
) -> None:
    assert decoded(estimates([triple])) == numbers


@given(st.floats(-1e6, 1e6), st.floats(1e-3, 1e6))
def test_a_rounded_number_is_off_by_less_than_a_twentieth_of_its_interval(value: float, half: float) -> None:
    decimals, rounded, below, above = decoded(estimates([(value, value - half, value + half)]))
    assert abs(rounded / 10.0**decimals - value) <= max(half / 20, abs(value) * 1e-11)
    assert below >= 0 and above >= 0


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_number_that_is_none_is_refused(value: float) -> None:
    with pytest.raises(ValueError, match="not finite"):
        estimates([(value, None, None)])


def test_texts_that_recur_are_written_once() -> None:
    assert coded(["b", "a", "b"]) == {"of": ["b", "a"], "at": vlq([0, 1, 0])}
    assert coded(["b", "b"]) == {"of": ["b"], "at": ""}
    assert one_each([0, 63]) == "A/"


# -- chunks


def test_a_column_holds_what_its_cells_hold(site: Path) -> None:
    board = board_samples.realistic()
    found = chunks(site)
    at = [c.key for c in board.columns].index("autointerp@1.detection~0badcafe")
    cells = [row.cells.get(board.columns[at].key) for row in board.rows]
    chunk = part(found, "cells", at)
    states = [ALPHABET.index(letter) for letter in chunk["state"]]
    assert [bool(s & page_data.CELL) for s in states] == [c is not None for c in cells]
    assert [bool(s & page_data.VALUE) for s in states] == [c is not None and c.value is not None for c in cells]
    ranks = [chunk["ranks"]["of"][i] for i in decoded(chunk["ranks"]["at"])]
    assert ranks == [c.rank or 0 for c in cells if c is not None]
    assert "fewer than 10 latents have passages enough" in chunk["reasons"]["of"]
    columns = found["board"]["columns"]
    assert columns[at]["filled"] == sum(
        c is not None and c.value is not None and row.kind == "sae" for c, row in zip(cells, board.rows, strict=True)
    )


def test_main_columns_of_the_newest_versions_are_shown_under_their_commonest_setting(site: Path) -> None:
    columns = chunks(site)["board"]["columns"]
    shown = [c["key"] for c in columns if c["shown"]]
    assert "novel_latents@2.novel_ratio" in shown and "novel_latents@1.novel_ratio" not in shown
    assert "core@1.dead_fraction" not in shown
    settings = {c["key"]: c["filled"] for c in columns if c["task"] == "autointerp"}
    assert [key for key in shown if key in settings] == [max(settings, key=lambda key: settings[key])]


def test_large_columns_have_chunks_of_their_own_and_small_ones_share(
    site: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    together = chunks(site)
    monkeypatch.setattr(page_data, "BUNDLE", 0)
    apart = dict(page_data.chunks(board_samples.realistic(), "t"))
    assert [name for name in together if name.startswith("cells/")] == ["cells/0"]
    assert len([name for name in apart if name.startswith("cells/")]) == len(together["board"]["columns"])
    for i, column in enumerate(together["board"]["columns"]):
        for kind in column["within"]:
            assert part(together, kind, i) == json.loads(json.dumps(part(apart, kind, i)))


def test_differences_name_their_rows_and_verdicts(site: Path) -> None:
    board = board_samples.realistic()
    at = [c.key for c in board.columns].index("core@1.mse")
    chunk = part(chunks(site), "differences", at)
    steps, place = decoded(chunk["pairs"]), 0
    found = []
    for i, code in enumerate(ALPHABET.index(letter) for letter in chunk["verdicts"]):
        place += steps[2 * i]
        pair = board.rows[place].id, board.rows[place + steps[2 * i + 1]].id
        found.append((*pair, page_data.VERDICTS[code // 2], bool(code % 2)))
    expected = [(d.a, d.b, d.verdict, d.low is not None) for d in board.differences["core@1.mse"]]
    assert sorted(found) == sorted(expected)


def test_a_board_without_rows_has_a_site_too(tmp_path: Path) -> None:
    pages.write(Board((), (), {}, {}, ("nothing yet",)), tmp_path / "site", title="empty")
    assert chunks(tmp_path / "site")["board"]["warnings"] == ["nothing yet"]


# -- files


def test_the_same_board_gives_the_same_bytes(site: Path, tmp_path: Path) -> None:
    pages.write(board_samples.realistic(), tmp_path / "other")
    assert files(tmp_path / "other") == files(site)


def test_writing_again_leaves_nothing_of_the_last_board(tmp_path: Path) -> None:
    board = board_samples.realistic()
    pages.write(board, tmp_path / "site")
    few = replace(board, columns=board.columns[:2], differences={})
    pages.write(few, tmp_path / "site")
    pages.write(few, tmp_path / "new")
    assert files(tmp_path / "site") == files(tmp_path / "new")


def test_a_folder_with_something_else_in_it_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(SaebenchError, match="no leaderboard site"):
        pages.write(board_samples.realistic(), tmp_path)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(SaebenchError, match="link"):
        pages.write(board_samples.realistic(), tmp_path / "link")
    assert not list((tmp_path / "elsewhere").iterdir())


def test_the_page_loads_only_what_lies_beside_it(site: Path) -> None:
    page = (site / "index.html").read_text()
    named = re.findall(r'(?:src|href)="([^"#][^"]*)"', page)
    assert len(named) > 15 and all((site / name).is_file() for name in named if name != "data:,")
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', page)
    assert policy and "default-src 'none'" in policy[1] and "unsafe" not in policy[1]
    assert not re.search(r"<script(?! src=)|<style|\son\w+=|\sstyle=|https?:", page)


def test_no_script_of_ours_makes_markup_of_text() -> None:
    forbidden = re.compile(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b|new Function|fetch\(|http")
    for name in pages.SCRIPTS:
        if not name.startswith("vendor/"):
            text = (pages.TEMPLATES / name).read_text().replace("http://www.w3.org/2000/svg", "")
            assert not forbidden.search(text), name


def test_the_table_library_is_the_one_named() -> None:
    vendor = pages.TEMPLATES / "vendor"
    named = dict(
        re.findall(r"^\| `([\w.]+)` .* `([0-9a-f]{64})` \|$", (vendor / "VENDOR.md").read_text(), re.MULTILINE)
    )
    assert {f"vendor/{name}" for name in named} == set(pages.VENDOR)
    for name, digest in named.items():
        assert hashlib.sha256((vendor / name).read_bytes()).hexdigest() == digest
    assert "MIT License" in (vendor / "LICENSE").read_text()


# -- texts of strangers


def names_in(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        yield from value
    for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from names_in(inner)


def test_no_text_of_a_stranger_names_anything_or_reads_as_markup(tmp_path: Path) -> None:
    pages.write(board_samples.hostile(), tmp_path / "site")
    found = chunks(tmp_path / "site")
    assert {name for value in found.values() for name in names_in(value)} == {
        name for value in chunks_of_realistic(tmp_path).values() for name in names_in(value)
    }
    for file in (tmp_path / "site" / "data").rglob("*.js"):
        assert b"<" not in file.read_bytes()
        assert "\u2028" not in file.read_text(encoding="utf-8")


def chunks_of_realistic(folder: Path) -> dict[str, Any]:
    pages.write(board_samples.realistic(), folder / "realistic")
    return chunks(folder / "realistic")


def test_a_title_is_text() -> None:
    assert "&lt;/title&gt;&lt;script&gt;" in pages.page("</title><script>", [])
