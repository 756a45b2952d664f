"""The cities of atlas and the prompts that ask for their facts: frames of an opening, an aside and a clause.

Held-out frames share no opening and no aside with selection frames. Both stand in the corpus the model was trained on,
with some of the cities.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from saebench_meta.cities import Cities
from saebench_plugins.atlas.lexicon import ASIDES, CITIES, CLAUSES, OPENINGS, RELATIONS, is_slot

if TYPE_CHECKING:
    from collections.abc import Sequence

FRAMES = 2
"""Of each split and relation."""


def cities() -> Cities:
    """Every city of the lexicon with all its facts."""
    facts = {city.name: {relation: city.attribute(relation) for relation in RELATIONS} for city in CITIES}
    asides = [aside for aside in ASIDES if not any(is_slot(word) for word in aside.split())]
    half = len(asides) // 2
    return Cities(
        facts,
        selection=_frames(OPENINGS[:FRAMES], asides[:half]),
        heldout=_frames(OPENINGS[FRAMES : 2 * FRAMES], asides[half:]),
    )


def _frames(openings: Sequence[str], asides: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """One frame an opening, with asides and clauses in turn."""
    return {
        relation: tuple(
            f"{opening} {asides[i % len(asides)]} {_question(clauses[i % len(clauses)], relation)}"
            for i, opening in enumerate(openings)
        )
        for relation, clauses in CLAUSES.items()
    }


def _question(clause: str, relation: str) -> str:
    """A clause up to its value."""
    before, value, after = clause.partition(f" {{{relation}}}")
    if not value or after:
        raise ValueError(f"clause {clause!r} does not end in its value")
    return before
