"""The records of the board, whose row each stands in, and the groups that make up columns."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from saebench_meta.leaderboard.board import Badge, Column
from saebench_meta.leaderboard.columns import Setting, comparable, labels, model_keys, setting_of
from saebench_meta.leaderboard.results import reference_sae, row_id, subject_sae, weights_of
from saebench_meta.leaderboard.validate import Checked
from saebench_meta.plugins import Registry
from saebench_meta.record import MetricResult, Record, SubjectSAE

KEY_DIGITS = 8


@dataclass(frozen=True, eq=False)
class Entry:
    """A record on the board: whose row it stands in, under which setting."""

    checked: Checked
    record: Record
    sae: SubjectSAE
    row: str
    setting: Setting

    @property
    def task(self) -> tuple[str, int]:
        return self.record.task.name, self.record.task.version

    @property
    def badge(self) -> Badge:
        return "self-reported" if self.checked.reproduced is None else "reproduced"

    @cached_property
    def site(self) -> tuple[str, str]:
        return self.sae.info.site.model, self.sae.info.site.hook

    @cached_property
    def reference(self) -> SubjectSAE | None:
        return reference_sae(self.record)

    @cached_property
    def comparable(self) -> str:
        """Text that numbers share that may be tested against each other."""
        return comparable(self.record, None if self.reference is None else weights_of(self.reference))


@dataclass(frozen=True, eq=False)
class Group:
    """The records of one task version under one setting, one a row, and the keys of their columns.

    Attributes:
        metrics: what each metric is, by the record with the smallest id.
        current: whether no newer version of the task is on the board.
    """

    task: str
    version: int
    setting: Setting
    label: str
    entries: tuple[Entry, ...]
    metrics: Mapping[str, MetricResult]
    keys: Mapping[str, str]
    current: bool

    @cached_property
    def at(self) -> dict[tuple[str, str], list[Entry]]:
        """Its records by site."""
        found: dict[tuple[str, str], list[Entry]] = {}
        for e in self.entries:
            found.setdefault(e.site, []).append(e)
        return found


def entries_of(good: Iterable[Checked], known: Registry) -> list[Entry]:
    """The records that are in order, by id."""
    records = [(c, c.record) for c in good if c.record is not None]
    models = model_keys(r for _, r in records)
    found = []
    for checked, record in records:
        sae = subject_sae(record)
        if sae is not None:
            found.append(Entry(checked, record, sae, row_id(sae), setting_of(record, known, models)))
    return sorted(found, key=lambda e: e.record.id)


def one_a_cell(entries: Sequence[Entry]) -> tuple[list[Entry], dict[str, tuple[str, ...]]]:
    """One record a cell, chosen without a look at its value: reproduced first, then the smallest seed, then the id.

    Returns:
        The chosen ones, by id, and of each the ids of the others.
    """
    cells: dict[tuple[str, str, int, str], list[Entry]] = defaultdict(list)
    for e in entries:
        cells[(e.row, *e.task, e.setting.digest)].append(e)
    chosen, others = [], {}
    for rivals in cells.values():
        rivals.sort(key=lambda e: (e.badge != "reproduced", e.record.run.seed, e.record.id))
        chosen.append(rivals[0])
        others[rivals[0].record.id] = tuple(e.record.id for e in rivals[1:])
    return sorted(chosen, key=lambda e: e.record.id), others


def groups_of(entries: Sequence[Entry]) -> list[Group]:
    """By the task's name, the newest version first, the setting with the most SAEs first."""
    tasks: dict[tuple[str, int], dict[str, list[Entry]]] = defaultdict(lambda: defaultdict(list))
    newest: dict[str, int] = {}
    for e in entries:
        name, version = e.task
        tasks[e.task][e.setting.digest].append(e)
        newest[name] = max(version, newest.get(name, version))
    found = []
    for name, version in sorted(tasks, key=lambda task: (task[0], -task[1])):
        settings = sorted(tasks[name, version].values(), key=lambda es: (-len(es), es[0].setting.digest))
        named = labels([es[0].setting for es in settings])
        for chosen, label in zip(settings, named, strict=True):
            found.append(_group(chosen, label, several=len(settings) > 1, current=version == newest[name]))
    return found


def _group(entries: Sequence[Entry], label: str, *, several: bool, current: bool) -> Group:
    name, version = entries[0].task
    setting = entries[0].setting
    metrics: dict[str, MetricResult] = {}
    for e in entries:
        for metric, result in e.record.metrics.items():
            metrics.setdefault(metric, result)
    tail = f"~{setting.digest[:KEY_DIGITS]}" if several else ""
    keys = {metric: f"{name}@{version}.{metric}{tail}" for metric in metrics}
    return Group(name, version, setting, label, tuple(entries), metrics, keys, current)


def columns_of(group: Group) -> list[Column]:
    """A column for each metric, in the order in which the task declares them."""
    return [
        Column(
            key=group.keys[name],
            task=group.task,
            version=group.version,
            metric=name,
            unit=m.unit,
            better=m.better,
            main=m.main,
            help=m.help,
            expects=None if m.order is None else m.order.expected,
            why="" if m.order is None else m.order.why,
            setting=group.setting.facts,
            setting_label=group.label,
            plugin=group.setting.facts.get("plugin"),
            current=group.current,
        )
        for name, m in group.metrics.items()
    ]
