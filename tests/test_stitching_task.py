"""Stitching: brute force where phases end, the two ends against `core`, ties, invariances, censuses made by hand."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from fakes import FakeContext, info, tied_sae, toy_context
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import csc_array

from saebench_meta import measure, stats
from saebench_meta.errors import SaebenchError
from saebench_meta.geometry import Edges
from saebench_meta.sae import SAE
from saebench_meta.stitching import Components, components
from saebench_meta.task import Family, Output, Pair, Task
from saebench_tasks.core import core
from saebench_tasks.stitching import census, children, effects, link, points, stitching, stitching_family

LENGTHS = [9, 1, 5, 7, 3, 8, 6]
D = 6
TRANSFORMS = ["none", "center", "layer_norm", "norm_rescale"]


class Context(FakeContext):
    """With a bootstrap over groups of documents that takes no time."""

    def groups(
        self, arrays: Sequence[Any], statistic: Callable[..., float | None], *, n: int, n_unit: str = "documents"
    ) -> stats.Estimate:
        return stats.from_groups(arrays, statistic, self.rng("groups"), n=n, n_unit=n_unit, resamples=5)


def context(lengths: list[int] = LENGTHS, **changes: Any) -> Context:
    made = toy_context(lengths, d=D, **changes)
    made.model.tokenizer = None
    return Context(made.held, made.texts, made.model)


def of_kind(kind: str, d_sae: int, seed: int, **changes: Any) -> SAE:
    """A random SAE with biases: relu, jumprelu, topk, or with a foreign encoder."""
    sae = tied_sae(D, d_sae, seed=seed, bias=-0.3, **changes)
    g = torch.Generator().manual_seed(seed)
    sae = replace(sae, b_dec=0.3 * torch.randn(D, generator=g), W_dec=sae.W_dec * (0.5 + torch.rand(1, generator=g)))
    if kind == "jumprelu":
        sae = replace(sae, info=info(D, d_sae, activation=kind, **changes), threshold=torch.full((d_sae,), 0.2))
    elif kind == "topk":
        sae = replace(sae, info=info(D, d_sae, activation=kind, k=3, **changes))
    elif kind == "foreign":
        inner = sae
        sae = replace(sae, encoder=lambda z: torch.relu(z @ inner.W_enc).clamp_max(1.0))
    return sae


def run(sae: SAE, reference: SAE, ctx: FakeContext | None = None, **parameters: Any) -> Output:
    output = stitching(Pair(sae, reference), ctx or context(), **{"adding_orders": 1, "examples": 1, **parameters})
    measure.check_output(stitching, output)
    return output


def numbers(task: Task, output: Output) -> dict[str, float | None]:
    rng, columns = np.random.default_rng(0), output.documents or {}
    return {
        m.name: (stats.from_documents(m.of, columns, rng, resamples=2) if m.of else output.estimates[m.name]).value
        for m in task.metrics
    }


def table(output: Output, name: str) -> Any:
    return output.tables[name].data


# -- errors and sparsity where phases end


@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("kinds", [("relu", "relu"), ("topk", "topk"), ("relu", "topk"), ("foreign", "jumprelu")])
def test_phases_end_where_a_full_decode_of_the_stitched_codes_does(kinds: tuple[str, str], transform: str) -> None:
    ctx = context()
    s0, s1 = of_kind(kinds[0], 10, 1, input_transform=transform), of_kind(kinds[1], 24, 2, input_transform=transform)
    output = run(s1, s0, ctx, threshold=0.75)
    x = ctx.activations().x
    (f0, f1), tokens = (torch.cat([c.dense() for _, c in ctx.code_chunks(s)]).double() for s in (s0, s1)), len(x)
    W0, W1 = s0.W_dec.double(), s1.W_dec.double()
    cosine = (W1 / W1.norm(dim=1, keepdim=True)) @ (W0 / W0.norm(dim=1, keepdim=True)).T
    novel, left = cosine.amax(1) <= 0.75, cosine.amax(0) <= 0.75
    assert 0 < novel.sum() < 24 and left.any()
    everything0, everything1 = torch.ones(10, dtype=torch.bool), torch.ones(24, dtype=torch.bool)
    sets = {
        "old": (everything0, ~everything1),
        "novel": (everything0, novel),
        "swapped": (left, everything1),
        "new": (~everything0, everything1),
    }
    z, token = s0.transform(x)
    for end, (keep0, keep1) in sets.items():
        alpha = float(keep0.sum() / (keep0.sum() + keep1.sum()))
        z_hat = (f0 * keep0) @ W0 + (f1 * keep1) @ W1 + alpha * s0.b_dec.double() + (1 - alpha) * s1.b_dec.double()
        error = (z.double() - z_hat) * (1.0 if token.scale is None else token.scale.double())
        sums = {k: float(np.nansum(v)) for k, v in (output.documents or {}).items() if k != "document"}
        assert sums[f"sse_{end}"] == pytest.approx(float(error.square().sum()), rel=1e-6)
        assert sums[f"active_{end}"] == int(((f0 != 0) & keep0).sum() + ((f1 != 0) & keep1).sum())
    found = numbers(stitching, output)
    path = table(output, "path")
    assert (found["novel"], found["leftovers"]) == (int(novel.sum()), int(left.sum()))
    assert found["mse_change_novel"] == pytest.approx(path["mse"][int(novel.sum())] / path["mse"][0] - 1, rel=1e-5)
    assert sums["tokens"] == tokens


@pytest.mark.parametrize("kinds", [("relu", "topk"), ("topk", "jumprelu")])
def test_both_ends_are_what_core_says_of_the_two(kinds: tuple[str, str]) -> None:
    ctx = context()
    saes = of_kind(kinds[0], 10, 1), of_kind(kinds[1], 24, 2)
    output = run(saes[1], saes[0], ctx)
    sums = {name: np.nansum(column) for name, column in (output.documents or {}).items() if name != "document"}
    for sae, row, end in zip(saes, (0, -1), ("old", "new"), strict=True):
        expected = numbers(core, core(sae, ctx, ce_tokens=4096))
        path, spliced = table(output, "path").iloc[row], table(output, "cross_entropy").iloc[row]
        for column, where in (("mse", path), ("l0", path), ("kl", spliced)):
            assert where[column] == pytest.approx(expected[column], rel=1e-6)
        assert spliced["ce"] == pytest.approx(expected["ce_spliced"], rel=1e-6)
        assert sums[f"loss_{end}"] / sums["predictions"] == pytest.approx(expected["ce_spliced"], rel=1e-6)


@pytest.mark.parametrize("kinds", [("relu", "relu"), ("relu", "jumprelu"), ("topk", "topk"), ("foreign", "topk")])
def test_the_sae_spliced_at_a_point_has_the_error_of_the_path_there(kinds: tuple[str, str]) -> None:
    ctx, pair = context(), Pair(of_kind(kinds[1], 24, 2), of_kind(kinds[0], 10, 1))
    found = link.link(pair, ctx, 0.7, "stitching")
    x = ctx.activations().x
    for step in points.chosen_steps(found.schedule, 7):
        made = points.stitched_at(pair, found.schedule, step)
        mse = float((x - made.reconstruct(x)).double().square().mean())
        assert mse == pytest.approx(found.path.mse[step], rel=1e-5)
        assert made.d_sae == found.path.features[step]


def test_a_path_that_misses_its_end_is_reported() -> None:
    ctx, pair = context(), Pair(of_kind("relu", 24, 2), of_kind("relu", 10, 1))
    found = link.link(pair, ctx, 0.7, "stitching")
    sse = found.path.sse.copy()
    sse[-1] *= 1 + 1e-5
    with pytest.raises(ArithmeticError, match="squared error"):
        link.check_ends(pair.sae, replace(found.path, sse=sse), found.documents, 0.0)


# -- invariances


@pytest.mark.parametrize("kind", ["relu", "topk", "foreign"])
def test_an_sae_stitched_with_itself_changes_nothing(kind: str) -> None:
    sae = of_kind(kind, 10, 3)
    output = run(sae, sae)
    found = numbers(stitching, output)
    changes = [name for name in found if "change" in name]
    assert len(changes) == 7
    assert [found[name] for name in changes] == pytest.approx([0.0] * 7, abs=1e-6)
    assert (found["novel"], found["leftovers"]) == (0, 0)
    whole = table(output, "path").query("whole")
    assert whole["mse"].to_numpy() == pytest.approx(np.full(len(whole), whole["mse"].iloc[0]), rel=1e-6)
    assert whole["l0"].nunique() == 1
    assert table(output, "components")["dmse"].abs().max() < 1e-6


@settings(max_examples=6)
@given(seed=st.integers(0, 1000), kind=st.sampled_from(["relu", "topk"]))
def test_the_order_of_latents_does_not_matter(seed: int, kind: str) -> None:
    g = torch.Generator().manual_seed(seed)
    s0, s1 = of_kind(kind, 10, seed), of_kind(kind, 24, seed + 1)
    shuffled = [_permuted(sae, torch.randperm(sae.d_sae, generator=g)) for sae in (s1, s0)]
    one, other = (numbers(stitching, run(*pair)) for pair in ((s1, s0), shuffled))
    by_chance = {"random_exclude", "random_cooccur"}
    expected, found = ([math.nan if n is None else n for k, n in m.items() if k not in by_chance] for m in (one, other))
    assert found == pytest.approx(expected, rel=1e-4, abs=1e-5, nan_ok=True)


def _permuted(sae: SAE, order: torch.Tensor) -> SAE:
    return replace(sae, W_enc=sae.W_enc[:, order], b_enc=sae.b_enc[order], W_dec=sae.W_dec[order])


def test_a_cosine_equal_to_theta_joins_nothing() -> None:
    def of(row: list[float]) -> SAE:
        W = torch.tensor([row])
        return SAE(W.T.contiguous(), torch.zeros(1), W, torch.zeros(2), info(2, 1))

    made = toy_context([3, 4], d=2)
    made.model.tokenizer = None
    ctx = Context(made.held, made.texts, made.model)
    tied = numbers(stitching, run(of([3.0, 4.0]), of([2.0, 0.0]), ctx, threshold=0.6))
    assert (tied["novel"], tied["leftovers"], tied["components"]) == (1, 1, 0)
    above = numbers(stitching, run(of([3.0, 4.0]), of([2.0, 0.0]), ctx, threshold=math.nextafter(0.6, 0)))
    assert (above["novel"], above["leftovers"], above["components"], above["one_to_one"]) == (0, 0, 1, 1.0)


def test_the_random_order_makes_the_same_moves() -> None:
    s0, s1 = of_kind("relu", 10, 1), of_kind("relu", 24, 2)
    cosine, random = (table(run(s1, s0, order=order), "path") for order in ("cosine", "random"))
    assert not cosine["latent"].equals(random["latent"])
    for column in ("phase", "move"):
        assert cosine[column].value_counts().to_dict() == random[column].value_counts().to_dict()
    assert random["mse"].iloc[-1] == pytest.approx(cosine["mse"].iloc[-1], rel=1e-6)


# -- refusals


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"threshold": 1.5}, "threshold"),
        ({"order": "size"}, "order"),
        ({"ce_points": 2}, "ce_points"),
        ({"ce_tokens": -1}, "ce_tokens"),
        ({"examples": -1}, "examples"),
    ],
)
def test_parameters_out_of_range_are_refused(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(SaebenchError, match=rf"stitching\.{says}"):
        run(of_kind("relu", 12, 2), of_kind("relu", 10, 1), **changes)


def test_saes_with_different_input_transforms_are_refused() -> None:
    with pytest.raises(SaebenchError, match="input transform"):
        run(of_kind("relu", 12, 2, input_transform="layer_norm"), of_kind("relu", 10, 1))


# -- the census


def joined(*pairs: tuple[int, int], F0: int = 8, F1: int = 10) -> Components:
    """Components of the edges (old, new), the first with cosine .9, each further .01 less."""
    ordered = sorted((new, old, 0.9 - 0.01 * i) for i, (old, new) in enumerate(pairs))
    b, a, cosine = np.array([o for _, o, _ in ordered]), np.array([n for n, _, _ in ordered]), [c for *_, c in ordered]
    return components(Edges(a.astype(np.int64), b.astype(np.int64), np.array(cosine)), F0, F1)


def test_kinds_and_shares_of_a_census_made_by_hand() -> None:
    """1→1: 0–0; 1→n: 1–1, 1–2, 1–3; n→1: 2–4, 3–4; n→m: 4–5, 5–5, 5–6. Left over: 6, 7; novel: 7, 8, 9."""
    parts = joined((0, 0), (1, 1), (1, 2), (1, 3), (2, 4), (3, 4), (4, 5), (5, 5), (5, 6))
    assert census.kinds(parts).tolist() == ["1→1", "1→n", "n→1", "n→m"]
    found = census.estimates(link.Link(None, parts, None, None, {}), context())  # type: ignore[arg-type]
    assert {name: e.value for name, e in found.items()} == {
        "novel": 3,
        "leftovers": 2,
        "components": 4,
        "one_to_one": 0.25,
        "splits": 0.25,
        "merges": 0.25,
        "compositions": 0.25,
        "largest_share": pytest.approx(4 / 13),
    }
    rows = census.summary(parts).data.set_index("kind")
    assert rows["latents_S0"].tolist() == [1, 1, 2, 2, 0, 2]
    assert rows["latents_S1"].tolist() == [1, 3, 1, 2, 3, 0]
    assert rows["latents_S0"].sum() == 8 and rows["latents_S1"].sum() == 10


def test_without_components_shares_have_a_reason() -> None:
    output = run(of_kind("relu", 12, 2), of_kind("relu", 10, 1), threshold=1.0)
    for name in ("one_to_one", "largest_share", "swaps_raise_mse", "swap_steps_lower_l0", "children_exclude"):
        assert output.estimates[name].value is None and output.estimates[name].reason
    assert len(table(output, "components")) == 0 and "examples" not in output.tables


def test_examples_show_the_tokens_of_highest_activation() -> None:
    ctx = context()
    s0, s1 = of_kind("relu", 10, 1), of_kind("relu", 24, 2)
    rows = table(run(s1, s0, ctx, examples=2), "examples")
    assert set(rows["side"]) == {"S0", "S1"} and rows.groupby("kind")["component"].nunique().max() <= 2
    tokens = ctx.texts.tokens[ctx.texts.evaluated]
    for row in rows.to_dict("records"):
        f = torch.cat([c.dense() for _, c in ctx.code_chunks(s0 if row["side"] == "S0" else s1)])[:, row["latent"]]
        assert row["active"] == int((f > 0).sum())
        if row["active"]:
            assert f"«{int(tokens[f.argmax()])}»" in row["top"].split(" | ")[0]


# -- children of a split


def test_co_occurrence_worked_out_by_hand() -> None:
    """Ten tokens: 3 fires on 0–3, 5 on 4–7, 7 on 0–3 too, 8 never."""
    on = np.zeros((10, 4))
    on[0:4, 0], on[4:8, 1], on[0:4, 2] = 1.5, 0.5, 2.0
    pairs = children.Pairs(np.array([3, 3, 5, 3]), np.array([5, 7, 7, 8]), np.array([0, 0, 0, 0]), 4)
    found = children.together(pairs, csc_array(on), np.array([3, 5, 7, 8]))
    assert found.n_ab.tolist() == [0, 4, 0, 0] and found.n_b.tolist() == [4, 4, 4, 0]
    assert found.expected.tolist() == pytest.approx([1.6, 1.6, 1.6, 0.0])
    apart, same = 2 * math.comb(6, 4) / math.comb(10, 4), 2 / math.comb(10, 4)
    assert found.p.tolist() == pytest.approx([apart, same, apart, 1.0])
    assert found.tested.tolist() == [True, True, True, False]
    assert found.q.tolist() == pytest.approx([apart, 3 * same, apart, 1.0])
    assert found.verdict.tolist() == ["neither", "co-occur", "neither", "neither"]
    assert found.log2_lift[1] == pytest.approx(math.log2(4 / 1.6)) and np.isnan(found.log2_lift[0])
    assert found.share("co-occur", context()).value == pytest.approx(1 / 3)  # type: ignore[arg-type]
    assert found.share("co-occur", context()).n == 3  # type: ignore[arg-type]


def test_latents_that_take_turns_exclude_each_other() -> None:
    on = np.zeros((400, 2))
    on[::2, 0], on[1::2, 1] = 1, 1
    found = children.together(children.Pairs(*(np.array([i]) for i in (0, 1, 0)), 1), csc_array(on), np.arange(2))
    assert found.verdict.tolist() == ["exclude"] and found.q[0] < 1e-50


def test_pairs_are_children_of_one_split_and_bounded() -> None:
    parts = joined((0, 0), (1, 1), (1, 2), (1, 3), (2, 4), (2, 5), (3, 6), (4, 6))
    pairs = children.of_splits(parts, np.random.default_rng(0))
    assert sorted(zip(pairs.a.tolist(), pairs.b.tolist(), strict=True)) == [(1, 2), (1, 3), (2, 3), (4, 5)]
    wide = joined(*((0, new) for new in range(30)), F1=30)
    some = children.of_splits(wide, np.random.default_rng(0))
    assert (len(some.a), some.of) == (children.MOST_IN_SPLIT, 435)
    assert len({*zip(some.a.tolist(), some.b.tolist(), strict=True)}) == len(some.a)
    random = children.at_random(500, 3, np.random.default_rng(0))
    assert len(random.a) == 500 and (random.a != random.b).all() and set(random.b.tolist()) == {0, 1, 2}
    assert len(children.at_random(5, 1, np.random.default_rng(0)).a) == 0


# -- effects and points


def test_components_in_turn_add_up_to_the_phase() -> None:
    output = run(of_kind("relu", 24, 2), of_kind("relu", 10, 1))
    rows, found = table(output, "components"), numbers(stitching, output)
    assert rows["dmse_in_turn_percent"].sum() == pytest.approx(100 * (found["mse_change_swaps"] or 0), rel=1e-4)
    assert rows["dl0_in_turn"].sum() == pytest.approx(found["l0_change_swaps"])
    assert rows["mean_cosine"].is_monotonic_decreasing
    assert found["swaps_raise_mse"] == pytest.approx((rows["dmse"] > 0).mean())
    assert found["swap_steps_lower_l0"] == pytest.approx((rows["dl0_in_turn"] < 0).mean())
    phases = table(output, "phases").set_index("phase")
    assert phases.loc["swap", "moves"] == len(rows)
    assert phases["dmse_percent"].sum() == pytest.approx(
        100 * (found["mse_change_novel"] or 0)
        + (100 * (found["mse_change_swaps"] or 0) + 100 * (found["mse_change_leftovers"] or 0)),
        rel=1e-4,
    )


def test_adding_ends_where_all_of_a_set_is_added() -> None:
    output = run(of_kind("relu", 24, 2), of_kind("relu", 10, 1), adding_orders=3)
    last = table(output, "adding").groupby(["latents", "order"]).last()
    assert (last["share"] == 1).all() and len(last) == 6
    novel = last.loc["novel", "dmse_percent"].to_numpy()
    assert novel == pytest.approx(np.full(3, 100 * (numbers(stitching, output)["mse_change_novel"] or 0)), rel=1e-4)


@pytest.mark.parametrize("n", [3, 4, 5, 8, 50])
def test_points_are_whole_and_hold_the_ends_of_phases(n: int) -> None:
    found = link.link(Pair(of_kind("relu", 24, 2), of_kind("relu", 10, 1)), context(), 0.7, "stitching")
    steps = points.chosen_steps(found.schedule, n)
    ends = link.phase_ends(found.schedule)
    assert {ends["old"], ends["novel"], ends["new"]} <= set(steps)
    assert set(steps) <= set(found.schedule.whole().tolist()) and len(steps) <= n
    assert len(steps) == n or n > 5


def test_a_turn_of_swaps_is_a_whole_component() -> None:
    found = link.link(Pair(of_kind("relu", 24, 2), of_kind("relu", 10, 1)), context(), 0.7, "stitching")
    turns = effects.turns(found.path, found.schedule)
    assert sorted(turns["swap"].moved.tolist()) == list(range(found.parts.n))
    assert sorted(turns["novel"].moved.tolist()) == np.flatnonzero(found.parts.new < 0).tolist()
    assert sorted(turns["leftover"].moved.tolist()) == np.flatnonzero(found.parts.old < 0).tolist()
    assert sum(t.dmse.sum() for t in turns.values()) == pytest.approx(found.path.mse[-1] - found.path.mse[0])


# -- chains


def test_a_chain_takes_up_the_links_of_its_pairs() -> None:
    ctx = context()
    saes = of_kind("relu", 8, 1), of_kind("relu", 16, 2), of_kind("relu", 24, 3)
    pairs = [numbers(stitching, run(b, a, ctx)) for a, b in pairwise(saes)]
    output = stitching_family(Family(saes), ctx)
    measure.check_output(stitching_family, output)
    assert sum(key[0] == "stitching link" for key in ctx.made) == 2
    found = numbers(stitching_family, output)
    for name in ("mse_change_novel", "mse_change_swaps", "l0_change_novel", "l0_change_swaps"):
        assert found[f"{name}_mean"] == pytest.approx(np.mean([p[name] for p in pairs]), rel=1e-6)
    rows = table(output, "links")
    assert rows["mse_old"].tolist()[1] == pytest.approx(rows["mse_new"].tolist()[0], rel=1e-6)
    assert rows["novel"].tolist() == [p["novel"] for p in pairs]
    falls = (rows["mse_novel"] < rows["mse_old"]) & (rows["mse_swapped"] < rows["mse_novel"])
    assert found["links_improved_twice"] == falls.mean()
