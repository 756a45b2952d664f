"""Latents against the features of a world whose truth is known: cosines, firing, and one-to-one matches of either.

Directions are matched by |cosine|: the mean correlation coefficient of arXiv 2505.20254. Firing is matched by F1, from
how often each latent fires and each feature is on together and apart. Where both define a number, it is that of
`sae_lens.synthetic`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
from scipy import sparse
from scipy.optimize import linear_sum_assignment

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int
    from torch import Tensor

Pairs = tuple["Int[np.ndarray, ' pairs']", "Int[np.ndarray, ' pairs']"]


def cosines(a: Float[Tensor, "n d"], b: Float[Tensor, "m d"]) -> Float[np.ndarray, "n m"]:
    """Cosine of every row of `a` with every row of `b`, in float64; a zero row has cosine 0 with everything."""
    a_unit, b_unit = (_unit(x) for x in (a, b))
    return np.asarray(np.clip(a_unit @ b_unit.T, -1, 1))


def _unit(x: Float[Tensor, "n d"]) -> Float[np.ndarray, "n d"]:
    rows = x.detach().double().cpu().numpy()
    norm = np.linalg.norm(rows, axis=1, keepdims=True)
    return rows / np.where(norm > 0, norm, 1)


def one_to_one(similarity: Float[np.ndarray, "n m"]) -> Pairs:
    """Rows and columns paired one to one so that the sum of similarities is largest (Hungarian method).

    Returns:
        (rows, columns), each of length min(n, m), by ascending row.
    """
    rows, columns = linear_sum_assignment(similarity, maximize=True)
    return rows, columns


def mcc(latents: Float[Tensor, "latents d"], features: Float[Tensor, "features d"]) -> float:
    """Mean |cosine| over the best one-to-one pairs of latents and features (mean correlation coefficient).

    Of min(latents, features) pairs: what is left over on the longer side does not count (arXiv 2505.20254).

    Raises:
        ValueError: one side has no rows.
    """
    if not (len(latents) and len(features)):
        raise ValueError(f"mcc: {len(latents)} latents and {len(features)} features have no pair")
    similarity = np.abs(cosines(latents, features))
    return float(similarity[one_to_one(similarity)].mean())


@dataclass(frozen=True, eq=False)
class Firing:
    """How often latents fire and features are on, together and apart; of several stretches of tokens by `+`.

    Attributes:
        both: tokens on which the latent fires and the feature is on, int64.
        latents: tokens on which each latent fires.
        features: tokens on which each feature is on.
        n: tokens.
    """

    both: Int[np.ndarray, "latents features"]
    latents: Int[np.ndarray, " latents"]
    features: Int[np.ndarray, " features"]
    n: int

    def __add__(self, other: Firing) -> Firing:
        if self.both.shape != other.both.shape:
            raise ValueError(f"firing tables of shapes {self.both.shape} and {other.both.shape} cannot be added")
        counts = (self.both + other.both, self.latents + other.latents, self.features + other.features)
        return Firing(*counts, self.n + other.n)

    @cached_property
    def precision(self) -> Float[np.ndarray, "latents features"]:
        """Of the tokens on which the latent fires, the share with the feature on; 0 where it never fires."""
        return _share(self.both, self.latents[:, None])

    @cached_property
    def recall(self) -> Float[np.ndarray, "latents features"]:
        """Of the tokens with the feature on, the share on which the latent fires; 0 where it is never on."""
        return _share(self.both, self.features[None, :])

    @cached_property
    def f1(self) -> Float[np.ndarray, "latents features"]:
        """Harmonic mean of precision and recall: 2 both / (latent + feature); 0 where neither occurs."""
        return _share(2 * self.both, self.latents[:, None] + self.features[None, :])

    @cached_property
    def accuracy(self) -> Float[np.ndarray, "latents features"]:
        """Share of tokens on which the latent fires exactly if the feature is on."""
        apart = self.latents[:, None] + self.features[None, :] - 2 * self.both
        return np.asarray(1 - apart / max(1, self.n))


def _share(part: np.ndarray, whole: np.ndarray) -> Float[np.ndarray, "latents features"]:
    share = np.zeros(part.shape)
    np.divide(part, whole, out=share, where=np.broadcast_to(whole > 0, part.shape))
    return share


def firing(fired: sparse.csr_array | np.ndarray, on: sparse.csr_array | np.ndarray) -> Firing:
    """Counts of a stretch of tokens; everything that is not 0 fires or is on.

    Args:
        fired: (tokens, latents), sparse (without duplicate entries) or dense.
        on: (tokens, features), likewise.

    Raises:
        ValueError: the two differ in tokens.
    """
    if fired.shape[0] != on.shape[0]:
        raise ValueError(f"firing: {fired.shape[0]} tokens of latents and {on.shape[0]} of features")
    if sparse.issparse(fired) or sparse.issparse(on):
        a, b = _counting(fired), _counting(on)
        both = np.asarray((a.T @ b).toarray())
    else:
        a, b = ((np.asarray(x) != 0).astype(np.float64) for x in (fired, on))  # exact up to 2⁵³ tokens
        both = (a.T @ b).astype(np.int64)
    return Firing(both, _counts(a), _counts(b), fired.shape[0])


def _counting(x: sparse.csr_array | np.ndarray) -> sparse.csr_array:
    """Ones where `x` is not 0, in int64: sums of the booleans themselves would stop at 1, of bytes at 255."""
    x = sparse.csr_array(x)
    return sparse.csr_array(((x.data != 0).astype(np.int64), x.indices, x.indptr), shape=x.shape)


def _counts(x: sparse.csr_array | np.ndarray) -> Int[np.ndarray, " columns"]:
    return np.asarray(x.sum(axis=0)).ravel().astype(np.int64)


@dataclass(frozen=True, eq=False)
class Matched:
    """Latents and features paired one to one on F1.

    Attributes:
        latents, features: the pairs, by ascending feature; a pair has an F1 above 0.
        counted: features with enough tokens on to be matched.
        f1: of every feature with its latent; 0 without one, and where it is not counted.
    """

    latents: Int[np.ndarray, " pairs"]
    features: Int[np.ndarray, " pairs"]
    counted: Bool[np.ndarray, " features"]
    f1: Float[np.ndarray, " features"]

    @property
    def mean(self) -> float | None:
        """Mean F1 over the features that count, those without a latent as 0; None where none counts."""
        return float(self.f1[self.counted].mean()) if self.counted.any() else None


def matched_f1(table: Firing, min_count: int = 1) -> Matched:
    """Latents and features paired so that the sum of their F1 is largest.

    Args:
        min_count: features on in fewer tokens neither count nor take a latent.
    """
    counted = table.features >= max(1, min_count)
    columns, rows = np.flatnonzero(counted), np.flatnonzero(table.latents)
    scores = table.f1[np.ix_(rows, columns)]
    row, column = one_to_one(scores)
    keep = scores[row, column] > 0
    latents, features = rows[row[keep]], columns[column[keep]]
    order = np.argsort(features)
    latents, features = latents[order], features[order]
    f1 = np.zeros(len(counted))
    f1[features] = table.f1[latents, features]
    return Matched(latents, features, counted, f1)


def classification(table: Firing, cosine: Float[np.ndarray, "latents features"]) -> dict[str, float]:
    """Every latent as a detector of the feature with which its direction has the largest |cosine|.

    The same as sae-lens's `ClassificationMetrics`: several latents may have one feature, and a latent that never fires
    counts as 0, in the accuracy as the share of tokens with its feature off.

    Returns:
        Means over all latents: `precision`, `recall`, `f1` and `accuracy`.

    Raises:
        ValueError: there is no latent, or the shapes differ.
    """
    if cosine.shape != table.both.shape or not cosine.size:
        raise ValueError(f"classification: cosines of shape {cosine.shape}, counts of shape {table.both.shape}")
    best = (np.arange(len(cosine)), np.abs(cosine).argmax(axis=1))
    of = {"precision": table.precision, "recall": table.recall, "f1": table.f1, "accuracy": table.accuracy}
    return {name: float(values[best].mean()) for name, values in of.items()}


def uniqueness(cosine: Float[np.ndarray, "latents features"]) -> float:
    """Distinct nearest features, by |cosine|, as a share of the latents: 1 where no two latents have the same.

    The same as sae-lens's `feature_uniqueness`.
    """
    if not cosine.size:
        raise ValueError("uniqueness: no latents or no features")
    return len(np.unique(np.abs(cosine).argmax(axis=1))) / len(cosine)
