"""Which latents a probe sees: those that tell the class apart most on the training split, or random ones."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch

from saebench_meta import seeds

if TYPE_CHECKING:
    from jaxtyping import Float, Int
    from torch import Tensor

    from saebench_meta.codes import Codes
    from saebench_tasks.sparse_probing.examples import Examples

Selection = Literal["scaled", "mean_diff"]
NONE = -1
"""Stands for a latent where the dictionary has fewer than are asked for."""
CONSTANT = 1e-12
"""A latent whose variance is at most this share of its mean square says nothing: what is left is rounding."""


@dataclass(frozen=True, eq=False)
class Chosen:
    """The latents of each probe, the best first.

    Attributes:
        latents: numbers; `NONE` where there are no more.
        difference: mean over the training texts of the class minus that over the others.
        score: what they were chosen by.
    """

    latents: Int[np.ndarray, "problems most"]
    difference: Float[np.ndarray, "problems most"]
    score: Float[np.ndarray, "problems most"]


def choose(codes: Codes, examples: Examples, most: int, selection: Selection) -> Chosen:
    """The `most` latents with the largest |Δ mean| (`mean_diff`), over their deviation in training (`scaled`).

    Deviations are over all training texts of the split, so that a latent times a constant is chosen as it was. Of equal
    scores the lower number comes first.
    """
    squares = replace(codes, values=codes.values.double() ** 2) if selection == "scaled" else None
    parts = [_one_split(codes, squares, examples, s, min(most, codes.n_latents)) for s in range(len(examples.train))]
    latents, difference, score = (np.stack(part, axis=1) for part in zip(*parts, strict=True))
    found = Chosen(*(a.reshape(-1, a.shape[-1]) for a in (latents, difference, score)))
    return found if codes.n_latents >= most else _padded(found, most)


def _one_split(
    codes: Codes, squares: Codes | None, examples: Examples, split: int, most: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Latents, differences and scores of every class, (classes, most) each; over deviations where squares are given."""
    train, positive = examples.train[split], examples.positive
    means = _means(codes, np.concatenate([positive & train, ~positive & train]))
    difference = means[: len(positive)] - means[len(positive) :]
    score = difference.abs()
    if squares is not None:
        mean, square = (_means(of, train[None])[0] for of in (codes, squares))
        variance = square - mean**2
        varies = variance > CONSTANT * square
        score = torch.where(varies, score / torch.where(varies, variance, 1.0).sqrt(), 0.0)
    best = score.sort(dim=1, descending=True, stable=True).indices[:, :most]
    latents, of_best, scores = (a.cpu().numpy() for a in (best, difference.gather(1, best), score.gather(1, best)))
    return latents, of_best, scores


def _means(codes: Codes, groups: np.ndarray) -> Float[Tensor, "groups latents"]:
    """Mean code over each group of texts, in float64: one sparse product."""
    shares = torch.as_tensor(groups / np.maximum(1, groups.sum(1, keepdims=True)), device=codes.device)
    return codes.t_matmul(shares.T.contiguous()).T


def random_latents(codes: Codes, examples: Examples, most: int, seed: int) -> Int[np.ndarray, "problems most"]:
    """As many latents for each probe, drawn among those that are active on texts outside the test split."""
    outside = np.ones(codes.n_tokens, dtype=bool)
    outside[examples.test] = False
    active = np.unique(codes.cols.cpu().numpy()[outside[codes.rows.cpu().numpy()]])
    found = np.full((len(examples.problems), most), NONE)
    for row, (c, s) in zip(found, examples.problems, strict=True):
        rng = seeds.rng(seed, "sparse_probing", "random latents", examples.name, examples.classes[c], s)
        drawn = rng.choice(active, min(most, len(active)), replace=False)
        row[: len(drawn)] = drawn
    return found


def _padded(chosen: Chosen, most: int) -> Chosen:
    missing = ((0, 0), (0, most - chosen.latents.shape[1]))
    return Chosen(
        np.pad(chosen.latents, missing, constant_values=NONE),
        np.pad(chosen.difference, missing),
        np.pad(chosen.score, missing),
    )


def columns(codes: Codes, latents: Int[np.ndarray, "problems k"]) -> Float[Tensor, "problems texts k"]:
    """The codes of each probe's latents, float64; 0 where there is none. Only columns that a probe needs are made."""
    needed, place = np.unique(latents, return_inverse=True)
    real = needed[needed != NONE]
    dense = codes.select(torch.as_tensor(real, device=codes.device)).dense()
    if len(real) < len(needed):
        dense = torch.cat([dense.new_zeros(len(dense), 1), dense], dim=1)
    at = torch.as_tensor(place.reshape(latents.shape), device=codes.device)
    return dense.T[at].transpose(1, 2).double()
