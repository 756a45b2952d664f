"""Tables and figures of the task."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pandas as pd

from saebench_meta import charts
from saebench_meta.task import Figure, Table
from saebench_tasks.novel_latents import effects
from saebench_tasks.novel_latents.nearest import Matches, ratio_over_theta
from saebench_tasks.novel_latents.roc import Cuts

if TYPE_CHECKING:
    from saebench_meta.stats import Estimate
    from saebench_tasks.novel_latents.effects import Measured
    from saebench_tasks.novel_latents.roc import Roc

FORWARD, MIRRORED = "this SAE in the reference", "the reference in this SAE"
OUTLIERS = 0.005
"""Share of the latents that is left out of the scatter of ΔMSE at each end, as in the paper's figure 4."""


def tables(measured: Measured, mirrored: Matches, latents: pd.DataFrame, theta: float) -> dict[str, Table]:
    """All latents, the two tables of the post, and the ratio over theta.

    Args:
        latents: as from `effects.per_latent`.
    """
    return {
        "latents": Table(
            "Latents",
            latents.sort_values(["max_cosine", "latent"], ignore_index=True),
            f"The most novel first; novel: largest cosine with the reference at most {theta:g}. delta_mse: change of "
            "the reference's MSE when the latent alone is added to it, in squared activation; delta_mse_relative: as a "
            "share of the reference's MSE. mse_…: of both dictionaries on tokens where the latent is inactive and "
            "active. activation_cosine: of its codes and those of its nearest latent of the reference.",
        ),
        "effects": Table(
            "Effect of adding one latent to the reference",
            effects.sign_counts(measured, theta),
            "Latents whose addition alone lowers or raises the reference's MSE. Silent latents fire on no token of "
            "this sample: adding one moves nothing but the bias.",
        ),
        "inactive_active": Table(
            "MSE where novel latents are inactive and active",
            effects.inactive_active(latents),
            "Mean over the novel latents that are active on some tokens of the sample but not on all, in squared "
            "activation.",
        ),
        "ratio_over_theta": Table(
            "Novel ratio over theta", curve(measured.matches, mirrored), "Share of latents with max cosine ≤ theta."
        ),
    }


def curve(forward: Matches, mirrored: Matches) -> pd.DataFrame:
    """The ratio over theta in both directions: columns `theta`, `direction`, `ratio`."""
    thetas = [i / 100 for i in range(101)]
    frames = [
        pd.DataFrame({"theta": thetas, "direction": name, "ratio": ratio_over_theta(matches, thetas)})
        for name, matches in ((FORWARD, forward), (MIRRORED, mirrored))
    ]
    return pd.concat(frames, ignore_index=True)


def figures(
    measured: Measured, mirrored: Matches, latents: pd.DataFrame, theta: float, found: dict[str, Estimate]
) -> dict[str, Figure]:
    """What there is to draw of the sources' figures; one without data is left out.

    Args:
        latents: as from `effects.per_latent`.
        found: the task's estimates, quoted in captions.
    """
    fires = latents[latents["active_tokens"] > 0]
    made = {
        **geometry(measured.matches, mirrored, theta),
        "delta_mse": delta_mse(fires, theta),
        "roc": roc(measured, found),
        "inactive_active": inactive_active(fires),
        "activation_cosine": activation_cosine(fires, found["activation_r2"]),
    }
    return {name: figure for name, figure in made.items() if figure is not None}


def geometry(forward: Matches, mirrored: Matches, theta: float) -> dict[str, Figure]:
    """The ratio over theta and the distribution of m_i (paper, figure 10), in both directions."""
    groups = {FORWARD: forward.cosine, MIRRORED: mirrored.cosine}
    low = min(0.0, float(forward.cosine.min()), float(mirrored.cosine.min()))
    over_theta = charts.lines(
        curve(forward, mirrored),
        x=("theta", "threshold theta (cosine)"),
        y=("ratio", "share of latents that are novel"),
        group="direction",
        y_domain=(0, 1),
        rule_x=theta,
    )
    return {
        "max_cosine": Figure(
            "Largest decoder cosine with the other dictionary",
            charts.bars(charts.histogram(groups, bounds=(low, 1.0)), x="largest cosine", y="share of latents"),
            "A latent whose twin is in the other dictionary stands at the right.",
        ),
        "ratio_over_theta": Figure("Novel ratio over theta", over_theta, f"Dashed: this run's theta, {theta:g}."),
    }


def delta_mse(fires: pd.DataFrame, theta: float) -> Figure | None:
    """ΔMSE against the largest cosine (paper, figure 4)."""
    if fires.empty or fires["delta_mse_relative"].isna().any():
        return None
    data = fires[["latent", "max_cosine"]].assign(percent=100 * fires["delta_mse_relative"], group=_group(fires))
    low, high = data["percent"].quantile([OUTLIERS, 1 - OUTLIERS])
    inside = data[data["percent"].between(low, high)]
    return Figure(
        "Change of the reference's MSE when one latent is added",
        charts.scatter(
            inside,
            x=("max_cosine", "largest cosine with the reference"),
            y=("percent", "change of MSE (%)"),
            group="group",
            rule_x=theta,
            rule_y=0.0,
            tooltip=["latent"],
        ),
        f"Latents that fire in the sample; dashed: theta = {theta:g} and no change. "
        f"{len(data) - len(inside)} of {len(data)} latents lie outside the axes.",
    )


def roc(measured: Measured, found: dict[str, Estimate]) -> Figure | None:
    """The ROC of the cosine as predictor of the sign of ΔMSE (paper, figure 16)."""
    fires, dsse = measured.count > 0, measured.dsse
    whole = Cuts(measured.matches.cosine).roc(fires & (dsse > 0), fires & (dsse < 0))
    if whole is None:
        return None
    best = found["youden_theta"].value
    at = "no theta beats chance" if best is None else f"Youden's theta is {best:.3f}"
    return Figure(
        "Cosine as predictor of the effect on the MSE",
        charts.line_path(
            roc_points(whole),
            x=("fpr", "share of MSE-lowering latents with cosine > theta"),
            y=("tpr", "share of MSE-raising latents with cosine > theta"),
            group="curve",
        ),
        f"Latents that fire in the sample. The area under the curve is {whole.auc:.3f}; {at}.",
    )


def roc_points(whole: Roc) -> pd.DataFrame:
    """The curve, and the diagonal of a predictor that knows nothing."""
    points = pd.DataFrame({"fpr": whole.fpr, "tpr": whole.tpr, "curve": "largest cosine"})
    chance = pd.DataFrame({"fpr": [0.0, 1.0], "tpr": [0.0, 1.0], "curve": "chance"})
    return pd.concat([points, chance], ignore_index=True)


def inactive_active(fires: pd.DataFrame) -> Figure | None:
    """How the MSE differs between tokens where novel latents are active and inactive (paper, figure 14)."""
    novel = fires[fires["novel"]]
    names = {"this SAE": "sae", "the reference": "reference"}
    rises = {
        name: (novel[f"mse_active_{side}"] - novel[f"mse_inactive_{side}"]).dropna() for name, side in names.items()
    }
    if any(values.empty for values in rises.values()):
        return None
    return Figure(
        "MSE where a novel latent is active, minus where it is inactive",
        charts.bars(charts.histogram(rises), x="difference of MSE (squared activation)", y="share of novel latents"),
        "Where the reference lies further right than this SAE, it lacks what novel latents stand for.",
    )


def activation_cosine(fires: pd.DataFrame, r2: Estimate) -> Figure | None:
    """Cosine of activations against cosine of decoder directions (paper, figure 11)."""
    both = fires[fires["activation_cosine"].notna()]
    if both.empty:
        return None
    said = "" if r2.value is None else f" R² above {effects.ALIKE:g} is {r2.value:.2f}."
    return Figure(
        "Activation similarity and decoder similarity",
        charts.scatter(
            both[["latent", "max_cosine", "activation_cosine"]].assign(group=_group(both)),
            x=("max_cosine", "decoder cosine with the nearest latent of the reference"),
            y=("activation_cosine", "cosine of their activations"),
            group="group",
            tooltip=["latent"],
        ),
        f"{len(both)} latents that fire in the sample and whose nearest latent does.{said}",
    )


def _group(latents: pd.DataFrame) -> pd.Series[str]:
    return latents["novel"].map({True: "novel", False: "reconstruction"})
