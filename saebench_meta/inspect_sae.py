"""What `saebench check REF` tells of an SAE: facts of its weights, oddities that are certain, a trial on activations.

Nothing here is a metric of the suite. A warning names something that is allowed but that a reader of a result should
know of; it is given only where it is certain, never as a guess from a few numbers.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from saebench_meta.calibration import UNCALIBRATED
from saebench_meta.worlds import WORLD_HOOK

if TYPE_CHECKING:
    import torch
    from jaxtyping import Bool, Float
    from torch import Tensor

    from saebench_meta.sae import SAE, SAEInfo

UNIT_TOLERANCE = 1e-3
"""How far from 1 a decoder norm may be and still count as 1: half-precision weights round by this much."""

BLOCK = 4096
"""Rows worked on at once, so that a float64 copy of a large matrix is never made."""


@dataclass(frozen=True)
class Spread:
    """Smallest, middle and largest of some numbers."""

    min: float
    median: float
    max: float


@dataclass(frozen=True)
class Inspection:
    """An SAE at a glance. `warnings` are sentences; everything else repeats `SAEInfo` or summarises the weights."""

    name: str
    architecture: str
    activation: str
    site: str
    d_in: int
    d_sae: int
    dtype: str
    decoder_norm: Spread
    threshold: Spread | None
    k: int | None
    input_transform: str
    prepend_bos: bool
    context_size: int | None
    folded: tuple[str, ...]
    notes: tuple[str, ...]
    foreign_encoder: bool
    warnings: tuple[str, ...]


def inspect_sae(sae: SAE) -> Inspection:
    """Facts and oddities of an SAE's weights and info, without any activations."""
    info = sae.info
    norms = _decoder_norms(sae)
    jumps = sae.threshold if info.activation == "jumprelu" and sae.encoder is None else None
    return Inspection(
        name=info.name,
        architecture=info.architecture,
        activation=info.activation,
        site=str(info.site),
        d_in=info.d_in,
        d_sae=info.d_sae,
        dtype=str(sae.dtype).removeprefix("torch."),
        decoder_norm=_spread(norms),
        threshold=None if jumps is None else _spread(jumps),
        k=info.k,
        input_transform=info.input_transform,
        prepend_bos=info.prepend_bos,
        context_size=info.context_size,
        folded=info.folded,
        notes=tuple(n for n in info.notes if not n.startswith(ALARMS)),
        foreign_encoder=sae.encoder is not None,
        warnings=(
            *_decoder_warnings(sae, norms),
            *_encoder_warnings(sae),
            *_centred_warnings(sae),
            *_info_warnings(info),
        ),
    )


def inspect_reconstruction(sae: SAE, x: Float[Tensor, "tokens d_in"]) -> dict[str, float | None]:
    """A first look at an SAE on a sample of activations.

    Returns:
        `tokens`; `l0`, mean active latents per token; `explained_variance` = 1 − Σ‖x−x̂‖²/Σ‖x−x̄‖² over the whole sample
        in float64, None where all tokens are alike; `dead_share`, the share of latents active on none of these tokens;
        `centred_error`, the squared error that is left when the mean over dimensions is taken out of each token before
        the SAE, as a share of the error left without that, both beside that mean: under 1 where the SAE fits centred
        activations better. None for SAEs with an input transform.
    """
    import torch

    if x.ndim != 2 or x.shape[1] != sae.d_in or not x.shape[0]:
        raise ValueError(f"SAE '{sae.info.name}' reads (tokens, {sae.d_in}), got {tuple(x.shape)}")
    mean = torch.stack([part.double().sum(0) for part in _blocks(x)]).sum(0) / x.shape[0]
    counts = torch.zeros(sae.d_sae, dtype=torch.int64, device=x.device)
    sse = sst = beside = centred = 0.0
    for part in _blocks(x):
        f = sae.encode(part)
        x_hat = sae.decode(f, sae.transform(part)[1])
        counts += (f != 0).sum(0)
        sse += float((part.double() - x_hat.double()).square().sum())
        sst += float((part.double() - mean).square().sum())
        if sae.info.input_transform == "none":
            without = part - part.mean(1, keepdim=True)
            beside += _beside_mean(part - x_hat)
            centred += _beside_mean(without - sae.decode(sae.encode(without)))
    return {
        "tokens": float(x.shape[0]),
        "l0": float(counts.sum()) / x.shape[0],
        "explained_variance": None if sst == 0 else 1 - sse / sst,
        "dead_share": float((counts == 0).double().mean()),
        "centred_error": centred / beside if beside else None,
    }


def sample_warnings(facts: Mapping[str, float | None]) -> list[str]:
    """What `inspect_reconstruction` found that a user should know of."""
    error = facts["centred_error"]
    if error is None or error > CENTRED_ERROR:
        return []
    return [f"on centred activations it makes {1 - error:.0%} less error: {CENTRED}"]


# -- summaries


def _blocks(matrix: Tensor) -> Iterator[Tensor]:
    for start in range(0, matrix.shape[0], BLOCK):
        yield matrix[start : start + BLOCK]


def _decoder_norms(sae: SAE) -> Float[Tensor, " d_sae"]:
    """‖w_i‖ in float64, where neither tiny nor huge values are lost in the squares."""
    import torch

    return torch.cat([rows.double().norm(dim=1) for rows in _blocks(sae.W_dec)])


def _spread(values: Tensor) -> Spread:
    values = values.double()
    return Spread(float(values.min()), float(values.median()), float(values.max()))


def _beside_mean(error: Tensor) -> float:
    """Σ of squares without each row's mean over dimensions, in float64."""
    error = error.double()
    return float((error - error.mean(1, keepdim=True)).square().sum())


# -- warnings

CENTRED = (
    "it was trained on centred activations (each token's mean over dimensions taken out), as TransformerLens's "
    "`center_writing_weights` makes them; `saebench convert REF OUT --input-transform center` writes one that says so"
)
CENTRED_ERROR = 0.95
CENTRED_COSINE = 0.05
"""Cosine with the all-ones direction, in units of a random direction's 1/√d_in, under which rows count as centred."""
LEAST_D_IN = 16

ALARMS = ("WARNING", UNCALIBRATED)
"""How a loader begins notes that a user must not overlook."""


def _named(latents: Bool[Tensor, " d_sae"]) -> str:
    """How many latents, and the first few of them."""
    numbers = latents.nonzero().squeeze(1).tolist()
    some = ", ".join(str(n) for n in numbers[:5]) + (", …" if len(numbers) > 5 else "")
    return f"{len(numbers):,} of {latents.shape[0]:,} latents ({some})"


def _decoder_warnings(sae: SAE, norms: Float[Tensor, " d_sae"]) -> Iterator[str]:
    odd = (norms - 1).abs() > UNIT_TOLERANCE
    if bool(odd.any()):
        yield (
            f"decoder rows are not of norm 1 for {_named(odd)}: activations of different latents are not comparable "
            "in size until rescaled by the norm"
        )
    if bool((zero := norms == 0).any()):
        yield f"decoder rows are all zero for {_named(zero)}: cosines with them mean nothing"
    if bool((twice := _repeated_rows(sae.W_dec)).any()):
        yield f"decoder rows repeat an earlier row exactly for {_named(twice)}"


def _repeated_rows(W: Float[Tensor, "rows d"]) -> Bool[Tensor, " rows"]:
    """Which rows are equal to an earlier row; zero rows are left to their own warning."""
    import numpy as np
    import torch

    rows = (W.detach().cpu().float() + 0.0).contiguous().numpy()  # + 0.0 makes −0 and 0 the same bytes
    keys = rows.view(np.dtype((np.void, rows.dtype.itemsize * rows.shape[1]))).ravel()
    _, first = np.unique(keys, return_index=True)
    repeated = np.ones(len(keys), dtype=bool)
    repeated[first] = False
    return torch.from_numpy(repeated & rows.any(axis=1))


def _encoder_warnings(sae: SAE) -> Iterator[str]:
    """Latents that read nothing. A foreign encoder does not use these weights, so nothing is said of it."""
    if sae.encoder is not None:
        return
    floor = _floor(sae)
    silent = (sae.W_enc == 0).all(0)
    dead = silent & (sae.b_enc <= floor)
    if bool(dead.any()):
        yield f"encoder columns are all zero and the bias never reaches the threshold for {_named(dead)}: never active"
    constant = silent & ~dead
    if bool(constant.any()):
        yield f"encoder columns are all zero for {_named(constant)}: what they see does not change them"
    if sae.info.activation == "jumprelu" and sae.threshold is not None and bool((low := sae.threshold < 0).any()):
        yield f"thresholds are negative for {_named(low)}: they act as 0, because codes are never negative"


def _centred_warnings(sae: SAE) -> Iterator[str]:
    """Decoder rows and b_dec orthogonal to the all-ones direction: what they were trained on had no part there."""
    import torch

    if sae.info.input_transform != "none" or sae.d_in < LEAST_D_IN:
        return
    # √d_in times the cosine with the all-ones direction; its median over random directions is .67.
    sums = torch.cat([rows.double().sum(1) / rows.double().norm(dim=1) for rows in _blocks(sae.W_dec)]).abs()
    sums, bias = sums[sums.isfinite()], sae.b_dec.double()
    if len(sums) and sums.median() <= CENTRED_COSINE and bias.sum().abs() <= CENTRED_COSINE * bias.norm():
        yield f"decoder rows and b_dec have mean 0 over dimensions: {CENTRED}"


def _floor(sae: SAE) -> torch.Tensor:
    """What a pre-activation must exceed for its latent to fire."""
    import torch

    if sae.info.activation == "jumprelu" and sae.threshold is not None:
        return sae.threshold.clamp_min(0)
    return torch.zeros_like(sae.b_enc)


def _info_warnings(info: SAEInfo) -> Iterator[str]:
    yield from (note for note in info.notes if note.startswith(ALARMS))
    of_world = info.site.hook == WORLD_HOOK  # no language model, so no contexts
    if info.context_size is None and not of_world:
        yield "the context size it was trained on is not given"
    if info.d_sae < info.d_in:
        yield f"it has fewer latents ({info.d_sae:,}) than its input has dimensions ({info.d_in:,})"
    if info.architecture == "topk" and info.activation == "relu":
        yield "it was trained as topk and is evaluated with relu: its L0 will be far above k"
    if info.k is not None and info.k > info.d_sae:
        yield f"its training k ({info.k:,}) is more than its latents ({info.d_sae:,})"
    if "hook_" not in info.site.hook and not of_world:
        yield f"'{info.site.hook}' does not look like a TransformerLens hook name (`blocks.8.hook_resid_pre`)"
