"""What a run will ask its judge and what that costs: told, and checked, before anything is loaded. No torch."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from saebench_meta.errors import SaebenchError
from saebench_meta.events import Notice

if TYPE_CHECKING:
    from saebench_meta.judges import ResolvedJudge
    from saebench_meta.judging import Asked
    from saebench_meta.plan import Unit
    from saebench_meta.settings import Settings


@dataclass(frozen=True)
class JudgeEstimate:
    """How much a judge is asked, about, and for how much.

    Attributes:
        cost: US dollars; None where the price is not known.
        cost_at_most: the same if every prompt and answer is as long as it may be; None where the tasks do not say.
        free: whether the judge costs nothing.
    """

    requests: int
    prompt_tokens: int
    completion_tokens: int
    cost: float | None
    cost_at_most: float | None
    free: bool

    def in_words(self, judge: ResolvedJudge) -> str:
        """One phrase: requests, tokens, dollars."""
        asked = (
            f"{self.requests:,} requests, {self.prompt_tokens:,} prompt and {self.completion_tokens:,} answer tokens"
        )
        if self.free:
            return f"{asked}, free"
        if self.cost is None:
            return f"{asked}, {judge.how_to_price}"
        most = "" if self.cost_at_most is None else f", at most {dollars(self.cost_at_most)}"
        return f"{asked}, about {dollars(self.cost)}{most}"

    def to_json(self) -> dict[str, Any]:
        """As plain data, for `--dry-run --json`."""
        tokens = {"prompt_tokens": self.prompt_tokens, "completion_tokens": self.completion_tokens}
        return {"requests": self.requests, **tokens, "cost_usd": self.cost, "cost_usd_at_most": self.cost_at_most}


def estimate(judge: ResolvedJudge, asked: Iterable[Asked]) -> JudgeEstimate:
    """What answering all of it takes, if nothing of it was asked before."""
    asked = tuple(asked)
    prompt = sum(a.requests * a.prompt_tokens for a in asked)
    completion = sum(a.requests * a.completion_tokens for a in asked)
    most_prompt = _most((a.requests, a.max_prompt_tokens) for a in asked)
    most_completion = _most((a.requests, a.max_completion_tokens) for a in asked)
    price = judge.price
    at_most = None
    if price is not None and most_prompt is not None and most_completion is not None:
        at_most = price.of(most_prompt, most_completion)
    return JudgeEstimate(
        requests=sum(a.requests for a in asked),
        prompt_tokens=prompt,
        completion_tokens=completion,
        cost=None if price is None else price.of(prompt, completion),
        cost_at_most=at_most,
        free=judge.is_free,
    )


def _most(parts: Iterable[tuple[int, int | None]]) -> int | None:
    total = 0
    for requests, tokens in parts:
        if tokens is None:
            return None
        total += requests * tokens
    return total


def dollars(amount: float) -> str:
    """`$0.41`; less than a cent with two more digits."""
    return f"${max(amount, 1e-4):.4f}" if 0 < amount < 0.01 else f"${amount:,.2f}"


# -- of units that will run; all of a run ask the same judge


def units_estimate(units: Iterable[Unit]) -> JudgeEstimate | None:
    """What all of them ask together; None where none asks, or one does not say how much."""
    asking = [u for u in units if u.judge is not None]
    if not asking or asking[0].judge is None or any(u.asked is None for u in asking):
        return None
    return estimate(asking[0].judge, [a for u in asking for a in u.asked or ()])


def judge_notices(units: Sequence[Unit], settings: Settings) -> list[Notice]:
    """What the user should know before a judge that costs money is asked."""
    judge = units[0].judge if units else None
    if judge is None or judge.is_free:
        return []
    expected = units_estimate(units)
    if expected is None:
        silent = ", ".join(sorted({u.task.name for u in units if u.asked is None}))
        limit = "--max-cost USD limits it" if settings.max_cost is None else f"at most {dollars(settings.max_cost)}"
        return [Notice("info", f"judge {judge.name}: {silent} does not say beforehand how much it asks; {limit}")]
    told = [Notice("info", f"judge {judge.name}: {expected.in_words(judge)}; what it answered before costs nothing")]
    if expected.cost is not None and settings.max_cost is not None and expected.cost > settings.max_cost:
        told.append(
            Notice(
                "warning",
                f"that is more than --max-cost {settings.max_cost:g}: the run may stop in the middle; what is answered "
                "is kept, and the same command again goes on from there",
            )
        )
    return told


def check_judge(units: Sequence[Unit], settings: Settings) -> None:
    """See that the judge can be asked, if any unit will ask it.

    Raises:
        SaebenchError: it cannot, with what to set; or --max-cost cannot be kept, since its price is not known.
    """
    judge = units[0].judge if units else None
    if judge is None:
        return
    if settings.max_cost is not None and judge.price is None:
        raise SaebenchError(f"--max-cost needs to know what judge '{judge.name}' costs; {judge.how_to_price}")
    if judge.loader.check is not None:
        judge.loader.check(judge.options)
