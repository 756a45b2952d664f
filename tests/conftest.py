"""What all tests share: one thread, no network, a cache folder of their own, and the TinyStories model where it is."""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

REPOSITORY = Path(__file__).parents[1]
SCRATCH = Path(tempfile.mkdtemp(prefix="saebench-tests-"))
LONGEST = ("test_resume", "test_job", "test_build", "test_testing_tasks", "test_hub_data", "test_packaging")
"""Files that take longest, first to last: begun first, so that no process is left with one at the end."""

# Set before anything imports torch or a hub client, and inherited by the commands that tests start. Two torch threads
# on two shared cores are several times slower than one.
os.environ.update(
    OMP_NUM_THREADS="1",
    MKL_NUM_THREADS="1",
    OPENBLAS_NUM_THREADS="1",
    TOKENIZERS_PARALLELISM="false",
    HF_HUB_OFFLINE="1",
    HF_DATASETS_OFFLINE="1",
    TRANSFORMERS_OFFLINE="1",
    HF_HUB_DISABLE_TELEMETRY="1",
    WANDB_MODE="disabled",
    SAEBENCH_CACHE_DIR=str(SCRATCH / "cache"),
)
KEPT = {f"SAEBENCH_{name}" for name in ("CACHE_DIR", "TEST_DATA", "TEST_KILLS", "FUZZ")}
for name in [n for n in os.environ if n.startswith("SAEBENCH_") and n not in KEPT]:
    del os.environ[name]

# The example database would be one more file that a test run leaves behind.
settings.register_profile(
    "local", deadline=None, max_examples=25, database=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.register_profile("ci", settings.get_profile("local"), derandomize=True, print_blob=True)
settings.load_profile("ci" if os.environ.get("CI") else "local")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: LONGEST.index(item.path.stem) if item.path.stem in LONGEST else len(LONGEST))


def pytest_unconfigure() -> None:
    shutil.rmtree(SCRATCH, ignore_errors=True)


@pytest.fixture(autouse=True, scope="session")
def _one_torch_thread() -> None:
    if (torch := sys.modules.get("torch")) is not None:
        torch.set_num_threads(1)


def _test_data(name: str) -> Path:
    folder = Path(os.environ.get("SAEBENCH_TEST_DATA", REPOSITORY.parent / "shared" / "data"))
    if not (folder / name).exists():
        pytest.skip(f"'{folder / name}' is not there; SAEBENCH_TEST_DATA names the folder that holds {name}")
    return folder / name


@pytest.fixture(scope="session")
def stories_model_dir() -> Path:
    """Hugging Face folder of a small language model trained on TinyStories."""
    return _test_data("stories260k")


@pytest.fixture(scope="session")
def stories() -> list[str]:
    """The first thousand TinyStories."""
    texts: list[str] = json.loads(_test_data("tinystories_1000.json").read_text())
    return texts
