"""From outputs to metrics: controls, margins and the declared order."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from saebench_meta.errors import PluginError
from saebench_meta.measure import document_rows, measure
from saebench_meta.stats import census, proportion
from saebench_meta.task import Metric, Output, Task, task

N = 200


def make_task(better: Any = "higher", expects: str | None = "trained>random") -> Task:
    @task(
        "toy",
        version=1,
        metrics=[
            Metric("score", better=better, unit="1", of="hits / trials", expects=expects),
            Metric("whole", better="higher", unit="1", expects="trained>random"),
        ],
    )
    def toy(sae: Any, ctx: Any) -> Output:
        """A toy."""
        raise AssertionError

    return toy


def output(rate: float, whole: float = 1.0, seed: int = 0) -> Output:
    rng = np.random.default_rng(seed)
    documents = {"document": np.arange(N), "hits": rng.binomial(20, rate, N), "trials": np.full(N, 20)}
    return Output(documents=documents, estimates={"whole": census(whole, 8)})


def test_a_clear_order_holds_with_its_margin() -> None:
    metrics = measure(make_task(), {"trained": output(0.8, 2.0), "random": output(0.3, 1.0, 1)}, seed=0)
    score = metrics["score"]
    assert score.order is not None and score.order.holds is True and score.order.observed == "trained>random"
    margin = score.controls["random"].margin
    assert margin is not None and margin.ci_low is not None and margin.value == pytest.approx(0.5, abs=0.05)
    assert 0 < margin.ci_low < margin.value
    assert metrics["whole"].order is not None and metrics["whole"].order.holds is True


def test_an_order_the_wrong_way_round_does_not_hold() -> None:
    metrics = measure(make_task(), {"trained": output(0.3, 1.0), "random": output(0.8, 2.0, 1)}, seed=0)
    assert metrics["score"].order is not None and metrics["score"].order.holds is False
    assert metrics["score"].order.observed == "random>trained"
    assert metrics["whole"].order is not None and metrics["whole"].order.holds is False


def test_a_difference_within_the_noise_is_undecided() -> None:
    metrics = measure(make_task(), {"trained": output(0.5), "random": output(0.5, 1.0, 1)}, seed=0)
    assert metrics["score"].order is not None and metrics["score"].order.holds is None


def test_lower_is_better_turns_the_margin_round() -> None:
    metrics = measure(make_task("lower"), {"trained": output(0.3), "random": output(0.8, 1.0, 1)}, seed=0)
    margin = metrics["score"].controls["random"].margin
    assert margin is not None and margin.value is not None and margin.ci_low is not None and margin.ci_high is not None
    assert 0 < margin.ci_low < margin.value < margin.ci_high
    assert metrics["score"].order is not None and metrics["score"].order.holds is True


@pytest.mark.parametrize("better", ["higher", "lower"])
def test_estimates_without_documents_are_held_against_each_other_by_their_intervals(better: Any) -> None:
    def share(hits: int) -> Output:
        return Output(estimates={"share": proportion(hits, 100, n_unit="latents")})

    @task("toy", version=1, metrics=[Metric("share", better=better, unit="1", expects="trained>random")])
    def toy(sae: Any, ctx: Any) -> Output:
        """A toy."""
        raise AssertionError

    def against(hits: int) -> Any:
        return measure(toy, {"trained": share(hits), "random": share(50)}, 0)["share"]

    ahead, behind = (90, 10) if better == "higher" else (10, 90)
    for hits, holds in ((ahead, True), (behind, False), (55, None)):
        metric = against(hits)
        margin = metric.controls["random"].margin
        assert metric.order.holds is holds
        assert margin.ci_low < margin.value < margin.ci_high and "not paired" in margin.reason
    one, other = proportion(ahead, 100, n_unit="latents"), proportion(50, 100, n_unit="latents")
    margin = against(ahead).controls["random"].margin
    ends = sorted(abs(a - b) for a, b in ((one.ci_low, other.ci_high), (one.ci_high, other.ci_low)))  # type: ignore[operator]
    assert [margin.ci_low, margin.ci_high] == pytest.approx(ends)


def test_a_missing_control_leaves_the_order_open() -> None:
    metrics = measure(make_task(), {"trained": output(0.8)}, seed=0)
    assert metrics["score"].order is not None and metrics["score"].order.holds is None


def test_without_an_oracle_the_rest_of_the_order_is_tested() -> None:
    task = make_task(expects="oracle>trained>random")
    outputs = {"trained": output(0.8), "random": output(0.3, 1.0, 1)}
    without = measure(task, outputs, seed=0)["score"].order
    assert without is not None and without.holds is True
    beaten = measure(task, {**outputs, "oracle": output(0.5, 1.0, 2)}, seed=0)["score"].order
    assert beaten is not None and beaten.holds is False
    assert beaten.observed == "trained>oracle>random"


def test_the_same_documents_are_paired() -> None:
    """A control equal to the subject up to a constant per document has a margin without spread."""
    subject, control = output(0.5), output(0.5)
    assert control.documents is not None and subject.documents is not None
    control.documents["hits"] = np.asarray(subject.documents["hits"]) - 1  # type: ignore[index]
    margin = measure(make_task(), {"trained": subject, "random": control}, 0)["score"].controls["random"].margin
    assert margin is not None and (margin.ci_low, margin.ci_high) == pytest.approx((0.05, 0.05))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"estimates": {}}, r"missing \['whole'\]"),
        ({"estimates": {"whole": census(1.0, 1), "more": census(1.0, 1)}}, r"not declared \['more'\]"),
        ({"documents": None}, "no per-document columns"),
        ({"documents": {"document": np.arange(3), "hits": np.ones(2), "trials": np.ones(3)}}, "differ in length"),
    ],
)
def test_an_output_that_does_not_match_its_task_is_refused(change: dict[str, Any], message: str) -> None:
    good = output(0.5)
    bad = Output(**{"documents": good.documents, "estimates": good.estimates, **change})
    with pytest.raises(PluginError, match=message):
        measure(make_task(), {"trained": bad}, seed=0)


def test_document_rows_keep_subject_and_controls_apart() -> None:
    rows = document_rows({"trained": output(0.5), "random": output(0.1)})
    assert rows is not None
    assert rows["role"] == ["sae"] * N + ["random"] * N and len(rows["hits"]) == 2 * N
