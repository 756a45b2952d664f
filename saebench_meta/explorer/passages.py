"""The passages of a sample in which latents are most active, with the activation at every token."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jaxtyping import Int
    from torch import Tensor

    from saebench_meta.codes import ByLatent, Codes
    from saebench_meta.corpus import Sample

N_PASSAGES = 10
BEFORE, AFTER = 24, 12
"""Tokens shown around the one with the largest activation."""


@dataclass(frozen=True)
class Passage:
    """Some tokens in a row.

    Attributes:
        document: of the corpus, as the sample names it.
        peak: place in `tokens` of the one with the largest activation.
        tokens: ids.
        activations: of each; 0 where the latent is not active or the token is not evaluated.
    """

    document: str
    peak: int
    tokens: list[int]
    activations: list[float]


def chosen_codes(chunks: Iterable[tuple[Any, Codes]], latents: Sequence[int]) -> ByLatent:
    """The activations of some latents on all tokens, in the order in which the latents are given.

    Args:
        chunks: all activations of the sample, with their codes (`Site.code_chunks`).
        latents: numbers of the latents, each once.
    """
    import torch

    from saebench_meta.codes import Codes

    chosen = torch.tensor(list(latents), dtype=torch.int64)
    parts = [codes.to("cpu").select(chosen) for _, codes in chunks]
    return Codes.cat(parts, n_latents=len(chosen)).by_latent


def passages(view: ByLatent, sample: Sample, n: int = N_PASSAGES) -> list[list[Passage]]:
    """Of each latent, the `n` rows of the sample with its largest activations, the largest first; one passage a row."""
    place, bounds = _Place(sample), view.indptr.tolist()
    return [_of_latent(place, view, slice(*ends), n) for ends in pairwise(bounds)]


class _Place:
    """Where the evaluated tokens of a sample stand, and which number each place has among them (-1: none)."""

    def __init__(self, sample: Sample) -> None:
        import torch

        self.sample = sample
        self.row, self.position = sample.evaluated.nonzero(as_tuple=True)
        self.number = torch.full(sample.tokens.shape, -1, dtype=torch.int64)
        self.number[self.row, self.position] = torch.arange(len(self.row))

    def window(self, token: int) -> tuple[int, slice]:
        """Row and places around a token, no further than its document reaches there."""
        row, at = int(self.row[token]), int(self.position[token])
        same = (self.sample.document[row] == self.sample.document[row, at]).nonzero().squeeze(1)
        return row, slice(max(int(same[0]), at - BEFORE), min(int(same[-1]), at + AFTER) + 1)


def _of_latent(place: _Place, view: ByLatent, entries: slice, n: int) -> list[Passage]:
    tokens, values = view.tokens[entries], view.values[entries]
    found: dict[int, int] = {}
    for entry in values.argsort(descending=True, stable=True).tolist():
        found.setdefault(int(place.row[tokens[entry]]), int(tokens[entry]))
        if len(found) == n:
            break
    return [_passage(place, tokens, values, peak) for peak in found.values()]


def _passage(place: _Place, tokens: Int[Tensor, " entries"], values: Tensor, peak: int) -> Passage:
    import torch

    row, window = place.window(peak)
    numbers = place.number[row, window]
    entry = torch.searchsorted(tokens, numbers).clamp_max(len(tokens) - 1)
    active = torch.where(tokens[entry] == numbers, values[entry].float(), 0.0)
    document = place.sample.document_ids[int(place.sample.document[row, window.start])]
    at = int(place.position[peak]) - window.start
    return Passage(document, at, place.sample.tokens[row, window].tolist(), active.tolist())


def pieces(decode: Callable[[list[int]], str], ids: Sequence[int]) -> list[str]:
    """The text of each token such that they join to the text of all; a character of several tokens goes to the last.

    Tokens are decoded with all that stands before them, since many tokenizers say only so whether a space is meant.
    """
    texts, done = [], ""
    for stop in range(1, len(ids) + 1):
        whole = decode(list(ids[:stop]))
        unfinished = whole.endswith("\ufffd") and stop < len(ids)
        texts.append("" if unfinished else whole[len(done) :])
        done = done if unfinished else whole
    return texts
