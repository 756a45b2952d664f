"""The table every paper on sparse autoencoders prints: sparsity, reconstruction, and what splicing costs the model.

Leask et al., "Sparse autoencoders do not find canonical units of analysis", table 2 and figure 9; its glossary for L0
and cross-entropy degradation. In the symbols of the package, over the evaluated tokens t of the sample::

    L0   = mean_t |{j : f_tj ≠ 0}|
    MSE  = Σ_t ‖x_t − x̂_t‖² / (tokens · d_in)
    NMSE = Σ_t ‖x_t − x̂_t‖² / Σ_t ‖x_t − x̄‖²         explained variance = 1 − NMSE, x̄ the mean of the whole sample
    CE recovered = (CE_ablated − CE_spliced) / (CE_ablated − CE_clean)      null unless CE_ablated > CE_clean

The paper gives no formula for NMSE; the one above, also known as the fraction of variance unexplained, is ours.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from saebench_meta.hookspecs import hookimpl
from saebench_meta.task import Figure, Metric, Output, Table, Task, task

if TYPE_CHECKING:
    import numpy as np
    from jaxtyping import Float, Int
    from torch import Tensor

    from saebench_meta.context import Context
    from saebench_meta.sae import SAE
    from saebench_meta.splice import Baselines, Losses

saebench_api = 1

_REBUILDS = "a dictionary trained to rebuild activations does so better than random directions at the same L0"
_SPLICES = "what is rebuilt better disturbs the language model less"
_NO_ORDER = "the random control has the same L0 by construction"
_PROPERTY = "a property of the language model and the sample, not of the SAE"

METRICS = (
    Metric(
        "l0", "neither", "latents", main=True, of="active / tokens", why=_NO_ORDER, help="Active latents per token."
    ),
    Metric(
        "mse",
        "lower",
        "squared activation",
        main=True,
        of="sse / elements",
        expects="trained>random",
        why=_REBUILDS,
        help="Squared reconstruction error, mean over tokens and dimensions.",
    ),
    Metric(
        "nmse",
        "lower",
        "fraction",
        of="sse / sst",
        expects="trained>random",
        why=_REBUILDS,
        help="Squared error over the squared deviation from the sample's mean: the fraction of variance unexplained.",
    ),
    Metric(
        "explained_variance",
        "higher",
        "fraction",
        main=True,
        of="1 - sse / sst",
        expects="trained>random",
        why=_REBUILDS,
        help="1 − NMSE.",
    ),
    Metric(
        "cosine",
        "higher",
        "1",
        of="cosine / tokens",
        expects="trained>random",
        why=_REBUILDS,
        help="Cosine of activation and reconstruction, mean over tokens; 0 where either is zero.",
    ),
    Metric(
        "ce_clean",
        "neither",
        "nats/token",
        of="loss_clean / predictions",
        why=_PROPERTY,
        help="Cross-entropy of the language model as it is.",
    ),
    Metric(
        "ce_spliced",
        "lower",
        "nats/token",
        of="loss_spliced / predictions",
        expects="trained>random",
        why=_SPLICES,
        help="Cross-entropy with the reconstruction in place of the activation.",
    ),
    Metric(
        "ce_zero",
        "neither",
        "nats/token",
        of="loss_zero / predictions",
        why=_PROPERTY,
        help="Cross-entropy with 0 in place of the activation.",
    ),
    Metric(
        "ce_mean",
        "neither",
        "nats/token",
        of="loss_mean / predictions",
        why=_PROPERTY,
        help="Cross-entropy with the sample's mean in place of the activation.",
    ),
    Metric(
        "ce_recovered_zero",
        "higher",
        "fraction",
        of="(loss_zero - loss_spliced) / (loss_zero - loss_clean)",
        expects="trained>random",
        why=_SPLICES,
        help="Share of the damage of zero ablation that splicing avoids: 1 is as good as the clean model.",
    ),
    Metric(
        "ce_recovered_mean",
        "higher",
        "fraction",
        main=True,
        of="(loss_mean - loss_spliced) / (loss_mean - loss_clean)",
        expects="trained>random",
        why=_SPLICES,
        help="Share of the damage of mean ablation that splicing avoids: the stricter of the two.",
    ),
    Metric(
        "ce_degradation",
        "lower",
        "nats/token",
        of="(loss_spliced - loss_clean) / predictions",
        expects="trained>random",
        why=_SPLICES,
        help="Rise of the cross-entropy by splicing.",
    ),
    Metric(
        "kl",
        "lower",
        "nats/token",
        of="kl / predictions",
        expects="trained>random",
        why=_SPLICES,
        help="KL(clean ‖ spliced) of the language model's next-token distributions.",
    ),
    Metric(
        "dead_fraction",
        "lower",
        "fraction",
        why="random directions at the same L0 may be used more evenly than trained ones",
        help="Share of latents active on no token of this sample (its size is in the notes); falls as samples grow.",
    ),
)


@task(
    "core",
    version=1,
    metrics=METRICS,
    needs=["activations", "lm"],
    controls=["random", "permuted_rows"],
    source="Leask et al. 2025, table 2, figure 9, appendix A",
    profiles={"quick": {"ce_tokens": 4096}},
)
def core(sae: SAE, ctx: Context, *, ce_tokens: int = 16384) -> Output:
    """Sparsity, reconstruction error and the cross-entropy recovered when the SAE is spliced into the model.

    Args:
        ce_tokens: cross-entropies are taken on the first documents of the sample with at most this many tokens
            together; 0 for the whole sample.
    """
    from saebench_meta import splice

    base = splice.baselines(sae, ctx, ce_tokens)
    losses = splice.spliced(sae, ctx, base)
    tokens, latents = measure(sae, ctx)
    dead = ctx.census(float((latents == 0).mean()), sae.d_sae)
    return Output(
        documents=documents(ctx, sae.d_in, tokens, base, losses),
        estimates={"dead_fraction": dead},
        tables={"quantiles": quantiles(tokens, latents)},
        figures=figures(tokens, latents),
        notes=notes(ctx, tokens, base),
    )


@dataclass(frozen=True)
class PerToken:
    """One number a token of the sample, in the order of the activations.

    Attributes:
        document: document number.
        active: latents active.
        error: ‖x − x̂‖².
        deviation: ‖x − x̄‖², x̄ the mean over the whole sample.
        cosine: of x and x̂.
    """

    document: Int[np.ndarray, " tokens"]
    active: Int[np.ndarray, " tokens"]
    error: Float[np.ndarray, " tokens"]
    deviation: Float[np.ndarray, " tokens"]
    cosine: Float[np.ndarray, " tokens"]


def measure(sae: SAE, ctx: Context) -> tuple[PerToken, Int[np.ndarray, " d_sae"]]:
    """Sparsity and errors of every token, differences taken in float64; on how many tokens each latent is active."""
    import numpy as np
    import torch

    activations = ctx.activations()
    mean = torch.as_tensor(activations.mean()).to(sae.device, torch.float64)
    latents = torch.zeros(sae.d_sae, dtype=torch.int64)
    parts = []
    for chunk, codes in ctx.track(ctx.code_chunks(sae), "reconstruction"):
        x = chunk.x.to(sae.device)
        x_hat = reconstruct(sae, x, codes.decode(sae.W_dec))
        x = x.double()
        error, deviation = ((x - x_hat) ** 2).sum(1), ((x - mean) ** 2).sum(1)
        norms = x.norm(dim=1) * x_hat.norm(dim=1)
        cosine = (x * x_hat).sum(1) / torch.where(norms > 0, norms, 1)
        parts.append([v.cpu().numpy() for v in (chunk.document, codes.l0(), error, deviation, cosine)])
        latents += codes.counts().cpu()
    return PerToken(*(np.concatenate(column) for column in zip(*parts, strict=True))), latents.numpy()


def reconstruct(
    sae: SAE, x: Float[Tensor, "tokens d_in"], decoded: Float[Tensor, "tokens d_in"]
) -> Float[Tensor, "tokens d_in"]:
    """x̂ of `decoded` = f W_dec, adding bias and token statistics in float64: they may be far larger than the error."""
    from saebench_meta.sae import TokenStats

    stats = sae.transform(x.to(sae.dtype))[1]
    shift, scale = (None if s is None else s.double() for s in (stats.shift, stats.scale))
    return sae.inverse(decoded.double() + sae.b_dec.double(), TokenStats(shift, scale))


def documents(ctx: Context, d_in: int, tokens: PerToken, base: Baselines, losses: Losses) -> dict[str, np.ndarray]:
    """Sums per document; NaN where a document has no token, or no prediction that counts."""
    import numpy as np

    sample = ctx.sample()

    def sums(values: np.ndarray | None) -> np.ndarray:
        return np.bincount(tokens.document, weights=values, minlength=sample.n_docs)

    n_tokens = sums(None)
    reconstruction = {
        "tokens": n_tokens,
        "elements": n_tokens * d_in,
        "active": sums(tokens.active),
        "sse": sums(tokens.error),
        "sst": sums(tokens.deviation),
        "cosine": sums(tokens.cosine),
    }
    splicing = {
        "predictions": base.predictions,
        "loss_clean": base.clean,
        "loss_zero": base.zero,
        "loss_mean": base.mean,
        "loss_spliced": losses.loss,
        "kl": losses.kl,
    }
    return {
        "document": np.asarray(sample.document_ids),
        **{name: _measured(column, n_tokens > 0) for name, column in reconstruction.items()},
        **{name: _measured(column, base.predictions > 0) for name, column in splicing.items()},
    }


def _measured(column: np.ndarray, where: np.ndarray) -> np.ndarray:
    """NaN means "not measured"; a measured value that overflowed is infinite, so that it cannot drop out unseen."""
    import numpy as np

    column = np.asarray(column, dtype=np.float64)
    return np.where(where, np.where(np.isnan(column), np.inf, column), np.nan)


def quantiles(tokens: PerToken, latents: Int[np.ndarray, " d_sae"]) -> Table:
    """Quantiles over tokens and over latents."""
    import numpy as np
    import pandas as pd

    at = np.array([0, 0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99, 1])
    density = latents / max(1, len(tokens.active))
    columns = {
        "quantile": at,
        "l0": np.quantile(tokens.active, at),
        "squared_error": np.quantile(tokens.error, at),
        "cosine": np.quantile(tokens.cosine, at),
        "latent_density": np.quantile(density, at),
    }
    return Table(
        "Quantiles over tokens and latents",
        pd.DataFrame(columns),
        "L0, squared error (summed over dimensions) and cosine over tokens; share of tokens a latent is active on over "
        "all latents, dead ones included.",
    )


def figures(tokens: PerToken, latents: Int[np.ndarray, " d_sae"]) -> dict[str, Figure]:
    """Distribution of L0 over tokens (paper, figure 9) and of density over latents."""
    import numpy as np

    from saebench_meta import charts

    n = max(1, len(tokens.active))
    alive = latents[latents > 0]
    active = charts.histogram({"tokens": tokens.active}, integers=True)
    density = charts.histogram({"latents": np.log10(alive / n)}, share_of={"latents": len(latents)})
    return {
        "l0": Figure(
            "Active latents per token",
            charts.bars(active, x="active latents (L0)", y="share of tokens"),
            f"Distribution over {len(tokens.active)} tokens.",
        ),
        "latent_density": Figure(
            "Density of latents",
            charts.bars(density, x="log10 of the share of tokens a latent is active on", y="share of latents"),
            f"{len(latents) - len(alive)} of {len(latents)} latents are active on none of {len(tokens.active)} tokens.",
        ),
    }


def notes(ctx: Context, tokens: PerToken, base: Baselines) -> tuple[str, ...]:
    """What the numbers rest on, in sentences."""
    sample = ctx.sample()
    return (
        f"Reconstruction, L0 and dead latents: {len(tokens.active)} tokens of {sample.n_docs} documents.",
        f"Cross-entropies and KL: {int(base.predictions.sum())} predictions in "
        f"{int((base.predictions > 0).sum())} documents, the first of the sample.",
        "Replaced were all evaluated positions; BOS, other special tokens and padding keep their activation.",
    )


@hookimpl
def saebench_tasks() -> list[Task]:
    return [core]
