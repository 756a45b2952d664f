"""Targeted probe perturbation: does ablating a class's latents hurt the probe of that class, and no other probe?

Leask et al., "Sparse autoencoders do not find canonical units of analysis", appendix A.9.2, equations 11 and 12. For a
set of M classes, linear probes P_j hold each class against the others on the mean activation of a text. The latents of
class i are those more active on it (``f̄_pos > f̄_neg``) with the largest ``(f̄_pos − f̄_neg)(w_l · P_i) > 0``; the first
n of them are ablated, the SAE's error term kept. With A_ij(n) the accuracy of probe j then, and A_j before::

    S(n) = mean_i (A_i − A_ii(n)) − mean_i≠j (A_j − A_ij(n))          intended fall − unintended fall
    S    = mean of S(n) over log n, from 2 to 500 (trapezoid rule)

On the same texts S(n) is minus equation 12, which is of the accuracies themselves, so that higher is better. The mean
is over log n because the n are about evenly spaced there; over n itself four fifths of it would be what happens between
100 and 500 latents.

The score is experimental: an audit of the stock suite (arXiv 2605.18229) found that it fails checks that a sound score
passes. The controls and the random sets beside it say whether it passes them here.
"""

from __future__ import annotations

from itertools import compress
from typing import TYPE_CHECKING

from saebench_meta.errors import SaebenchError, did_you_mean
from saebench_meta.hookspecs import hookimpl
from saebench_meta.task import Output, Task, task
from saebench_tasks.tpp.metrics import FAMILY_METRICS, METRICS

if TYPE_CHECKING:
    from saebench_meta.context import Context
    from saebench_meta.sae import SAE
    from saebench_meta.task import Family
    from saebench_tasks.tpp.score import SetResult

saebench_api = 1

SELECTIONS = ("more_active", "attribution")
COMPAT = ("", "sae-bench-0.6")


@task(
    "tpp",
    version=1,
    metrics=METRICS,
    needs=["labelled"],
    controls=["random", "permuted_rows"],
    limit_unit="texts",
    source="Leask et al. 2025, appendix A.9.2, equations 11 and 12",
    profiles={"quick": {"trials": 2}},
)
def tpp(sae: SAE, ctx: Context, *, trials: int = 5, selection: str = "more_active", compat: str = "") -> Output:
    """Whether ablating the latents of a class hurts the linear probe of that class and no other (experimental).

    Args:
        trials: how often probes are trained and latents ranked, each time on another 80 % of the training texts; every
            number is the mean.
        selection: `more_active` ranks by equation 11 those latents that are more active on the class than elsewhere,
            as the stock tool does; `attribution` ranks all.
        compat: `sae-bench-0.6` follows the stock tool's protocol, for comparison with its numbers.
    """
    from saebench_tasks.tpp import score, shown

    check("tpp", trials, selection, compat)
    sets = measured(sae, ctx, trials, selection, compat)
    return Output(
        documents=score.documents(sets),
        estimates={"random_above": score.random_above(sets, ctx), "reseed_sd": score.reseed_sd(sets, ctx)},
        tables=shown.tables(sets),
        figures=shown.figures(sets),
        notes=shown.notes(sets, trials, compat or "ours"),
    )


@task(
    "tpp_family",
    version=1,
    subject="family",
    part_of="tpp",
    metrics=FAMILY_METRICS,
    needs=["labelled"],
    controls=[],
    limit_unit="texts",
    source="Leask et al. 2025, appendix A.9.2, figure 26",
    profiles={"quick": {"trials": 2}},
)
def tpp_family(
    family: Family, ctx: Context, *, trials: int = 5, selection: str = "more_active", compat: str = ""
) -> Output:
    """Targeted probe perturbation of every SAE of a family, over width (experimental).

    Each SAE stands beside its controls in its own record of `tpp`, so the family has none.

    Args:
        trials: as of `tpp`.
        selection: as of `tpp`.
        compat: as of `tpp`.
    """
    from saebench_tasks.tpp import family as widths

    check("tpp_family", trials, selection, compat)
    members = [widths.Member(sae, measured(sae, ctx, trials, selection, compat)) for sae in family.saes]
    tables, figures = widths.shown(members)
    return Output(documents=widths.documents(members), tables=tables, figures=figures)


def check(name: str, trials: int, selection: str, compat: str) -> None:
    """Refuse parameters that mean nothing."""
    if trials < 1:
        raise SaebenchError(f"-P {name}.trials={trials}: give at least 1")
    for parameter, value, known in (("selection", selection, SELECTIONS), ("compat", compat, COMPAT)):
        if value not in known:
            raise SaebenchError(f"-P {name}.{parameter}={value}{did_you_mean(value, [k for k in known if k])}")


def measured(sae: SAE, ctx: Context, trials: int, selection: str, compat: str) -> list[SetResult]:
    """All trials of all sets. The stock protocol counts every set, ours those with three classes or more."""
    from saebench_tasks.tpp import probe, stock, trial
    from saebench_tasks.tpp.score import SetResult

    found = []
    for name in ctx.track(ctx.labelled_sets, "sets"):
        labelled = ctx.labelled(name)
        if compat:
            probes = stock.trained(labelled, ctx, trials)
            made = stock.trials(labelled, sae, probes, ctx.seed)
        else:
            probes = probe.trained(labelled, ctx, trials)
            made = trial.trials(labelled, sae, probes, ctx.seed, positive=selection == "more_active")
        counts = bool(compat) or len(labelled.classes) > 2
        ids = tuple(compress(labelled.ids, labelled.test))
        found.append(SetResult(name, labelled.classes, counts, ids, probes.C, tuple(made)))
    return found


@hookimpl
def saebench_tasks() -> list[Task]:
    return [tpp, tpp_family]
