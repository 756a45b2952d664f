"""`saebench stitch`: one SAE of the latents of two, written as a file that `saebench run` takes."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from saebench_meta.cli.output import json_line
from saebench_meta.errors import SaebenchError

if TYPE_CHECKING:
    from saebench_meta.plugins import Registry
    from saebench_meta.resolve import ResolvedSAE
    from saebench_meta.sae import SAE, Site
    from saebench_meta.stitching import Components, Schedule

THRESHOLD_OF = "novel_latents"
"""The task whose threshold is the default of --theta."""
RANDOM_ORDER = ("stitching", "order of moves")
"""The random stream of the task `stitching`, so that both take one path."""


@click.command("stitch", context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("a", metavar="A")
@click.argument("b", metavar="B")
@click.option("-o", "--out", type=click.Path(path_type=Path), required=True, help="File or folder to write.")
@click.option("--novel-only", is_flag=True, help="All of A and the novel latents of B; nothing of A leaves.")
@click.option("--until", type=click.IntRange(min=0), metavar="N", help="What is there after N steps of the path.")
@click.option(
    "--theta",
    type=click.FloatRange(-1, 1),
    metavar="COS",
    help="Latents are counterparts above this cosine. By default 0.7, or what the SAEs' format says.",
)
@click.option(
    "--order",
    type=click.Choice(["cosine", "random"]),
    default="cosine",
    show_default=True,
    help="Of the path's steps: the most novel and the most alike first, or random.",
)
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Of the random order.")
@click.option("--json", "as_json", is_flag=True, envvar="SAEBENCH_JSON", help="As one JSON object.")
@click.option("--hook", metavar="NAME", help="Hook the SAEs read, over what they say.")
@click.option("--model", metavar="REF", help="Language model, over what the SAEs say.")
@click.option(
    "--format",
    "format_",
    default="native",
    show_default=True,
    metavar="NAME",
    envvar="SAEBENCH_STITCH_FORMAT",
    help="What to write; only native holds latents of top-k SAEs.",
)
def command(
    a: str,
    b: str,
    out: Path,
    novel_only: bool,
    until: int | None,
    theta: float | None,
    order: str,
    seed: int,
    as_json: bool,
    hook: str | None,
    model: str | None,
    format_: str,
) -> None:
    """Stitch latents of B into A and write the SAE that results.

    A is the SAE to start from, usually the smaller one. By default all of B is taken, and of A the
    latents that have no counterpart in B.

    Each step of the path from A to B moves one latent. First the novel latents of B enter; then,
    group by group, latents of A leave and their counterparts in B enter; last leave the latents of A
    without counterpart. After 0 steps it is A, after as many as both have latents it is B.
    """
    if novel_only and until is not None:
        raise click.UsageError("give --novel-only or --until, not both")
    from saebench_meta.cli.convert import writer
    from saebench_meta.plugins import registry
    from saebench_meta.resolve import resolve_sae

    found = registry()
    save = writer(found, format_)
    start, end = (resolve_sae(found, ref, model=model, hook=hook) for ref in (a, b))
    check_sites(start, end)
    theta = default_theta(found, start, end) if theta is None else theta
    old, new = start.load(), end.load()
    parts, path = _path(old, new, theta, order, seed)
    step = chosen_step(path, novel_only=novel_only, until=until)
    sae, facts = _stitched(old, new, path, step)
    facts |= {"a": a, "b": b, "format": format_, "path": str(save(sae, out)), "theta": theta, "order": order}
    facts |= {"novel": int((parts.new < 0).sum()), "leftover": int((parts.old < 0).sum())}
    json_line(facts) if as_json else click.echo(_told(facts, sae))


def check_sites(a: ResolvedSAE, b: ResolvedSAE) -> None:
    """Refuse SAEs that read different places, also where --hook or --model hides it.

    Raises:
        SaebenchError: they differ in model, revision or hook.
    """
    from saebench_meta.sae import UNKNOWN

    hooks = {a.own_hook, b.own_hook} - {UNKNOWN}
    if a.info.site != b.info.site or len(hooks) > 1:
        raise SaebenchError(
            f"'{a.ref}' reads {_place(a.info.site, a.own_hook)}, '{b.ref}' reads {_place(b.info.site, b.own_hook)}: "
            "their latents do not fit together. Give SAEs of one site, or --model where one model has two names."
        )


def _place(site: Site, own_hook: str) -> str:
    revision = f"@{site.revision}" if site.revision else ""
    return f"{own_hook} of {site.model}{revision}"


def default_theta(registry: Registry, a: ResolvedSAE, b: ResolvedSAE) -> float:
    """The threshold that the tasks take for this pair."""
    from saebench_meta.parameters import format_parameters, task_parameters
    from saebench_meta.subjects import SubjectPlan

    task = registry.tasks[THRESHOLD_OF]
    return float(task_parameters(task, format_parameters(task, SubjectPlan("pair", (b, a))))["threshold"])


def _path(old: SAE, new: SAE, theta: float, order: str, seed: int) -> tuple[Components, Schedule]:
    from saebench_meta.geometry import similarity
    from saebench_meta.seeds import rng
    from saebench_meta.stitching import components, schedule

    found = similarity(new.W_dec, old.W_dec, theta)
    parts = components(found.edges, old.d_sae, new.d_sae)
    if order == "random":
        return parts, schedule(parts, found.max_a, order="random", rng=rng(seed, *RANDOM_ORDER))
    return parts, schedule(parts, found.max_a)


def chosen_step(path: Schedule, *, novel_only: bool, until: int | None) -> int:
    """How many steps of the path are taken.

    Raises:
        SaebenchError: `until` is past the end of the path.
    """
    from saebench_meta.stitching import LEFTOVER, NOVEL

    if until is None:
        return int((path.phase == NOVEL).sum() if novel_only else (path.phase != LEFTOVER).sum())
    if until > path.steps:
        raise SaebenchError(f"--until {until}: the path has {path.steps:,} steps; after 0 it is A, after all it is B")
    return until


def _stitched(old: SAE, new: SAE, path: Schedule, step: int) -> tuple[SAE, dict[str, Any]]:
    """The SAE after so many steps, and what is told of it."""
    from saebench_meta.stitching.stitched import stitch

    kept, entered = path.after(step)
    whole = path.whole()
    note = f"step {step:,} of {path.steps:,} from {old.info.name} to {new.info.name}"
    name = f"{old.info.name}-to-{new.info.name}-{step}"
    sae = stitch([(old, kept), (new, entered)], name=name, notes=(note,))
    facts: dict[str, Any] = {"step": step, "steps": path.steps}
    facts |= {"from_a": len(kept), "from_b": len(entered), "alpha": len(kept) / sae.d_sae}
    facts |= {"whole_before": int(whole[whole <= step].max()), "whole_after": int(whole[whole >= step].min())}
    return sae, facts


def _told(facts: dict[str, Any], sae: SAE) -> str:
    f = facts
    lines = [
        f"{f['path']}: {sae.info.name}, {sae.d_sae:,} latents at {sae.info.site}, as {f['format']}",
        f"{f['from_a']:,} latents of {f['a']} and {f['from_b']:,} of {f['b']}; b_dec is {f['alpha']:.3f} times that of "
        f"the first and {1 - f['alpha']:.3f} times that of the second",
        f"step {f['step']:,} of {f['steps']:,}; at theta {f['theta']:g} {f['novel']:,} latents of B are novel, and "
        f"{f['leftover']:,} of A have no counterpart",
    ]
    if f["whole_before"] != f["whole_after"]:
        around = f"--until {f['whole_before']} and --until {f['whole_after']}"
        lines.append(f"this step is in the middle of a swap; {around} are at its ends")
    return "\n".join([*lines, f"next: saebench run --sae {shlex.quote(f['path'])} --tasks core"])
