"""`saebench cache`: what the cache holds, and making it smaller."""

from __future__ import annotations

import re
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from saebench_meta.cli.output import columns, json_line

if TYPE_CHECKING:
    from saebench_meta.cache import Cache, CacheInfo

UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12, "ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40}


def parse_size(text: str) -> int:
    """A number of bytes: `5000000`, `500MB`, `2GiB`."""
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kmgt]?i?)b?\s*", text.lower())
    if found is None or found[2] not in UNITS:
        raise click.BadParameter(f"'{text}' is no size; write e.g. 500MB or 2GiB")
    return int(float(found[1]) * UNITS[found[2]])


cache_dir = click.option(
    "--cache-dir",
    type=click.Path(file_okay=False, path_type=Path),
    envvar="SAEBENCH_CACHE_DIR",
    show_envvar=True,
    help="Folder of the cache.",
)


@click.group("cache")
def command() -> None:
    """Look at the cache of activations, trained SAEs and answers, or make it smaller."""


@command.command("info")
@cache_dir
@click.option("--json", "as_json", is_flag=True, envvar="SAEBENCH_JSON", help="As one JSON object.")
def info(cache_dir: Path | None, as_json: bool) -> None:
    """Say where the cache is, and how much it holds."""
    from saebench_meta.judge_kept import kept_answers
    from saebench_meta.training.kept import kept

    held = _cache(cache_dir).info()
    trained, answers = kept(held.root), kept_answers(held.root)
    if as_json:
        saes = [{**asdict(one), "path": str(one.path)} for one in trained]
        facts = {"root": held.root, "bytes": held.bytes, "max_bytes": held.max_bytes, "entries": _entries(held)}
        judged = None if answers is None else {**asdict(answers), "path": str(answers.path)}
        json_line({**facts, "trained": saes, "answers": judged})
        return
    click.echo(f"{held.root}: {len(held.entries)} entries, {size(held.bytes)} of at most {size(held.max_bytes)}")
    rows = [(e["key"][:12], size(e["bytes"]), e["last_used"], "yes" if e["in_use"] else "no") for e in _entries(held)]
    if rows:
        click.echo("\n" + columns(rows, ("entry", "size", "last used", "in use")))
    if trained:
        rows = [(t.path.name, t.label, size(t.bytes), "yes" if t.finished else "no") for t in trained]
        click.echo("\n" + columns(rows, ("trained SAE", "recipe", "size", "finished")))
    if answers is not None:
        many = "cannot be read" if answers.answers is None else f"{answers.answers:,}"
        click.echo(f"\nanswers of judges: {many}, {size(answers.bytes)}")


def _entries(held: CacheInfo) -> list[dict[str, Any]]:
    used = [datetime.fromtimestamp(e.last_used).astimezone().isoformat(" ", "seconds") for e in held.entries]
    return [{**asdict(e), "last_used": at} for e, at in zip(held.entries, used, strict=True)]


@command.command("prune")
@cache_dir
@click.option(
    "--max-bytes", type=parse_size, metavar="SIZE", help="Remove the longest unused until this much is left, e.g. 2GiB."
)
@click.option(
    "--all", "everything", is_flag=True, envvar="SAEBENCH_CACHE_PRUNE_ALL", help="Remove all that is not in use."
)
@click.option(
    "--trained", is_flag=True, envvar="SAEBENCH_CACHE_PRUNE_TRAINED", help="Remove SAEs that runs have trained, too."
)
@click.option(
    "--answers", is_flag=True, envvar="SAEBENCH_CACHE_PRUNE_ANSWERS", help="Remove what judges have answered, too."
)
def prune(cache_dir: Path | None, max_bytes: int | None, everything: bool, trained: bool, answers: bool) -> None:
    """Remove the activations that were longest unused; nothing that is in use goes.

    Without an option, down to the cache's own limit.
    """
    if everything and max_bytes is not None:
        raise click.UsageError("give --max-bytes or --all, not both")
    cache = _cache(cache_dir)
    done = cache.prune(max_bytes=0 if everything else max_bytes)
    in_use = f"; {done.in_use} in use stay" if done.in_use else ""
    if trained:
        from saebench_meta.training.kept import kept, remove

        removed = [one for one in kept(cache.root) if remove(one)]
        click.echo(f"removed {len(removed)} trained SAEs, {size(sum(one.bytes for one in removed))}")
    if answers:
        from saebench_meta.judge_kept import remove_answers

        gone = remove_answers(cache.root)
        click.echo(
            f"removed {(gone.answers or 0) if gone else 0:,} answers of judges, {size(gone.bytes if gone else 0)}"
        )
    click.echo(f"removed {done.removed} entries, {size(done.bytes)}; {size(cache.info().bytes)} left{in_use}")


def _cache(folder: Path | None) -> Cache:
    from saebench_meta.cache import Cache, default_root

    return Cache(folder or default_root())


def size(n: int) -> str:
    """Bytes in words: `1.5 GB`."""
    amount = float(n)
    for unit in ("bytes", "kB", "MB", "GB"):
        if amount < 1000:
            return f"{amount:.0f} {unit}" if unit == "bytes" else f"{amount:.1f} {unit}"
        amount /= 1000
    return f"{amount:.1f} TB"
