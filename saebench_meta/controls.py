"""Controls: dictionaries that a sound metric must tell from the SAE under test, on the same inputs.

`random_sae` has random directions at the same shape and L0; `permuted_rows` breaks the pairing of encoder and decoder
and nothing else; `permuted_columns` breaks the geometry of the decoder and keeps each coordinate's distribution.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    import torch
    from jaxtyping import Float
    from torch import Tensor

    from saebench_meta.activations import Activations
    from saebench_meta.sae import SAE

CALIBRATION_TOKENS = 8192
"""Tokens the random SAE's threshold and code scale are fitted on: a seeded subsample where the sample has more."""
CHUNK_ELEMENTS = 2**24


def random_sae(sae: SAE, activations: Activations, l0: float, generator: torch.Generator) -> SAE:
    """An SAE with random directions and the shape, site, input transform and L0 of `sae`.

    In the SAE's input space: decoder rows are random with norm 1, the encoder is their transpose, `b_dec` the sample
    mean, and one threshold for all latents gives the mean L0 asked for. One scale for all codes, fitted by least
    squares and folded into the encoder (rows stay at norm 1), keeps the control from being badly scaled on purpose.
    Threshold and scale are fitted on at most `CALIBRATION_TOKENS` tokens, drawn without replacement.

    Args:
        l0: mean number of active latents per token to match, as measured for `sae` on the same activations.
        generator: on the CPU; decides directions and calibration tokens.
    """
    import torch

    rows = torch.randn(sae.d_sae, sae.d_in, generator=generator)
    W_dec = torch.nn.functional.normalize(rows, dim=1).to(sae.device)
    mean, z = _calibration_tokens(sae, activations, generator)
    b_dec = mean.to(W_dec)
    centred = z.to(W_dec) - b_dec
    threshold = _threshold(centred, W_dec, l0)
    # A code must be positive, so a threshold below zero is met by raising all pre-activations instead.
    shift = max(0.0, -threshold)
    scale = _code_scale(centred, W_dec, threshold, shift)
    info = sae.info.model_copy(
        update={
            "name": f"{sae.info.name} [random]",
            "architecture": "random",
            "activation": "jumprelu",
            "k": None,
            "dataset": None,
            "folded": ("code scale into the encoder and the threshold",),
            "notes": (
                f"random unit decoder rows, encoder their transpose; one threshold for L0 {l0:.4g} and one code scale "
                f"{scale:.4g} (least squares), both fitted on {len(z)} of {activations.n_tokens} tokens",
            ),
        }
    )
    control = replace(
        sae,
        W_enc=W_dec.T.contiguous() * scale,
        b_enc=((shift - W_dec.double() @ b_dec.double()) * scale).float(),
        W_dec=W_dec,
        b_dec=b_dec,
        info=info,
        threshold=torch.full((sae.d_sae,), (threshold + shift) * scale, device=sae.device),
        encoder=None,
    )
    return control.to(dtype=sae.dtype)


def random_directions(sae: SAE, generator: torch.Generator) -> SAE:
    """Random unit directions in the shape of `sae`, for tasks that read the decoder only: there is no L0 to match."""
    import torch

    rows = torch.randn(sae.d_sae, sae.d_in, generator=generator)
    W_dec = torch.nn.functional.normalize(rows, dim=1).to(sae.W_dec)
    control = replace(sae, W_enc=W_dec.T.contiguous(), b_enc=torch.zeros_like(sae.b_enc), W_dec=W_dec, encoder=None)
    return _renamed(control, "random")


def _calibration_tokens(
    sae: SAE, activations: Activations, generator: torch.Generator
) -> tuple[Float[Tensor, " d_in"], Float[Tensor, "chosen d_in"]]:
    """Mean over all tokens (float64) and a random subset of tokens, both in the SAE's input space."""
    import torch

    n = activations.n_tokens
    chosen = torch.randperm(n, generator=generator)[:CALIBRATION_TOKENS].sort().values
    total = torch.zeros(sae.d_in, dtype=torch.float64)
    parts, start = [], 0
    for chunk in activations:
        z = sae.transform(chunk.x.to(sae.device, torch.float32))[0]
        total += z.sum(0, dtype=torch.float64).cpu()
        here = chosen[(chosen >= start) & (chosen < start + len(z))] - start
        parts.append(z[here.to(z.device)])
        start += len(z)
    return total / max(1, n), torch.cat(parts)


def _blocks(centred: Float[Tensor, "tokens d_in"], d_sae: int) -> tuple[Tensor, ...]:
    import torch

    return torch.split(centred, max(1, CHUNK_ELEMENTS // d_sae))


def _threshold(centred: Float[Tensor, "tokens d_in"], W_dec: Float[Tensor, "d_sae d_in"], l0: float) -> float:
    """Midway between the n-th and the next largest pre-activation, n = l0 × tokens, so that exactly n lie above it."""
    import torch

    total = len(centred) * len(W_dec)
    n = min(round(l0 * len(centred)), total)
    top = torch.zeros(0, device=W_dec.device)
    for block in _blocks(centred, len(W_dec)):
        pool = torch.cat([top, (block @ W_dec.T).flatten()])
        top = pool.topk(min(n + 1, len(pool))).values
    if n == total:
        return float(top[-1]) - 1.0
    return float(top[n]) if n == 0 else float(top[n - 1 : n + 1].double().mean())


def _code_scale(
    centred: Float[Tensor, "tokens d_in"], W_dec: Float[Tensor, "d_sae d_in"], threshold: float, shift: float
) -> float:
    """The α that minimises Σ‖z − b_dec − α f W_dec‖²; 1 where no latent is active, or no positive α helps."""
    cross = square = 0.0
    for block in _blocks(centred, len(W_dec)):
        pre = block @ W_dec.T
        decoded = ((pre + shift) * (pre > threshold)) @ W_dec
        cross += float((block.double() * decoded.double()).sum())
        square += float((decoded.double() ** 2).sum())
    return cross / square if square > 0 and cross > 0 else 1.0


def permuted_rows(sae: SAE, rng: np.random.Generator) -> SAE:
    """`sae` with its decoder rows in another order: every latent writes some other latent's direction.

    The encoder is untouched, so codes and L0 are exactly those of `sae`, and the dictionary is the same set of
    directions. The order is one random cycle, in which no row stays in place (for d_sae ≥ 2).
    """
    import torch

    order = rng.permutation(sae.d_sae)
    source = torch.empty(sae.d_sae, dtype=torch.int64)
    source[torch.from_numpy(order)] = torch.from_numpy(order).roll(1)
    return _renamed(replace(sae, W_dec=sae.W_dec[source.to(sae.device)]), "permuted rows")


def permuted_columns(sae: SAE, rng: np.random.Generator) -> SAE:
    """`sae` with every decoder coordinate permuted independently over the latents.

    Each coordinate keeps its values, hence its mean, variance and outliers; which values stand together in one
    direction is chance. Encoder and codes are untouched.
    """
    import torch

    exact = sae.W_dec if sae.dtype in (torch.float32, torch.float64) else sae.W_dec.float()
    shuffled = rng.permuted(exact.detach().cpu().numpy(), axis=0)
    return _renamed(replace(sae, W_dec=torch.from_numpy(shuffled).to(sae.W_dec)), "permuted columns")


def _renamed(sae: SAE, control: str) -> SAE:
    return replace(sae, info=sae.info.model_copy(update={"name": f"{sae.info.name} [{control}]"}))
