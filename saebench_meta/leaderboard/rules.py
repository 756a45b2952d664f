"""What a record must say to stand on the leaderboard, beyond being a record: provenance, intervals, a task we know.

Each rule takes a record and the bench and yields its faults: a field, what is wrong with it and what to do.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Sized
from dataclasses import dataclass
from datetime import datetime
from typing import Literal, get_args

import saebench_meta
from saebench_meta.leaderboard.results import DOCUMENTS, reference_sae, subject_sae, weights_of
from saebench_meta.leaderboard.texts import Fault, hash_fault
from saebench_meta.plugins import Registry
from saebench_meta.record import Interval, MetricResult, Record
from saebench_meta.settings import Profile
from saebench_meta.stats import LEVEL
from saebench_meta.store import slug
from saebench_meta.task import CONTROLS, ORACLE, Metric, Task

Allowance = Literal["quick", "dirty", "partial"]
ALLOWANCES: tuple[str, ...] = get_args(Allowance)
OURS = "saebench-meta"
RELEASE = re.compile(r"\d+\.\d+(\.\d+)?")
COMMIT = re.compile(r"[0-9a-f]{40}")
PLUGIN = re.compile(r"[A-Za-z0-9._-]+:[A-Za-z0-9._-]+")
MAX_WIDTH = 10**8
MAX_SAMPLE = 10**13
MAX_ITEMS = 200
"""Notes, artifacts, labelled sets, files of one SAE."""
EXTRA_BYTES = 10_000


@dataclass(frozen=True, eq=False)
class Bench:
    """What records are held against.

    Attributes:
        registry: the tasks of this installation.
        allow: what is let through for a look at one's own numbers; none of it where others read them.
        intervals: whether intervals are worked out again as well as values; dearer.
    """

    registry: Registry
    allow: frozenset[str] = frozenset()
    intervals: bool = True


def owner(registry: Registry, task: str) -> str:
    """The plugin of an installed task, as records name it."""
    plugin = registry.tasks.owner(task)
    return f"{plugin.distribution}:{plugin.name}"


def declared_task(record: Record, registry: Registry) -> Task | None:
    """The task a record is of, if it is installed in the record's version and by the record's plugin."""
    name = record.task.name
    if name not in registry.tasks or record.task.plugin != owner(registry, name):
        return None
    found = registry.tasks[name]
    return found if found.version == record.task.version else None


def is_third_party(record: Record) -> bool:
    """Whether the task is another distribution's."""
    return record.task.plugin.partition(":")[0] != OURS


def record_faults(record: Record, bench: Bench) -> Iterator[Fault]:
    """Everything a record's own text tells is wrong with it."""
    for rule in RULES:
        yield from rule(record, bench)


# -- what was run, on what


def finished(record: Record, bench: Bench) -> Iterator[Fault]:  # noqa: ARG001
    if record.status != "ok":
        yield "status", f"is '{record.status}': only finished tasks have a place on the leaderboard"
    elif not record.metrics:
        yield "metrics", "is empty"


def subject(record: Record, bench: Bench) -> Iterator[Fault]:  # noqa: ARG001
    kind, roles = record.subject.kind, [s.role for s in record.subject.saes]
    if kind == "family":
        yield "subject.kind", "is 'family': its numbers are of no single SAE, so they have no row"
        return
    if roles != {"sae": ["sae"], "pair": ["sae", "reference"]}[kind]:
        yield "subject.saes", f"has the roles {roles}, which are not those of a {kind}"
        return
    for i, sae in enumerate(record.subject.saes):
        weights = weights_of(sae)
        if weights is None or hash_fault(weights):
            yield f"subject.saes[{i}].files", "has no sha256 of the weights: run the task again with this version"
        yield from _hashes(f"subject.saes[{i}].files", sae.files)
        if max(sae.info.d_in, sae.info.d_sae) > MAX_WIDTH:
            yield f"subject.saes[{i}].info", f"has a width above {MAX_WIDTH:,}"
    one, other = subject_sae(record), reference_sae(record)
    names = [s.info.name for s in (one, other) if s is not None]
    if record.subject.name != "-vs-".join(names):
        yield "subject.name", f"is not made of the names of its SAEs ({'-vs-'.join(names)[:80]})"
    if one is not None and other is not None and one.info.site.hook != other.info.site.hook:
        yield "subject.saes", "reads two hooks: a pair has one site"
    if one is not None and record.model is not None and record.model.hook != one.info.site.hook:
        yield "model.hook", "is not the hook of the SAE"


def _hashes(field: str, files: dict[str, str]) -> Iterator[Fault]:
    for name, digest in files.items():
        if wrong := hash_fault(digest):
            yield f"{field}.{name[:60]}", wrong


def sizes(record: Record, bench: Bench) -> Iterator[Fault]:  # noqa: ARG001
    many: dict[str, Sized] = {
        "notes": record.notes, "artifacts": record.artifacts, "labelled": record.labelled, "metrics": record.metrics,
        "trained": record.trained, "model.files": record.model.files if record.model else {},
        **{f"subject.saes[{i}].files": s.files for i, s in enumerate(record.subject.saes)},
    }  # fmt: skip
    for field, items in many.items():
        if len(items) > MAX_ITEMS:
            yield field, f"has {len(items):,} entries, and at most {MAX_ITEMS} are taken"
    for name, value in (record.data.sampling if record.data else {}).items():
        if not isinstance(value, str | int | float | None):
            yield f"data.sampling.{name[:60]}", "is neither a text nor a number"
    if len(json.dumps(record.extra)) > EXTRA_BYTES:
        yield "extra", f"is larger than {EXTRA_BYTES:,} bytes"
    if record.model is not None:
        yield from _hashes("model.files", record.model.files)


def artifacts(record: Record, bench: Bench) -> Iterator[Fault]:  # noqa: ARG001
    paths = [a.path for a in record.artifacts]
    if len(set(paths)) != len(paths):
        yield "artifacts", "names a file twice"
    documents = [a for a in record.artifacts if a.kind == "documents"]
    if any(a.path != DOCUMENTS for a in documents) or len(documents) > 1:
        yield "artifacts", f"per-document statistics stand in one file, {DOCUMENTS}"
    if any(m.of for m in record.metrics.values()) and not documents:
        yield "artifacts", f"lists no {DOCUMENTS}, which the metrics' formulas are over"


# -- how it was run


def run(record: Record, bench: Bench) -> Iterator[Fault]:
    settings = record.run
    if settings.profile not in get_args(Profile):
        yield "run.profile", "is no profile this version knows"
    if settings.profile == "quick" and "quick" not in bench.allow:
        yield "run.profile", "is 'quick', which is for trying out: run again without --profile quick"
    if (settings.partial or settings.limit is not None) and "partial" not in bench.allow:
        yield "run.partial", "only a part was run: run again without --limit"
    if not 0 <= settings.seed < 2**63:
        yield "run.seed", "is no seed a run takes"
    if not 0 <= settings.seconds < 10**9:
        yield "run.seconds", "is no plausible duration"
    try:
        datetime.fromisoformat(settings.started)
    except ValueError:
        yield "run.started", "is no date and time in ISO 8601"


def versions(record: Record, bench: Bench) -> Iterator[Fault]:
    made = record.versions
    if _newer(made.saebench_meta, saebench_meta.__version__):
        yield "versions.saebench_meta", f"is newer than this version of saebench-meta ({saebench_meta.__version__})"
    if made.commit is not None and not COMMIT.fullmatch(made.commit):
        yield "versions.commit", "is no git commit"
    if "dirty" in bench.allow:
        return
    if made.dirty:
        yield "versions.dirty", "the package had changes that are in no commit: commit them and run again"
    elif made.commit is None and not RELEASE.fullmatch(made.saebench_meta):
        yield "versions.commit", "is missing, and the version is no release: run from a checkout or a release"
    elif made.commit is not None and made.dirty is None:
        yield "versions.dirty", "is unknown: run again where git can tell"


def _newer(version: str, than: str) -> bool:
    one, other = (tuple(int(n) for n in re.findall(r"\d+", v.partition("+")[0])[:3]) for v in (version, than))
    return one > other


# -- the task


def task(record: Record, bench: Bench) -> Iterator[Fault]:
    name, version = record.task.name, record.task.version
    if not PLUGIN.fullmatch(record.task.plugin) or not record.task.plugin_version:
        yield "task.plugin", "does not name a plugin (distribution:name) and its version"
    if not name.isidentifier() or version < 1:
        yield "task.name", "is no name or version of a task"
        return
    if name not in bench.registry.tasks:
        if not is_third_party(record):
            yield "task.name", f"no task '{name[:60]}' is in this version of saebench-meta, which may be older"
        return
    if record.task.plugin != (real := owner(bench.registry, name)):
        yield "task.plugin", f"is not {real}, whose task '{name}' is: a task of your own needs a name of its own"
        return
    found = bench.registry.tasks[name]
    if version > found.version:
        yield (
            "task.version",
            f"{name}@{version} is newer than this version of saebench-meta, which has @{found.version}",
        )
    elif version == found.version:
        yield from _as_declared(record, found)


def _as_declared(record: Record, found: Task) -> Iterator[Fault]:
    if found.subject != record.subject.kind:
        yield "subject.kind", f"is '{record.subject.kind}', and {found.name} takes a {found.subject}"
    if set(record.task.parameters) != {p.name for p in found.parameters}:
        yield "task.parameters", f"are not those of {found.name}@{found.version}"
    if ("judge" in found.needs) != (record.judge is not None):
        yield "judge", f"{found.name} {'asks' if 'judge' in found.needs else 'does not ask'} a judge"
    declared = {m.name: m for m in found.metrics}
    if set(record.metrics) != set(declared):
        odd = sorted(set(record.metrics) ^ set(declared))[0]
        yield "metrics", f"are not those {found.name}@{found.version} declares: '{odd[:60]}' is missing or too much"
        return
    controls = {*found.controls, ORACLE}
    for name, result in record.metrics.items():
        for what in ("better", "unit", "of"):
            if getattr(result, what) != getattr(declared[name], what):
                yield f"metrics.{name}.{what}", f"is not what {found.name}@{found.version} declares"
        if stray := sorted(set(result.controls) - controls):
            yield f"metrics.{name}.controls", f"has '{stray[0][:60]}', which is no control of {found.name}"
        yield from _order_declared(name, result, declared[name])


def _order_declared(name: str, result: MetricResult, declared: Metric) -> Iterator[Fault]:
    said = None if result.order is None else result.order.expected
    if said != declared.expects:
        yield f"metrics.{name}.order", f"expects {said!r}, and the task declares {declared.expects!r}"


# -- the numbers


def metrics(record: Record, bench: Bench) -> Iterator[Fault]:  # noqa: ARG001
    for name, result in record.metrics.items():
        field = f"metrics.{name[:60]}"
        if not name.isidentifier():
            yield field, "is no name of a metric"
        yield from _interval(field, result)
        yield from _range(field, result)
        for control, found in result.controls.items():
            if control not in CONTROLS:
                yield f"{field}.controls.{control[:60]}", "is no control"
            yield from _interval(f"{field}.controls.{control[:60]}", found)
            if found.margin is not None:
                yield from _interval(f"{field}.controls.{control[:60]}.margin", found.margin)
        yield from _order_seen(field, result)


def _interval(field: str, number: Interval) -> Iterator[Fault]:
    whole = number.method in ("census", "exact")  # a count over nothing is 0 of 0
    if number.n > MAX_SAMPLE or (number.value is not None and number.n < 1 and not whole):
        yield f"{field}.n", "is no plausible sample size"
    if not number.n_unit or number.method not in ("bootstrap", "wilson", "census", "exact"):
        yield f"{field}.method", "does not say in what unit the sample is counted, or how the number was had"
    limits = (number.ci_low, number.ci_high)
    if number.value is None:
        if not number.reason:
            yield f"{field}.reason", "is missing: a number that is not there needs one"
        if limits != (None, None):
            yield field, "has an interval of no value"
    elif None in limits:
        if limits != (None, None):
            yield field, "has half an interval"
        if not whole and not number.reason:
            yield f"{field}.ci_low", "is missing without a reason: a sample has an interval, only a census has none"
    else:
        yield from _limits(field, number)


def _limits(field: str, number: Interval) -> Iterator[Fault]:
    assert number.value is not None and number.ci_low is not None and number.ci_high is not None
    if number.method == "census":
        yield field, "has an interval, and a census has none"
    if number.level != LEVEL:
        yield f"{field}.level", f"is {number.level}, and the leaderboard shows {LEVEL}"
    slack = 1e-9 * max(1.0, abs(number.value))
    if not number.ci_low - slack <= number.value <= number.ci_high + slack:
        yield field, "does not lie in its own interval"


def _range(field: str, result: MetricResult) -> Iterator[Fault]:
    """What the unit and the method say of a value; a ratio of sums is free, and is worked out from the documents."""
    if result.of is not None or result.value is None:
        return
    highest = 1.0 if result.unit == "fraction" and result.method in ("census", "wilson") else None
    lowest = 0.0 if result.method == "wilson" else None
    outside = (highest is not None and result.value > highest) or (lowest is not None and result.value < lowest)
    if outside:
        yield field, f"is {result.value:.6g}, which no {result.unit} by {result.method} can be"


def _order_seen(field: str, result: MetricResult) -> Iterator[Fault]:
    """Whether the margins to the controls agree with what is said of the order of subject and neighbour."""
    if result.order is None or result.order.holds is None:
        return
    roles = [r for r in result.order.expected.split(">") if r != ORACLE or ORACLE in result.controls]
    i = roles.index("trained") if "trained" in roles else len(roles)
    if result.order.holds and i + 1 < len(roles) and not _ahead(result, roles[i + 1]):
        yield f"{field}.order.holds", f"is true, and the margin to '{roles[i + 1]}' does not bear it out"


def _ahead(result: MetricResult, control: str) -> bool:
    margin = result.controls[control].margin if control in result.controls else None
    if margin is None or margin.value is None:
        return False
    return margin.value > 0 if margin.ci_low is None else margin.ci_low > 0


def margins(record: Record, bench: Bench) -> Iterator[Fault]:  # noqa: ARG001
    for name, result in record.metrics.items():
        sign = -1.0 if result.better == "lower" else 1.0
        for control, found in result.controls.items():
            if result.of is None or found.margin is None or found.margin.value is None:
                continue
            if result.value is None or found.value is None or not (result.n == found.n == found.margin.n):
                continue  # not over the same documents
            expected = sign * (result.value - found.value)
            if abs(found.margin.value - expected) > 1e-6 * max(1.0, abs(expected), abs(result.value)):
                yield f"metrics.{name}.controls.{control}.margin", "is not the difference of the two values"


def judged(record: Record, bench: Bench) -> Iterator[Fault]:  # noqa: ARG001
    if record.judge is not None and not (record.judge.name and record.judge.version):
        yield "judge", "does not name the judge and its version"


def file_name(record: Record, bench: Bench) -> Iterator[Fault]:  # noqa: ARG001
    sae = subject_sae(record)
    if sae is not None and slug(sae.info.name) == "sae" != sae.info.name:
        yield "subject.saes[0].info.name", "has no letter or digit a file name could have"


Rule = Callable[[Record, Bench], Iterable[Fault]]
RULES: tuple[Rule, ...] = (
    finished, subject, sizes, artifacts, run, versions, task, metrics, margins, judged, file_name,
)  # fmt: skip
