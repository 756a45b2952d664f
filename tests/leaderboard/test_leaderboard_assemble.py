"""The board: what makes a row, what makes a column, which record stands in a cell, and what is said of the rest."""

from __future__ import annotations

from pathlib import Path

import board_records as samples
import pytest

from saebench_meta.leaderboard import differences
from saebench_meta.leaderboard.assemble import board
from saebench_meta.leaderboard.board import Board, Row
from saebench_meta.leaderboard.columns import Setting, labels
from saebench_meta.leaderboard.results import place, row_id, weights_of
from saebench_meta.record import JudgeUsed
from saebench_meta.stats import proportion


def put(results: Path, *made: tuple[object, bytes]) -> None:
    for one in made:
        samples.put(results, one)  # type: ignore[arg-type]


def saes(made: Board) -> dict[str, Row]:
    return {r.name: r for r in made.rows if r.kind == "sae"}


def test_a_row_is_an_sae_and_a_column_a_metric(tmp_path: Path) -> None:
    put(tmp_path, samples.make("b", 0.7), samples.make("a", 0.5), samples.make("c", 0.5, model="other-model"))
    made = board(tmp_path)
    assert [r.name for r in made.rows if r.kind == "sae"] == ["c", "a", "b"]  # by model, hook, name
    assert [c.key for c in made.columns] == ["toy_errors@1.error", "toy_errors@1.gain", "toy_errors@1.share"]
    error = made.columns[0]
    assert (error.unit, error.better, error.main, error.expects) == ("1", "lower", True, "trained>random")
    assert (error.order_failed, error.order_tested) == (0, 3) and error.plugin == samples.PLUGIN
    cell = saes(made)["a"].cells["toy_errors@1.error"]
    assert cell.value == pytest.approx(0.5, abs=0.1) and cell.low < cell.value < cell.high  # type: ignore[operator]
    assert cell.order == "holds" and cell.controls["random"][0] == pytest.approx(2.0, abs=0.3)
    assert saes(made)["b"].cells["toy_errors@1.error"].rank == 2
    assert saes(made)["c"].cells["toy_errors@1.error"].rank is None  # alone at its site


def test_the_same_weights_at_another_site_are_another_row() -> None:
    here, there = (samples.sae("a", hook=f"blocks.{i}.hook_resid_post", weights=samples.sha("w")) for i in (0, 1))
    assert weights_of(here) == weights_of(there) and row_id(here) != row_id(there)
    renamed = samples.sae("b", weights=samples.sha("w"))
    assert row_id(renamed) == row_id(here)


def test_files_are_known_by_what_they_hold_not_by_their_names() -> None:
    one, two = samples.sae("a"), samples.sae("a")
    parts = {"x.safetensors": samples.sha(1), "cfg.json": samples.sha(2)}
    moved = {"y.safetensors": samples.sha(1), "config.json": samples.sha(2)}
    a, b = one.model_copy(update={"files": parts}), two.model_copy(update={"files": moved})
    assert weights_of(a) == weights_of(b) != weights_of(one)


def test_numbers_under_other_settings_stand_in_other_columns(tmp_path: Path) -> None:
    judge = JudgeUsed(name="lexical", version="1")
    base, _ = samples.make()
    assert base.data is not None
    fewer = base.data.model_copy(update={"sampling": {"tokens": 512, "context": 64, "seed": 0}})
    put(
        tmp_path,
        samples.make("a"),
        samples.make("b"),
        samples.make("a", judge=judge),
        samples.make("a", 0.6, data=fewer),
    )
    made = board(tmp_path)
    errors = [c for c in made.columns if c.metric == "error"]
    assert len({c.key for c in errors}) == 3 and all("~" in c.key for c in errors)
    assert next(c.setting_label for c in errors) == "tokens 1024"  # most SAEs first
    assert {c.setting_label for c in errors} == {
        "tokens 1024",
        "tokens 512",
        "judge lexical, judge version 1, tokens 1024",
    }
    assert sum(c.key in saes(made)["a"].cells for c in errors) == 3
    assert sum(c.key in saes(made)["b"].cells for c in errors) == 1


def test_a_model_of_the_same_name_that_is_another_is_another_setting(tmp_path: Path) -> None:
    base, _ = samples.make()
    assert base.model is not None
    faked = base.model.model_copy(update={"files": {"model": samples.sha("another")}})
    record, data = samples.make("c", 0.4)
    put(tmp_path, samples.make("a"), samples.make("b", 0.6), (record.model_copy(update={"model": faked}), data))
    made = board(tmp_path)
    assert len([c for c in made.columns if c.metric == "error"]) == 2
    assert all({d.a, d.b} == {saes(made)["a"].id, saes(made)["b"].id} for ds in made.differences.values() for d in ds)


def test_another_seed_is_no_setting_and_the_smallest_stands_in_the_cell(tmp_path: Path) -> None:
    best = samples.make("a", 0.3, seed=2, draw=2)
    first = samples.make("a", 0.5, seed=0)
    put(tmp_path, best, first)
    made = board(tmp_path)
    cell = saes(made)["a"].cells["toy_errors@1.error"]
    assert cell.record == first[0].id  # type: ignore[attr-defined]
    assert cell.others == (best[0].id,)  # type: ignore[attr-defined]
    assert len(made.sources) == 2


def test_other_documents_are_shown_in_a_column_and_not_compared(tmp_path: Path) -> None:
    put(tmp_path, samples.make("a", 0.5), samples.make("b", 0.9, seed=1, draw=1))
    made = board(tmp_path)
    (difference,) = made.differences["toy_errors@1.error"]
    assert difference.verdict == "untested"
    assert all(r.cells["toy_errors@1.error"].rank is None for r in saes(made).values())


def test_pairs_are_compared_against_one_reference_only(tmp_path: Path) -> None:
    put(
        tmp_path,
        *(samples.make(n, level, against=r) for n, level, r in (("a", 0.5, "r"), ("b", 0.7, "r"), ("c", 0.9, "q"))),
    )
    made = board(tmp_path)
    verdicts = {(d.a, d.b): d.verdict for d in made.differences["toy_errors@1.error"]}
    ids = {name: row.id for name, row in saes(made).items()}
    assert verdicts[ids["a"], ids["b"]] == "a"
    assert verdicts[ids["a"], ids["c"]] == verdicts[ids["b"], ids["c"]] == "untested"
    assert saes(made)["c"].cells["toy_errors@1.error"].reference == "q"


def test_an_older_version_stays_and_is_not_current(tmp_path: Path) -> None:
    put(tmp_path, samples.make("a"), samples.make("b", toy=samples.toy_task(version=2)))
    made = board(tmp_path)
    assert {(c.version, c.current) for c in made.columns} == {(1, False), (2, True)}
    assert saes(made)["a"].have == 0 and saes(made)["b"].have == 2
    assert saes(made)["a"].of == 2


def test_coverage_counts_what_the_site_has(tmp_path: Path) -> None:
    other = samples.toy_task(samples.METRICS[:2], name="toy_other")
    put(tmp_path, samples.make("a"), samples.make("b", 0.6), samples.make("a", toy=other))
    made = board(tmp_path)
    assert {(r.name, r.have, r.of) for r in saes(made).values()} == {("a", 3, 3), ("b", 2, 3)}


def test_controls_are_reference_rows(tmp_path: Path) -> None:
    put(tmp_path, samples.make("a"), samples.make("b", 0.6))
    (control,) = [r for r in board(tmp_path).rows if r.kind == "control"]
    cell = control.cells["toy_errors@1.error"]
    assert control.name == "control: random" and (cell.n, cell.n_unit) == (2, "SAEs")
    assert cell.low <= cell.value <= cell.high  # type: ignore[operator]
    assert control.have == control.of == 0


def test_a_proportion_without_documents_is_shown_and_not_ranked(tmp_path: Path) -> None:
    for name, hits in (("a", 10), ("b", 90)):
        samples.put(tmp_path, samples.make(name, share=proportion(hits, 100, n_unit="draws")))
    (found,) = board(tmp_path).differences["toy_errors@1.share"]
    assert found.verdict == "untested" and "no sum over documents" in (found.reason or "")


def test_what_is_let_through_is_said_at_the_top(tmp_path: Path) -> None:
    put(tmp_path, samples.make("a", settings={"profile": "quick"}), samples.make("b"))
    assert [r.name for r in board(tmp_path).rows if r.kind == "sae"] == ["b"]
    assert "kept out" in board(tmp_path).warnings[0]
    shown = board(tmp_path, frozenset({"quick"}))
    assert len(saes(shown)) == 2 and "1 of 2 records" in shown.warnings[0]
    assert board(tmp_path, frozenset({"quick"})) == shown


def test_sources_tell_how_a_record_was_made(tmp_path: Path) -> None:
    record, data = samples.make("a")
    folder = samples.put(tmp_path, (record, data))
    source = board(tmp_path).sources[record.id]
    assert source.facts["record"] == folder.relative_to(tmp_path).as_posix() == place(record).as_posix()
    assert source.facts["sae"]["weights"] == weights_of(record.subject.saes[0])
    assert source.facts["versions"]["commit"] == samples.COMMIT
    assert source.task == "toy_errors@1" and "metrics" not in source.facts


def test_labels_say_where_settings_differ() -> None:
    settings = [Setting({"corpus": {"ref": "x", "sha256": "1"}, "sampling": {"tokens": t}}) for t in (1, 2)]
    assert labels(settings) == ["tokens 1", "tokens 2"]
    assert labels(settings[:1]) == [""]
    hashes = [Setting({"corpus": {"ref": "x", "sha256": h}}) for h in ("abc", "def")]
    assert labels(hashes) == ["sha256 abc", "sha256 def"]
    long = [Setting({"labelled": [{"name": "x" * 60, "sha256": h}]}) for h in ("abc", "def")]
    assert len(set(labels(long))) == 2


def test_an_empty_leaderboard_is_one(tmp_path: Path) -> None:
    assert board(tmp_path) == Board((), (), {}, {})


def test_too_many_pairs_leave_the_other_columns_untested(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path, *(samples.make(name, level) for name, level in (("a", 0.5), ("b", 0.6), ("c", 0.7))))
    assert {key.rpartition(".")[2] for key in board(tmp_path).differences} == {"error", "gain", "share"}
    monkeypatch.setattr(differences, "MAX_PAIRS", 8)
    made = board(tmp_path)
    assert {key.rpartition(".")[2] for key in made.differences} == {"error", "share"}
    assert "only main columns are tested" in made.warnings[-1]
    assert saes(made)["a"].cells["toy_errors@1.gain"].rank is None
