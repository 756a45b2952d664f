"""Two records against each other: paired over documents where their statistics allow a test, and said so where not.

Two intervals that overlap are not a test. Where a metric is a formula over per-document sums, both records hold those
sums in `documents.parquet`, so that the difference is resampled over the documents they share.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from saebench_meta import stats
from saebench_meta.errors import SaebenchError
from saebench_meta.record import MetricResult, Record, read_record
from saebench_meta.seeds import rng
from saebench_meta.stats import Estimate
from saebench_meta.store import find_records

if TYPE_CHECKING:
    import numpy as np

SUBJECT_ROLE = "sae"
DATA_FIELDS = ("ref", "revision", "split", "sha256", "sampling")

Verdict = Literal["a", "b", "differs", "tie", "untested"]


@dataclass(frozen=True)
class Comparison:
    """One metric in two records.

    Attributes:
        difference: a − b over the shared documents, with its interval; None where no test is possible.
        no_test: why not.
        verdict: which one is better beyond the noise; `differs` where no direction is better.
    """

    metric: str
    a: MetricResult
    b: MetricResult
    difference: Estimate | None
    no_test: str | None
    verdict: Verdict

    @property
    def plain_difference(self) -> float | None:
        """a − b of the two values as they stand, each over its own sample."""
        return None if self.a.value is None or self.b.value is None else self.a.value - self.b.value


@dataclass(frozen=True)
class RecordComparison:
    """Two records of one task. `remarks`: what differs between them besides the subject."""

    a: Record
    b: Record
    metrics: tuple[Comparison, ...]
    remarks: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """As plain data, for `--json`."""
        return {
            "task": self.a.task.name,
            "a": {"subject": self.a.subject.name, "id": self.a.id},
            "b": {"subject": self.b.subject.name, "id": self.b.id},
            "remarks": list(self.remarks),
            "metrics": {
                c.metric: {
                    "a": c.a.value,
                    "b": c.b.value,
                    "better": c.a.better,
                    "unit": c.a.unit,
                    "difference": None if c.difference is None else asdict(c.difference),
                    "no_test": c.no_test,
                    "verdict": c.verdict,
                }
                for c in self.metrics
            },
        }


def compare(a: Path, b: Path, *, force: bool = False) -> list[RecordComparison]:
    """Compare two records, or the records of two run folders matched by task and subject.

    Args:
        force: compare also where task versions or data differ.

    Raises:
        SaebenchError: nothing matches, or two matched records cannot be compared.
    """
    pairs = match(_ok_records(a), _ok_records(b), a, b)
    return [compare_records(fa, ra, fb, rb, force=force) for (fa, ra), (fb, rb) in pairs]


Found = tuple[Path, Record]


def _ok_records(path: Path) -> list[Found]:
    if path.is_file() or (path / "record.json").is_file():
        record = read_record(path)
        if record.status != "ok":
            raise SaebenchError(
                f"'{path}' is the record of a {record.status} task: {record.reason}. Run it again first."
            )
        return [(path if path.is_dir() else path.parent, record)]
    found = [(folder, r) for folder, r in find_records(path) if r.status == "ok"]
    if not found:
        raise SaebenchError(f"'{path}' holds no finished record. Give a folder a run wrote to, or a record.json.")
    return found


def match(a: Sequence[Found], b: Sequence[Found], where_a: Path, where_b: Path) -> list[tuple[Found, Found]]:
    """Records of the same task: the only one on either side, else those of the same subject."""
    pairs = []
    for task in dict.fromkeys(r.task.name for _, r in a):
        of_a = [f for f in a if f[1].task.name == task]
        of_b = [f for f in b if f[1].task.name == task]
        if len(of_a) == len(of_b) == 1:
            pairs.append((of_a[0], of_b[0]))
            continue
        for found in of_a:
            same = [f for f in of_b if f[1].subject.name == found[1].subject.name]
            twins = [f for f in of_a if f[1].subject.name == found[1].subject.name]
            if len(same) > 1 or (same and len(twins) > 1):
                raise SaebenchError(
                    f"task '{task}' on '{found[1].subject.name}' has several records (other settings) in "
                    f"'{where_a if len(twins) > 1 else where_b}'. Give the two record folders themselves."
                )
            pairs += [(found, same[0])] if same else []
    if not pairs:
        raise SaebenchError(
            f"nothing to compare: '{where_a}' has {_names(a)}, '{where_b}' has {_names(b)}. "
            "Give two records of one task, e.g. two folders that hold a record.json."
        )
    return pairs


def _names(found: Sequence[Found]) -> str:
    return ", ".join(sorted({f"{r.task.name} on {r.subject.name}" for _, r in found}))


def compare_records(folder_a: Path, a: Record, folder_b: Path, b: Record, *, force: bool = False) -> RecordComparison:
    """Every metric two records share.

    Raises:
        SaebenchError: tasks, task versions or data differ (the latter two only without `force`).
    """
    remarks = _remarks(a, b, force)
    documents = _documents(folder_a), _documents(folder_b)
    shared = [name for name in a.metrics if name in b.metrics]
    return RecordComparison(a, b, tuple(_metric(n, a, b, documents) for n in shared), remarks)


def _remarks(a: Record, b: Record, force: bool) -> tuple[str, ...]:
    if a.task.name != b.task.name:
        raise SaebenchError(f"these are records of different tasks: {a.task.name} and {b.task.name}")
    faults = []
    if a.task.version != b.task.version:
        faults.append(f"the task's version differs: {a.task.name}@{a.task.version} and @{b.task.version}")
    if reason := data_difference(a, b):
        faults.append(f"the data differ: {reason}")
    if reason := judge_difference(a, b):
        faults.append(f"the judges differ: {reason}")
    if faults and not force:
        raise SaebenchError(f"{'; '.join(faults)}. Such numbers do not compare; rerun one of the two, or pass --force.")
    other = [
        f"parameter '{name}' differs: {a.task.parameters.get(name)!r} and {b.task.parameters.get(name)!r}"
        for name in sorted(a.task.parameters.keys() | b.task.parameters.keys())
        if a.task.parameters.get(name) != b.task.parameters.get(name)
    ]
    partial = ["a seeded subset (--limit) only"] if a.run.partial or b.run.partial else []
    served = [] if not (a.judge and b.judge) or a.judge.models.keys() == b.judge.models.keys() else [_served(a, b)]
    return (*faults, *other, *served, *partial)


def judge_difference(a: Record, b: Record) -> str | None:
    """What differs in the judges that two records rest on; None if it is the same one, or neither has any."""
    if a.judge is None or b.judge is None:
        return None if a.judge is b.judge else "one of the two had none"
    for name in ("name", "version"):
        if (one := getattr(a.judge, name)) != (two := getattr(b.judge, name)):
            return f"{name} {one} and {two}"
    for what, one, two in (
        ("option", a.judge.options, b.judge.options),
        ("prompt", a.judge.prompts, b.judge.prompts),
    ):
        if unlike := sorted(n for n in one.keys() | two.keys() if one.get(n) != two.get(n)):
            values = (
                f" is {one.get(unlike[0])!r} and {two.get(unlike[0])!r}" if what == "option" else " is not the same"
            )
            return f"{what} '{unlike[0]}' of judge {a.judge.name}{values}"
    return None


def _served(a: Record, b: Record) -> str:
    models = [", ".join(r.judge.models) or "none named" for r in (a, b) if r.judge is not None]
    return f"the judge was served by other models: {' and '.join(models)}"


def data_difference(a: Record, b: Record) -> str | None:
    """What differs in the data two records saw; None if they saw the same tokens, or neither any."""
    one, two = ({s.name: s.content_sha256 for s in r.labelled} for r in (a, b))
    if unlike := sorted(name for name in one.keys() | two.keys() if one.get(name) != two.get(name)):
        return f"not the same texts of the labelled set {', '.join(unlike)}"
    if a.data is None or b.data is None:
        return None if a.data is b.data else "one of the two used none"
    if a.data.content_sha256 and b.data.content_sha256:
        if a.data.content_sha256 == b.data.content_sha256:
            return None
        return _first_difference(a, b) or "not the same tokens"
    return _first_difference(a, b)


def _first_difference(a: Record, b: Record) -> str | None:
    first, second = a.data, b.data
    assert first is not None and second is not None
    for name in DATA_FIELDS:
        one, two = getattr(first, name), getattr(second, name)
        if one == two:
            continue
        if name == "sampling":
            keys = [k for k in sorted(one.keys() | two.keys()) if one.get(k) != two.get(k)]
            return ", ".join(f"sampling.{k} is {one.get(k)!r} and {two.get(k)!r}" for k in keys)
        return f"{name} is {one!r} and {two!r}"
    return None


def _documents(folder: Path) -> Mapping[str, np.ndarray] | None:
    """Per-document columns of the subject itself, without those of its controls."""
    file = folder / "documents.parquet"
    if not file.is_file():
        return None
    import pyarrow.parquet as pq

    table = pq.read_table(file)
    if "role" in table.column_names:
        import pyarrow.compute as pc

        table = table.filter(pc.equal(table["role"], SUBJECT_ROLE))
    return {n: table[n].to_numpy(zero_copy_only=False) for n in table.column_names if n != "role"}


def _metric(
    name: str,
    a: Record,
    b: Record,
    documents: tuple[Mapping[str, np.ndarray] | None, Mapping[str, np.ndarray] | None],
) -> Comparison:
    ma, mb = a.metrics[name], b.metrics[name]
    difference, reason = None, _why_no_test(ma, mb, documents)
    if reason is None:
        assert ma.of is not None and documents[0] is not None and documents[1] is not None
        stream = rng(a.run.seed, "compare", a.task.name, name)
        difference = stats.paired_difference(ma.of, documents[0], documents[1], stream)
        reason = difference.reason
        if difference.value is None or difference.ci_low is None:
            difference = None
    return Comparison(name, ma, mb, difference, reason, _verdict(ma.better, difference))


def _why_no_test(
    a: MetricResult,
    b: MetricResult,
    documents: tuple[Mapping[str, np.ndarray] | None, Mapping[str, np.ndarray] | None],
) -> str | None:
    if a.value is None or b.value is None:
        return f"no value on one side ({a.reason or b.reason})"
    if a.method == b.method == "census":
        return "both are exact over their dictionary (census); another training seed would tell its spread"
    if a.of is None or b.of is None:
        return "the metric is no sum over documents"
    if a.of != b.of:
        return f"the formula differs: {a.of} and {b.of}"
    if documents[0] is None or documents[1] is None:
        return "documents.parquet is missing on one side"
    return None


def _verdict(better: str, d: Estimate | None) -> Verdict:
    if d is None or d.ci_low is None or d.ci_high is None:
        return "untested"
    if d.ci_low <= 0 <= d.ci_high:
        return "tie"
    if better == "neither":
        return "differs"
    return "a" if (d.ci_low > 0) == (better == "higher") else "b"
