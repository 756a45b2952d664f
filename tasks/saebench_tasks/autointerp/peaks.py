"""Where every latent fires: in each document its strongest token, and which latents can be asked about.

A seeded hash of its id puts a document into one of two halves: passages of the first are what latents are explained
from, passages of the second what questions are made of. So no document is on both sides, for whichever latent.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from saebench_meta import seeds

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int

    from saebench_meta.codes import Codes
    from saebench_meta.context import Context
    from saebench_meta.corpus import Sample
    from saebench_meta.sae import SAE

DEAD, DENSE, RARE, ASKABLE = "dead", "dense", "too rare", "can be asked about"


@dataclass(frozen=True, eq=False)
class Documents:
    """The sample's evaluated tokens, in the order of the codes.

    Attributes:
        ids: token ids.
        stretch: number of the row and document each token stands in; what is shown around a token has its stretch.
        document: number of the document in an order drawn by the seed, which the order of the corpus does not change.
        explains: by that number, whether passages of a document are for explaining; those of others are for questions.
        names: by that number, the document's id.
    """

    ids: Int[np.ndarray, " tokens"]
    stretch: Int[np.ndarray, " tokens"]
    document: Int[np.ndarray, " tokens"]
    explains: Bool[np.ndarray, " docs"]
    names: tuple[str, ...]


def documents_of(sample: Sample, seed: int) -> Documents:
    """Tokens with their documents, in an order and in halves of the seed's choice."""
    row, position = sample.evaluated.nonzero(as_tuple=True)
    own = sample.document[row, position].long().numpy()
    drawn = np.array([seeds.derive(seed, "autointerp", "document", name) for name in sample.document_ids])
    order = np.argsort(drawn, kind="stable")
    place = np.empty_like(order)
    place[order] = np.arange(len(order))
    starts = np.diff(row.numpy(), prepend=-1).astype(bool) | np.diff(own, prepend=-1).astype(bool)
    return Documents(
        ids=sample.tokens[row, position].numpy(),
        stretch=starts.cumsum(),
        document=place[own],
        explains=drawn[order] % 2 == 0,
        names=tuple(sample.document_ids[i] for i in order),
    )


@dataclass(frozen=True, eq=False)
class Peaks:
    """Of every latent, a peak in each document it fires in: the strongest token there, the first of equals.

    Attributes:
        indptr: peaks of latent j are `indptr[j]:indptr[j+1]`, by number of their document.
        token: which token.
        value: its activation.
        counts: tokens each latent fires on.
    """

    documents: Documents
    codes: Codes
    indptr: Int[np.ndarray, " latents_plus_1"]
    token: Int[np.ndarray, " peaks"]
    value: Float[np.ndarray, " peaks"]
    counts: Int[np.ndarray, " latents"]

    @property
    def n_latents(self) -> int:
        return len(self.counts)

    @property
    def density(self) -> Float[np.ndarray, " latents"]:
        """Share of tokens each latent fires on."""
        density: np.ndarray = self.counts / max(1, len(self.documents.ids))
        return density

    def of(self, latent: int, explains: bool) -> Int[np.ndarray, " peaks"]:
        """Numbers of a latent's peaks in the half that explains, or in the other."""
        own = np.arange(self.indptr[latent], self.indptr[latent + 1])
        docs = self.documents
        chosen: np.ndarray = own[docs.explains[docs.document[self.token[own]]] == explains]
        return chosen

    def firing(self, latent: int) -> tuple[Int[np.ndarray, " firing"], Float[np.ndarray, " firing"]]:
        """Tokens that a latent fires on, ascending, and its activations there."""
        view = self.codes.by_latent
        start, end = int(view.indptr[latent]), int(view.indptr[latent + 1])
        return view.tokens[start:end].cpu().numpy(), view.values[start:end].double().cpu().numpy()

    def per_half(self) -> tuple[Int[np.ndarray, " latents"], Int[np.ndarray, " latents"]]:
        """In how many documents of each half every latent fires."""
        docs = self.documents
        explains = docs.explains[docs.document[self.token]]
        first = np.add.reduceat(np.append(explains, False).astype(np.int64), self.indptr[:-1])
        every = np.diff(self.indptr)
        first[every == 0] = 0
        return first, every - first


def peaks_of(sae: SAE, ctx: Context, documents: Documents) -> Peaks:
    """The peaks of all latents, from codes of the whole sample."""
    codes = ctx.codes(sae)
    view = codes.by_latent
    token, value = view.tokens.cpu().numpy(), view.values.float().cpu().numpy()
    counts = np.diff(view.indptr.cpu().numpy())
    latent = np.repeat(np.arange(codes.n_latents), counts)
    # Tokens of a document follow one another, so that a latent's entries in it do.
    new = np.diff(latent, prepend=-1).astype(bool) | np.diff(documents.document[token], prepend=-1).astype(bool)
    starts = np.flatnonzero(new)
    if not len(starts):
        nothing = np.zeros(0, dtype=np.int64)
        return Peaks(documents, codes, np.zeros(codes.n_latents + 1, np.int64), nothing, nothing.astype(float), counts)
    run = new.cumsum() - 1
    highest = np.flatnonzero(value == np.maximum.reduceat(value, starts)[run])
    at = highest[np.unique(run[highest], return_index=True)[1]]
    at = at[np.lexsort((documents.document[token[at]], latent[at]))]
    indptr = np.append(0, np.bincount(latent[at], minlength=codes.n_latents).cumsum())
    return Peaks(documents, codes, indptr, token[at], value[at].astype(np.float64), counts)


def kinds(peaks: Peaks, dense: float, fewest: int) -> Int[np.ndarray, " latents"]:
    """Of every latent, why it cannot be asked about, or that it can: `DEAD`, `DENSE`, `RARE` or `ASKABLE`.

    Args:
        dense: a latent that fires on a larger share of tokens is dense.
        fewest: documents of either half that a latent must fire in.
    """
    explaining, asking = peaks.per_half()
    tests = [peaks.counts == 0, peaks.density > dense, np.minimum(explaining, asking) < fewest]
    found: np.ndarray = np.select(tests, [DEAD, DENSE, RARE], ASKABLE)
    return found
