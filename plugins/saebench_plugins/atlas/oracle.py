"""The oracle: the dictionary that somebody who knows the true features would use.

Decoder rows are the least-squares answer to "which directions, added up over the features that are on, rebuild the
activations"; encoder rows are linear probes that read off whether a feature is on. Both see training documents only.
So it runs like any SAE, with one latent a feature, and shows what a metric gives when latents are features.

With O (tokens × features) the truth, X the activations, x̄ and ō their means:

    W_dec  = argmin ‖(X − x̄) − (O − ō) W‖² + ridge · tokens · ‖W‖²,   b_dec = x̄ − ō W_dec
    probe  = logistic regression of each feature on x, started at the linear discriminant Σ⁻¹(x̄_on − x̄)
    f      = ½ + ½ (probe − θ) / (mean probe where on − θ)   where the probe is above θ, else 0

θ is where a probe's F1 is largest on tokens that it was not fitted on, and the line makes a code 1 on average where the
feature is on and the probe above θ; less where θ is so close to that average that codes would vary wildly. Rows of
W_dec are then scaled to norm 1, and codes the other way.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch.nn.functional import binary_cross_entropy_with_logits

from saebench_meta import seeds
from saebench_meta.sae import SAE, SAEInfo, Site
from saebench_plugins.atlas.site import HOOK, MODEL_REF, ORACLE

if TYPE_CHECKING:
    from jaxtyping import Bool, Float
    from scipy.sparse import csr_array
    from torch import Tensor

RIDGE = 1e-4
HELD_OUT = 0.2
"""Share of the tokens, the last ones, on which thresholds are set."""
LEAST_GAP = 0.25
"""Least distance of θ from the mean probe where on, as a share of that mean's distance from the mean of all, or of the
probe's standard deviation if that is more."""
STEPS, BATCH, LR = 500, 2048, 0.1
"""Of the probes; the learning rate belongs to activations of standard deviation 1."""


def oracle(x: Float[Tensor, "tokens d_in"], on: csr_array, context: int, seed: int, steps: int = STEPS) -> SAE:
    """The supervised dictionary of activations and what is on there, (tokens, features)."""
    n = int((1 - HELD_OUT) * len(x))
    W_dec, b_dec = decoder(x, on)
    weight, bias = probes(x[:n], on[:n], seed, steps)
    scores = x[n:] @ weight + bias
    threshold, level = thresholds(scores, on[n:])
    spread = torch.maximum(level - scores.mean(0), scores.std(0))
    slope = 0.5 / torch.maximum(level - threshold, LEAST_GAP * spread)
    W_dec[torch.from_numpy(np.asarray(on.sum(0)).ravel() == 0)] = 1.0  # never fires, but every latent has a direction
    norms = W_dec.norm(dim=1)
    info = SAEInfo(
        name=f"atlas-{ORACLE}",
        site=Site(model=MODEL_REF, hook=HOOK),
        d_in=x.shape[1],
        d_sae=on.shape[1],
        architecture=ORACLE,
        activation="jumprelu",
        prepend_bos=True,
        context_size=context,
        dataset="atlas",
        notes=("supervised: decoder by least squares on the true features, encoder by linear probes",),
    )
    return SAE(
        W_enc=weight * (slope * norms),
        b_enc=((bias - threshold) * slope + 0.5) * norms,
        W_dec=W_dec / norms[:, None],
        b_dec=b_dec,
        info=info,
        threshold=0.5 * norms,
    )


def decoder(
    x: Float[Tensor, "tokens d_in"], on: csr_array
) -> tuple[Float[Tensor, "features d_in"], Float[Tensor, " d_in"]]:
    """Rows and bias of the least-squares reconstruction from the features."""
    features = on.astype(np.float64)
    o_mean = np.asarray(features.mean(0)).ravel()
    x_mean = x.double().mean(0).numpy()
    gram = (features.T @ features).toarray() - len(x) * np.outer(o_mean, o_mean)
    gram[np.diag_indices_from(gram)] += RIDGE * len(x)
    cross = features.T @ x.double().numpy() - len(x) * np.outer(o_mean, x_mean)
    W = np.linalg.solve(gram, cross)
    return torch.from_numpy(W).float(), torch.from_numpy(x_mean - o_mean @ W).float()


def probes(
    x: Float[Tensor, "tokens d_in"], on: csr_array, seed: int, steps: int
) -> tuple[Float[Tensor, "d_in features"], Float[Tensor, " features"]]:
    """Logistic regressions of all features at once, by Adam from the linear discriminants."""
    mean = x.double().mean(0)
    count = np.asarray(on.sum(0)).ravel().clip(1)
    means_on = torch.from_numpy((on.T.astype(np.float64) @ x.double().numpy()) / count[:, None])
    covariance = torch.cov(x.double().T)
    weight = torch.linalg.solve(covariance, (means_on - mean).T)
    odds = torch.from_numpy(np.log(count / (len(x) - count)))
    bias = odds - ((means_on + mean) / 2 * weight.T).sum(1)
    parameters = [weight.float().requires_grad_(), bias.float().requires_grad_()]
    optimizer = torch.optim.Adam(parameters, lr=LR, fused=True)
    scale = covariance.diagonal().mean().sqrt().item()
    order = seeds.generator(seed, "atlas", "probes")
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = LR / scale * (1 - step / steps)
        rows = torch.randint(len(x), (BATCH,), generator=order)
        logits = x[rows] @ parameters[0] + parameters[1]
        truth = torch.from_numpy(on[rows.numpy()].toarray()).float()
        loss = binary_cross_entropy_with_logits(logits, truth, reduction="sum") / BATCH
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
    return parameters[0].detach(), parameters[1].detach()


def thresholds(
    scores: Float[Tensor, "tokens features"], on: csr_array
) -> tuple[Float[Tensor, " features"], Float[Tensor, " features"]]:
    """For each feature, where F1 is largest, and the mean score above it where the feature is on.

    A threshold lies midway between two scores; where the feature is never on, as far above all of them as they range.
    """
    columns = on.tocsc()
    found, levels = torch.empty(on.shape[1]), torch.empty(on.shape[1])
    for feature in range(on.shape[1]):
        truth = torch.zeros(len(scores), dtype=torch.bool)
        truth[torch.from_numpy(columns.indices[columns.indptr[feature] : columns.indptr[feature + 1]]).long()] = True
        found[feature], levels[feature] = best_threshold(scores[:, feature], truth)
    return found, levels


def best_threshold(score: Float[Tensor, " tokens"], truth: Bool[Tensor, " tokens"]) -> tuple[float, float]:
    """See `thresholds`, for one feature."""
    total = int(truth.sum())
    if not total:
        top, span = float(score.max()), float(score.max() - score.min()) + 1.0
        return top + span, top + 2 * span
    falling, order = score.sort(descending=True)
    hits = truth[order].cumsum(0)
    chosen = torch.arange(1, len(score) + 1)
    f1 = 2 * hits / (chosen + total)
    ends_run = torch.ones_like(truth)
    ends_run[:-1] = falling[:-1] > falling[1:]
    best = int(f1.masked_fill(~ends_run, -1).argmax())
    below = float(falling[best + 1]) if best + 1 < len(score) else float(falling[best]) - 1.0
    threshold = (float(falling[best]) + below) / 2
    above = score[truth & (score > threshold)]
    return threshold, float(above.mean()) if len(above) else float(falling[0])
