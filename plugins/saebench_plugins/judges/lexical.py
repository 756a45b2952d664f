"""The judge `lexical`: counts of tokens and words in place of a language model. Offline, deterministic, quick.

Explanations name the tokens a latent fires on, marked as in passages, and the words that stand near them. Choices go to
the option with the highest TF-IDF cosine with the description. It reads a request's facts, not its prompt, and every
answer is a function of its request alone: document frequencies are counted over the request's own options. What it
scores is what surface statistics give: a floor that a language model must beat.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from itertools import chain, groupby
from typing import TYPE_CHECKING, Any

from saebench_meta.judging import Answer, JudgeLoader, JudgeServices, Request
from saebench_plugins.judges.ties import pick

if TYPE_CHECKING:
    import numpy as np
    from jaxtyping import Float
    from scipy import sparse

MARKED = re.compile(r"«([^«»]*)»")
WORD = re.compile(r"\w+")
PIECE = re.compile(r"\w+|[^\w\s]+|^\s+$")
"""What a run of firing tokens is made of: words, punctuation; white space where it is alone."""
TOKENS, NEAR = 6, 6
"""Tokens and words that an explanation of a latent names at most; one of a meta-latent names twice as many."""
SMALLEST_SHARE = 0.04
"""Tokens with less of a latent's activation are not named, except the first."""
WINDOW = 6
"""Words on either side of a firing one that count as near."""
MARK_WEIGHT = 4
"""A marked token counts as so many words."""
GRAM = 3
"""Letters of the pieces by which words match that are not equal."""
COLUMNS = 2**28
"""Features are hashed, so that no vocabulary depends on what else is asked."""
PROSE_WEIGHT = 2
"""How much more a latent's explanation says of its meta-latent than one of its passages does."""


class LexicalJudge:
    """Answers from `Request.facts`; see `saebench_meta.judging.Judge`."""

    def __init__(self, services: JudgeServices) -> None:
        self._progress = services.progress

    def ask(self, requests: Sequence[Request]) -> list[Answer]:
        choices = [i for i, r in enumerate(requests) if r.options]
        chosen = iter(choose([requests[i] for i in choices]))
        found = [Answer(choice=next(chosen), cost=0.0) if r.options else explain(r) for r in requests]
        self._progress(len(requests), len(requests))
        return found


def make(options: Mapping[str, Any], services: JudgeServices) -> LexicalJudge:  # noqa: ARG001
    return LexicalJudge(services)


LOADER = JudgeLoader(
    make=make, summary="tokens, words and TF-IDF: offline, no model; the floor that a language model must beat"
)


# -- explanations


def explain(request: Request) -> Answer:
    """An explanation of a latent from its passages, or of a meta-latent from its latents.

    An answer's problem is `empty` where nothing fires, `unsupported` where the facts are of another kind.
    """
    if "passages" in request.facts:
        text = latent_line(request.facts["passages"])
    elif "latents" in request.facts:
        text = meta_latent_line(request.facts["latents"])
    else:
        return Answer(problem="unsupported", cost=0.0)
    return Answer(text=text, cost=0.0) if text else Answer(problem="empty", cost=0.0)


def latent_line(passages: Sequence[Mapping[str, Any]]) -> str:
    """Tokens by their share of the activation, then the words that stand near firing ones more than elsewhere.

    Args:
        passages: each with `tokens`, which joined are the text, and as many `activations`, 0 where nothing fires.
    """
    mass: dict[str, float] = defaultdict(float)
    for passage in passages:
        for piece, activation in _fired(passage):
            mass[piece] += activation
    if not mass:
        return ""
    shares = [(token, value / sum(mass.values())) for token, value in _ranked(mass)]
    tokens = [token for i, (token, share) in enumerate(shares[:TOKENS]) if i == 0 or share >= SMALLEST_SHARE]
    return _line(tokens, [word for word in nearby(passages) if word not in tokens][:NEAR])


def nearby(passages: Sequence[Mapping[str, Any]]) -> list[str]:
    """Words near firing ones, those first that stand there often, strongly, and seldom elsewhere.

    A word scores the sum over passages of its nearest activation over its distance, times the number of passages it is
    near in, times the share of its occurrences that are near.
    """
    strength: dict[str, float] = defaultdict(float)
    near: Counter[str] = Counter()
    passages_near: Counter[str] = Counter()
    occurs: Counter[str] = Counter()
    for passage in passages:
        words = _words(passage)
        best: dict[str, float] = {}
        firing = [(i, activation) for i, (_, activation) in enumerate(words) if activation > 0]
        for i, (word, _) in enumerate(words):
            if not _is_content(word):
                continue
            occurs[word] += 1
            reach = [a / max(1, abs(i - j)) for j, a in firing if abs(i - j) <= WINDOW]
            if reach:
                near[word] += 1
                best[word] = max(best.get(word, 0.0), *reach)
        for word, activation in best.items():
            strength[word] += activation
            passages_near[word] += 1
    return [w for w, _ in _ranked({w: s * passages_near[w] * near[w] / occurs[w] for w, s in strength.items()})]


def meta_latent_line(latents: Sequence[Mapping[str, Any]]) -> str:
    """Tokens and words by the number of latents that share them, from their explanations and passages."""
    tokens: Counter[str] = Counter()
    words: Counter[str] = Counter()
    for latent in latents:
        prose, passages = latent["explanation"], latent["passages"]
        for counts, features in ((tokens, _marks), (words, _content)):
            said = set(features(prose))
            counts.update(dict.fromkeys(said, PROSE_WEIGHT))
            counts.update(set(chain.from_iterable(map(features, passages))) - said)
    shown = [token for token, _ in _ranked(tokens)][: 2 * TOKENS]
    return _line(shown, [word for word, _ in _ranked(words) if word not in shown][: 2 * NEAR])


def _line(tokens: Sequence[str], words: Sequence[str]) -> str:
    near = f"near: {', '.join(words)}" if words else ""
    return "; ".join(part for part in (", ".join(f"«{t}»" for t in tokens), near) if part)


def _ranked(scores: Mapping[str, float]) -> list[tuple[str, float]]:
    """The highest first; equal ones by name."""
    return sorted(scores.items(), key=lambda item: (-item[1], item[0]))


# -- choices


def choose(requests: Sequence[Request]) -> list[int]:
    """Index of the option most like the description, for each request; a tie goes by hash (`ties.pick`)."""
    abouts = [description(r) for r in requests]
    picked = []
    for request, about, scores in zip(requests, abouts, similarities(requests, abouts), strict=True):
        best = scores.max()
        picked.append(pick(request, [i for i, score in enumerate(scores) if score == best], about))
    return picked


def description(request: Request) -> str:
    """What the options are compared with; the prompt, where a request has no description among its facts."""
    facts = request.facts
    if "description" in facts:
        return str(facts["description"])
    return "\n".join(facts["descriptions"]) if "descriptions" in facts else request.user


def similarities(requests: Sequence[Request], abouts: Sequence[str]) -> list[Float[np.ndarray, " options"]]:
    """TF-IDF cosine of each request's options with its description, rounded so that equal ones are equal.

    The weight of feature t in a text is `(1 + ln tf) ln((n + 1) / df)`, with n the request's options and df those of
    them that have t; what no option has cannot tell them apart and is left out.
    """
    import numpy as np

    if not requests:
        return []
    sizes = np.array([len(r.options) for r in requests])
    groups = np.repeat(np.arange(len(requests)), sizes)
    option, column, tf = _frequencies([o for r in requests for o in r.options])
    about, about_column, about_tf = _frequencies(abouts)
    keys, place, df = np.unique(groups[option] * COLUMNS + column, return_inverse=True, return_counts=True)
    idf = np.log((sizes[keys // COLUMNS] + 1) / df)
    _, at, of = np.intersect1d(keys, about * COLUMNS + about_column, assume_unique=True, return_indices=True)
    described = np.zeros(len(keys))
    described[at] = about_tf[of] * idf[at]
    weights = tf * idf[place]
    n = len(groups)
    products = np.bincount(option, weights * described[place], n)
    norms = np.sqrt(np.bincount(option, weights**2, n) * np.bincount(keys // COLUMNS, described**2, len(sizes))[groups])
    cosines = np.divide(products, norms, out=np.zeros(n), where=norms > 0).round(9)
    return np.split(cosines, sizes.cumsum()[:-1])


def _frequencies(texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Text, hashed feature and `1 + ln tf` of all features in all texts; equal texts are read once."""
    import numpy as np
    from sklearn.feature_extraction.text import HashingVectorizer

    once, back = np.unique(np.array(texts, dtype=object), return_inverse=True)
    hashing = HashingVectorizer(analyzer=features, n_features=COLUMNS, norm=None, alternate_sign=False)
    counts: sparse.coo_array = hashing.transform(once)[back].tocoo()
    text, feature = counts.coords
    return text.astype(np.int64), feature.astype(np.int64), 1 + np.log(counts.data)


# -- what a text is made of


def features(text: str) -> Iterator[str]:
    """Marked tokens, several times; words of content and their pieces of three letters."""
    for token in _marks(text):
        yield from [f"«{token}»"] * MARK_WEIGHT
    for word in _content(text):
        yield word
        padded = f" {word} "
        yield from (f"~{padded[i : i + GRAM]}" for i in range(len(padded) - GRAM + 1))


def _marks(text: str) -> list[str]:
    return [_key(piece) for run in MARKED.findall(text) for piece in PIECE.findall(run)]


def _content(text: str) -> list[str]:
    """Words outside the language's glue, in lower case; a marked token is read as part of its word."""
    bare = text.replace("«", "").replace("»", "")
    return [word for word in WORD.findall(bare.lower()) if _is_content(word)]


def _key(piece: str) -> str:
    return piece.lower() if piece.strip() else "␣"


def _is_content(word: str) -> bool:
    return word not in _glue() and (len(word) > 1 or not word.isascii())


@lru_cache(maxsize=1)
def _glue() -> frozenset[str]:
    """Words that name nothing, and what the explanations' own form adds."""
    from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS

    return frozenset(ENGLISH_STOP_WORDS) | {"near"}


def _levels(passage: Mapping[str, Any]) -> tuple[str, list[float]]:
    """A passage's text and the activation at each of its characters."""
    pairs = list(zip(passage["tokens"], passage["activations"], strict=True))
    return "".join(passage["tokens"]), [activation for token, activation in pairs for _ in token]


def _words(passage: Mapping[str, Any]) -> list[tuple[str, float]]:
    """Words in lower case, each with the highest activation in it."""
    text, levels = _levels(passage)
    return [(m.group().lower(), max(levels[m.start() : m.end()])) for m in WORD.finditer(text)]


def _fired(passage: Mapping[str, Any]) -> list[tuple[str, float]]:
    """What the firing tokens are made of, as marks have it, each with its highest activation."""
    text, levels = _levels(passage)
    found: list[tuple[str, float]] = []
    start = 0
    for on, run in groupby(levels, key=lambda level: level > 0):
        end = start + len(list(run))
        pieces = PIECE.finditer(text[start:end]) if on else ()
        found.extend((_key(m.group()), max(levels[start + m.start() : start + m.end()])) for m in pieces)
        start = end
    return found
