"""Comparing two records: paired over documents, refused where numbers do not compare, silent nowhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from record_samples import data, metric, record, write

from saebench_meta.compare import compare
from saebench_meta.errors import SaebenchError
from saebench_meta.record import TaskRef

N = 60
RNG = np.random.default_rng(0)
SHARED = RNG.normal(10, 3, N)
"""Differences between documents, far larger than those between the two SAEs."""
NOISE = RNG.normal(0, 0.1, N)


def documents(gain: float, ids: Any = None, control: float | None = 100.0) -> dict[str, list[Any]]:
    """Columns whose mean is that of SHARED plus `gain`; a control's rows stand below the subject's."""
    ids = list(range(N)) if ids is None else list(ids)
    columns = {"role": ["sae"] * N, "document": ids, "s": list(SHARED + gain + NOISE * gain), "n": [1.0] * N}
    if control is not None:
        extra = {"role": ["random"] * N, "document": ids, "s": [control] * N, "n": [1.0] * N}
        columns = {k: [*columns[k], *extra[k]] for k in columns}
    return columns


def put(run: Path, gain: float, name: str = "wide", **fields: Any) -> Path:
    better = fields.pop("better", "higher")
    found = fields.pop("documents", documents(gain))
    metrics = {"score": metric(of="s / n", better=better), "count": metric(5.0, None, None, unit="latents")}
    made = record(name=name, metrics=metrics, **{"data": data(), **fields})
    return write(run, made, documents=found)


def test_a_difference_far_smaller_than_the_spread_over_documents_is_found_because_it_is_paired(tmp_path: Path) -> None:
    a, b = put(tmp_path / "a", 0.5), put(tmp_path / "b", 0.0)
    (pair,) = compare(a, b)
    score = next(c for c in pair.metrics if c.metric == "score")
    assert score.difference is not None and score.no_test is None
    assert score.difference.value == pytest.approx(0.5 + 0.5 * NOISE.mean())
    assert score.difference.n == N
    assert score.verdict == "a"
    unpaired_half_width = 1.96 * SHARED.std() * np.sqrt(2 / N)
    assert score.difference.value < unpaired_half_width


@pytest.mark.parametrize(("better", "verdict"), [("higher", "a"), ("lower", "b"), ("neither", "differs")])
def test_the_verdict_follows_the_direction_of_the_metric(tmp_path: Path, better: str, verdict: str) -> None:
    (pair,) = compare(put(tmp_path / "a", 0.5, better=better), put(tmp_path / "b", 0.0, better=better))
    assert pair.metrics[0].verdict == verdict


def test_equal_records_are_a_tie(tmp_path: Path) -> None:
    (pair,) = compare(put(tmp_path / "a", 0.5), put(tmp_path / "b", 0.5))
    assert pair.metrics[0].difference is not None and pair.metrics[0].difference.value == 0
    assert pair.metrics[0].verdict == "tie"


def test_only_documents_in_both_count(tmp_path: Path) -> None:
    ids = [*range(N // 2), *range(1000, 1000 + N - N // 2)]
    b = put(tmp_path / "b", 0.0, documents=documents(0.0, ids))
    (pair,) = compare(put(tmp_path / "a", 0.5), b)
    assert pair.metrics[0].difference is not None and pair.metrics[0].difference.n == N // 2


def test_a_census_is_not_tested_and_says_so(tmp_path: Path) -> None:
    (pair,) = compare(put(tmp_path / "a", 0.5), put(tmp_path / "b", 0.0))
    count = next(c for c in pair.metrics if c.metric == "count")
    assert count.difference is None and count.verdict == "untested" and "census" in (count.no_test or "")
    assert count.plain_difference == 0


def test_without_documents_no_test_is_made_up(tmp_path: Path) -> None:
    (pair,) = compare(put(tmp_path / "a", 0.5, documents=None), put(tmp_path / "b", 0.0))
    assert pair.metrics[0].difference is None
    assert pair.metrics[0].no_test == "documents.parquet is missing on one side"


def test_other_data_are_refused_naming_what_differs(tmp_path: Path) -> None:
    a, b = put(tmp_path / "a", 0.5), put(tmp_path / "b", 0.0, data=data("e" * 64, context=32))
    with pytest.raises(SaebenchError, match=r"sampling.context is 64 and 32.*--force"):
        compare(a, b)
    (pair,) = compare(a, b, force=True)
    assert "the data differ" in pair.remarks[0]


def test_another_task_version_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SaebenchError, match="toy_task@1 and @2"):
        compare(put(tmp_path / "a", 0.5), put(tmp_path / "b", 0.0, version=2))


def test_different_parameters_are_remarked(tmp_path: Path) -> None:
    other = TaskRef(name="toy_task", version=1, parameters={"power": 3.0}, plugin="toy:toy", plugin_version="1")
    (pair,) = compare(put(tmp_path / "a", 0.5), _with_task(tmp_path / "b", other))
    assert pair.remarks == ("parameter 'power' differs: 2.0 and 3.0",)


def _with_task(run: Path, task: TaskRef) -> Path:
    made = record(data=data()).model_copy(update={"task": task})
    return write(run, made, documents=documents(0.0))


def test_run_folders_are_matched_by_subject_where_a_task_has_several(tmp_path: Path) -> None:
    for run in ("a", "b"):
        for name in ("narrow", "wide"):
            put(tmp_path / run, 0.0, name)
    pairs = compare(tmp_path / "a", tmp_path / "b")
    assert [(p.a.subject.name, p.b.subject.name) for p in pairs] == [("narrow", "narrow"), ("wide", "wide")]


def test_run_folders_with_one_subject_each_are_matched_whatever_its_name(tmp_path: Path) -> None:
    put(tmp_path / "a", 0.0, "narrow")
    put(tmp_path / "b", 0.0, "wide")
    (pair,) = compare(tmp_path / "a", tmp_path / "b")
    assert (pair.a.subject.name, pair.b.subject.name) == ("narrow", "wide")


def test_folders_without_a_common_task_name_what_they_hold(tmp_path: Path) -> None:
    write(tmp_path / "a", record(task="first"))
    write(tmp_path / "b", record(task="second"))
    with pytest.raises(SaebenchError, match=r"has first on wide.*has second on wide"):
        compare(tmp_path / "a", tmp_path / "b")


def test_two_records_of_one_subject_and_task_are_ambiguous(tmp_path: Path) -> None:
    put(tmp_path / "a", 0.0)
    put(tmp_path / "a", 0.0, data=data(seed=1))
    put(tmp_path / "b", 0.0)
    with pytest.raises(SaebenchError, match="has several records"):
        compare(tmp_path / "a", tmp_path / "b")


def test_a_failed_record_is_not_compared(tmp_path: Path) -> None:
    a = write(tmp_path / "a", record(status="failed", reason="out of memory"))
    with pytest.raises(SaebenchError, match="failed task: out of memory"):
        compare(a, put(tmp_path / "b", 0.0))
