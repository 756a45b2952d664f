"""What a branch adds, in real git repositories: both land, each names its own, what is there stays."""

from __future__ import annotations

import subprocess
from pathlib import Path

import board_records as samples
import pytest

from saebench_meta.errors import SaebenchError
from saebench_meta.leaderboard.add import add
from saebench_meta.leaderboard.assemble import board
from saebench_meta.leaderboard.diff import Report, diff
from saebench_meta.leaderboard.results import RECORD, REPRODUCED, place
from saebench_meta.leaderboard.rules import Bench
from saebench_meta.plugins import registry
from saebench_meta.record import Record

Made = tuple[Record, bytes]


class Repository:
    """A repository whose leaderboard has one record on `main`."""

    def __init__(self, root: Path) -> None:
        self.root, self.results, self.runs = root, root / "leaderboard" / "results", root.parent / "runs"
        root.mkdir()
        self.git("init", "-q", "-b", "main")
        self.git("config", "user.email", "test@example.org")
        self.git("config", "user.name", "test")
        self.add(samples.make("first", 0.5))
        self.commit("first record")

    def git(self, *arguments: str) -> str:
        done = subprocess.run(["git", "-C", str(self.root), *arguments], check=True, capture_output=True, text=True)
        return done.stdout

    def commit(self, message: str) -> None:
        self.git("add", "-A")
        self.git("commit", "-q", "-m", message)

    def add(self, made: Made) -> str:
        """Add a record as a submitter does; its place."""
        run = samples.write(self.runs / made[0].id, made[0].to_json().encode(), made[1])
        assert add(run, self.results, Bench(registry())).added == [place(made[0]).as_posix()]
        return place(made[0]).as_posix()

    def diff(self, ref: str = "main") -> Report:
        return diff(ref, self.results, Bench(registry()))

    def folder(self, made: Made) -> Path:
        return self.results / place(made[0])


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    return Repository(tmp_path / "repository")


def test_two_branches_add_records_both_land_and_each_names_only_its_own(repository: Repository) -> None:
    added = {}
    for branch, made in (("one", samples.make("wide", 0.4)), ("two", samples.make("narrow", 0.6))):
        repository.git("checkout", "-q", "-b", branch, "main")
        added[branch] = repository.add(made)
        repository.commit(f"add {branch}")
    for branch, other in (("one", "two"), ("two", "one")):
        repository.git("checkout", "-q", branch)
        report = repository.diff()
        assert report.added == (added[branch],) and not report.problems
        assert added[branch] in report.markdown and added[other] not in report.markdown
    repository.git("checkout", "-q", "main")
    repository.git("merge", "-q", "one", "-m", "one")
    repository.git("checkout", "-q", "two")
    assert repository.diff().added == (added["two"],)  # what main has got meanwhile is not this branch's doing
    repository.git("checkout", "-q", "main")
    repository.git("merge", "-q", "two", "-m", "two")
    assert {r.name for r in board(repository.results).rows if r.kind == "sae"} == {"first", "wide", "narrow"}
    assert repository.diff().added == ()


def test_numbers_stand_beside_the_best_and_the_next(repository: Repository) -> None:
    repository.add(samples.make("better", 0.4))
    text = repository.diff().markdown
    (line,) = [line for line in text.splitlines() if line.startswith("| error")]
    assert "(first)" in line and line.endswith("| this is better |") and "rank 1" in line
    (line,) = [line for line in text.splitlines() if line.startswith("| share")]
    assert "not tested: exact over the dictionary" in line


def test_committed_or_not_it_is_seen(repository: Repository) -> None:
    where = repository.add(samples.make("new", 0.4))
    assert repository.diff().added == (where,)
    repository.git("add", "-A")
    assert repository.diff().added == (where,)


def test_anothers_record_must_not_be_changed_removed_or_added_to(repository: Repository) -> None:
    first = repository.folder(samples.make("first", 0.5))
    text = (first / RECORD).read_text()
    (first / RECORD).write_text(text.replace('"seconds": 1.0', '"seconds": 2.0'))
    (problem,) = repository.diff().problems
    assert "changes a record that is already there" in problem
    (first / RECORD).unlink()
    assert any("removes a record that is already there" in p for p in repository.diff().problems)
    repository.git("checkout", "-q", "--", ".")
    (first / "documents.parquet").unlink()
    (first / "documents.parquet").symlink_to("/dev/null")
    assert any("changes a record" in p for p in repository.diff().problems)


def test_a_badge_is_not_for_submitters_to_give(repository: Repository) -> None:
    made = samples.make("new", 0.4)
    repository.add(made)
    (repository.folder(made) / REPRODUCED).write_text("{}")
    problems = repository.diff().problems
    assert any("badges are given by the reproduce workflow only" in p for p in problems)


def test_what_does_not_validate_is_said_and_only_what_is_this_branchs(repository: Repository) -> None:
    (repository.results / "stray.txt").write_text("on main already")
    repository.commit("stray")
    repository.git("checkout", "-q", "-b", "mine")
    quick = samples.make("quick", 0.4, settings={"profile": "quick"})
    samples.put(repository.results, quick)
    (repository.results / "page.html").write_text("<script>")
    report = repository.diff()
    assert len(report.problems) == 2
    assert any("run.profile" in p for p in report.problems) and any("page.html" in p for p in report.problems)
    assert "It cannot be merged as it is" in report.markdown


def test_a_forged_interval_of_a_new_record_is_found(repository: Repository) -> None:
    record, data = samples.make("new", 0.4)
    gain = record.metrics["gain"]
    assert gain.value is not None
    narrow = gain.model_copy(update={"ci_low": gain.value - 1e-6, "ci_high": gain.value + 1e-6})
    samples.put(repository.results, (record.model_copy(update={"metrics": {**record.metrics, "gain": narrow}}), data))
    (problem,) = repository.diff().problems
    assert "is not the documents' interval" in problem


def test_names_of_files_do_no_harm_in_the_comment(repository: Repository) -> None:
    odd = repository.results / "@everyone <img src=x> `x` #1"
    odd.mkdir()
    (odd / "a\nb|c").write_text("x")
    text = repository.diff().markdown
    assert "<img" not in text.replace("\\<img", "") and "@everyone" not in text and "#1" not in text


def test_a_reference_that_is_none_is_an_error(repository: Repository, tmp_path: Path) -> None:
    for ref in ("nowhere", "--output=x", ""):
        with pytest.raises(SaebenchError):
            repository.diff(ref)
    (tmp_path / "plain").mkdir()
    with pytest.raises(SaebenchError, match="git"):
        diff("main", tmp_path / "plain", Bench(registry()))
