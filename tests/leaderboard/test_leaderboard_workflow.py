"""What the workflows type, typed here: over real repositories, with nothing but this machine."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import board_records as samples
import pytest
import yaml

from saebench_meta.leaderboard.results import RECORD, REPRODUCED, place

ROOT = Path(__file__).parents[2]
GITHUB = ROOT / ".github"

pytestmark = [
    pytest.mark.skipif(not GITHUB.is_dir(), reason="an sdist holds no workflows"),
    pytest.mark.skipif(shutil.which("bash") is None, reason="bash is not installed"),
]


def step(workflow: str, job: str, has: str) -> dict[str, Any]:
    """The one step of a job whose command holds a text."""
    steps = yaml.safe_load((GITHUB / "workflows" / f"{workflow}.yml").read_text())["jobs"][job]["steps"]
    (found,) = [s for s in steps if has in s.get("run", "")]
    return dict(found)


class Runner:
    """A machine that runs steps as the host does: in bash, the command `saebench` and a folder for temporary files."""

    def __init__(self, root: Path) -> None:
        self.temp, self.bin, self.work = root / "temp", root / "bin", root / "work"
        for folder in (self.temp, self.bin, self.work):
            folder.mkdir()
        self.command("saebench", f'exec "{sys.executable}" -m saebench_meta.cli "$@"')
        self.command("python3", f'exec "{sys.executable}" "$@"')

    def command(self, name: str, script: str) -> None:
        (self.bin / name).write_text(f"#!/bin/sh\n{script}\n")
        (self.bin / name).chmod(0o755)

    def run(self, command: str, **environment: str) -> subprocess.CompletedProcess[str]:
        env = {
            **{k: v for k, v in os.environ.items() if not k.startswith(("GIT_", "GITHUB_", "SAEBENCH_"))},
            "PATH": f"{self.bin}:{os.environ['PATH']}",
            "RUNNER_TEMP": str(self.temp),
            "GITHUB_RUN_ID": "42",
            **environment,
        }
        shell = ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", command]
        return subprocess.run(shell, cwd=self.work, env=env, capture_output=True, text=True)

    def git(self, *arguments: str) -> str:
        done = subprocess.run(["git", "-C", str(self.work), *arguments], check=True, capture_output=True, text=True)
        return done.stdout.strip()

    def commit(self, message: str) -> None:
        self.git("add", "-A")
        self.git("commit", "-q", "-m", message)

    def branch(self) -> None:
        """What is there becomes main; what follows goes to a branch, while main goes on by itself."""
        self.commit("first")
        self.git("switch", "-q", "-c", "new")
        self.git("switch", "-q", "main")
        self.put("meanwhile", 0.45)
        self.commit("somebody else's")
        self.git("switch", "-q", "new")

    def put(self, name: str, level: float) -> Path:
        return samples.put(self.work / "leaderboard" / "results", samples.make(name, level))


@pytest.fixture
def runner(tmp_path: Path) -> Runner:
    made = Runner(tmp_path)
    made.git("init", "-q", "-b", "main")
    made.git("config", "user.name", "test")
    made.git("config", "user.email", "test@example.org")
    made.put("first", 0.5)
    return made


# -- a pull request


def check(runner: Runner) -> tuple[int, str]:
    """What the check's step ends with, and the comment it leaves, where the change is merged into main."""
    runner.commit("the change")
    runner.git("switch", "-q", "main")
    runner.git("merge", "-q", "--no-ff", "-m", "merge", "new")
    done = runner.run(step("leaderboard", "check", "diff")["run"])
    assert "Traceback" not in done.stderr, done.stderr
    return done.returncode, (runner.temp / "comment.md").read_text()


def test_a_new_record_passes_and_is_named_alone(runner: Runner) -> None:
    runner.branch()
    runner.put("second", 0.4)
    code, comment = check(runner)
    assert code == 0, comment
    assert "adds 1 record" in comment and "second-" in comment and "#### meanwhile-" not in comment


def test_a_change_to_what_is_there_fails_and_still_leaves_a_comment(runner: Runner) -> None:
    runner.branch()
    record = place(samples.make("first", 0.5)[0])
    file = runner.work / "leaderboard" / "results" / record / RECORD
    file.write_text(file.read_text() + " ")
    code, comment = check(runner)
    assert code == 1
    assert "changes a record that is already there" in comment


def test_the_comment_says_the_same_when_it_is_made_harmless(runner: Runner) -> None:
    neutral = pytest.importorskip("neutral")
    runner.branch()
    runner.put("second", 0.4)
    _, comment = check(runner)
    after = neutral.neutral(comment)
    cells = [[line.count(" | ") for line in text.strip().splitlines()] for text in (comment, after)]
    assert cells[0] == cells[1] and max(cells[0]) == 4
    assert "rank" in after and neutral.CUT not in after


def test_what_is_on_main_is_validated(runner: Runner) -> None:
    command = step("leaderboard", "validate", "saebench")["run"]
    assert runner.run(command).returncode == 0
    (runner.put("second", 0.4) / "note.txt").write_text("not a record")
    assert runner.run(command).returncode == 1


# -- the site


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
def test_the_leaderboard_joins_the_documentation_in_one_site(runner: Runner) -> None:
    assert step("leaderboard", "build", "make")["run"] == "make pages"
    shutil.copy(ROOT / "Makefile", runner.work)
    docs = runner.work / "out" / "docs" / "site"
    docs.mkdir(parents=True)
    (docs / "index.html").write_text("the documentation")
    shutil.copytree(runner.bin, runner.work / "env" / "bin")
    done = runner.run("make --old-file=docs pages VENV=env")
    assert done.returncode == 0, done.stderr
    pages = runner.work / "out" / "pages"
    assert (pages / "index.html").read_text() == "the documentation"
    assert {p.name for p in (pages / "leaderboard").iterdir()} >= {"index.html", "leaderboard.csv", "leaderboard.json"}


# -- a rerun

NO_RECORDS = (
    "",
    "leaderboard/results",
    "leaderboard/results/../../etc/core@1/0123456789ab",
    "/leaderboard/results/a-0123/core@1/0123456789ab",
    "leaderboard/results/a-0123/core@1/0123456789ab/",
    "leaderboard/results/a-0123/core@1/0123456789ab\n--allow",
    "leaderboard/results/a-0123/core@1/0123456789AB",
    "leaderboard/results/-rf/core@1/0123456789ab",
    "leaderboard/results/$(touch x)/core@1/0123456789ab",
    "leaderboard/results/a..b/core@1/0123456789ab",
    "--help",
)


@pytest.mark.parametrize("text", NO_RECORDS)
def test_a_rerun_takes_a_records_folder_and_nothing_else(runner: Runner, text: str) -> None:
    shutil.copytree(GITHUB, runner.work / ".github")
    done = runner.run(step("reproduce", "rerun", "badge.py check")["run"], RECORD=text)
    assert done.returncode == 1 and done.stderr.startswith("RECORD must be")
    assert not (runner.work / "x").exists()


def test_a_rerun_follows_no_link(runner: Runner, tmp_path: Path) -> None:
    shutil.copytree(GITHUB, runner.work / ".github")
    folder = runner.work / "leaderboard" / "results" / place(samples.make("first", 0.5)[0])
    command = step("reproduce", "rerun", "badge.py check")["run"]
    relative = folder.relative_to(runner.work).as_posix()
    assert runner.run(command, RECORD=relative).stdout.strip() == relative
    folder.rename(tmp_path / "away")
    folder.symlink_to(tmp_path / "away")
    assert runner.run(command, RECORD=relative).returncode == 1


def test_a_rerun_that_agrees_leaves_its_badge_and_one_that_does_not_stops(runner: Runner) -> None:
    folder = runner.work / "leaderboard" / "results" / place(samples.make("first", 0.5)[0])
    relative = folder.relative_to(runner.work).as_posix()
    command = step("reproduce", "rerun", "leaderboard reproduce")["run"]
    runner.command("saebench", f'echo "$@" >> "{runner.temp}/said"; [ "$2" = validate ] || echo 1 > "$3/{REPRODUCED}"')
    assert runner.run(command, RECORD=relative).returncode == 0
    assert (runner.temp / "said").read_text().splitlines() == [
        f"leaderboard reproduce {relative} --work {runner.temp}/rerun",
        f"leaderboard validate {relative}",
    ]
    assert (runner.temp / REPRODUCED).read_text() == "1\n"
    (runner.temp / REPRODUCED).unlink()
    runner.command("saebench", "exit 1")
    assert runner.run(command, RECORD=relative).returncode == 1 and not (runner.temp / REPRODUCED).exists()


def proposal(runner: Runner, badge: str) -> subprocess.CompletedProcess[str]:
    """The job that opens a pull request, with a remote on this machine and a `gh` that notes what it is told."""
    shutil.copytree(GITHUB, runner.work / ".github")
    runner.commit("first")
    remote = runner.temp / "remote.git"
    subprocess.run(["git", "init", "-q", "--bare", str(remote)], check=True)
    runner.git("remote", "add", "origin", str(remote))
    runner.command("gh", f'printf "%s\\n" "$@" > "{runner.temp}/gh"')
    folder = runner.work / "leaderboard" / "results" / place(samples.make("first", 0.5)[0])
    digest = hashlib.sha256((folder / RECORD).read_bytes()).hexdigest()
    (runner.temp / "badge").mkdir()
    (runner.temp / "badge" / REPRODUCED).write_text(badge.replace("DIGEST", digest))
    relative = folder.relative_to(runner.work).as_posix()
    return runner.run(step("reproduce", "propose", "gh pr create")["run"], RECORD=relative, GH_TOKEN="none")


def test_a_badge_is_proposed_on_a_branch_of_its_own(runner: Runner) -> None:
    done = proposal(runner, '{"record_sha256": "DIGEST"}')
    assert done.returncode == 0, done.stderr
    id = samples.make("first", 0.5)[0].id[:12]
    branch = f"reproduced-{id}-42"
    assert runner.git("ls-remote", "--heads", "origin").endswith(f"refs/heads/{branch}")
    changed = runner.git("diff", "--name-only", "main", branch).splitlines()
    assert [Path(c).name for c in changed] == [REPRODUCED]
    assert (runner.temp / "gh").read_text().splitlines()[:4] == ["pr", "create", "--head", branch]


@pytest.mark.parametrize(
    "badge", ["", "no JSON", "[]", '{"record_sha256": "0"}', "{" + '"a": 1, ' * 20_000 + '"record_sha256": "DIGEST"}']
)
def test_a_badge_that_is_not_one_is_not_proposed(runner: Runner, badge: str) -> None:
    assert proposal(runner, badge).returncode == 1
    assert runner.git("ls-remote", "--heads", "origin") == ""


# -- the action


def test_the_action_installs_from_where_it_lies_and_puts_the_command_on_the_path(runner: Runner) -> None:
    steps = yaml.safe_load((GITHUB / "actions" / "saebench" / "action.yml").read_text())["runs"]["steps"]
    (install,) = [s for s in steps if "run" in s]
    runner.command("make", f'echo "$@" > "{runner.temp}/make"')
    files = {name: str(runner.temp / name) for name in ("GITHUB_PATH", "GITHUB_ENV")}
    done = runner.run(install["run"], HERE=str(GITHUB / "actions" / "saebench"), TORCH_INDEX="", **files)
    assert done.returncode == 0, done.stderr
    venv = runner.temp / "saebench"
    assert (runner.temp / "make").read_text().split() == ["-C", str(ROOT), f"VENV={venv}", f"{venv}/.installed"]
    assert (runner.temp / "GITHUB_PATH").read_text().strip() == str(venv / "bin")
    assert (runner.temp / "GITHUB_ENV").read_text().strip() == f"SAEBENCH_CONSTRAINTS={ROOT / 'constraints.txt'}"
