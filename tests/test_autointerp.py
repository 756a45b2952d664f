"""Autointerp in a world that can be followed by hand: what is shown, told and asked, and what must not be."""

from __future__ import annotations

import re
from dataclasses import replace
from itertools import permutations
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from grid_world import (
    D_IN,
    DOCUMENTS,
    NAMES,
    PARAMETERS,
    F,
    grid_context,
    grid_sae,
    named,
    perfect,
    run,
    with_more_latents,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from meta_sae_samples import recipe

from saebench_meta import measure, stats, transcripts
from saebench_meta.errors import SaebenchError
from saebench_meta.judging import Answer, Request
from saebench_meta.task import Output
from saebench_tasks.autointerp import asking, asks, autointerp, prompts
from saebench_tasks.meta_sae import meta_sae

ACCURACIES = ("latent_accuracy", "meta_accuracy", "meta_accuracy_left_out")
SHUFFLED = ("latent_accuracy_shuffled", "meta_accuracy_shuffled")
TAG = re.compile(r"tag\d+")


def values(output: Output) -> dict[str, float | None]:
    return {name: e.value for name, e in output.estimates.items()}


def rows(output: Output, kind: str) -> list[Any]:
    return [row for row in output.transcripts["questions"].rows if row["kind"] == kind]


def silent(request: Request) -> Answer:
    return Answer(problem="refusal")


# -- what comes out


def test_a_judge_that_knows_everything_is_always_right_and_on_shuffled_descriptions_by_chance() -> None:
    right, asked = dict.fromkeys(SHUFFLED, 0.0), dict.fromkeys(SHUFFLED, 0)
    for seed in range(6):
        output = run(grid_context(perfect(seed), seed=seed))
        measure.check_output(autointerp, output)
        found = values(output)
        assert [found[name] for name in ACCURACIES] == [1, 1, 1]
        assert (found["unanswered_share"], found["no_meta_share"], found["dead_share"]) == (0, 0, 0)
        for name in SHUFFLED:
            e = output.estimates[name]
            right[name] += (e.value or 0) * e.n
            asked[name] += e.n
    for name in SHUFFLED:
        assert asked[name] > 200
        e = stats.proportion(round(right[name]), asked[name], n_unit="questions", level=0.999)
        assert e.ci_low is not None and e.ci_high is not None
        assert e.ci_low < 0.2 < e.ci_high


def test_a_judge_that_guesses_is_at_chance_whatever_is_asked() -> None:
    rng, right, asked = np.random.default_rng(1), 0.0, 0
    for seed in range(4):
        guess = lambda r: Answer(choice=int(rng.integers(5))) if r.options else Answer(text="x")  # noqa: E731
        for name, e in run(grid_context(guess, seed=seed)).estimates.items():
            if "accuracy" in name:
                right, asked = right + (e.value or 0) * e.n, asked + e.n
    e = stats.proportion(round(right), asked, n_unit="questions", level=0.999)
    assert asked > 600 and (e.ci_low or 0) < 0.2 < (e.ci_high or 0)


def test_a_judge_that_says_nothing_leaves_every_question_without_an_answer() -> None:
    output = run(grid_context(silent))
    measure.check_output(autointerp, output)
    assert all(output.estimates[name].value is None for name in (*ACCURACIES, *SHUFFLED))
    assert output.estimates["unanswered_share"].value == 1
    assert {row["problem"] for row in output.transcripts["questions"].rows} == {"no explanation"}
    assert f"{F} of {F} explanations were not given." in output.notes


def test_unanswered_questions_are_left_out_and_bounded() -> None:
    """A perfect judge that refuses every question whose first option is of letter a or b."""
    know = perfect()

    def picky(request: Request) -> Answer:
        first = request.options[0] if request.purpose == "choose_latent" else ""
        return Answer(problem="refusal") if re.search("«[ab]", first) else know(request)

    output = run(grid_context(picky))
    e, asked = output.estimates["latent_accuracy"], rows(output, "latents")
    refused = [row for row in asked if row["verdict"] == "unanswered"]
    assert 0 < len(refused) < F and {row["problem"] for row in refused} == {"refusal"}
    assert (e.value, e.n) == (1, F - len(refused))
    (note,) = [n for n in output.notes if "have no answer" in n]
    assert f"{len(refused)} of {F}" in note and f"would be {e.n / F:.3f}, with all of them right 1.000" in note
    share = output.estimates["unanswered_share"]
    assert share.value == sum(r["verdict"] == "unanswered" for r in output.transcripts["questions"].rows) / share.n


def test_dead_dense_and_rare_latents_are_counted_and_not_asked_about() -> None:
    ctx = grid_context(perfect())
    once = torch.zeros(D_IN)
    sae = with_more_latents(grid_sae(), [torch.ones(D_IN), torch.zeros(D_IN), once, torch.ones(D_IN)], [-99, 1, -1, -1])
    assert ctx.held is not None
    codes = ctx.codes(sae).counts()
    assert codes[F:].tolist() == [0, ctx.held.n_tokens, 0, codes[F + 3]] and codes[F + 3] > 0
    output = run(ctx, sae, dense=0.2)
    found, n = values(output), F + 4
    assert found["dead_share"] == pytest.approx(2 / n) and found["dense_share"] == pytest.approx(2 / n)
    assert found["askable_share"] == pytest.approx(F / n)
    table = output.tables["counts"].data.set_index("latents")["number"]
    assert table.to_dict() == {
        "dead": 2,
        "dense": 2,
        "too rare": 0,
        "can be asked about": F,
        "asked about": F,
        "explained": F,
    }
    rare = run(grid_context(perfect()), sae, fewest=DOCUMENTS)
    assert rare.tables["counts"].data.set_index("latents")["number"]["too rare"] == F
    assert rare.estimates["latent_accuracy"].value is None and rare.estimates["askable_share"].value == 0


def test_controls_are_asked_about_latents_only() -> None:
    ctx = grid_context(perfect(), control="random")
    output = run(ctx, latents=10)
    measure.check_output(autointerp, output)
    assert ctx.trainings == 0 and {r.purpose for r in ctx.asked} == {"explain_latent", "choose_latent"}
    assert len(ctx.of("explain_latent")) == 10 and output.estimates["latent_accuracy"].value == 1
    for name in ("meta_accuracy", "meta_accuracy_left_out", "meta_accuracy_shuffled", "no_meta_share"):
        assert "not for controls" in (output.estimates[name].reason or "")


def test_a_latent_without_a_meta_latent_counts_as_chance() -> None:
    """A row along neither a letter nor a digit, but a little of all, has no meta-latent."""
    sae = grid_sae()
    W_dec = sae.W_dec.clone()
    W_dec[:9] = 1
    output = run(grid_context(perfect()), replace(sae, W_dec=W_dec))
    assert output.estimates["no_meta_share"].value == 9 / F
    e = output.estimates["meta_accuracy"]
    whole = stats.proportion(F - 9, F - 9, n_unit="questions")
    assert e.n == F and e.value == pytest.approx(0.75 + 0.25 / 5)
    assert e.ci_low == pytest.approx(0.75 * (whole.ci_low or 0) + 0.25 / 5) and e.ci_high == pytest.approx(0.8)
    assert len(rows(output, "meta-latents")) == F - 9 and any("count as chance" in n for n in output.notes)


# -- what is shown, told and asked


def test_no_document_is_both_explained_from_and_asked_about() -> None:
    ctx = grid_context(perfect())
    run(ctx)
    explained = {tag for r in ctx.asked if not r.options for tag in TAG.findall(r.user)}
    asked = {tag for r in ctx.of("choose_latent") for text in r.options for tag in TAG.findall(text)}
    assert len(explained) > 40 and len(asked) > 40 and not explained & asked


def test_no_option_but_the_right_one_holds_a_token_that_the_target_fires_on() -> None:
    ctx = grid_context(perfect())
    for row in rows(run(ctx), "latents"):
        name = NAMES[row["latent"]]
        holds = [name in re.findall(r"[a-f]\d", text) for text in row["options"]]
        assert holds == [i == row["right"] for i in range(5)] and len(set(row["latents"])) == 5
        assert [f"«{NAMES[j]}»" in text for j, text in zip(row["latents"], row["options"], strict=True)] == [True] * 5


def test_explanations_without_the_target_hold_nothing_of_it() -> None:
    def listing(request: Request) -> Answer:
        if request.options:
            return Answer(choice=0)
        if request.purpose == "explain_latent":
            return Answer(text=named(request))
        return Answer(text="+".join(latent["explanation"] for latent in request.facts["latents"]))

    ctx = grid_context(listing)
    output = run(ctx)
    table = output.tables["meta_latents"].data
    assert len(table) == D_IN + 2 * F
    for row in table.itertuples():
        listed = [NAMES[int(j)] for j in row.latents.split()]
        assert row.explanation == "+".join(listed)
        if row.without is not pd.NA:
            assert len(listed) == 5 and NAMES[row.without] not in listed
            assert row.meta_latent in (row.without // 6, 6 + row.without % 6)
        else:
            assert len(listed) == 6
    for request in ctx.of("explain_meta_latent"):
        words = {latent["explanation"] for latent in request.facts["latents"]}
        marked = set(re.findall(r"«(..)»", request.user + str(request.facts)))
        assert marked == words  # no passage of a latent that is not listed
    for asked in rows(output, "meta-latents"):
        assert all(NAMES[asked["latent"]] in text for text in asked["description"])
    for asked in rows(output, "meta-latents, without it"):
        assert len(asked["description"]) == 2 and NAMES[asked["latent"]] not in "".join(asked["description"])


def test_a_meta_latent_that_only_the_target_explains_says_nothing_without_it() -> None:
    ctx = grid_context(perfect())
    output = run(ctx, listed=1)
    left = {row["latent"]: row["description"] for row in rows(output, "meta-latents, without it")}
    for row in rows(output, "meta-latents"):
        assert left.get(row["latent"], []) == [d for d in row["description"] if set(d) != set(NAMES[row["latent"]])]
    assert 0 < len(left) < F


def test_meta_questions_have_options_of_the_questions_on_latents() -> None:
    """Paired: the same latents in the same places, whatever is told."""
    output = run(grid_context(perfect()))
    seen: dict[int, Any] = {}
    for row in output.transcripts["questions"].rows:
        assert seen.setdefault(row["latent"], (row["latents"], row["right"])) == (row["latents"], row["right"])
        if "shuffled" in row["kind"]:
            assert row["described"] not in row["latents"]
        else:
            assert row["described"] == row["latent"]


def test_a_latent_that_is_not_explained_gives_its_place_among_options_to_another() -> None:
    know = perfect()

    def mute(request: Request) -> Answer:
        return Answer(problem="empty") if named(request) == "a0" and not request.options else know(request)

    output = run(grid_context(lambda r: know(r) if r.options else mute(r)))
    assert output.estimates["latent_accuracy"].n == F - 1 == output.estimates["meta_accuracy"].n
    asked = [row for row in rows(output, "meta-latents") if row["latent"] != 0]
    assert all("a0" not in row["options"] and len(row["options"]) == 5 for row in asked)
    (row,) = [row for row in rows(output, "latents") if row["latent"] == 0]
    assert row["problem"] == "no explanation" and row["verdict"] == "unanswered"


@pytest.mark.parametrize("purpose", ["choose_latent", "choose_meta"])
def test_prompts_say_the_same_of_every_option(purpose: str) -> None:
    options = ["«one»", "«two»", "«three»", "«four»", "«five»"]
    made = set()
    for order in permutations(options):
        request = asking.choose_latent("d", order) if purpose == "choose_latent" else asking.choose_meta(["d"], order)
        assert request.options == order and "right" not in request.facts
        user = request.user
        for i, option in enumerate(order, 1):
            assert f"\n{i}. {option}" in user
            user = user.replace(option, f"option {i}")
        made.add((request.system, user, repr(request.facts)))
    assert len(made) == 1


def test_prompts_are_files_with_a_version_and_every_value_in_them_is_filled_in() -> None:
    purposes = ("choose_latent", "choose_meta", "explain_latent", "explain_meta_latent")
    assert sorted(prompts()) == [f"{purpose}.v1" for purpose in purposes]
    ctx = grid_context(perfect())
    run(ctx)
    assert {r.purpose for r in ctx.asked} == set(purposes)
    for request in ctx.asked:
        assert "{" not in request.system + request.user and request.system and not request.user.startswith("\n")


def test_transcripts_are_what_the_report_can_show() -> None:
    for judge in (perfect(), silent):
        output = run(grid_context(judge))
        assert [transcripts.fault(row) for row in output.transcripts["questions"].rows] == [None] * (5 * F)


# -- what must not move a question


def asked_of(requests: list[Request]) -> list[tuple[str, str]]:
    return sorted((r.purpose, r.user) for r in requests)


@settings(max_examples=3, deadline=None)
@given(seed=st.integers(0, 1000))
def test_order_of_documents_and_scale_of_latents_do_not_matter(seed: int) -> None:
    rng = np.random.default_rng(seed)
    one = grid_context(perfect())
    run(one)
    other = grid_context(perfect(), order=rng.permutation(DOCUMENTS).tolist())
    s = 2.0 ** torch.from_numpy(rng.integers(-3, 4, F))
    sae = grid_sae()
    scaled = replace(sae, W_enc=sae.W_enc * s, b_enc=sae.b_enc * s, W_dec=sae.W_dec / s[:, None])
    assert values(run(other, scaled)) == values(run(grid_context(perfect())))
    assert asked_of(one.asked) == asked_of(other.asked)


def test_fewer_latents_are_the_first_of_more_with_the_same_questions() -> None:
    many, few = grid_context(perfect(), control="random"), grid_context(perfect(), control="random", limit=7)
    first = rows(run(many), "latents")[:7]
    assert rows(run(few), "latents") == first and len(few.of("explain_latent")) == 7


# -- estimate and parameters


def test_what_is_asked_is_what_was_estimated() -> None:
    """The world has two meta-latents on each latent, each on six."""
    ctx = grid_context(perfect())
    run(ctx)
    defaults = {p.name: p.default for p in autointerp.parameters}
    expected = asks((grid_sae().info,), {**defaults, **PARAMETERS, "k": 2, "width": 12}, None)
    for purpose in {one.purpose for one in expected}:
        own = sum(one.requests for one in expected if one.purpose == purpose)
        assert own == pytest.approx(len(ctx.of(purpose)), rel=0.05)
    control = grid_context(perfect(), control="random", limit=9)
    run(control)
    for one in asks((grid_sae().info,), {**defaults, **PARAMETERS}, 9):
        if one.on_controls:
            assert one.requests == len(control.of(one.purpose))


def test_the_meta_sae_is_that_of_the_task_meta_sae() -> None:
    recipes = []
    for task in (meta_sae, autointerp):
        assert task.trains is not None
        defaults = {p.name: p.default for p in task.parameters}
        recipes.append(task.trains((grid_sae().info,), defaults, recipe)[0])
    assert recipes[0].digest() == recipes[1].digest()


@pytest.mark.parametrize(
    ("name", "value"), [("latents", 0), ("top", 0), ("bins", -1), ("options", 1), ("fewest", 0), ("dense", 0.0)]
)
def test_parameters_out_of_range_are_refused(name: str, value: Any) -> None:
    with pytest.raises(SaebenchError, match=f"autointerp.{name} is {value}"):
        run(grid_context(perfect()), **{name: value})
