"""Is the smaller dictionary complete? Which latents of an SAE have no counterpart in a reference SAE.

Leask et al., section 4.2, equation 6, and the stitching post that preceded it, "How similar are features in SAEs of
different widths?". With decoder directions w1 of the SAE under test (S1) and w0 of the reference (S0), in the SAEs'
input space::

    m_i = max_j cos(w1_i, w0_j)
    latent i is novel           when m_i ≤ theta
    latent i is reconstruction  when m_i > theta

The post counts equality as novel; equation 6 leaves it open. theta is 0.7 for GPT-2 and was 0.4 for Gemma Scope.

Whether that says something about what latents do is measured on activations: the change of S0's MSE when latent i alone
is added to it (`effects`), how well m_i tells its sign (`roc`), how much worse the two rebuild tokens where a novel
latent is active, and whether latents with near directions fire together (`lookup`). Over a family, `family`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from saebench_meta.errors import SaebenchError
from saebench_meta.hookspecs import hookimpl
from saebench_meta.task import Family, Metric, Output, Pair, Task, task

if TYPE_CHECKING:
    from saebench_meta.context import Context
    from saebench_tasks.novel_latents.effects import Measured
    from saebench_tasks.novel_latents.nearest import Matches

saebench_api = 1

_NO_ORDER = "a high ratio may mean a richer dictionary or a worse one; random directions are nearly all novel"
_CODES = (
    "permuted rows keep every code and the set of directions, but a latent then writes another's direction: adding it "
    "puts in what is not there; random directions are scaled by least squares, so that adding one may help"
)
_HEURISTIC = "it says how far the cosine can be trusted for this pair, not how good the dictionary is"
_HARD = "tokens on which rare latents fire may be hard for any dictionary"

METRICS = (
    Metric(
        "novel_ratio",
        "neither",
        "fraction",
        main=True,
        why=_NO_ORDER,
        help="Share of this SAE's latents whose largest decoder cosine with the reference is at most theta.",
    ),
    Metric(
        "mirrored_ratio",
        "neither",
        "fraction",
        why=_NO_ORDER,
        help="Share of the reference's latents that have no counterpart in this SAE, by the same rule.",
    ),
    Metric(
        "mean_max_cosine",
        "neither",
        "1",
        why=_NO_ORDER,
        help="Mean over this SAE's latents of the largest decoder cosine with the reference.",
    ),
    Metric(
        "novel_lower_mse",
        "higher",
        "fraction",
        main=True,
        expects="trained>permuted_rows",
        why=_CODES,
        help="Share of the novel latents that fire whose addition, each alone, lowers the reference's MSE.",
    ),
    Metric(
        "reconstruction_raise_mse",
        "neither",
        "fraction",
        why="a dictionary whose additions all do harm has a share of 1",
        help="Share of the reconstruction latents that fire whose addition, each alone, raises the reference's MSE.",
    ),
    Metric(
        "auc",
        "neither",
        "1",
        main=True,
        why=_HEURISTIC,
        help="Area under the ROC curve of the largest cosine as predictor of a rise of the MSE; 0.5 is chance.",
    ),
    Metric(
        "youden_theta",
        "neither",
        "1",
        why=_HEURISTIC,
        help="The theta that separates latents that raise the MSE best from those that lower it (Youden's J).",
    ),
    Metric(
        "mse_rise_reference",
        "neither",
        "squared activation",
        why=_HARD,
        help="The reference's MSE where a novel latent is active minus where it is not, mean over novel latents.",
    ),
    Metric("mse_rise_sae", "neither", "squared activation", why=_HARD, help="The same of this SAE's MSE."),
    Metric(
        "mse_rise_gap",
        "neither",
        "squared activation",
        why=_HARD,
        help="The reference's rise minus this SAE's: what the reference lacks on tokens with novel latents.",
    ),
    Metric(
        "activation_r2",
        "higher",
        "fraction",
        expects="trained>permuted_rows",
        why="permuted rows keep codes and directions and lose which belongs to which",
        help="R² of activation cosine and decoder cosine of a latent and its nearest, decoder cosines above 0.5.",
    ),
)


@task(
    "novel_latents",
    version=2,
    subject="pair",
    metrics=METRICS,
    needs=["reference", "activations"],
    controls=["random", "permuted_rows", "permuted_columns"],
    limit_unit="latents",
    source="Leask et al. 2025, section 4.2, equation 6, figures 4, 10, 11, 14, 16; the stitching post",
)
def novel_latents(pair: Pair, ctx: Context, *, threshold: float = 0.7) -> Output:
    """Latents of this SAE that the reference SAE has no counterpart for, and what each does when added to it.

    Args:
        threshold: theta, the largest cosine at which a latent still counts as novel.

    Raises:
        SaebenchError: if the two SAEs differ in site, width or input transform, or theta is no cosine.
    """
    from saebench_meta.stitching import PairSample, check_same_space
    from saebench_tasks.novel_latents import effects, nearest, shown

    _check_threshold("novel_latents", threshold)
    check_same_space("novel_latents", pair.sae, pair.reference)
    forward, mirrored = nearest.compare(pair.sae, pair.reference, ctx)
    measured = effects.measure(PairSample(pair, ctx), forward)
    estimates = {
        "novel_ratio": nearest.share_novel(forward, threshold, ctx),
        "mirrored_ratio": nearest.share_novel(mirrored, threshold, ctx),
        "mean_max_cosine": nearest.mean_cosine(forward, ctx),
        **effects.estimates(measured, threshold, ctx),
    }
    latents = effects.per_latent(measured, threshold)
    return Output(
        estimates=estimates,
        tables=shown.tables(measured, mirrored, latents, threshold),
        figures=shown.figures(measured, mirrored, latents, threshold, estimates),
        notes=_notes(measured, mirrored),
    )


def _check_threshold(name: str, theta: float) -> None:
    if not -1 <= theta <= 1:
        raise SaebenchError(f"{name}.threshold is {theta}: a cosine lies between -1 and 1")


def _notes(measured: Measured, mirrored: Matches) -> tuple[str, ...]:
    """What the numbers rest on."""
    forward, silent = measured.matches, int((measured.count == 0).sum())
    return (
        f"{len(forward.latent)} of {forward.of} latents against {mirrored.of} of the reference; "
        f"mirrored: {len(mirrored.latent)} of {mirrored.of}. A decoder row of zeros has cosine 0 with everything.",
        f"Effects on {int(measured.added.tokens.sum()):,} tokens of {measured.n_docs:,} documents; {silent} of the "
        "latents looked at fire on none of them. Intervals resample documents and hold the latents fixed.",
    )


FAMILY_METRICS = (
    Metric(
        "larger_in_smaller",
        "neither",
        "fraction",
        main=True,
        why="a low ratio may mean a richer dictionary or a worse one",
        help="Reconstruction ratio of an SAE in one of the next smaller width, mean over such pairs.",
    ),
    Metric(
        "smaller_in_larger",
        "neither",
        "fraction",
        why="it grows with the larger one's width, whatever its directions",
        help="Share of an SAE's latents present in one of the next larger width, mean over such pairs.",
    ),
    Metric(
        "one_width",
        "higher",
        "fraction",
        main=True,
        expects="trained>random",
        why="two trainings on the same activations find some of the same directions; random ones have none in common",
        help="Reconstruction ratio between SAEs of one width, such as training seeds, mean over such pairs.",
    ),
)


@task(
    "novel_latents_family",
    version=1,
    subject="family",
    part_of="novel_latents",
    metrics=FAMILY_METRICS,
    controls=["random", "permuted_columns"],
    limit_unit="latents",
    source="Leask et al. 2025, appendix A.7, figure 19",
)
def novel_latents_family(family: Family, ctx: Context, *, threshold: float = 0.7) -> Output:
    """The share of the latents of each SAE of a family that each other has a counterpart for.

    Args:
        threshold: theta, the cosine above which a latent has a counterpart.

    Raises:
        SaebenchError: if the SAEs differ in site, width d_in or input transform, or theta is no cosine.
    """
    from saebench_meta.stitching import check_same_space
    from saebench_tasks.novel_latents import family as matrix

    _check_threshold("novel_latents_family", threshold)
    for sae in family.saes[1:]:
        check_same_space("novel_latents_family", sae, family.saes[0])
    cells = matrix.cells(family.saes, ctx)
    ladder = "all SAEs of the family have one width"
    chosen = {
        "larger_in_smaller": (matrix.next_smaller(cells), ladder),
        "smaller_in_larger": (matrix.next_smaller(cells, mirrored=True), ladder),
        "one_width": (matrix.one_width(cells), "no two SAEs of the family have the same width"),
    }
    table = matrix.matrix(cells, matrix.distinct([s.info.name for s in family.saes]), threshold)
    tables, figures = matrix.shown(table, threshold)
    estimates = {name: matrix.mean_ratio(*of, threshold, ctx) for name, of in chosen.items()}
    return Output(estimates=estimates, tables=tables, figures=figures)


@hookimpl
def saebench_tasks() -> list[Task]:
    return [novel_latents, novel_latents_family]
