"""Two processes that train together: one SAE, the one that a single process trains."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from toy import checkpoint_step, lines, timeless

from saebench_meta.training.checkpoint import read_header
from saebench_meta.training.launch import init_processes

HERE = Path(__file__).parent
SCRIPT = """
import json, sys
from dataclasses import replace
from pathlib import Path
import torch
from safetensors.torch import save_file
from saebench_meta.training.launch import init_processes
from saebench_meta.training.loop import Listeners
from test_processes import job, site_job
torch.set_num_threads(1)
folder, name = Path(sys.argv[1]), sys.argv[2]
with init_processes() as (processes, device):
    made, told = (site_job if name == "site" else job)(folder, name, processes)
    named = [(i, n) for i in range(len(made)) for n in ("W_enc", "b_enc", "W_dec", "b_dec", "threshold")]
    weights = {f"{i}.{n}": getattr(made[i].sae, n) for i, n in named}
    weights = {n: t.contiguous() for n, t in weights.items() if t is not None}
    save_file(weights, folder / f"process-{processes.rank}.safetensors")
    (folder / f"process-{processes.rank}.json").write_text(json.dumps(told))
"""


def job(folder: Path, name: str, processes: Any) -> tuple[list[Any], list[int]]:
    """What every process does: train, and note the steps it was told of."""
    from toy import ARCHITECTURES, FACTS, NATIVE, PACE, TensorFeed, toy_data, toy_recipe

    from saebench_meta.training import loop
    from saebench_meta.training.recipe import make_recipe
    from saebench_plugins.architectures import saebench_architectures

    data = TensorFeed(toy_data(), 32, 0, processes=processes)
    told: list[int] = []
    listeners = loop.Listeners(progress=lambda label, line: told.append(line.step))
    if name == "long":
        pace = loop.Pace(log_every=10, checkpoint_steps=10)
        recipes, architectures = [toy_recipe(100_000)], ARCHITECTURES
    else:
        pace = PACE
        built_in = {n: a for n, a in saebench_architectures().items() if n in ("relu", "topk", "batchtopk")}
        given = {"d_sae": 24, "batch_size": 32, "tokens": 12 * 32, "threshold_batches": 3, "dead_after_tokens": 128}
        recipes = [toy_recipe(), *(make_recipe(a, n, **given, **_sparsity(a)) for n, a in built_in.items())]
        architectures = {**ARCHITECTURES, **built_in}
    made = loop.train(
        architectures, recipes, data, folder, FACTS, NATIVE, pace=pace, listeners=listeners, processes=processes
    )
    return made, told


class StopError(Exception):
    """Ends a training in every process."""


def site_job(folder: Path, name: str, processes: Any) -> tuple[list[Any], list[int]]:
    """A training at a site that nobody stops, and one that goes on from a checkpoint in the middle of a block."""
    from test_feed import SiteFeed, corpus, source
    from toy import PACE, toy_recipe, train

    class Stops(SiteFeed):
        def batches(self, start: int = 0, position: tuple[int, ...] = ()) -> Any:
            for step, x in enumerate(super().batches(start, position), start):
                if step == 9:
                    raise StopError
                yield x

    def feed(kind: type[SiteFeed]) -> SiteFeed:
        return kind(source(corpus(80)), 32, 0, buffer_tokens=128, processes=processes)

    pace = replace(PACE, checkpoint_steps=7)
    recipe = toy_recipe()
    whole = train(folder / "whole", recipe, data=feed(SiteFeed), processes=processes)
    try:
        train(folder / "stopped", recipe, data=feed(Stops), pace=pace, processes=processes)
    except StopError:
        header = read_header(folder / "stopped" / recipe.label)
        assert header is not None and header.step == 7 and len(set(header.positions)) == 2
    return whole + train(folder / "stopped", recipe, data=feed(SiteFeed), processes=processes), []


def _sparsity(architecture: Any) -> dict[str, int]:
    return {"k": 3} if "k" in architecture.hyperparameters else {}


def start(folder: Path, name: str, processes: int) -> subprocess.Popen[bytes]:
    """`torchrun`, in a session of its own, so that signals reach nobody else."""
    folder.mkdir(exist_ok=True)
    script = folder / "job.py"
    script.write_text(SCRIPT)
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    command = [sys.executable, *(launcher if processes > 1 else []), str(script), str(folder), name]
    path = os.pathsep.join([str(HERE), str(HERE.parent)])
    return subprocess.Popen(command, env={**os.environ, "PYTHONPATH": path}, stderr=subprocess.PIPE)


def finish(process: subprocess.Popen[bytes]) -> None:
    _, err = process.communicate(timeout=300)
    assert process.returncode == 0, err.decode()


@pytest.mark.slow
def test_two_processes_train_the_sae_of_one(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    finish(start(one, "short", 1))
    finish(start(two, "short", 2))
    a, b = (load_file(two / f"process-{rank}.safetensors") for rank in range(2))
    assert a.keys() == b.keys() and all(torch.equal(a[n], b[n]) for n in a)
    alone = load_file(one / "process-0.safetensors")
    assert alone.keys() == a.keys()
    for name in (n for n in a if not n.startswith("0.threshold")):  # the toy's is a mean over each process's rows
        torch.testing.assert_close(a[name], alone[name], atol=1e-5, rtol=0)
    label = "toy-24-k3-s0"
    for x, y in zip(timeless(two / label), timeless(one / label), strict=True):
        assert x.pop("parts") == pytest.approx(y.pop("parts"), rel=1e-4)
        assert x == pytest.approx(y, rel=1e-4)
    assert json.loads((two / "process-0.json").read_text()) == json.loads((one / "process-0.json").read_text())
    assert json.loads((two / "process-1.json").read_text()) == []


@pytest.mark.slow
def test_processes_go_on_each_at_its_own_place_in_the_corpus(tmp_path: Path) -> None:
    finish(start(tmp_path, "site", 2))
    a, b = (load_file(tmp_path / f"process-{rank}.safetensors") for rank in range(2))
    assert all(torch.equal(a[n], b[n]) for n in a)
    assert all(torch.equal(a[f"0.{n}"], a[f"1.{n}"]) for n in ("W_enc", "b_enc", "W_dec", "b_dec", "threshold"))


@pytest.mark.slow
def test_a_signal_to_the_launcher_leaves_one_checkpoint_of_all(tmp_path: Path) -> None:
    folder = tmp_path / "toy-24-k3-s0"
    process = start(tmp_path, "long", 2)
    while not checkpoint_step(folder) and process.poll() is None:
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=300)
    header = read_header(folder)
    assert header is not None and header.step >= 10 and header.positions == ()
    assert lines(folder)[-1]["step"] <= header.step
    assert not list(folder.glob(".*.tmp")) and not (folder / "training.json").exists()


def test_without_torchrun_a_run_is_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with init_processes("cpu") as (processes, device):
        assert (processes.count, processes.rank, device) == (1, 0, torch.device("cpu"))
    assert not torch.distributed.is_initialized()
