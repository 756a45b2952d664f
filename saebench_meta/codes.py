"""Sparse codes of a sample: the representation on which almost every task is plain algebra.

`Codes` holds a tokens × latents matrix by rows: row pointers, int32 columns, values. It is our own small class because
torch's CSR tensor lacks slicing, column selection, sums and bfloat16 products. A columns-first view is made once, when
an operation needs it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from jaxtyping import Bool, Float, Int
    from torch import Tensor


DENSE_POOL = 16
"""Codes are pooled in a dense table of at most so many cells an entry: putting entries in order takes longer."""


@dataclass(frozen=True)
class ByLatent:
    """The columns-first view: entries of latent j are `indptr[j]:indptr[j+1]`, ordered by token."""

    indptr: Int[Tensor, " latents_plus_1"]
    tokens: Int[Tensor, " nnz"]
    values: Float[Tensor, " nnz"]


@dataclass(frozen=True, eq=False)
class Codes:
    """Codes of `n_tokens` tokens over `n_latents` latents.

    Attributes:
        indptr: (tokens + 1,) int64; row t's entries are `indptr[t]:indptr[t+1]`.
        cols: (nnz,) int32 latent numbers, ascending within a row.
        values: (nnz,) the non-zero activations.
        n_latents: number of columns.
    """

    indptr: Int[Tensor, " tokens_plus_1"]
    cols: Int[Tensor, " nnz"]
    values: Float[Tensor, " nnz"]
    n_latents: int

    # -- making

    @classmethod
    def from_dense(cls, f: Float[Tensor, "tokens latents"]) -> Codes:
        """From a dense block; keep blocks small, the dense matrix is what this class avoids."""
        return cls.from_places(f, places_of(f != 0))

    @classmethod
    def from_places(cls, f: Float[Tensor, "tokens latents"], places: Int[Tensor, " nnz"]) -> Codes:
        """From the entries of a dense block at some places of its flattened form, which ascend."""
        import torch

        tokens, latents = f.shape
        starts = torch.arange(tokens + 1, device=f.device) * latents
        indptr = torch.searchsorted(places, starts)
        cols = places - torch.repeat_interleave(starts[:-1], indptr.diff())
        return cls(indptr, cols.to(torch.int32), f.reshape(-1)[places], latents)

    @classmethod
    def from_top(cls, values: Float[Tensor, "tokens k"], latents: Int[Tensor, "tokens k"], n_latents: int) -> Codes:
        """From the k largest pre-activations of each token, in any order; those that are not above 0 are left out."""
        import torch

        order = latents.argsort(1)
        latents, values = latents.gather(1, order), values.gather(1, order)
        on = ~(values <= 0)  # a NaN stays a NaN
        indptr = torch.zeros(len(values) + 1, dtype=torch.int64, device=values.device)
        indptr[1:] = on.sum(1).cumsum(0)
        return cls(indptr, latents[on].to(torch.int32), values[on], n_latents)

    @classmethod
    def cat(cls, parts: Sequence[Codes], *, n_latents: int | None = None) -> Codes:
        """Codes of consecutive token chunks, one after the other. All parts have the same latents."""
        import torch

        if not parts:
            if n_latents is None:
                raise ValueError("Codes.cat of nothing needs n_latents")
            empty = torch.zeros(0)
            return cls(torch.zeros(1, dtype=torch.int64), empty.to(torch.int32), empty, n_latents)
        if len({p.n_latents for p in parts}) != 1:
            raise ValueError("Codes.cat: parts have different numbers of latents")
        ends = torch.tensor([p.nnz for p in parts]).cumsum(0).tolist()
        starts = [0, *ends[:-1]]
        indptr = torch.cat([parts[0].indptr[:1], *(p.indptr[1:] + s for p, s in zip(parts, starts, strict=True))])
        return cls(indptr, torch.cat([p.cols for p in parts]), torch.cat([p.values for p in parts]), parts[0].n_latents)

    # -- shape

    @property
    def n_tokens(self) -> int:
        return self.indptr.shape[0] - 1

    @property
    def nnz(self) -> int:
        return self.values.shape[0]

    @property
    def nbytes(self) -> int:
        return sum(t.numel() * t.element_size() for t in (self.indptr, self.cols, self.values))

    @property
    def device(self) -> torch.device:
        return self.values.device

    def to(self, device: str | torch.device) -> Codes:
        return Codes(self.indptr.to(device), self.cols.to(device), self.values.to(device), self.n_latents)

    def __getitem__(self, tokens: slice) -> Codes:
        """A contiguous range of tokens."""
        start, stop, step = tokens.indices(self.n_tokens)
        if step != 1:
            raise ValueError("Codes slices are contiguous: step must be 1")
        stop = max(start, stop)
        indptr = self.indptr[start : stop + 1]
        lo, hi = int(indptr[0]), int(indptr[-1])
        return Codes(indptr - lo, self.cols[lo:hi], self.values[lo:hi], self.n_latents)

    @cached_property
    def rows(self) -> Int[Tensor, " nnz"]:
        """Token number of every entry."""
        import torch

        return torch.repeat_interleave(torch.arange(self.n_tokens, device=self.device), self.indptr.diff())

    @cached_property
    def by_latent(self) -> ByLatent:
        """The columns-first view, made once."""
        import torch

        order = self.cols.argsort(stable=True)
        counts = torch.bincount(self.cols, minlength=self.n_latents)
        indptr = torch.zeros(self.n_latents + 1, dtype=torch.int64, device=self.device)
        indptr[1:] = counts.cumsum(0)
        return ByLatent(indptr, self.rows[order], self.values[order])

    def dense(self) -> Float[Tensor, "tokens latents"]:
        """The dense matrix; for small samples and for tests."""
        import torch

        out = torch.zeros(self.n_tokens, self.n_latents, dtype=self.values.dtype, device=self.device)
        out[self.rows, self.cols.long()] = self.values
        return out

    # -- algebra

    def decode(self, W: Float[Tensor, "latents d"]) -> Float[Tensor, "tokens d"]:
        """`f @ W`: only rows of `W` whose latents are active are read."""
        from torch.nn import functional

        # embedding_bag would read a taller matrix without complaint.
        if W.shape[0] != self.n_latents:
            raise ValueError(f"Codes.decode: the matrix has {W.shape[0]} rows for {self.n_latents} latents")
        if self.nnz == 0:
            return W.new_zeros(self.n_tokens, W.shape[1])
        return functional.embedding_bag(
            self.cols.long(),
            W,
            self.indptr[:-1],
            mode="sum",
            per_sample_weights=self.values.to(W.dtype),
        )

    def dots(
        self, W: Float[Tensor, "latents d"]
    ) -> tuple[Float[Tensor, "tokens d"], Callable[[Float[Tensor, "tokens d"]], Float[Tensor, " nnz"]]]:
        """`f @ W`, and a function that gives for every entry (t, j) the product of row t of a matrix with row j of `W`.

        The products are the gradient of `decode` by the codes' values, so that no row of `W` is copied for them. The
        function can be called once.
        """
        import torch

        values = self.values.detach().to(W.dtype)
        if self.nnz == 0:
            return W.new_zeros(self.n_tokens, W.shape[1]), lambda E: E.new_zeros(0)
        with torch.enable_grad():
            values.requires_grad_()
            decoded = Codes(self.indptr, self.cols, values, self.n_latents).decode(W.detach())
        return decoded.detach(), lambda E: torch.autograd.grad(decoded, values, E)[0]

    def t_matmul(self, E: Float[Tensor, "tokens d"]) -> Float[Tensor, "latents d"]:
        """`fᵀ @ E`: for every latent the sum of its activations times the rows of `E`."""
        from torch.nn import functional

        if E.shape[0] != self.n_tokens:
            raise ValueError(f"Codes.t_matmul: the matrix has {E.shape[0]} rows for {self.n_tokens} tokens")
        if self.nnz == 0:
            return E.new_zeros(self.n_latents, E.shape[1])
        view = self.by_latent
        return functional.embedding_bag(
            view.tokens, E, view.indptr[:-1], mode="sum", per_sample_weights=view.values.to(E.dtype)
        )

    def pool(self, documents: Int[Tensor, " tokens"], n_docs: int) -> Codes:
        """Mean code of every document over its tokens; a document without tokens gets an empty row.

        Args:
            documents: the document number of each token, in [0, n_docs).
        """
        import torch

        if documents.shape[0] != self.n_tokens:
            raise ValueError(f"Codes.pool: {documents.shape[0]} document numbers for {self.n_tokens} tokens")
        # int32 document numbers would overflow here from 2³¹ / n_latents documents on.
        documents = documents.long()
        if self.n_tokens and not 0 <= int(documents.min()) <= int(documents.max()) < n_docs:
            raise ValueError(f"Codes.pool: document numbers must lie in [0, {n_docs})")
        key = documents[self.rows] * self.n_latents + self.cols
        if n_docs * self.n_latents <= DENSE_POOL * self.nnz:
            table = torch.zeros(n_docs * self.n_latents, dtype=torch.float64, device=self.device)
            table.index_add_(0, key, self.values.double())
            unique = places_of(table != 0)
            sums = table[unique]
        else:
            unique, inverse = torch.unique(key, return_inverse=True)
            sums = torch.zeros(unique.shape[0], dtype=torch.float64, device=self.device)
            sums.index_add_(0, inverse, self.values.double())
        doc = torch.div(unique, self.n_latents, rounding_mode="floor")
        sizes = torch.bincount(documents, minlength=n_docs)
        indptr = torch.zeros(n_docs + 1, dtype=torch.int64, device=self.device)
        indptr[1:] = torch.bincount(doc, minlength=n_docs).cumsum(0)
        values = (sums / sizes[doc]).to(self.values.dtype)
        return Codes(indptr, (unique - doc * self.n_latents).to(torch.int32), values, self.n_latents)

    def select(self, latents: Int[Tensor, " chosen"] | Bool[Tensor, " latents"]) -> Codes:
        """The chosen columns, renumbered in the order given (a mask keeps ascending order)."""
        import torch

        mask = latents.dtype == torch.bool
        if mask and latents.shape[0] != self.n_latents:
            raise ValueError(f"Codes.select: the mask has {latents.shape[0]} entries for {self.n_latents} latents")
        chosen = latents.nonzero().squeeze(1) if mask else latents.long()
        if chosen.numel() and not 0 <= int(chosen.min()) <= int(chosen.max()) < self.n_latents:
            raise ValueError(f"Codes.select: latent numbers must lie in [0, {self.n_latents})")
        place = torch.full((self.n_latents,), -1, dtype=torch.int64, device=self.device)
        place[chosen] = torch.arange(chosen.shape[0], device=self.device)
        if int((place >= 0).sum()) != chosen.shape[0]:
            raise ValueError("Codes.select: a latent is chosen twice")
        new = place[self.cols.long()]
        keep = new >= 0
        rows, cols, values = self.rows[keep], new[keep], self.values[keep]
        order = (rows * max(1, chosen.shape[0]) + cols).argsort()
        indptr = torch.zeros_like(self.indptr)
        indptr[1:] = torch.bincount(rows, minlength=self.n_tokens).cumsum(0)
        return Codes(indptr, cols[order].to(torch.int32), values[order], chosen.shape[0])

    # -- statistics

    def l0(self) -> Int[Tensor, " tokens"]:
        """Active latents per token."""
        return self.indptr.diff()

    def counts(self) -> Int[Tensor, " latents"]:
        """Tokens on which each latent is active."""
        import torch

        return torch.bincount(self.cols, minlength=self.n_latents)

    def density(self) -> Float[Tensor, " latents"]:
        """Share of tokens on which each latent is active."""
        return self.counts().double() / max(1, self.n_tokens)

    def sums(self, power: int = 1) -> Float[Tensor, " latents"]:
        """Σ_t f^power of each latent, in float64."""
        import torch

        out = torch.zeros(self.n_latents, dtype=torch.float64, device=self.device)
        return out.index_add_(0, self.cols.long(), self.values.double() ** power)


def places_of(mask: Bool[Tensor, "..."]) -> Int[Tensor, " found"]:
    """Where a mask is true, in its flattened form, ascending."""
    import numpy as np
    import torch

    if mask.device.type != "cpu":
        return mask.reshape(-1).nonzero().squeeze(1)
    return torch.from_numpy(np.flatnonzero(mask.numpy()))  # in a third of the time that torch takes
