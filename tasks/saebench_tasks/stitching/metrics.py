"""What the tasks `stitching` and `stitching_family` report."""

from __future__ import annotations

from saebench_meta.task import Metric

_OVERSHOOTS = (
    "a latent without a near counterpart may still write what several latents of the reference write together, and the "
    "random control is scaled by least squares: with a sound dictionary too the error may rise more than with random"
)
_WAY = "a stage on the way from one SAE to the other; only the two ends are dictionaries that somebody trained"
_SPARSITY = "L0 is set in training and has no better direction"
_SIGN = "which sign a swap has depends on both SAEs and on the order; the sources report it as a finding"
_SHAPE = "how latents correspond describes the pair; random directions have hardly any counterparts"
_PAIRS = "children may be alternatives or parts of one thing; the random pairs beside them are the comparison"
_BIAS = "a property of the two SAEs that decides how much the choice of bias matters"
_SPLICES = "what is added to the reference helps the language model only if it is there in the text"

METRICS = (
    Metric(
        "mse_change_novel",
        "neither",
        "fraction",
        main=True,
        of="(sse_novel - sse_old) / sse_old",
        why=_OVERSHOOTS,
        help="Change of the reference's MSE by adding all novel latents, as a fraction of it.",
    ),
    Metric(
        "mse_change_swaps",
        "neither",
        "fraction",
        of="(sse_swapped - sse_novel) / sse_old",
        why=_WAY,
        help="Further change by swapping all components, as a fraction of the reference's MSE.",
    ),
    Metric(
        "mse_change_leftovers",
        "neither",
        "fraction",
        of="(sse_new - sse_swapped) / sse_old",
        why=_WAY,
        help="Further change by dropping the reference's latents that have no counterpart.",
    ),
    Metric(
        "l0_change_novel",
        "neither",
        "latents",
        of="(active_novel - active_old) / tokens",
        why=_SPARSITY,
        help="Change of L0 by adding all novel latents.",
    ),
    Metric(
        "l0_change_swaps",
        "neither",
        "latents",
        of="(active_swapped - active_novel) / tokens",
        why=_SPARSITY,
        help="Further change of L0 by swapping all components.",
    ),
    Metric(
        "l0_change_leftovers",
        "neither",
        "latents",
        of="(active_new - active_swapped) / tokens",
        why=_SPARSITY,
        help="Further change of L0 by dropping the reference's latents that have no counterpart.",
    ),
    Metric(
        "novel_steps_lower_mse",
        "neither",
        "fraction",
        why=_SIGN,
        help="Share of the novel latents that lower MSE when they are added in turn.",
    ),
    Metric(
        "swap_steps_lower_mse",
        "neither",
        "fraction",
        why=_SIGN,
        help="Share of the components that lower MSE when they are swapped in turn.",
    ),
    Metric(
        "swap_steps_lower_l0",
        "neither",
        "fraction",
        why=_SIGN,
        help="Share of the components that lower L0 when they are swapped in turn.",
    ),
    Metric(
        "swaps_raise_mse",
        "neither",
        "fraction",
        main=True,
        why=_SIGN,
        help="Share of the components that raise the reference's MSE when they alone are swapped.",
    ),
    Metric(
        "swaps_lower_l0",
        "neither",
        "fraction",
        main=True,
        why=_SIGN,
        help="Share of the components that lower the reference's L0 when they alone are swapped.",
    ),
    Metric("novel", "neither", "latents", why=_SHAPE, help="Latents of this SAE without a counterpart."),
    Metric("leftovers", "neither", "latents", why=_SHAPE, help="Latents of the reference without one."),
    Metric(
        "components",
        "neither",
        "components",
        why=_SHAPE,
        help="Connected groups of latents of both SAEs with a cosine above theta: what is swapped at once.",
    ),
    Metric("one_to_one", "neither", "fraction", why=_SHAPE, help="Share of the components with one latent a side."),
    Metric(
        "splits",
        "neither",
        "fraction",
        why=_SHAPE,
        help="Share with one latent of the reference, several of this SAE.",
    ),
    Metric(
        "merges",
        "neither",
        "fraction",
        why=_SHAPE,
        help="Share with several latents of the reference, one of this SAE.",
    ),
    Metric("compositions", "neither", "fraction", why=_SHAPE, help="Share with several latents of both."),
    Metric(
        "largest_share",
        "neither",
        "fraction",
        why=_SHAPE,
        help="Share of all latents that are in components which the largest one holds.",
    ),
    Metric(
        "children_exclude",
        "neither",
        "fraction",
        why=_PAIRS,
        help="Share of pairs of children of one split that are active together less often than by chance.",
    ),
    Metric(
        "children_cooccur",
        "neither",
        "fraction",
        why=_PAIRS,
        help="Share of pairs of children of one split that are active together more often than by chance.",
    ),
    Metric("random_exclude", "neither", "fraction", why=_PAIRS, help="The same share among random pairs of latents."),
    Metric("random_cooccur", "neither", "fraction", why=_PAIRS, help="The same share among random pairs of latents."),
    Metric("b_dec_cosine", "neither", "1", why=_BIAS, help="Cosine of the two decoder biases."),
    Metric(
        "b_dec_magnitude",
        "neither",
        "fraction",
        why=_BIAS,
        help="Difference of the decoder biases' norms, as a fraction of the reference's.",
    ),
    Metric(
        "ce_recovered_old",
        "neither",
        "fraction",
        of="(loss_mean - loss_old) / (loss_mean - loss_clean)",
        why="a property of the reference",
        help="Cross-entropy recovered from mean ablation by the reference.",
    ),
    Metric(
        "ce_recovered_novel",
        "neither",
        "fraction",
        of="(loss_mean - loss_novel) / (loss_mean - loss_clean)",
        why=_WAY,
        help="The same with all novel latents added.",
    ),
    Metric(
        "ce_recovered_new",
        "neither",
        "fraction",
        of="(loss_mean - loss_new) / (loss_mean - loss_clean)",
        why="core reports it with its order",
        help="The same at the end of the way: by this SAE.",
    ),
    Metric(
        "ce_change_novel",
        "lower",
        "nats/token",
        main=True,
        of="(loss_novel - loss_old) / predictions",
        expects="trained>random",
        why=_SPLICES,
        help="Change of the cross-entropy under splicing by adding all novel latents.",
    ),
)

CHAIN = (
    Metric("links", "neither", "links", why=_WAY, help="Pairs of neighbours in the family."),
    Metric(
        "mse_change_novel_mean",
        "neither",
        "fraction",
        main=True,
        why=_WAY,
        help="Change of MSE by all novel latents, as a fraction of the narrower SAE's: mean over the links.",
    ),
    Metric(
        "mse_change_swaps_mean",
        "neither",
        "fraction",
        main=True,
        why=_WAY,
        help="Further change of MSE by all swaps, as a fraction of the narrower SAE's: mean over the links.",
    ),
    Metric(
        "l0_change_novel_mean", "neither", "latents", why=_SPARSITY, help="Change of L0 by all novel latents, mean."
    ),
    Metric(
        "l0_change_swaps_mean", "neither", "latents", why=_SPARSITY, help="Further change of L0 by all swaps, mean."
    ),
    Metric(
        "links_improved_twice",
        "neither",
        "fraction",
        why=_SIGN,
        help="Share of the links on which both phases lower MSE.",
    ),
)
