"""Which latents a probe sees: those that tell the class apart most on the training split, or random ones."""

from __future__ import annotations

from dataclasses import dataclass
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
    parts = [_one_split(codes, examples, s, most, selection) for s in range(len(examples.train))]
    latents, difference, score = (np.stack(part, axis=1) for part in zip(*parts, strict=True))
    found = Chosen(*(a.reshape(-1, a.shape[-1]) for a in (latents, difference, score)))
    return found if codes.n_latents >= most else _padded(found, most)


def _one_split(
    codes: Codes, examples: Examples, split: int, most: int, selection: Selection
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Latents, differences and scores of every class, (classes, most) each."""
    train, positive = examples.train[split], examples.positive
    classes = len(positive)
    # A text is of a class with a probe, of none of them, or not trained on.
    group = np.where(train, np.where(positive.any(0), positive.argmax(0), classes), classes + 1)
    values = codes.values.double()
    sums = _sums(codes, values, group, classes + 2)[:-1]
    total, own = sums.sum(0), sums[:classes]
    n = torch.as_tensor(np.bincount(group, minlength=classes + 2)[:-1], device=codes.device)
    difference = own / n[:classes, None].clamp_min(1) - (total - own) / (n.sum() - n[:classes, None]).clamp_min(1)
    score = difference.abs()
    if selection == "scaled":
        mean = total / n.sum()
        square = _sums(codes, values**2, ~train, 2)[0] / n.sum()
        variance = square - mean**2
        varies = variance > CONSTANT * square
        score = torch.where(varies, score / torch.where(varies, variance, 1.0).sqrt(), 0.0)
    best = score.sort(dim=1, descending=True, stable=True).indices[:, :most]
    latents, of_best, scores = (a.cpu().numpy() for a in (best, difference.gather(1, best), score.gather(1, best)))
    return latents, of_best, scores


def _sums(
    codes: Codes, values: Float[Tensor, " nnz"], group: np.ndarray, groups: int
) -> Float[Tensor, "groups latents"]:
    """Sum of each latent's values over the texts of each group, in float64."""
    key = torch.as_tensor(group, device=codes.device, dtype=torch.int64)[codes.rows] * codes.n_latents + codes.cols
    sums = torch.zeros(groups * codes.n_latents, dtype=torch.float64, device=codes.device)
    return sums.index_add_(0, key, values).reshape(groups, codes.n_latents)


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
    at = torch.as_tensor(place.reshape(latents.shape), device=codes.device)
    return dense(codes, needed)[at].transpose(1, 2)


def dense(codes: Codes, latents: Int[np.ndarray, " needed"]) -> Float[Tensor, "needed texts"]:
    """The codes of some latents, float64; 0 for `NONE`."""
    row_of = torch.full((codes.n_latents,), NONE, device=codes.device)
    real = torch.as_tensor(np.flatnonzero(latents != NONE), device=codes.device)
    row_of[torch.as_tensor(latents[latents != NONE], device=codes.device)] = real
    row = row_of[codes.cols]
    kept = row != NONE
    out = torch.zeros(len(latents), codes.n_tokens, dtype=torch.float64, device=codes.device)
    out[row[kept], codes.rows[kept]] = codes.values[kept].double()
    return out
