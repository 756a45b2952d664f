"""Encoding and decoding at a few active latents a token, forward and backward, for training.

    pre   = (x − b_dec) W_encᵀ + b_enc        (tokens, d_sae): the one large product, kept only while it is looked at
    f     = pre at chosen places              (nnz,) values, a `Support` says where
    x_hat = Σ f w_i + b_dec                   sums of decoder rows

No gradient is ever a tokens × d_sae matrix: gradients of `W_enc` and `W_dec` are sums, latent by latent, over the
tokens it is active on. Where an elementwise choice keeps so much that dense products are faster, everything is dense
instead; the results are the same. Values and gradients are in the parameters' precision; with `bfloat16` the large
product alone is not, so it decides which latents are active but not how strongly.

On a GPU nothing here waits for a result: numbers of entries are fixed (k a token) and entries that are not positive are
left for `relu` to clear.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.functional import embedding_bag, linear

from saebench_meta.training.selection import scratch, sizes_fixed, top_per_row

if TYPE_CHECKING:
    from collections.abc import Sequence

    from jaxtyping import Bool, Float, Int
    from torch import Tensor

Choose = "Callable[[Float[Tensor, 'batch d_sae']], Int[Tensor, ' nnz'] | Bool[Tensor, 'batch d_sae']]"
"""Which pre-activations to keep: places in the flattened matrix, by row, or a mask of all where they are many."""


@dataclass(frozen=True)
class Support:
    """Where the entries of sparse codes are, ordered by row.

    Attributes:
        rows, cols: (nnz,) the row (a token, or a part of one) and the latent of each entry.
        starts: (n_rows,) where each row's entries begin.
        d_sae: number of latents.
    """

    rows: Int[Tensor, " nnz"]
    cols: Int[Tensor, " nnz"]
    starts: Int[Tensor, " n_rows"]
    d_sae: int

    @classmethod
    def at(cls, places: Int[Tensor, " nnz"], n_rows: int, d_sae: int) -> Support:
        """Of places in a flattened (n_rows, d_sae) matrix, ordered by row."""
        rows = torch.div(places, d_sae, rounding_mode="floor")
        return cls(rows, places - rows * d_sae, _starts(rows, n_rows), d_sae)

    def cut(self, n: int) -> tuple[Support, Support]:
        """The first n entries and the rest; each of the two must be ordered by row."""
        two = ((self.rows[:n], self.cols[:n]), (self.rows[n:], self.cols[n:]))
        first, rest = (Support(r, c, _starts(r, len(self.starts)), self.d_sae) for r, c in two)
        return first, rest

    def split(self, ends: Sequence[int]) -> Support:
        """Each row in `len(ends)` rows: its latents below `ends[0]`, those from there below `ends[1]`, … Columns must
        ascend within rows, and be below `ends[-1]`."""
        bounds = torch.tensor(list(ends), device=self.cols.device)
        part = self.rows * len(ends) + torch.searchsorted(bounds, self.cols, right=True)
        made = replace(self, rows=part, starts=_starts(part, len(self.starts) * len(ends)))
        made.__dict__["by_latent"] = self.by_latent  # the same, and worked out already
        return made

    @cached_property
    def by_latent(self) -> tuple[Int[Tensor, " nnz"], Int[Tensor, " d_sae"]]:
        """The order of the entries by latent, then row, and where each latent's begin."""
        cols, order = self.cols.to(torch.int32).sort(stable=True)
        return order, _starts(cols, self.d_sae)


def _starts(ascending: Int[Tensor, " nnz"], n: int) -> Int[Tensor, " n"]:
    numbers = torch.arange(n, device=ascending.device, dtype=ascending.dtype)
    return torch.searchsorted(ascending, numbers)


@dataclass(frozen=True)
class Aux:
    """Codes of dead latents, for AuxK: a dense block over `cols`, or values on a support."""

    values: Float[Tensor, "batch dead"] | Float[Tensor, " nnz"]
    cols: Int[Tensor, " dead"] | None = None
    support: Support | None = None


@dataclass(frozen=True)
class Encoded:
    """Pre-activations at the chosen places, with a gradient.

    Attributes:
        values: (nnz,) on `support`; or (batch, d_sae) where that is None, zero where not chosen.
        support: where they are.
        aux: relu of the strongest dead latents, if there are any and they were asked for.
    """

    values: Float[Tensor, " nnz"] | Float[Tensor, "batch d_sae"]
    support: Support | None
    aux: Aux | None = None

    def per_latent(self, of_latents: Float[Tensor, " d_sae"]) -> Tensor:
        """A vector over latents at the entries: what broadcasts against `values`."""
        return of_latents if self.support is None else of_latents.index_select(0, self.support.cols)

    def fired(self, f: Tensor) -> Bool[Tensor, " d_sae"]:
        """Which latents are positive anywhere in `f`, codes laid out as `values`."""
        on = f.detach() > 0
        if self.support is None:
            return on.any(0)
        return torch.zeros(self.support.d_sae, device=f.device).index_add_(0, self.support.cols, on.float()) > 0


def _apply(function: type[torch.autograd.Function], *arguments: Any) -> Any:
    return function.apply(*arguments)  # type: ignore[no-untyped-call]


# -- encoding


def encode(
    x: Float[Tensor, "batch d_in"],
    W_enc: Float[Tensor, "d_sae d_in"],
    b_enc: Float[Tensor, " d_sae"],
    b_dec: Float[Tensor, " d_in"] | None,
    choose: Callable[[Tensor], Tensor],
    *,
    dead: Bool[Tensor, " d_sae"] | None = None,
    k_aux: int = 0,
    bfloat16: bool = False,
) -> Encoded:
    """Pre-activations `(x − b_dec) W_encᵀ + b_enc` at the places that `choose` names; `x` gets no gradient.

    Args:
        b_dec: what is subtracted from x first; None for nothing.
        choose: from all pre-activations (without gradient) to places of the flattened matrix in ascending order of
            rows, or to a mask of all.
        dead: which latents are dead; together with `k_aux` > 0 asks for `Encoded.aux`.
        k_aux: dead latents a token that AuxK uses, at most.
        bfloat16: whether the product that `choose` sees is made in bfloat16.
    """
    shift = torch.zeros_like(x[0]) if b_dec is None else b_dec
    wanted = dead if k_aux > 0 else None
    n_aux = min(k_aux, len(W_enc))
    values, block, support = _apply(_Encode, x.detach(), W_enc, b_enc, shift, choose, wanted, n_aux, bfloat16)
    if support is None or wanted is None:
        return Encoded(values, support)
    if block is not None:
        cols = wanted.nonzero().view(-1)
        return Encoded(values, support, Aux(_strongest_relu(block, n_aux), cols) if len(cols) else None)
    main, rest = support.cut(len(values) - len(x) * n_aux)
    n = len(main.cols)
    return Encoded(values[:n], main, Aux(torch.relu(values[n:]) * wanted.index_select(0, rest.cols), support=rest))


def _strongest_relu(pre: Float[Tensor, "batch dead"], k: int) -> Float[Tensor, "batch dead"]:
    """relu, and zero outside the k largest of each row; only rows with more than k positives need the search."""
    f = torch.relu(pre)
    if f.shape[1] <= k:
        return f
    crowded = ((f.detach() > 0).sum(1) > k).nonzero().view(-1)
    if not len(crowded):
        return f
    some = f.detach()[crowded]
    dropped = torch.ones_like(some, dtype=torch.bool).scatter_(1, some.topk(k, dim=1, sorted=False).indices, False)
    return f.masked_fill(torch.zeros_like(f, dtype=torch.bool).index_copy_(0, crowded, dropped), 0)


class _Encode(torch.autograd.Function):
    """To values at the chosen places, a block of the dead latents' pre-activations, and the support.

    On a GPU there is no block: the `n_aux` strongest dead latents of each row, a fixed number, follow the chosen.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        W_enc: Tensor,
        b_enc: Tensor,
        b_dec: Tensor,
        choose: Callable[[Tensor], Tensor],
        dead: Tensor | None,
        n_aux: int,
        bfloat16: bool,
    ) -> tuple[Tensor, Tensor | None, Support | None]:
        z = x - b_dec
        pre = _product(z, W_enc, b_enc, bfloat16)
        chosen = choose(pre)
        block, cols, support, mask = None, None, None, None
        if chosen.dtype == torch.bool:
            mask, values = chosen, pre.to(x.dtype).masked_fill(~chosen, 0)
        else:
            values = pre.view(-1).take(chosen).to(x.dtype)
            if dead is not None and sizes_fixed(x):
                also = top_per_row(pre.masked_fill_(~dead, -math.inf), n_aux)
                chosen, values = torch.cat([chosen, also]), torch.cat([values, pre.view(-1).take(also).to(x.dtype)])
            elif dead is not None:
                cols = dead.nonzero().view(-1)
                block = pre.index_select(1, cols).to(x.dtype)
            support = Support.at(chosen, len(x), len(W_enc))
            if bfloat16:
                values = _sums_and_dots(support, z, torch.ones_like(values), W_enc)[1] + b_enc.index_select(
                    0, support.cols
                )
        ctx.save_for_backward(W_enc, z, cols, mask)
        ctx.support = support
        return values, block, support

    @staticmethod
    def backward(ctx: Any, g: Tensor, g_block: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
        W_enc, z, cols, mask = ctx.saved_tensors
        if mask is not None:
            g = g.masked_fill(~mask, 0)
            d_W, d_b = g.T @ z, g.sum(0)
        else:
            d_W = _sums(ctx.support, z, g)
            d_b = torch.zeros_like(W_enc[:, 0]).index_add_(0, ctx.support.cols, g)
        if cols is not None and g_block is not None:
            d_W.index_add_(0, cols, g_block.T @ z)
            d_b.index_add_(0, cols, g_block.sum(0))
        return None, d_W, d_b, -(d_b @ W_enc), None, None, None, None


def _product(z: Tensor, W_enc: Tensor, b_enc: Tensor, bfloat16: bool) -> Tensor:
    if bfloat16:
        return linear(z.bfloat16(), W_enc.bfloat16(), b_enc.bfloat16())
    if z.is_cuda:
        return linear(z, W_enc, b_enc)
    return torch.addmm(b_enc, z, W_enc.T, out=scratch("pre", (len(z), len(W_enc)), z.dtype))


# -- decoding


def decode(
    f: Tensor, support: Support | None, W_dec: Float[Tensor, "d_sae d_in"], b_dec: Float[Tensor, " d_in"] | None = None
) -> Float[Tensor, "n_rows d_in"]:
    """`f W_dec + b_dec` for codes f laid out as `Encoded.values` on a support."""
    return decode_both(f, support, W_dec, b_dec, None)[0]


def decode_both(
    f: Tensor,
    support: Support | None,
    W_dec: Float[Tensor, "d_sae d_in"],
    b_dec: Float[Tensor, " d_in"] | None,
    aux: Aux | None,
) -> tuple[Float[Tensor, "n_rows d_in"], Float[Tensor, "batch d_in"] | None]:
    """`x_hat = f W_dec + b_dec`, and what the dead latents of AuxK add up to, `e_hat = f_aux W_dec`."""
    cols, block = (None, None) if aux is None or aux.cols is None else (aux.cols, aux.values)
    if support is None:
        x_hat, e_hat = f @ W_dec, None if block is None else block @ W_dec[cols]
    else:
        x_hat, e_hat = _apply(_Decode, f, W_dec, support, block, cols)
    if aux is not None and aux.support is not None:
        e_hat = decode(aux.values, aux.support, W_dec)
    return x_hat if b_dec is None else x_hat + b_dec, e_hat


class _Decode(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, f: Tensor, W_dec: Tensor, support: Support, block: Tensor | None, cols: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        ctx.save_for_backward(f, W_dec, block, cols)
        ctx.support = support
        x_hat = embedding_bag(support.cols, W_dec, support.starts, mode="sum", per_sample_weights=f)
        return x_hat, None if block is None else block @ W_dec[cols]

    @staticmethod
    def backward(ctx: Any, g: Tensor, g_aux: Tensor | None) -> tuple[Tensor | None, ...]:
        f, W_dec, block, cols = ctx.saved_tensors
        if ctx.needs_input_grad[0]:
            d_W, d_f = _sums_and_dots(ctx.support, g, f, W_dec)
        else:  # codes of a frozen encoder
            d_W, d_f = _sums(ctx.support, g, f), None
        d_block = None
        if block is not None and g_aux is not None:
            d_W.index_add_(0, cols, block.T @ g_aux)
            d_block = g_aux @ W_dec[cols].T
        return d_f, d_W, None, d_block, None


# -- sums over the entries of each latent


def _sums(support: Support, source: Float[Tensor, "n_rows d"], weights: Float[Tensor, " nnz"]) -> Float[Tensor, "F d"]:
    """Σ weight · source[row] over each latent's entries."""
    order, starts = support.by_latent
    rows, weights = support.rows.index_select(0, order), weights.index_select(0, order)
    return embedding_bag(rows, source, starts, mode="sum", per_sample_weights=weights)


def _sums_and_dots(
    support: Support, source: Float[Tensor, "n_rows d"], weights: Float[Tensor, " nnz"], along: Float[Tensor, "F d"]
) -> tuple[Float[Tensor, "F d"], Float[Tensor, " nnz"]]:
    """The sums, and at each entry ⟨source[row], along[latent]⟩: the gradient of ⟨sums, along⟩ in the weights."""
    with torch.enable_grad():
        weights = weights.detach().requires_grad_()
        sums = _sums(support, source.detach(), weights)
        (dots,) = torch.autograd.grad(sums, weights, along.detach())
    return sums.detach(), dots
