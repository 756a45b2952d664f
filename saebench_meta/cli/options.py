"""The options of `saebench run`, each declared once: command line, `SAEBENCH_…` and TOML file all read this list."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args

import click

from saebench_meta.cli import config
from saebench_meta.settings import (
    DeviceMap,
    Dtype,
    Packing,
    Profile,
    Settings,
    parse_judge_options,
    parse_parameters,
)

F = TypeVar("F", bound=Callable[..., Any])

DEFAULT = Settings()


def batch_size(text: str | int) -> int | str:
    """A number of tokens, or `auto`."""
    if text == "auto":
        return "auto"
    try:
        number = int(text)
    except ValueError:
        number = 0
    if number < 1:
        raise click.BadParameter(f"'{text}' is neither a whole number above 0 nor 'auto'")
    return number


class RunCommand(click.Command):
    """`--family A B C` is `--family A --family B --family C`: an option of click takes one value."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        return super().parse_args(ctx, spread(args, "--family"))


def spread(args: Sequence[str], option: str) -> list[str]:
    """The option's name put before each word that follows it, up to the next option."""
    out: list[str] = []
    words = iter(args)
    inside = fresh = False
    for word in words:
        if word.startswith("-") and len(word) > 1:
            inside = word == option or word.startswith(f"{option}=")
            fresh = word == option
        elif inside and not fresh:
            out.append(option)
        else:
            fresh = False
        out.append(word)
    return out


def option(*names: str, **attributes: Any) -> Callable[[F], F]:
    """An option whose default is shown on the help page."""
    attributes.setdefault("show_default", attributes.get("default") is not None)
    return click.option(*names, **attributes)


POSITIVE = click.IntRange(min=1)

OPTIONS: tuple[Callable[[Any], Any], ...] = (
    # the subject
    option("--sae", multiple=True, metavar="REF", help="An SAE: a path or `scheme:name`. Repeat it for several."),
    option("--family", multiple=True, metavar="REF...", help="Several SAEs at one site as one subject, in order."),
    option("--reference", metavar="REF", help="SAE to compare with; looked for if not given."),
    option("--model", metavar="REF", help="Language model, over what the SAE says."),
    option("--revision", metavar="REV", help="Revision of the language model."),
    option("--hook", metavar="NAME", help="Hook the SAE reads, over what the SAE says."),
    # the tasks
    option("--tasks", multiple=True, default=DEFAULT.tasks, metavar="NAME|GLOB,...", help="Names, globs, or `all`."),
    option("-P", "--parameter", multiple=True, metavar="TASK.KEY=VALUE", help="A parameter of a task; repeatable."),
    option(
        "--train-budget", type=click.FloatRange(min=0), default=DEFAULT.train_budget, metavar="MIN",
        help="Minutes that training a missing reference may take; 0 trains none.",
    ),
    option("--judge", metavar="NAME", help="Judge for the tasks that need one; `lexical` if none is named."),
    option(
        "-J", "--judge-option", multiple=True, metavar="NAME=VALUE",
        help="An option of the judge (`saebench plugins NAME` lists them); repeatable.",
    ),
    option(
        "--max-cost", type=click.FloatRange(min=0), metavar="USD",
        help="Most that the judge may cost; the run stops asking before it would cost more.",
    ),
    # the data
    option("--corpus", metavar="REF", help="Documents: a file or a data set; by default the SAE's own."),
    option("--split", metavar="NAME", help="Split of the data set."),
    option("--text-field", default=DEFAULT.text_field, metavar="NAME", help="Field that holds a document's text."),
    option("--data-revision", metavar="REV", help="Revision of the data set."),
    option(
        "--labelled", multiple=True, metavar="REF",
        help="A labelled set: a file, `scheme:name`, or a scheme for all of its sets; by default those for the model.",
    ),
    option("--context", type=POSITIVE, metavar="N", help="Tokens per context; by default the SAE's own."),
    option(
        "--packing", type=click.Choice(get_args(Packing)), default=DEFAULT.packing,
        help="One document a context, or documents joined end to end.",
    ),
    option("--tokens", type=POSITIVE, metavar="N", help="Tokens to evaluate on; by default what the profile says."),
    option(
        "--profile",
        type=click.Choice(get_args(Profile)),
        default=DEFAULT.profile,
        help="How much data to use, and work to do.",
    ),
    option("--seed", type=click.IntRange(min=0), default=DEFAULT.seed, metavar="N", help="Seed of every random draw."),
    option("--limit", type=POSITIVE, metavar="N", help="A seeded subset, in each task's own unit (`saebench tasks`)."),
    # the machine
    option("--device", default=DEFAULT.device, metavar="NAME", help="`auto`, `cpu`, `cuda`, `cuda:1`, `mps`."),
    option(
        "--device-map", type=click.Choice(get_args(DeviceMap)),
        help="Spread the language model over all GPUs; by default it is whole on --device.",
    ),
    option("--dtype", type=click.Choice(get_args(Dtype)), default=DEFAULT.dtype, help="Precision of the model."),
    option("--batch-size", type=batch_size, default="auto", metavar="N|auto", help="Tokens a forward pass."),
    option("--threads", type=POSITIVE, metavar="N", help="CPU threads."),
    option(
        "-j", "--jobs", type=POSITIVE, default=DEFAULT.jobs, metavar="N",
        help="Processes that share the units; each holds a language model, on a GPU too.",
    ),
    option("--cache-dir", type=click.Path(file_okay=False, path_type=Path), help="Folder of the activation cache."),
    option("--cache/--no-cache", default=DEFAULT.cache, help="Keep activations on disk for later runs."),
    # the run
    option(
        "-o", "--out", type=click.Path(file_okay=False, path_type=Path), default=DEFAULT.out,
        help="Folder for the records.",
    ),
    option("--force", is_flag=True, help="Run again what is there already."),
    option("--fail-fast", is_flag=True, help="Stop at the first task that fails."),
    option("--dry-run", is_flag=True, help="Show what would run, load nothing."),
    option("--json", is_flag=True, help="One JSON object an event on standard output, nothing else there."),
    option(
        "--from-record", is_eager=True, expose_value=False, callback=config.take_record,
        type=click.Path(exists=True, path_type=Path), help="Take subject and settings from a record.",
    ),
    option(
        "--config", is_eager=True, expose_value=False, callback=config.take_file,
        type=click.Path(exists=True, dir_okay=False, path_type=Path),
        help="TOML file with a [run] table and [parameters.TASK].",
    ),
)  # fmt: skip


def run_options(function: F) -> F:
    """Put every option of `run` on a command."""
    for option in reversed(OPTIONS):
        function = option(function)
    return function


def settings_of(ctx: click.Context, options: dict[str, Any]) -> Settings:
    """The settings a command line, environment, file and record make together."""
    options = dict(options)
    _drop_overridden_subject(ctx, options)
    batch = options.pop("batch_size")
    pairs = options.pop("parameter")
    parameters = config.parameters(ctx, options["tasks"], parse_parameters(pairs))
    typed = parse_judge_options(options.pop("judge_option"))
    for flag in ("json", "dry_run"):
        options.pop(flag)
    return Settings(
        saes=options.pop("sae"),
        parameters=parameters,
        judge_options=config.judge_options(ctx, options["tasks"], options["judge"], typed),
        batch_size=None if batch == "auto" else batch,
        **options,
    )


def _drop_overridden_subject(ctx: click.Context, options: dict[str, Any]) -> None:
    """A subject named on the command line replaces the one of a file or record, also when it is of the other kind."""
    from click.core import ParameterSource

    weak = {n for n in ("sae", "family") if ctx.get_parameter_source(n) is ParameterSource.DEFAULT_MAP}
    if len(weak) == 1 and options["sae"] and options["family"]:
        options[weak.pop()] = ()
