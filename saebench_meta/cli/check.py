"""`saebench check`: a look at one SAE, or whether a task or a plugin keeps the rules."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from saebench_meta.cli.output import columns, json_line

if TYPE_CHECKING:
    from collections.abc import Iterable

    from saebench_meta.inputs import Inputs
    from saebench_meta.plugins import Registry
    from saebench_meta.sae import SAE
    from saebench_meta.settings import Settings
    from saebench_meta.testing.checks import Check

SAMPLE_TOKENS = 2048
FAULTS_FOUND = 1


@click.command("check")
@click.argument("ref", required=False)
@click.option("--task", "task_name", metavar="NAME", envvar="SAEBENCH_CHECK_TASK", help="Check a task instead.")
@click.option(
    "--plugin",
    "plugin_name",
    metavar="NAME",
    envvar="SAEBENCH_CHECK_PLUGIN",
    help="Check a plugin or a distribution instead.",
)
@click.option("--sample", is_flag=True, help="Also run the model and reconstruct a small sample at the site.")
@click.option("--model", metavar="REF", help="Language model, over what the SAE says.")
@click.option("--hook", metavar="NAME", help="Hook the SAE reads, over what the SAE says.")
@click.option("--corpus", metavar="REF", help="Documents of the sample; by default what the SAE was trained on.")
@click.option("--device", default="auto", show_default=True, metavar="NAME", help="Where the sample is run.")
@click.option("--json", "as_json", is_flag=True, envvar="SAEBENCH_JSON", help="As one JSON object.")
def command(
    ref: str | None, task_name: str | None, plugin_name: str | None, sample: bool, as_json: bool, **site: Any
) -> int:
    """Look at an SAE, a task or a plugin before a run.

    For an SAE: its weights, its site, and anything odd.

    For a task or plugin: the checks of saebench_meta.testing, a line each; exit 1 if a rule is broken.
    """
    if sum(x is not None for x in (ref, task_name, plugin_name)) != 1:
        raise click.UsageError("give one of: an SAE's REF, --task NAME, --plugin NAME")
    from saebench_meta.plugins import registry

    found = registry()
    if ref is not None:
        facts = check_sae(found, ref, sample=sample, **site)
        json_line(facts) if as_json else click.echo(_facts(facts))
        return 0
    from saebench_meta.testing.battery import battery

    checks = checks_of_task(found, task_name) if task_name else battery(plugin_name or "", registry=found)
    return 0 if told(checks, as_json, task_name or plugin_name or "") else FAULTS_FOUND


# -- an SAE


def check_sae(
    registry: Registry, ref: str, *, sample: bool, model: str | None, hook: str | None, corpus: str | None, device: str
) -> dict[str, Any]:
    """Facts of an SAE as plain data; with `sample` also of a small reconstruction at its site.

    Raises:
        SaebenchError: the SAE cannot be opened, or a sample was asked for and model or corpus cannot be had.
    """
    from saebench_meta.errors import UnmetNeedError
    from saebench_meta.inputs import InputsFinder
    from saebench_meta.inspect_sae import inspect_reconstruction, inspect_sae, sample_warnings
    from saebench_meta.resolve import resolve_sae
    from saebench_meta.settings import Settings

    resolved = resolve_sae(registry, ref, model=model, hook=hook)
    inputs = None
    if sample:
        settings = Settings(saes=(ref,), model=model, corpus=corpus, device=device, tokens=SAMPLE_TOKENS, cache=False)
        found = InputsFinder(registry, settings).find(resolved)
        if isinstance(found, str):
            raise UnmetNeedError(found)
        inputs = found
    sae = resolved.load()
    facts: dict[str, Any] = {"ref": ref, "loader": resolved.scheme, **asdict(inspect_sae(sae))}
    if inputs is not None:
        facts["sample"] = inspect_reconstruction(sae, _activations(registry, settings, inputs, sae))
        facts["warnings"] = [*facts["warnings"], *sample_warnings(facts["sample"])]
    return facts


def _activations(registry: Registry, settings: Settings, inputs: Inputs, sae: SAE) -> Any:
    """Activations of the sample as one matrix (tokens, d_in), where the SAE is."""
    import torch

    from saebench_meta.session import Session

    site = Session(registry, settings).site(inputs)
    site.lm.check_hook(inputs.hook, sae.d_in)
    return torch.cat([chunk.x.to(device=sae.device, dtype=sae.dtype) for chunk in site.activations])


def _facts(facts: dict[str, Any]) -> str:
    """Facts for reading: one line each, warnings last."""
    rows = [
        (name.replace("_", " "), _shown(value)) for name, value in facts.items() if name not in ("warnings", "sample")
    ]
    text = columns(rows, ("SAE", ""))
    if sample := facts.get("sample"):
        text += f"\n\non a sample of {sample['tokens']:,.0f} tokens:\n"
        text += "\n".join(f"  {name.replace('_', ' ')}  {_shown(v)}" for name, v in sample.items() if name != "tokens")
    warnings = facts.get("warnings") or ()
    return text + "".join(f"\nwarning: {w}" for w in warnings)


def _shown(value: Any) -> str:
    from saebench_meta.tables import number

    if value is None or value == ():
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, dict):
        return ", ".join(f"{k} {_shown(v)}" for k, v in value.items())
    if isinstance(value, tuple | list):
        return "; ".join(map(str, value))
    return number(value) if isinstance(value, int | float) else str(value)


# -- a plugin or a task


def checks_of_task(registry: Registry, name: str) -> list[Check]:
    """Every check of a task, tried with what its plugin gives.

    Raises:
        UnknownNameError: there is no such task.
    """
    from saebench_meta.testing.battery import battery

    registry.tasks[name]
    of = f"task '{name}'"
    plugin = registry.tasks.owner(name)
    return [check for check in battery(plugin.name, kinds=("task",), registry=registry) if check.of == of]


def told(checks: Iterable[Check], as_json: bool, what: str) -> bool:
    """Run checks and print a line for each as it ends, or all as one JSON object; whether every rule is kept."""
    from saebench_meta.testing.checks import attempt

    found = []
    for check in checks:
        found.append(outcome := attempt(check))
        if not as_json:
            click.echo(f"{outcome.status:5}  {outcome.id}" + (f": {outcome.reason}" if outcome.reason else ""))
    faults = [f"{o.id}: {o.reason}" for o in found if o.status == "fault"]
    if as_json:
        json_line({"checked": what, "faults": faults, "checks": [asdict(o) for o in found]})
    else:
        kept = sum(o.status == "ok" for o in found)
        skipped = len(found) - kept - len(faults)
        click.echo(f"{what}: {kept} of {len(found)} rules kept, {len(faults)} broken, {skipped} not tried")
    return not faults
