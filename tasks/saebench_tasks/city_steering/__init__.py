"""Can one attribute of a city be edited and the others left, through the city's latent and its meta-latents?

The post "Showing SAE latents are not atomic using meta-SAEs", section on targeted edits, which did it by hand for
Paris, Tokyo and Cairo on GPT-2. Prompts ask a language model for country, language, continent and currency of cities;
cities and values are single tokens, and an attribute of a city is eligible where the unedited model answers it right
(`prompts`). For ordered pairs (source, target) that differ in `a` eligible attributes, two kinds of edits (`edits`):

- the latent swap: the source's latents off, the target's at their activation on the target;
- meta-latent edits: the source's direction rebuilt from every subset of both cities' meta-latents.

Reported is the share of pairs in which the swap carries all attributes, and the share of the 2^a − 1 subsets of the
attributes for which some meta-latent edit, chosen on selection prompts, changes exactly these on held-out prompts
(`search`), beside the same search among as many random directions of the same norm.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from saebench_meta.errors import SaebenchError, UnmetNeedError
from saebench_meta.hookspecs import hookimpl
from saebench_meta.task import Metric, Output, Task, task
from saebench_tasks.city_steering.meta import trains

if TYPE_CHECKING:
    from saebench_meta.context import Context
    from saebench_meta.sae import SAE
    from saebench_tasks.city_steering.prompts import Asked

saebench_api = 1

TASK = "city_steering"
TOKENS_PER_PAIR, FEWEST = 16_384, 2
"""So that a profile's tokens say how many pairs there are: 2, 4 or 64."""
_MODEL = "it depends on the model and the prompts, not on the SAE"
_CARRIES = "the latent of a city carries what the model knows of it; a random direction carries a trace of it at most"
_NO_ORACLE = (
    "no place for the oracle: what is common to cities of a country or language stands in latents of its own there, so "
    "that the city's own latent has little left to edit"
)
_SIDE = "an edit that does nothing has no side effects either"

_SHARED = (
    "where a dictionary has latents for countries and languages, those of cities need have nothing in common; where it "
    "has not, their meta-latents should"
)

METRICS = (
    Metric(
        "subsets_reached",
        "higher",
        "fraction",
        main=True,
        of="reached_share / pairs",
        expects="trained>random",
        why=f"{_CARRIES}; {_NO_ORACLE}",
        help="Share of a pair's subsets of differing attributes that a meta-latent edit changes exactly.",
    ),
    Metric(
        "null_reached",
        "neither",
        "fraction",
        main=True,
        of="null_share / pairs",
        why="what a search among random directions finds by chance",
        help="The same search among as many random directions of the same norm.",
    ),
    Metric(
        "beyond_null",
        "higher",
        "fraction",
        main=True,
        of="(reached_share - null_share) / pairs",
        expects="trained>random",
        why=f"{_CARRIES}; {_NO_ORACLE}",
        help="subsets_reached − null_reached.",
    ),
    Metric(
        "swap_all",
        "higher",
        "fraction",
        main=True,
        of="swap_all_pairs / pairs",
        expects="trained>random",
        why=f"{_CARRIES}; {_NO_ORACLE}",
        help="Share of pairs in which the model answers for the target on all attributes after the latent swap.",
    ),
    Metric(
        "swap_accuracy",
        "higher",
        "fraction",
        of="swap_right / differing",
        expects="trained>random",
        why=f"{_CARRIES}; {_NO_ORACLE}",
        help="Share of the differing attributes that it answers for the target after the latent swap.",
    ),
    Metric(
        "rebuild_keeps",
        "neither",
        "fraction",
        of="rebuild_kept / pairs",
        why="a rebuilt direction that does nothing keeps everything",
        help="Share of pairs in which no answer changes when the source is rebuilt from all its own meta-latents.",
    ),
    Metric(
        "swap_kl",
        "lower",
        "nats",
        of="swap_divergence / predictions",
        why=_SIDE,
        help="KL divergence of the next token on unrelated text under the latent swap, mean over tokens and pairs.",
    ),
    Metric(
        "edit_kl",
        "lower",
        "nats",
        of="edit_divergence / predictions",
        why=_SIDE,
        help="The same under the meta-latent edit chosen to change all attributes.",
    ),
    Metric(
        "shared_odds",
        "neither",
        "1",
        why=_SHARED,
        help="Odds ratio: latents of cities with an attribute in common against others, of sharing a meta-latent.",
    ),
    Metric(
        "eligible",
        "neither",
        "fraction",
        why=_MODEL,
        help="Share of (city, attribute) that are single tokens and that the unedited model answers right.",
    ),
    Metric(
        "heldout_accuracy",
        "neither",
        "fraction",
        why=_MODEL,
        help="Share of the eligible ones that the unedited model answers right on held-out prompts too.",
    ),
)


@task(
    TASK,
    version=1,
    metrics=METRICS,
    needs=["activations", "lm", "cities"],
    controls=["random", "permuted_rows"],
    limit_unit="pairs",
    profiles={"quick": {"steps": 150}},
    source='the post "Showing SAE latents are not atomic using meta-SAEs", targeted edits',
    trains=trains,
)
def city_steering(
    sae: SAE,
    ctx: Context,
    *,
    cities: str = "",  # noqa: ARG001  # read when the run is planned
    pairs: int = 0,
    latents: int = 1,
    positions: str = "all",
    edits: int = 64,
    side_tokens: int = 1024,
    width: int = 0,  # noqa: ARG001  # this and the next three are read by `trains`
    k: int = 4,  # noqa: ARG001
    steps: int = 300,  # noqa: ARG001
    lr: float = 1e-3,  # noqa: ARG001
) -> Output:
    """Editing single attributes of a city through the meta-latents of its latent.

    Args:
        cities: name of a plugin's set of cities, or a JSON file; empty for the one that fits the model.
        pairs: ordered pairs at most, drawn by the seed; 0 for one every 16,384 tokens of the sample, at least 2.
        latents: m, latents that stand for a city.
        positions: where an edit is made: `all` tokens but BOS, the city and all `after` it, or the `city` alone.
        edits: meta-latent edits of a pair at most; where there are more subsets, a sample drawn by the seed.
        side_tokens: tokens of unrelated text that side effects are measured on.
        width: meta-latents; 0 for 3 · d_in, or a quarter of the latents where that is fewer.
        k: meta-latents a decoder row, on average.
        steps, lr: of training the meta-SAE.

    Raises:
        SaebenchError: a parameter is out of range.
        UnmetNeedError: the model answers too little right for a pair of cities.
    """
    from saebench_tasks.city_steering import edits as editing
    from saebench_tasks.city_steering import search, shared, shown, side
    from saebench_tasks.city_steering.meta import meta_sae

    _check(pairs=pairs, edits=edits, side_tokens=side_tokens, positions=positions, known=editing.POSITIONS)
    asked, hook = _asked(sae, ctx), sae.info.site.hook
    most = pairs or max(FEWEST, ctx.activations().n_tokens // TOKENS_PER_PAIR)
    chosen = search.pairs(asked, min(most, ctx.limit or most), ctx.rng("pairs"))
    if not chosen:
        raise UnmetNeedError(f"{shown.eligibility(asked)}: no two cities differ in one of these")
    text = ctx.memo(
        (TASK, "text", hook, side_tokens), lambda: side.unrelated(ctx, hook, asked.city_tokens, side_tokens)
    )
    found, meta = editing.city_latents(sae, asked, latents), meta_sae(sae, ctx)
    searcher = search.Search(sae, asked, found, ctx, positions)
    measured = []
    for pair in ctx.track(chosen, "pairs of cities", len(chosen)):
        u = found.directions
        draw = ctx.rng(f"subsets of {asked.cities[pair.source]} to {asked.cities[pair.target]}")
        subsets = editing.subsets(meta, u[pair.source], u[pair.target], edits, draw)
        done = searcher.run(pair, subsets)
        measured.append(shown.Measured(done, side.effects(searcher.editor(pair), text, done, ctx.lm(), hook)))
    facts = ctx.cities().facts
    odds = shared.shared([facts[city] for city in asked.cities], found, meta, sae, ctx.rng("exchanged meta-latents"))
    return Output(
        documents=shown.by_source(asked, measured),
        estimates={**shown.of_the_model(asked, ctx), "shared_odds": shown.shared_odds(odds, found, ctx)},
        tables=shown.tables(asked, found, meta, measured, odds),
        figures=shown.figures(measured),
        notes=shown.notes(asked, found, measured, positions, text),
    )


def _check(*, pairs: int, edits: int, side_tokens: int, positions: str, known: tuple[str, ...]) -> None:
    for name, value, least in (("pairs", pairs, 0), ("edits", edits, 2), ("side_tokens", side_tokens, 1)):
        if value < least:
            raise SaebenchError(f"{TASK}.{name} is {value}: give at least {least}")
    if positions not in known:
        raise SaebenchError(f"{TASK}.positions is '{positions}': give one of {', '.join(known)}")


def _asked(sae: SAE, ctx: Context) -> Asked:
    """Prompts and the unedited model's answers, the same for the SAE and its controls."""
    from saebench_tasks.city_steering import prompts

    info, cities = sae.info, ctx.cities()
    key = (TASK, repr(cities), str(info.site), info.prepend_bos)
    return ctx.memo(key, lambda: prompts.ask(ctx.lm(), cities, info.site.hook, info.prepend_bos))


@hookimpl
def saebench_tasks() -> list[Task]:
    return [city_steering]
