"""`reproduced.json`: that a maintainer has run a record again, with what, and that every metric agreed."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from saebench_meta.errors import BadFileError
from saebench_meta.leaderboard.rules import Bench
from saebench_meta.leaderboard.texts import Fault
from saebench_meta.record import Record, Versions

Agreement = Literal["equal", "within the noise", "without a value"]


class Reproduction(BaseModel):
    """A rerun of a record in which every metric agreed.

    `metrics`: equal to six digits, within the noise of the paired difference, or both without a value.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: Literal[1] = 1
    record: str = Field(pattern=r"^[0-9a-f]{64}$", description="Id of the record, and of its rerun.")
    record_sha256: str = Field(pattern=r"^[0-9a-f]{64}$", description="Of the record's file.")
    metrics: dict[str, Agreement]
    device: str
    versions: Versions

    def to_json(self) -> str:
        return self.model_dump_json(indent=1) + "\n"


def parse_badge(raw: Any) -> Reproduction:
    """A badge from its JSON value; anything wrong with it is one error."""
    try:
        return Reproduction.model_validate(raw)
    except ValidationError as e:
        first = e.errors()[0]
        raise BadFileError(f"{'.'.join(str(p)[:60] for p in first['loc'])}: {first['msg']}") from e


def badge_faults(badge: Reproduction, record: Record, data: bytes, bench: Bench) -> Iterator[Fault]:
    """What keeps a badge from being one of this record."""
    if badge.record != record.id or badge.record_sha256 != hashlib.sha256(data).hexdigest():
        yield "record", "is not the record it stands beside"
    if set(badge.metrics) != set(record.metrics):
        yield "metrics", "are not those of the record: every one must have agreed"
    if badge.versions.dirty and "dirty" not in bench.allow:
        yield "versions.dirty", "the rerun was made with changes that are in no commit"
