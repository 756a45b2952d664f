"""What happens in a run, as data: the progress display, `--json` and third parties all read the same events."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True)
class Event:
    """Base of all events.

    Attributes:
        worker: number of the process it happened in, where `--jobs` shares a run among several; in JSON only then.
    """

    worker: int | None = field(default=None, kw_only=True)

    def to_json(self) -> dict[str, Any]:
        fields = asdict(self)
        worker = fields.pop("worker")
        return {"event": type(self).__name__, **fields, **({} if worker is None else {"worker": worker})}


@dataclass(frozen=True)
class RunPlanned(Event):
    """The plan stands; nothing has been loaded."""

    units: int
    kept: int
    skipped: int


@dataclass(frozen=True)
class UnitStarted(Event):
    """A task begins on a subject."""

    task: str
    subject: str
    index: int
    total: int


@dataclass(frozen=True)
class Progress(Event):
    """Work within a unit: `done` of `total` (None when unknown), in `what`."""

    what: str
    done: int
    total: int | None


@dataclass(frozen=True)
class TrainingStep(Event):
    """An SAE in training has come to a step; means over the interval before it. `fvu` is null where nothing varies."""

    label: str
    step: int
    steps: int
    loss: float
    fvu: float | None
    l0: float
    dead_share: float
    tokens_per_second: float | None


@dataclass(frozen=True)
class Notice(Event):
    """Something the user should know; `level` is info or warning."""

    level: str
    message: str


@dataclass(frozen=True)
class UnitFinished(Event):
    """A task ended on a subject: ok, kept, failed or skipped, with a reason for the latter two."""

    task: str
    subject: str
    status: str
    seconds: float
    reason: str | None = None
    record: str | None = None


@dataclass(frozen=True)
class RunFinished(Event):
    """The run is over."""

    ok: int
    kept: int
    failed: int
    skipped: int
    seconds: float
