"""How much will be asked of a judge, before anything is loaded: expected numbers under even allocation.

With F latents, M meta-latents of which k are active on each, and n targets: a meta-latent is active on a target or more
with probability 1 − exp(−nk/M), is active on Fk/M latents, and up to `listed` of them explain it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import expm1
from typing import TYPE_CHECKING, Any

from saebench_meta.judging import Asked
from saebench_tasks.autointerp import asking
from saebench_tasks.autointerp.explanations import SHOWN_PASSAGES
from saebench_tasks.meta_sae.build import default_width

if TYPE_CHECKING:
    from saebench_meta.sae import SAEInfo

SENTENCE, WORDS, LISTED_TOKEN = 120, 25, 5
"""Tokens of a prompt without what is filled in, of an explanation, and of a firing token with its strength."""
MARKED = 1.4
"""Tokens that a passage has more with its marks, under another tokenizer."""
EXPLANATION, CHOICE = 25, 6
"""Tokens of answers."""


def asks(infos: tuple[SAEInfo, ...], parameters: Mapping[str, Any], limit: int | None) -> Sequence[Asked]:
    """What the task will ask: explanations and questions on latents also for controls, those on meta-latents not."""
    info, p = infos[0], parameters
    F, k = info.d_sae, p["k"]
    n = min(p["latents"], F if limit is None else limit, F)
    M = p["width"] or default_width(info.d_in, F, k)
    active_on = max(1.0, F * k / M)
    listed = min(p["listed"], active_on)
    metas = M * _share(n * k / M)
    explained = max(n, F * _share((n * p["options"] + metas * listed) / F))
    rewritten = n * k * listed / active_on
    passage = MARKED * p["length"]
    of_latent = round(SENTENCE + (p["top"] + p["bins"]) * (passage + LISTED_TOKEN))
    of_meta = round(SENTENCE + listed * (WORDS + SHOWN_PASSAGES * passage))
    choose_latent = round(SENTENCE + WORDS + p["options"] * passage)
    choose_meta = round(SENTENCE + (p["options"] + k) * WORDS)
    asked = (
        Asked(asking.EXPLAIN_LATENT, n, of_latent, EXPLANATION),
        Asked(asking.CHOOSE_LATENT, 2 * n, choose_latent, CHOICE),
        Asked(asking.EXPLAIN_LATENT, round(explained - n), of_latent, EXPLANATION, on_controls=False),
        Asked(asking.EXPLAIN_META, round(metas + rewritten), of_meta, EXPLANATION, on_controls=False),
        Asked(asking.CHOOSE_META, 3 * n, choose_meta, CHOICE, on_controls=False),
    )
    return [one for one in asked if one.requests]


def _share(rate: float) -> float:
    """Share of boxes that are not empty when so many balls a box are thrown."""
    return -expm1(-rate)
