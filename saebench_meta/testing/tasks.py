"""Checks of tasks: a run on a shipped SAE gives sound numbers, and they do not move with what they must not depend on.

A task that draws latents at random, or trains on rows in their order, moves with the order of latents: such a check is
named in `Samples.exempt` with the reason.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any
from unittest import SkipTest

from saebench_meta.testing.checks import Check, checks_of, expect
from saebench_meta.testing.declared import BUILT_IN_NEEDS, declared_checks
from saebench_meta.testing.world import TaskTrial, World

if TYPE_CHECKING:
    from saebench_meta.plugins import Registry
    from saebench_meta.sae import SAE

TOLERANCE = 1e-5
"""How far a number may move where only the order of sums differs, beside its size or 1."""
LONGER_CONTEXT = 122
"""Tokens a row: every document of the built-in world fits into the usual one already, so that only padding grows."""


def task_checks(
    registry: Registry,
    name: str,
    parameters: Mapping[str, Any] | Callable[[], Mapping[str, Any]] | None = None,
    world: World | None = None,
) -> list[Check]:
    """Every check of a task.

    Args:
        registry: knows the task, and the built-in world to try it on.
        parameters: parameters that cost less than the defaults, or what gives them when they are needed.
        world: shared with other tasks, so that its language model is loaded once.
    """
    given = parameters if callable(parameters) else lambda: parameters or {}
    task = registry.tasks[name]
    trial = TaskTrial(task, world or World(registry), given)
    declared = declared_checks(task, {*BUILT_IN_NEEDS, *registry.needs})
    return [*declared, *checks_of(f"task '{name}'", CHECKS, trial)]


# -- one run


def _runs(trial: TaskTrial) -> None:
    from saebench_meta.record import parse_record

    metrics = trial.record.metrics
    without = [name for name, m in metrics.items() if m.value is None and not m.reason]
    expect(not without, f"these have neither a value nor a reason: {', '.join(without)}")
    bare = [
        name
        for name, m in metrics.items()
        if m.value is not None and m.method not in ("census", "exact") and m.ci_low is None and not m.reason
    ]
    expect(not bare, f"these have no interval, no reason for that, and are no census: {', '.join(bare)}")
    expect(any(m.value is not None for m in metrics.values()), "not one of its metrics has a value")
    expect(parse_record(trial.record.to_json(), "record") == trial.record, "its record, read back, is another")


def _controls(trial: TaskTrial) -> None:
    if not trial.task.controls:
        raise SkipTest("it names no controls")
    metrics, named = _sound(trial).metrics, set(trial.task.controls) - {"oracle"}
    for name, metric in metrics.items():
        missing = named - set(metric.controls)
        expect(not missing, f"metric '{name}' was not measured on: {', '.join(sorted(missing))}")
    told = any(m.controls[control].value != m.value for m in metrics.values() for control in named)
    expect(
        told or not named,
        "every metric has the same value on the SAE and on all controls, which then tell nothing: name none",
    )


def _sound(trial: TaskTrial) -> Any:
    if not trial.runs:
        raise SkipTest("it does not run")
    return trial.record


# -- what the numbers must not depend on


def _again(trial: TaskTrial) -> None:
    _agree(trial, trial.values(), "run twice with one seed")


def _order_of_latents(trial: TaskTrial) -> None:
    _agree(trial, trial.values(permuted), "with the latents in another order")


def _size_of_codes(trial: TaskTrial) -> None:
    _agree(trial, trial.values(rescaled), "with codes f·s and decoder rows w/s, s another for each latent")


def _batch(trial: TaskTrial) -> None:
    _reads(trial, "activations", "lm", "labelled")
    _agree(trial, trial.values(batch_size=1), "with one row in a batch")


def _padding(trial: TaskTrial) -> None:
    _reads(trial, "activations", "lm")
    _agree(trial, trial.values(context=LONGER_CONTEXT), "with longer rows, so that there is more padding")


def _order_of_documents(trial: TaskTrial) -> None:
    _reads(trial, "activations", "lm")
    if "tokens" in trial.corpus:
        raise SkipTest("its order decides which documents are evaluated, and which are left")
    if "labelled" in trial.task.needs:
        raise SkipTest("its texts are those of a labelled set, in one order")
    _agree(trial, trial.values(corpus=trial.world.corpora["backwards"]), "with the documents in another order")


def _reads(trial: TaskTrial, *needs: str) -> None:
    if not set(needs) & set(trial.task.needs):
        raise SkipTest("it reads no documents")


def _agree(trial: TaskTrial, moved: Mapping[str, float | None], how: str) -> None:
    first = {name: metric.value for name, metric in _sound(trial).metrics.items()}
    off = [f"{name} {first[name]} → {moved[name]}" for name in first if not _same(first[name], moved[name])]
    expect(not off, f"{how}, these move: {'; '.join(off)}")


def _same(a: float | None, b: float | None) -> bool:
    if a is None or b is None:
        return a is b
    return abs(a - b) <= TOLERANCE * max(1.0, abs(a))


def permuted(sae: SAE) -> SAE:
    """The SAE with its latents in another order."""
    import torch

    from saebench_meta import seeds

    order = torch.randperm(sae.d_sae, generator=seeds.generator(0, "order of latents"))
    return _with_latents(sae, W_enc=sae.W_enc[:, order], W_dec=sae.W_dec[order], order=order)


def rescaled(sae: SAE) -> SAE:
    """The SAE with codes f·s and decoder rows w/s, which rebuilds the same."""
    import torch

    from saebench_meta import seeds

    # Powers of 2: multiplying by them rounds nothing, so that a number that moves depends on the size.
    s = 2.0 ** torch.randint(-2, 3, (sae.d_sae,), generator=seeds.generator(0, "size of codes"))
    return _with_latents(sae, W_enc=sae.W_enc * s, W_dec=sae.W_dec / s[:, None], factor=s)


def _with_latents(sae: SAE, *, W_enc: Any, W_dec: Any, order: Any = slice(None), factor: Any = 1) -> SAE:
    threshold = None if sae.threshold is None else sae.threshold[order] * factor
    return replace(sae, W_enc=W_enc, b_enc=sae.b_enc[order] * factor, W_dec=W_dec, threshold=threshold)


CHECKS: Mapping[str, Callable[[TaskTrial], None]] = {
    "runs and gives intervals": _runs,
    "its controls differ from the SAE": _controls,
    "the same numbers every time": _again,
    "the order of latents is nothing to it": _order_of_latents,
    "the size of codes is nothing to it": _size_of_codes,
    "the batch size is nothing to it": _batch,
    "padding is nothing to it": _padding,
    "the order of documents is nothing to it": _order_of_documents,
}
"""By title, in the order in which they run; what it declares is checked before."""
