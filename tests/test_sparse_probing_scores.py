"""Scores and their intervals: ranks, pseudo-values against an explicit bootstrap, coverage on random labels."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from saebench_meta import seeds, stats
from saebench_meta.codes import Codes
from saebench_tasks.sparse_probing.examples import Examples
from saebench_tasks.sparse_probing.probing import Outcome, probe_latents, ranks
from saebench_tasks.sparse_probing.scores import SCORES, Score, over_sets, scored

DRAWS = 2000


def random_labels(classes: int, draws: int, *, train: int, test: int, seed: int) -> tuple[Examples, np.ndarray]:
    """One probe a draw and class: each draw labels the same texts anew, classes equally frequent in either split."""
    rng = np.random.default_rng(seed)
    labels = np.stack(
        [np.concatenate([rng.permutation(np.arange(n) % classes) for n in (train, test)]) for _ in range(draws)]
    )
    probed = range(1 if classes == 2 else classes)
    positive = np.concatenate([labels == c for c in probed])
    texts = np.arange(train + test)
    fitted = (texts < train)[None]
    held = np.zeros_like(fitted)
    held[0, train // 2 : train] = True
    names = tuple(f"{c}/{draw}" for c in probed for draw in range(draws))
    at = texts[train:]
    return Examples("random", tuple(map(str, at)), names, positive, fitted & ~held, held, at, labels[0, at]), labels


@pytest.mark.slow
@pytest.mark.parametrize("classes", [2, 4])
def test_random_labels_give_chance_and_intervals_that_cover_it(classes: int) -> None:
    """2,000 labellings that have nothing to do with the codes; each its own probes, its own interval."""
    f = torch.rand(200, 4, generator=torch.Generator().manual_seed(classes))
    of, labels = random_labels(classes, DRAWS, train=80, test=120, seed=classes)
    said, _, _ = probe_latents(Codes.from_dense(f), of, (1, 3), "scaled", 0)
    asked: tuple[tuple[Score, int], ...] = (("balanced_accuracy", 0), ("auc", 1))
    found: dict[tuple[Score, int], list[tuple[float, bool]]] = {of_k: [] for of_k in asked}
    for draw in range(DRAWS):
        mine = np.arange(draw, len(of.positive), DRAWS)
        one = replace(of, positive=of.positive[mine], label=labels[draw, of.test])
        outcome = Outcome(*(getattr(said, name)[:, mine] for name in ("right", "ranked", "asked", "C")), said.spread)
        for score, k in asked:
            values = over_sets([scored(outcome, one, score)])[k]
            columns = {"score": values, "texts": np.ones(len(values))}
            estimate = stats.from_documents("score / texts", columns, seeds.rng(draw % 4, "coverage"))
            assert estimate.value is not None and estimate.ci_low is not None and estimate.ci_high is not None
            found[score, k].append((estimate.value, estimate.ci_low <= 0.5 <= estimate.ci_high))
    for of_k, draws in found.items():
        values, covered = (np.array(column) for column in zip(*draws, strict=True))
        assert abs(values.mean() - 0.5) < 4 * values.std() / DRAWS**0.5, of_k
        assert 0.935 <= covered.mean() <= 0.97, (of_k, covered.mean())


@given(st.integers(1, 12), st.integers(1, 12), st.integers(1, 4), st.integers(0, 10_000))
def test_ranks_average_to_the_auc_on_either_side(n_positive: int, n_negative: int, levels: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    positive = rng.permutation(np.arange(n_positive + n_negative) < n_positive)
    logits = rng.integers(0, levels, (2, len(positive))) * 0.37
    ranked = ranks(logits, positive)
    for row, said in zip(ranked, logits, strict=True):
        auc = roc_auc_score(positive, said)
        assert row[positive].mean() == pytest.approx(auc)
        assert row[~positive].mean() == pytest.approx(auc)


def test_texts_whose_logits_differ_by_rounding_are_tied() -> None:
    assert ranks(np.array([[1.0, 1.0 + 1e-13]]), np.array([True, False])).tolist() == [[0.5, 0.5]]


def outcome(logits: np.ndarray, positive: np.ndarray) -> Outcome:
    """One k: logits (classes, texts)."""
    ranked = np.stack([ranks(said, side) for said, side in zip(logits, positive, strict=True)])
    right = (logits > 0) == positive
    shape = (1, *right.shape)
    return Outcome(right[None] * 1.0, ranked[None], np.ones(shape, dtype=bool), np.ones((*shape[:2], 1)), np.zeros(1))


def a_test_split(per_class: int, classes: int, seed: int) -> tuple[np.ndarray, Examples]:
    """Logits that are somewhat right, and the texts they are about."""
    rng = np.random.default_rng(seed)
    label = np.arange(per_class * classes) % classes
    positive = label == np.arange(classes)[:, None]
    logits = rng.normal(size=positive.shape) + 0.8 * positive - 0.3
    none = np.zeros((1, len(label)), dtype=bool)
    names = tuple(map(str, range(classes)))
    return logits, Examples("toy", tuple(map(str, label)), names, positive, none, none, np.arange(len(label)), label)


@pytest.mark.parametrize("score", SCORES)
def test_influences_give_the_error_of_a_bootstrap_within_classes(score: Score) -> None:
    logits, of = a_test_split(40, 3, 0)
    found = scored(outcome(logits, of.positive), of, score)
    rng = np.random.default_rng(1)
    values = []
    for _ in range(600):
        texts = np.concatenate([rng.choice(np.flatnonzero(of.label == c), 40) for c in range(3)])
        again = replace(of, positive=of.positive[:, texts], test=np.arange(120), label=of.label[texts])
        values.append(scored(outcome(logits[:, texts], again.positive), again, score).value[0])
    assert found.value[0] == pytest.approx(np.mean(values), abs=0.01)
    assert found.error[0] == pytest.approx(np.std(values), rel=0.1)
    for c in range(3):
        assert found.influence[0, of.label == c].sum() == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("score", SCORES)
def test_pseudo_values_average_to_the_mean_over_sets_and_carry_its_error(score: Score) -> None:
    parts = []
    for per_class, classes, seed in ((20, 2, 0), (60, 4, 1)):
        logits, of = a_test_split(per_class, classes, seed)
        parts.append(scored(outcome(logits, of.positive), of, score))
    values = over_sets(parts)[0]
    assert values.mean() == pytest.approx(np.mean([p.value[0] for p in parts]))
    error = np.sqrt(sum(p.error[0] ** 2 for p in parts)) / 2
    assert values.std() / np.sqrt(len(values)) == pytest.approx(error)


def test_accuracy_and_balanced_accuracy_by_hand() -> None:
    label = np.array([0, 0, 1, 1, 1, 1])
    positive = (label == 0)[None]
    none = np.zeros((1, 6), dtype=bool)
    of = Examples("toy", tuple("abcdef"), ("0",), positive, none, none, np.arange(6), label)
    said = outcome(np.array([[1.0, -1.0, -1.0, -1.0, -1.0, 2.0]]), positive)
    assert scored(said, of, "accuracy").value[0] == pytest.approx(4 / 6)
    assert scored(said, of, "balanced_accuracy").value[0] == pytest.approx((1 / 2 + 3 / 4) / 2)
    # Of 8 pairs: the first positive is above three and below one, the second is level with three.
    assert scored(said, of, "auc").value[0] == pytest.approx((3 + 1.5) / 8)


def test_texts_that_are_not_asked_about_do_not_count() -> None:
    logits, of = a_test_split(10, 2, 3)
    said = outcome(logits, of.positive)
    asked = np.broadcast_to(np.arange(20) % 5 > 1, said.asked.shape)
    part = replace(said, asked=asked, right=np.where(asked, said.right, 0.0))
    sides = [said.right[0, c, asked[0, c] & (of.label == side)].mean() for c in (0, 1) for side in (0, 1)]
    assert scored(part, of, "balanced_accuracy").value[0] == pytest.approx(np.mean(sides))
