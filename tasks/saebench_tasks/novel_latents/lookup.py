"""What one latent does where another is active: values of single entries of sparse codes, without a dense matrix."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

if TYPE_CHECKING:
    from jaxtyping import Float, Int
    from torch import Tensor

    from saebench_meta.codes import Codes
    from saebench_meta.stitching import PairSample
    from saebench_tasks.novel_latents.nearest import Matches

ROUNDING = 1e-6
"""Cosines no further apart are equal: codes are float32."""


def values_at(
    codes: Codes, tokens: Int[Tensor, " entries"], latents: Int[Tensor, " entries"]
) -> Float[Tensor, " entries"]:
    """The code of each (token, latent); 0 where the latent is inactive.

    Rows ascend and so do columns within a row, hence token · n_latents + column is sorted and can be searched.
    """
    if codes.nnz == 0:
        return torch.zeros(len(tokens), dtype=codes.values.dtype, device=codes.device)
    held = codes.rows * codes.n_latents + codes.cols
    wanted = tokens.long() * codes.n_latents + latents.long()
    place = torch.searchsorted(held, wanted).clamp_(max=len(held) - 1)
    return torch.where(held[place] == wanted, codes.values[place], 0)


@dataclass(frozen=True, eq=False)
class Products:
    """Sums over the tokens of each group of documents, for latent i of S1 and its nearest latent n(i) of S0.

    Attributes:
        cross: Σ f1_i f0_n(i).
        new: Σ f1_i².
        old: Σ f0_n(i)².
    """

    cross: Float[np.ndarray, "groups latents"]
    new: Float[np.ndarray, "groups latents"]
    old: Float[np.ndarray, "groups latents"]

    @property
    def arrays(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """In the order of `activation_cosine`."""
        return self.cross, self.new, self.old


def products(sample: PairSample, matches: Matches) -> Products:
    """The sums that activation cosines are made of, in one pass over the codes."""
    F0, F1, groups = sample.pair.reference.d_sae, sample.pair.sae.d_sae, sample.n_groups
    device = sample.pair.sae.device
    nearest = torch.zeros(F1, dtype=torch.int64)
    nearest[torch.from_numpy(matches.latent)] = torch.from_numpy(matches.nearest)
    nearest = nearest.to(device)
    cross, new = (torch.zeros(groups * F1, dtype=torch.float64, device=device) for _ in range(2))
    old = torch.zeros(groups * F0, dtype=torch.float64, device=device)
    for chunk in sample:
        group = sample.group(chunk)
        f1, f0 = chunk.new, chunk.old
        at, values = group[f1.rows] * F1 + f1.cols, f1.values.double()
        new.index_add_(0, at, values**2)
        cross.index_add_(0, at, values * values_at(f0, f1.rows, nearest[f1.cols.long()]).double())
        old.index_add_(0, group[f0.rows] * F0 + f0.cols, f0.values.double() ** 2)
    by_group = [sums.view(groups, -1).cpu().numpy() for sums in (cross, new, old)]
    columns = (matches.latent, matches.latent, matches.nearest)
    return Products(*(sums[:, chosen] for sums, chosen in zip(by_group, columns, strict=True)))


def activation_cosine(cross: np.ndarray, new: np.ndarray, old: np.ndarray) -> Float[np.ndarray, " latents"]:
    """Σ f1_i f0_n(i) / (‖f1_i‖ ‖f0_n(i)‖) of sums over the sample; NaN where either never fires."""
    with np.errstate(divide="ignore", invalid="ignore"):
        norm = np.sqrt(new) * np.sqrt(old)
        return np.where(norm > 0, cross / norm, np.nan)


def moments(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, ...]:
    """1, x, y, x², y² and xy of every pair, about the means: their sums give R² (`r_squared`)."""
    x, y = x - x.mean(), y - y.mean()
    return np.ones_like(x), x, y, x**2, y**2, x * y


def r_squared(n: float, x: float, y: float, xx: float, yy: float, xy: float) -> float | None:
    """Squared Pearson correlation from sums of `moments`; None for fewer than three pairs or no spread."""
    if n < 3:
        return None
    x_spread, y_spread, both = xx - x**2 / n, yy - y**2 / n, xy - x * y / n
    return float(both**2 / (x_spread * y_spread)) if min(x_spread, y_spread) > n * ROUNDING**2 else None
