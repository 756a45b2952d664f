"""City steering on towns that can be followed by hand: what is eligible, the edits, the search, chance."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from fakes import HOOK, info
from towns import BOS, CITIES, TOWNS, TownContext, TownModel

from saebench_meta.cities import Cities
from saebench_meta.errors import SaebenchError, UnmetNeedError
from saebench_meta.sae import SAE
from saebench_meta.stats import evaluate
from saebench_meta.task import Output
from saebench_tasks.city_steering import METRICS, city_steering, edits, prompts, search, side

SINGLE = [[v] for v in TownModel().values]
EVERY = [(0,), (1,), (2,), (0, 1), (0, 2), (1, 2), (0, 1, 2)]


def asked(model: TownModel | None = None) -> prompts.Asked:
    model = model or TownModel()
    return prompts.ask(model, model.cities, HOOK, prepend_bos=True)  # type: ignore[arg-type]


def searcher(model: TownModel, of: prompts.Asked, ctx: TownContext | None = None, where: str = "all") -> search.Search:
    ctx = ctx or TownContext(model=model)
    return search.Search(model.sae(), of, edits.city_latents(model.sae(), of, 1), ctx, where)  # type: ignore[arg-type]


def rows(n: int) -> Any:
    """Text without a town, of words of the frames."""
    from saebench_meta.corpus import Sample, Sampling

    tokens = torch.full((n, 5), TownModel().ids["the"])
    tokens[:, 0] = BOS
    evaluated = tokens != BOS
    document = torch.arange(n)[:, None].expand(-1, 5).int()
    return Sample(tokens, torch.full((n,), 5), document, evaluated, tuple(map(str, range(n))), Sampling(context=5))


def run(meta: SAE, model: TownModel | None = None, **parameters: Any) -> Output:
    model = model or TownModel()
    ctx = TownContext(model=model, texts=rows(2), meta=meta, towns=model.cities)
    result: Output = city_steering(model.sae(), ctx, **{"pairs": 6, "side_tokens": 8, **parameters})
    return result


def metric(output: Output, name: str) -> float:
    (formula,) = [m.of for m in METRICS if m.name == name]
    assert formula is not None
    sums = {k: v.sum() for k, v in output.documents.items() if k != "document"}
    return float(evaluate(formula, sums))


# -- what is asked


def test_a_city_is_one_token_and_a_value_is_one_token() -> None:
    facts = {**TOWNS, "new town": {"river": "long water", "hill": "oak", "lake": "elm"}}
    towns = Cities(
        {**facts, "endton": {"river": "long water", "hill": "oak", "lake": "elm"}}, CITIES.selection, CITIES.heldout
    )
    of = asked(TownModel(towns))
    assert of.cities == ("upton", "downton", "midton", "endton") and of.left_out == ("new town",)
    assert of.candidates == (("ash", "birch"), ("oak", "yew"), ("elm", "fir"))
    assert of.right.tolist() == [[0, 0, 0], [1, 1, 1], [0, 1, 1], [-1, 0, 0]]
    assert of.eligible[3].tolist() == [False, True, True]


def test_prompts_have_bos_and_know_where_the_city_stands() -> None:
    model = TownModel()
    (prompt, x), *_ = asked(model).of(0, "selection", [0])
    assert prompt.tokens.tolist() == [BOS, *model.tokenize(["in upton the river is"])[0]]
    assert prompt.at == 2 and x.shape == (6, model.E.shape[1]) and torch.equal(x[2], model.E[model.ids["upton"]])
    assert len(asked(model).prompts) == 3 * 3 * (2 + 1)


def test_an_attribute_that_the_model_answers_wrong_is_not_eligible() -> None:
    of = asked(TownModel(wrong={"midton": "downton"}))
    assert of.eligible.tolist() == [[True] * 3, [True] * 3, [False, True, True]]
    found = {(p.source, p.target): p.differ for p in search.pairs(of, 9, np.random.default_rng(0))}
    assert found == {(0, 1): (0, 1, 2), (1, 0): (0, 1, 2), (0, 2): (1, 2), (2, 0): (1, 2)}


def test_fewer_than_two_cities_is_an_unmet_need() -> None:
    facts = {"new town": TOWNS["upton"], "upton": TOWNS["upton"]}
    with pytest.raises(UnmetNeedError, match="has 1 of 2 cities as single tokens"):
        asked(TownModel(Cities(facts, CITIES.selection, CITIES.heldout)))


def test_pairs_beyond_the_number_are_a_seeded_draw() -> None:
    of = asked()
    every = search.pairs(of, 6, np.random.default_rng(0))
    some = [search.pairs(of, 3, np.random.default_rng(seed)) for seed in (1, 1, 2, 3)]
    assert (
        len(every) == 6 and some[0] == some[1] and all(set(s) < set(every) for s in some) and some[1:] != [some[0]] * 3
    )


# -- enumerations


def test_subsets_of_attributes_are_all_but_the_empty_one_with_the_whole_last() -> None:
    assert search.Pair(0, 1, (0, 1, 2), (0, 1, 2)).subsets == EVERY
    assert search.Pair(0, 2, (0, 1, 2), (1, 2)).subsets == [(1,), (2,), (1, 2)]


def test_every_subset_of_meta_latents_once_the_cities_own_first() -> None:
    own, other = np.array([True, True, False]), np.array([False, True, True])
    on = edits.choose(own, other, 8, np.random.default_rng(0))
    assert on[:2].tolist() == [own.tolist(), other.tolist()]
    assert sorted(map(tuple, on.tolist())) == sorted(product([False, True], repeat=3))


def test_too_many_subsets_are_a_seeded_sample_without_repeats() -> None:
    own, other = np.arange(9) < 5, np.arange(9) > 3
    some, same, others = (edits.choose(own, other, 20, np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert some.shape == (20, 9) and len(set(map(tuple, some.tolist()))) == 20
    assert np.array_equal(some, same) and not np.array_equal(some, others)
    assert np.array_equal(some[:2], [own, other]) and np.array_equal(others[:2], [own, other])


def test_margins_by_hand() -> None:
    logp = [np.array([[-1.0, -3.0], [-5.0, -2.0]]), np.array([[-1.0, -1.5, -9.0], [-4.0, -3.0, -2.0]])]
    want = np.array([[0, 0], [1, 2]])
    assert search.margins(logp, want).tolist() == [[0.5, -8.0], [-3.0, 1.0]]


# -- latents and edits


def test_the_latent_of_a_city_is_the_one_with_the_largest_contrast() -> None:
    model = TownModel()
    found = edits.city_latents(model.sae(), asked(model), 1)
    assert found.latents.tolist() == [[0], [1], [2]]
    assert found.codes[:, 0].tolist() == pytest.approx([2 * 3**0.5] * 3) == found.contrast[:, 0].tolist()
    assert torch.allclose(found.directions, model.sae().W_dec)


def test_a_latent_on_everywhere_is_no_citys() -> None:
    """Contrast, not activation: a fourth latent of code 100 on all towns stands for none."""
    model = TownModel()
    sae = model.sae()
    more = torch.zeros(sae.d_in, 1)
    more[len(model.values) :] = 100
    about = info(sae.d_in, 4)
    sae = SAE(torch.cat([sae.W_enc, more], 1), torch.zeros(4), torch.cat([sae.W_dec, more.T]), sae.b_dec, about)
    assert edits.city_latents(sae, asked(model), 1).latents.tolist() == [[0], [1], [2]]


def test_rebuilding_takes_the_sources_values_first_and_has_norm_one() -> None:
    model = TownModel()
    u = model.sae().W_dec
    meta = model.meta_sae(SINGLE)
    found = edits.subsets(meta, u[0], u[1], 64, np.random.default_rng(0))
    assert found.of == 2**6 and len(found.on) == 64
    assert torch.allclose(found.directions[:2], u[:2], atol=1e-6)
    i = int(np.flatnonzero((found.on == np.isin(found.union, [0, 3])).all(1))[0])
    assert torch.allclose(found.directions[i], model.directions([[SINGLE[0][0], SINGLE[3][0]]])[0], atol=1e-6)


@pytest.mark.parametrize(("where", "changed"), [("all", [1, 2, 3, 4, 5]), ("after", [2, 3, 4, 5]), ("city", [2])])
def test_where_the_swap_is_made(where: str, changed: list[int]) -> None:
    model = TownModel()
    of = asked(model)
    editor = searcher(model, of, where=where).editor(search.Pair(0, 1, (0, 1, 2), (0, 1, 2)))
    (prompt, x), *_ = of.of(0, "selection", [0])
    (edited,) = editor.swap(x, prompt)
    assert (edited - x).abs().amax(1).nonzero().flatten().tolist() == changed
    # at the city: its own values go, the target's come, and what the SAE does not rebuild (its own dimension) stays
    values = len(model.values)
    assert torch.allclose(edited[2, :values], model.E[model.ids["downton"], :values], atol=1e-6)
    assert torch.equal(edited[2, values:], x[2, values:])


def test_an_edit_turns_the_sources_part_and_keeps_its_norm() -> None:
    model = TownModel()
    of = asked(model)
    editor = searcher(model, of).editor(search.Pair(0, 1, (0, 1, 2), (0, 1, 2)))
    (prompt, x), *_ = of.of(0, "selection", [0])
    direction = torch.nn.functional.normalize(
        torch.randn(x.shape[1], generator=torch.Generator().manual_seed(0)), dim=0
    )
    (edited,) = editor.rebuilt(x, prompt, direction[None])
    part = x[2].clone()
    part[len(model.values) :] = 0
    assert torch.allclose(edited[2], x[2] - part + part.norm() * direction, atol=1e-5)
    assert torch.equal(edited[[0, 1, 3, 4, 5]], x[[0, 1, 3, 4, 5]])


# -- the search


def test_meta_latents_that_are_attributes_reach_every_subset_and_the_swap_carries_all() -> None:
    output = run(TownModel().meta_sae(SINGLE))
    assert [metric(output, n) for n in ("subsets_reached", "swap_all", "swap_accuracy", "rebuild_keeps")] == [1.0] * 4
    pairs, logprobs = output.tables["pairs"].data, output.tables["logprobs"].data
    assert pairs["subsets"].tolist() == pairs["reached"].tolist() == [7, 3, 7, 1, 3, 1]
    assert list(logprobs.columns) == ["city", "target", "edit", "attribute", "candidate", "logprob"]
    assert set(logprobs["edit"]) >= {"none", "latent swap", "rebuilt", "river", "river+hill+lake"}
    assert output.estimates["eligible"].value == 1.0


def test_a_meta_latent_of_two_attributes_leaves_the_subsets_that_part_them_unreached() -> None:
    """Hill and lake go together: of the seven subsets of upton to downton, {river}, {hill, lake} and all remain."""
    meta = TownModel().meta_sae([["ash"], ["birch"], ["oak", "elm"], ["yew", "fir"]])
    output = run(meta)
    table = output.tables["pairs"].data.set_index(["city", "target"])
    assert table.loc[("upton", "downton"), "reached_subsets"] == "river hill+lake river+hill+lake"
    assert table["reached"].tolist() == [3, 1, 3, 1, 1, 1]
    assert metric(output, "subsets_reached") == pytest.approx((3 / 7 + 1 / 3 + 3 / 7 + 1 + 1 / 3 + 1) / 6)
    removed = output.tables["subsets"].data.query("city == 'upton' and target == 'downton' and subset == 'river'")
    assert removed[["removed", "added", "reached"]].to_numpy().tolist() == [["0", "1", True]]


def test_random_directions_reach_what_chance_gives() -> None:
    """Two candidates an attribute, orthogonal values: a random direction answers each of a attributes by a coin, so
    that the best of n reaches a subset with probability 1 − (1 − 2^−a)^n.
    """
    model = TownModel()
    of = asked(model)
    pair, n = search.Pair(0, 1, (0, 1, 2), (0, 1, 2)), 3
    found = edits.Subsets(*[np.ones(1, dtype=bool)] * 3, np.ones((n, 1), dtype=bool), model.sae().W_dec[:n], 2)  # type: ignore[arg-type]
    shares = [
        searcher(model, of, TownContext(model=model, seed=seed)).run(pair, found).null.reached.mean()
        for seed in range(150)
    ]
    chance = 1 - (1 - 2**-3) ** n
    assert np.mean(shares) == pytest.approx(chance, abs=4 * np.std(shares) / 150**0.5)
    assert np.std(shares) / 150**0.5 < 0.02


def test_held_out_prompts_are_never_chosen_on() -> None:
    model = TownModel()
    of = asked(model)
    g = torch.Generator().manual_seed(0)
    noisy = tuple(
        x + 3 * torch.randn(x.shape, generator=g) if p.split == "heldout" else x
        for p, x in zip(of.prompts, of.x, strict=True)
    )
    other = replace(of, x=noisy, logp={**of.logp, "heldout": tuple(-v for v in of.logp["heldout"])})
    assert torch.equal(*(edits.city_latents(model.sae(), a, 1).codes for a in (of, other)))
    assert np.array_equal(of.eligible, other.eligible)
    u = model.sae().W_dec
    found = edits.subsets(model.meta_sae(SINGLE), u[0], u[1], 64, np.random.default_rng(0))
    one, two = (searcher(model, a).run(search.Pair(0, 1, (0, 1, 2), (0, 1, 2)), found) for a in (of, other))
    for a, b in ((one.chosen, two.chosen), (one.null, two.null)):
        assert np.array_equal(a.edit, b.edit) and np.array_equal(a.selection, b.selection)
        assert not np.allclose(a.heldout, b.heldout)


def test_passes_of_any_size_give_the_same_answers() -> None:
    model = TownModel()
    of = asked(model)
    pair = search.Pair(0, 1, (0, 1, 2), (0, 1, 2))
    editor = searcher(model, of).editor(pair)
    all_at_once, few = (
        searcher(model, of, TownContext(model=model, batch_size=b)).answers(
            pair, "selection", lambda x, p: editor.rebuilt(x, p, model.sae().W_dec)
        )
        for b in (None, 7)
    )
    assert all(np.array_equal(a, b) for a, b in zip(all_at_once, few, strict=True))


# -- side effects, parameters


def test_side_effects_are_the_divergence_on_text_without_towns() -> None:
    model, ctx = TownModel(), TownContext(model=TownModel(), texts=rows(3))
    of = asked(model)
    text = side.unrelated(ctx, HOOK, of.city_tokens, 8)  # type: ignore[arg-type]
    assert text is not None and len(text.tokens) == 2 and text.predictions == 8
    editor = searcher(model, of).editor(search.Pair(0, 1, (0, 1, 2), (0, 1, 2)))
    assert side.rebuilt_kl(model, HOOK, text, editor, model.sae().W_dec[1]) == 0  # type: ignore[arg-type]
    added = torch.zeros_like(text.x)
    added[:, 1:] = model.sae().W_dec[1] * 2 * 3**0.5  # downton's values at all but BOS
    p, q = (model.logits(text.tokens, edit=lambda x, d=d: x + d)[:, :-1].log_softmax(-1) for d in (0, added))
    wanted = (p.exp() * (p - q)).sum().item()
    assert side.swap_kl(model, HOOK, text, editor) == pytest.approx(wanted, rel=1e-4) and wanted > 0.1  # type: ignore[arg-type]


def test_rows_that_name_a_town_are_not_unrelated() -> None:
    texts = rows(2)
    texts.tokens[0, 3] = TownModel().ids["midton"]
    text = side.unrelated(TownContext(model=TownModel(), texts=texts), HOOK, asked().city_tokens, 100)  # type: ignore[arg-type]
    assert text is not None and torch.equal(text.tokens, texts.tokens[1:])
    texts.tokens[1, 1] = TownModel().ids["upton"]
    assert side.unrelated(TownContext(model=TownModel(), texts=texts), HOOK, asked().city_tokens, 100) is None  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"pairs": -1}, "pairs is -1: give at least 0"),
        ({"edits": 1}, "edits is 1: give at least 2"),
        ({"side_tokens": 0}, "side_tokens is 0"),
        ({"positions": "before"}, "give one of all, after, city"),
        ({"latents": 4}, "give a number from 1 to 3"),
    ],
)
def test_parameters_out_of_range(given: dict[str, Any], message: str) -> None:
    with pytest.raises(SaebenchError, match=message):
        run(TownModel().meta_sae(SINGLE), **given)


def test_a_model_that_knows_nothing_is_an_unmet_need() -> None:
    model = TownModel(wrong={"upton": "downton", "midton": "downton"})
    with pytest.raises(UnmetNeedError, match="no two cities differ"):
        run(model.meta_sae(SINGLE), TownModel(wrong={"upton": "downton", "downton": "upton", "midton": "upton"}))


def test_the_meta_sae_does_not_depend_on_the_order_of_the_latents() -> None:
    from saebench_tasks.city_steering.meta import meta_sae

    sae = TownModel().sae()
    order = torch.tensor([2, 0, 1])
    ctx = TownContext(meta=sae)
    for one in (sae, replace(sae, W_dec=3 * sae.W_dec[order])):
        meta_sae(one, ctx)  # type: ignore[arg-type]
    assert torch.allclose(*ctx.rows) and torch.allclose(ctx.rows[0].norm(dim=1), torch.ones(3))
