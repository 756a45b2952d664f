"""Sparse probing: sets worked out by hand, invariances, what the test split may not do, what is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from fakes import tied_sae
from hypothesis import given, settings
from hypothesis import strategies as st
from probing_sets import a_set, changed_latents, context, identity_sae, noisy_set, pure_set, run, score

from saebench_meta.codes import Codes
from saebench_meta.errors import SaebenchError
from saebench_meta.measure import check_output, measure
from saebench_meta.task import Family
from saebench_tasks.sparse_probing import probing, selection, sparse_probing, sparse_probing_family
from saebench_tasks.sparse_probing.examples import VALIDATION, balanced, examples
from saebench_tasks.sparse_probing.metrics import KS
from saebench_tasks.sparse_probing.selection import NONE, choose, columns, random_latents

CHOSEN = [f"{kind}_k{k}" for kind in ("balanced_accuracy", "accuracy", "auc") for k in KS]


def test_classes_that_are_single_latents_need_one_of_them() -> None:
    output = run(identity_sae(8), pure_set())
    assert [score(output, name) for name in (*CHOSEN, "dense_balanced_accuracy")] == pytest.approx([1.0] * 19)
    chosen = output.tables["latents"].data
    first = chosen[chosen["place"] == 1]
    assert dict(zip(first["class"], first["latent"], strict=True)) == {"class 0": 0, "class 1": 1, "class 2": 2}
    assert (first["splits"] == 3).all()


def test_one_latent_of_three_classes_leaves_the_others_to_chance() -> None:
    """Only class 0 has a latent; for the two others it says "not class 0", which is right of half of the others."""
    label = [i % 3 for i in range(60)]
    x = torch.zeros(60, 4)
    x[:, 0] = (torch.tensor(label) == 0).float()
    found = run(identity_sae(4), a_set(x, label, [i < 30 for i in range(60)]))
    by_class = found.tables["classes"].data.set_index("class")["k1"]
    assert by_class.to_dict() == {"class 0": 1.0, "class 1": 0.75, "class 2": 0.75}
    assert score(found, "balanced_accuracy_k1") == pytest.approx(2.5 / 3)
    # Of ten texts a class: all right; and for classes 1 and 2 each all but the ten of the other.
    assert score(found, "accuracy_k1") == pytest.approx((30 + 20 + 20) / 90)
    assert score(found, "auc_k1") == pytest.approx((1 + 0.75 + 0.75) / 3)


def test_a_set_of_two_classes_has_one_probe() -> None:
    output = run(identity_sae(8), noisy_set(classes=2))
    assert output.tables["classes"].data["class"].tolist() == ["class 0"]


def test_sets_and_classes_weigh_the_same_whatever_their_size() -> None:
    small, large = noisy_set(per_class=12, name="toy:small"), noisy_set(per_class=90, noise=2.0, name="toy:large")
    both = run(identity_sae(8), small, large)
    alone = [score(run(identity_sae(8), one), "balanced_accuracy_k2") for one in (small, large)]
    assert alone[0] != pytest.approx(alone[1], abs=0.01)
    assert score(both, "balanced_accuracy_k2") == pytest.approx(np.mean(alone))


def test_the_output_is_what_the_harness_expects_and_pairs_controls_by_text() -> None:
    one, other = noisy_set(), noisy_set(seed=1, name="toy:other")
    outputs = {
        "trained": run(identity_sae(8), one, other),
        "random": run(identity_sae(8), noisy_set(noise=30.0), noisy_set(seed=1, noise=30.0, name="toy:other")),
    }
    for output in outputs.values():
        check_output(sparse_probing, output)
    found = measure(sparse_probing, outputs, 0)
    k1, control = found["balanced_accuracy_k1"], found["balanced_accuracy_k1"].controls["random"]
    assert k1.value == pytest.approx(score(outputs["trained"], "balanced_accuracy_k1"))
    assert k1.n == 60
    assert control.margin is not None and control.margin.n == 60
    assert k1.order is not None and k1.order.holds
    gap = found["below_dense_k1"]
    assert gap.value == pytest.approx(score(outputs["trained"], "dense_balanced_accuracy") - (k1.value or 0))


@settings(max_examples=5)
@given(st.integers(0, 10_000))
def test_order_and_scale_of_latents_change_nothing(seed: int) -> None:
    g = torch.Generator().manual_seed(seed)
    sae, data = identity_sae(8), noisy_set(per_class=18)
    changed = changed_latents(sae, torch.randperm(16, generator=g), 10 ** (torch.rand(16, generator=g) * 6 - 3))
    of = examples(data, 0, 1)
    ours, theirs = (probing.probe_latents(data.codes(s), of, (1, 4), "scaled", 0)[0] for s in (sae, changed))
    assert np.array_equal(ours.right, theirs.right)
    assert ours.ranked == pytest.approx(theirs.ranked, abs=1e-12)
    assert np.array_equal(ours.C, theirs.C)


def test_mean_diff_is_the_rule_that_a_scale_moves() -> None:
    """Latent 0 tells the class apart; latent 1, a thousand times louder, hardly does."""
    g = torch.Generator().manual_seed(0)
    label = [i % 2 for i in range(120)]
    on = torch.tensor(label) == 0
    x = torch.stack([on + 0.1, 1000 * torch.rand(120, generator=g) + 40 * on], dim=1)
    data = a_set(x, label, [i < 40 for i in range(120)])
    assert score(run(identity_sae(2), data), "balanced_accuracy_k1") == pytest.approx(1.0)
    assert score(run(identity_sae(2), data, selection="mean_diff"), "balanced_accuracy_k1") < 0.7


def test_latents_are_chosen_by_difference_over_deviation() -> None:
    data = noisy_set(d=5)
    sae, of = identity_sae(5), examples(data, 0, 2)
    codes = data.codes(sae)
    found = choose(codes, of, 4, "scaled")
    f = codes.dense().double().numpy()
    for row, (c, s) in enumerate(of.problems):
        train, positive = of.train[s], of.positive[c]
        difference = f[train & positive].mean(0) - f[train & ~positive].mean(0)
        wanted = np.abs(difference) / f[train].std(0)
        assert found.latents[row].tolist() == np.argsort(-wanted)[:4].tolist()
        assert found.score[row] == pytest.approx(np.sort(wanted)[::-1][:4])
        assert found.difference[row] == pytest.approx(difference[found.latents[row]])


def test_nothing_is_chosen_on_the_test_split() -> None:
    """Test labels and test texts are replaced; latents, C and the training split stay what they were."""
    data = noisy_set()
    g = torch.Generator().manual_seed(9)
    x = data.x.clone()
    x[torch.tensor(data.test)] = torch.randn(int(data.test.sum()), 8, generator=g) * 50
    label = data.label.copy()
    label[data.test] = (label[data.test] + 1) % 3
    other = a_set(x, label.tolist(), data.test.tolist())
    found = []
    for one in (data, other):
        of = examples(one, 0, 3)
        latents, random, chosen = probing.probe_latents(one.codes(identity_sae(8)), of, KS, "scaled", 0)
        dense = probing.probe_dense(one.x, of)
        found.append((of.train, of.validation, chosen.latents, chosen.score, latents.C, random.C, dense.C))
    for before, after in zip(*found, strict=True):
        assert np.array_equal(before, after)


def test_splits_are_disjoint_stratified_and_the_same_for_every_sae() -> None:
    data = noisy_set(per_class=60)
    of = examples(data, 0, 4)
    assert not (of.train & of.validation).any()
    assert not ((of.train | of.validation) & data.test).any()
    assert ((of.train | of.validation) | data.test).all()
    for c in range(3):
        assert (of.validation & (data.label == c)).sum(1).tolist() == [round(VALIDATION * 40)] * 4
    assert len({row.tobytes() for row in of.train}) == 4
    assert not np.array_equal(examples(data, 1, 4).train, of.train)


def test_balanced_weights_give_both_sides_the_same_weight() -> None:
    positive, chosen = np.array([[1, 0, 0, 0, 1]], dtype=bool), np.array([[1, 1, 1, 1, 0]], dtype=bool)
    assert balanced(positive, chosen) == pytest.approx(np.array([[2, 2 / 3, 2 / 3, 2 / 3, 0]]))


def test_random_latents_are_active_ones_outside_the_test_split() -> None:
    label = [i % 2 for i in range(40)]
    x = torch.rand(40, 6, generator=torch.Generator().manual_seed(0)) + 0.1
    x[:, 3] = 0
    x[20:, 4] = 0
    data = a_set(x, label, [i < 20 for i in range(40)])
    drawn = random_latents(data.codes(identity_sae(6)), examples(data, 0, 3), 8, 0)
    assert set(drawn[drawn != NONE]) == {0, 1, 2, 5}
    assert (drawn[:, 4:] == NONE).all()


def test_only_columns_that_probes_need_are_made_dense(monkeypatch: pytest.MonkeyPatch) -> None:
    widths: list[int] = []
    dense = selection.dense
    monkeypatch.setattr(Codes, "dense", None)
    monkeypatch.setattr(selection, "dense", lambda codes, of: widths.append(len(of)) or dense(codes, of))
    d = 300
    run(identity_sae(d), noisy_set(d=d, classes=2), splits=1)
    assert widths and max(widths) <= max(KS)


def test_columns_are_those_of_the_dense_codes() -> None:
    codes = noisy_set(d=5).codes(identity_sae(5))
    latents = np.array([[3, 0, NONE], [9, 3, 1]])
    made, f = columns(codes, latents), codes.dense().double()
    assert torch.equal(made[0], torch.cat([f[:, [3, 0]], torch.zeros(len(f), 1)], dim=1))
    assert torch.equal(made[1], f[:, [9, 3, 1]])


def test_fewer_latents_than_asked_for_and_latents_that_never_change() -> None:
    """Three dictionaries' worth of nothing: a dead latent, a constant one, and 47 that are not there."""
    label = [i % 2 for i in range(40)]
    x = torch.stack([torch.tensor(label) * 1.0, torch.full((40,), 0.3)], dim=1)
    output = run(identity_sae(2), a_set(x, label, [i < 16 for i in range(40)]))
    assert [score(output, f"balanced_accuracy_k{k}") for k in KS] == pytest.approx([1.0] * len(KS))


def test_what_does_not_depend_on_the_sae_is_worked_out_once() -> None:
    ctx: Any = context(noisy_set())
    sae = identity_sae(8)
    sparse_probing(sae, ctx)
    sparse_probing(changed_latents(sae, torch.arange(16).flip(0), torch.ones(16)), ctx)
    sparse_probing(sae, ctx)
    kinds = [key[0] for key in ctx.made]
    assert (kinds.count("sparse_probing dense"), kinds.count("sparse_probing")) == (1, 2)


def test_a_family_uses_what_its_members_found_and_compares_its_ends() -> None:
    data = noisy_set(d=12)
    ctx: Any = context(data)
    wide, narrow = identity_sae(12), tied_sae(12, 8)
    alone = [sparse_probing(sae, ctx) for sae in (wide, narrow)]
    made = len(ctx.made)
    output = sparse_probing_family(Family((wide, narrow)), ctx)
    assert len(ctx.made) == made
    check_output(sparse_probing_family, output)
    found = measure(sparse_probing_family, {"trained": output}, 0)
    for k in (1, 50):
        ends = [score(one, f"balanced_accuracy_k{k}") for one in alone]
        assert found[f"mean_k{k}"].value == pytest.approx(np.mean(ends))
        assert found[f"widest_minus_narrowest_k{k}"].value == pytest.approx(ends[0] - ends[1])
    table = output.tables["widths"].data
    assert set(table["set"]) == {"toy:set", "all"}
    assert set(output.figures) == {"over_width_k1", "over_width_k50"}


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"selection": "scald"}, "did you mean 'scaled'"),
        ({"compat": "sae-bench-0.7"}, "sae-bench-0.6"),
        ({"splits": 0}, "whole number from 1"),
        ({"splits": 2.5}, "whole number from 1"),
    ],
)
def test_parameters_without_meaning_are_refused(parameters: dict[str, Any], message: str) -> None:
    with pytest.raises(SaebenchError, match=message):
        run(identity_sae(8), pure_set(), **parameters)
