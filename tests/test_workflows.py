"""What runs in the repository's workflows: pinned actions, the least rights, no stranger's text in a shell."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[1]
GITHUB = ROOT / ".github"
WORKFLOWS = sorted((GITHUB / "workflows").glob("*.yml"))
ACTIONS = sorted((GITHUB / "actions").glob("*/action.yml"))
USES = re.compile(r"^[ -]*uses: (\S+?)@(\S+)(?: # (\S+))?$", re.MULTILINE)
LISTED = re.compile(r"^\| `([^`]+)` \| (v[\d.]+) \| `([0-9a-f]{40})` \|$", re.MULTILINE)
TRUSTED = {"matrix.kind"}
"""Expressions that may stand in a shell command: texts of the workflow itself."""
WRITES = {
    ("leaderboard", "publish"): {"pages", "id-token"},
    ("leaderboard-comment", "comment"): {"pull-requests"},
    ("reproduce", "propose"): {"contents", "pull-requests"},
    ("release", "publish"): {"id-token"},
}
"""All that any job may write."""

pytestmark = pytest.mark.skipif(not WORKFLOWS, reason="an sdist holds no workflows")
every = pytest.mark.parametrize("path", WORKFLOWS, ids=lambda p: p.stem)
either = pytest.mark.parametrize("path", [*WORKFLOWS, *ACTIONS], ids=lambda p: p.parent.name + "/" + p.stem)


def read(path: Path) -> dict[str, Any]:
    """A workflow; YAML takes its key `on` for a truth value."""
    found = yaml.safe_load(path.read_text())
    found["on"] = found.pop(True, None)
    return dict(found)


def jobs(path: Path) -> dict[str, dict[str, Any]]:
    return dict(read(path)["jobs"])


def steps(path: Path) -> list[dict[str, Any]]:
    if path.stem == "action":
        return list(read(path)["runs"]["steps"])
    return [step for job in jobs(path).values() for step in job["steps"]]


# -- what is run


@either
def test_actions_are_pinned_by_the_commit_that_the_list_names(path: Path) -> None:
    pins = {name: (version, commit) for name, version, commit in LISTED.findall((GITHUB / "pins.md").read_text())}
    used = [s["uses"] for s in steps(path) if "uses" in s and not s["uses"].startswith("./")]
    found = USES.findall(path.read_text())
    assert sorted(f"{name}@{commit}" for name, commit, _ in found) == sorted(used)
    assert all(pins[name] == (version, commit) for name, commit, version in found)


def test_the_list_of_pins_has_nothing_that_is_not_used() -> None:
    used = {name for path in [*WORKFLOWS, *ACTIONS] for name, _, _ in USES.findall(path.read_text())}
    assert {name for name, _, _ in LISTED.findall((GITHUB / "pins.md").read_text())} == used


@either
def test_scripts_that_steps_run_are_there(path: Path) -> None:
    for step in steps(path):
        for script in re.findall(r"\.github/scripts/\S+\.py", step.get("run", "")):
            assert (ROOT / script).is_file(), script
        if str(step.get("uses", "")).startswith("./"):
            assert (ROOT / step["uses"].replace("./trusted/", "./") / "action.yml").is_file()


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
@every
def test_make_knows_the_targets_that_steps_make(path: Path, tmp_path: Path) -> None:
    for step in steps(path):
        for words in re.findall(r"^make ([a-z].*)$", step.get("run", ""), re.MULTILINE):
            arguments = words.replace("${{ matrix.kind }}", "wheel").split()
            command = ["make", "-n", f"VENV={tmp_path / 'venv'}", *arguments]
            done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
            assert done.returncode == 0, done.stderr


@either
def test_no_expression_stands_in_a_shell_command(path: Path) -> None:
    for step in steps(path):
        found = set(re.findall(r"\$\{\{\s*(.*?)\s*\}\}", step.get("run", "")))
        assert found <= TRUSTED, f"{found}: pass it by the environment"


# -- what it may do


@every
def test_jobs_have_no_rights_but_those_listed(path: Path) -> None:
    whole = read(path)["permissions"]
    assert whole in ({}, {"contents": "read"})
    for name, job in jobs(path).items():
        writes = {right for right, how in job.get("permissions", {}).items() if how == "write"}
        assert writes == WRITES.get((path.stem, name), set())


@every
def test_nothing_runs_with_rights_for_a_strangers_change(path: Path) -> None:
    on = read(path)["on"]
    assert "pull_request_target" not in on
    for name, job in jobs(path).items():
        if (path.stem, name) in WRITES:
            refs = [s.get("with", {}).get("ref", "") for s in job["steps"] if "checkout" in str(s.get("uses"))]
            assert all("head" not in ref and "pull_request" not in ref for ref in refs)
            assert "pull_request" not in on or "push" in job["if"]


@every
def test_the_token_stays_only_where_something_is_pushed(path: Path) -> None:
    for name, job in jobs(path).items():
        for step in job["steps"]:
            if "checkout" in str(step.get("uses")) and (path.stem, name) != ("reproduce", "propose"):
                assert step["with"]["persist-credentials"] is False


@every
def test_no_secret_is_read(path: Path) -> None:
    assert "secrets." not in path.read_text()


@every
def test_every_job_ends_by_itself(path: Path) -> None:
    assert all(0 < job["timeout-minutes"] <= 350 for job in jobs(path).values())


@every
def test_a_pipe_that_breaks_is_an_error(path: Path) -> None:
    if any("|" in step.get("run", "") for step in steps(path)):
        assert read(path)["defaults"]["run"]["shell"] == "bash"


def test_only_a_tag_that_was_installed_and_tried_is_published() -> None:
    release = jobs(GITHUB / "workflows" / "release.yml")
    assert release["publish"]["needs"] == "try" and release["try"]["needs"] == "build"
    assert release["publish"]["if"] == "github.ref_type == 'tag'"
    assert release["publish"]["environment"] == "pypi"


def test_the_comment_follows_the_workflow_that_checks() -> None:
    on = read(GITHUB / "workflows" / "leaderboard-comment.yml")["on"]
    assert on["workflow_run"]["workflows"] == [read(GITHUB / "workflows" / "leaderboard.yml")["name"]]


def test_a_rerun_is_started_by_hand_only() -> None:
    path = GITHUB / "workflows" / "reproduce.yml"
    assert set(read(path)["on"]) == {"workflow_dispatch"}
    assert jobs(path)["rerun"]["if"] == "github.ref == 'refs/heads/main'"
    assert "--allow-loaders" not in path.read_text()


# -- actionlint


def actionlint() -> str:
    found = shutil.which("actionlint") or shutil.which("actionlint", path=str(Path(sys.executable).parent))
    if found is None:
        pytest.skip("actionlint is not installed; the workflow `test` installs it")
    return found


def test_actionlint_finds_nothing() -> None:
    done = subprocess.run([actionlint(), "-no-color", *map(str, WORKFLOWS)], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_actionlint_would_find_an_expression_that_is_none(tmp_path: Path) -> None:
    folder = tmp_path / ".github" / "workflows"
    folder.mkdir(parents=True)
    broken = (GITHUB / "workflows" / "leaderboard.yml").read_text().replace("github.event_name", "github.evnt_name")
    (folder / "broken.yml").write_text(broken)
    command = [actionlint(), "-no-color", str(folder / "broken.yml")]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode != 0 and "evnt_name" in done.stdout
