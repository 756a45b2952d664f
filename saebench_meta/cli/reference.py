"""Writes the command reference from the help pages: `python -m saebench_meta.cli.reference > docs/cli.md`."""

from __future__ import annotations

from collections.abc import Iterator

import click

from saebench_meta.cli.group import saebench

WIDTH = 96

HEAD = """# Commands

Made from the help pages by `python -m saebench_meta.cli.reference > docs/cli.md`; a test checks that it is current.

Exit codes: 0 fine (skipped tasks included), 1 a task failed, 2 an error to mend before anything runs, 130 interrupted.
`SAEBENCH_TRACEBACK=1` shows the traceback of an error to mend. `SAEBENCH_CACHE_DIR` names the cache for every command,
`SAEBENCH_DISABLE_PLUGINS=a,b` leaves plugins out, `NO_COLOR=1` turns colours and moving lines off.

Every option of `run` may also stand in the environment, as `SAEBENCH_` and its name (`--batch-size` is
`SAEBENCH_BATCH_SIZE`; several values separated by spaces; `1` or `0` for a switch), and in a file (`--config run.toml`)
under its long name. Options of the other commands carry the command's name too (`SAEBENCH_SHOW_ALL`), but for
`SAEBENCH_JSON`, which all share. Parameters of tasks have a table each in the file, and
options of the judge one:

```toml
[run]
sae = ["atlas:batchtopk-256"]
tasks = "all"
seed = 1

judge = "openai"

[parameters.novel_latents]
threshold = 0.4

[judge]
model = "gpt-4o-mini"
```

The command line wins over the environment, the environment over the file, the file over `--from-record`.
"""


def contexts(command: click.Command, parent: click.Context | None = None) -> Iterator[click.Context]:
    """A context for a command and everything below it, with help pages of one width whatever the terminal."""
    settings = {**command.context_settings, "terminal_width": WIDTH, "max_content_width": WIDTH}
    ctx = click.Context(command, parent=parent, info_name=command.name, **settings)
    yield ctx
    if isinstance(command, click.Group):
        for name in command.list_commands(ctx):
            sub = command.get_command(ctx, name)
            assert sub is not None
            yield from contexts(sub, ctx)


def reference() -> str:
    """The whole page in Markdown."""
    pages = (f"## {ctx.command_path}\n\n```text\n{click.unstyle(ctx.get_help())}\n```\n" for ctx in contexts(saebench))
    return "\n".join([HEAD, *pages])


if __name__ == "__main__":
    click.echo(reference(), nl=False)
