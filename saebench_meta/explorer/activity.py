"""How active latents are on a sample: how often, how strongly, and on which tokens most."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jaxtyping import Float, Int
    from torch import Tensor

    from saebench_meta.codes import ByLatent, Codes

TOP_TOKENS = 3
"""Token types kept of each latent."""
NONE = -1
"""Where a latent has fewer."""
BINS = 24


@dataclass(frozen=True, eq=False)
class Activity:
    """What is told of every latent.

    Attributes:
        counts: (d_sae,) tokens on which it is active.
        maxima: (d_sae,) largest activation; 0 if it is never active.
        tokens: (d_sae, TOP_TOKENS) the types of token with its largest activations, the largest first; `NONE` after.
        n_tokens: tokens looked at.
    """

    counts: Int[Tensor, " d_sae"]
    maxima: Float[Tensor, " d_sae"]
    tokens: Int[Tensor, "d_sae top"]
    n_tokens: int

    @property
    def types(self) -> list[int]:
        """The types of token that occur in `tokens`, ascending."""
        return sorted(set(self.tokens.flatten().tolist()) - {NONE})


def activity(chunks: Iterable[tuple[Any, Codes]], d_sae: int) -> Activity:
    """Activity over chunks of activations with their codes (`Site.code_chunks`)."""
    import torch

    counts = torch.zeros(d_sae, dtype=torch.int64)
    best = _Best(torch.zeros(0, dtype=torch.int64), torch.zeros(0, dtype=torch.int64), torch.zeros(0))
    n_tokens = 0
    for chunk, codes in chunks:
        codes = codes.to("cpu")
        counts += codes.counts()
        n_tokens += codes.n_tokens
        new = _Best(codes.cols.long(), chunk.token.cpu()[codes.rows], codes.values.float())
        best = best.joined(new).kept(TOP_TOKENS)
    tokens, maxima = torch.full((d_sae, TOP_TOKENS), NONE), torch.zeros(d_sae)
    place = best.places()
    tokens[best.latent, place] = best.token
    maxima[best.latent[place == 0]] = best.value[place == 0]
    return Activity(counts, maxima, tokens, n_tokens)


@dataclass(frozen=True, eq=False)
class _Best:
    """Largest activation of latents on types of token."""

    latent: Int[Tensor, " entries"]
    token: Int[Tensor, " entries"]
    value: Float[Tensor, " entries"]

    def joined(self, other: _Best) -> _Best:
        """Both, each latent and type of token once."""
        import torch

        latent, token, value = (
            torch.cat(pair)
            for pair in zip(
                (self.latent, self.token, self.value), (other.latent, other.token, other.value), strict=True
            )
        )
        vocabulary = int(token.max()) + 1 if len(token) else 1
        key, inverse = torch.unique(latent * vocabulary + token, return_inverse=True)
        largest = torch.full((len(key),), -torch.inf).scatter_reduce_(0, inverse, value, "amax")
        return _Best(key // vocabulary, key % vocabulary, largest)

    def kept(self, n: int) -> _Best:
        """The `n` largest of each latent, sorted by latent, the largest first: no later chunk can bring others back."""
        order = self.value.argsort(descending=True, stable=True)
        order = order[self.latent[order].argsort(stable=True)]
        sorted_ = _Best(self.latent[order], self.token[order], self.value[order])
        few = sorted_.places() < n
        return _Best(sorted_.latent[few], sorted_.token[few], sorted_.value[few])

    def places(self) -> Int[Tensor, " entries"]:
        """Place of each entry among its latent's, from 0; they must be sorted by latent."""
        import torch

        sizes = torch.unique_consecutive(self.latent, return_counts=True)[1]
        first = sizes.cumsum(0) - sizes
        starts: Tensor = first.repeat_interleave(sizes)
        places: Tensor = torch.arange(len(self.latent)) - starts
        return places


def histograms(view: ByLatent, bins: int = BINS) -> Int[Tensor, "latents bins"]:
    """How many activations of each latent lie in each of `bins` equal parts of the range from 0 to its largest.

    Args:
        view: as from `passages.chosen_codes`. What lies on a boundary counts above it, the largest below.
    """
    import torch

    sizes = view.indptr.diff()
    latent = torch.repeat_interleave(torch.arange(len(sizes)), sizes)
    values = view.values.float()
    largest = torch.zeros(len(sizes)).scatter_reduce_(0, latent, values, "amax")
    place = (values / largest[latent] * bins).long().clamp(0, bins - 1)
    counts: Tensor = torch.bincount(latent * bins + place, minlength=len(sizes) * bins)
    return counts.reshape(len(sizes), bins)
