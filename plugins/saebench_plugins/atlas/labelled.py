"""Eight labelled sets of atlas, after the eight real ones that probes are tried on (paper, A.9.1).

Each text is two or three sentences of one genre and theme. The class is one part of the theme and the others vary: a
review's category and its sentiment, a biography's profession and its pronoun. Classes are equally frequent, in every
split. The language model and the SAEs have been trained on none of these texts: the split of a text is that of the
world (`world.split_of`), and `train` here draws on `heldout`, `test` on `evaluation`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from saebench_plugins.atlas.lexicon import BIOGRAPHIES, CODE, NEWS, REVIEWS, TONGUES, Kind, Theme
from saebench_plugins.atlas.world import WORLD_VERSION, Chooser, Split, split_of, topical_text

LabelledSplit = Literal["train", "test"]
LABELLED_SPLITS: tuple[LabelledSplit, ...] = get_args(LabelledSplit)

_WORLD_SPLIT: dict[LabelledSplit, Split] = {"train": "heldout", "test": "evaluation"}
PER_CLASS: dict[LabelledSplit, int] = {"train": 120, "test": 60}
SENTENCES = (2, 3)
"""Least and most sentences of a text."""


@dataclass(frozen=True)
class Recipe:
    """One labelled set: texts of a kind, labelled by a part of their theme.

    Attributes:
        mirrors: the real set it stands for.
        part: of the theme, such as ``profession``.
        classes: its values.
    """

    mirrors: str
    kind: Kind
    part: str
    classes: tuple[str, ...]


SETS: dict[str, Recipe] = {
    "professions-1": Recipe(
        "Bias in Bios, class set 1", BIOGRAPHIES, "profession", ("surgeon", "lawyer", "painter", "physicist", "teacher")
    ),
    "professions-2": Recipe(
        "Bias in Bios, class set 2", BIOGRAPHIES, "profession", ("journalist", "farmer", "architect", "pianist", "chef")
    ),
    "professions-3": Recipe(
        "Bias in Bios, class set 3", BIOGRAPHIES, "profession", ("programmer", "pilot", "dentist", "poet", "carpenter")
    ),
    "categories": Recipe(
        "Amazon reviews, category", REVIEWS, "category", ("electronics", "books", "kitchen", "clothing", "games")
    ),
    "sentiment": Recipe("Amazon reviews, sentiment", REVIEWS, "sentiment", ("positive", "negative")),
    "code": Recipe("GitHub code, language", CODE, "code", ("python", "java", "c", "rust", "javascript")),
    "topics": Recipe("AG News", NEWS, "topic", ("politics", "sports", "business", "technology")),
    "tongues": Recipe("Europarl, language", TONGUES, "tongue", ("french", "german", "spanish", "italian", "dutch")),
}


def examples(name: str, split: LabelledSplit, seed: int = 0) -> tuple[list[str], list[int]]:
    """Texts and class numbers of a set's split, classes taking turns; the same seed always gives the same ones."""
    recipe = SETS[name]
    chooser = Chooser(f"atlas-{WORLD_VERSION}/labelled/{name}/{split}/{seed}")
    themes = [_themes(recipe, value) for value in recipe.classes]
    texts: list[str] = []
    labels: list[int] = []
    seen: set[str] = set()
    for _ in range(PER_CLASS[split]):
        for label, candidates in enumerate(themes):
            text = _new_text(recipe.kind, candidates, _WORLD_SPLIT[split], seen, chooser)
            seen.add(text)
            texts.append(text)
            labels.append(label)
    return texts, labels


def _themes(recipe: Recipe, value: str) -> list[Theme]:
    return [theme for theme in recipe.kind.themes if f"{recipe.part}:{value}" in theme.parts]


def _new_text(kind: Kind, themes: list[Theme], split: Split, seen: set[str], chooser: Chooser) -> str:
    while True:
        text = topical_text(kind, chooser.choose(themes), chooser.uncounted_integer(*SENTENCES), chooser)
        if text not in seen and split_of(text) == split:
            return text
