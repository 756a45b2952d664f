"""Passages: a latent's peaks with what stands around them, and the tokens it fires on marked as «these»."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from jaxtyping import Int

    from saebench_meta.models import LanguageModel
    from saebench_tasks.autointerp.peaks import Peaks

BEFORE = 2 / 3
"""Share of a passage that stands before its peak, where the document has so much."""
UNFINISHED = "�"
"""What tokenizers give for a character of which bytes are missing."""
PLAIN = str.maketrans({"«": "‹", "»": "›", "\n": "↵", "\r": "↵", "\t": " "})
"""Nothing but marks looks like a mark, and a passage is one line."""

Decode = Callable[[Sequence[int]], str]


@dataclass(frozen=True)
class Passage:
    """Consecutive tokens of a document, with the activations of one latent.

    Attributes:
        latent, document: which latent, and the document's number as of `Documents`.
        first: number of the first token.
        tokens: as text, which joined is the text.
        activations: 0 where the latent does not fire.
    """

    latent: int
    document: int
    first: int
    tokens: tuple[str, ...]
    activations: tuple[float, ...]

    @cached_property
    def marked(self) -> str:
        """The text with every run of firing tokens in marks."""
        return "".join(f"«{text}»" if on else text for on, text in self.runs()).strip()

    def runs(self) -> Iterator[tuple[bool, str]]:
        """Runs of firing and of other tokens. White space before a run of firing ones belongs to what precedes."""
        on = [f > 0 for f in self.activations]
        edges = [0, *(i for i in range(1, len(on)) if on[i] != on[i - 1]), len(on)]
        for start, end in pairwise(edges):
            text = "".join(self.tokens[start:end])
            if on[start] and text.strip():
                yield False, text[: len(text) - len(text.lstrip())]
                yield True, text.strip()
                yield False, text[len(text.rstrip()) :]
            else:
                yield on[start], text

    def facts(self) -> dict[str, Any]:
        """As a judge that reads no prose finds it."""
        return {"tokens": list(self.tokens), "activations": list(self.activations)}


class Pieces:
    """Tokens of a text as text: what each adds to those before it, so that the pieces joined are the text.

    A character that several tokens make up is the last one's. Texts of tokens are kept by what they depend on, which is
    little: the token before, and those of an unfinished character.
    """

    def __init__(self, lm: LanguageModel) -> None:
        tokenizer: Any = lm.tokenizer
        self._decode: Decode = (
            (lambda ids: "".join(f" {i}" for i in ids)) if tokenizer is None else lambda ids: str(tokenizer.decode(ids))
        )
        self._known: dict[tuple[int, ...], str] = {}

    def __call__(self, ids: Sequence[int]) -> tuple[str, ...]:
        texts: list[str] = []
        before: tuple[int, ...] = ()
        held: tuple[int, ...] = ()
        for i in ids:
            text = self._added(before, (*held, i))
            if text.endswith(UNFINISHED):
                held = (*held, i)
                texts.append("")
            else:
                before, held = (i,), ()
                texts.append(text.translate(PLAIN))
        return tuple(texts)

    def _added(self, before: tuple[int, ...], ids: tuple[int, ...]) -> str:
        key = (*before, -1, *ids)
        if key not in self._known:
            whole, lead = self._decode([*before, *ids]), self._decode(before) if before else ""
            self._known[key] = whole[len(lead) :] if whole.startswith(lead) else self._decode(ids)
        return self._known[key]


@dataclass(frozen=True, eq=False)
class Quoting:
    """Makes passages of `length` tokens."""

    peaks: Peaks
    pieces: Pieces
    length: int

    def span(self, peak: int) -> tuple[int, int]:
        """First token of a peak's passage and the one after its last; all of them of the peak's document and row."""
        token, stretch = int(self.peaks.token[peak]), self.peaks.documents.stretch
        low, high = (int(np.searchsorted(stretch, stretch[token], side)) for side in ("left", "right"))
        first = max(low, min(token - round(BEFORE * (self.length - 1)), high - self.length))
        return first, min(first + self.length, high)

    def quote(self, latent: int, peak: int) -> Passage:
        """The passage around one of a latent's peaks."""
        first, end = self.span(peak)
        tokens, values = self.peaks.firing(latent)
        own = slice(*np.searchsorted(tokens, [first, end]))
        activations = np.zeros(end - first)
        activations[tokens[own] - first] = values[own]
        docs = self.peaks.documents
        pieces = self.pieces(docs.ids[first:end].tolist())
        return Passage(latent, int(docs.document[first]), first, pieces, tuple(activations.tolist()))

    def silent(self, firing: Int[np.ndarray, " firing"], peak: int) -> bool:
        """Whether a latent that fires on these tokens fires on none of a passage."""
        first, last = np.searchsorted(firing, self.span(peak))
        return bool(first == last)


def to_explain(quoting: Quoting, latent: int, top: int, bins: int, rng: np.random.Generator) -> tuple[Passage, ...]:
    """Passages that a latent is explained from, strongest first.

    Its `top` highest peaks, and of the others, in order of activation and in as many equal parts as there are `bins`,
    one drawn from each.
    """
    peaks = quoting.peaks
    own = peaks.of(latent, explains=True)
    ranked = own[np.argsort(-peaks.value[own], kind="stable")]
    rest = [part for part in np.array_split(ranked[top:], bins) if len(part)] if bins else []
    chosen = [*ranked[:top], *(rng.choice(part) for part in rest)]
    return tuple(quoting.quote(latent, int(peak)) for peak in chosen)
