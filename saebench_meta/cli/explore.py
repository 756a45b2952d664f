"""`saebench explore`: pages to look through one SAE's latents, opened from disk."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from saebench_meta.cli import config
from saebench_meta.cli.options import option, run_options

if TYPE_CHECKING:
    from saebench_meta.explorer.folder import Contents
    from saebench_meta.inputs import Inputs
    from saebench_meta.plugins import Registry
    from saebench_meta.resolve import ResolvedSAE
    from saebench_meta.settings import Settings

SITE = (
    "model", "revision", "hook", "corpus", "split", "text_field", "data_revision", "context", "packing", "tokens",
    "profile", "seed", "device", "device_map", "dtype", "threads", "cache_dir", "cache",
)  # fmt: skip
"""Options of `saebench run` that say which activations are looked at."""
SOURCES = "saebench.explorer.sources"


def take_records(ctx: click.Context, param: click.Parameter, value: Any) -> Any:
    """Callback of FOLDER and --sae: when both are known, the settings of the SAE's newest record become defaults."""
    from saebench_meta.explorer.sources import find_sources
    from saebench_meta.plugins import registry
    from saebench_meta.resolve import resolve_sae

    given = {**ctx.params, param.name: value}
    if not {"folder", "sae"} <= given.keys():
        return value
    asked = None if given["sae"] is None else resolve_sae(registry(), given["sae"])
    found = ctx.meta[SOURCES] = find_sources(given["folder"], asked)
    if found.site is not None:
        config.take_record(ctx, param, found.site.folder)
        ctx.default_map = {name: chosen for name, chosen in (ctx.default_map or {}).items() if name in SITE}
    return value


def with_site_options(command: click.Command) -> click.Command:
    """Put those options of `saebench run` on a command, as they are declared there."""
    declared = run_options(click.Command("run"))
    command.params.extend(p for p in reversed(declared.params) if p.name in SITE)
    return command


@with_site_options
@click.command("explore", context_settings={"auto_envvar_prefix": "SAEBENCH_EXPLORE"})
@click.argument("folder", is_eager=True, callback=take_records, type=click.Path(file_okay=False, path_type=Path))
@option("--sae", is_eager=True, callback=take_records, metavar="REF", help="The SAE, where FOLDER does not say it all.")
@option("-o", "--out", type=click.Path(file_okay=False, path_type=Path), help="Folder to write; FOLDER/explorer.")
@option("--latents", type=click.IntRange(min=0), default=300, metavar="N", help="Latents with passages, drawn by seed.")
@option("--latent", multiple=True, type=click.IntRange(min=0), metavar="I", help="A latent with passages; repeatable.")
@click.pass_context
def command(
    ctx: click.Context,
    /,
    folder: Path,
    sae: str | None,
    out: Path | None,
    latents: int,
    latent: tuple[int, ...],
    **site: Any,
) -> None:
    """Write pages to explore an SAE's latents, from the records in FOLDER.

    Search latents by number, token or explanation; see the meta-latents a latent is made of, the
    latents that share them, and the passages of the corpus in which it is most active. The pages
    open from disk. The model and the corpus are those of the newest record that used some.

    \b
    saebench run --sae atlas:batchtopk-512 --tasks core,meta_sae -o out
    saebench explore out
    """
    from saebench_meta.explorer import FOLDER
    from saebench_meta.explorer.collect import check_chosen, from_records
    from saebench_meta.explorer.folder import write_folder
    from saebench_meta.explorer.sources import check_same
    from saebench_meta.plugins import registry
    from saebench_meta.settings import Settings

    found, sources = registry(), ctx.meta[SOURCES]
    check_chosen(latent, sources.sae.info.d_sae)
    out = out or folder / FOLDER
    settings = Settings(saes=(sae or sources.sae.ref,), **site)
    resolved, inputs = _reopened(found, settings)
    check_same(sources.sae, resolved)
    contents = from_records(sources, folder, out)
    contents = _with_activations(found, settings, contents, resolved, inputs, latents, latent)
    _tell(write_folder(out, contents), folder, contents)


def _reopened(registry: Registry, settings: Settings) -> tuple[ResolvedSAE, Inputs | str]:
    """The SAE, and its model and corpus or why there are none; nothing is loaded.

    Raises:
        SaebenchError: one of them is not where the record says; says what to give.
    """
    from saebench_meta.errors import SaebenchError
    from saebench_meta.inputs import InputsFinder
    from saebench_meta.resolve import resolve_sae

    try:
        resolved = resolve_sae(registry, settings.saes[0], model=settings.model, hook=settings.hook)
        return resolved, InputsFinder(registry, settings).find(resolved)
    except SaebenchError as e:
        raise type(e)(
            f"{e}\nA record keeps only the last part of a local path: give --sae, --model or --corpus to say where "
            "those files are."
        ) from e


def _with_activations(
    registry: Registry,
    settings: Settings,
    contents: Contents,
    resolved: ResolvedSAE,
    inputs: Inputs | str,
    latents: int,
    chosen: tuple[int, ...],
) -> Contents:
    """With what the language model says, where there is one."""
    from dataclasses import replace

    from saebench_meta.explorer.collect import with_activations
    from saebench_meta.models import strict_fp32
    from saebench_meta.progress import display
    from saebench_meta.session import Session

    if isinstance(inputs, str):
        return replace(contents, notes=(*contents.notes, f"no passages and no tokens: {inputs}"))
    if settings.threads is not None:
        import torch

        torch.set_num_threads(settings.threads)
    with display(registry), strict_fp32():
        session = Session(registry, settings)
        return with_activations(contents, session, resolved, inputs, n_latents=latents, chosen=chosen)


def _tell(page: Path, folder: Path, contents: Contents) -> None:
    """What was written, what it lacks, and how to open it."""
    from saebench_meta.explorer.folder import folder_bytes

    size = folder_bytes(page.parent)
    click.echo(f"{page.parent}: {contents.title}, {contents.d_sae:,} latents, {size / 2**20:.1f} MiB")
    for note in contents.notes:
        click.echo(f"note: {note}")
    click.echo(f"open it in a browser, no server is needed: {page.resolve().as_uri()}")
    if page.parent.resolve().parent == folder.resolve():
        click.echo(f"`saebench report {folder}` links it from the report")
