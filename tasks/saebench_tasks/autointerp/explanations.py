"""Explanations: of latents from passages, of meta-latents from the explanations and passages of latents.

The explanation of a meta-latent may be written from the target's own, which a question on the target then gives away.
So for every target among the latents that one is explained from, there is a second explanation, without the target.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeVar

from saebench_tasks.autointerp import asking

if TYPE_CHECKING:
    from saebench_meta.judging import JudgeDesk, Request
    from saebench_tasks.autointerp.meta import Parts
    from saebench_tasks.autointerp.passages import Passage

K = TypeVar("K")

SHOWN_PASSAGES = 2
"""Passages of each latent, its strongest, that a meta-latent is explained from."""


@dataclass(frozen=True)
class Explanations:
    """The judge's words. What it gave no explanation of is left out.

    Attributes:
        latents: by latent.
        passages: what each latent was explained from.
        meta: by meta-latent.
        without: by meta-latent and target: written without the target, which is among those it is explained from.
        sources: meta-latent -> latents it is explained from.
        asked: explanations asked for.
    """

    latents: Mapping[int, str]
    passages: Mapping[int, Sequence[Passage]]
    meta: Mapping[int, str] = field(default_factory=dict)
    without: Mapping[tuple[int, int], str] = field(default_factory=dict)
    sources: Mapping[int, tuple[int, ...]] = field(default_factory=dict)
    asked: int = 0

    @property
    def missing(self) -> int:
        """Explanations that the judge did not give."""
        return self.asked - len(self.latents) - len(self.meta) - len(self.without)


def of_latents(passages: Mapping[int, Sequence[Passage]], judge: JudgeDesk) -> Explanations:
    """Have latents explained from their passages."""
    requests = {latent: asking.explain_latent(own) for latent, own in passages.items()}
    found = _told(requests, judge, "latents explained")
    return Explanations(found, passages, asked=len(requests))


def with_meta(explained: Explanations, parts: Parts, targets: Iterable[int], judge: JudgeDesk) -> Explanations:
    """Have the meta-latents of the targets explained too, with and without each target."""
    active = {t: parts.active.get(t, ()) for t in targets}
    sources = {
        m: tuple(j for j in parts.listed.get(m, ()) if j in explained.latents)
        for m in sorted({m for own in active.values() for m in own})
    }
    whole = {m: _of_meta(explained, latents) for m, latents in sources.items() if latents}
    rests = {(m, t): tuple(j for j in sources[m] if j != t) for t, own in active.items() for m in own}
    partial = {key: _of_meta(explained, rest) for key, rest in rests.items() if rest and rest != sources[key[0]]}
    return Explanations(
        explained.latents,
        explained.passages,
        _told(whole, judge, "meta-latents explained"),
        _told(partial, judge, "meta-latents explained without one latent"),
        sources,
        explained.asked + len(whole) + len(partial),
    )


def _of_meta(explained: Explanations, latents: Iterable[int]) -> Request:
    shown = [(explained.latents[j], explained.passages[j][:SHOWN_PASSAGES]) for j in latents]
    return asking.explain_meta(shown)


def _told(requests: Mapping[K, Request], judge: JudgeDesk, what: str) -> dict[K, str]:
    """The explanations that there are, each as one line."""
    answers = judge.ask(list(requests.values()), what=what) if requests else []
    lines = {key: " ".join((a.text or "").split()) for key, a in zip(requests, answers, strict=True) if not a.problem}
    return {key: line for key, line in lines.items() if line}
