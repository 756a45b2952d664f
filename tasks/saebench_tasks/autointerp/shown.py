"""Tables, figures, the transcript and notes of the task."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from saebench_meta import charts
from saebench_meta.task import Figure, Table, Transcript
from saebench_tasks.autointerp import questions, score
from saebench_tasks.autointerp.peaks import ASKABLE, DEAD, DENSE, RARE

if TYPE_CHECKING:
    import altair
    from jaxtyping import Shaped

    from saebench_meta.context import Context
    from saebench_tasks.autointerp.explanations import Explanations
    from saebench_tasks.autointerp.peaks import Peaks
    from saebench_tasks.autointerp.questions import Drawn, Outcome
    from saebench_tasks.autointerp.score import Bin, Count

LABELS = {
    questions.LATENT: "latents",
    questions.LATENT_SHUFFLED: "latents, shuffled",
    questions.META: "meta-latents",
    questions.META_LEFT_OUT: "meta-latents, without it",
    questions.META_SHUFFLED: "meta-latents, shuffled",
}
INTERVAL = ["accuracy", "ci_low", "ci_high"]
Y = "answered right (95 % interval)"


@dataclass(frozen=True, eq=False)
class Result:
    """All that came out for one dictionary.

    Attributes:
        kinds: of every latent, as of `peaks.kinds`.
        n_options: of a question.
    """

    peaks: Peaks
    kinds: Shaped[np.ndarray, " d_sae"]
    drawn: Sequence[Drawn]
    explained: Explanations
    outcomes: Sequence[Outcome]
    counted: Mapping[str, Count]
    by_frequency: Sequence[Bin]
    n_options: int

    @property
    def chance(self) -> float:
        return 1 / self.n_options


def tables(r: Result, ctx: Context) -> dict[str, Table]:
    """What stands beside the record. Explanations are the judge's words; passages are in the transcript only."""
    return {
        "accuracy": Table(
            "Questions by kind",
            accuracies(r, ctx),
            "Accuracy is over answered questions and those that count as chance; with a Wilson interval.",
        ),
        "frequency": Table(
            "Accuracy by frequency",
            frequencies(r),
            "Questions on latents, in bins of density (share of tokens a latent fires on) with as many questions each.",
        ),
        "counts": Table("Latents", latent_counts(r), "Which latents there are, and how many were asked about."),
        "latents": Table(
            "Explanations of latents", latents(r), "In the judge's words, with the verdict on the question about it."
        ),
        "meta_latents": Table(
            "Explanations of meta-latents",
            meta_latents(r.explained),
            "`without` is the latent that it is explained without; the numbers are those it is explained from.",
        ),
    }


def accuracies(r: Result, ctx: Context) -> pd.DataFrame:
    """One row a kind of question that was asked."""
    rows = []
    for kind, c in r.counted.items():
        if c.asked + c.by_chance:
            e = score.accuracy(c, r.chance, ctx)
            row = {"questions": LABELS[kind], "asked": c.asked, "answered": c.answered, "right": c.right}
            limits = dict(zip(INTERVAL, (e.value, e.ci_low, e.ci_high), strict=True))
            rows.append({**row, "by_chance": c.by_chance, **limits})
    return pd.DataFrame(rows, columns=["questions", "asked", "answered", "right", "by_chance", *INTERVAL])


def frequencies(r: Result) -> pd.DataFrame:
    """One row a bin of density."""
    rows = [
        (b.low, b.high, b.counted.answered, b.counted.right, b.accuracy.value, b.accuracy.ci_low, b.accuracy.ci_high)
        for b in r.by_frequency
    ]
    return pd.DataFrame(rows, columns=["density_low", "density_high", "answered", "right", *INTERVAL])


def latent_counts(r: Result) -> pd.DataFrame:
    """How many latents can be asked about, how many cannot and why, and how many were."""
    number = Counter(r.kinds.tolist())
    rows = [(kind, number[kind]) for kind in (DEAD, DENSE, RARE, ASKABLE)]
    rows += [("asked about", len(r.drawn)), ("explained", len(r.explained.latents))]
    found = pd.DataFrame(rows, columns=["latents", "number"])
    return found.assign(share=found["number"] / max(1, len(r.kinds)))


def latents(r: Result) -> pd.DataFrame:
    """One row a latent that was to be explained."""
    verdicts = {o.question.target: o.verdict for o in r.outcomes if o.question.kind == questions.LATENT}
    rows = [(j, r.peaks.density[j], verdicts.get(j, ""), r.explained.latents.get(j, "")) for j in r.explained.passages]
    return pd.DataFrame(rows, columns=["latent", "density", "verdict", "explanation"])


def meta_latents(e: Explanations) -> pd.DataFrame:
    """One row an explanation of a meta-latent."""
    keys: list[tuple[int, int | None]] = [(m, None) for m in e.meta]
    keys += sorted(e.without)
    rows = []
    for m, target in keys:
        numbers = " ".join(str(j) for j in e.sources[m] if j != target)
        rows.append((m, target, numbers, e.meta[m] if target is None else e.without[m, target]))
    found = pd.DataFrame(rows, columns=["meta_latent", "without", "latents", "explanation"])
    return found.astype({"without": "Int64"}).sort_values(["meta_latent", "without"], na_position="first")


def figures(r: Result, ctx: Context) -> dict[str, Figure]:
    """Accuracies beside chance, by kind of question and by frequency."""
    kinds, bins = accuracies(r, ctx).dropna(), frequencies(r).dropna()
    said = f"Dashed: chance, {r.chance:.2g}."
    found = {}
    if len(kinds):
        found["accuracy"] = Figure("Answered right", _columns(kinds, r.chance), said)
    if len(bins):
        middle = np.log10(np.sqrt(bins["density_low"] * bins["density_high"]))
        found["frequency"] = Figure(
            "Answered right by frequency", _points(bins.assign(log10_density=middle), r.chance), f"Latents. {said}"
        )
    return found


def _columns(data: pd.DataFrame, chance: float) -> altair.TopLevelMixin:
    import altair as alt

    base = alt.Chart(data, width=charts.WIDTH, height=charts.HEIGHT)
    x = alt.X("questions:N", title=None, sort=list(data["questions"]), axis=alt.Axis(labelAngle=-30, labelLimit=200))
    columns = base.mark_bar(color=charts.COLOURS[0], opacity=0.65).encode(x=x, y=_accuracy(), tooltip=list(data))
    return _with_intervals(columns, base, x, chance)


def _points(data: pd.DataFrame, chance: float) -> altair.TopLevelMixin:
    import altair as alt

    base = alt.Chart(data, width=charts.WIDTH, height=charts.HEIGHT)
    title = "log10 of the share of tokens a latent fires on (middle of the bin)"
    x = alt.X("log10_density:Q", title=title, scale=alt.Scale(zero=False, padding=12))
    points = base.mark_point(color=charts.COLOURS[0], filled=True, size=50)
    return _with_intervals(points.encode(x=x, y=_accuracy(), tooltip=list(data)), base, x, chance)


def _accuracy() -> altair.Y:
    import altair as alt

    return alt.Y("accuracy:Q", title=Y, scale=alt.Scale(domain=[0, 1]))


def _with_intervals(drawn: altair.Chart, base: altair.Chart, x: altair.X, chance: float) -> altair.TopLevelMixin:
    """With intervals as vertical lines, and a dashed line at chance."""
    import altair as alt

    lines = base.mark_rule(color=charts.RULE, strokeWidth=2).encode(x=x, y=alt.Y("ci_low:Q", title=Y), y2="ci_high:Q")
    rule = alt.Chart().mark_rule(strokeDash=[4, 4], color=charts.RULE).encode(y=alt.YDatum(chance, type="quantitative"))
    return alt.layer(drawn, lines, rule)


def transcripts(r: Result) -> dict[str, Transcript]:
    """Every question with its options, answer and verdict."""
    said = "Every question, with what the judge was told, what it could choose from and what it answered."
    return {"questions": Transcript("Questions", [_row(o) for o in r.outcomes], said)}


def _row(o: Outcome) -> dict[str, Any]:
    q, a = o.question, o.answer
    on_latents = q.kind in questions.LATENT_KINDS
    return {
        "id": f"{q.kind}-{q.target}",
        "kind": LABELS[q.kind],
        "latent": q.target,
        "described": q.source,
        "description": "".join(q.descriptions) if on_latents else list(q.descriptions),
        "options": list(q.options),
        "latents": list(q.latents),
        "answer": a.choice,
        "right": q.right,
        "verdict": o.verdict,
        "words": a.text,
        "problem": a.problem,
        "model": a.model,
    }


def notes(r: Result, judge: str) -> tuple[str, ...]:
    """What the numbers rest on, in sentences."""
    number, docs = Counter(r.kinds.tolist()), r.peaks.documents
    said = [
        f"Judge: {judge}. Scores of different judges are not comparable.",
        f"{len(r.drawn)} latents were asked about, of {number[ASKABLE]} that can be; of {len(r.kinds)} in all, "
        f"{number[DEAD]} are dead, {number[DENSE]} dense and {number[RARE]} too rare.",
        f"Passages of explanations are from {int(docs.explains.sum())} documents, passages of questions from "
        f"{int((~docs.explains).sum())} others.",
    ]
    if r.explained.missing:
        said.append(f"{r.explained.missing} of {r.explained.asked} explanations were not given.")
    for kind in (questions.LATENT, questions.META):
        c = r.counted[kind]
        if c.answered < c.asked:
            low, high = score.bounds(c, r.chance)
            said.append(
                f"{c.asked - c.answered} of {c.asked} questions on {LABELS[kind]} have no answer: with all of them "
                f"wrong the accuracy would be {low:.3f}, with all of them right {high:.3f}."
            )
    certain = r.counted[questions.META], r.counted[questions.META_LEFT_OUT]
    if certain[1].by_chance:
        said.append(
            f"No meta-latent is active on {certain[0].by_chance} of the latents asked about, and none that others "
            f"explain too on {certain[1].by_chance}: these count as chance, {r.chance:.2g} each, and the interval is "
            "that of the others, moved towards it."
        )
    return tuple(said)
