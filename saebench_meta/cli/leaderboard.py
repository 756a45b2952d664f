"""`saebench leaderboard`: add, check, build, compare, rerun and show the records that others see."""

from __future__ import annotations

import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from saebench_meta.cli.output import columns, json_line

if TYPE_CHECKING:
    from collections.abc import Callable

    from saebench_meta.leaderboard.add import Added
    from saebench_meta.leaderboard.reproduce import Rerun
    from saebench_meta.leaderboard.rules import Bench

RESULTS = Path("leaderboard/results")
ALLOWANCES = ("quick", "dirty", "partial")
REFUSED = 1


def _names(_: click.Context, __: click.Parameter, value: str) -> frozenset[str]:
    return frozenset(name.strip() for name in value.split(",") if name.strip())


def _allowances(ctx: click.Context, param: click.Parameter, value: str) -> frozenset[str]:
    names = _names(ctx, param, value)
    if unknown := sorted(names - set(ALLOWANCES)):
        raise click.BadParameter(f"'{unknown[0]}' is none of {', '.join(ALLOWANCES)}", ctx, param)
    return names


folder = click.Path(file_okay=False, path_type=Path)
results_option: Callable[[Any], Any] = click.option(
    "--results", type=folder, default=RESULTS, show_default=True, help="Folder of the leaderboard's records."
)
allow_option: Callable[[Any], Any] = click.option(
    "--allow", default="", callback=_allowances, metavar="LIST",
    help="Let through quick, dirty or partial records, for a local look; the pages say so.",
)  # fmt: skip
json_option: Callable[[Any], Any] = click.option(
    "--json", "as_json", is_flag=True, envvar="SAEBENCH_JSON", help="As one JSON object."
)


def _bench(allow: frozenset[str] = frozenset()) -> Bench:
    from saebench_meta.leaderboard.rules import Bench
    from saebench_meta.plugins import registry

    return Bench(registry(), allow)


@click.group("leaderboard")
def command() -> None:
    """Put records on the leaderboard, check them, build its pages."""


@command.command("add")
@click.argument("run", type=click.Path(exists=True, path_type=Path))
@results_option
@allow_option
@json_option
def add_command(run: Path, results: Path, allow: frozenset[str], as_json: bool) -> int:
    """Copy the finished records of a run folder that validate.

    RUN is a folder a run wrote to (its -o), or one record. Only record.json and documents.parquet are copied, as they
    are. What is there already stays as it is.
    """
    from saebench_meta.leaderboard.add import add

    done = add(run, results, _bench(allow))
    if as_json:
        json_line(done.to_json())
    else:
        _tell(done, results)
    return REFUSED if done.refused else 0


def _tell(done: Added, results: Path) -> None:
    from saebench_meta.leaderboard.texts import shown

    rows = [("added", where) for where in done.added] + [("already there", where) for where in done.kept]
    rows += [("left out", f"{where}: {shown(why, 300)}") for where, why in done.left_out.items()]
    rows += [("refused", str(problem)) for problem in done.refused]
    click.echo(columns(rows, ("", f"{len(done.added)} added, {len(done.kept)} already there")))
    if done.added:
        click.echo(f"\nNext: git add {results}, commit and open a pull request; or look first:")
        click.echo(f"  saebench leaderboard build --results {results} && saebench leaderboard serve")


@command.command("validate")
@click.argument("paths", nargs=-1, type=click.Path(exists=True, path_type=Path))
@results_option
@allow_option
@json_option
def validate_command(paths: tuple[Path, ...], results: Path, allow: frozenset[str], as_json: bool) -> int:
    """Check records: by default all under the results, else those below PATHS.

    Each reason is one line: file, field, what is wrong and what to do.
    """
    from saebench_meta.leaderboard.validate import check_paths, check_results

    bench = _bench(allow)
    checks = check_paths(paths, bench, results) if paths else check_results(results, bench)
    if as_json:
        json_line(checks.to_json())
        return REFUSED if checks.problems else 0
    for problem in checks.problems:
        click.echo(str(problem))
    click.echo(f"{len(checks.good)} of {len(checks.folders)} records are in order")
    return REFUSED if checks.problems else 0


@command.command("build")
@results_option
@click.option("-o", "--out", type=folder, help="Folder to write; by default the one above the results.")
@allow_option
def build_command(results: Path, out: Path | None, allow: frozenset[str]) -> None:
    """Write table.md, leaderboard.json, leaderboard.csv and site/.

    The same records give the same bytes. Records that do not validate are kept out, and the pages say so.
    """
    from saebench_meta.leaderboard.build import SITE, build

    out = out or results.parent
    made = build(results, out, allow)
    saes = sum(row.kind == "sae" for row in made.rows)
    for warning in made.warnings:
        click.echo(f"warning: {warning}", err=True)
    click.echo(f"{len(made.sources)} records, {saes} SAEs, {len(made.columns)} columns")
    click.echo(out / SITE / "index.html")


@command.command("diff")
@click.argument("ref")
@results_option
@allow_option
def diff_command(ref: str, results: Path, allow: frozenset[str]) -> int:
    """Print as Markdown what the work tree adds since it left REF.

    Exit code 1 if it changes what is there already, or adds what does not validate.
    """
    from saebench_meta.leaderboard.diff import diff

    report = diff(ref, results, _bench(allow))
    click.echo(report.markdown, nl=False)
    return REFUSED if report.problems else 0


@command.command("reproduce")
@click.argument("record", type=click.Path(exists=True, path_type=Path))
@click.option("--work", type=folder, help="Folder for the rerun; a temporary one unless named.")
@click.option(
    "--allow-loaders",
    default="",
    callback=_names,
    metavar="LIST",
    help="Loaders that may open the SAEs, over the usual.",
)
@click.option("--dry-run", is_flag=True, help="Compare, but write nothing.")
@allow_option
def reproduce_command(
    record: Path, work: Path | None, allow_loaders: frozenset[str], dry_run: bool, allow: frozenset[str]
) -> int:
    """Run a record again; write reproduced.json beside it if every metric agrees.

    For maintainers: it opens what the record names. Metrics agree if they are equal to six digits, or within the noise
    over the same documents.
    """
    from saebench_meta.leaderboard.reproduce import LOADERS, reproduce

    with ExitStack() as stack:
        place = work or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        rerun = reproduce(record, place, _bench(allow), allow_loaders or LOADERS, stamp=not dry_run)
    _tell_rerun(rerun, dry_run)
    return REFUSED if rerun.differs else 0


def _tell_rerun(rerun: Rerun, dry_run: bool) -> None:
    rows = [(name, how) for name, how in {**rerun.agrees, **rerun.differs}.items()]
    click.echo(columns(rows, ("metric", "rerun")))
    if rerun.differs:
        click.echo(f"{len(rerun.differs)} of {len(rows)} metrics do not agree: no badge")
    else:
        click.echo(f"all {len(rows)} metrics agree" + ("" if dry_run else ": reproduced.json is written"))


@command.command("serve")
@click.option("--site", type=folder, default=RESULTS.parent / "site", show_default=True, help="The built site.")
@click.option("--port", type=click.IntRange(0, 65535), default=8000, show_default=True, help="0 takes a free one.")
def serve_command(site: Path, port: int) -> None:
    """Show the built site on this machine only, until Ctrl-C."""
    from saebench_meta.leaderboard.serve import server

    with server(site, port) as running:
        host, chosen = running.server_address[:2]
        click.echo(f"http://{host!s}:{chosen}/  (Ctrl-C ends it)")
        try:
            running.serve_forever()
        except KeyboardInterrupt:
            return
