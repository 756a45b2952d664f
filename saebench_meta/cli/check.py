"""`saebench check`: a look at one SAE, or whether a task or a plugin keeps the rules."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from saebench_meta.cli.output import columns, json_line

if TYPE_CHECKING:
    from saebench_meta.inputs import Inputs
    from saebench_meta.judging import JudgeLoader
    from saebench_meta.plugins import PluginInfo, Registry
    from saebench_meta.sae import SAE
    from saebench_meta.settings import Settings
    from saebench_meta.task import Task

BUILT_IN_NEEDS = ("activations", "lm", "reference", "judge", "labelled", "truth", "cities")
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

    For a task or plugin: whether it keeps the rules; exit 1 if not.
    """
    if sum(x is not None for x in (ref, task_name, plugin_name)) != 1:
        raise click.UsageError("give one of: an SAE's REF, --task NAME, --plugin NAME")
    from saebench_meta.plugins import registry

    found = registry()
    if ref is not None:
        facts = check_sae(found, ref, sample=sample, **site)
        json_line(facts) if as_json else click.echo(_facts(facts))
        return 0
    faults = task_faults(found, found.tasks[task_name]) if task_name else plugin_faults(found, plugin_name or "")
    what = task_name or plugin_name
    if as_json:
        json_line({"checked": what, "faults": faults})
    else:
        click.echo("\n".join(f"{what}: {f}" for f in faults) or f"{what}: keeps the rules")
    return FAULTS_FOUND if faults else 0


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


# -- conformance


def task_faults(registry: Registry, task: Task) -> list[str]:
    """What a task leaves undone that readers of its results need; empty if nothing."""
    from saebench_meta.stats import parse_formula
    from saebench_meta.task import ORACLE

    faults = []
    if not task.summary.strip():
        faults.append("the docstring's first line does not say what is measured")
    if not any(m.main for m in task.metrics):
        faults.append("no metric is marked `main=True`, so the short table is empty")
    known = {*BUILT_IN_NEEDS, *registry.needs}
    faults += [f"needs '{n}', which no installed plugin provides" for n in task.needs if n not in known]
    faults += _judge_faults(task)
    if task.subject == "pair" and "reference" not in task.needs:
        faults.append("its subject is a pair, but its needs do not name 'reference'")
    for metric in task.metrics:
        if not metric.help:
            faults.append(f"metric '{metric.name}' has no `help`")
        if metric.of is not None:
            try:
                parse_formula(metric.of)
            except ValueError as e:
                faults.append(f"metric '{metric.name}': {e}")
        missing = set((metric.expects or "trained").split(">")) - {"trained", ORACLE, *task.controls}
        if missing:
            faults.append(f"metric '{metric.name}' expects an order of {sorted(missing)}, which the task does not run")
        if metric.expects and not metric.why:
            faults.append(f"metric '{metric.name}' does not say why that order is expected (`why`)")
    return faults


def _judge_faults(task: Task) -> list[str]:
    """What a task that asks a judge leaves undone."""
    from saebench_meta.judges import prompt_hashes

    if "judge" not in task.needs:
        return []
    faults = [] if task.asks else ["it asks a judge, but does not say how much (`asks`), so that no price can be told"]
    if task.prompts is None:
        return [*faults, "it asks a judge, but does not show its prompts (`prompts`), so that records cannot hash them"]
    try:
        return faults if prompt_hashes(task) else [*faults, "`prompts` gives no prompt"]
    except Exception as e:  # a third party's function may raise anything; it is reported, not hidden
        return [*faults, f"`prompts` fails: {type(e).__name__}: {e}"]


def _loader_faults(name: str, loader: JudgeLoader) -> list[str]:
    """What a judge leaves undone."""
    faults = [] if loader.summary else [f"judge '{name}' has no `summary`"]
    plain = (str, int, float, bool, type(None))
    odd = sorted(option for option, default in loader.options.items() if not isinstance(default, plain))
    return faults + [
        f"judge '{name}': option '{o}' is no text, number or truth value, so -J cannot set it" for o in odd
    ]


def plugin_faults(registry: Registry, name: str) -> list[str]:
    """Problems of a plugin, or of every plugin of a distribution, and faults of the tasks they offer.

    Raises:
        UnknownNameError: there is no such plugin.
    """
    from saebench_meta.errors import UnknownNameError, did_you_mean

    chosen = [p for p in registry.plugins if name in (p.name, p.distribution)]
    if not chosen:
        names = {p.name for p in registry.plugins} | {p.distribution for p in registry.plugins}
        raise UnknownNameError(f"no plugin or distribution is called '{name}'{did_you_mean(name, sorted(names))}")
    return [fault for plugin in chosen for fault in _plugin_faults(registry, plugin)]


def _plugin_faults(registry: Registry, plugin: PluginInfo) -> list[str]:
    faults = list(plugin.problems)
    if plugin.registered and not plugin.provides:
        faults.append(f"plugin '{plugin.name}' offers nothing but events, if that")
    if plugin.slow:
        faults.append(f"takes {plugin.seconds:.2f} s to import: import torch and the like inside functions")
    for judge in plugin.provides.get("judge", []):
        if judge in registry.judges:
            faults += _loader_faults(judge, registry.judges[judge])
    for task in plugin.provides.get("task", []):
        if task in registry.tasks:
            faults += [f"task '{task}': {fault}" for fault in task_faults(registry, registry.tasks[task])]
    return [f"{plugin.name}: {f}" if plugin.name not in f else f for f in faults]
