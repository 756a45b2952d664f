"""Scores against the truth: by hand on worlds drawn directly, and on the built-in model with words as features."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import planted_world
import pytest
import torch
import wordy_world
from click.testing import CliRunner, Result
from hypothesis import given
from hypothesis import strategies as st
from planted_world import WORLDS, registry_with, sae_of

from saebench_meta import plugins, seeds
from saebench_meta.cli import saebench
from saebench_meta.hookspecs import hookimpl
from saebench_meta.plan import make_plan
from saebench_meta.plugins import Registry
from saebench_meta.runner import execute
from saebench_meta.sae import SAE
from saebench_meta.settings import Settings
from saebench_meta.task import Metric, Output, task
from saebench_meta.truth import BATCH, TruthScores, random_on_world, truth_scores

WORLD = WORLDS["3"]
N = 2000


def rows(*vectors: list[float]) -> torch.Tensor:
    return torch.tensor(vectors, dtype=torch.float32)


PERFECT = rows([1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0])


# -- by hand


def test_the_true_features_score_one() -> None:
    scores = truth_scores(sae_of(PERFECT), WORLD, tokens=N)
    assert (scores.features, scores.rare, scores.dead, scores.tokens) == (3, 0, 0, N)
    assert (scores.precision, scores.recall, scores.found) == (1, 1, 1)
    assert (scores.f1.value, scores.f1.ci_low, scores.f1.ci_high) == (1, 1, 1)
    assert scores.mcc == scores.mcc_encoder == pytest.approx(1)
    assert scores.uniqueness == 1
    _, magnitudes = WORLD.sample(N, seeds.derive(0, "truth", 0))
    assert scores.l0 == pytest.approx(float((magnitudes > 0).sum(1).float().mean()))


def test_every_score_of_an_sae_with_faults() -> None:
    # Latent 0 fires for features 0 and 1, latent 1 never, latent 2 for feature 2 alone.
    sae = sae_of(rows([0.8, 0.6, 0, 0], [-0.8, -0.6, 0, 0], [0, 0, 0.6, 0.8]))
    scores = truth_scores(sae, WORLD, tokens=N, min_count=10)
    x, magnitudes = WORLD.sample(N, seeds.derive(0, "truth", 0))
    fired = torch.relu(x @ sae.W_enc - 0.5) > 0
    assert fired.any(0).tolist() == [True, False, True]
    zero, one = (magnitudes[:, :2] > 0).T
    tp, n_fired = int((fired[:, 0] & zero).sum()), int(fired[:, 0].sum())
    options = {0: 2 * tp / (n_fired + int(zero.sum())), 1: 2 * int(one.sum()) / (n_fired + int(one.sum()))}
    best = max(options, key=lambda k: options[k])
    by_name = {score.feature: score for score in scores.per_feature}
    assert by_name[f"along {best}"].latent == 0
    assert by_name[f"along {best}"].f1 == pytest.approx(options[best])
    other = by_name[f"along {1 - best}"]
    assert (other.latent, other.f1, other.precision, other.cosine) == (None, 0, None, None)
    assert by_name["along 2"].f1 == 1 and by_name["along 2"].latent == 2
    assert by_name["along 2"].cosine == pytest.approx(0.6)
    assert scores.f1.value == pytest.approx((options[best] + 0 + 1) / 3)
    assert scores.recall == pytest.approx(1) and scores.found == pytest.approx(1 / 3)
    assert scores.precision == pytest.approx((int((fired[:, 0] & (zero, one)[best]).sum()) / n_fired + 1) / 2)
    assert scores.dead == 1
    assert scores.mcc == pytest.approx((0.8 + 0.6 + 0.6) / 3)
    assert scores.uniqueness == 2 / 3  # latents 0 and 1 are nearest to the same feature
    assert by_name["along 1"].frequency == pytest.approx(float(one.float().mean()))


def test_rare_features_are_counted_and_not_scored() -> None:
    few = int((WORLD.sample(N, seeds.derive(0, "truth", 0))[1] > 0).sum(0).min()) + 1
    scores = truth_scores(sae_of(PERFECT), WORLD, tokens=N, min_count=few)
    assert (scores.features, scores.rare, scores.f1.value) == (2, 1, 1)
    assert sum(score.f1 is None for score in scores.per_feature) == 1
    none = truth_scores(sae_of(PERFECT), WORLD, tokens=N, min_count=N + 1)
    assert (none.features, none.f1.value, none.precision, none.found) == (0, None, None, None)
    assert none.f1.reason == "no feature is on in enough tokens"


def test_the_interval_is_as_wide_as_scores_differ_between_samples() -> None:
    sae = sae_of(rows([0.8, 0.6, 0, 0], [0, 1, 0, 0], [0.4, 0, 0.8, 0]))
    first = truth_scores(sae, WORLD, tokens=N).f1
    assert first.value is not None and first.ci_low is not None and first.ci_high is not None
    others = np.array([truth_scores(sae, WORLD, tokens=N, seed=seed).f1.value for seed in range(1, 31)], dtype=float)
    assert first.n_unit == "blocks of samples" and first.n == 500
    assert (first.ci_high - first.ci_low) / (2 * 1.96 * others.std()) == pytest.approx(1, abs=0.35)
    assert first.ci_low < others.mean() < first.ci_high


def test_samples_are_the_same_however_many_follow() -> None:
    short, long = (truth_scores(sae_of(PERFECT), WORLD, tokens=n) for n in (BATCH, 2 * BATCH + 5))
    assert long.tokens == 2 * BATCH + 5
    assert short.per_feature[0].frequency == pytest.approx(long.per_feature[0].frequency, abs=0.02)
    assert short.per_feature[0].frequency != long.per_feature[0].frequency


# -- what must not change anything


def comparable(scores: TruthScores) -> dict[str, Any]:
    """The scores without which latent it was."""
    found = asdict(scores)
    for score in found["per_feature"]:
        del score["latent"]
    return found


@given(st.integers(0, 999))
def test_scores_do_not_change_with_the_order_or_scale_of_latents(seed: int) -> None:
    g = torch.Generator().manual_seed(seed)
    W = torch.randn(6, 4, generator=g)
    sae = sae_of(W / W.norm(dim=1, keepdim=True), bias=-0.8)
    scale, order = torch.rand(6, generator=g) * 5 + 0.1, torch.randperm(6, generator=g)
    moved = replace(
        sae,
        W_enc=(sae.W_enc * scale)[:, order].contiguous(),
        b_enc=(sae.b_enc * scale)[order],
        W_dec=(sae.W_dec / scale[:, None])[order],
    )
    before, after = (comparable(truth_scores(s, WORLD, tokens=400)) for s in (sae, moved))
    assert set(before) == set(after)
    for name, value in before.items():
        if name not in ("f1", "per_feature"):
            assert after[name] == pytest.approx(value, abs=1e-6), name
    assert after["f1"]["value"] == pytest.approx(before["f1"]["value"], abs=1e-9)


def test_the_true_features_are_ahead_of_noisy_ones_and_those_of_random_ones() -> None:
    noise = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
    ladder = [sae_of(PERFECT + amount * noise) for amount in (0, 0.4, 0.8)]
    ladder.append(random_on_world(ladder[0], WORLD, N))
    for name in ("f1", "mcc"):
        scores = [truth_scores(sae, WORLD, tokens=N) for sae in ladder]
        values = [s.f1.value if name == "f1" else s.mcc for s in scores]
        assert values == sorted(values, reverse=True) and values[0] > values[1] > values[3]  # type: ignore[type-var, operator]


def test_the_random_control_has_the_l0_of_the_sae_as_nearly_as_equal_activations_allow() -> None:
    W = torch.randn(40, 6, generator=torch.Generator().manual_seed(0))
    sae, world = sae_of(W, bias=-2.0, world="planted:5"), WORLDS["5"]
    control = random_on_world(sae, world, N)
    assert control.info.name == "by hand [random]"
    assert truth_scores(control, world, tokens=N).l0 == pytest.approx(truth_scores(sae, world, tokens=N).l0, rel=0.05)


# -- words of a language model


@pytest.fixture(scope="module")
def registry() -> Iterator[Registry]:
    """The installed plugins, the worlds of these tests, and a task that keeps what it is given."""
    module = ModuleType("keeping_plugin")
    module.__dict__.update(saebench_api=1, saebench_tasks=hookimpl(lambda: [keeping]))
    found = registry_with(planted_world, wordy_world, module)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plugins, "registry", lambda: found)
        yield found


GIVEN: list[tuple[SAE, Any, Any]] = []


@task("keeping", version=1, needs=["truth"], metrics=[Metric("on", better="higher", unit="1")], controls=["random"])
def keeping(sae: SAE, ctx: Any) -> Output:
    """Mean features on a token."""
    truth = ctx.truth()
    GIVEN.append((sae, ctx, truth))
    on = ctx.bootstrap(np.bincount(ctx.activations().documents, weights=truth.on.sum(axis=1)))
    return Output(estimates={"on": on})


def test_a_task_gets_the_truth_in_the_order_of_the_activations_once_for_all_controls(
    registry: Registry, tmp_path: Path
) -> None:
    GIVEN.clear()
    settings = Settings(
        saes=("wordy:half",), tasks=("keeping",), corpus="wordy", tokens=1500, context=32, cache=False, out=tmp_path
    )
    (result,) = execute(registry, make_plan(registry, settings), settings).results
    assert result.record is not None and result.status == "ok", result.reason
    assert set(result.record.metrics["on"].controls) == {"random", "oracle"}
    assert result.record.notes[-1] == "the control 'oracle' is wordy:oracle"
    assert [sae.info.name for sae, *_ in GIVEN] == ["half", "half [random]", "oracle"]
    assert all(truth is GIVEN[0][2] for *_, truth in GIVEN)
    _, ctx, truth = GIVEN[0]
    tokens = torch.cat([chunk.token for chunk in ctx.activations()])
    read = [wordy_world.model().tokenizer.decode([token]).strip() for token in tokens.tolist()]
    assert truth.features == wordy_world.words() and truth.on.shape == (len(read), wordy_world.WORDS)
    assert np.array_equal(truth.on.toarray(), [[token == word for word in truth.features] for token in read])
    assert truth.on.sum() > 100


def call(*arguments: str | Path) -> Result:
    return CliRunner().invoke(saebench, [*map(str, arguments)], standalone_mode=False)


def test_the_command_orders_oracle_half_an_oracle_and_random(registry: Registry, tmp_path: Path) -> None:
    out = tmp_path / "features.csv"
    arguments = ("wordy:oracle", "wordy:half", "--random", "--tokens", "2000", "-o", out, "--json")
    done = call("truth", *arguments)
    assert done.exit_code == 0, done.output
    scores = {s["sae"]: s for s in map(json.loads, done.stdout.splitlines())}
    assert list(scores) == ["oracle", "oracle [random]", "half", "half [random]"]
    oracle, half, random = scores["oracle"], scores["half"], scores["half [random]"]
    assert oracle["f1"] > 0.95 > half["f1"] > random["f1"] + 0.1
    assert half["recall"] > 0.9 and half["dead"] == wordy_world.WORDS // 2
    assert oracle["mcc"] == pytest.approx(1) and half["mcc"] == pytest.approx(1) and random["mcc"] < 0.5
    assert oracle["mcc_encoder"] is None and oracle["f1_n_unit"] == "documents"
    with out.open() as file:
        lines = list(csv.DictReader(file))
    assert [line["sae"] for line in lines] == [name for name in scores for _ in range(wordy_world.WORDS)]
    found = [line for line in lines if line["sae"] == "oracle"]
    assert [line["feature"] for line in found] == list(wordy_world.words())
    scored = [(i, line) for i, line in enumerate(found) if line["f1"]]
    assert len(scored) == oracle["features"] > wordy_world.WORDS / 2
    assert all(line["latent"] == str(i) and float(line["cosine"]) == pytest.approx(1) for i, line in scored)


def test_the_command_prints_a_line_an_sae(registry: Registry, tmp_path: Path) -> None:
    from saebench_plugins import native

    path = native.save(sae_of(PERFECT), tmp_path / "planted.safetensors")
    done = call("truth", path, "--random", "--tokens", "500")
    assert done.exit_code == 0, done.output
    head, own, random = done.stdout.splitlines()
    assert head.split()[0] == "SAE" and own.split()[:2] == ["by", "hand"] and "[1.000, 1.000]" in own
    assert random.startswith("by hand [random]")


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["toy:x"], "toy"),
        (["wordy:oracle", "--corpus", "atlas"], "the truth of wordy on atlas is not known (known: "),
    ],
)
def test_an_sae_whose_truth_is_not_known_is_refused(registry: Registry, arguments: list[str], why: str) -> None:
    done = call("truth", *arguments)
    assert done.exit_code == 2 and why in done.stderr


def test_an_sae_of_another_model_is_refused_before_that_is_looked_for(registry: Registry, tmp_path: Path) -> None:
    from saebench_plugins import native

    path = native.save(sae_of(PERFECT, world="gpt2-of-nobody"), tmp_path / "other.safetensors")
    done = call("truth", path)
    assert done.exit_code == 2 and "the truth of gpt2-of-nobody is not known" in done.stderr
