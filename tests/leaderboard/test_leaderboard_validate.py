"""What validation takes, and what it says of what it does not; the hostile ones have a file of their own."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import board_records as samples
import pytest

from saebench_meta.errors import BadFileError
from saebench_meta.leaderboard.badge import Reproduction
from saebench_meta.leaderboard.results import DOCUMENTS, RECORD, REPRODUCED, place
from saebench_meta.leaderboard.rules import Bench, record_faults
from saebench_meta.leaderboard.texts import text_fault
from saebench_meta.leaderboard.validate import check_folder, check_paths, check_results
from saebench_meta.plugins import registry
from saebench_meta.record import Record


def bench(*allow: str) -> Bench:
    return Bench(registry(), frozenset(allow))


def reasons(results: Path, *allow: str) -> list[str]:
    return [str(p) for p in check_results(results, bench(*allow)).problems]


def faults(record: Record, *allow: str) -> dict[str, str]:
    return dict(record_faults(record, bench(*allow)))


def test_sound_records_are_taken_beside_a_readme(tmp_path: Path) -> None:
    for name, level in (("a", 0.5), ("b", 0.6)):
        samples.put(tmp_path, samples.make(name, level))
    (tmp_path / "README.md").write_text("what this is")
    checks = check_results(tmp_path, bench())
    assert not checks.problems and len(checks.good) == 2
    assert checks.to_json() == {"records": 2, "good": 2, "problems": []}


def test_a_reason_names_file_field_and_what_to_do(tmp_path: Path) -> None:
    record, data = samples.make("a", settings={"profile": "quick"})
    samples.put(tmp_path, (record, data))
    why = "is 'quick', which is for trying out: run again without --profile quick"
    assert reasons(tmp_path) == [f"{place(record)}/record.json: run.profile: {why}"]
    assert not reasons(tmp_path, "quick")


def test_a_forged_value_is_found_out_by_the_documents(tmp_path: Path) -> None:
    record, data = samples.make("a")
    error = record.metrics["error"]
    assert error.value is not None and error.ci_low is not None
    better = error.model_copy(
        update={"value": error.value * 0.97, "ci_low": error.ci_low * 0.97, "controls": {}, "order": None}
    )
    samples.put(tmp_path, (record.model_copy(update={"metrics": {**record.metrics, "error": better}}), data))
    (said,) = reasons(tmp_path)[:1]
    assert "metrics.error.value" in said and f"{error.value:.6g}" in said


def test_an_interval_may_come_from_other_resamples_but_not_from_nowhere(tmp_path: Path) -> None:
    record, data = samples.make("a")
    error = record.metrics["error"]
    assert error.ci_low is not None and error.ci_high is not None and error.value is not None
    width = error.ci_high - error.ci_low
    for share, taken in ((0.05, True), (0.4, False)):
        changed = error.model_copy(update={"ci_low": error.ci_low + share * width})
        put = record.model_copy(update={"metrics": {**record.metrics, "error": changed}})
        folder = samples.put(tmp_path / str(share), (put, data))
        assert (not check_folder(folder, bench()).problems) is taken


def test_only_some_records_can_be_checked(tmp_path: Path) -> None:
    good, bad = samples.make("a"), samples.make("b", settings={"profile": "quick"})
    folders = [samples.put(tmp_path / "results", one) for one in (good, bad)]
    for path in (folders[0], folders[0] / RECORD, folders[0].parent):
        checks = check_paths([path], bench(), tmp_path / "results")
        assert len(checks.folders) == 1 and not checks.problems
    assert check_paths([tmp_path / "results"], bench(), tmp_path / "results").problems
    with pytest.raises(BadFileError, match=r"holds no record\.json"):
        (tmp_path / "empty").mkdir()
        check_paths([tmp_path / "empty"], bench(), tmp_path / "results")


def test_a_record_outside_the_results_may_have_more_beside_it(tmp_path: Path) -> None:
    made = samples.make("a")
    folder = samples.write(tmp_path / "run", made[0].to_json().encode(), made[1])
    (folder / "tables").mkdir()
    assert not check_folder(folder, bench()).problems
    assert check_paths([folder], bench(), tmp_path / "results").problems == ()


def test_a_badge_of_the_record_is_taken(tmp_path: Path) -> None:
    record, data = samples.make("a")
    folder = samples.put(tmp_path, (record, data))
    badge = Reproduction(
        record=record.id,
        record_sha256=hashlib.sha256((folder / RECORD).read_bytes()).hexdigest(),
        metrics=dict.fromkeys(record.metrics, "equal"),
        device="cpu",
        versions=record.versions,
    )
    (folder / REPRODUCED).write_text(badge.to_json())
    (checked,) = check_results(tmp_path, bench()).folders
    assert not checked.problems and checked.reproduced == badge


@pytest.mark.parametrize(
    ("version", "commit", "dirty", "taken"),
    [
        ("0.1.0", samples.COMMIT, False, True),
        ("0.1.0", None, None, True),  # a release from an index
        ("0.1.0", None, False, True),
        ("0.1.0.dev1+gabc", samples.COMMIT, False, True),
        ("0.1.0.dev1", None, None, False),
        ("0.1.0", samples.COMMIT, True, False),
        ("0.1.0", samples.COMMIT, None, False),
        ("7.0.0", samples.COMMIT, False, False),
    ],
)
def test_where_the_package_came_from_must_be_known(
    version: str, commit: str | None, dirty: bool | None, taken: bool
) -> None:
    record, _ = samples.make("a")
    made = record.versions.model_copy(update={"saebench_meta": version, "commit": commit, "dirty": dirty})
    assert (not faults(record.model_copy(update={"versions": made}))) is taken


def test_a_known_task_is_held_to_what_it_declares() -> None:
    core = registry().tasks["core"]
    record, _ = samples.make("a")
    ours = record.task.model_copy(update={"name": "core", "version": core.version, "plugin": "saebench-meta:core"})
    found = faults(record.model_copy(update={"task": ours}))
    assert "task.parameters" in found and "declares" in found["metrics"]
    newer = ours.model_copy(update={"version": core.version + 1})
    assert "newer than this version" in faults(record.model_copy(update={"task": newer}))["task.version"]
    copied = record.task.model_copy(update={"name": "core"})
    assert (
        "a task of your own needs a name of its own"
        in faults(record.model_copy(update={"task": copied}))["task.plugin"]
    )


def test_an_older_version_of_a_task_stays(tmp_path: Path) -> None:
    """Once on the leaderboard, a record stays there when its task gets a new version."""
    name = next(n for n, t in registry().tasks.items() if t.version > 1)
    record, _ = samples.make("a")
    owner = registry().tasks.owner(name)
    older = record.task.model_copy(update={"name": name, "version": 1, "plugin": f"{owner.distribution}:{owner.name}"})
    assert not faults(record.model_copy(update={"task": older}))


def test_two_records_declare_a_strangers_task_in_one_way(tmp_path: Path) -> None:
    samples.put(tmp_path, samples.make("a"))
    only_one = samples.toy_task(samples.METRICS[:2])
    samples.put(tmp_path, samples.make("b", toy=only_one))
    (said,) = reasons(tmp_path)
    assert "raise the task's version" in said and "toy_errors@1" in said


@pytest.mark.parametrize(
    "text",
    [
        "loss < 0.5 and n > 3", "1 - sse / sst", "(a - b) / c", "hf:org/name", "blocks.0.hook_resid_post", "R&D",
        "1/2 of all", "see Leask et al., section 3", "https://example.org/paper", "and/or", "5e-4", "data: 3 sets",
    ],
)  # fmt: skip
def test_plain_texts_are_let_through(text: str) -> None:
    assert text_fault(text) is None


def test_documents_are_read_once_their_hash_is_right(tmp_path: Path) -> None:
    """A file that would be dangerous to parse is refused for its hash before anything of it is parsed."""
    folder = samples.put(tmp_path, samples.make("a"))
    (folder / DOCUMENTS).write_bytes(b"PAR1 bomb")
    assert "not the file the run wrote" in reasons(tmp_path)[0]


def test_a_results_folder_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(BadFileError, match="--results"):
        check_results(tmp_path / "nowhere", bench())


def test_the_record_is_read_strictly_where_reports_read_it_tolerantly(tmp_path: Path) -> None:
    record, data = samples.make("a")
    later = {**json.loads(record.to_json()), "field_to_come": 1}
    samples.write(tmp_path / place(record), json.dumps(later).encode(), data)
    (said,) = reasons(tmp_path)
    assert "field_to_come: is no field of a record in this version" in said
