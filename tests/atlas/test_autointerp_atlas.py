"""Autointerp on atlas with the judge `lexical`: the oracle is told best, shuffled explanations tell nothing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from saebench_meta import stats
from saebench_meta.plan import make_plan
from saebench_meta.plugins import registry
from saebench_meta.record import MetricResult, Record
from saebench_meta.runner import execute
from saebench_meta.settings import Settings

pytestmark = pytest.mark.slow

LATENTS = 100


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[Record, Path]:
    settings = Settings(
        saes=("atlas:batchtopk-512",),
        tasks=("autointerp",),
        limit=LATENTS,
        tokens=32_768,
        parameters={"autointerp": {"steps": 50}},
        judge="lexical",
        device="cpu",
        out=tmp_path_factory.mktemp("autointerp"),
    )
    found = registry()
    (result,) = execute(found, make_plan(found, settings), settings).results
    assert result.record is not None and result.folder is not None and result.record.status == "ok"
    return result.record, result.folder


def at_chance(metric: MetricResult) -> bool:
    assert metric.value is not None
    e = stats.proportion(round(metric.value * metric.n), metric.n, n_unit="questions", level=0.999)
    return (e.ci_low or 0) < 0.2 < (e.ci_high or 0)


def test_latents_of_the_oracle_are_recognised_best(done: tuple[Record, Path]) -> None:
    accuracy = done[0].metrics["latent_accuracy"]
    oracle, random = accuracy.controls["oracle"], accuracy.controls["random"]
    assert accuracy.ci_high is not None and oracle.ci_low is not None and oracle.ci_low > accuracy.ci_high
    assert min(e.ci_low or 0 for e in (accuracy, oracle, random)) > 0.3
    assert accuracy.n == oracle.n == random.n == LATENTS


def test_shuffled_explanations_are_at_chance(done: tuple[Record, Path]) -> None:
    metrics = done[0].metrics
    assert at_chance(metrics["latent_accuracy_shuffled"]) and at_chance(metrics["meta_accuracy_shuffled"])


def test_explanations_with_the_target_give_it_away(done: tuple[Record, Path]) -> None:
    """The leak of the published protocol: far fewer are recognised by explanations written without them."""
    told, left_out = done[0].metrics["meta_accuracy"], done[0].metrics["meta_accuracy_left_out"]
    assert told.ci_low is not None and left_out.ci_high is not None and told.ci_low > left_out.ci_high
    assert all(control.value is None for control in told.controls.values())


def test_every_question_is_in_the_transcript_and_no_passage_in_the_record(done: tuple[Record, Path]) -> None:
    record, folder = done
    lines = (folder / "transcripts" / "questions.jsonl").read_text().splitlines()
    asked = [json.loads(line) for line in lines]
    assert len(asked) == 5 * LATENTS and all(row["verdict"] in ("right", "wrong") for row in asked)
    right = sum(row["verdict"] == "right" for row in asked if row["kind"] == "latents")
    assert record.metrics["latent_accuracy"].value == right / LATENTS
    text = record.model_dump_json()
    assert not any(option in text for row in asked for option in row["options"])
