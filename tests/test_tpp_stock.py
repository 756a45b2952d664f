"""The stock protocol of TPP: its draws, its probes, and its padding, against the same steps done one by one."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from fakes import FakeContext, labelled_set, tied_sae
from torch import Tensor
from torch.nn import functional

from saebench_meta import measure
from saebench_meta.sae import SAE
from saebench_meta.seeds import rng
from saebench_meta.task import Output
from saebench_tasks.tpp import ablation, stock, tpp
from saebench_tasks.tpp.metrics import SIZES
from saebench_tasks.tpp.probe import Trained
from saebench_tasks.tpp.trial import bench_of, codes_on_test


def texts(n_classes: int = 3, per_class: int = 24, d: int = 6, seed: int = 0, name: str = "toy:set") -> Any:
    g = torch.Generator().manual_seed(seed)
    label = torch.arange(n_classes).repeat_interleave(per_class)
    lengths = torch.randint(3, 20, (len(label),), generator=g)
    document = torch.arange(len(label)).repeat_interleave(lengths)
    means = 2 * torch.randn(n_classes, d, generator=g)
    x = means[label[document]] + torch.randn(len(document), d, generator=g)
    return labelled_set(x, document, label.tolist(), (torch.arange(len(label)) % 3 == 0).tolist(), name=name)


def topk_sae(seed: int = 0) -> SAE:
    """Its code of a zero activation is not zero."""
    sae = tied_sae(6, 30, seed=seed, bias=0.2, activation="topk", k=4)
    return replace(sae, b_enc=torch.rand(30, generator=torch.Generator().manual_seed(seed)) - 0.3)


def probes_of(one: Any) -> Trained:
    g = torch.Generator().manual_seed(4)
    W, b = torch.randn(1, 3, 6, generator=g).double(), torch.randn(1, 3, generator=g).double()
    return Trained(~one.test[None], W, b, float("nan"))


def padded_texts(one: Any) -> tuple[Tensor, Tensor]:
    """Activations of texts × 128 positions, 0 where masked, and the evaluated tokens of each text."""
    x = torch.zeros(one.n_texts, stock.CONTEXT, 6)
    for chunk, _ in one.chunks(topk_sae()):
        for text in chunk.document.unique().tolist():
            own = chunk.x[chunk.document == text]
            x[text, 1 : 1 + len(own)] = own  # BOS stands at the front
    return x, torch.from_numpy(one.n_tokens)


def test_ablating_takes_the_codes_of_masked_positions_too() -> None:
    one, sae = texts(), topk_sae()
    probes = probes_of(one)
    x, n = padded_texts(one)
    f = sae.encode(x.flatten(0, 1)).reshape(one.n_texts, stock.CONTEXT, -1)
    error = x - (f @ sae.W_dec + sae.b_dec)
    sets = [torch.tensor([3, 1, 4, 15, 9, 2, 6]), torch.tensor([5, 3, 11, 8, 0]), torch.tensor([7, 20, 21])]
    codes = one.scaled_codes(sae)
    bench = bench_of(one, codes_on_test(one, codes), ablation.effects(sae.W_dec, probes.W[0]), probes, 0)
    bench = replace(bench, leak=stock.leak_of(one, sae))
    still = bench.still(sets)
    for i, latents in enumerate(sets):
        for k, size in enumerate(SIZES):
            ablated = f.clone()
            ablated[..., latents[:size]] = 0
            pooled = (ablated @ sae.W_dec + sae.b_dec + error).sum(1).double() / n[:, None]
            logits = (pooled @ probes.W[0].T + probes.b[0])[one.test]
            own = torch.from_numpy(one.label[one.test])[:, None] == torch.arange(3)
            clear = logits.abs() > 1e-4
            assert torch.equal(still[i, k][clear], ((logits > 0) == own)[clear]) and clear.float().mean() > 0.99


def test_a_problem_is_a_class_and_as_many_of_the_others_in_equal_parts() -> None:
    label = np.repeat([0, 1, 2, 3], [30, 40, 50, 60])
    there = np.ones(len(label), dtype=bool)
    there[::7] = False
    drawn = stock.problem(label, there, 0, 4, rng(0))
    own = int((there & (label == 0)).sum())
    counts = np.bincount(label[drawn])
    assert counts[0] == own and counts[1:].sum() == own and counts[1:].max() <= -(-own // 3)
    assert there[drawn].all() and len(set(drawn)) == len(drawn)
    assert not np.array_equal(drawn, stock.problem(label, there, 0, 4, rng(1)))


def test_texts_beyond_the_stock_sizes_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stock, "TRAIN_TEXTS", 5)
    monkeypatch.setattr(stock, "TEST_TEXTS", 3)
    one = texts()
    train, test = stock.sampled(one, rng(0))
    assert np.bincount(one.label[train]).tolist() == [5] * 3 and np.bincount(one.label[test]).tolist() == [3] * 3
    assert not (train & one.test).any() and (test <= one.test).all()


def test_the_gradient_is_that_of_the_mean_log_loss_and_l1() -> None:
    g = torch.Generator().manual_seed(0)
    x, own = torch.randn(2, 16, 5, generator=g), (torch.rand(2, 16, generator=g) < 0.5).float()
    theta = torch.randn(2, 6, generator=g, requires_grad=True)
    logits = torch.einsum("rnd,rd->rn", x, theta[:, :5]) + theta[:, 5:]
    losses = functional.binary_cross_entropy_with_logits(logits, own, reduction="none").mean(1)
    (losses + stock.L1 * theta[:, :5].abs().sum(1)).sum().backward()  # type: ignore[no-untyped-call]
    assert theta.grad is not None
    torch.testing.assert_close(stock._gradient(theta.detach(), x, own), theta.grad)


def test_only_latents_more_active_on_the_class_are_ranked() -> None:
    one, sae = texts(), topk_sae()
    probes = probes_of(one)
    effect = ablation.effects(sae.W_dec, probes.W[0])
    run = stock.Run(one, 0, 0, "ablations")
    found = stock.scores(one.codes(sae), run, effect)
    again = stock.Run(one, 0, 0, "ablations")
    f = one.codes(sae).dense().double()
    for j in range(3):
        drawn = again.problem(j, test=False)
        own = one.label[drawn] == j
        difference = f[drawn[own]].mean(0) - f[drawn[~own]].mean(0)
        torch.testing.assert_close(found[j], difference.clamp_min(0) * effect[:, j])


def test_as_many_latents_as_have_an_effect_are_taken_the_largest_first() -> None:
    effects = torch.tensor([0.0, -3.0, 2.0, 0.0, 5.0, -1.0])
    # Four have one. The tool takes the four largest of all, so both zeros come before -1.
    assert stock.ranked(effects).tolist() == [4, 2, 0, 3]
    assert stock.ranked(torch.zeros(3)).tolist() == []


def test_the_whole_protocol_gives_every_metric_but_those_of_random_latents(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stock, "LR", 0.05)  # so that few steps are enough

    def run() -> Output:
        ctx = FakeContext(sets={"toy:set": texts(), "toy:two": texts(2, name="toy:two")})
        return tpp(topk_sae(), ctx, trials=2, compat=stock.NAME)

    output = run()
    measure.check_output(tpp, output)
    found = {m.name: measure.estimate(m, output, tpp, 0) for m in tpp.metrics}
    assert {name for name, e in found.items() if e.value is None} == {"tpp_random", "intended_random", "random_above"}
    assert found["probe_accuracy"].value is not None and found["probe_accuracy"].value > 0.9
    sets = output.tables["sets"].data
    assert sets["counted"].all() and found["tpp"].value == pytest.approx(sets["tpp"].mean())
    assert run().tables["sets"].data.equals(sets)
