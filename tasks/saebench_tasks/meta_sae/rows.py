"""What meta-SAEs are trained on and scored by: unit decoder rows, their held-out part, and rows of two null models.

variance explained = 1 − Σ‖w − ŵ‖² / Σ‖w − w̄‖²        w̄: mean of the rows that are scored
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from saebench_meta import seeds
from saebench_meta.errors import SaebenchError

if TYPE_CHECKING:
    import numpy as np
    from jaxtyping import Bool, Float, Int
    from torch import Tensor

    from saebench_meta.sae import SAE

OWN, GAUSSIAN, PERMUTED = "decoder rows", "Gaussian rows", "permuted coordinates"
KINDS = (OWN, GAUSSIAN, PERMUTED)
"""What a meta-SAE can be trained on: the SAE's own rows, and the two nulls."""


@dataclass(frozen=True, eq=False)
class Rows:
    """Decoder rows of one SAE or several, scaled to norm 1; rows of zeros have no direction and are left out.

    Attributes:
        x: float32.
        member: which SAE each is from.
        latent: its number in that SAE.
        held_out: which are kept from training.
    """

    x: Float[Tensor, "rows d_in"]
    member: Int[np.ndarray, " rows"]
    latent: Int[np.ndarray, " rows"]
    held_out: Bool[np.ndarray, " rows"]

    def part(self, held_out: bool, x: Tensor | None = None) -> Float[Tensor, "part d_in"]:
        """Held-out or training rows, of `x` where it stands for these."""
        import numpy as np
        import torch

        chosen = torch.from_numpy(np.flatnonzero(self.held_out == held_out))
        x = self.x if x is None else x
        return x[chosen.to(x.device)]


def n_held_out(rows: int, share: float) -> int:
    """How many rows are kept from training."""
    return round(share * rows)


def unit_rows(saes: Sequence[SAE], share: float, seed: int) -> Rows:
    """Rows of all SAEs, one SAE after the other.

    Args:
        share: of the rows, to be held out.
        seed: of the run; the same rows are held out whichever task asks.

    Raises:
        SaebenchError: there are no two rows to train on.
    """
    import numpy as np
    import torch

    rows = [sae.unit_decoder().float() for sae in saes]
    latents = [torch.nonzero(r.norm(dim=1) > 0).squeeze(1) for r in rows]
    x = torch.cat([r[chosen].to(rows[0].device) for r, chosen in zip(rows, latents, strict=True)])
    n = n_held_out(len(x), share)
    if len(x) - n < 2:
        raise SaebenchError(f"a meta-SAE cannot be trained on {len(x) - n} decoder rows: give a wider SAE")
    held_out = np.zeros(len(x), dtype=bool)
    held_out[seeds.rng(seed, "meta_sae", "held-out rows").permutation(len(x))[:n]] = True
    member = np.repeat(np.arange(len(saes)), [len(chosen) for chosen in latents])
    return Rows(x, member, np.concatenate([chosen.cpu().numpy() for chosen in latents]), held_out)


def null_rows(x: Float[Tensor, "rows d_in"], kind: str, rng: np.random.Generator) -> Float[Tensor, "rows d_in"]:
    """As many rows without the structure of `x`.

    `GAUSSIAN`: drawn from the normal distribution with the mean and covariance of `x`. `PERMUTED`: every coordinate
    of `x` permuted independently over rows. Norms are 1 only on average: scaling would change covariance and values.
    """
    import numpy as np
    import torch

    values = x.double().cpu().numpy()
    if kind == PERMUTED:
        made = rng.permuted(values, axis=0)
    else:
        mean = values.mean(0)
        centred = values - mean
        variances, axes = np.linalg.eigh(centred.T @ centred / len(values))
        deviations = np.sqrt(np.maximum(variances, 0))
        made = mean + (rng.standard_normal(values.shape) * deviations) @ axes.T
    return torch.from_numpy(made).to(x)


@dataclass(frozen=True, eq=False)
class Squares:
    """Σ over dimensions of each row: of its error, and of its deviation from the mean row. Float64."""

    error: Float[np.ndarray, " rows"]
    deviation: Float[np.ndarray, " rows"]

    @property
    def explained(self) -> float | None:
        return explained(self.error.sum(), self.deviation.sum())


def explained(error: float, deviation: float) -> float | None:
    """Variance explained; None where the rows do not differ."""
    return 1 - float(error) / float(deviation) if deviation > 0 else None


def squares(x: Float[Tensor, "rows d_in"], x_hat: Float[Tensor, "rows d_in"]) -> Squares:
    """What variance explained is made of."""
    exact = x.double()
    error = (exact - x_hat.double()).square().sum(1)
    deviation = (exact - exact.mean(0)).square().sum(1) if len(exact) else error
    return Squares(error.cpu().numpy(), deviation.cpu().numpy())


def batch_reconstructed(
    meta: SAE, x: Float[Tensor, "rows d_in"], k: int, batch_size: int
) -> Float[Tensor, "rows d_in"]:
    """`x_hat` of the k · batch largest positive activations of every batch, as in training."""
    import torch

    parts = []
    for batch in torch.split(x, batch_size):
        f = torch.relu(meta.preactivations(batch)).flatten()
        top = f.topk(min(k * len(batch), len(f)), sorted=False)
        kept = torch.zeros_like(f).scatter_(0, top.indices, top.values)
        parts.append(meta.decode(kept.view(len(batch), meta.d_sae)))
    return torch.cat(parts)
