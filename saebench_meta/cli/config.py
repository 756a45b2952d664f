"""Settings of a run from a TOML file or an earlier record, below the command line and the environment."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from saebench_meta.errors import BadFileError, UnknownNameError, did_you_mean

if TYPE_CHECKING:
    from saebench_meta.record import Record

TABLES = ("run", "parameters", "judge")
NOT_IN_FILE = {
    "config": "a file cannot name another one",
    "parameter": "write a table instead, e.g. [parameters.core]",
    "judge_option": "write a table instead: [judge]",
}

FILE, RECORD = "saebench.config", "saebench.record"
FILE_PARAMETERS, RECORD_PARAMETERS = "saebench.file_parameters", "saebench.record_parameters"
FILE_JUDGE, RECORD_JUDGE = "saebench.file_judge", "saebench.record_judge"


def take_file(ctx: click.Context, param: click.Parameter, path: Path | None) -> None:
    """Callback of `--config`: its values become the defaults of the other options."""
    if path is None:
        return
    tables = _read_toml(path)
    known = {p.name: p for p in ctx.command.params if p.name}
    values = {}
    for key, value in _table(path, tables, "run").items():
        name = key.replace("-", "_")
        if name in NOT_IN_FILE:
            raise BadFileError(f"{path}: [run] {key}: {NOT_IN_FILE[name]}")
        if name not in known:
            names = [n.replace("_", "-") for n in known if n not in NOT_IN_FILE]
            raise UnknownNameError(f"{path}: [run] has no key '{key}'{did_you_mean(key, names)}")
        values[name] = _checked(f"{path}: [run] {key}", value, known[name])
    record = values.pop("from_record", None)
    if record is not None and RECORD not in ctx.meta:
        take_record(ctx, param, Path(record))
    ctx.meta[FILE] = str(path)
    of_tasks = _table(path, tables, "parameters")
    ctx.meta[FILE_PARAMETERS] = {task: _table(path, of_tasks, task) for task in of_tasks}
    ctx.meta[FILE_JUDGE] = (values.get("judge"), _table(path, tables, "judge"))
    ctx.default_map = _layered(ctx.default_map or {}, values)


def _layered(under: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Two layers of defaults; a subject above replaces one below, whichever kind they are."""
    subjects = {"sae", "family"}
    hidden = subjects if subjects & over.keys() else set()
    return {**{name: value for name, value in under.items() if name not in hidden}, **over}


def _read_toml(path: Path) -> dict[str, Any]:
    import tomllib

    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as e:
        raise BadFileError(f"{path}: not a TOML file that can be read ({e})") from e
    for name in tables:
        if name not in TABLES:
            raise UnknownNameError(
                f"{path}: no table is called '{name}'{did_you_mean(name, list(TABLES))}. "
                "Options go under [run], parameters of a task under [parameters.TASK], the judge's own under [judge]."
            )
    return tables


def _table(path: Path, tables: Mapping[str, Any], name: str) -> dict[str, Any]:
    table = tables.get(name, {})
    if not isinstance(table, dict):
        raise BadFileError(f"{path}: '{name}' is a {type(table).__name__}, expected a table")
    return table


def _checked(where: str, value: Any, param: click.Parameter) -> Any:
    """The value if a command line could have said it; TOML's own types are kept apart, so `seed = true` is no 1."""
    if param.multiple:
        values = [value] if isinstance(value, str) else value
        if not isinstance(values, list) or not all(isinstance(v, str) for v in values):
            raise BadFileError(f"{where}: expected a text or a list of texts, got {value!r}")
        return tuple(values)
    if isinstance(param, click.Option) and param.is_flag:
        expected: tuple[type, ...] = (bool,)
    elif isinstance(param.type, click.IntRange):
        expected = (int,)
    elif isinstance(param.type, click.FloatRange):
        expected = (float, int)
    else:
        expected = (str, int) if param.name == "batch_size" else (str,)
    if not isinstance(value, expected) or (isinstance(value, bool) and bool not in expected):
        words = {bool: "true or false", int: "a whole number", str: "a text", float: "a number"}
        said = [words[e] for e in expected if not (e is int and float in expected)]
        raise BadFileError(f"{where}: expected {' or '.join(said)}, got {value!r}")
    return value


def take_record(ctx: click.Context, param: click.Parameter, path: Path | None) -> None:  # noqa: ARG001
    """Callback of `--from-record`: the record's settings become defaults, below those of a TOML file."""
    if path is None:
        return
    from saebench_meta.record import read_record

    record = read_record(path)
    ctx.meta[RECORD] = str(path)
    ctx.meta[RECORD_PARAMETERS] = {record.task.name: dict(record.task.parameters)}
    if record.judge is not None:
        ctx.meta[RECORD_JUDGE] = (record.judge.name, dict(record.judge.options))
    values = {name: value for name, value in _settings_of_record(record).items() if value is not None}
    ctx.default_map = _layered(values, ctx.default_map or {})


def _settings_of_record(record: Record) -> dict[str, Any]:
    """Option name -> value; what the record does not hold is left out."""
    given = [s for s in record.subject.saes if s.trained is None]  # what a run trains for itself, another one does too
    refs = {role: [s.ref for s in given if s.role == role] for role in ("sae", "reference", "member")}
    values: dict[str, Any] = {
        "sae": tuple(refs["sae"]) or None,
        "family": tuple(refs["member"]) or None,
        "reference": refs["reference"][0] if refs["reference"] else None,
        "tasks": (record.task.name,),
        "seed": record.run.seed,
        "limit": record.run.limit,
        "profile": record.run.profile,
        "judge": record.judge.name if record.judge else None,
    }
    if record.model is not None:
        values |= {"hook": record.model.hook, "dtype": record.model.dtype, "revision": record.model.revision}
        values["model"] = record.model.ref
    if record.data is not None:
        sampling = record.data.sampling
        values |= {n: sampling.get(n) for n in ("tokens", "context", "packing", "text_field")}
        values |= {"corpus": record.data.ref, "data_revision": record.data.revision, "split": record.data.split}
    if record.labelled:
        values["labelled"] = tuple(s.name if s.revision is None else f"{s.name}@{s.revision}" for s in record.labelled)
    return values


def parameters(
    ctx: click.Context, tasks: tuple[str, ...], typed: dict[str, dict[str, Any]]
) -> dict[str, dict[str, Any]]:
    """Parameters of all sources, the nearest first: typed, file, record.

    A file or record may hold parameters of tasks this run does not include; those typed for such a task are left in, so
    that the plan says so.
    """
    lower = [ctx.meta.get(RECORD_PARAMETERS, {}), ctx.meta.get(FILE_PARAMETERS, {})]
    if not any(lower):
        return typed
    from saebench_meta.plan import select_tasks
    from saebench_meta.plugins import registry

    found = registry()
    chosen = {t.name for t in select_tasks(found, tasks, family=bool(ctx.params.get("family")))[0]}
    out: dict[str, dict[str, Any]] = {}
    for layer in lower:
        for task, values in layer.items():
            if found.tasks[task].name in chosen:
                out.setdefault(task, {}).update(values)
    for task, values in typed.items():
        out.setdefault(task, {}).update(values)
    return out


def judge_options(
    ctx: click.Context, tasks: tuple[str, ...], judge: str | None, typed: dict[str, Any]
) -> dict[str, Any]:
    """Options of the judge from all sources, the nearest first: typed, file, record.

    Those of a file or record count where a task asks a judge and it is theirs; those typed are left in, so that the
    plan says what is wrong with them.

    Args:
        judge: as named by the nearest source; None for the one asked by default.
    """
    lower = [ctx.meta.get(RECORD_JUDGE), ctx.meta.get(FILE_JUDGE)]
    if not any(options for _, options in filter(None, lower)):
        return typed
    from saebench_meta.judges import DEFAULT_JUDGE
    from saebench_meta.plan import select_tasks
    from saebench_meta.plugins import registry

    found = registry()
    chosen = select_tasks(found, tasks, family=bool(ctx.params.get("family")))[0]
    if not any("judge" in task.needs for task in chosen):
        return typed
    asked = judge or DEFAULT_JUDGE
    out: dict[str, Any] = {}
    if lower[0] is not None and lower[0][0] == asked:  # a record may say more of a judge than its options
        out = {name: value for name, value in lower[0][1].items() if name in found.judges[asked].options}
    if lower[1] is not None and lower[1][0] in (None, asked):
        out |= lower[1][1]
    return out | typed
