"""The inference threshold of a batch-top-k SAE that came without one, found on activations.

A batch-top-k SAE keeps the k·B largest activations of a batch of B tokens; at inference one threshold θ takes the
batch's place (Bussmann et al. 2024, "BatchTopK Sparse Autoencoders", section 3). Here θ is the point between the k·n-th
and the next largest activation of a sample of n tokens, so that on this sample the mean L0 is exactly k (ties apart).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import TYPE_CHECKING

from saebench_meta.errors import SaebenchError

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

    from saebench_meta.sae import SAE, SAEInfo

UNCALIBRATED = "uncalibrated:"
"""How the note of an SAE begins whose threshold no one has estimated; a loader sets the threshold to 0."""

BLOCK = 1 << 24
"""Pre-activations worked out at once."""


def uncalibrated_note(k: int, why: str) -> str:
    """The note a loader gives such an SAE."""
    return f"{UNCALIBRATED} {why}; with the threshold 0 set here its L0 is far above its k = {k}"


def is_uncalibrated(info: SAEInfo) -> bool:
    """Whether an SAE waits for `calibrate_threshold`."""
    return any(note.startswith(UNCALIBRATED) for note in info.notes)


def calibrate_threshold(sae: SAE, activations: Iterable[Float[Tensor, "tokens d_in"]], k: int) -> SAE:
    """The SAE with the one threshold at which mean L0 on a sample is k.

    Args:
        sae: a jumprelu SAE; its own thresholds are not looked at.
        activations: the sample, in chunks. It is held as a whole, because how many activations to keep is known only
            once its tokens are counted; besides it, about 2·k values a token are held.
        k: mean number of active latents per token wanted.

    Returns:
        The same SAE with that threshold, and with a note that says so in place of the `uncalibrated:` one. If fewer
        than k latents per token are ever positive, the threshold is 0.

    Raises:
        SaebenchError: no activations, k out of range, or an SAE of another activation function.
    """
    info = sae.info
    if info.activation != "jumprelu" or sae.encoder is not None:
        raise SaebenchError(
            f"'{info.name}' has no threshold to calibrate: its activation function is {info.activation}"
        )
    if not 0 < k <= info.d_sae:
        raise SaebenchError(f"'{info.name}': k = {k} cannot be reached with {info.d_sae} latents")
    sample = [chunk for chunk in activations if chunk.shape[0]]
    if not (tokens := sum(chunk.shape[0] for chunk in sample)):
        raise SaebenchError(f"'{info.name}': no activations to calibrate its threshold on")
    theta = _between(_largest(sae, sample, k * tokens + 1), k * tokens)
    threshold = sae.b_enc.new_full((info.d_sae,), theta)
    note = f"threshold {theta:.6g} calibrated on {tokens:,} tokens so that mean L0 there is {k}"
    notes = (*(n for n in info.notes if not n.startswith(UNCALIBRATED)), note)
    return replace(sae, threshold=threshold, info=info.model_copy(update={"notes": notes}))


def _largest(sae: SAE, sample: list[Tensor], count: int) -> Float[Tensor, " count"]:
    """The `count` largest positive pre-activations of a sample, or all if there are fewer; in no order."""
    import torch

    found = sae.b_enc.new_zeros(0)
    for chunk in sample:
        for x in torch.split(chunk, max(1, BLOCK // sae.d_sae)):
            pre = sae.preactivations(sae.transform(x.to(sae.W_enc))[0])
            found = torch.cat([found, pre[pre > 0]])
            if found.numel() > 2 * count:
                found = found.topk(count, sorted=False).values
    return found.topk(min(count, found.numel()), sorted=False).values


def _between(values: Float[Tensor, " n"], count: int) -> float:
    """A number that exactly `count` of at most `count + 1` values exceed, ties apart; 0 if there are not more."""
    if values.numel() <= count:
        return 0.0
    below, above = values.topk(2, largest=False).values.sort().values
    middle = (below + above) / 2  # away from both, so that rounding in another batch size changes nothing
    return float(middle if middle < above else below)
