"""`saebench convert`: an SAE in another format, with the same codes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import click

from saebench_meta.cli.output import json_line
from saebench_meta.sae import InputTransform

if TYPE_CHECKING:
    from saebench_meta.plugins import Registry
    from saebench_meta.sae import SAE


@click.command("convert", context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("ref")
@click.argument("out", type=click.Path(path_type=Path))
@click.option(
    "--format",
    "format_",
    envvar="SAEBENCH_CONVERT_FORMAT",
    default="native",
    show_default=True,
    metavar="NAME",
    help="What to write: a loader that writes too, such as native or saelens.",
)
@click.option("--model", metavar="REF", help="Language model, over what the SAE says.")
@click.option("--hook", metavar="NAME", help="Hook the SAE reads, over what the SAE says.")
@click.option(
    "--input-transform",
    type=click.Choice(get_args(InputTransform)),
    envvar="SAEBENCH_CONVERT_INPUT_TRANSFORM",
    help="What is done to each token before encoding, over what the SAE says; its codes change.",
)
@click.option("--json", "as_json", is_flag=True, envvar="SAEBENCH_JSON", help="As one JSON object.")
def command(
    ref: str,
    out: Path,
    format_: str,
    model: str | None,
    hook: str | None,
    input_transform: InputTransform | None,
    as_json: bool,
) -> None:
    """Write an SAE in another format, with the same codes.

    REF is any SAE reference. OUT is a file or folder (native), or a new folder (saelens).

    What REF's loader folded into the weights stays folded.
    """
    from saebench_meta.plugins import registry
    from saebench_meta.resolve import resolve_sae

    found = registry()
    save = writer(found, format_)
    resolved = resolve_sae(found, ref, model=model, hook=hook)
    sae = resolved.load()
    if input_transform is not None and input_transform != sae.info.input_transform:
        note = f"input transform set to {input_transform} by its user; the file said {sae.info.input_transform}"
        changes = {"input_transform": input_transform, "notes": (*sae.info.notes, note)}
        sae = replace(sae, info=sae.info.model_copy(update=changes))
    facts = {"ref": ref, "format": format_, "path": str(save(sae, out)), "folded": list(sae.info.folded)}
    json_line(facts) if as_json else click.echo(_told(facts, sae))


def writer(registry: Registry, format_: str) -> Callable[[SAE, Path], Path]:
    """What writes a format.

    Raises:
        UnknownNameError: no loader has this name.
        SaebenchError: its loader only reads; names those that write.
    """
    from saebench_meta.errors import SaebenchError

    save = registry.loaders[format_].save
    if save is None:
        writing = sorted(name for name, loader in registry.loaders.items() if loader.save is not None)
        raise SaebenchError(f"format '{format_}' is only read, not written; --format takes {', '.join(writing)}")
    return save


def _told(facts: dict[str, Any], sae: SAE) -> str:
    lines = [f"{facts['path']}: {sae.info.name}, {sae.d_sae:,} latents at {sae.info.site}, as {facts['format']}"]
    lines += [f"folded into its weights: {what}" for what in facts["folded"]]
    return "\n".join(lines)
