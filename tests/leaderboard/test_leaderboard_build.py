"""What is built: the same bytes for the same records, numbers as they are in them, strangers' texts as text."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import board_records as samples
import pytest

from saebench_meta.leaderboard.board import Board, Cell, Column, Row
from saebench_meta.leaderboard.build import CSV, JSON, SITE, TABLE, as_csv, as_json, build
from saebench_meta.leaderboard.markdown import escape, table_md


def files(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.fixture(scope="module")
def made() -> list[tuple[object, bytes]]:
    records = [samples.make(name, level) for name, level in (("a", 0.5), ("b", 0.6), ("c", 0.505))]
    return [*records, samples.make("e", 0.7, against="a"), samples.make("d", 0.4, model="other")]  # type: ignore[list-item]


def test_the_same_records_give_the_same_bytes(made: list[tuple[object, bytes]], tmp_path: Path) -> None:
    for folder, order in (("one", made), ("two", list(reversed(made)))):
        for one in order:
            samples.put(tmp_path / folder / "results", one)  # type: ignore[arg-type]
        build(tmp_path / folder / "results", tmp_path / folder)
    one, two = files(tmp_path / "one"), files(tmp_path / "two")
    assert {TABLE, JSON, CSV, f"{SITE}/index.html"} <= set(one)
    assert one == two
    build(tmp_path / "one" / "results", tmp_path / "one")
    assert files(tmp_path / "one") == two


def test_building_again_forgets_what_is_gone(made: list[tuple[object, bytes]], tmp_path: Path) -> None:
    import shutil

    folders = [samples.put(tmp_path / "all" / "results", one) for one in made]  # type: ignore[arg-type]
    build(tmp_path / "all" / "results", tmp_path / "all")
    shutil.rmtree(folders[-1].parents[1])
    build(tmp_path / "all" / "results", tmp_path / "all")
    for one in made[:-1]:
        samples.put(tmp_path / "fewer" / "results", one)  # type: ignore[arg-type]
    build(tmp_path / "fewer" / "results", tmp_path / "fewer")
    assert files(tmp_path / "all") == files(tmp_path / "fewer")


def test_json_and_csv_hold_every_number(made: list[tuple[object, bytes]], tmp_path: Path) -> None:
    for one in made:
        samples.put(tmp_path / "results", one)  # type: ignore[arg-type]
    board = build(tmp_path / "results", tmp_path)
    data = json.loads((tmp_path / JSON).read_text())
    assert [c["key"] for c in data["columns"]] == [c.key for c in board.columns]
    assert [r["id"] for r in data["rows"]] == [r.id for r in board.rows]
    assert len(data["differences"]) == sum(map(len, board.differences.values()))
    with (tmp_path / CSV).open() as f:
        lines = list(csv.DictReader(f))
    expected = {(r.id, key): cell.value for r in board.rows for key, cell in r.cells.items()}
    assert {(x["row"], x["column"]): float(x["value"]) for x in lines} == expected
    by_id = {r["id"]: r["cells"] for r in data["rows"]}
    assert all(by_id[row][key]["value"] == value for (row, key), value in expected.items())


def test_the_table_shows_intervals_ties_and_references(made: list[tuple[object, bytes]], tmp_path: Path) -> None:
    for one in made:
        samples.put(tmp_path / "results", one)  # type: ignore[arg-type]
    build(tmp_path / "results", tmp_path)
    text = (tmp_path / TABLE).read_text()
    assert "## toy-model, blocks.0.hook\\_resid\\_post" in text and "## other, " in text
    lines = {line.split(" | ")[0].removeprefix("| "): line for line in text.splitlines() if line.startswith("| ")}
    assert "rank 1" in lines["a"] and "rank 1" in lines["c"]  # not told apart
    assert "rank" not in lines["d"]  # alone at its site
    assert "vs a" in lines["e"] and " ✓" in lines["e"]
    assert "↓ error" in lines["SAE"] and "gain" not in lines["SAE"]  # main columns only
    assert "control: random" in text


def hostile_board(text: str) -> Board:
    cell = Cell(None, None, None, 0, "documents", "bootstrap", "r", reason=text)
    column = Column("t@1.m", "t", 1, "m", text, "higher", True, setting_label=text)
    row = Row("0" * 12, "sae", text, text, text, text, text, 1, 1, "", {"t@1.m": cell})
    return Board((column,), (row,), {}, {}, (text,))


@pytest.mark.parametrize(
    "text",
    [
        "<script>x</script>",
        "a | b\n| c",
        "[x](http://e.org)",
        "![x](y)",
        "`code`",
        "**b**",
        "@someone",
        "#12",
        "$x$",
        "~~a~~",
    ],
)
def test_texts_of_strangers_stay_texts_in_the_table(text: str) -> None:
    shown = table_md(hostile_board(text), "x")
    assert text not in shown
    rows = [line for line in shown.splitlines() if line.startswith("| ")]
    assert len(rows) == 3 and len({line.replace("\\|", "").count("|") for line in rows}) == 1


def test_escaping_leaves_what_is_read() -> None:
    assert escape("atlas-batchtopk-256 (v1.2)") == "atlas-batchtopk-256 (v1.2)"
    assert escape("a_b|c") == "a\\_b\\|c"
    assert "@\u200b" in escape("x@y") and ":\u200b" not in escape("a: b")


def test_a_spreadsheet_takes_no_text_for_a_formula() -> None:
    text = as_csv(hostile_board("=HYPERLINK(1)"))
    assert "'=HYPERLINK(1)" in text and ",=HYPERLINK" not in text


def test_numbers_that_are_none_are_refused_in_json() -> None:
    cell = Cell(float("nan"), None, None, 1, "documents", "bootstrap", "r")
    row = Row("0" * 12, "sae", "a", "", "m", "h", "relu", 1, 1, "", {"t@1.m": cell})
    with pytest.raises(ValueError, match="Out of range"):
        as_json(Board((), (row,), {}, {}))


def test_an_empty_leaderboard_is_built(tmp_path: Path) -> None:
    (tmp_path / "results").mkdir()
    build(tmp_path / "results", tmp_path)
    assert "There are no records yet." in (tmp_path / TABLE).read_text()
    assert json.loads((tmp_path / JSON).read_text())["rows"] == []
    assert (tmp_path / SITE / "index.html").is_file()
