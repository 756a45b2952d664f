"""The best of several dictionaries in one: what each wider SAE has that the narrower ones lack, and a new decoder.

The stitching post that preceded Leask et al., section "Frankenstein's SAE". Members in the order of their widths, D the
dictionary so far, w decoder directions in the SAEs' input space::

    D ← all latents of the narrowest member
    for every next member S:  D ← D ∪ {i in S : max_{j in D} cos(w_i, w_j) < theta}

Every latent keeps its own encoder. The bias is b = Σ n_i b_i / Σ n_i with n_i latents from member i: equation 5 of the
paper for more than two SAEs (ours). Then the decoder alone, W_dec and b, is trained anew.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from saebench_meta.errors import SaebenchError
from saebench_meta.hookspecs import hookimpl
from saebench_meta.task import Family, Metric, Output, Task, task
from saebench_tasks.frankenstein.build import TASK, trains

if TYPE_CHECKING:
    import numpy as np

    from saebench_meta.context import Context
    from saebench_meta.sae import SAE
    from saebench_meta.splice import Baselines, Losses
    from saebench_meta.stats import Estimate
    from saebench_tasks.frankenstein.build import Stage
    from saebench_tasks.frankenstein.sums import Sums

saebench_api = 1

_REBUILDS = "latents of trained dictionaries rebuild activations better than random directions at the same L0"
_TWICE = "before training, latents that share a direction predict it twice; random directions share less"
_SIZE = "how many latents are novel says nothing of their worth; random directions are nearly all novel"
_SPARSITY = "adding latents without taking any away raises L0, which is what the post calls an unfair comparison"
_OWN = "compared with a member of its own family, which the control replaces too"
_ROWS = "how far rows must move depends on how many latents share a direction"

METRICS = (
    Metric("latents", "neither", "latents", main=True, why=_SIZE, help="Latents of the last stage."),
    Metric(
        "l0", "neither", "latents", main=True, of="active / tokens", why=_SPARSITY, help="Its active latents per token."
    ),
    Metric(
        "mse_before",
        "lower",
        "squared activation",
        of="sse_before / elements",
        why=_TWICE,
        help="Its squared error, mean over tokens and dimensions, with the decoder rows of the members.",
    ),
    Metric(
        "mse_after",
        "lower",
        "squared activation",
        main=True,
        of="sse_after / elements",
        expects="trained>random",
        why=_REBUILDS,
        help="The same with the decoder trained anew.",
    ),
    Metric(
        "mse_nearest",
        "lower",
        "squared activation",
        of="sse_nearest / elements",
        expects="trained>random",
        why=_REBUILDS,
        help="Squared error of the member that is nearest to it in size.",
    ),
    Metric(
        "relative_mse_before",
        "lower",
        "1",
        of="sse_before / sse_nearest",
        why=_OWN,
        help="mse_before over mse_nearest: below 1 where it is better than that member without any training.",
    ),
    Metric(
        "relative_mse",
        "lower",
        "1",
        main=True,
        of="sse_after / sse_nearest",
        why=_OWN,
        help="mse_after over mse_nearest. Read it beside relative_l0.",
    ),
    Metric(
        "relative_l0",
        "neither",
        "1",
        main=True,
        of="active / active_nearest",
        why=_SPARSITY,
        help="Its L0 over that of the member nearest in size; above 1, less sparsity alone would lower the error.",
    ),
    Metric(
        "explained_variance_before",
        "higher",
        "fraction",
        of="1 - sse_before / sst",
        why=_TWICE,
        help="1 − squared error over squared deviation from the sample's mean, before training.",
    ),
    Metric(
        "explained_variance_after",
        "higher",
        "fraction",
        of="1 - sse_after / sst",
        expects="trained>random",
        why=_REBUILDS,
        help="The same after training.",
    ),
    Metric(
        "ce_recovered_before",
        "higher",
        "fraction",
        of="(loss_mean - loss_before) / (loss_mean - loss_clean)",
        why=_TWICE,
        help="Share of the damage of mean ablation that splicing it into the model avoids, before training.",
    ),
    Metric(
        "ce_recovered_after",
        "higher",
        "fraction",
        of="(loss_mean - loss_after) / (loss_mean - loss_clean)",
        expects="trained>random",
        why=_REBUILDS,
        help="The same after training.",
    ),
    Metric(
        "ce_recovered_nearest",
        "higher",
        "fraction",
        of="(loss_mean - loss_nearest) / (loss_mean - loss_clean)",
        expects="trained>random",
        why=_REBUILDS,
        help="The same for the member nearest in size.",
    ),
    Metric(
        "row_cosine",
        "neither",
        "1",
        why=_ROWS,
        help="Cosine of a retrained decoder row with the member's row it began as, mean over latents.",
    ),
)


@task(
    TASK,
    version=1,
    subject="family",
    metrics=METRICS,
    needs=["activations", "lm"],
    controls=["random"],
    source='the stitching post that preceded Leask et al. 2025, section "Frankenstein\'s SAE"',
    trains=trains,
    profiles={"quick": {"tokens": 65_536, "ce_tokens": 2048}},
)
def frankenstein(
    family: Family,
    ctx: Context,
    *,
    threshold: float = 0.7,
    retrain: str = "last",
    tokens: int = 1_048_576,  # noqa: ARG001  # read by `trains`, when the run is planned
    ce_tokens: int = 4096,
) -> Output:
    """One dictionary of what several SAEs have, with its decoder trained anew, against the SAE of nearest size.

    Args:
        threshold: theta: a latent is added when its largest cosine with the dictionary so far is below it.
        retrain: stages whose decoder is trained anew: `last`, `all`, or `none`.
        tokens: activations that each is trained on (the post: 100M).
        ce_tokens: cross-entropies are taken on the first documents of the sample with at most this many tokens
            together; 0 for the whole sample.

    Raises:
        SaebenchError: the SAEs differ in site, width or input transform, or a parameter is out of range.
    """
    if not -1 <= threshold <= 1:
        raise SaebenchError(f"{TASK}.threshold is {threshold}: a cosine lies between -1 and 1")
    if ce_tokens < 0:
        raise SaebenchError(f"{TASK}.ce_tokens is {ce_tokens}: give a number of tokens, or 0 for the whole sample")
    from saebench_meta import splice
    from saebench_tasks.frankenstein import build, shown, sums

    members = sorted(family.saes, key=lambda sae: sae.d_sae)
    made = build.stages(members, threshold)
    trained = build.retrained(made, retrain, ctx)
    dictionaries = sums.layers(members, made, trained)
    measured = sums.measure(members, dictionaries, ctx)
    tokens_of, sst = sums.deviation(ctx)
    base = splice.baselines(members[0], ctx, ce_tokens)
    losses = [splice.spliced(layer.sae, ctx, base) for layer in dictionaries]
    rows = shown.frame(members, made, trained, measured, losses, tokens_of, sst, base)
    last, near = len(members) + len(made) - 1, build.nearest([m.d_sae for m in members], made[-1].sae.d_sae)
    after = len(dictionaries) - 1 if trained else None
    return Output(
        documents=documents(ctx, members[0].d_in, tokens_of, sst, base, measured, losses, (last, after, near)),
        estimates={
            "latents": ctx.census(made[-1].sae.d_sae, made[-1].sae.d_sae),
            "row_cosine": row_cosine(made[-1], trained.get(len(made) - 1), ctx),
        },
        tables=shown.tables(made, trained, rows),
        figures=shown.figures(members, made, trained, rows),
        saes=saved(made[-1], trained.get(len(made) - 1)),
        notes=shown.notes(members, made, trained, rows, near, ctx),
    )


def documents(
    ctx: Context,
    d_in: int,
    tokens: np.ndarray,
    sst: np.ndarray,
    base: Baselines,
    measured: list[Sums],
    losses: list[Losses],
    which: tuple[int, int | None, int],
) -> dict[str, np.ndarray]:
    """Sums per document of the last stage before and after training and of the nearest member (their numbers).

    NaN where a document has no token, or no prediction that counts, and where nothing was trained.
    """
    import numpy as np

    last, after, near = which
    nothing = np.full(len(tokens), np.nan)
    sampled = {
        "tokens": tokens,
        "elements": tokens * d_in,
        "sst": sst,
        "active": measured[last].active,
        "active_nearest": measured[near].active,
        "sse_before": measured[last].sse,
        "sse_after": nothing if after is None else measured[after].sse,
        "sse_nearest": measured[near].sse,
    }
    spliced = {
        "predictions": base.predictions,
        "loss_clean": base.clean,
        "loss_mean": base.mean,
        "loss_before": losses[last].loss,
        "loss_after": nothing if after is None else losses[after].loss,
        "loss_nearest": losses[near].loss,
    }
    return {
        "document": np.asarray(ctx.sample().document_ids),
        **{name: np.where(tokens > 0, column, np.nan) for name, column in sampled.items()},
        **{name: np.where(base.predictions > 0, column, np.nan) for name, column in spliced.items()},
    }


def row_cosine(stage: Stage, trained: SAE | None, ctx: Context) -> Estimate:
    """Mean cosine of retrained rows with where they began."""
    import numpy as np

    from saebench_tasks.frankenstein import build

    if trained is None:
        return ctx.census(None, 0, reason="no decoder was trained")
    cosine = np.concatenate(list(build.moved(stage, trained)))
    return ctx.census(float(cosine.mean()), len(cosine))


def saved(stage: Stage, trained: SAE | None) -> dict[str, SAE]:
    """The last stage, retrained if it was, and as it was before."""
    return {TASK: stage.sae} if trained is None else {TASK: trained, f"{TASK}-before": stage.sae}


@hookimpl
def saebench_tasks() -> list[Task]:
    return [frankenstein]
