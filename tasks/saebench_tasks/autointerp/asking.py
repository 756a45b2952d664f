"""What is asked of a judge: the prompt of every kind of request, and the facts it is made from.

Prompts are text files, a version in the name of each: one that is changed is a new version, since the record's id has
their hashes. Above the line `---` stands the system message, below it the user's. What is right is in neither.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from importlib import resources
from typing import TYPE_CHECKING, Any

from saebench_meta.judging import Request

if TYPE_CHECKING:
    from jinja2 import Template

    from saebench_tasks.autointerp.passages import Passage

EXPLAIN_LATENT, EXPLAIN_META = "explain_latent", "explain_meta_latent"
CHOOSE_LATENT, CHOOSE_META = "choose_latent", "choose_meta"
VERSIONS = {EXPLAIN_LATENT: 1, EXPLAIN_META: 1, CHOOSE_LATENT: 1, CHOOSE_META: 1}
EXPLANATION_TOKENS, CHOICE_TOKENS = 64, 16
STRONGEST = 10


def prompts() -> dict[str, str]:
    """The text of every prompt file, by name."""
    names = [f"{purpose}.v{version}" for purpose, version in VERSIONS.items()]
    folder = resources.files("saebench_tasks.autointerp").joinpath("prompts")
    return {name: folder.joinpath(f"{name}.txt").read_text(encoding="utf-8") for name in names}


@cache
def _templates(purpose: str) -> tuple[Template, Template]:
    from jinja2 import Environment, StrictUndefined

    # What is filled in is read by a model, not by a browser.
    made = Environment(undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, autoescape=False)
    system, user = prompts()[f"{purpose}.v{VERSIONS[purpose]}"].split("\n---\n")
    return made.from_string(system.strip()), made.from_string(user.strip())


def request(
    purpose: str, facts: Mapping[str, Any], values: Mapping[str, Any], options: Sequence[str], max_tokens: int
) -> Request:
    """A request of one purpose, with the values that its prompt is filled with."""
    system, user = (template.render(values) for template in _templates(purpose))
    return Request(purpose, system, user, tuple(options), facts, max_tokens)


def explain_latent(passages: Sequence[Passage]) -> Request:
    """What does a latent fire on, judging by these passages, the strongest first?"""
    maximum = max(max(passage.activations) for passage in passages)
    facts = {"passages": [passage.facts() for passage in passages], "maximum": maximum}
    shown = [{"text": passage.marked, "strengths": _strengths(passage, maximum)} for passage in passages]
    return request(EXPLAIN_LATENT, facts, {"passages": shown}, (), EXPLANATION_TOKENS)


def _strengths(passage: Passage, maximum: float) -> str:
    """Firing tokens with their activations, from 1 to 10."""
    pairs = zip(passage.tokens, passage.activations, strict=True)
    return ", ".join(f"{token.strip()}: {max(1, round(STRONGEST * f / maximum))}" for token, f in pairs if f > 0)


def explain_meta(latents: Sequence[tuple[str, Sequence[Passage]]]) -> Request:
    """What have latents in common, by their explanations and some passages of each?"""
    shown = [{"explanation": text, "passages": [p.marked for p in passages]} for text, passages in latents]
    return request(EXPLAIN_META, {"latents": shown}, {"latents": shown}, (), EXPLANATION_TOKENS)


def choose_latent(description: str, options: Sequence[str]) -> Request:
    """Which of these marked passages is of the latent that is described?"""
    facts = {"description": description}
    return request(CHOOSE_LATENT, facts, {**facts, "options": options}, options, CHOICE_TOKENS)


def choose_meta(descriptions: Sequence[str], options: Sequence[str]) -> Request:
    """Which of these explanations is of the latent that the described meta-latents are active on?"""
    facts = {"descriptions": list(descriptions)}
    return request(CHOOSE_META, facts, {**facts, "options": options}, options, CHOICE_TOKENS)
