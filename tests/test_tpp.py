"""TPP: cases worked out by hand, closed form against explicit ablation, what must not move a score."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from fakes import FakeContext, identity_sae, labelled_set, tied_sae
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from saebench_meta import measure
from saebench_meta.codes import Codes
from saebench_meta.errors import SaebenchError
from saebench_meta.sae import SAE
from saebench_meta.task import Family, Output
from saebench_tasks.tpp import SELECTIONS, ablation, balance, probe, score, tpp, tpp_family, trial
from saebench_tasks.tpp.metrics import SIZES


def separated(n_classes: int = 3, per_class: int = 10, tokens: int = 3) -> Any:
    """Every token of a text of class c is the c-th basis vector."""
    label = [c for c in range(n_classes) for _ in range(per_class)]
    document = torch.arange(len(label)).repeat_interleave(tokens)
    x = torch.eye(n_classes)[torch.tensor(label)[document]]
    return labelled_set(x, document, label, [i % 2 == 1 for i in range(len(label))])


def noisy(n_classes: int = 4, per_class: int = 40, d: int = 8, seed: int = 0, name: str = "toy:set") -> Any:
    """Texts of one to four tokens around their class's mean."""
    g = torch.Generator().manual_seed(seed)
    label = torch.arange(n_classes).repeat_interleave(per_class)
    lengths = torch.randint(1, 5, (len(label),), generator=g)
    document = torch.arange(len(label)).repeat_interleave(lengths)
    means = 1.5 * torch.randn(n_classes, d, generator=g)
    x = means[label[document]] + 1.5 * torch.randn(len(document), d, generator=g)
    test = torch.rand(len(label), generator=g) < 0.4
    return labelled_set(x, document, label.tolist(), test.tolist(), name=name, size=23)


def context(*sets: Any, seed: int = 0) -> FakeContext:
    return FakeContext(sets={s.name: s for s in sets}, seed=seed)


def run(sae: SAE, *sets: Any, seed: int = 0, **parameters: Any) -> Output:
    output = tpp(sae, context(*sets, seed=seed), **parameters)
    measure.check_output(tpp, output)
    return output


def values(output: Output) -> dict[str, float | None]:
    found = {m.name: measure.estimate(m, output, tpp, 0).value for m in tpp.metrics}
    return {name: found[name] for name in found if not name.startswith(("random", "tpp_random", "intended_random"))}


# -- by hand


def test_one_latent_a_class_takes_half_of_its_own_probe_and_nothing_of_the_others() -> None:
    """Without its latent a text is at 0, which every probe says no to: its own is wrong on all texts of the class."""
    found = values(run(identity_sae(3), separated(), selection="more_active"))
    assert found["probe_accuracy"] == 1
    assert (found["intended"], found["unintended"], found["tpp"]) == pytest.approx((0.5, 0, 0.5))
    assert [found[f"tpp_{n}"] for n in SIZES] == pytest.approx([0.5] * 7)
    assert found["reseed_sd"] == pytest.approx(0, abs=1e-12)


def test_equation_11_also_takes_latents_of_other_classes_since_they_speak_against() -> None:
    """With two latents of three ablated, two of three classes fall to 0; with all three, every class does.

    Their own fall is still a half. Of six pairs (ablated, probed) three lose a half with two latents, six with three.
    """
    found = values(run(identity_sae(3), separated(), selection="attribution"))
    assert found["intended"] == pytest.approx(0.5)
    assert [found[f"tpp_{n}"] for n in SIZES] == pytest.approx([0.25] + [0] * 6)
    weight = np.log(5 / 2) / np.log(500 / 2) / 2  # the first n has half of its step
    assert found["tpp"] == pytest.approx(0.25 * weight)


def test_a_latent_shared_by_two_classes_counts_as_unintended() -> None:
    """Classes 0 and 1 have one latent, classes 2 and 3 another, each class a direction of which no latent tells."""
    x = torch.tensor([[1.0, 0, 1, 0], [1.0, 0, -1, 0], [0, 1.0, 0, 1], [0, 1.0, 0, -1]])
    label = [c for c in range(4) for _ in range(10)]
    one = labelled_set(x[label], torch.arange(40), label, [i % 2 == 1 for i in range(40)])
    W = torch.tensor([[1.0, 0, 0, 0], [0, 1, 0, 0]])
    sae = replace(tied_sae(4, 2, bias=0.0), W_enc=W.T.contiguous(), W_dec=W)
    cells = run(sae, one, selection="more_active").tables["cells"].data.query("n == 500")
    falls = cells.pivot(index="ablated", columns="probed", values="fall").to_numpy()
    assert falls[0, 0] == falls[0, 1] == falls[1, 0] == falls[3, 2]
    assert falls[0, 2] == falls[3, 1] == 0


def test_the_area_weighs_sizes_by_their_share_of_log_n() -> None:
    w = score.OVER_LOG_N
    assert w.sum() == pytest.approx(1)
    logs = np.log(SIZES)
    assert logs @ w == pytest.approx((logs[0] + logs[-1]) / 2)  # exact for what is linear in log n
    assert np.trapezoid(logs**2, logs) / np.log(250) == pytest.approx(logs**2 @ w)


def test_random_sets_are_as_large_and_drawn_from_the_active_latents() -> None:
    """One latent alone is ever active: a random set is that one, for the only class that has a latent to ablate."""
    one = separated()
    W = torch.zeros(6, 3)
    W[0] = torch.tensor([1.0, 0, 0])
    sae = replace(identity_sae(3), W_enc=W.T.contiguous(), W_dec=W)
    assert [[own.tolist() for own in t.latents] for t in trained_trials(one, sae)] == [[[0], [], []]] * 2
    output = run(sae, one, selection="more_active")
    found = values(output)
    assert (found["intended"], found["unintended"]) == pytest.approx((0.5 / 3, 0))
    random = measure.estimate(tpp.metric("tpp_random"), output, tpp, 0).value
    assert random == pytest.approx(found["tpp"])
    assert output.estimates["random_above"].value == 1


def test_what_random_latents_do_is_their_score_by_hand() -> None:
    """A random latent of three is a class's own in one of three draws; else it is the one of another class.

    Own: its probe loses a half, no other does. Another's: its own probe loses nothing, one of two others loses a half.
    """
    one, sae = separated(per_class=30), identity_sae(3)
    found = trained_trials(one, sae, 5)
    for t in found:
        for drawn in t.random:
            cells = drawn.cells[:, :, 0]
            assert sorted(np.unique(cells.round(12))) in ([0.0, 0.5], [0.5]) and (cells.sum(1).round(12) == 0.5).all()
            assert drawn.score[0] == pytest.approx((np.trace(cells) - (cells.sum() - np.trace(cells)) / 2) / 3)
    assert {round(float(d.score[0]), 6) for t in found for d in t.random} <= {0.5, 0.25, 0.0, -0.25}


def trained_trials(one: Any, sae: SAE, number: int = 2, *, positive: bool = True) -> list[trial.Trial]:
    ctx = context(one)
    return trial.trials(one, sae, probe.trained(one, ctx, number), ctx.seed, positive=positive)


def test_a_set_of_two_classes_is_shown_and_not_counted() -> None:
    two, four = noisy(2, name="toy:two"), noisy(4, name="toy:four")
    sae = tied_sae(8, 20)
    both, alone = run(sae, two, four), run(sae, four)
    assert values(both) == values(alone)
    table = both.tables["sets"].data.set_index("set")
    assert table["counted"].to_dict() == {"toy:two": False, "toy:four": True}
    assert table.loc["toy:two", "tpp"] == pytest.approx(0, abs=1e-12)
    assert table.loc["toy:two", "intended"] > 0
    assert "toy:two" in both.notes[-1]


def test_without_a_set_of_three_classes_there_is_no_score() -> None:
    output = run(tied_sae(8, 20), noisy(2))
    found = values(output)
    assert found["tpp"] is None and found["reseed_sd"] is None


# -- closed form


def explicit(sae: SAE, one: Any, trained: probe.Trained, number: int, latents: Tensor) -> Tensor:
    """Logits of all texts by encoding, zeroing, decoding, adding the error, pooling and probing."""
    total = torch.zeros(one.n_texts, sae.d_in, dtype=torch.float64)
    for chunk, _ in one.chunks(sae):
        f, stats = sae.encode(chunk.x), sae.transform(chunk.x)[1]
        error = chunk.x - sae.decode(f, stats)
        f[:, latents] = 0
        total.index_add_(0, chunk.document, (sae.decode(f, stats) + error).double())
    pooled = total / torch.from_numpy(one.n_tokens)[:, None]
    return pooled @ trained.W[number].T + trained.b[number]


@pytest.mark.parametrize("transform", ["none", "center", "layer_norm", "norm_rescale"])
def test_closed_form_is_explicit_ablation_for_every_class_and_size(transform: str) -> None:
    one, sae = noisy(), tied_sae(8, 40, bias=-0.2, input_transform=transform)
    ctx = context(one)
    trained = probe.trained(one, ctx, 1)
    codes = one.scaled_codes(sae)
    for number, found in enumerate(trial.trials(one, sae, trained, ctx.seed, positive=False)):
        effect = ablation.effects(sae.W_dec, trained.W[number])
        bench = trial.bench_of(one, trial.codes_on_test(one, codes), effect, trained, number)
        latents = ablation.padded([torch.from_numpy(own) for own in found.latents])
        taken = ablation.removed(ablation.columns(bench.codes, latents), effect[latents], SIZES)
        for i, own in enumerate(found.latents):
            for k, n in enumerate(SIZES):
                expected = explicit(sae, one, trained, number, torch.from_numpy(own[:n]))[one.test]
                torch.testing.assert_close(bench.logits - taken[i, k], expected, atol=1e-5, rtol=1e-5)


def test_columns_are_those_of_the_dense_codes_in_the_order_given() -> None:
    f = torch.relu(torch.randn(7, 9, generator=torch.Generator().manual_seed(1)))
    latents = torch.tensor([[4, 0, 8], [2, 4, -1]])
    found = ablation.columns(Codes.from_dense(f), latents)
    expected = torch.cat([f, torch.zeros(7, 1)], dim=1)[:, latents].permute(1, 2, 0).double()
    assert torch.equal(found, expected)
    kept = torch.tensor([True, False, True, True, False, False, True])
    assert torch.equal(ablation.taken(Codes.from_dense(f), kept).dense(), f[kept])


# -- what must not move a score


@settings(max_examples=6, deadline=None)
@given(seed=st.integers(0, 1000), selection=st.sampled_from(SELECTIONS))
def test_order_and_scale_of_latents_do_not_matter(seed: int, selection: str) -> None:
    one, sae = noisy(), tied_sae(8, 30, bias=-0.3)
    g = torch.Generator().manual_seed(seed)
    order = torch.randperm(30, generator=g)
    s = 0.25 + 4 * torch.rand(30, generator=g)
    other = replace(
        sae,
        W_enc=(sae.W_enc * s)[:, order].contiguous(),
        b_enc=(sae.b_enc * s)[order],
        W_dec=(sae.W_dec / s[:, None])[order],
    )
    first, second = values(run(sae, one, selection=selection)), values(run(other, one, selection=selection))
    assert first == pytest.approx(second, abs=1e-5)


def test_nothing_is_chosen_on_the_test_texts() -> None:
    """Other labels on the test texts: the same probes, strength and latents."""
    one = noisy()
    shuffled = noisy()
    shuffled.label = np.where(one.test, (one.label + 1) % 4, one.label)
    sae = tied_sae(8, 30)
    first, second = context(one), context(shuffled)
    a, b = probe.trained(one, first, 3), probe.trained(shuffled, second, 3)
    assert a.C == b.C and torch.equal(a.W, b.W)
    chosen = [
        [own.tolist() for t in trial.trials(s, sae, p, c.seed, positive=True) for own in t.latents]
        for s, p, c in ((one, a, first), (shuffled, b, second))
    ]
    assert chosen[0] == chosen[1]


def test_trials_differ_in_training_texts_and_share_the_test_texts() -> None:
    one = noisy()
    trained = probe.trained(one, context(one), 3)
    assert not (trained.train & one.test).any()
    assert len({row.tobytes() for row in trained.train}) == 3
    shares = [trained.train[:, one.label == c].sum(1) / (~one.test & (one.label == c)).sum() for c in range(4)]
    assert np.allclose(shares, balance.TRAINED_ON, atol=0.05)


def test_weights_are_the_mean_over_balanced_draws() -> None:
    """Unequal classes: accuracy under the weights is the mean accuracy over draws of as many texts of the others."""
    rng = np.random.default_rng(0)
    label = np.repeat([0, 1, 2], [12, 30, 7])
    right = rng.random(len(label)) < 0.6
    w = balance.weights(label, np.ones(len(label), dtype=bool), 3)
    assert np.allclose(w.sum(1), 1)
    draws = []
    for _ in range(4000):
        others = [rng.choice(np.flatnonzero(label == c), 6, replace=False) for c in (1, 2)]
        draws.append(right[np.concatenate([np.flatnonzero(label == 0), *others])].mean())
    assert right @ w[0] == pytest.approx(np.mean(draws), abs=4 * np.std(draws) / 4000**0.5)


def test_probes_are_trained_once_for_an_sae_and_its_controls() -> None:
    one, four = noisy(), noisy(seed=1, name="toy:other")
    ctx = context(one, four)
    tpp(tied_sae(8, 20), ctx)
    tpp(tied_sae(8, 20, seed=3), ctx)
    assert len(ctx.made) == 2


def test_a_dictionary_that_is_silent_scores_zero() -> None:
    silent = replace(tied_sae(8, 20), b_enc=torch.full((20,), -1e6))
    found = values(run(silent, noisy()))
    assert found["tpp"] == found["intended"] == found["unintended"] == 0


@pytest.mark.parametrize("given", [{"trials": 0}, {"selection": "atribution"}, {"compat": "sae-bench"}])
def test_parameters_that_mean_nothing_are_refused(given: dict[str, Any]) -> None:
    with pytest.raises(SaebenchError, match=f"tpp.{next(iter(given))}"):
        run(tied_sae(8, 20), noisy(), **given)


# -- a family


def test_a_family_holds_the_scores_of_its_saes_over_width() -> None:
    sets = (noisy(), noisy(3, seed=2, name="toy:other"), noisy(2, name="toy:two"))
    saes = tuple(tied_sae(8, width, seed=width, name=f"w{width}") for width in (20, 40, 10))
    output = tpp_family(Family(saes), context(*sets))
    measure.check_output(tpp_family, output)
    found = {m.name: measure.estimate(m, output, tpp_family, 0).value for m in tpp_family.metrics}
    alone = [values(run(sae, *sets))["tpp"] for sae in saes]
    assert found == pytest.approx({"mean": np.mean(alone), "narrowest": alone[2], "widest": alone[1]})
    rows = output.tables["widths"].data
    assert rows[rows["set"] == "all"]["tpp"].tolist() == pytest.approx(alone)
    assert set(rows["set"]) == {"toy:set", "toy:other", "all"}
