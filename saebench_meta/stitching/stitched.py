"""A stitched SAE as an object: chosen latents of several SAEs, each encoded as its parent encodes it.

Leask et al., equation 5: every latent keeps its encoder, threshold and decoder row, and the bias is that of the
parents, weighted by how many latents of each there are. A top-k parent selects among all its latents and is masked
afterwards, so that a latent's codes do not depend on which others were chosen.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from saebench_meta.errors import SaebenchError
from saebench_meta.sae import SAE, ActivationName, SAEInfo, activate, preactivations

if TYPE_CHECKING:
    import torch
    from jaxtyping import Float, Int
    from torch import Tensor

Member = tuple[SAE, "Int[np.ndarray, ' chosen'] | None"]

ARCHITECTURE = "stitched"


@dataclass(frozen=True, eq=False)
class Part:
    """The latents of one relu, jumprelu or topk parent.

    Attributes:
        W_enc, b_enc: encoder, (d_in, d_sae) and (d_sae,): of a topk parent whole, else of the latents that are kept.
        k: latents active per token before `kept` is applied; topk only.
        threshold: (d_sae,); jumprelu only.
        kept: which of the d_sae latents are kept, in the order of the stitched SAE; topk only.
    """

    W_enc: Float[Tensor, "d_in d_sae"]
    b_enc: Float[Tensor, " d_sae"]
    activation: ActivationName
    k: int | None = None
    threshold: Float[Tensor, " d_sae"] | None = None
    kept: Int[Tensor, " kept"] | None = None

    def __call__(self, z: Float[Tensor, "tokens d_in"]) -> Float[Tensor, "tokens kept"]:
        """Codes of the latents that are kept."""
        pre = preactivations(z, self.W_enc, self.b_enc)
        f = activate(pre, self.activation, k=self.k, threshold=self.threshold)
        return f if self.kept is None else f.index_select(-1, self.kept)

    @property
    def n(self) -> int:
        """Latents of the stitched SAE that are from here."""
        return len(self.b_enc) if self.kept is None else len(self.kept)

    def keep(self, index: Int[Tensor, " chosen"]) -> Part:
        """Only these of its latents."""
        if self.kept is not None:
            return replace(self, kept=self.kept[index])
        threshold = None if self.threshold is None else self.threshold[index]
        return replace(self, W_enc=self.W_enc[:, index], b_enc=self.b_enc[index], threshold=threshold)

    def to(self, device: str | torch.device | None = None, dtype: torch.dtype | None = None) -> Part:
        """The same part elsewhere; `kept` stays integers."""
        moved = {name: t.to(device, dtype if t.is_floating_point() else None) for name, t in self.tensors().items()}
        return replace(self, **moved)  # type: ignore[arg-type]  # its keys are fields that hold tensors

    def tensors(self) -> dict[str, Tensor]:
        """Those that this kind of part has, by field."""
        named = {"W_enc": self.W_enc, "b_enc": self.b_enc, "threshold": self.threshold, "kept": self.kept}
        return {name: t for name, t in named.items() if t is not None}


@dataclass(frozen=True, eq=False)
class ForeignPart:
    """The latents of a parent with an encoder of its own, `kept` those of them that are kept."""

    encoder: Callable[[Tensor], Tensor]
    kept: Int[Tensor, " kept"]

    def __call__(self, z: Float[Tensor, "tokens d_in"]) -> Float[Tensor, "tokens kept"]:
        """Codes of the latents that are kept."""
        return self.encoder(z).index_select(-1, self.kept)

    @property
    def n(self) -> int:
        """Latents of the stitched SAE that are from here."""
        return len(self.kept)

    def keep(self, index: Int[Tensor, " chosen"]) -> ForeignPart:
        """Only these of its latents."""
        return replace(self, kept=self.kept[index])

    def to(self, device: str | torch.device | None = None, dtype: torch.dtype | None = None) -> ForeignPart:
        """The same part elsewhere, as far as its encoder can be moved."""
        moves = getattr(self.encoder, "to", None)
        return ForeignPart(self.encoder if moves is None else moves(device=device, dtype=dtype), self.kept.to(device))


@dataclass(frozen=True, eq=False)
class Stitched:
    """The encoder z -> f of a stitched SAE: the latents of each part, one part after the other."""

    parts: tuple[Part | ForeignPart, ...]

    def __call__(self, z: Float[Tensor, "tokens d_in"]) -> Float[Tensor, "tokens d_sae"]:
        """Codes of all latents."""
        import torch

        return torch.cat([part(z) for part in self.parts], dim=-1)

    def to(self, device: str | torch.device | None = None, dtype: torch.dtype | None = None) -> Stitched:
        """The same encoder on another device or in another dtype."""
        return Stitched(tuple(part.to(device, dtype) for part in self.parts))

    def keep(self, chosen: Int[Tensor, " chosen"]) -> tuple[Part | ForeignPart, ...]:
        """Parts that give only these latents, in this order: one for every run of latents from one part."""
        import torch

        ends = torch.tensor([part.n for part in self.parts], device=chosen.device).cumsum(0)
        owner = torch.bucketize(chosen, ends, right=True)
        owners, lengths = torch.unique_consecutive(owner, return_counts=True)
        runs = zip(owners.tolist(), torch.split(chosen, lengths.tolist()), strict=True)
        return tuple(self.parts[p].keep(run - (ends[p] - self.parts[p].n)) for p, run in runs)

    def linear_parts(self) -> tuple[Part, ...]:
        """The parts.

        Raises:
            ValueError: the weights of one are not known here, because it comes from a foreign encoder.
        """
        if any(isinstance(part, ForeignPart) for part in self.parts):
            raise ValueError("a part of this stitched SAE comes from an SAE with an encoder of its own")
        return tuple(part for part in self.parts if isinstance(part, Part))

    def tensors(self) -> Mapping[str, Tensor]:
        """`part0.W_enc`, … of every part. Raises `ValueError` as `linear_parts` does."""
        parts = enumerate(self.linear_parts())
        return {f"part{i}.{name}": tensor for i, part in parts for name, tensor in part.tensors().items()}

    def describe(self) -> str:
        """JSON: of every part its activation function, latents encoded (`d_sae`) and kept (`n`), and k."""
        parts = self.linear_parts()
        return json.dumps([{"activation": p.activation, "d_sae": len(p.b_enc), "n": p.n, "k": p.k} for p in parts])

    def columns(self) -> tuple[Float[Tensor, "d_in d_sae"], Float[Tensor, " d_sae"]]:
        """Encoder columns and biases of the latents that are kept. Raises `ValueError` as `linear_parts` does."""
        import torch

        found = [(p.W_enc, p.b_enc) if p.kept is None else _columns(p, p.kept) for p in self.linear_parts()]
        return torch.cat([W for W, _ in found], dim=1), torch.cat([b for _, b in found])


def _columns(of: SAE | Part, chosen: Int[Tensor, " chosen"]) -> tuple[Tensor, Tensor]:
    return of.W_enc.index_select(1, chosen), of.b_enc.index_select(0, chosen)


def stitch(
    members: Sequence[Member],
    *,
    name: str,
    b_dec: Float[Tensor, " d_in"] | None = None,
    notes: Sequence[str] = (),
) -> SAE:
    """One SAE of chosen latents of several, on the device and in the dtype of the first.

    Args:
        members: SAEs at one site, each with the latents to take in the order to take them in; None takes all.
        name: of the stitched SAE.
        b_dec: (d_in,); the mean of the parents' biases unless given, weighted by latents taken (paper, equation 5).
        notes: for readers of results, after those that say how many latents are from where.

    Returns:
        A relu or jumprelu SAE if all parents are such, else one whose encoder is `Stitched`. All latents of one member
        alone are that member, with its activation function.

    Raises:
        SaebenchError: parents of different widths or input transforms, one whose threshold is not known yet, or no
            latents at all.
        ValueError: a latent twice, or out of range.
    """
    import torch

    _check_parents([sae for sae, _ in members])
    first = members[0][0]
    chosen = [_chosen(*member) for member in members]
    used = [
        (sae.to(first.device, first.dtype), i.to(first.device)) for (sae, _), i in zip(members, chosen, strict=True)
    ]
    used = [(sae, i) for sae, i in used if len(i)]
    if not used:
        raise SaebenchError(f"'{name}' would have no latents; choose some")
    columns = [_columns(*member) for member in used]
    info = _info(first.info, [(sae.info, len(i)) for (sae, _), i in zip(members, chosen, strict=True)], name, notes)
    activation, weights = _encoder(used)
    return SAE(
        W_enc=torch.cat([W for W, _ in columns], dim=1),
        b_enc=torch.cat([b for _, b in columns]),
        W_dec=torch.cat([sae.W_dec.index_select(0, i) for sae, i in used]),
        b_dec=_mean_bias(used) if b_dec is None else b_dec.to(first.b_dec),
        info=info.model_copy(update=activation),
        **weights,
    )


def _check_parents(saes: Sequence[SAE]) -> None:
    from saebench_meta.calibration import is_uncalibrated

    first = saes[0].info
    for info in (sae.info for sae in saes):
        if (info.d_in, info.input_transform) != (first.d_in, first.input_transform):
            raise SaebenchError(
                f"'{first.name}' (d_in {first.d_in}, input transform {first.input_transform}) and '{info.name}' "
                f"(d_in {info.d_in}, input transform {info.input_transform}) read different things and cannot be "
                "stitched. Give SAEs of one site and one kind."
            )
        if is_uncalibrated(info):
            raise SaebenchError(
                f"'{info.name}' has no threshold yet, so what its latents do is not settled. "
                "Give an SAE whose file has its threshold."
            )


def _chosen(sae: SAE, latents: Int[np.ndarray, " chosen"] | None) -> Int[Tensor, " chosen"]:
    import torch

    if latents is None:
        return torch.arange(sae.d_sae)
    latents = np.asarray(latents, dtype=np.int64)
    if latents.ndim != 1 or (latents < 0).any() or (latents >= sae.d_sae).any():
        raise ValueError(f"stitch: '{sae.info.name}' has latents 0 to {sae.d_sae - 1}, not all of those chosen")
    if len(np.unique(latents)) != len(latents):
        raise ValueError(f"stitch: a latent of '{sae.info.name}' is chosen twice")
    return torch.from_numpy(latents.copy())


def _encoder(used: Sequence[tuple[SAE, Tensor]]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Fields of `SAEInfo` and of `SAE` that say how the chosen latents are encoded."""
    import torch

    (sae, i), *others = used
    if not others and len(i) == sae.d_sae and bool((i == torch.arange(len(i), device=i.device)).all()):
        kind = {"activation": sae.info.activation, "k": sae.info.k}
        return kind, {"threshold": sae.threshold, "encoder": sae.encoder}
    encoder = Stitched(tuple(part for sae, i in used for part in _parts(sae, i)))
    if any(isinstance(part, ForeignPart) or part.activation == "topk" for part in encoder.parts):
        return {"activation": "relu"}, {"encoder": encoder}
    jumps = [(part.threshold, part.b_enc) for part in encoder.linear_parts()]
    if all(threshold is None for threshold, _ in jumps):
        return {"activation": "relu"}, {}
    thresholds = [torch.zeros_like(b_enc) if threshold is None else threshold for threshold, b_enc in jumps]
    return {"activation": "jumprelu"}, {"threshold": torch.cat(thresholds)}


def _parts(sae: SAE, chosen: Int[Tensor, " chosen"]) -> tuple[Part | ForeignPart, ...]:
    if isinstance(sae.encoder, Stitched):
        return sae.encoder.keep(chosen)
    if sae.encoder is not None:
        return (ForeignPart(sae.encoder, chosen),)
    if sae.info.activation == "topk":
        return (Part(sae.W_enc, sae.b_enc, "topk", k=sae.info.k, kept=chosen),)
    jumps = sae.threshold if sae.info.activation == "jumprelu" else None
    return (Part(sae.W_enc, sae.b_enc, sae.info.activation, threshold=jumps).keep(chosen),)


def _mean_bias(used: Sequence[tuple[SAE, Tensor]]) -> Float[Tensor, " d_in"]:
    """Σ n_i b_i / Σ n_i, worked out in float64."""
    import torch

    n = torch.tensor([len(i) for _, i in used], dtype=torch.float64)
    biases = torch.stack([sae.b_dec.detach().double().cpu() for sae, _ in used])
    return ((n / n.sum()) @ biases).to(used[0][0].b_dec)


def _info(first: SAEInfo, parents: Sequence[tuple[SAEInfo, int]], name: str, notes: Sequence[str]) -> SAEInfo:
    """What is known of the stitched SAE, but for its activation function."""
    from saebench_meta.inspect_sae import ALARMS

    datasets = {info.dataset for info, _ in parents}
    folded = dict.fromkeys(what for info, n in parents if n for what in info.folded)
    alarms = dict.fromkeys(note for info, n in parents if n for note in info.notes if note.startswith(ALARMS))
    from_where = [f"{n:,} of {info.d_sae:,} latents of {info.name}" for info, n in parents]
    return SAEInfo(
        name=name,
        site=first.site,
        d_in=first.d_in,
        d_sae=sum(n for _, n in parents),
        architecture=ARCHITECTURE,
        input_transform=first.input_transform,
        prepend_bos=first.prepend_bos,
        context_size=first.context_size,
        dataset=datasets.pop() if len(datasets) == 1 else None,
        folded=tuple(folded),
        notes=(*from_where, *alarms, *notes),
    )
