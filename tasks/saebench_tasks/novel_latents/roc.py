"""How well the cosine alone tells latents that raise the MSE from those that lower it (paper, figure 16).

Latent i is called a reconstruction latent when m_i > theta, the rule of equation 6. Over all theta::

    TPR(theta) = share of the latents that raise the MSE with m_i > theta
    FPR(theta) = share of the latents that lower it with m_i > theta
    AUC = P(m_raising > m_lowering) + P(equal) / 2          J(theta) = TPR − FPR, largest at Youden's theta
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from jaxtyping import Bool, Float


@dataclass(frozen=True, eq=False)
class Roc:
    """The curve from (1, 1), where everything is called a reconstruction latent, to (0, 0), where nothing is.

    Attributes:
        theta: thresholds, ascending: −inf, then every distinct cosine.
        tpr, fpr: of each.
    """

    theta: Float[np.ndarray, " cuts"]
    tpr: Float[np.ndarray, " cuts"]
    fpr: Float[np.ndarray, " cuts"]

    @property
    def auc(self) -> float:
        """Area under the curve; a tie counts half."""
        return float(-np.trapezoid(self.tpr, self.fpr))

    @property
    def youden(self) -> float | None:
        """The theta of the largest J, the lowest where several have it; None where no theta beats chance."""
        best = int(np.argmax(self.tpr - self.fpr))
        return float(self.theta[best]) if best > 0 else None


class Cuts:
    """Cosines sorted once, since a bootstrap asks for the curve of many samples of the same latents."""

    def __init__(self, cosine: Float[np.ndarray, " latents"]) -> None:
        self.distinct, self._place = np.unique(cosine, return_inverse=True)

    def roc(self, raises: Bool[np.ndarray, " latents"], lowers: Bool[np.ndarray, " latents"]) -> Roc | None:
        """The curve of the latents that raise the MSE against those that lower it; None where either are none.

        A latent may be neither.
        """
        shares = []
        for group in (raises, lowers):
            counts = np.bincount(self._place[group], minlength=len(self.distinct))
            if not counts.any():
                return None
            shares.append(np.concatenate([[1.0], 1 - counts.cumsum() / counts.sum()]))
        return Roc(np.concatenate([[-np.inf], self.distinct]), *shares)
