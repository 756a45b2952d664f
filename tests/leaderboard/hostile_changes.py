"""Changes that make a sound record one that no leaderboard takes, by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import board_records as samples


def _metric(**fields: Any) -> Callable[[dict[str, Any]], None]:
    return lambda r: r["metrics"]["error"].update(fields)


def _in(section: str, **fields: Any) -> Callable[[dict[str, Any]], None]:
    return lambda r: r[section].update(fields)


def _sae(**fields: Any) -> Callable[[dict[str, Any]], None]:
    return lambda r: r["subject"]["saes"][0].update(fields)


def _top(**fields: Any) -> Callable[[dict[str, Any]], None]:
    return lambda r: r.update(fields)


CORE = {"name": "core", "plugin": "saebench-meta:core", "plugin_version": "0.1.0"}
CHANGES: dict[str, Callable[[dict[str, Any]], None]] = {
    "schema 2": _top(schema_version=2), "schema 999": _top(schema_version=999),
    "schema true": _top(schema_version=True), "schema text": _top(schema_version="1"),
    "no schema": lambda r: r.pop("schema_version"),
    "unknown field": _top(rank=1), "unknown inner field": _in("run", score=1.0), "failed": _top(status="failed"),
    "skipped": _top(status="skipped"), "no metrics": _top(metrics={}), "short id": _top(id="abc"),
    "id in capitals": _top(id="A" * 64), "path as id": _top(id="../" * 21 + "a"),
    "quick": _in("run", profile="quick"), "unknown profile": _in("run", profile="best"),
    "partial": _in("run", partial=True), "limited": _in("run", limit=10), "seed below 0": _in("run", seed=-1),
    "huge seed": _in("run", seed=2**70), "seconds below 0": _in("run", seconds=-5.0),
    "no date": _in("run", started="yesterday"), "dirty": _in("versions", dirty=True),
    "dirty unknown": _in("versions", dirty=None), "commit of words": _in("versions", commit="main"),
    "short commit": _in("versions", commit="0123abc"),
    "no release": _in("versions", commit=None, dirty=None, saebench_meta="0.1.0.dev3"),
    "version to come": _in("versions", saebench_meta="99.0.0"), "task of ours to come": _in("task", **CORE, version=99),
    "task of ours with other metrics": _in("task", **CORE, version=1),
    "task of ours by another": _in("task", name="core", version=1),
    "no such task of ours": _in("task", plugin="saebench-meta:toy"), "task name": _in("task", name="a b"),
    "task version 0": _in("task", version=0), "no plugin": _in("task", plugin=""),
    "no plugin version": _in("task", plugin_version=""), "family": _in("subject", kind="family"),
    "sae with a reference": _in("subject", kind="sae"), "other subject": _in("subject", name="best-sae-ever"),
    "no weights": _sae(files={}), "weights of one digit": _sae(files={"weights": "0" * 64}),
    "short weights": _sae(files={"weights": "abcdef"}), "role": _sae(role="member"),
    "two hooks": lambda r: r["subject"]["saes"][1]["info"]["site"].update(hook="blocks.9.hook_resid_post"),
    "other hook": _in("model", hook="blocks.7.hook_resid_post"), "many notes": _top(notes=["note"] * 1_000),
    "much extra": _top(extra={"toy": {f"k{i}": "word " * 20 for i in range(200)}}),
    "text as a note": _top(notes=["Once upon a time there was a little girl. " * 60]),
    "below its interval": _metric(value=0.0), "above its interval": _metric(value=9.0),
    "half an interval": _metric(ci_high=None), "no interval, no reason": _metric(ci_low=None, ci_high=None, level=None),
    "narrow level": _metric(level=0.5), "no level": _metric(level=None), "interval upside down": lambda r: (
        r["metrics"]["error"].update(ci_low=r["metrics"]["error"]["ci_high"], ci_high=r["metrics"]["error"]["ci_low"])
    ), "no sample": _metric(n=0), "sample below 0": _metric(n=-3), "absurd sample": _metric(n=10**15),
    "other sample": _metric(n=59), "no unit of the sample": _metric(n_unit=""),
    "unknown method": _metric(method="magic"),
    "no value, no reason": _metric(value=None, ci_low=None, ci_high=None, level=None),
    "no value, an interval": _metric(value=None, reason="none"), "census with an interval": _metric(method="census"),
    "order not borne out": lambda r: r["metrics"]["error"]["controls"]["random"]["margin"].update(ci_low=-1.0),
    "other margin": lambda r: r["metrics"]["error"]["controls"]["random"]["margin"].update(value=1.6),
    "unknown control": lambda r: r["metrics"]["error"]["controls"].update(
        fake=r["metrics"]["error"]["controls"].pop("random")
    ), "share above 1": lambda r: r["metrics"]["share"].update(value=1.5),
    "better sideways": _metric(better="sideways"), "other formula": _metric(of="errors"),
    "formula of a column that is not there": _metric(of="nothing / tokens"), "formula of text": _metric(of="document"),
    "formula that never ends": _metric(of="errors + ((9**9)**9)**9"), "formula with a call": _metric(of="exit(errors)"),
    "long formula": _metric(of="+".join(["errors"] * 60)), "formula with a huge power": _metric(of="errors ** 999"),
    "artifact twice": lambda r: r["artifacts"].append(r["artifacts"][0]), "no artifact": _top(artifacts=[]),
    "documents elsewhere": lambda r: r["artifacts"][0].update(path="other.parquet"),
    "forged hash of documents": lambda r: r["artifacts"][0].update(sha256=samples.sha("forged")),
    "forged size of documents": lambda r: r["artifacts"][0].update(bytes=1),
    "artifact of an unknown kind": lambda r: r["artifacts"][0].update(kind="program"),
    "judge without a name": _top(judge={"name": "", "version": "1"}), "data without a hash": _in("data", sha256="none"),
}  # fmt: skip
