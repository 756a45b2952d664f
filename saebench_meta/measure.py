"""From a task's output to a record's metrics: values, intervals, controls, and whether the declared order holds."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict
from functools import cache
from itertools import pairwise
from typing import TYPE_CHECKING

from saebench_meta import seeds, stats
from saebench_meta.errors import PluginError
from saebench_meta.record import ControlResult, Interval, MetricResult, Order
from saebench_meta.task import ORACLE, Metric, Output, Task

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import ArrayLike

    from saebench_meta.stats import Estimate

SUBJECT = "trained"
"""What the subject is called in an expected order, beside the names of controls."""


def _draws(task: Task, seed: int) -> np.random.Generator:
    """The same resamples for all metrics, subject and controls of a task, so that they are compared on equal terms."""
    return seeds.rng(seed, task.name, "documents")


def check_output(task: Task, output: Output) -> None:
    """Refuse an output that does not give exactly the metrics its task declares.

    Raises:
        PluginError: names the task and what is missing or too much.
    """
    own = {m.name for m in task.metrics if m.of is None}
    if own != set(output.estimates):
        missing, extra = sorted(own - set(output.estimates)), sorted(set(output.estimates) - own)
        raise PluginError(f"task '{task.name}': estimates missing {missing}, not declared {extra}")
    if any(m.of for m in task.metrics):
        documents = output.documents
        if documents is None or "document" not in documents:
            raise PluginError(f"task '{task.name}' has metrics with a formula but returns no per-document columns")
        lengths = {name: len(column) for name, column in documents.items()}  # type: ignore[arg-type]  # sized arrays
        if len(set(lengths.values())) != 1:
            raise PluginError(f"task '{task.name}': per-document columns differ in length: {lengths}")


def estimate(metric: Metric, output: Output, task: Task, seed: int) -> Estimate:
    """A metric's estimate: from its formula over documents, or as the task gave it."""
    if metric.of is None:
        return output.estimates[metric.name]
    assert output.documents is not None
    return stats.from_documents(metric.of, output.documents, _draws(task, seed))


def measure(task: Task, outputs: Mapping[str, Output], seed: int) -> dict[str, MetricResult]:
    """All metrics of a subject and its controls.

    Args:
        outputs: `trained` and each control that could be run -> output.
    """
    for output in outputs.values():
        check_output(task, output)
    return {m.name: _metric(task, m, outputs, seed) for m in task.metrics}


def _metric(task: Task, metric: Metric, outputs: Mapping[str, Output], seed: int) -> MetricResult:
    estimates = {role: estimate(metric, output, task, seed) for role, output in outputs.items()}

    @cache
    def margin(a: str, b: str) -> Interval | None:
        return _margin(task, metric, outputs, estimates, a, b, seed)

    controls = {
        role: ControlResult(**asdict(e), margin=margin(SUBJECT, role))
        for role, e in estimates.items()
        if role != SUBJECT
    }
    return MetricResult(
        **asdict(estimates[SUBJECT]),
        better=metric.better,
        unit=metric.unit,
        main=metric.main,
        of=metric.of,
        help=metric.help,
        controls=controls,
        order=_order(metric, estimates, margin),
    )


def _margin(
    task: Task,
    metric: Metric,
    outputs: Mapping[str, Output],
    estimates: Mapping[str, Estimate],
    a: str,
    b: str,
    seed: int,
) -> Interval | None:
    """How far `a` is ahead of `b`: paired over documents where the metric has a formula, else the plain difference."""
    ea, eb = estimates[a], estimates[b]
    if ea.value is None or eb.value is None:
        return None
    sign = -1.0 if metric.better == "lower" else 1.0
    if metric.of is None:
        return _unpaired(ea, eb, sign)
    first, second = outputs[a].documents, outputs[b].documents
    assert first is not None and second is not None
    d = stats.paired_difference(metric.of, first, second, _draws(task, seed))
    return _signed(d, sign)


def _unpaired(ea: Estimate, eb: Estimate, sign: float) -> Interval:
    """The difference of two estimates, with the widest interval that their own two allow."""
    assert ea.value is not None and eb.value is not None
    made = Interval(value=sign * (ea.value - eb.value), n=ea.n, n_unit=ea.n_unit, method=ea.method)
    if ea.method == "census":
        return made
    limits = [limit for limit in (ea.ci_low, ea.ci_high, eb.ci_low, eb.ci_high) if limit is not None]
    if len(limits) < 4 or ea.level != eb.level:
        return made.model_copy(update={"reason": "no paired test: this metric has no per-document formula"})
    low, high = sorted((sign * (limits[0] - limits[3]), sign * (limits[1] - limits[2])))
    why = "not paired: as wide as the two intervals allow"
    return made.model_copy(update={"ci_low": low, "ci_high": high, "level": ea.level, "reason": why})


def _signed(d: Estimate, sign: float) -> Interval:
    low, high = d.ci_low, d.ci_high
    if sign < 0 and low is not None and high is not None:
        low, high = -high, -low
    value = None if d.value is None else sign * d.value
    return Interval(**{**asdict(d), "value": value, "ci_low": low, "ci_high": high})


def _order(
    metric: Metric, estimates: Mapping[str, Estimate], margin: Callable[[str, str], Interval | None]
) -> Order | None:
    """The declared order against the one seen; it holds when every neighbour is ahead by more than its noise."""
    ranked = sorted(
        (r for r in estimates if estimates[r].value is not None),
        key=lambda r: estimates[r].value or 0.0,
        reverse=metric.better != "lower",
    )
    observed = ">".join(ranked)
    if metric.expects is None:
        return None
    wanted = [r for r in metric.expects.split(">") if r != ORACLE or r in estimates]  # most SAEs have no oracle
    roles = [r for r in wanted if r in estimates]
    if len(roles) < max(2, len(wanted)):
        return Order(expected=metric.expects, observed=observed, holds=None, why=metric.why)
    verdicts = [_ahead(margin(a, b)) for a, b in pairwise(roles)]
    holds = False if False in verdicts else None if None in verdicts else True
    return Order(expected=metric.expects, observed=observed, holds=holds, why=metric.why)


def _ahead(margin: Interval | None) -> bool | None:
    """True or False where the interval (or, for a census, the sign) decides; None within the noise."""
    if margin is None or margin.value is None:
        return None
    if margin.ci_low is None or margin.ci_high is None:
        return margin.value > 0 if margin.method == "census" else None
    return True if margin.ci_low > 0 else False if margin.ci_high < 0 else None


def document_rows(outputs: Mapping[str, Output]) -> dict[str, list[ArrayLike]] | None:
    """Per-document columns of the subject (`role` = `sae`) and its controls, one below the other."""
    import numpy as np

    with_documents = {role: o.documents for role, o in outputs.items() if o.documents is not None}
    if not with_documents:
        return None
    columns: dict[str, list[ArrayLike]] = {"role": []}
    for role, documents in with_documents.items():
        n = len(np.asarray(documents["document"]))
        columns["role"].extend(["sae" if role == SUBJECT else role] * n)
        for name, values in documents.items():
            columns.setdefault(name, []).extend(np.asarray(values).tolist())
    return columns
