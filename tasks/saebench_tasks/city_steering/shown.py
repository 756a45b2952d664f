"""Columns by source city, tables, figures and notes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from saebench_meta import charts
from saebench_meta.task import Figure, Table
from saebench_tasks.city_steering.search import margins, wanted
from saebench_tasks.city_steering.shared import ANY, Odds

if TYPE_CHECKING:
    from saebench_meta.context import Context
    from saebench_meta.sae import SAE
    from saebench_meta.stats import Estimate
    from saebench_tasks.city_steering.edits import CityLatents
    from saebench_tasks.city_steering.prompts import Asked
    from saebench_tasks.city_steering.search import Answers, Pair, Searched
    from saebench_tasks.city_steering.side import Effects, Unrelated


@dataclass(frozen=True, eq=False)
class Measured:
    """A pair's search and side effects."""

    done: Searched
    side: Effects | None

    @property
    def pair(self) -> Pair:
        return self.done.pair


def answered(asked: Asked, pair: Pair, logp: Answers, changed: Sequence[int]) -> bool:
    """Whether the one edit of these log-probabilities changes exactly some attributes."""
    return bool(margins(logp, wanted(asked, pair, [changed]))[0, 0] > 0)


def swapped(asked: Asked, pair: Pair, logp: Answers) -> int:
    """Differing attributes that are answered for the target."""
    at = [pair.attributes.index(a) for a in pair.differ]
    return sum(int(logp[i][0].argmax()) == asked.right[pair.target, pair.attributes[i]] for i in at)


def by_source(asked: Asked, measured: Sequence[Measured]) -> dict[str, np.ndarray]:
    """Sums over the pairs of each source city, which intervals resample."""
    sources = list(dict.fromkeys(m.pair.source for m in measured))
    rows = []
    for source in sources:
        mine = [_sums(asked, m) for m in measured if m.pair.source == source]
        rows.append({name: sum(row[name] for row in mine) for name in mine[0]})
    columns = {name: np.array([row[name] for row in rows], dtype=np.float64) for name in rows[0]}
    return {"document": np.array([asked.cities[s] for s in sources]), **columns}


def _sums(asked: Asked, m: Measured) -> dict[str, float]:
    pair, done = m.pair, m.done
    return {
        "pairs": 1,
        "reached_share": float(done.chosen.reached.mean()),
        "null_share": float(done.null.reached.mean()),
        "swap_all_pairs": answered(asked, pair, done.swap, pair.differ),
        "swap_right": swapped(asked, pair, done.swap),
        "differing": len(pair.differ),
        "rebuild_kept": answered(asked, pair, done.rebuild, ()),
        "swap_divergence": np.nan if m.side is None else m.side.swap,
        "edit_divergence": np.nan if m.side is None else m.side.edit,
        "predictions": np.nan if m.side is None else m.side.predictions,
    }


def of_the_model(asked: Asked, ctx: Context) -> dict[str, Estimate]:
    """What the unedited model knows."""
    eligible = asked.eligible
    n, known = (len(asked.cities) + len(asked.left_out)) * len(asked.attributes), int(eligible.sum())
    again = int((eligible & asked.right_on("heldout")).sum())
    unit = "attributes of cities"
    return {
        "eligible": ctx.census(known / n, n, n_unit=unit),
        "heldout_accuracy": ctx.census(again / known, known, n_unit=unit),
    }


def shared_odds(odds: Sequence[Odds], found: CityLatents, ctx: Context) -> Estimate:
    """Of any attribute; its interval is in the table."""
    value = next((row.odds_ratio for row in odds if row.attribute == ANY), np.nan)
    known, unit = bool(np.isfinite(value)), "different latents"
    reason = None if known else "too few cities have latents of their own, or all or none share a meta-latent"
    return ctx.census(value if known else None, different(found), n_unit=unit, reason=reason)


def different(found: CityLatents) -> int:
    """How many different latents, or sets of m, the cities have."""
    return len({tuple(sorted(row)) for row in found.latents.tolist()})


def eligibility(asked: Asked) -> str:
    """How much is eligible, in words."""
    cities = len(asked.cities) + len(asked.left_out)
    counts = asked.eligible.sum(0)
    each = ", ".join(f"{name} {count}" for name, count in zip(asked.attributes, counts, strict=True))
    return (
        f"{int(counts.sum())} of {cities * len(asked.attributes)} attributes of cities are eligible ({each}); "
        f"{len(asked.cities)} of {cities} cities are single tokens"
    )


def notes(
    asked: Asked, found: CityLatents, measured: Sequence[Measured], positions: str, text: Unrelated | None
) -> tuple[str, ...]:
    """What the numbers rest on."""
    sampled = sum(len(m.done.found.on) < m.done.found.of for m in measured)
    sets = [set(row) for row in found.latents.tolist()]
    alike = sum(sets[m.pair.source] == sets[m.pair.target] for m in measured)
    tried = [len(m.done.found.on) for m in measured]
    side = (
        "no row of the sample is free of cities: no side effects"
        if text is None
        else (f"side effects on {text.predictions} predictions in {len(text.tokens)} rows that name no city")
    )
    where = {"all": "all tokens but BOS", "after": "the city and all after it", "city": "the city alone"}[positions]
    return (
        eligibility(asked) + ".",
        f"These cities have {different(found)} different latents; in {alike} of the pairs both have the same, so that "
        "a swap changes next to nothing.",
        f"{len(measured)} ordered pairs, {sum(tried)} meta-latent edits ({min(tried)} to {max(tried)} a pair)"
        + (f"; of {sampled} pairs a seeded sample of their subsets of meta-latents." if sampled else "."),
        f"Edits are made at {where}; the SAE's error is kept. Documents of this record are source cities: intervals "
        f"resample them. {side[0].upper()}{side[1:]}.",
    )


# -- tables


def tables(
    asked: Asked, found: CityLatents, meta: SAE, measured: Sequence[Measured], odds: Sequence[Odds]
) -> dict[str, Table]:
    """Eligibility, cities, pairs, subsets, log-probabilities and meta-latents in common."""
    return {
        "eligible": Table(
            "What the unedited model knows", _eligible(asked), "Margins in nats over the next candidate."
        ),
        "cities": Table("Latents of cities", _cities(asked, found, meta)),
        "pairs": Table("Pairs of cities", pd.DataFrame([_pair(asked, m) for m in measured])),
        "subsets": Table(
            "Subsets of attributes, and the edit chosen for each",
            pd.DataFrame([row for m in measured for row in _subsets(asked, m.done)]),
            "Chosen on selection prompts; `reached` is by the held-out ones.",
        ),
        "logprobs": Table(
            "Log-probabilities after edits",
            pd.DataFrame([row for m in measured for row in _logprobs(asked, m.done)]),
            "Means over held-out prompts: of both cities' values and of the likeliest other candidate.",
        ),
        "shared": Table(
            "Meta-latents in common, by attributes in common",
            pd.DataFrame(map(asdict, odds), columns=[f.name for f in fields(Odds)]),
            "Counts of pairs of cities with different latents. `low` to `high`: 95 % interval of the odds ratio "
            "(jackknife over latents); `null_low` to `null_high`: what exchanging meta-latents gives.",
        ),
    }


def _eligible(asked: Asked) -> pd.DataFrame:
    rows = []
    for c, city in enumerate(asked.cities):
        for a, attribute in enumerate(asked.attributes):
            right = int(asked.right[c, a])
            row: dict[str, Any] = {"city": city, "attribute": attribute, "eligible": bool(asked.eligible[c, a])}
            row["value"] = asked.candidates[a][right] if right >= 0 else ""
            for split, logp in asked.logp.items():
                values = logp[a][c]
                row[f"answer_{split}"] = asked.candidates[a][int(values.argmax())]
                other = np.delete(values, right).max(initial=-np.inf) if right >= 0 else np.nan
                row[f"margin_{split}"] = values[right] - other if right >= 0 else np.nan
            rows.append(row)
    return pd.DataFrame(rows)


def _cities(asked: Asked, found: CityLatents, meta: SAE) -> pd.DataFrame:
    codes = meta.encode(found.directions.to(meta.W_dec))
    columns = {
        "city": asked.cities,
        "latents": [_numbers(row.tolist()) for row in found.latents],
        "activations": [_numbers(row.tolist()) for row in found.codes],
        "contrast": [_numbers(row.tolist()) for row in found.contrast],
        "meta_latents": [_numbers((row > 0).nonzero().flatten().tolist()) for row in codes],
    }
    return pd.DataFrame(columns)


def _numbers(values: Sequence[float]) -> str:
    return " ".join(f"{value:.6g}" for value in values)


def _named(asked: Asked, attributes: Sequence[int]) -> str:
    return "+".join(asked.attributes[a] for a in attributes)


def _ends(asked: Asked, pair: Pair) -> dict[str, str]:
    return {"city": asked.cities[pair.source], "target": asked.cities[pair.target]}


def _pair(asked: Asked, m: Measured) -> dict[str, Any]:
    pair, done, sums = m.pair, m.done, _sums(asked, m)
    reached = [_named(asked, s) for s, yes in zip(pair.subsets, done.chosen.reached, strict=True) if yes]
    return {
        **_ends(asked, pair),
        "subsets": len(pair.subsets),
        "reached": len(reached),
        "reached_subsets": " ".join(reached),
        "null_reached": int(done.null.reached.sum()),
        "attributes": _named(asked, pair.differ),
        "swap_right": sums["swap_right"],
        "swap_all": sums["swap_all_pairs"],
        "rebuild_keeps": sums["rebuild_kept"],
        "meta_latents": len(done.found.union),
        "edits": len(done.found.on),
        "swap_kl": sums["swap_divergence"] / sums["predictions"],
        "edit_kl": sums["edit_divergence"] / sums["predictions"],
    }


def _subsets(asked: Asked, done: Searched) -> Iterator[dict[str, Any]]:
    found = done.found
    for i, subset in enumerate(done.pair.subsets):
        on = found.on[done.chosen.edit[i]]
        yield {
            **_ends(asked, done.pair),
            "subset": _named(asked, subset),
            "reached": bool(done.chosen.reached[i]),
            "removed": _numbers(found.union[found.source & ~on].tolist()),
            "added": _numbers(found.union[~found.source & on].tolist()),
            "margin_selection": done.chosen.selection[i],
            "margin_heldout": done.chosen.heldout[i],
            "null_reached": bool(done.null.reached[i]),
            "null_margin_selection": done.null.selection[i],
            "null_margin_heldout": done.null.heldout[i],
        }


def _logprobs(asked: Asked, done: Searched) -> Iterator[dict[str, Any]]:
    pair = done.pair
    clean = [asked.logp["heldout"][a][[pair.source]] for a in pair.attributes]
    edits = {"none": clean, "latent swap": done.swap, "rebuilt": done.rebuild}
    for i, subset in enumerate(pair.subsets):
        edits[_named(asked, subset)] = [values[[i]] for values in done.chosen.logp]
    for edit, logp in edits.items():
        for a, values in zip(pair.attributes, logp, strict=True):
            for candidate in _of_interest(asked, pair, a, values[0]):
                yield {
                    **_ends(asked, pair),
                    "edit": edit,
                    "attribute": asked.attributes[a],
                    "candidate": asked.candidates[a][candidate],
                    "logprob": values[0][candidate],
                }


def _of_interest(asked: Asked, pair: Pair, a: int, values: np.ndarray) -> list[int]:
    """Both cities' values and the likeliest other candidate."""
    own = list(dict.fromkeys((int(asked.right[pair.source, a]), int(asked.right[pair.target, a]))))
    others = [int(c) for c in values.argsort()[::-1] if int(c) not in own]
    return own + others[:1]


# -- figures


def figures(measured: Sequence[Measured]) -> dict[str, Figure]:
    """Share of the subsets reached, by how many attributes they change."""
    rows = [
        {"size": len(subset), "edits": name, "reached": float(choice.reached[i])}
        for m in measured
        for name, choice in (("meta-latents", m.done.chosen), ("random directions", m.done.null))
        for i, subset in enumerate(m.pair.subsets)
    ]
    shares = pd.DataFrame(rows).groupby(["edits", "size"])["reached"].mean().reset_index()
    chart = charts.lines(
        shares, x=("size", "attributes changed"), y=("reached", "share of subsets"), group="edits", y_domain=(0, 1)
    )
    return {"reached": Figure("Subsets reached", chart, "Over all pairs; on held-out prompts.")}
