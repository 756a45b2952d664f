"""The questions: which of five is it? One option is the target's, the others are of latents drawn at random.

A target's options are drawn once, in one order, whatever the judge is told of it: its own explanation or that of
another target, its meta-latents' explanations as they are, without the target, or another target's. So the scores are
paired, and what is told is all that differs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from saebench_meta.judging import Answer
from saebench_tasks.autointerp import asking

if TYPE_CHECKING:
    from jaxtyping import Bool, Int

    from saebench_meta.judging import JudgeDesk, Request
    from saebench_tasks.autointerp.explanations import Explanations
    from saebench_tasks.autointerp.meta import Parts
    from saebench_tasks.autointerp.passages import Quoting

LATENT, LATENT_SHUFFLED = "latent", "latent_shuffled"
META, META_LEFT_OUT, META_SHUFFLED = "meta", "meta_left_out", "meta_shuffled"
LATENT_KINDS, META_KINDS = (LATENT, LATENT_SHUFFLED), (META, META_LEFT_OUT, META_SHUFFLED)

RIGHT, WRONG, UNANSWERED = "right", "wrong", "unanswered"
NO_EXPLANATION = "no explanation"
"""The problem of a question that could not be asked since the judge has not explained what it needs."""
TOO_FEW, NO_OPTION = "too few other latents", "(none)"
SPARES = 8
"""Other latents drawn beyond those that are needed, in case that one has no explanation."""
PASSES = 10


@dataclass(frozen=True)
class Drawn:
    """What a target's questions are made from.

    Attributes:
        others: other latents in the order drawn: the first that are fit become options.
        peaks: of the target and the others, the peak whose passage stands for it.
        place: where among the options the right one stands.
    """

    target: int
    others: tuple[int, ...]
    peaks: Mapping[int, int]
    place: int

    def options(self, fit: Mapping[int, object], n_options: int) -> tuple[int, ...]:
        """The latents to choose from, those without a place in `fit` passed over; empty where they are too few."""
        others = [j for j in self.others if j in fit][: n_options - 1]
        full = self.target in fit and len(others) == n_options - 1
        return (*others[: self.place], self.target, *others[self.place :]) if full else ()


def draw(
    target: int, pool: Int[np.ndarray, " latents"], quoting: Quoting, n_options: int, rng: np.random.Generator
) -> Drawn:
    """Other latents for a target, and a passage of each: one that the target does not fire in."""
    peaks = quoting.peaks
    firing, _ = peaks.firing(target)
    chosen = {target: int(rng.choice(peaks.of(target, explains=False)))}
    place = int(rng.integers(n_options))
    for other in rng.permutation(pool).tolist():
        if len(chosen) == n_options + SPARES:
            break
        own = rng.permutation(peaks.of(other, explains=False)).tolist() if other != target else []
        silent = next((peak for peak in own if quoting.silent(firing, peak)), None)
        if silent is not None:
            chosen[other] = silent
    return Drawn(target, tuple(chosen)[1:], chosen, place)


def exchanged(drawn: Sequence[Drawn], rng: np.random.Generator) -> dict[int, int]:
    """For every target another one, whose description is put in place of its own: the shuffled control.

    Each is given once, and to no target that has it among its options. What is told is then as far from the right
    option as from the others, so that nothing but chance is left. A target for which none was found is left out.
    """
    targets = [d.target for d in drawn]
    forbidden = np.array([[t in d.peaks for t in targets] for d in drawn]).reshape(len(drawn), len(drawn))
    order = deranged(forbidden, rng)
    return {t: targets[source] for t, source in zip(targets, order, strict=True) if source >= 0}


def deranged(forbidden: Bool[np.ndarray, "rows rows"], rng: np.random.Generator) -> Int[np.ndarray, " rows"]:
    """A random permutation that avoids what is forbidden; −1 for rows where it could not."""
    n = len(forbidden)
    order, every = rng.permutation(n), np.arange(n)
    for _ in range(PASSES):
        for i in np.flatnonzero(forbidden[every, order]):
            if len(free := np.flatnonzero(~forbidden[i, order] & ~forbidden[every, order[i]])):
                j = rng.choice(free)
                order[i], order[j] = order[j], order[i]
    return np.where(forbidden[every, order], -1, order)


@dataclass(frozen=True)
class Question:
    """One question on a target.

    Attributes:
        source: the target whose description is given: itself, or another in a shuffled question.
        descriptions: what the judge is told.
        latents: whose the options are.
        options: their texts.
        problem: why it could not be asked; there is then no request.
    """

    kind: str
    target: int
    source: int
    right: int
    descriptions: tuple[str, ...]
    latents: tuple[int, ...]
    options: tuple[str, ...]
    request: Request | None = None
    problem: str | None = None


@dataclass(frozen=True)
class Outcome:
    """A question with its answer."""

    question: Question
    answer: Answer

    @property
    def verdict(self) -> str:
        if self.answer.choice is None or self.answer.problem:
            return UNANSWERED
        return RIGHT if self.answer.choice == self.question.right else WRONG


@dataclass(frozen=True, eq=False)
class Asking:
    """Makes all questions on a dictionary."""

    drawn: Sequence[Drawn]
    explained: Explanations
    quoting: Quoting
    n_options: int

    def of_latents(self, swap: Mapping[int, int]) -> Iterator[Question]:
        """Which of these passages is of the latent that is described? And the same with another's description."""
        told = {t: (text,) for t, text in self.explained.latents.items()}
        for d in self.drawn:
            latents = d.options(d.peaks, self.n_options)
            texts = [self.quoting.quote(j, d.peaks[j]).marked for j in latents]
            yield self._question(LATENT, d, d.target, told, latents, texts)
            if d.target in swap:
                yield self._question(LATENT_SHUFFLED, d, swap[d.target], told, latents, texts)

    def of_meta(self, parts: Parts, swap: Mapping[int, int]) -> Iterator[Question]:
        """Of which of these latents are the meta-latents that are described? As they are, without it, another's."""
        known = self.explained.latents
        whole = {d.target: self.told(d.target, parts, without=False) for d in self.drawn}
        rest = {d.target: self.told(d.target, parts, without=True) for d in self.drawn}
        for d in self.drawn:
            latents = d.options(known, self.n_options)
            texts = [known[j] for j in latents]
            for kind, told in ((META, whole), (META_LEFT_OUT, rest)):
                if told[d.target] is not None:
                    yield self._question(kind, d, d.target, told, latents, texts)
            if d.target in swap:
                yield self._question(META_SHUFFLED, d, swap[d.target], whole, latents, texts)

    def told(self, target: int, parts: Parts, *, without: bool) -> tuple[str, ...] | None:
        """Explanations of a target's meta-latents; None where none is active on it, or on another latent besides."""
        e, found, nothing = self.explained, [], True
        for m in parts.active.get(target, ()):
            listed = set(parts.listed.get(m, ()))
            if listed - {target} if without else listed:
                nothing = False
                own = without and target in e.sources[m]
                found.append(e.without.get((m, target)) if own else e.meta.get(m))
        return None if nothing else tuple(text for text in found if text is not None)

    def _question(
        self,
        kind: str,
        d: Drawn,
        source: int,
        told: Mapping[int, tuple[str, ...] | None],
        latents: tuple[int, ...],
        texts: Sequence[str],
    ) -> Question:
        descriptions = told.get(source) or ()
        options = tuple(texts) or (NO_OPTION,) * self.n_options
        problem = None if latents and descriptions else NO_EXPLANATION
        if len(d.others) < self.n_options - 1:
            problem = TOO_FEW
        request = None
        if problem is None and kind in LATENT_KINDS:
            request = asking.choose_latent(descriptions[0], options)
        elif problem is None:
            request = asking.choose_meta(descriptions, options)
        return Question(kind, d.target, source, d.place, descriptions, latents, options, request, problem)


def answered(questions: Sequence[Question], judge: JudgeDesk) -> list[Outcome]:
    """Ask all that can be asked, at once."""
    requests = [q.request for q in questions if q.request is not None]
    answers = iter(judge.ask(requests, what="questions answered") if requests else [])
    return [Outcome(q, Answer(problem=q.problem) if q.request is None else next(answers)) for q in questions]
