"""The architecture of an SAE put through toy worlds: what is trained, and what its latents stand for. No torch here.

Trainings are shorter than those of `scenarios`, so that a run can afford them, and there is one setting for each
architecture: they say how it fares there, not whether an outcome of the post is reproduced.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING, Any

from saebench_meta.errors import SaebenchError, did_you_mean
from saebench_meta.task import CONTROLS, Better, Metric

if TYPE_CHECKING:
    from saebench_meta.context import Context
    from saebench_meta.sae import SAE, SAEInfo
    from saebench_meta.stats import Estimate
    from saebench_meta.training.recipe import Recipe
    from saebench_tasks.broken_latents.kinds import Kind, Scores

OFF = "none"
ROWS = 2**16
"""Activations drawn from a world, to train on."""


@dataclass(frozen=True)
class Toy:
    """What is trained on a world.

    Attributes:
        d_in: of the world.
        d_sae: latents.
        steps: of the training.
        l1: for errors added up over dimensions.
        prefixes: of Matryoshka SAEs.
    """

    d_in: int
    d_sae: int
    steps: int
    l1: float
    prefixes: tuple[float, ...]


TOYS: Mapping[str, Toy] = {
    "toy:absorption-4": Toy(50, 4, 600, 0.01, (0.25, 0.5, 1.0)),
    "toy:independent-4": Toy(20, 8, 600, 0.01, (0.125, 0.5, 1.0)),
    "toy:two-children-4": Toy(20, 8, 600, 0.01, (0.125, 0.5, 1.0)),
    "toy:linear-20": Toy(50, 5, 1000, 0.1, (0.2, 0.6, 1.0)),
    "toy:small-parent-20": Toy(50, 5, 1000, 0.1, (0.2, 0.6, 1.0)),
    "toy:large-parent-20": Toy(50, 5, 1000, 0.1, (0.2, 0.6, 1.0)),
    "toy:superposed-20": Toy(19, 5, 1000, 0.1, (0.2, 0.6, 1.0)),
    "toy:single-parent-4": Toy(50, 4, 600, 0.01, (0.25, 0.5, 1.0)),
}
SETTINGS: Mapping[str, Callable[[Toy], dict[str, Any]]] = {
    "relu": lambda toy: {"l1": toy.l1 / toy.d_in},
    "tied": lambda toy: {"l1": toy.l1 / toy.d_in},
    "gated": lambda toy: {"l1": toy.l1 / toy.d_in},
    "topk": lambda _: {"k": 1},
    "batchtopk": lambda _: {"k": 1},
    "matryoshka": lambda toy: {"k": 1, "prefixes": toy.prefixes},
    "jumprelu": lambda _: {"l0_coefficient": 0.03, "bandwidth": 0.5, "scaling": "rms"},
}
"""Architectures that can be put through them."""
SAME = {"standard": "relu", "matryoshka_batchtopk": "matryoshka", "matryoshka_batch_topk": "matryoshka"}
"""Other names that formats have for them."""
COMMON: Mapping[str, Any] = {
    "batch_size": 512,
    "lr": 0.01,
    "warmup": 0.05,
    "decay": 0.3,
    "scaling": "none",
    "b_dec": "zero",
    "threshold_batches": 20,
}
"""Settings of all recipes, here and in `scenarios`, which have a learning rate of their own."""

_RECIPE = "a property of the recipe, not of the dictionary: controls have none"

SHARES: Mapping[str, tuple[Better, tuple[Kind, ...], str]] = {
    "toy_mixed": ("lower", ("mixed",), "are directions with parts of several features"),
    "toy_combination": ("lower", ("combination",), "fire for several features together, as their sum"),
    "toy_absorbed": (
        "lower",
        ("absorbed", "absorbing"),
        "have lost a feature to the latent of its child, or are it",
    ),
    "toy_duplicate": ("lower", ("duplicate",), "share their feature with another"),
    "toy_dead": ("neither", ("dead",), "are dead: where there are more latents than features, the rest should be"),
}
"""Metrics that are shares of the latents: direction, kinds of latents, what these are."""
METRICS = (
    Metric(
        "toy_matched_f1",
        "higher",
        "fraction",
        why=_RECIPE,
        help="Toy worlds: F1 of firing of latents matched to features one to one, over as many pairs as there can be.",
    ),
    Metric(
        "toy_exact",
        "higher",
        "fraction",
        main=True,
        why=_RECIPE,
        help="Toy worlds: exact latents over the most there can be; kinds of latents as defined in the documentation.",
    ),
    *(
        Metric(name, better, "fraction", why=_RECIPE, help=f"Toy worlds: share of the latents that {words}.")
        for name, (better, _, words) in SHARES.items()
    ),
)


def architecture_of(info: SAEInfo, asked: str) -> str | None:
    """The architecture that is put through the toy worlds; None for a control, and for one that is not trained here.

    Raises:
        SaebenchError: one is asked for that there are no settings for.
    """
    if asked and asked not in (OFF, *SETTINGS):
        raise SaebenchError(
            f"broken_latents.architecture is '{asked}'{did_you_mean(asked, [*SETTINGS, OFF])}: "
            f"give one that has settings for toy worlds, or '{OFF}'"
        )
    if asked == OFF or info.architecture in CONTROLS:
        return None
    name = asked or SAME.get(info.architecture, info.architecture)
    return name if name in SETTINGS else None


def recipes(infos: Sequence[SAEInfo], parameters: Mapping[str, Any], recipe: Callable[..., Recipe]) -> list[Recipe]:
    """What the task trains: one SAE for each world and seed, in that order.

    Raises:
        SaebenchError: an architecture or a world that there are no settings for.
    """
    name = architecture_of(infos[0], parameters["architecture"])
    if name is None:
        return []
    return [
        recipe(
            name,
            **{**COMMON, **SETTINGS[name](toy)},
            d_sae=toy.d_sae,
            tokens=toy.steps * COMMON["batch_size"],
            seed=seed,
            data_seed=seed,
        )
        for toy, seed in product(map(toy_of, parameters["worlds"]), range(parameters["toy_seeds"]))
    ]


def toy_of(world: str) -> Toy:
    """What is trained on a world.

    Raises:
        SaebenchError: there is nothing of that name.
    """
    if world not in TOYS:
        raise SaebenchError(f"broken_latents.worlds: '{world}' has no settings{did_you_mean(world, list(TOYS))}")
    return TOYS[world]


@dataclass(frozen=True)
class Outcome:
    """An SAE trained on a toy world, and what its latents stand for."""

    world: str
    seed: int
    scores: Scores

    @property
    def pairs(self) -> int:
        """Most exact latents there can be."""
        return min(len(side) for side in (self.scores.decoder, self.scores.decoder.T))


def outcomes(sae: SAE, ctx: Context, architecture: str, worlds: Sequence[str], seeds: int) -> list[Outcome]:
    """The architecture of an SAE trained on every world and judged on another sample of it; nothing for a control."""
    if architecture_of(sae.info, architecture) is None:
        return []
    return [
        Outcome(ref, seed, _judged(ctx, ref, seed, recipe))
        for (ref, seed), recipe in zip(product(worlds, range(seeds)), ctx.recipes, strict=True)
    ]


def _judged(ctx: Context, ref: str, seed: int, recipe: Recipe) -> Scores:
    from saebench_tasks.broken_latents.kinds import score

    world = ctx.world(ref)
    made = ctx.train(recipe, world.sample(ROWS, seed + 1)[0])
    return score(made, world, seed=0)


def estimates(found: Sequence[Outcome], info: SAEInfo, ctx: Context) -> dict[str, Estimate]:
    """The metrics: over all latents of all worlds and seeds together."""
    latents = sum(len(o.scores.kinds) for o in found)
    if not latents:
        why = (
            "a control has no recipe"
            if info.architecture in CONTROLS
            else f"not asked for, or '{info.architecture}' is not trained here: -P broken_latents.architecture=NAME"
        )
        return {m.name: ctx.census(None, 0, reason=why) for m in METRICS}
    pairs = sum(o.pairs for o in found)
    f1 = sum(float(o.scores.matched().f1.sum()) for o in found)
    exact = sum(o.scores.count("exact") for o in found)
    shares = {n: sum(o.scores.count(*kinds) for o in found) / latents for n, (_, kinds, _) in SHARES.items()}
    return {
        "toy_matched_f1": ctx.census(f1 / pairs, pairs, n_unit="pairs"),
        "toy_exact": ctx.census(exact / pairs, pairs, n_unit="pairs"),
        **{name: ctx.census(share, latents) for name, share in shares.items()},
    }
