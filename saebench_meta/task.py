"""What a task is: a function of a subject and a context, with its metrics declared beforehand.

A task never computes an interval for a ratio of sums itself: it returns per-document statistics, each metric says which
formula over their sums it is (`of="sse / elements"`), and the harness makes value, interval and paired comparisons from
that one declaration. Controls are run by the harness too: the same function on a random or permuted SAE.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import altair
    import pandas as pd
    from numpy.typing import ArrayLike

    from saebench_meta.context import Context
    from saebench_meta.judging import Asked
    from saebench_meta.sae import SAE, SAEInfo
    from saebench_meta.stats import Estimate
    from saebench_meta.training.recipe import Recipe

Better = Literal["higher", "lower", "neither"]
SubjectKind = Literal["sae", "pair", "family"]

Trains = Callable[["tuple[SAEInfo, ...]", "Mapping[str, Any]", "Callable[..., Recipe]"], "Sequence[Recipe]"]
"""How a task says what it will train."""

Asks = Callable[["tuple[SAEInfo, ...]", "Mapping[str, Any]", "int | None"], "Sequence[Asked]"]
"""How a task says what it will ask a judge for one subject."""

Prompts = Callable[[], "Mapping[str, str]"]
"""How a task gives the texts that it asks a judge with, by name."""

ORACLE = "oracle"

PROFILES = ("quick", "paper")
"""Profiles that may set parameters; `default` is what the function says."""

CONTROLS = {
    "random": "random directions, same shape and L0",
    "permuted_rows": "the same SAE with its decoder rows permuted: breaks the pairing of encoder and decoder",
    "permuted_columns": "each decoder coordinate permuted independently over rows: breaks the geometry only",
    ORACLE: "the supervised dictionary of a world whose truth is known",
}
"""By name. The oracle is run beside every task where there is one, whether the task names it or not."""


@dataclass(frozen=True)
class Metric:
    """One number a task reports.

    Attributes:
        name: key in the record; `snake_case`.
        better: `higher`, `lower`, or `neither` when there is no better direction.
        unit: `fraction`, `nats`, `latents`, `1` …
        main: shown in the short table.
        of: formula over sums of the per-document columns, e.g. `"1 - sse / sst"`; None when the task gives the
            estimate itself. A ratio has a value only where its denominator is positive.
        expects: the order of controls a sound metric shows, best first: `"trained>random"`, or None.
        why: why that order is (or is not) expected.
        help: one sentence for tables and docs.
    """

    name: str
    better: Better
    unit: str
    main: bool = False
    of: str | None = None
    expects: str | None = None
    why: str = ""
    help: str = ""

    def __post_init__(self) -> None:
        if not self.name.isidentifier():
            raise ValueError(f"metric name {self.name!r} is not an identifier")
        if self.expects is not None:
            if self.better == "neither":
                raise ValueError(f"metric '{self.name}': an expected order needs a better direction")
            unknown = set(self.expects.split(">")) - {"trained", *CONTROLS}
            if unknown:
                raise ValueError(f"metric '{self.name}': expects names unknown controls {sorted(unknown)}")


@dataclass(frozen=True)
class Table:
    """A table kept beside the record as CSV."""

    title: str
    data: pd.DataFrame
    caption: str = ""


@dataclass(frozen=True)
class Figure:
    """A figure kept beside the record, interactive in the report and as SVG. `chart` is an Altair chart."""

    title: str
    chart: altair.TopLevelMixin
    caption: str = ""


@dataclass(frozen=True)
class Transcript:
    """What a judge was asked to choose from and what it answered, kept beside the record as JSON lines.

    Attributes:
        title, caption: for the report.
        rows: one a question, as plain data with the keys of `transcripts.Question`; further keys are kept and shown.
    """

    title: str
    rows: Sequence[Mapping[str, Any]]
    caption: str = ""


@dataclass(frozen=True)
class Output:
    """What a task returns.

    Attributes:
        documents: per-document sufficient statistics, column -> one number a document; must contain `document`,
            an identifier. NaN means "not measured on this document".
        estimates: estimates of the metrics that have no formula.
        tables, figures, transcripts: by file name stem.
        saes: SAEs that the task made, by file name stem: kept beside the record, for `saebench run --sae`.
        notes: sentences for the record.
    """

    documents: Mapping[str, ArrayLike] | None = None
    estimates: Mapping[str, Estimate] = field(default_factory=dict)
    tables: Mapping[str, Table] = field(default_factory=dict)
    figures: Mapping[str, Figure] = field(default_factory=dict)
    transcripts: Mapping[str, Transcript] = field(default_factory=dict)
    saes: Mapping[str, SAE] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Pair:
    """An SAE under test (S1) and its reference (S0) at the same site."""

    sae: SAE
    reference: SAE


@dataclass(frozen=True, eq=False)
class Family:
    """SAEs at one site, in the order given (narrow to wide unless the user says otherwise)."""

    saes: tuple[SAE, ...]


@dataclass(frozen=True)
class Parameter:
    """A keyword argument of a task function, settable as `-P task.name=value`."""

    name: str
    default: Any
    annotation: str


@dataclass(frozen=True, eq=False)
class Task:
    """A registered task. Made by the `task` decorator."""

    name: str
    version: int
    subject: SubjectKind
    needs: tuple[str, ...]
    metrics: tuple[Metric, ...]
    controls: tuple[str, ...]
    limit_unit: str
    function: Callable[..., Output]
    parameters: tuple[Parameter, ...]
    source: str = ""
    trains: Trains | None = None
    part_of: str | None = None
    prompts: Prompts | None = None
    asks: Asks | None = None
    profiles: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    @property
    def summary(self) -> str:
        """First line of the docstring."""
        return (inspect.getdoc(self.function) or "").partition("\n")[0]

    def __call__(self, subject: Any, ctx: Context, **parameters: Any) -> Output:
        return self.function(subject, ctx, **parameters)

    def metric(self, name: str) -> Metric:
        return next(m for m in self.metrics if m.name == name)


def task(
    name: str,
    *,
    version: int,
    metrics: Sequence[Metric],
    subject: SubjectKind = "sae",
    needs: Iterable[str] = (),
    controls: Iterable[str] = ("random",),
    limit_unit: str = "documents",
    source: str = "",
    trains: Trains | None = None,
    part_of: str | None = None,
    prompts: Prompts | None = None,
    asks: Asks | None = None,
    profiles: Mapping[str, Mapping[str, Any]] | None = None,
) -> Callable[[Callable[..., Output]], Task]:
    """Make a task of a function `(subject, ctx, *, parameters…) -> Output`.

    Args:
        name: as typed after `--tasks`.
        version: raise it when the same input would give another number.
        metrics: what is reported; the names returned must equal these.
        subject: `sae`, `pair` (an SAE and its reference) or `family` (several SAEs at one site).
        needs: `activations`, `lm`, `reference`, `judge`, `truth`, `labelled`, `cities`, or a third party's own.
        controls: which controls the harness runs beside the subject (keys of `CONTROLS`).
        limit_unit: what `--limit` counts for this task.
        source: where the definition comes from.
        trains: `(infos, parameters, recipe) -> recipes`: the SAEs this task trains with `ctx.train`, so that the plan
            shows them. `infos` are the subject's, `recipe(architecture, **settings)` makes a recipe.
        part_of: the task it belongs to: chosen with it by `--tasks`, left out without a word where it needs a family
            and the run has none. It has metrics, parameters and records of its own.
        prompts: the texts of the prompts that a judge is asked with, by name. Their hashes are part of a record's id.
        asks: `(infos, parameters, limit) -> how much`: what a judge will be asked for one subject, or one control, so
            that the plan shows it with its price. `limit` is `--limit`.
        profiles: parameters that `--profile quick` or `paper` sets, by profile, under what the user says.
    """
    needs, controls, metrics = tuple(needs), tuple(controls), tuple(metrics)
    if not name.isidentifier():
        raise ValueError(f"task name {name!r} is not an identifier")
    names = [m.name for m in metrics]
    if len(set(names)) != len(names) or not names:
        raise ValueError(f"task '{name}': metrics must be present and have distinct names")
    if unknown := set(controls) - set(CONTROLS):
        raise ValueError(f"task '{name}': unknown controls {sorted(unknown)}; known: {sorted(CONTROLS)}")
    if (prompts or asks) and "judge" not in needs:
        raise ValueError(f"task '{name}' has prompts or says what it asks, but its needs do not name 'judge'")

    def decorate(function: Callable[..., Output]) -> Task:
        parameters = []
        for p in list(inspect.signature(function).parameters.values())[2:]:
            if p.kind is not p.KEYWORD_ONLY or p.default is p.empty:
                raise ValueError(f"task '{name}': parameter '{p.name}' must be keyword-only and have a default")
            parameters.append(Parameter(p.name, p.default, str(p.annotation)))
        for profile, values in (profiles or {}).items():
            if unknown := {profile, *values} - {*PROFILES, *(p.name for p in parameters)}:
                raise ValueError(f"task '{name}': {sorted(unknown)[0]!r} is no parameter, or no profile that sets any")
        if not function.__doc__:
            raise ValueError(f"task '{name}': the function needs a docstring that says what is measured")
        return Task(
            name=name,
            version=version,
            subject=subject,
            needs=needs,
            metrics=metrics,
            controls=controls,
            limit_unit=limit_unit,
            function=function,
            parameters=tuple(parameters),
            source=source,
            trains=trains,
            part_of=part_of,
            prompts=prompts,
            asks=asks,
            profiles=dict(profiles or {}),
        )

    return decorate
