"""Tables and figures of the task."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from saebench_meta import charts
from saebench_meta.task import Figure, Table
from saebench_tasks.tpp import score
from saebench_tasks.tpp.metrics import SIZES

if TYPE_CHECKING:
    from saebench_tasks.tpp.score import SetResult

SHOWN_LATENTS = 10
X, Y = ("log10_n", "log10 of the latents ablated"), ("fall", "fall of accuracy")


def tables(sets: Sequence[SetResult]) -> dict[str, Table]:
    """What stands beside the record."""
    return {
        "sets": Table(
            "Score of each set",
            per_set(sets),
            "Means over log n and trials. A set of two classes is not counted: both of its probes are one classifier.",
        ),
        "curve": Table(
            "Score over the number of latents ablated",
            curve(sets),
            "Means over trials; `latents` is how many there were to ablate, mean over classes.",
        ),
        "cells": Table(
            "What the latents of each class do to each probe",
            cells(sets),
            "Fall of the accuracy of probe `probed` with the first n latents of class `ablated` ablated; mean over "
            "trials.",
        ),
        "trials": Table("Score of each trial", per_trial(sets), "Means over log n and over the sets that are counted."),
        "latents": Table(
            "The first latents of each class",
            latents(sets),
            f"Of the first trial, the {SHOWN_LATENTS} with the largest attribution.",
        ),
    }


def per_set(sets: Sequence[SetResult]) -> pd.DataFrame:
    """One row a set."""
    rows = []
    for s in sets:
        found = {name: float(c.sum()) for name, c in s.columns().items() if not name.startswith("score_")}
        spread = np.array([t.ranked.score @ score.OVER_LOG_N for t in s.trials])
        rows.append(
            {
                "set": s.name,
                "classes": len(s.classes),
                "test_texts": s.texts,
                "counted": s.counts,
                "C": s.strength,
                "probe_accuracy": found["accuracy"],
                "tpp": found["intended"] - found["unintended"],
                "intended": found["intended"],
                "unintended": found["unintended"],
                "tpp_random": found["random"],
                "intended_random": found["random_intended"],
                "reseed_sd": spread.std(ddof=1) if len(spread) > 1 else np.nan,
            }
        )
    return pd.DataFrame(rows)


def curve(sets: Sequence[SetResult]) -> pd.DataFrame:
    """One row a set and n."""
    frames = []
    for s in sets:
        intended = s.mean(lambda t: t.ranked.intended.sum(0))
        unintended = s.mean(lambda t: t.ranked.unintended.sum(0))
        drawn = s.random(lambda d: d.score)
        there = s.mean(lambda t: np.mean([np.minimum(SIZES, len(own)) for own in t.latents], axis=0))
        columns = {
            "set": s.name,
            "n": SIZES,
            "latents": there,
            "tpp": intended - unintended,
            "intended": intended,
            "unintended": unintended,
            "tpp_random": drawn.mean(0) if len(drawn) else np.nan,
            "tpp_random_sd": drawn.std(0, ddof=1) if len(drawn) else np.nan,
        }
        frames.append(pd.DataFrame(columns))
    return pd.concat(frames, ignore_index=True)


def cells(sets: Sequence[SetResult]) -> pd.DataFrame:
    """One row a set, ablated class, probed class and n."""
    frames = []
    for s in sets:
        falls = s.mean(lambda t: t.ranked.cells)
        index = pd.MultiIndex.from_product([s.classes, s.classes, SIZES], names=["ablated", "probed", "n"])
        frames.append(pd.DataFrame({"fall": falls.ravel()}, index=index).reset_index().assign(set=s.name))
    return pd.concat(frames, ignore_index=True)[["set", "ablated", "probed", "n", "fall"]]


def per_trial(sets: Sequence[SetResult]) -> pd.DataFrame:
    """One row a trial, over the sets that are counted."""
    counted = [s for s in sets if s.counts]
    if not counted:
        return pd.DataFrame({"trial": [], "tpp": []})
    found = score.of_trials(counted)
    return pd.DataFrame({"trial": np.arange(len(found)), "tpp": found})


def latents(sets: Sequence[SetResult]) -> pd.DataFrame:
    """One row a set, class and rank."""
    rows = [
        {"set": s.name, "class": name, "rank": rank, "latent": int(latent)}
        for s in sets
        for name, own in zip(s.classes, s.trials[0].latents, strict=True)
        for rank, latent in enumerate(own[:SHOWN_LATENTS], 1)
    ]
    return pd.DataFrame(rows, columns=["set", "class", "rank", "latent"])


def figures(sets: Sequence[SetResult]) -> dict[str, Figure]:
    """S(n) of every set, and its parts as means over the sets that are counted."""
    table = curve(sets)
    by_set = table.assign(log10_n=np.log10(table["n"]), fall=table["tpp"])
    found = {
        "sets": Figure(
            "Score over latents ablated, each set",
            charts.lines(by_set, x=X, y=Y, group="set"),
            "Intended minus unintended fall of accuracy, mean over trials.",
        )
    }
    counted = table[table["set"].isin([s.name for s in sets if s.counts])]
    if len(counted):
        names = {"tpp": "score", "intended": "intended", "unintended": "unintended", "tpp_random": "random latents"}
        means = counted.groupby("n", as_index=False)[list(names)].mean().rename(columns=names)
        parts = means.melt("n", var_name="part", value_name="fall").dropna()
        found["curve"] = Figure(
            "Score over latents ablated",
            charts.lines(parts.assign(log10_n=np.log10(parts["n"])), x=X, y=Y, group="part"),
            f"Means over trials and {counted['set'].nunique()} sets.",
        )
    return found


def notes(sets: Sequence[SetResult], trials: int, protocol: str) -> tuple[str, ...]:
    """What the numbers rest on, in sentences."""
    left_out = [s.name for s in sets if not s.counts]
    said = [
        f"{sum(s.texts for s in sets)} test texts of {len(sets)} sets, {trials} trials; protocol {protocol}.",
        "A trial draws the training texts of probes and ranking anew; test texts, activations and codes stay.",
        "The score is experimental: see the page of the task.",
    ]
    if left_out:
        said.append(f"Not counted, since the two probes of two classes are one classifier: {', '.join(left_out)}.")
    return tuple(said)
