"""The group of commands: late imports, "did you mean", and what a user sees when something is wrong.

Exit codes: 0 fine (skips included), 1 a task failed or something unexpected happened, 2 an error of the user's making,
130 interrupted.
"""

from __future__ import annotations

import importlib
import io
import os
import shutil
import sys
import textwrap
import traceback
from collections.abc import Sequence
from typing import Any, NoReturn

import click

from saebench_meta import __version__
from saebench_meta.errors import SaebenchError, did_you_mean

COMMANDS = (
    "run",
    "train",
    "show",
    "compare",
    "report",
    "explore",
    "convert",
    "stitch",
    "tasks",
    "plugins",
    "saes",
    "models",
    "check",
    "truth",
    "leaderboard",
    "new",
    "schema",
    "cache",
    "env",
)
"""In the order of the help page; each is a module here whose `command` is the click command."""

USER_ERROR, UNEXPECTED, INTERRUPTED = 2, 1, 130
WIDTH = 100


class Group(click.Group):
    """Loads a command's module when it is asked for, and turns exceptions into messages and exit codes."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        if cmd_name not in COMMANDS:
            return None
        command = importlib.import_module(f"saebench_meta.cli.{cmd_name}").command
        assert isinstance(command, click.Command)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in COMMANDS and not args[0].startswith("-"):
            raise click.UsageError(f"no command is called '{args[0]}'{did_you_mean(args[0], list(COMMANDS))}", ctx)
        return super().resolve_command(ctx, args)

    def main(  # type: ignore[override]
        self, args: Sequence[str] | None = None, prog_name: str | None = None, **extra: Any
    ) -> NoReturn:
        extra.pop("standalone_mode", None)
        _never_fail_to_print()
        try:
            code = super().main(args, prog_name or "saebench", standalone_mode=False, **extra)
        except (click.Abort, KeyboardInterrupt):
            click.echo("interrupted; what is finished is kept, the same command goes on from there", err=True)
            code = INTERRUPTED
        except click.ClickException as e:
            code = _user_error(_click_message(e))
        except SaebenchError as e:
            code = _user_error(str(e))
        except Exception:  # the last line of defence: shown whole, with where to take it
            traceback.print_exc()
            click.echo(f"\n{_where_to_report()}", err=True)
            code = UNEXPECTED
        sys.exit(code if isinstance(code, int) else 0)


def _never_fail_to_print() -> None:
    """An arrow that an old code page lacks is shown as `?` instead of ending the run."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


def _user_error(message: str) -> int:
    if os.environ.get("SAEBENCH_TRACEBACK") == "1":
        traceback.print_exc()
    click.echo(wrapped(f"error: {message}"), err=True)
    return USER_ERROR


def _click_message(e: click.ClickException) -> str:
    """Click's own message, with the file it came from and the way to the help page."""
    from click.core import ParameterSource

    message, where = e.format_message().rstrip(), ""
    ctx = getattr(e, "ctx", None)
    param = getattr(e, "param", None)
    if ctx is None:
        return message
    if param is not None and param.name is not None:
        source = ctx.get_parameter_source(param.name)
        if source is ParameterSource.DEFAULT_MAP:
            where = f" (from {ctx.meta.get('saebench.config', 'the record')})"
        elif source is ParameterSource.ENVIRONMENT:
            where = f" (from the environment variable {envvar_name(ctx, param)})"
    return f"{message}{where}\nType `{ctx.command_path} --help` for what it takes."


def envvar_name(ctx: click.Context, param: click.Parameter) -> str:
    """The environment variable an option is read from."""
    if param.envvar is not None:
        return param.envvar if isinstance(param.envvar, str) else param.envvar[0]
    return f"{ctx.auto_envvar_prefix}_{(param.name or '').upper()}"


def wrapped(message: str) -> str:
    """A message filled to a terminal's width; left in one line a sentence when it goes to a file or a pipe."""
    if not sys.stderr.isatty():
        return message
    width = min(shutil.get_terminal_size().columns, WIDTH)
    fill = textwrap.TextWrapper(width, break_long_words=False, break_on_hyphens=False, subsequent_indent="  ").fill
    return "\n".join(fill(line) for line in message.splitlines())


def _where_to_report() -> str:
    from importlib import metadata

    try:
        urls = [u.partition(", ") for u in metadata.metadata("saebench-meta").get_all("Project-URL") or []]
    except metadata.PackageNotFoundError:  # run from a folder on the path, without an install
        urls = []
    places = [url for label, _, url in urls if label.lower() in {"issues", "bug tracker", "tracker"}]
    where = f" at {places[0]}" if places else ""
    fault = "This is a fault of saebench-meta or of a plugin"
    return f"{fault}: please report it{where}, with the lines above and what `saebench env` prints."


@click.group(
    cls=Group,
    context_settings={
        "auto_envvar_prefix": "SAEBENCH",
        "help_option_names": ["-h", "--help"],
        "max_content_width": WIDTH,
    },
)
@click.version_option(__version__, prog_name="saebench")
def saebench() -> None:
    """Benchmark sparse autoencoders: numbers with their intervals and controls.

    Start with `saebench saes` and `saebench tasks`, then
    `saebench run --sae REF --tasks core`.
    """
