"""What is asked of a judge and what it answers: the contract between tasks, the harness and judges.

A task makes `Request`s and gives them to `ctx.judge().ask(requests)`, which answers each with an `Answer`, in order. A
language model reads `system` and `user`; a judge that reads no prose finds the same content in `facts`. What is right
is never in a request.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from saebench_meta.judge_cache import AnswerCache
    from saebench_meta.purse import Purse


@dataclass(frozen=True)
class Request:
    """One thing asked of a judge.

    Attributes:
        purpose: what kind of request it is, e.g. `explain_latent`; told apart in counts and transcripts.
        system, user: the prompt.
        options: texts to choose from; empty where free text is wanted. The prompt numbers them from 1.
        facts: what the prompt was made from, as plain data, for judges that read no prose.
        max_tokens: how long an answer may be.
        sample: asks the same again under another number; part of what an answer is cached under.
    """

    purpose: str
    system: str
    user: str
    options: tuple[str, ...] = ()
    facts: Mapping[str, Any] = field(default_factory=dict)
    max_tokens: int = 64
    sample: int = 0


@dataclass(frozen=True)
class Answer:
    """What a judge answered.

    Attributes:
        text: its words; None where there are none.
        choice: index into the request's options, from 0; None for free text and where there is no answer.
        problem: why there is no answer (`refusal`, `malformed`, …); None where there is one.
        model: the model that the server says it used.
        prompt_tokens, completion_tokens: as the server counts them, over all attempts; None where it does not.
        cost: US dollars, over all attempts; None where the price is not known.
        cached: whether it was had before, for nothing now.
        left_out: what the record's options speak of and the server refused, so that it was asked without: `seed`, ….
    """

    text: str | None = None
    choice: int | None = None
    problem: str | None = None
    model: str | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    cost: float | None = None
    cached: bool = False
    left_out: tuple[str, ...] = ()


@dataclass(frozen=True)
class Price:
    """US dollars for a million tokens."""

    prompt: float
    completion: float

    def of(self, prompt_tokens: float, completion_tokens: float) -> float:
        return (self.prompt * prompt_tokens + self.completion * completion_tokens) / 1e6


@dataclass(frozen=True)
class Asked:
    """How much a task will ask of a judge for one subject: an estimate, made before anything is loaded.

    Attributes:
        purpose: as of the requests.
        requests: how many.
        prompt_tokens, completion_tokens: of one request, on average.
        max_prompt_tokens, max_completion_tokens: of one request, at most; None where that is not known.
        on_controls: whether controls ask as much each; False for what is asked of the subject alone.
    """

    purpose: str
    requests: int
    prompt_tokens: int
    completion_tokens: int
    max_prompt_tokens: int | None = None
    max_completion_tokens: int | None = None
    on_controls: bool = True


@dataclass(frozen=True, eq=False)
class JudgeServices:
    """What the harness gives a judge.

    Attributes:
        cache: answers kept on disk, for judges whose answers cost time or money.
        purse: what may still be spent; every paid request takes its worst case from it first.
        progress: `(done, total)`, as requests are answered.
        warn: says something to the user, once.
        device: `cpu`, `cuda`, …, for judges that run a model.
    """

    cache: AnswerCache
    purse: Purse
    progress: Callable[[int, int], None]
    warn: Callable[[str], None]
    device: str = "cpu"


class Judge(Protocol):
    """Answers requests."""

    def ask(self, requests: Sequence[Request]) -> Sequence[Answer]:
        """One answer a request, in order; a request that cannot be answered gets an `Answer` with a `problem`.

        Raises:
            SaebenchError: it cannot go on at all: the key is refused, or the purse is empty.
        """
        ...


@dataclass(frozen=True)
class JudgeLoader:
    """How a judge is made.

    Attributes:
        make: `(options, services) -> Judge`; called when the first task asks, once a run.
        options: what can be set with `-J name=value`, with defaults; the default's type is the type.
        identity: `options -> plain data`: what of them the answers depend on, for the record and its id. Never a
            secret. All of them where it is not given.
        check: `options -> None`, or SaebenchError that says what to set. Called before anything is loaded, if the judge
            will be asked; it may use the network.
        price: `options -> Price`, or None where it is not known. Without it a judge costs nothing.
        version: raise it when the same request would get another answer; part of a record's id.
        summary: one line for `saebench plugins`.
    """

    make: Callable[[Mapping[str, Any], JudgeServices], Judge]
    options: Mapping[str, Any] = field(default_factory=dict)
    identity: Callable[[Mapping[str, Any]], Mapping[str, Any]] | None = None
    check: Callable[[Mapping[str, Any]], None] | None = None
    price: Callable[[Mapping[str, Any]], Price | None] | None = None
    version: int = 1
    summary: str = ""


class JudgeDesk(Protocol):
    """What `ctx.judge()` gives a task: a judge whose requests are counted, paid for and shown as progress."""

    @property
    def name(self) -> str: ...

    def ask(self, requests: Sequence[Request], what: str = "requests") -> list[Answer]:
        """One answer a request, in order. Equal requests are asked once."""
        ...
