"""Running a plan: what is done is kept, what fails is recorded, nothing finished is lost."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import toy_plugin

from saebench_meta.events import Event, Notice, RunFinished, UnitFinished
from saebench_meta.plan import make_plan
from saebench_meta.plugins import Registry
from saebench_meta.record import Record, read_record
from saebench_meta.runner import RunResult, execute
from saebench_meta.settings import Settings
from saebench_meta.task import Metric, Output, task


@pytest.fixture
def registry() -> Registry:
    made = Registry()
    made.register(toy_plugin)
    toy_plugin.CALLS.clear()
    return made


def go(registry: Registry, out: Path, **fields: Any) -> RunResult:
    settings = Settings(**{"saes": ("toy:x-16",), "tasks": ("toy_width",), "out": out, **fields})
    return execute(registry, make_plan(registry, settings), settings)


def only_record(result: RunResult) -> Record:
    assert len(result.results) == 1
    record = result.results[0].record
    assert record is not None
    return record


def test_a_finished_record_is_kept_and_force_runs_it_again(registry: Registry, tmp_path: Path) -> None:
    first = go(registry, tmp_path)
    assert first.results[0].status == "ok" and toy_plugin.CALLS == ["toy-x-16"]
    again = go(registry, tmp_path)
    assert again.results[0].status == "kept" and toy_plugin.CALLS == ["toy-x-16"]
    assert only_record(again) == only_record(first)
    assert go(registry, tmp_path, force=True).results[0].status == "ok"
    assert toy_plugin.CALLS == ["toy-x-16"] * 2


def test_a_record_says_what_was_run(registry: Registry, tmp_path: Path) -> None:
    result = go(registry, tmp_path, seed=3, parameters={"toy_width": {"scale": 2.0}}, limit=7)
    record = only_record(result)
    assert record.metrics["width"].value == 32 and record.metrics["width"].method == "census"
    assert record.task.parameters["scale"] == 2.0
    assert (record.run.seed, record.run.limit, record.run.partial) == (3, 7, True)
    assert record.subject.saes[0].info.d_sae == 16
    folder = result.results[0].folder
    assert folder is not None and read_record(folder) == record
    assert str(tmp_path) not in (folder / "record.json").read_text()


def test_a_failing_task_is_recorded_and_the_others_go_on(registry: Registry, tmp_path: Path) -> None:
    result = go(registry, tmp_path, tasks=("toy_failing", "toy_width"))
    assert [r.status for r in result.results] == ["failed", "ok"]
    failed = result.results[0]
    assert failed.reason == "RuntimeError: it broke" and failed.folder is not None
    assert read_record(failed.folder).status == "failed"
    log = next((tmp_path / ".logs").iterdir())
    assert "raise RuntimeError" in log.read_text()
    assert [r.status for r in go(registry, tmp_path, tasks=("toy_failing", "toy_width")).results] == ["failed", "kept"]


def test_fail_fast_stops_at_the_first_failure(registry: Registry, tmp_path: Path) -> None:
    result = go(registry, tmp_path, tasks=("toy_failing", "toy_width"), fail_fast=True)
    assert [r.status for r in result.results] == ["failed"]


def test_a_rerun_that_fails_does_not_take_a_finished_result_away(
    registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = go(registry, tmp_path)

    def load(*args: Any, **kwargs: Any) -> None:
        raise RuntimeError("disk gone")

    object.__setattr__(registry.loaders["toy"], "load", load)
    try:
        bad = go(registry, tmp_path, force=True)
    finally:
        object.__setattr__(registry.loaders["toy"], "load", toy_plugin.load)
    assert bad.results[0].status == "failed"
    assert good.results[0].folder is not None and read_record(good.results[0].folder) == good.results[0].record


def test_a_damaged_record_is_done_again(registry: Registry, tmp_path: Path) -> None:
    folder = go(registry, tmp_path).results[0].folder
    assert folder is not None
    (folder / "record.json").write_text("{")
    assert go(registry, tmp_path).results[0].status == "ok"


def test_controls_of_a_pair_replace_only_the_sae_under_test(registry: Registry, tmp_path: Path) -> None:
    seen = []

    @task(
        "toy_seen",
        version=1,
        subject="pair",
        needs=["reference"],
        metrics=[Metric("zero", better="neither", unit="1")],
        controls=["permuted_columns", "random", "oracle"],
    )
    def toy_seen(pair: Any, ctx: Any) -> Output:
        """Notes what it is given."""
        seen.append((pair.sae.info.name, pair.reference.info.name))
        return Output(estimates={"zero": ctx.census(0.0, 1)})

    class Plugin:
        saebench_api = 1

    info = registry.register(Plugin)  # type: ignore[arg-type]  # any object can be a plugin
    registry.tasks.add("toy_seen", toy_seen, info)
    record = only_record(go(registry, tmp_path, tasks=("toy_seen",)))
    assert seen == [
        ("toy-x-16", "toy-x-8"),
        ("toy-x-16 [permuted columns]", "toy-x-8"),
        ("toy-x-16 [random]", "toy-x-8"),
    ]
    assert list(record.metrics["zero"].controls) == ["permuted_columns", "random"]
    [note] = record.notes  # and none of an oracle: no world that has one is known here
    assert note == "reference: toy-x-8 (toy:x-8), the widest narrower one, in the catalogue"


def test_listeners_see_every_event_and_a_broken_one_disturbs_nobody(registry: Registry, tmp_path: Path) -> None:
    events: list[Event] = []

    def broken(event: Event) -> None:
        raise ValueError("listener")

    registry.listen(broken)
    remove = registry.listen(events.append)
    go(registry, tmp_path, tasks=("toy_failing", "toy_width"))
    remove()
    go(registry, tmp_path)
    finished = [e for e in events if isinstance(e, UnitFinished)]
    assert [(e.task, e.status) for e in finished] == [("toy_failing", "failed"), ("toy_width", "ok")]
    assert any(isinstance(e, Notice) and "traceback" in e.message for e in events)
    assert isinstance(events[-1], RunFinished) and (events[-1].ok, events[-1].failed) == (1, 1)
    assert all(e.to_json()["event"] == type(e).__name__ for e in events)


def test_a_task_that_returns_something_else_is_a_failure_with_its_name(registry: Registry, tmp_path: Path) -> None:
    @task("toy_wrong", version=1, metrics=[Metric("promised", better="neither", unit="1")], controls=())
    def toy_wrong(sae: Any, ctx: Any) -> Output:
        """Promises one metric and gives another."""
        return Output(estimates={"other": ctx.census(1.0, 1)})

    class Plugin:
        saebench_api = 1

    registry.tasks.add("toy_wrong", toy_wrong, registry.register(Plugin))  # type: ignore[arg-type]
    result = go(registry, tmp_path, tasks=("toy_wrong",)).results[0]
    assert result.status == "failed" and "missing ['promised']" in str(result.reason)


def test_every_sae_gets_its_own_controls_however_many_there_are(registry: Registry, tmp_path: Path) -> None:
    """Far more SAEs than are kept at once: a control must be made of the SAE it stands beside."""
    seen: list[tuple[str, str]] = []

    @task(
        "toy_own",
        version=1,
        metrics=[Metric("zero", better="neither", unit="1")],
        controls=["permuted_rows", "permuted_columns", "random"],
    )
    def toy_own(sae: Any, ctx: Any) -> Output:
        """Notes which SAE it is given."""
        seen.append((sae.info.name, str(sae.d_sae)))
        return Output(estimates={"zero": ctx.census(0.0, 1)})

    class Plugin:
        saebench_api = 1

    registry.tasks.add("toy_own", toy_own, registry.register(Plugin))  # type: ignore[arg-type]
    go(registry, tmp_path, saes=tuple(f"toy:x-{w}" for w in range(4, 64)), tasks=("toy_own",))
    assert len(seen) == 4 * 60
    for i, (name, width) in enumerate(seen):
        assert name.startswith(f"toy-x-{i // 4 + 4}") and width == str(i // 4 + 4)
        assert name.endswith(("", "[permuted rows]", "[permuted columns]", "[random]")[i % 4])


def test_a_failed_record_still_says_what_was_asked(registry: Registry, tmp_path: Path) -> None:
    record = only_record(go(registry, tmp_path, tasks=("toy_failing",), seed=5))
    assert record.status == "failed" and record.run.seed == 5 and record.task.name == "toy_failing"
