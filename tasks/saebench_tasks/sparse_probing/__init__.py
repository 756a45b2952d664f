"""Are known concepts single latents? Logistic probes on few latents, over labelled sets.

Leask et al., "Sparse autoencoders do not find canonical units of analysis", A.9.1, figures 24 and 25: a probe on one
latent and on 50, over eight sets. Which latents, texts and probes is left to its peer suite; ours, per set::

    f̄_i = mean over the text's tokens of the codes
    chosen: the k latents with the largest |mean of f̄ over texts of the class − mean over the others| / deviation of f̄
    probe:  logistic regression of "is it this class?" on those k, each over its deviation

Latents are chosen and probes fitted on the training split, the strength of the penalty on validation, scores taken on
the test split, which nothing else is told.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from saebench_meta.hookspecs import hookimpl
from saebench_meta.task import Output, Task, task
from saebench_tasks.sparse_probing.metrics import FAMILY_METRICS, KS, METRICS

if TYPE_CHECKING:
    from saebench_meta.context import Context
    from saebench_meta.sae import SAE
    from saebench_meta.task import Family

saebench_api = 1


@task(
    "sparse_probing",
    version=1,
    metrics=METRICS,
    needs=["labelled"],
    controls=["random"],
    limit_unit="texts",
    source="Leask et al. 2025, A.9.1, figures 24 and 25",
    profiles={"quick": {"splits": 1}},
)
def sparse_probing(sae: SAE, ctx: Context, *, selection: str = "scaled", splits: int = 3, compat: str = "") -> Output:
    """Can a probe on one latent, or on few, tell the class of a text?

    Args:
        selection: `scaled` chooses latents by |difference of means| over deviation, `mean_diff` by the former alone.
        splits: how many times the texts outside the test split are split into training and validation.
        compat: `sae-bench-0.6` for the stock protocol of that suite; empty for ours.

    Raises:
        SaebenchError: a parameter has no such value.
    """
    from saebench_tasks.sparse_probing import shown
    from saebench_tasks.sparse_probing.run import notes, options, probe
    from saebench_tasks.sparse_probing.scores import documents

    asked = options("sparse_probing", selection, splits, compat)
    probed = probe(sae, ctx, asked)
    return Output(
        documents=documents(probed, KS),
        tables=shown.tables(probed, KS),
        figures=shown.figures(probed, KS),
        notes=notes(ctx, probed, asked),
    )


@task(
    "sparse_probing_family",
    version=1,
    subject="family",
    part_of="sparse_probing",
    metrics=FAMILY_METRICS,
    needs=["labelled"],
    controls=[],
    limit_unit="texts",
    source="Leask et al. 2025, A.9.1, figures 24 and 25",
    profiles={"quick": {"splits": 1}},
)
def sparse_probing_family(
    family: Family, ctx: Context, *, selection: str = "scaled", splits: int = 3, compat: str = ""
) -> Output:
    """Scores of sparse probes over the SAEs of a family, by set and width.

    Each SAE stands beside its controls in its own record of `sparse_probing`, so the family has none.

    Args:
        selection: as of `sparse_probing`.
        splits: as of `sparse_probing`.
        compat: as of `sparse_probing`.

    Raises:
        SaebenchError: a parameter has no such value.
    """
    from saebench_tasks.sparse_probing import family as widths
    from saebench_tasks.sparse_probing.run import options, probe

    asked = options("sparse_probing_family", selection, splits, compat)
    members = [widths.Member(sae, probe(sae, ctx, asked)) for sae in family.saes]
    tables, figures = widths.shown(members, KS)
    return Output(documents=widths.documents(members, KS), tables=tables, figures=figures)


@hookimpl
def saebench_tasks() -> list[Task]:
    return [sparse_probing, sparse_probing_family]
