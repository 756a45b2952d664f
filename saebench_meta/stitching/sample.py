"""A pair of SAEs on one sample: activations and both sets of codes, chunk by chunk, in the units of activations.

Where the SAEs' input transform rescales each token by s_t, activations, codes and (through `scale`) biases are taken
times s_t, so that every squared error is that of the activations themselves and everything stays linear::

    x'_t = s_t z_t      f'_t = s_t f_t      residual = x'_t − Σ_j f'_tj w_j − s_t b
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from saebench_meta.errors import SaebenchError

if TYPE_CHECKING:
    import torch
    from jaxtyping import Float, Int
    from torch import Tensor

    from saebench_meta.codes import Codes
    from saebench_meta.context import Context
    from saebench_meta.sae import SAE
    from saebench_meta.task import Pair

GROUPS = 64
"""Documents are put into at most so many groups of consecutive ones: what intervals are resampled over."""
CHUNK_TOKENS = 8192
DOUBLE_ROWS = 1024
"""Rows of a dictionary taken to float64 at a time."""
BLOCK_ELEMENTS = {"cpu": 2**18, "cuda": 2**26}
"""Tokens × d_in worked on at a time: on a CPU they then stay in its cache."""


@dataclass(frozen=True, eq=False)
class PairChunk:
    """Some consecutive tokens.

    Attributes:
        x: activations in the SAEs' input space times `scale`.
        scale: s_t, what the input transform divided each token by; None where it divides by nothing.
        old, new: codes of S0 and of S1, times `scale`.
        document: number of each token's document.
    """

    x: Float[Tensor, "tokens d_in"]
    scale: Float[Tensor, " tokens"] | None
    old: Codes
    new: Codes
    document: Int[Tensor, " tokens"]


class PairSample:
    """Iterate over it for chunks, as often as wanted.

    Attributes:
        pair: S1 (`sae`) and S0 (`reference`).
        n_tokens, n_docs, d_in: size of the sample.
    """

    def __init__(self, pair: Pair, ctx: Context) -> None:
        activations = ctx.activations()
        self.pair, self.n_tokens, self.n_docs = pair, activations.n_tokens, activations.n_docs
        self.d_in = pair.sae.d_in

        def chunks() -> Iterator[PairChunk]:
            both = zip(ctx.code_chunks(pair.reference), ctx.code_chunks(pair.sae), strict=True)
            for (chunk, old), (_, new) in both:
                yield _chunk(pair, chunk.x.to(pair.sae.device), old, new, chunk.document)

        self._chunks: Callable[[], Iterator[PairChunk]] = chunks

    @classmethod
    def of(
        cls, pair: Pair, x: Float[Tensor, "tokens d_in"], document: Int[Tensor, " tokens"], *, chunk: int = CHUNK_TOKENS
    ) -> PairSample:
        """Of activations at hand, without a run; codes are worked out once."""
        made = cls.__new__(cls)
        made.pair, made.n_tokens, made.d_in = pair, len(x), pair.sae.d_in
        made.n_docs = int(document.max()) + 1 if len(x) else 0
        x = x.to(pair.sae.device, pair.sae.dtype)
        parts = [x[i : i + chunk] for i in range(0, len(x), chunk)]
        codes = [(pair.reference.encode_sparse(part), pair.sae.encode_sparse(part)) for part in parts]

        def chunks() -> Iterator[PairChunk]:
            for i, (part, (old, new)) in enumerate(zip(parts, codes, strict=True)):
                yield _chunk(pair, part, old, new, document[i * chunk : i * chunk + len(part)])

        made._chunks = chunks
        return made

    def __iter__(self) -> Iterator[PairChunk]:
        return self._chunks()

    def blocks(self, elements: int | None = None) -> Iterator[PairChunk]:
        """The chunks cut into blocks of so many tokens × d_in."""
        for chunk in self:
            size = elements or BLOCK_ELEMENTS["cuda" if chunk.x.is_cuda else "cpu"]
            rows = max(1, size // self.d_in)
            for start in range(0, len(chunk.x), rows):
                part = slice(start, start + rows)
                scale = None if chunk.scale is None else chunk.scale[part]
                yield PairChunk(chunk.x[part], scale, chunk.old[part], chunk.new[part], chunk.document[part])

    @property
    def elements(self) -> int:
        """Tokens × dimensions: what an MSE is a mean over."""
        return self.n_tokens * self.d_in

    @property
    def n_groups(self) -> int:
        """Groups of documents."""
        return max(1, min(GROUPS, self.n_docs))

    def group(self, chunk: PairChunk) -> Int[Tensor, " tokens"]:
        """The group of each token's document."""
        document = chunk.document.to(chunk.x.device).long()
        return document * self.n_groups // max(1, self.n_docs)


def _chunk(pair: Pair, x: Tensor, old: Codes, new: Codes, document: Tensor) -> PairChunk:
    z, stats = pair.sae.transform(x)
    if stats.scale is None:
        return PairChunk(z, None, old, new, document)
    scale = stats.scale.squeeze(1)
    old, new = (replace(c, values=c.values * scale[c.rows]) for c in (old, new))
    return PairChunk(z * stats.scale, scale, old, new, document)


def residual(chunk: PairChunk, decoded: Float[Tensor, "tokens d_in"], b_dec: Tensor) -> Float[Tensor, "tokens d_in"]:
    """x − x̂ of a chunk, given Σ f w of its tokens."""
    b = b_dec.to(chunk.x)
    e = chunk.x - (b if chunk.scale is None else chunk.scale[:, None] * b)
    return e.sub_(decoded)


def times(values: Tensor, scale: Tensor | None, at: Tensor | None = None) -> Tensor:
    """Values of tokens, or of entries at the tokens `at`, times the scale of their tokens."""
    if scale is None:
        return values
    return values * (scale if at is None else scale[at]).to(values)


def check_same_space(task: str, sae: SAE, reference: SAE) -> None:
    """Refuse SAEs whose directions do not live in one space.

    Raises:
        SaebenchError: they differ in model, revision, hook, width or input transform.
    """
    one, other = sae.info, reference.info
    compared = {
        "model": (one.site.model, other.site.model),
        "hook": (one.site.hook, other.site.hook),
        "model revision": (one.site.revision, other.site.revision),
        "width d_in": (one.d_in, other.d_in),
        "input transform": (one.input_transform, other.input_transform),
    }
    if wrong := [f"{what} ({a} and {b})" for what, (a, b) in compared.items() if a != b]:
        raise SaebenchError(
            f"{task}: '{one.name}' and its reference '{other.name}' differ in {', '.join(wrong)}, so their "
            "decoder directions cannot be compared. Give a --reference trained at the same site."
        )


def stacked(pair: Pair) -> Float[torch.Tensor, "F0_plus_F1 d_in"]:
    """Decoder rows of S0, then those of S1."""
    import torch

    return torch.cat([pair.reference.W_dec, pair.sae.W_dec])


def squared_norms(W: Float[Tensor, "rows d_in"]) -> Float[Tensor, " rows"]:
    """‖w‖² of every row in float64."""
    import torch

    return torch.cat([part.double().square().sum(1) for part in torch.split(W, DOUBLE_ROWS)])


def products(W: Float[Tensor, "rows d_in"], v: Float[Tensor, " d_in"]) -> Float[Tensor, " rows"]:
    """w·v of every row in float64."""
    import torch

    return torch.cat([part.double() @ v for part in torch.split(W, DOUBLE_ROWS)])
