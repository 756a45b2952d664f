"""One labelled set at one site: what every probe of it is made of, each worked out once.

    texts ─ model, once ─► activations of every token ─┬─ mean over the text's tokens ─► x
                                                       └─ SAE ─► codes of every token ─ mean ─► codes

A text is a row of its own, cut to the context; means are over its tokens that are not special, with a boolean mask:
padding, and other texts, are never part of them.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields, replace
from functools import cached_property
from typing import TYPE_CHECKING, Protocol, TypeVar

from saebench_meta.corpus import Sample, Sampling, rows_for
from saebench_meta.labelled_texts import Texts, cut, cut_by_profile, texts_of
from saebench_meta.sae import encoder_key

if TYPE_CHECKING:
    import numpy as np
    from jaxtyping import Bool, Float, Int
    from torch import Tensor

    from saebench_meta.activations import Chunk
    from saebench_meta.codes import Codes
    from saebench_meta.hookspecs import LabelledSet
    from saebench_meta.models import LanguageModel
    from saebench_meta.sae import SAE

C = TypeVar("C")

POOLED_LIMIT = 256 << 20
"""Bytes of pooled codes of a set kept at once; those used longest ago go first."""
ID_LENGTH = 16
"""Characters of a text's hash by which it is known in the sample."""


class Tokens(Protocol):
    """Activations of all tokens of the texts, one text after the other."""

    def __iter__(self) -> Iterator[Chunk]: ...


class Labelled:
    """A labelled set at a site. Texts are numbered from 0, in the order of their hashes.

    Attributes:
        name: such as `atlas:topics`.
        classes: their names.
        label: (texts,) the number of each text's class.
        test: (texts,) whether the text is in the set's test split. The others are to be split into training and
            validation.
        n_tokens: (texts,) evaluated tokens, at least 1.
        ids: (texts,) the beginning of each text's hash.
        dropped: texts left out, by reason.
        content_hash: sha256 over the texts as the model sees them, their labels and their splits.
    """

    def __init__(
        self,
        name: str,
        classes: tuple[str, ...],
        label: Int[np.ndarray, " texts"],
        test: Bool[np.ndarray, " texts"],
        n_tokens: Int[np.ndarray, " texts"],
        activations: Callable[[], Tokens],
        *,
        ids: tuple[str, ...] = (),
        dropped: Mapping[str, int] | None = None,
        content_hash: str = "",
        progress: Callable[[str, int, int], None] | None = None,
    ) -> None:
        """Take the facts of a set, and `activations`, called once when the first tokens are asked for."""
        self.name, self.classes, self.label, self.test, self.n_tokens = name, classes, label, test, n_tokens
        self.ids, self.dropped, self.content_hash = ids, dict(dropped or {}), content_hash
        self._activations, self._progress = activations, progress or (lambda _what, _done, _total: None)
        self._pooled: OrderedDict[tuple[object, ...], tuple[SAE, Codes, Codes]] = OrderedDict()

    @property
    def n_texts(self) -> int:
        return len(self.label)

    @cached_property
    def x(self) -> Float[Tensor, "texts d_in"]:
        """Mean activation of each text over its evaluated tokens, float32; sums are float64."""
        import torch

        parts = []
        for first, end, chunk in self._blocks():
            sums = torch.zeros(end - first, chunk.x.shape[1], dtype=torch.float64, device=chunk.x.device)
            sums.index_add_(0, chunk.document.to(sums.device) - first, chunk.x.double())
            sizes = torch.as_tensor(self.n_tokens[first:end], device=sums.device)
            parts.append((sums / sizes[:, None]).float())
        return torch.cat(parts)

    def codes(self, sae: SAE) -> Codes:
        """Mean code of each text over its evaluated tokens, texts × d_sae; worked out once per SAE."""
        return self._of(sae)[0]

    def scaled_codes(self, sae: SAE) -> Codes:
        """The mean of codes times the token's scale, where the SAE rescales each token; else the same as `codes`.

        `scaled_codes(sae) @ W_dec` is what the latents add to `x`, and so what an ablation of them takes away: the
        part of a latent at a token is `scale · f · w`, and the mean over tokens is linear.
        """
        return self._of(sae)[1]

    def chunks(self, sae: SAE) -> Iterator[tuple[Chunk, Codes]]:
        """Tokens with their codes, whole texts at a time, in order; nothing is kept. `document` numbers the text."""
        for _, end, chunk in self._blocks():
            codes = sae.encode_sparse(chunk.x.to(sae.device))
            self._progress(f"{self.name}: codes of {sae.info.name}", end, self.n_texts)
            yield chunk, codes

    def _of(self, sae: SAE) -> tuple[Codes, Codes]:
        key = encoder_key(sae)
        if key not in self._pooled:
            self._pooled[key] = (sae, *self._pool(sae))
        self._pooled.move_to_end(key)
        while len(self._pooled) > 1 and sum(_nbytes(*pair) for _, *pair in self._pooled.values()) > POOLED_LIMIT:
            self._pooled.popitem(last=False)
        return self._pooled[key][1:]

    def _pool(self, sae: SAE) -> tuple[Codes, Codes]:
        """Pooled codes, plain and times each token's scale, in one pass."""
        from saebench_meta.codes import Codes

        plain, scaled = [], []
        for first, end, chunk in self._blocks():
            x, text = chunk.x.to(sae.device), chunk.document.to(sae.device) - first
            scale = sae.transform(x)[1].scale
            codes = sae.encode_sparse(x)
            plain.append(codes.pool(text, end - first))
            if scale is not None:
                scaled.append(replace(codes, values=codes.values * scale[codes.rows, 0]).pool(text, end - first))
            self._progress(f"{self.name}: codes of {sae.info.name}", end, self.n_texts)
        whole = Codes.cat(plain, n_latents=sae.d_sae)
        return whole, Codes.cat(scaled) if scaled else whole

    @cached_property
    def _tokens(self) -> Tokens:
        return self._activations()

    def _blocks(self) -> Iterator[tuple[int, int, Chunk]]:
        """Chunks of whole texts, with the number of the first text and of the one after the last."""
        held: Chunk | None = None
        for chunk in self._tokens:
            held = chunk if held is None else _joined(held, chunk)
            last = int(held.document[-1])
            if int(held.document[0]) == last:
                continue
            whole = int((held.document < last).sum())
            yield int(held.document[0]), last, _part(held, slice(whole))
            held = _part(held, slice(whole, None))
        if held is not None:
            yield int(held.document[0]), int(held.document[-1]) + 1, held


def labelled_at(
    found: LabelledSet,
    name: str,
    model: LanguageModel,
    sampling: Sampling,
    activations: Callable[[Sample], Tokens],
    *,
    limit: int | None = None,
    by_profile: int | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> Labelled:
    """A labelled set at the site of a model.

    Args:
        sampling: context, BOS and seed of the run; the seed draws the texts of `limit`.
        activations: works out the activations of a sample's evaluated tokens.
        limit: most texts of the set.
        by_profile: without a limit, about how many texts of it are enough.

    Raises:
        BadFileError: the set has one class, or too few texts of one.
        SaebenchError: too few are left of a class under `limit`; or as `rows_for` says.
    """
    import numpy as np

    rows = rows_for(model, sampling)
    texts = texts_of(found, name, model, sampling.context - len(rows.start))
    if limit is not None:
        texts = cut(texts, limit, found.classes, name, sampling.seed)
    elif by_profile is not None:
        texts = cut_by_profile(texts, by_profile, found.classes, name, sampling.seed)
    for i, text in enumerate(texts.kept):
        rows.add(i, list(text.ids))
    ids = tuple(text.digest[:ID_LENGTH] for text in texts.kept)
    sample = replace(rows.sample(), document_ids=ids)
    return Labelled(
        name,
        found.classes,
        np.array([text.label for text in texts.kept]),
        np.array([text.test for text in texts.kept]),
        sample.evaluated.sum(1).numpy(),
        lambda: activations(sample),
        ids=ids,
        dropped=texts.dropped,
        content_hash=_content_hash(sample, texts, found.classes),
        progress=progress,
    )


def _content_hash(sample: Sample, texts: Texts, classes: tuple[str, ...]) -> str:
    facts = [(text.label, text.test) for text in texts.kept]
    return hashlib.sha256(f"{sample.content_hash()} {classes} {facts}".encode()).hexdigest()


def _nbytes(plain: Codes, scaled: Codes) -> int:
    return plain.nbytes + (0 if scaled is plain else scaled.nbytes)


def _joined(first: C, second: C) -> C:
    import torch

    names = [f.name for f in fields(first)]  # type: ignore[arg-type]  # chunks are dataclasses of tensors
    return replace(first, **{n: torch.cat([getattr(first, n), getattr(second, n)]) for n in names})  # type: ignore[type-var]


def _part(chunk: C, tokens: slice) -> C:
    return replace(chunk, **{f.name: getattr(chunk, f.name)[tokens] for f in fields(chunk)})  # type: ignore[type-var,arg-type]
