"""The same runs from Python, for notebooks: `run(...)` gives a result that prints as a table and converts to pandas."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from saebench_meta.errors import SaebenchError
from saebench_meta.plan import make_plan
from saebench_meta.plugins import registry
from saebench_meta.record import Record
from saebench_meta.resolve import resolve_sae
from saebench_meta.runner import RunResult, execute
from saebench_meta.settings import Settings

if TYPE_CHECKING:
    import pandas as pd

    from saebench_meta.sae import SAE


@dataclass(frozen=True, eq=False)
class Result:
    """Records of a run, in the order of its plan.

    Attributes:
        records: finished records (`status` ok), those kept from an earlier run included.
        skipped, failed: task and subject -> why.
        folder: where everything was written.
    """

    records: tuple[Record, ...]
    skipped: dict[str, str]
    failed: dict[str, str]
    folder: Path

    def frame(self, *, main: bool = False) -> pd.DataFrame:
        """One row a metric: subject, task, metric, value, interval, n, unit, better, and each control's value.

        Args:
            main: only the metrics of the short table.
        """
        import pandas as pd

        rows: list[dict[str, Any]] = []
        for record in self.records:
            for name, m in record.metrics.items():
                if main and not m.main:
                    continue
                row: dict[str, Any] = {"subject": record.subject.name, "task": record.task.name, "metric": name}
                row |= m.model_dump(include={"value", "ci_low", "ci_high", "n", "n_unit", "unit", "better", "method"})
                row |= {f"control: {c}": r.value for c, r in m.controls.items()}
                row["order holds"] = None if m.order is None else m.order.holds
                rows.append(row)
        return pd.DataFrame(rows)

    def metric(self, task: str, name: str, subject: str | None = None) -> Any:
        """One metric of the run's only matching record.

        Raises:
            SaebenchError: no record matches, or several do.
        """
        found = [r for r in self.records if r.task.name == task and subject in (None, r.subject.name)]
        if len(found) != 1:
            names = sorted(f"{r.task.name} on {r.subject.name}" for r in self.records)
            raise SaebenchError(f"{len(found)} records match task '{task}', subject {subject!r}; there are: {names}")
        if name not in found[0].metrics:
            raise SaebenchError(f"task '{task}' has no metric '{name}' (it has: {', '.join(found[0].metrics)})")
        return found[0].metrics[name]

    def __str__(self) -> str:
        from saebench_meta.tables import render_text

        return render_text(self.records, self.skipped, self.failed)

    __repr__ = __str__

    def _repr_html_(self) -> str:
        from saebench_meta.report import summary_html

        return summary_html(self.records, self.skipped, self.failed)


def result_of(outcome: RunResult, folder: Path) -> Result:
    """What a run gave, for reading."""
    ok = tuple(r.record for r in outcome.results if r.status in ("ok", "kept") and r.record is not None)
    return Result(
        ok,
        {r.unit.label: r.reason or "" for r in outcome.results if r.status == "skipped"},
        {r.unit.label: r.reason or "" for r in outcome.results if r.status == "failed"},
        folder,
    )


def run(
    sae: str | Sequence[str] = (),
    *,
    family: Sequence[str] = (),
    tasks: str | Sequence[str] = "all",
    out: str | Path = "out",
    **settings: Any,
) -> Result:
    """Run tasks on SAEs, as `saebench run` does, and return the records.

    Args:
        sae: one or several references, run independently.
        family: references of one ordered subject, instead of `sae`.
        tasks: names and globs.
        out: where records go; what is finished there is kept.
        settings: any other field of `saebench_meta.settings.Settings` (seed, limit, model, corpus, reference, …); with
            `jobs`, call this below `if __name__ == "__main__":` in a script.

    Raises:
        SaebenchError: bad references or settings, before anything is loaded.
    """
    known = set(Settings.__dataclass_fields__)
    if unknown := set(settings) - known:
        raise SaebenchError(f"run() has no setting {sorted(unknown)[0]!r}; it has: {', '.join(sorted(known))}")
    chosen = Settings(
        saes=(sae,) if isinstance(sae, str) else tuple(sae),
        family=tuple(family),
        tasks=(tasks,) if isinstance(tasks, str) else tuple(tasks),
        out=Path(out),
        **settings,
    )
    plugins = registry()
    return result_of(execute(plugins, make_plan(plugins, chosen), chosen), chosen.out)


def load_sae(ref: str, *, device: str = "cpu", model: str | None = None, hook: str | None = None) -> SAE:
    """The SAE a reference names, in canonical form (float32)."""
    return resolve_sae(registry(), ref, model=model, hook=hook).load(device=device)
