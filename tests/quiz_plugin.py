"""A plugin for tests of judges: a task that asks two questions a latent, and judges that a test can bend."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

from saebench_meta.errors import SaebenchError
from saebench_meta.hookspecs import hookimpl
from saebench_meta.judging import Answer, Asked, JudgeLoader, JudgeServices, Price, Request
from saebench_meta.sae import SAE
from saebench_meta.stats import proportion
from saebench_meta.task import Metric, Output, task

saebench_api = 1

PROMPT = {"question": "Which number is {n}?"}
PURPOSE = "choose_number"


def requests_of(sae: SAE) -> list[Request]:
    """One question a latent, the same for every SAE of its width but for the first, which reads its weights."""
    own = round(float(sae.W_dec[0, 0]), 6)
    return [
        Request(PURPOSE, "", PROMPT["question"], ("one", "two", "three"), {"n": own if n == 0 else n})
        for n in range(sae.d_sae)
    ]


def asks(infos: tuple[Any, ...], parameters: Mapping[str, Any], limit: int | None) -> list[Asked]:
    n = infos[0].d_sae if limit is None else min(limit, infos[0].d_sae)
    return [Asked(PURPOSE, n, 100, 10, max_prompt_tokens=200, max_completion_tokens=64)]


@task(
    "quiz",
    version=1,
    needs=["judge"],
    metrics=[Metric("first", better="higher", unit="fraction", main=True, help="share of first options")],
    controls=("permuted_columns",),
    prompts=lambda: PROMPT,
    asks=asks,
)
def quiz(sae: SAE, ctx: Any, *, twice: bool = False) -> Output:
    """Share of questions answered with the first option."""
    questions = requests_of(sae)
    answers = ctx.judge().ask(questions * 2 if twice else questions, "numbers chosen")
    SEEN.append((ctx.control, answers))
    return Output(estimates={"first": proportion(sum(a.choice == 0 for a in answers), len(answers), n_unit="latents")})


@task("silent_quiz", version=1, needs=["judge"], metrics=[Metric("one", better="neither", unit="1")], controls=())
def silent_quiz(sae: SAE, ctx: Any) -> Output:
    """Asks, and does not say how much."""
    ctx.judge().ask(requests_of(sae))
    return Output(estimates={"one": proportion(1, 1, n_unit="1")})


SEEN: list[tuple[str | None, list[Answer]]] = []
"""What the task was given, by control."""

Reply = Callable[[Request, JudgeServices], Answer]


class Bent:
    """Answers as the test says, and counts what is done with it."""

    reply: Reply = staticmethod(lambda request, services: Answer(choice=0))
    made: ClassVar[list[Mapping[str, Any]]] = []
    asked: ClassVar[list[list[Request]]] = []
    checked: ClassVar[list[Mapping[str, Any]]] = []
    closed = 0

    def __init__(self, options: Mapping[str, Any], services: JudgeServices) -> None:
        Bent.made.append(options)
        self.services = services

    def ask(self, requests: Sequence[Request]) -> list[Answer]:
        Bent.asked.append(list(requests))
        return [Bent.reply(request, self.services) for request in requests]

    def close(self) -> None:
        Bent.closed += 1

    @classmethod
    def reset(cls) -> None:
        cls.reply = staticmethod(lambda request, services: Answer(choice=0))
        cls.made, cls.asked, cls.checked, cls.closed = [], [], [], 0
        SEEN.clear()


OPTIONS = {"model": "small", "seed": 0, "timeout": 30.0, "exact": True, "price_in": None, "price_out": None}


def identity(options: Mapping[str, Any]) -> dict[str, Any]:
    return {"model": options["model"], "seed": options["seed"]}


def check(options: Mapping[str, Any]) -> None:
    Bent.checked.append(options)
    if options["model"] == "gone":
        raise SaebenchError("the server has no model 'gone': give another one with -J model=NAME")


def price(options: Mapping[str, Any]) -> Price | None:
    if options["price_in"] is None or options["price_out"] is None:
        return None
    return Price(float(options["price_in"]), float(options["price_out"]))


PAID = JudgeLoader(Bent, OPTIONS, identity=identity, check=check, price=price, version=3, summary="costs money")
FREE = JudgeLoader(Bent, summary="costs nothing")


@hookimpl
def saebench_tasks() -> list[Any]:
    return [quiz, silent_quiz]


@hookimpl
def saebench_judges() -> Mapping[str, JudgeLoader]:
    return {"lexical": FREE, "paid": PAID}
