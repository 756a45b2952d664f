"""SAEs that sae-lens trained on a small model and saved, through `saebench run` with only --model and --corpus."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from saebench_meta.models import load_bridge
from saebench_meta.record import Record

pytest.importorskip("sae_lens", reason="sae-lens, which holds transformer-lens below 4, is not installed here")

HOOK, D, F, STEPS, BATCH = "blocks.2.hook_resid_post", 64, 256, 300, 1024


@pytest.fixture(scope="module")
def activations(stories_model_dir: Path, stories: list[str]) -> torch.Tensor:
    """About 40,000 activations of stories that the runs below do not see; without the BOS position."""
    lm = load_bridge(str(stories_model_dir), ref="stories")
    rows = [[lm.bos_id or 0, *ids[:127]] for ids in lm.tokenize(stories[400:]) if len(ids) >= 127]
    return torch.cat([lm.activations(torch.tensor([row]), HOOK)[0, 1:] for row in rows[:320]])


def trained(kind: str, activations: torch.Tensor, folder: Path) -> Path:
    """An SAE trained by sae-lens's own trainer, saved for inference (`standard`) or as a checkpoint (`batchtopk`)."""
    from sae_lens import (
        BatchTopKTrainingSAE,
        BatchTopKTrainingSAEConfig,
        StandardTrainingSAE,
        StandardTrainingSAEConfig,
    )
    from sae_lens.config import LoggingConfig, SAETrainerConfig
    from sae_lens.saes.sae import SAEMetadata
    from sae_lens.training.sae_trainer import SAETrainer

    metadata = SAEMetadata(
        model_name="stories", hook_name=HOOK, prepend_bos=True, context_size=128, dataset_path="stories"
    )
    common: dict[str, Any] = {"d_in": D, "d_sae": F, "normalize_activations": "expected_average_only_in"}
    sae: Any
    torch.manual_seed(0)
    if kind == "standard":
        sae = StandardTrainingSAE(StandardTrainingSAEConfig(**common, l1_coefficient=1.0, metadata=metadata))
    else:
        sae = BatchTopKTrainingSAE(BatchTopKTrainingSAEConfig(**common, k=8, metadata=metadata))

    def data() -> Iterator[torch.Tensor]:
        g = torch.Generator().manual_seed(1)
        while True:
            yield activations[torch.randint(len(activations), (BATCH,), generator=g)]

    config = SAETrainerConfig(
        total_training_samples=STEPS * BATCH,
        train_batch_size_samples=BATCH,
        lr=2e-3,
        lr_end=2e-3,
        n_batches_for_norm_estimate=10,
        checkpoint_path=str(folder / "checkpoints"),
        save_final_checkpoint=True,
        logger=LoggingConfig(log_to_wandb=False),
    )
    done = SAETrainer(config, sae, data()).fit()
    if kind == "standard":
        done.save_inference_model(folder / "sae")
        return folder / "sae"
    [checkpoint] = (folder / "checkpoints").glob("final_*")
    return checkpoint


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["standard", "batchtopk"])
def test_a_trained_folder_runs_with_model_and_corpus_alone(
    kind: str, activations: torch.Tensor, stories_model_dir: Path, stories: list[str], tmp_path: Path
) -> None:
    folder = trained(kind, activations, tmp_path)
    corpus = tmp_path / "stories.jsonl"
    corpus.write_text("".join(json.dumps({"text": text}) + "\n" for text in stories[:60]))
    command = [sys.executable, "-m", "saebench_meta", "run", "--sae", str(folder), "--tasks", "all"]
    command += ["--model", str(stories_model_dir), "--corpus", str(corpus), "-o", str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=dict(os.environ))
    assert done.returncode == 0, done.stdout + done.stderr
    [path] = (tmp_path / "out").glob("*/core@*/*/record.json")
    record = Record.model_validate_json(path.read_text())
    value = {name: metric.value for name, metric in record.metrics.items()}
    assert record.status == "ok" and record.model is not None and record.model.hook == HOOK
    assert value["explained_variance"] > 0.6 and value["ce_recovered_mean"] > 0.5, value
    if kind == "batchtopk":
        assert 6 < value["l0"] < 10, value
