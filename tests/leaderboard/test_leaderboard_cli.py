"""The commands, as they are typed."""

from __future__ import annotations

import json
from pathlib import Path

import board_records as samples
import pytest
from click.testing import CliRunner

from saebench_meta.cli import saebench
from saebench_meta.cli.leaderboard import ALLOWANCES, RESULTS
from saebench_meta.leaderboard import results, rules


def run(*arguments: str | Path) -> tuple[int, str]:
    done = CliRunner().invoke(saebench, ["leaderboard", *map(str, arguments)])
    return done.exit_code, done.output


@pytest.fixture
def out(tmp_path: Path) -> Path:
    for name, settings in (("a", {}), ("b", {"profile": "quick"})):
        record, data = samples.make(name, settings=settings)
        samples.write(tmp_path / "out" / name, record.to_json().encode(), data)
    return tmp_path / "out"


def test_from_a_run_to_a_page(out: Path, tmp_path: Path) -> None:
    where = tmp_path / "board" / "results"
    code, said = run("add", out, "--results", where)
    assert code == 1 and "1 added" in said and "refused" in said and "run.profile" in said and "git add" in said
    code, said = run("add", out, "--results", where, "--allow", "quick")
    assert code == 0 and "1 added, 1 already there" in said
    code, said = run("validate", "--results", where)
    assert code == 1 and said.splitlines()[-1] == "1 of 2 records are in order"
    code, said = run("validate", "--results", where, "--allow", "quick,dirty")
    assert (code, said.strip()) == (0, "2 of 2 records are in order")
    code, said = run("build", "--results", where, "--allow", "quick")
    assert code == 0 and "2 records, 2 SAEs, 3 columns" in said and "For a local look only" in said
    assert said.splitlines()[-1] == str(tmp_path / "board" / "site" / "index.html")
    assert (tmp_path / "board" / "table.md").is_file()


def test_machines_read_json(out: Path, tmp_path: Path) -> None:
    where = tmp_path / "results"
    added = json.loads(run("add", out, "--results", where, "--json")[1])
    assert len(added["added"]) == 1 and added["refused"][0]["field"] == "run.profile"
    checked = json.loads(run("validate", "--results", where, "--json")[1])
    assert checked == {"records": 1, "good": 1, "problems": []}
    code, said = run("validate", out / "b", "--results", where, "--json")
    assert code == 1 and json.loads(said)["problems"][0]["field"] == "run.profile"


def test_a_word_that_lets_nothing_through_is_an_error(out: Path) -> None:
    code, said = run("add", out, "--allow", "everything")
    assert code == 2 and "'everything' is none of quick, dirty, partial" in said


def test_the_command_knows_its_words_without_importing_what_they_are_of() -> None:
    assert ALLOWANCES == rules.ALLOWANCES and results.RESULTS == RESULTS
