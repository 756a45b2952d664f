"""The meta-SAE of one SAE against meta-SAEs of null models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from saebench_meta.task import Output
from saebench_tasks.meta_sae import build, decomposition, estimates, shown
from saebench_tasks.meta_sae.rows import KINDS, unit_rows

if TYPE_CHECKING:
    import numpy as np

    from saebench_meta.context import Context
    from saebench_meta.sae import SAE
    from saebench_meta.stats import Estimate
    from saebench_tasks.meta_sae.build import Trained
    from saebench_tasks.meta_sae.decomposition import Decomposed

EACH_OTHER, THIS_SAE = "meta-latents with each other", "meta-latents with this SAE"


def output(sae: SAE, ctx: Context, parameters: Mapping[str, Any], theta: float, asked: Sequence[object]) -> Output:
    """Everything that `meta_sae` gives.

    Args:
        parameters: `held_out`, `seeds` and `curve` of the task.
        theta: cosine above which a meta-latent is found in the SAE.
        asked: latents to look at closely.
    """
    rows = unit_rows([sae], parameters["held_out"], ctx.seed)
    chosen = decomposition.chosen_latents(asked, rows, ctx)
    trained = build.train_all(rows, ctx, parameters)
    made = decomposition.decomposed(rows, trained[0])
    cosines = {
        EACH_OTHER: decomposition.within(made.live),
        THIS_SAE: decomposition.largest(made.live, rows.x),
        "this SAE's latents with each other": decomposition.within(rows.x),
    }
    data = shown.trainings(trained)
    drawn = [
        shown.widths(data),
        shown.max_cosines(cosines),
        shown.examples(*decomposition.beside(chosen, made.pairs, made.sae, sae, {"sae": sae})),
    ]
    return Output(
        estimates={**_against_nulls(trained[: len(KINDS)], ctx), **_of_meta_latents(made, cosines, theta, ctx)},
        tables={
            **shown.decomposition_tables(made.pairs.drop(columns="member"), made.top()),
            "trainings": shown.trainings_table(data),
            **shown.tables(drawn),
        },
        figures={"per_latent": shown.per_latent({"latents": made.counts}), **shown.figures(drawn)},
        saes={"meta_sae": made.sae},
        notes=(*shown.notes([sae], rows, trained[0]), *shown.seeds(data, parameters["seeds"])),
    )


def _against_nulls(trained: Sequence[Trained], ctx: Context) -> dict[str, Estimate]:
    """Variance explained of the SAE's rows, of those of the nulls, and how far they are apart."""
    main, gaussian, permuted = trained
    return {
        **estimates.of_main(main, ctx),
        "variance_explained_batch": estimates.of_seen(main.seen_batch, ctx),
        "held_out_threshold": estimates.of_held_out(main.held_out, ctx),
        "held_out_gaussian": estimates.of_held_out(gaussian.held_out_batch, ctx),
        "held_out_permuted": estimates.of_held_out(permuted.held_out_batch, ctx),
        "above_gaussian": estimates.difference(main.held_out_batch, gaussian.held_out_batch, ctx),
        "above_permuted": estimates.difference(main.held_out_batch, permuted.held_out_batch, ctx),
    }


def _of_meta_latents(
    made: Decomposed, cosines: Mapping[str, np.ndarray], theta: float, ctx: Context
) -> dict[str, Estimate]:
    dead = 1 - len(made.live) / made.sae.d_sae
    few = "fewer than two are active on any latent"
    return {
        "meta_latents_per_latent": estimates.mean(made.counts, "the SAE has no latents", ctx),
        "dead_meta_latents": ctx.census(dead, made.sae.d_sae, n_unit="meta-latents"),
        "within": estimates.mean(cosines[EACH_OTHER], few, ctx, n_unit="meta-latents"),
        "found_in_sae": estimates.share_above(cosines[THIS_SAE], theta, ctx),
    }
