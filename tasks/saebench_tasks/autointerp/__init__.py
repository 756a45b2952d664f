"""Can what latents and meta-latents respond to be told in words? Multiple choice with a judge.

Leask et al., section 5.1. A judge, such as a language model, explains latents from passages with the firing tokens
marked (`passages`), and meta-latents from the explanations and passages of latents that they are active on
(`explanations`, `meta`). Then it is asked which of five it is (`questions`):

- latents: here is an explanation, and a passage each of five latents; which is of the latent that is explained?
- meta-latents: here are the explanations of the meta-latents active on a latent, and the explanations of five latents;
  which of them is it? The paper's question, 73 % with GPT-4o-mini.

The paper's protocol leaks: a meta-latent may be explained from the very latent that is then asked about. So the same
questions are asked with explanations written without it. And with the descriptions of some other latent, which must
come out at chance. Passages of explanations and of questions are of different documents (`peaks`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from saebench_meta.errors import SaebenchError
from saebench_meta.hookspecs import hookimpl
from saebench_meta.task import Output, Task, task
from saebench_tasks.autointerp.asking import prompts
from saebench_tasks.autointerp.estimate import asks
from saebench_tasks.autointerp.metrics import METRICS

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from typing import Any

    from saebench_meta.context import Context
    from saebench_meta.sae import SAE, SAEInfo
    from saebench_meta.training.recipe import Recipe

saebench_api = 1

TASK = "autointerp"


def trains(
    infos: tuple[SAEInfo, ...], parameters: Mapping[str, Any], recipe: Callable[..., Recipe]
) -> Sequence[Recipe]:
    """The meta-SAE."""
    from saebench_tasks.autointerp import meta

    return meta.trains(infos, parameters, recipe)


@task(
    TASK,
    version=1,
    metrics=METRICS,
    needs=["activations", "lm", "judge"],
    controls=["random"],
    limit_unit="latents",
    source="Leask et al. 2025, section 5.1",
    trains=trains,
    prompts=prompts,
    asks=asks,
    profiles={"quick": {"latents": 100}},
)
def autointerp(
    sae: SAE,
    ctx: Context,
    *,
    latents: int = 1000,
    top: int = 5,
    bins: int = 5,
    length: int = 24,
    options: int = 5,
    dense: float = 0.1,
    fewest: int = 3,
    listed: int = 10,
    width: int = 0,  # noqa: ARG001  # this and the next three are read by `trains`
    k: int = 4,  # noqa: ARG001
    steps: int = 200,  # noqa: ARG001
    lr: float = 1e-3,  # noqa: ARG001
    held_out: float = 0.1,
) -> Output:
    """Whether a judge recognises latents by its explanations of them, and by those of their meta-latents.

    Args:
        latents: how many are asked about, drawn by the seed from those that can be; all where they are fewer.
        top: passages around the strongest tokens of a latent that it is explained from.
        bins: further ones, each drawn from an equal part of the other documents in order of activation.
        length: tokens of a passage.
        options: of a question, one of them right.
        dense: latents that fire on a larger share of tokens are not asked about.
        fewest: documents that a latent must fire in, of those for explaining and of those for questions.
        listed: latents that a meta-latent is explained from, at most: those that it is strongest on.
        width, k, steps, lr, held_out: of the meta-SAE, as of `meta_sae`; where they are equal, so is the meta-SAE.

    Raises:
        SaebenchError: a parameter is out of range.
    """
    from saebench_tasks.autointerp import run

    for name, value, least in (
        ("latents", latents, 1),
        ("top", top, 1),
        ("bins", bins, 0),
        ("length", length, 1),
        ("options", options, 2),
        ("fewest", fewest, 1),
        ("listed", listed, 1),
    ):
        if value < least:
            raise SaebenchError(f"{TASK}.{name} is {value}: give at least {least}")
    if not 0 < dense <= 1:
        raise SaebenchError(f"{TASK}.dense is {dense}: give a share of the tokens above 0 and up to 1")
    most = min(latents, ctx.limit or latents)
    return run.output(sae, ctx, run.Protocol(most, top, bins, length, options, dense, fewest, listed, held_out))


@hookimpl
def saebench_tasks() -> list[Task]:
    return [autointerp]
