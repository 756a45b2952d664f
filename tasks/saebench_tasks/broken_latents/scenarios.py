"""Every experiment of the post on broken latents: its world, its SAE, its outcome, and what counts as that outcome.

Chanin, Dulka and Bloom 2024. Each outcome is cut into clauses, conditions on the scores of one SAE (`kinds.Scores`); a
run shows the outcome when all of them hold. Worlds, grids of coefficients and clauses were written down before any of
these SAEs was trained; what was changed since is said beside the table, in docs/experiments/broken_latents.md.

The post adds errors up over dimensions; its l1 of, say, .01 is `l1 = .01 / d_in` here, where errors are means, and its
λ of 10,000 is `ortho = 10,000 / d_in`. It names an l1 for one experiment only (.01), so three are tried everywhere.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from saebench_tasks.broken_latents.kinds import PART
from saebench_tasks.broken_latents.toys import COMMON

if TYPE_CHECKING:
    from saebench_tasks.broken_latents.kinds import Scores

Group = Literal["post", "others"]
Clause = tuple[str, "Callable[[Scores], bool]"]

SCHEME = "toy"
LAMBDA = 10_000.0
"""Of the post's orthogonality loss, for errors added up over dimensions."""

L1_FOUR = (0.001, 0.01, 0.1)
"""For features of magnitude 1; in the post's units."""
L1_TWENTY = (0.01, 0.1, 1.0)
"""For magnitudes from 1 to 20; in the post's units."""

NEGATIVE = 0.05
"""Size from which on a negative part counts; of two orthogonal latents that share a small parent neither is large."""

FOUR: Mapping[str, Any] = {"steps": 2000, "lr": 0.003}
TWENTY: Mapping[str, Any] = {"steps": 2000, "lr": 0.03}
TWENTY_ORTHO: Mapping[str, Any] = {"steps": 2400, "lr": 0.03}
FOUR_OTHERS: Mapping[str, Any] = {"steps": 600, "lr": 0.01}
TWENTY_OTHERS: Mapping[str, Any] = {"steps": 800, "lr": 0.03}
"""The post trains on 150 million samples; at these rates losses are level long before the last step."""


@dataclass(frozen=True)
class Scenario:
    """One experiment.

    Attributes:
        name: how it is called here.
        world: name of the toy world, without the scheme.
        d_sae: latents.
        architecture: of the SAE.
        outcome: what the post reports.
        clauses: what counts as that: (words, condition on the scores).
        coefficient: which setting is varied.
        values: that are tried; of `l1` in the post's units.
        settings: number of `steps`, and settings of the recipe over `COMMON`.
        group: `post`, or `others` for what the post did not run.
    """

    name: str
    world: str
    d_sae: int
    architecture: str
    outcome: str
    clauses: tuple[Clause, ...]
    values: tuple[float, ...]
    settings: Mapping[str, Any]
    coefficient: str = "l1"
    group: Group = "post"

    def shows(self, scores: Scores) -> dict[str, bool]:
        """Which clauses hold."""
        return {words: condition(scores) for words, condition in self.clauses}

    def given(self, value: float, d_in: int, longer: int = 1) -> dict[str, Any]:
        """Settings of the recipe for a value of the coefficient, and `longer` times the steps."""
        own = {"l1": value / d_in, "k": int(value)}.get(self.coefficient, value)
        made = {**COMMON, **self.settings, "d_sae": self.d_sae, self.coefficient: own}
        if "ortho" in made:
            made["ortho"] /= d_in
        return made | {"tokens": made.pop("steps") * longer * made["batch_size"]}


# -- clauses


def of_kind(what: str, features: set[int], *kinds: Any) -> Clause:
    """Exactly these features have latents of these kinds."""
    return f"{what}: {_listed(features)}", lambda s: s.features_of(*kinds) == features


def exact(*features: int) -> Clause:
    """Exact latents for these features and no other."""
    return of_kind("exact latents for exactly", set(features), "exact")


def tracked(*features: int) -> Clause:
    """Clean latents of their own for these features and no other, whatever they fire on."""
    return of_kind("clean latents for exactly", set(features), "exact", "inexact")


def number(words: str, least: int, most: int, *kinds: Any) -> Clause:
    """A number of latents of these kinds, ends included."""
    return words, lambda s: least <= s.count(*kinds) <= most


def holds(latent: int, features: set[int]) -> Clause:
    """A latent that holds exactly these features."""
    return f"latent {latent} holds exactly {_listed(features)}", lambda s: s.holds(latent) == features


def unheld(feature: int) -> Clause:
    """A feature that is in no latent."""
    return f"no live latent holds {feature}", lambda s: all(feature not in s.holds(j) for j in s.live)


def mixes(child: int, parent: int) -> Clause:
    """A latent of its own for the child that holds the parent as well."""
    words = f"the latent of {child} holds {parent}"
    return words, lambda s: len(own := _of(s, child)) == 1 and parent in s.holds(own[0])


def against(one: int, other: int) -> Clause:
    """Each has a negative part of the other."""
    words = f"the latents of {one} and {other} have parts ≤ −{NEGATIVE} of each other"
    return words, lambda s: all(
        len(own := _of(s, a)) == 1 and s.parts[own[0], b] <= -NEGATIVE for a, b in ((one, other), (other, one))
    )


def many_peaks(*features: int) -> Clause:
    """Several activation peaks in the latents of these features, one in all others."""
    words = f"several activation peaks in the latents of {_listed(set(features))}, one in the others"
    return words, lambda s: all((s.peaks[j] > 1) == (int(s.feature[j]) in features) for j in s.live)


def merged(count: int, features: set[int]) -> Clause:
    """So many latents that each hold two or more of the features and nothing else, and together all of them."""

    def condition(s: Scores) -> bool:
        sets = [s.holds(j) for j in s.live if len(s.holds(j)) > 1]
        return len(sets) == count and all(held <= features for held in sets) and set().union(*sets) == features

    return f"{count} latents hold two or more of {_listed(features)} each, and together all", condition


def encoder_like_decoder() -> Clause:
    """Cosines of the encoder with every feature near those of the decoder."""
    return (
        f"the encoder's cosines are within {PART} of the decoder's",
        lambda s: bool((abs(s.encoder - s.decoder)[s.live] <= PART).all()),
    )


def _of(s: Scores, feature: int) -> list[int]:
    return [int(j) for j in s.live if s.feature[j] == feature]


def _listed(features: set[int]) -> str:
    return ", ".join(map(str, sorted(features)))


# -- the post's experiments

ORTHO = {"ortho": LAMBDA, "ortho_delay": 1 / 3, "ortho_warmup": 1 / 3, "ortho_peak": 0.7}
ALL_FOUR = exact(0, 1, 2, 3)


def _twenty(name: str, world: str, architecture: str, outcome: str, *clauses: Clause, ortho: bool = False) -> Scenario:
    settings = {**TWENTY_ORTHO, **ORTHO} if ortho else TWENTY
    return Scenario(name, world, 5, architecture, outcome, clauses, L1_TWENTY, settings)


def _four(name: str, world: str, d_sae: int, architecture: str, outcome: str, *clauses: Clause) -> Scenario:
    return Scenario(name, world, d_sae, architecture, outcome, clauses, L1_FOUR, FOUR)


POST = (
    _four(
        "absorption-untied",
        "absorption-4",
        4,
        "relu",
        "2 and 3 are found; the latent of 0 is silent where 1 is on, and that of 1 has 0 + 1 in its decoder",
        exact(2, 3),
        of_kind("absorbed latents for exactly", {0}, "absorbed"),
        number("one absorbing latent", 1, 1, "absorbing"),
    ),
    _four("absorption-tied", "absorption-4", 4, "tied", "all four are found", ALL_FOUR),
    _four(
        "wide-untied",
        "independent-4",
        8,
        "relu",
        "a duplicate, and a combination of two features beside them; only some excess latents die",
        number("a combination", 1, 8, "combination"),
        number("duplicates", 2, 8, "duplicate"),
        number("fewer than four dead latents", 0, 3, "dead"),
    ),
    _four(
        "wide-tied",
        "independent-4",
        8,
        "tied",
        "one latent a feature, the rest die",
        ALL_FOUR,
        number("four dead latents", 4, 4, "dead"),
    ),
    _four(
        "wide-parent-tied",
        "two-children-4",
        8,
        "tied",
        "one latent a feature, the rest die, in spite of co-occurrence",
        ALL_FOUR,
        number("four dead latents", 4, 4, "dead"),
    ),
    _twenty("narrow-tied", "linear-20", "tied", "4 to 8 are found", exact(4, 5, 6, 7, 8)),
    _twenty("narrow-untied", "linear-20", "relu", "4 to 8 are found", exact(4, 5, 6, 7, 8)),
    _twenty(
        "small-parent-tied",
        "small-parent-20",
        "tied",
        "5 and 7 have a portion of 12 each, and a negative one of each other, and several activation peaks",
        exact(4, 6, 8),
        mixes(5, 12),
        mixes(7, 12),
        against(5, 7),
        many_peaks(5, 7),
    ),
    _twenty(
        "small-parent-ortho",
        "small-parent-20",
        "tied",
        "the orthogonality loss: 4 to 8 are found",
        exact(4, 5, 6, 7, 8),
        ortho=True,
    ),
    _twenty(
        "large-parent-tied",
        "large-parent-20",
        "tied",
        "5, 6 and 7 are merged in two latents; 3 is taken up",
        exact(3, 4, 8),
        merged(2, {5, 6, 7}),
    ),
    _twenty(
        "large-parent-ortho",
        "large-parent-20",
        "tied",
        "the orthogonality loss: 3, 4, 5, 7, 8 are found, 6 is lost",
        exact(3, 4, 5, 7, 8),
        unheld(6),
        ortho=True,
    ),
    _twenty(
        "superposed-tied",
        "superposed-20",
        "tied",
        "noisier: 3, 4 and 8 are tracked, 5, 6 and 7 mixed",
        tracked(3, 4, 8),
        merged(2, {5, 6, 7}),
    ),
    _twenty(
        "superposed-ortho",
        "superposed-20",
        "tied",
        "the orthogonality loss: 3, 4, 5, 7, 8 are tracked, 6 is lost",
        tracked(3, 4, 5, 7, 8),
        unheld(6),
        ortho=True,
    ),
    _four(
        "single-untied",
        "single-parent-4",
        1,
        "relu",
        "the latent merges 0, 1 and 2; its encoder is nearly its decoder",
        holds(0, {0, 1, 2}),
        encoder_like_decoder(),
    ),
    _four("single-tied", "single-parent-4", 1, "tied", "the latent merges 0, 1 and 2", holds(0, {0, 1, 2})),
)

# -- not in the post

PREFIXES = {4: (0.25, 0.5, 1.0), 5: (0.2, 0.6, 1.0), 8: (0.125, 0.5, 1.0)}
"""Of Matryoshka SAEs, by width: one latent first, then about half of them, then all."""
FAMILY: Mapping[str, tuple[str, tuple[float, ...], Mapping[str, Any]]] = {
    "topk": ("k", (1, 2, 3), {}),
    "batchtopk": ("k", (1, 2, 3), {}),
    "gated": ("l1", L1_FOUR, {}),
    "jumprelu": ("l0_coefficient", (0.01, 0.03, 0.1), {"scaling": "rms", "bandwidth": 0.5}),
    "matryoshka": ("k", (1, 2, 3), {}),
}
"""What is varied, its values, and settings. Thresholds of JumpReLU start at 1 and belong to scaled activations."""


def _other(architecture: str, world: str, d_sae: int, *clauses: Clause) -> Scenario:
    coefficient, values, own = FAMILY[architecture]
    four = world.endswith("-4")
    settings = {**(FOUR_OTHERS if four else TWENTY_OTHERS), **own}
    if architecture == "matryoshka":
        settings["prefixes"] = PREFIXES[d_sae]
    if coefficient == "l1" and not four:
        values = L1_TWENTY
    name = f"{architecture}-{world}"
    return Scenario(name, world, d_sae, architecture, "", clauses, values, settings, coefficient, "others")


FIVE = number("five exact latents", 5, 5, "exact")
OTHERS = (
    *(
        _other(architecture, world, d_sae, clause)
        for architecture in ("topk", "batchtopk", "gated", "jumprelu")
        for world, d_sae, clause in (
            ("absorption-4", 4, ALL_FOUR),
            ("independent-4", 8, ALL_FOUR),
            ("small-parent-20", 5, FIVE),
        )
    ),
    _other("matryoshka", "single-parent-4", 4, holds(0, {0, 1, 2})),
    _other("matryoshka", "absorption-4", 4, ALL_FOUR),
    _other("matryoshka", "two-children-4", 8, ALL_FOUR),
    _other("matryoshka", "small-parent-20", 5, FIVE),
    _other("matryoshka", "large-parent-20", 5, FIVE),
)

SCENARIOS: Mapping[str, Scenario] = {scenario.name: scenario for scenario in (*POST, *OTHERS)}
