"""Scores of a whole run do not move with the order of documents, the batch size, or the length of padding.

Through the public interface, on the shipped model and a shipped SAE.
"""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

import saebench_meta
from saebench_meta.record import MetricResult
from saebench_plugins.atlas import world

DOCUMENTS = 24
TOLERANCE = 1e-5


def run(folder: Path, texts: list[str], **settings: Any) -> dict[str, MetricResult]:
    folder.mkdir()
    corpus = folder / "texts.json"
    corpus.write_text(json.dumps(texts))
    parameters = {"core": {"ce_tokens": 0}}
    result = saebench_meta.run(
        "atlas:batchtopk-128",
        tasks="core",
        out=folder / "out",
        corpus=str(corpus),
        parameters=parameters,
        cache=False,
        **settings,
    )
    assert result.failed == {}
    metrics: dict[str, MetricResult] = result.records[0].metrics
    return metrics


@pytest.fixture(scope="module")
def texts() -> list[str]:
    return world.documents(DOCUMENTS, 5, "evaluation")


@pytest.fixture(scope="module")
def base(texts: list[str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, MetricResult]:
    return run(tmp_path_factory.mktemp("base") / "run", texts)


@pytest.mark.parametrize("change", ["order", "batch of one row", "large batch", "longer rows"])
def test_scores_do_not_move(change: str, texts: list[str], base: dict[str, MetricResult], tmp_path: Path) -> None:
    settings: dict[str, Any] = {}
    if change == "order":
        texts = random.Random(3).sample(texts, len(texts))
    elif change == "batch of one row":
        settings["batch_size"] = 1
    elif change == "large batch":
        settings["batch_size"] = 1 << 20
    else:
        # No document is longer than a row either way, so that only the padding grows.
        settings["context"] = 122
    moved = run(tmp_path / "run", texts, **settings)
    for name, m in base.items():
        assert moved[name].value == pytest.approx(m.value, rel=TOLERANCE, abs=TOLERANCE), name
        for control, expected in m.controls.items():
            assert moved[name].controls[control].value == pytest.approx(expected.value, rel=1e-4, abs=1e-4), (
                name,
                control,
            )


def test_another_seed_or_corpus_does_move_them(texts: list[str], base: dict[str, MetricResult], tmp_path: Path) -> None:
    """The check above could not fail if runs always gave the same numbers."""
    other = run(tmp_path / "run", texts[: DOCUMENTS // 2])
    assert other["mse"].value != pytest.approx(base["mse"].value, rel=TOLERANCE)
