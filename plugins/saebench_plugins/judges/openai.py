"""Judge `openai`: any server that speaks OpenAI's protocol of chat completions, theirs or one of your own.

Its parts stand beside it: settings, the check before a run, the client, the line to the server, how servers differ, and
how an answer is read. None imports the client before it is needed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from saebench_meta.judging import Judge, JudgeLoader, JudgeServices
from saebench_plugins.judges.openai_settings import OPTIONS, identity, price, read_settings


def make(options: Mapping[str, Any], services: JudgeServices) -> Judge:
    """The judge.

    Raises:
        SaebenchError: an option is wrong, there is no key, or --max-cost is given where the price is not known.
    """
    from saebench_plugins.judges.openai_client import OpenAIJudge

    return OpenAIJudge(read_settings(options), services)


def check(options: Mapping[str, Any]) -> None:
    """See that the server takes the key and has the model."""
    from saebench_plugins.judges.openai_check import check as ask_the_server

    ask_the_server(options)


LOADER = JudgeLoader(
    make=make,
    options=OPTIONS,
    identity=identity,
    check=check,
    price=price,
    version=1,
    summary="A language model behind OpenAI's protocol: theirs, or any server that speaks it (vLLM, Ollama, …).",
)
