"""What each latent of S1 does to the squared error when it alone is added to S0, and where it fires (stitching post).

Sums per group of documents come from `saebench_meta.stitching.additions`; every statistic here is a function of their
totals, so that its interval comes from resampling groups. A latent that fires nowhere in the sample still moves the
bias, and with it the error, by a trace: such latents are counted apart and judged by nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from saebench_tasks.novel_latents import lookup
from saebench_tasks.novel_latents.roc import Cuts, Roc

if TYPE_CHECKING:
    from jaxtyping import Bool, Float

    from saebench_meta.context import Context
    from saebench_meta.stats import Estimate
    from saebench_meta.stitching import Additions, PairSample
    from saebench_tasks.novel_latents.nearest import Matches

ALIKE = 0.5
"""Decoder cosine above which the paper gives the R² of activation similarity (figure 11)."""
PARTS = 512
"""Latents are put into at most so many parts for its interval."""


@dataclass(frozen=True, eq=False)
class Measured:
    """Everything sampled about the latents looked at, in the order of `matches`.

    Attributes:
        added: sums by group of documents and latent; its columns are the latents of `matches`.
        products: sums for activation cosines.
        n_docs, d_in: of the sample.
    """

    matches: Matches
    added: Additions
    products: lookup.Products
    n_docs: int
    d_in: int

    @property
    def dsse(self) -> Float[np.ndarray, " latents"]:
        return np.asarray(self.added.dsse.sum(0))

    @property
    def count(self) -> Float[np.ndarray, " latents"]:
        return np.asarray(self.added.count.sum(0))

    @property
    def activation(self) -> Float[np.ndarray, " latents"]:
        """Activation cosine with the nearest latent of S0; NaN where either never fires."""
        return lookup.activation_cosine(*(a.sum(0) for a in self.products.arrays))


def measure(sample: PairSample, matches: Matches) -> Measured:
    """Two passes over the sample's codes."""
    from saebench_meta.stitching import additions

    found = additions(sample)
    columns = {name: getattr(found, name)[:, matches.latent] for name in ("dsse", "count", "err_old", "err_new")}
    return Measured(matches, replace(found, **columns), lookup.products(sample, matches), sample.n_docs, sample.d_in)


def estimates(measured: Measured, theta: float, ctx: Context) -> dict[str, Estimate]:
    """All sampled metrics, with intervals over groups of documents (of `activation_r2`: over latents).

    Every statistic is over the same latents in all resamples. One that fires in too few documents to be in each of them
    keeps its value of the whole sample where it is missing: without rare latents the statistic would be another.
    """

    def of(why: str, statistic: Callable[..., float | None], *arrays: np.ndarray) -> Estimate:
        """`why`: the reason given where there is no value."""
        found = ctx.groups(arrays, statistic, n=measured.n_docs)
        return replace(found, reason=why) if found.value is None else found

    return {**_effects(measured, theta, of), **_rises(measured, theta, of), "activation_r2": _alike(measured, ctx)}


def _effects(measured: Measured, theta: float, of: Callable[..., Estimate]) -> dict[str, Estimate]:
    """What follows from the signs of ΔMSE of latents that fire."""
    fires, whole = measured.count > 0, measured.dsse
    novel, cuts = measured.matches.novel(theta), Cuts(measured.matches.cosine[fires])

    def estimate(chosen: np.ndarray, why: str, statistic: Callable[[np.ndarray], float | None]) -> Estimate:
        """Of a statistic of the chosen latents' ΔSSE."""

        def of_sums(dsse: np.ndarray, count: np.ndarray) -> float | None:
            return statistic(np.where(count > 0, dsse, whole[chosen]))

        return of(why, of_sums, measured.added.dsse[:, chosen], measured.added.count[:, chosen])

    def roc(get: Callable[[Roc], float | None]) -> Callable[[np.ndarray], float | None]:
        return lambda dsse: None if (found := cuts.roc(dsse > 0, dsse < 0)) is None else get(found)

    one_sided = "the latents that fire in the sample do not do both, raise and lower the MSE"
    return {
        "novel_lower_mse": estimate(fires & novel, "no novel latent fires in the sample", lambda dsse: share(dsse < 0)),
        "reconstruction_raise_mse": estimate(
            fires & ~novel, "no reconstruction latent fires in the sample", lambda dsse: share(dsse > 0)
        ),
        "auc": estimate(fires, one_sided, roc(lambda found: found.auc)),
        "youden_theta": estimate(fires, f"{one_sided}, or no theta beats chance", roc(lambda found: found.youden)),
    }


def _rises(measured: Measured, theta: float, of: Callable[..., Estimate]) -> dict[str, Estimate]:
    """The post's differences between tokens where a novel latent is active and where it is not."""
    a, d_in = measured.added, measured.d_in
    sometimes = measured.matches.novel(theta) & (measured.count > 0) & (measured.count < a.tokens.sum())
    count = a.count[:, sometimes]

    def estimate(err: np.ndarray, sse: np.ndarray) -> Estimate:
        """Of the mean rise, given the squared error by latent where it is active, and of all tokens."""
        whole = rise(count.sum(0), err[:, sometimes].sum(0), a.tokens.sum(), sse.sum(), d_in)

        def statistic(count: np.ndarray, err: np.ndarray, tokens: float, sse: float) -> float | None:
            found = rise(count, err, tokens, sse, d_in)
            return float(np.where(np.isfinite(found), found, whole).mean()) if len(whole) else None

        why = "no novel latent is active on some tokens of the sample and inactive on others"
        return of(why, statistic, count, err[:, sometimes], a.tokens, sse)

    return {
        "mse_rise_reference": estimate(a.err_old, a.sse_old),
        "mse_rise_sae": estimate(a.err_new, a.sse_new),
        # Squared errors are sums: the difference of two rises is the rise of the difference.
        "mse_rise_gap": estimate(a.err_old - a.err_new, a.sse_old - a.sse_new),
    }


def _alike(measured: Measured, ctx: Context) -> Estimate:
    """How well the decoder cosine tells the activation cosine, among latents that are near each other.

    Resampled over latents: noise of any kind lowers R², so that resampled documents would hardly ever reach its value.
    """
    activation = measured.activation
    chosen = (measured.matches.cosine > ALIKE) & np.isfinite(activation)
    n = int(chosen.sum())
    if n >= 3:
        sums = lookup.moments(measured.matches.cosine[chosen], activation[chosen])
        parts = [np.array([part.sum() for part in np.array_split(a, min(n, PARTS))]) for a in sums]
        found = ctx.groups(parts, lookup.r_squared, n=n, n_unit="latents")
        if found.value is not None:
            return found
    why = f"above a decoder cosine of {ALIKE:g} fewer than three latents fire along with their nearest, or all do alike"
    return ctx.census(None, n, reason=why)


# -- statistics of totals


def share(these: Bool[np.ndarray, " latents"]) -> float | None:
    """Share of latents; None of none."""
    return float(these.mean()) if len(these) else None


def by_state(
    count: np.ndarray, err: np.ndarray, tokens: float, sse: float, d_in: int
) -> tuple[Float[np.ndarray, " latents"], Float[np.ndarray, " latents"]]:
    """MSE on tokens where a latent is inactive and where it is active; NaN where there are no such tokens.

    Args:
        count, err: tokens where each latent is active, and the squared error on them.
        tokens, sse: the same of the whole sample.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        inactive, active = (sse - err) / ((tokens - count) * d_in), err / (count * d_in)
    return np.where(count < tokens, inactive, np.nan), np.where(count > 0, active, np.nan)


def rise(count: np.ndarray, err: np.ndarray, tokens: float, sse: float, d_in: int) -> Float[np.ndarray, " latents"]:
    """MSE where each latent is active minus MSE where it is inactive; arguments and NaN as in `by_state`."""
    inactive, active = by_state(count, err, tokens, sse, d_in)
    return np.asarray(active - inactive)


# -- as tables


def sign_counts(measured: Measured, theta: float) -> pd.DataFrame:
    """The post's table with latents that do not fire apart: one row for novel and one for reconstruction latents.

    Columns: `latents`; of those that fire, `lower`, `raise` and `unchanged`; `silent`, and how the bias alone moves the
    squared error of these, `silent_lower` and `silent_raise`.
    """
    dsse, fires, novel = measured.dsse, measured.count > 0, measured.matches.novel(theta)
    rows = []
    for name, group in (("novel", novel), ("reconstruction", ~novel)):
        row: dict[str, object] = {"group": name, "latents": int(group.sum())}
        effects = {"lower": dsse < 0, "raise": dsse > 0, "unchanged": dsse == 0}
        row |= {effect: int((group & fires & moved).sum()) for effect, moved in effects.items()}
        row["silent"] = int((group & ~fires).sum())
        row |= {f"silent_{e}": int((group & ~fires & effects[e]).sum()) for e in ("lower", "raise")}
        rows.append(row)
    return pd.DataFrame(rows)


def per_latent(measured: Measured, theta: float) -> pd.DataFrame:
    """One row a latent looked at, in ascending order: where it lies, what adding it does, where it fires."""
    matches, added = measured.matches, measured.added
    tokens, sse_old, sse_new = (float(a.sum()) for a in (added.tokens, added.sse_old, added.sse_new))
    columns = {
        "latent": matches.latent,
        "max_cosine": matches.cosine,
        "nearest_reference_latent": matches.nearest,
        "novel": matches.novel(theta),
        "active_tokens": measured.count.astype(np.int64),
        "delta_mse": measured.dsse / added.elements,
        "delta_mse_relative": measured.dsse / sse_old if sse_old > 0 else np.full(len(matches.latent), np.nan),
        "activation_cosine": measured.activation,
    }
    for side, err, sse in (("reference", added.err_old, sse_old), ("sae", added.err_new, sse_new)):
        inactive, active = by_state(measured.count, err.sum(0), tokens, sse, measured.d_in)
        columns |= {f"mse_inactive_{side}": inactive, f"mse_active_{side}": active}
    return pd.DataFrame(columns)


def inactive_active(latents: pd.DataFrame) -> pd.DataFrame:
    """The post's table, mean over the novel latents of `per_latent` that are active on some tokens but not on all."""
    states = latents[latents["novel"]].filter(regex="^mse_(in)?active_").dropna()
    rows = []
    for side in ("sae", "reference"):
        inactive, active = (float(states[f"mse_{state}_{side}"].mean()) for state in ("inactive", "active"))
        row = {"inactive": inactive, "active": active, "difference": active - inactive}
        rows.append({"dictionary": side, "novel_latents": len(states), **row})
    return pd.DataFrame(rows)
