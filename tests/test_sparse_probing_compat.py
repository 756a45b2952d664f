"""The stock protocol: balanced draws, its selection and probes, what stays the same between SAEs."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from probing_sets import a_set, changed_latents, context, identity_sae, noisy_set, pure_set, run, score
from sklearn.linear_model import LogisticRegression

from saebench_meta.measure import check_output
from saebench_tasks.sparse_probing import compat, sparse_probing
from saebench_tasks.sparse_probing.metrics import KS

STOCK = {"compat": compat.VERSION}


def test_classes_that_are_single_latents_need_one_of_them() -> None:
    output = run(identity_sae(8), pure_set(), **STOCK)
    check_output(sparse_probing, output)
    assert [score(output, f"accuracy_k{k}") for k in KS] == pytest.approx([1.0] * len(KS))
    chosen = output.tables["latents"].data
    assert chosen[chosen["place"] == 1]["latent"].tolist() == [0, 1, 2]


def test_examples_are_balanced_so_that_both_accuracies_agree() -> None:
    output = run(identity_sae(8), noisy_set(), noisy_set(classes=2, seed=1, name="toy:two"), **STOCK)
    for k in KS:
        assert score(output, f"accuracy_k{k}") == pytest.approx(score(output, f"balanced_accuracy_k{k}"))


def test_negatives_come_evenly_from_the_other_classes_and_anew_for_every_k() -> None:
    data = noisy_set(classes=4, per_class=30)
    drawn = compat.sample(data, 0)
    train, test = drawn.draws(2, 5)
    for draw, split, n in ((train, ~data.test, 20), (test, data.test, 10)):
        assert len(set(draw.texts)) == len(draw.texts) == 2 * n
        assert split[draw.texts].all()
        assert (data.label[draw.texts[draw.positive]] == 2).all()
        assert draw.positive.sum() == n
        others = np.bincount(data.label[draw.texts[~draw.positive]], minlength=4)
        # A third each, rounded up, of which n are left.
        assert others[2] == 0 and others.sum() == n and others.max() <= -(-n // 3)
    again, other_k = drawn.draws(2, 5)[0], drawn.draws(2, 10)[0]
    assert np.array_equal(again.texts, train.texts)
    assert not np.array_equal(other_k.texts, train.texts)


def test_a_class_has_at_most_the_peers_number_of_texts_and_all_equally_many(monkeypatch: pytest.MonkeyPatch) -> None:
    label = [0] * 30 + [1] * 20
    data = a_set(torch.rand(50, 3), label, [i % 2 == 0 for i in range(50)])
    assert [len(t) for t in compat.sample(data, 0).train] == [10, 10]
    monkeypatch.setattr(compat, "TRAIN", 4)
    drawn = compat.sample(data, 0)
    assert ([len(t) for t in drawn.train], [len(t) for t in drawn.test]) == ([4, 4], [10, 10])


def test_probes_are_scikit_learns_on_the_latents_of_largest_mean_difference() -> None:
    data = noisy_set(classes=2, per_class=60)
    sae, k = identity_sae(8), 2
    f = data.codes(sae).dense().numpy()
    output = run(sae, data, **STOCK)
    right = []
    for c in (0, 1):
        train, test = compat.sample(data, 0).draws(c, k)
        mine, others = train.texts[train.positive], train.texts[~train.positive]
        best = np.argsort(-np.abs(f[mine].mean(0) - f[others].mean(0)))[:k]
        probe = LogisticRegression(max_iter=1000).fit(f[train.texts][:, best], train.positive)
        right.append((probe.predict(f[test.texts][:, best]) == test.positive).mean())
    assert score(output, f"accuracy_k{k}") == pytest.approx(np.mean(right))


def test_a_scale_moves_the_stock_scores() -> None:
    """Selection by the plain difference and a penalty on plain codes: what `scaled` does away with."""
    sae, data = identity_sae(8), noisy_set(per_class=60)
    scale = torch.ones(16)
    scale[5] = 1e4
    louder = changed_latents(sae, torch.arange(16), scale)
    ours, stock = ([run(s, data, splits=1, **p) for s in (sae, louder)] for p in ({}, STOCK))
    differences = [score(b, "accuracy_k1") - score(a, "accuracy_k1") for a, b in (ours, stock)]
    assert differences[0] == pytest.approx(0)
    assert differences[1] < -0.05


def test_the_probe_on_activations_is_trained_once_for_all_saes() -> None:
    ctx: Any = context(noisy_set())
    sae = identity_sae(8)
    found = [
        sparse_probing(one, ctx, **STOCK)
        for one in (sae, changed_latents(sae, torch.arange(16).flip(0), torch.ones(16)))
    ]
    assert [key[0] for key in ctx.made].count("sparse_probing stock dense") == 1
    assert score(found[0], "dense_accuracy") == score(found[1], "dense_accuracy") > 0.5


def test_the_probe_on_activations_keeps_its_best_epoch_on_the_test_texts() -> None:
    """Test labels turned round: training makes it worse there, and what is kept is from before. The peer's fault."""
    x = torch.randn(400, 20, generator=torch.Generator().manual_seed(0))
    test = torch.arange(400) < 200
    label = ((x[:, 0] > 0) ^ test).int().tolist()
    data = a_set(x, label, test.tolist())
    stock, ours = (run(identity_sae(20), data, splits=1, **p) for p in (STOCK, {}))
    assert score(stock, "dense_accuracy") > score(ours, "dense_accuracy") + 0.2
