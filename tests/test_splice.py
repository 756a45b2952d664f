"""Cross-entropies under replacement: the exact ends of the scale, the positions that are replaced, sums by document."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from fakes import FakeContext, constant_sae, identity_sae, tied_sae, toy_context

from saebench_meta import controls, splice
from saebench_meta.errors import SaebenchError
from saebench_meta.sae import SAE

LENGTHS = [9, 1, 5, 7, 3]
D = 6


def both(sae: SAE, ctx: FakeContext, n_tokens: int = 0) -> tuple[splice.Baselines, splice.Losses]:
    base = splice.baselines(sae, ctx, n_tokens)
    return base, splice.spliced(sae, ctx, base)


def by_hand(ctx: FakeContext, x_hat: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Per-document Σ loss and Σ KL in float64, one token after the other, with `x_hat` for every evaluated token."""
    sample, E, U = ctx.texts, ctx.model.E.double(), ctx.model.U.double()
    loss, kl = np.zeros(sample.n_docs), np.zeros(sample.n_docs)
    for row in range(sample.n_rows):
        before, clean_before = torch.zeros(D, dtype=torch.float64), torch.zeros(D, dtype=torch.float64)
        for t in range(int(sample.lengths[row]) - 1):
            clean = E[sample.tokens[row, t]]
            x = x_hat.double() if sample.evaluated[row, t] else clean
            log_q = ((x + 0.5 * before) @ U).log_softmax(0)
            log_p = ((clean + 0.5 * clean_before) @ U).log_softmax(0)
            before, clean_before = before + x, clean_before + clean
            if sample.evaluated[row, t + 1]:
                loss[row] -= float(log_q[sample.tokens[row, t + 1]])
                kl[row] += float((log_p.exp() * (log_p - log_q)).sum())
    return loss, kl


def test_an_identity_sae_changes_nothing() -> None:
    base, losses = both(identity_sae(D), toy_context(LENGTHS))
    np.testing.assert_allclose(losses.loss, base.clean, rtol=1e-7)
    np.testing.assert_allclose(losses.kl, 0, atol=1e-6)


def test_a_zero_sae_is_zero_ablation_and_a_mean_sae_is_mean_ablation() -> None:
    ctx = toy_context(LENGTHS, mean=1.0)
    base, zero = both(constant_sae(torch.zeros(D)), ctx)
    np.testing.assert_allclose(zero.loss, base.zero, rtol=1e-7)
    base, mean = both(constant_sae(ctx.activations().mean().float()), ctx)
    np.testing.assert_allclose(mean.loss, base.mean, rtol=1e-7)
    assert abs(base.zero.sum() - base.mean.sum()) > 0.1


def test_losses_and_divergences_agree_with_a_float64_loop_over_tokens() -> None:
    ctx, value = toy_context(LENGTHS), torch.linspace(-1, 1, D)
    base, losses = both(constant_sae(value), ctx)
    loss, kl = by_hand(ctx, value)
    np.testing.assert_allclose(losses.loss, loss, rtol=1e-5)
    np.testing.assert_allclose(losses.kl, kl, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(base.zero, by_hand(ctx, torch.zeros(D))[0], rtol=1e-5)
    assert base.predictions.tolist() == LENGTHS


def test_exactly_the_evaluated_positions_are_replaced() -> None:
    ctx = toy_context(LENGTHS)
    ctx.texts.tokens[0, 4] = 0  # a special token in the middle of a text
    ctx.texts.evaluated[0, 4] = False
    seen: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = []
    plain = ctx.model.logits

    def watched(tokens: torch.Tensor, *, hook: str | None = None, edit: object = None) -> torch.Tensor:
        if edit is not None:
            x = ctx.model.E[tokens]
            seen.append((tokens, x, edit(x)))  # type: ignore[operator]
        return plain(tokens, hook=hook, edit=edit)

    ctx.model.logits = watched
    both(constant_sae(torch.full((D,), 9.0)), ctx)
    assert len(seen) == 3  # zero, mean, spliced, in one batch each
    for (tokens, before, after), value in zip(seen, (0.0, None, 9.0), strict=True):
        changed = (before != after).any(-1)
        evaluated = torch.zeros_like(changed)
        for row, width in enumerate(sorted(LENGTHS, reverse=True)):
            evaluated[row, 1 : 1 + width] = True
        evaluated[0, 4] = False
        assert torch.equal(changed, evaluated)
        assert tokens.shape == evaluated.shape
        assert value is None or bool((after[evaluated] == value).all())


def test_only_the_first_whole_documents_are_counted_up_to_the_tokens_asked_for() -> None:
    ctx = toy_context(LENGTHS)
    sae = tied_sae(D, 10)
    whole, spliced_whole = both(sae, ctx)
    for n_tokens, n_docs in ((1, 1), (9, 1), (10, 2), (14, 2), (15, 3), (1000, 5)):
        base, losses = both(sae, ctx, n_tokens)
        assert base.predictions.tolist() == LENGTHS[:n_docs] + [0] * (5 - n_docs)
        np.testing.assert_allclose(base.mean[:n_docs], whole.mean[:n_docs], rtol=1e-6)
        np.testing.assert_allclose(losses.loss[:n_docs], spliced_whole.loss[:n_docs], rtol=1e-6)
        assert (losses.loss[n_docs:] == 0).all()


def test_clean_logits_that_are_too_large_are_worked_out_again_with_the_same_result(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ctx, sae = toy_context(LENGTHS), tied_sae(D, 10)
    base, losses = both(sae, ctx)
    assert base.kept is not None
    monkeypatch.setattr(splice, "KEPT_BYTES", 100)
    again, recomputed = both(sae, toy_context(LENGTHS))
    assert again.kept is None
    np.testing.assert_array_equal(losses.kl, recomputed.kl)


@pytest.mark.parametrize("tokens", [1, 8, 20])
def test_batches_of_any_size_give_the_same_sums(monkeypatch: pytest.MonkeyPatch, tokens: int) -> None:
    sae = tied_sae(D, 10)
    ctx, again = toy_context(LENGTHS), toy_context(LENGTHS)
    base, losses = both(sae, ctx)
    monkeypatch.setattr(splice, "BATCH_TOKENS", tokens)
    monkeypatch.setattr(splice, "CODE_ELEMENTS", 25)
    small_base, small = both(sae, again)
    assert again.model.passes > ctx.model.passes
    for one, other in ((small.loss, losses.loss), (small.kl, losses.kl), (small_base.mean, base.mean)):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)


def test_the_batch_the_user_asks_for_is_the_largest(monkeypatch: pytest.MonkeyPatch) -> None:
    ctx, asked = toy_context(LENGTHS), toy_context(LENGTHS)
    asked.batch_size = 8
    both(tied_sae(D, 10), ctx)
    both(tied_sae(D, 10), asked)
    assert asked.model.passes > ctx.model.passes


def test_running_out_of_memory_halves_the_batch_says_so_and_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    sae = tied_sae(D, 10)
    base, losses = both(sae, toy_context(LENGTHS))
    ctx = toy_context(LENGTHS)
    logits = ctx.model.logits

    def small_machine(tokens: torch.Tensor, **edit: object) -> torch.Tensor:
        # The first pass of a batch fits and a later one does not: nothing of the batch may be counted twice.
        if tokens.numel() > 20 and edit:
            raise torch.OutOfMemoryError("out of memory")
        found: torch.Tensor = logits(tokens, **edit)
        return found

    monkeypatch.setattr(ctx.model, "logits", small_machine)
    halved_base, halved = both(sae, ctx)
    assert any("out of memory" in w for w in ctx.warnings)
    np.testing.assert_array_equal(halved_base.predictions, base.predictions)
    for one, other in ((halved.loss, losses.loss), (halved.kl, losses.kl), (halved_base.zero, base.zero)):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)


def test_baselines_are_worked_out_once_for_an_sae_and_its_controls() -> None:
    ctx, sae = toy_context(LENGTHS), tied_sae(D, 10)
    both(sae, ctx)
    passes = ctx.model.passes
    both(controls.permuted_rows(sae, np.random.default_rng(0)), ctx)
    assert len(ctx.made) == 1
    assert ctx.model.passes == passes + 1


def test_divergence_of_two_distributions_worked_out_by_hand() -> None:
    clean, other = torch.tensor([[0.5, 0.5]]).log(), torch.tensor([[0.9, 0.1]]).log()
    expected = 0.5 * np.log(0.5 / 0.9) + 0.5 * np.log(0.5 / 0.1)
    assert float(splice.kl_divergence(clean + 3, other - 2)) == pytest.approx(expected, abs=1e-6)


def test_a_negative_number_of_tokens_is_refused() -> None:
    with pytest.raises(SaebenchError, match="ce_tokens is -1"):
        both(identity_sae(D), toy_context(LENGTHS), -1)
