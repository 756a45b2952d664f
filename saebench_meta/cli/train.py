"""`saebench train`: SAEs trained at a site of a language model, ready for `saebench run`, or on a world."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import click

from saebench_meta.cli.options import POSITIVE, option
from saebench_meta.cli.output import columns, json_line
from saebench_meta.settings import DeviceMap, Dtype

if TYPE_CHECKING:
    from saebench_meta.plugins import Registry
    from saebench_meta.training.job import Job

SHORT = ("arch", "width", "k", "l1", "tokens", "batch_size", "lr", "precision", "seed")
"""Options that are settings of a recipe."""
SITE = ("model", "hook", "corpus")
"""Options that say what is trained on, unless it is a world."""


@click.command("train", context_settings={"auto_envvar_prefix": "SAEBENCH_TRAIN"})
@option("--arch", metavar="NAME", help="Architecture: relu, topk, batchtopk, … (`saebench train --list`).")
@option("--model", metavar="REF", help="Language model: hub name or folder.")
@option("--revision", metavar="REV", help="Revision of the language model.")
@option("--hook", metavar="NAME", help="Where it reads: a hook name or the path of a Hugging Face module.")
@option("--world", metavar="REF", help="Instead of these: samples of a world whose truth is known (`toy:NAME`).")
@option("--width", type=POSITIVE, metavar="N", help="Number of latents.")
@option("--start", metavar="REF", help="SAE whose decoder is trained anew (--arch decoder); --width is then its own.")
@option("--k", type=POSITIVE, metavar="N", help="Active latents per token (topk, batchtopk, matryoshka).")
@option("--l1", type=float, metavar="X", help="Weight of the L1 penalty (relu, gated, tied).")
@option("--tokens", metavar="N", help="Activations seen, repeats included: 500k, 2M, 1B.")
@option("--corpus", metavar="REF", help="Documents: a file or a data set.")
@option("--split", metavar="NAME", help="Split of the data set; by default the one it keeps for training.")
@option("--text-field", default="text", metavar="NAME", help="Field that holds a document's text.")
@option("--data-revision", metavar="REV", help="Revision of the data set.")
@option("--context", type=POSITIVE, default=128, metavar="N", help="Tokens per context, BOS included.")
@option("--bos/--no-bos", default=True, help="BOS before every context; never trained on.")
@option("--batch-size", type=POSITIVE, metavar="N", help="Activations a step; 4096 unless the architecture says.")
@option("--lr", type=float, metavar="X", help="Peak learning rate.")
@option("--seed", type=click.IntRange(min=0), metavar="N", help="Of initialisation and of the order of the data.")
@option("--set", multiple=True, metavar="KEY=VALUE", help="Any other setting of the recipe; repeatable.")
@option("--sweep", type=click.Path(dir_okay=False, path_type=Path), help="TOML file with several SAEs, one pass.")
@option("-o", "--out", type=click.Path(file_okay=False, path_type=Path), help="Folder; each SAE gets one inside it.")
@option("--device", default="auto", metavar="NAME", help="`auto`, `cpu`, `cuda`, `cuda:1`, `mps`.")
@option("--device-map", type=click.Choice(get_args(DeviceMap)), help="Spread the language model over all GPUs.")
@option("--dtype", type=click.Choice(get_args(Dtype)), default="float32", help="Precision of the language model.")
@option("--precision", type=click.Choice(["float32", "tf32", "bfloat16"]), help="Of the SAE's matrix products.")
@option("--threads", type=POSITIVE, metavar="N", help="CPU threads.")
@option("--checkpoint-minutes", type=click.FloatRange(min=0), default=10.0, metavar="MIN", help="Between checkpoints.")
@option("--force", is_flag=True, help="Begin again where a finished or unfinished training is there.")
@option("--dry-run", is_flag=True, help="Show what would be trained, load nothing.")
@option("--list", is_flag=True, help="Show the architectures and their settings.")
@option("--json", "as_json", is_flag=True, envvar="SAEBENCH_JSON", help="As JSON, one object a line.")
def command(**options: Any) -> int:
    """Train SAEs on activations of a language model or a world; what is finished is kept.

    The same command again goes on from the last checkpoint. Several GPUs: `torchrun --nproc-per-node N -m saebench_meta
    train …`.

    \b
    saebench train --arch batchtopk --model atlas --hook blocks.1.hook_resid_post \\
        --width 1024 --k 8 --tokens 2M --corpus atlas -o trained
    saebench run --sae trained/batchtopk-1024-k8-s0 --tasks all

    \b
    saebench train --arch relu --world toy:absorption-4 --width 4 --l1 1e-3 --tokens 4M -o toys
    saebench truth toys/relu-4-l10.001-s0
    """
    from saebench_meta.plugins import registry

    found = registry()
    if options["list"]:
        _list(found, as_json=options["as_json"])
        return 0
    job = job_of(found, options)
    if options["dry_run"]:
        _show(job, as_json=options["as_json"])
        return 0
    return _train(found, job, as_json=options["as_json"])


def job_of(registry: Registry, options: dict[str, Any]) -> Job:
    """What is asked for, with every reference resolved and every setting checked; nothing is loaded.

    Raises:
        click.UsageError: an option is missing.
        SaebenchError: anything else that is wrong with them.
    """
    from saebench_meta.resolve import resolve_sae
    from saebench_meta.training.job import make_job
    from saebench_meta.training.sweep import read_sweep, recipe

    _check_source(options)
    start = None if options["start"] is None else resolve_sae(registry, options["start"])
    if start is not None and options["width"] is None:
        options = {**options, "width": start.info.d_sae}
    common = {name: options[name] for name in SHORT if options[name] is not None} | _pairs(options["set"])
    recipes = [recipe(registry, common)] if options["sweep"] is None else read_sweep(registry, options["sweep"], common)
    names = ("world", *SITE, "revision", "split", "text_field", "data_revision", "context", "bos")
    places = ("out", "device", "device_map", "dtype", "threads", "checkpoint_minutes", "force")
    return make_job(registry, recipes, start=start, **{name: options[name] for name in (*names, *places)})


def _check_source(options: dict[str, Any]) -> None:
    """What is trained on is said once: a world, or model, hook and corpus.

    Raises:
        click.UsageError: it is not.
    """
    for name in ("out",) if options["world"] is not None else (*SITE, "out"):
        if options[name] is None:
            raise click.UsageError(f"--{name} is missing")
    if options["world"] is not None:
        for name in (*SITE, "revision", "split", "data_revision"):
            if options[name] is not None:
                flag = name.replace("_", "-")
                raise click.UsageError(f"--world and --{flag}: a world has no language model and no corpus")


def _pairs(pairs: tuple[str, ...]) -> dict[str, Any]:
    import json

    out: dict[str, Any] = {}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        if not (key and equals):
            raise click.UsageError(f"--set {pair}: expected KEY=VALUE, e.g. --set warmup=0.05")
        try:
            out[key] = json.loads(text)
        except ValueError:
            out[key] = text
    return out


def _list(registry: Registry, *, as_json: bool) -> None:
    rows = []
    for name, architecture in sorted(registry.architectures.items()):
        settings = {**architecture.hyperparameters, **architecture.recipe}
        if as_json:
            json_line({"name": name, "version": architecture.version, "summary": architecture.summary, **settings})
        rows.append((name, architecture.summary, ", ".join(f"{k}={v}" for k, v in settings.items())))
    if not as_json:
        click.echo(columns(rows, ("architecture", "what", "settings")))


def _show(job: Job, *, as_json: bool) -> None:
    from saebench_meta.inputs import Inputs
    from saebench_meta.variants import in_words, training_seconds

    source = job.source
    d_in, parameters = (
        (None, source.model.identity.parameters) if isinstance(source, Inputs) else (source.directions.shape[1], 0)
    )
    rows = []
    for one in job.recipes:
        seconds = training_seconds(one, d_in, parameters, job.settings)
        if as_json:
            facts = {"event": "TrainingPlanned", "label": one.label, "digest": one.digest(), "seconds": round(seconds)}
            json_line({**facts, "recipe": one.model_dump(mode="json")})
        rows.append((one.label, f"{one.tokens:,}", f"{one.steps:,}", in_words(seconds), one.digest()[:12]))
    if not as_json:
        click.echo(columns(rows, ("SAE", "tokens", "steps", "about", "recipe")))
        on = (
            f"{source.model.ref}/{source.hook}, corpus {source.data.ref}" if isinstance(source, Inputs) else source.name
        )
        click.echo(f"on {on}, into {job.out}")


def _train(registry: Registry, job: Job, *, as_json: bool) -> int:
    import os
    from contextlib import nullcontext

    from saebench_meta.progress import display
    from saebench_meta.tables import number
    from saebench_meta.training.job import run_job

    first = os.environ.get("RANK", "0") == "0"  # the other processes of torchrun say nothing
    with display(registry, as_json=as_json) if first else nullcontext():
        finished = run_job(registry, job)
    if not first:
        return 0
    rows = []
    for one in finished:
        m = one.training.metrics
        if as_json:
            json_line({"event": "TrainingFinished", "label": one.recipe.label, "path": str(one.folder), **m})
        shown = [number(m[name]) for name in ("fvu", "l0", "dead_share")]
        rows.append((one.folder.name, *shown, f"{one.training.tokens_per_second:,.0f}", str(one.folder)))
    if not as_json and rows:
        click.echo(columns(rows, ("SAE", "FVU", "L0", "dead share", "tokens/s", "saved in")))
        click.echo(f"\nnext: {_next(job, finished[0].folder)}")
    return 0


def _next(job: Job, folder: Path) -> str:
    """The command that says how good the SAE in a folder is."""
    from saebench_meta.inputs import Inputs

    if not isinstance(job.source, Inputs):
        return f"saebench truth {folder}"
    unseen = "" if job.source.data.loader.train_split else " --corpus DOCUMENTS_IT_HAS_NOT_SEEN"
    return f"saebench run --sae {folder} --tasks all{unseen}"
