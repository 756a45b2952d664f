"""Where a unit's questions to its judge are handed in: asked once each, checked, counted and shown.

`SeatedJudge` is the judge of a run, made when it is first asked; `Desk` is what `ctx.judge()` gives one unit.
"""

from __future__ import annotations

import operator
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any, TypeVar

from saebench_meta.errors import PluginError
from saebench_meta.judging import Answer, JudgeServices, Request
from saebench_meta.record import JudgeUsed, canonical_hash

if TYPE_CHECKING:
    from collections.abc import Mapping

    from saebench_meta.judges import ResolvedJudge
    from saebench_meta.session import Session

N = TypeVar("N", int, float)


class SeatedJudge:
    """The judge of a run with what it is given: made once, asked by every unit, closed at the end."""

    def __init__(self, session: Session, resolved: ResolvedJudge) -> None:
        from saebench_meta.cache import default_root
        from saebench_meta.judge_cache import FILE, FOLDER, AnswerCache
        from saebench_meta.purse import Purse

        settings = session.settings
        self.session, self.resolved = session, resolved
        # Kept with --no-cache too: answers cost money or hours, and a stopped run goes on from them.
        self._cache = AnswerCache((settings.cache_dir or default_root()) / FOLDER / FILE, session.warn_once)
        self._what = "requests"
        services = JudgeServices(
            self._cache, Purse(settings.max_cost), self._progress, session.warn_once, device=str(session.device)
        )
        self._judge = resolved.loader.make(resolved.options, services)

    def _progress(self, done: int, total: int) -> None:
        self.session.progress(self._what, done, total)

    def ask(self, requests: Sequence[Request], what: str) -> list[Answer]:
        """One answer a request, in order, each of the form that the contract asks for.

        Raises:
            PluginError: the judge breaks the contract.
            SaebenchError: it cannot go on.
        """
        self._what = what
        self._progress(0, len(requests))
        given = self._judge.ask(requests)
        self._progress(len(requests), len(requests))
        if not isinstance(given, Sequence) or len(given) != len(requests):
            said = f"{len(given)} answers" if isinstance(given, Sequence) else f"a {type(given).__name__}"
            raise self._broken(f"gave {said} to {len(requests)} requests")
        return [self._checked(request, answer) for request, answer in zip(requests, given, strict=True)]

    def _checked(self, request: Request, answer: Any) -> Answer:
        if not isinstance(answer, Answer):
            raise self._broken(f"answered '{request.purpose}' with a {type(answer).__name__}, expected an Answer")
        if answer.problem is not None:
            if answer.choice is not None:
                raise self._broken(f"answered '{request.purpose}' with a choice and a problem, '{answer.problem}'")
            return answer
        if answer.choice is not None:
            return replace(answer, choice=self._choice(request, answer.choice))
        if answer.text is None:
            return replace(answer, problem="empty")
        return replace(answer, problem="malformed") if request.options else answer

    def _choice(self, request: Request, choice: Any) -> int:
        number = None if isinstance(choice, bool) or not hasattr(choice, "__index__") else operator.index(choice)
        if number is None or not 0 <= number < len(request.options):
            raise self._broken(f"chose {choice!r} of {len(request.options)} options (they are numbered from 0)")
        return number

    def _broken(self, what: str) -> PluginError:
        return PluginError(f"plugin '{self.resolved.plugin}': judge '{self.resolved.name}' {what}")

    def close(self) -> None:
        """Let go of what the judge holds, if it says how, and of the answers kept on disk."""
        try:
            if (close := getattr(self._judge, "close", None)) is not None:
                close()
        finally:
            self._cache.close()


def seated(session: Session, resolved: ResolvedJudge) -> SeatedJudge:
    """The judge of a run, made when it is first asked for."""
    if session.seated is None:
        session.seated = SeatedJudge(session, resolved)
    return session.seated


class Desk:
    """The judge for one unit and its controls; implements `saebench_meta.judging.JudgeDesk`.

    Attributes:
        control: what the unit is run on at the moment, for the progress display; None for the subject itself.
    """

    def __init__(self, seated: SeatedJudge, prompts: Mapping[str, str]) -> None:
        self._seated, self._prompts = seated, prompts
        self._answers: dict[str, Answer] = {}
        self._seconds = 0.0
        self.control: str | None = None

    @property
    def name(self) -> str:
        return self._seated.resolved.name

    def ask(self, requests: Sequence[Request], what: str = "requests") -> list[Answer]:
        keys = [_key(request) for request in requests]
        new = {k: r for k, r in zip(keys, requests, strict=True) if k not in self._answers}
        if new:
            started = time.perf_counter()
            try:
                shown = what if self.control is None else f"{what}, control {self.control}"
                answers = self._seated.ask(list(new.values()), shown)
            finally:
                self._seconds += time.perf_counter() - started
            self._answers.update(zip(new, answers, strict=True))
        return [self._answers[key] for key in keys]

    def remarks(self) -> list[str]:
        """What a reader of the result should know: several models answered, or requests are without an answer."""
        used, said = self.used(), []
        if len(used.models) > 1:
            named = ", ".join(f"{model} ({n:,})" for model, n in sorted(used.models.items()))
            said.append(f"judge {self.name}: its answers came from {len(used.models)} models: {named}")
        if used.unanswered:
            why = ", ".join(f"{problem} {n:,}" for problem, n in sorted(used.unanswered.items()))
            left = sum(used.unanswered.values())
            said.append(f"judge {self.name} left {left:,} of {used.asked:,} requests without an answer: {why}")
        left_out = {name for answer in self._answers.values() for name in answer.left_out}
        if left_out:
            said.append(f"judge {self.name} was asked without {', '.join(sorted(left_out))}, which its server refuses")
        return said

    def used(self) -> JudgeUsed:
        """What the record says of it so far."""
        resolved, answers = self._seated.resolved, list(self._answers.values())
        fresh = [a for a in answers if not a.cached]
        counts = {
            "models": _counts(a.model for a in answers),
            "asked": len(answers),
            "cached": len(answers) - len(fresh),
            "unanswered": _counts(a.problem for a in answers),
            "prompt_tokens": _total((a.prompt_tokens, a.problem) for a in fresh),
            "completion_tokens": _total((a.completion_tokens, a.problem) for a in fresh),
            "cost_usd": 0.0 if resolved.is_free else _total((a.cost, a.problem) for a in fresh),
            "seconds": round(self._seconds, 3),
        }
        return resolved.to_record(self._prompts).model_copy(update=counts)


def _key(request: Request) -> str:
    try:
        return canonical_hash(asdict(request))
    except (TypeError, ValueError) as e:
        raise PluginError(f"the facts of a request '{request.purpose}' are no plain data: {e}") from e


def _counts(names: Iterable[str | None]) -> dict[str, int]:
    return dict(sorted(Counter(name for name in names if name is not None).items()))


def _total(amounts: Iterable[tuple[N | None, str | None]]) -> N | None:
    """Their sum; None where it is not told of one that was answered. What failed counts where it is told."""
    told = list(amounts)
    if any(amount is None and problem is None for amount, problem in told):
        return None
    return sum(amount for amount, _ in told if amount is not None)
