"""Going on after an interruption: bit for bit, from whole checkpoints only, from none that is not one's own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from hostile_bytes import fuzz_count, mutations
from safetensors import safe_open
from safetensors.torch import save_file
from toy import (
    PACE,
    TOY,
    StopError,
    checkpoint_step,
    feed,
    lines,
    same_sae,
    stop_at,
    timeless,
    toy_data,
    toy_recipe,
    train,
)

from saebench_meta.errors import BadFileError, SaebenchError
from saebench_meta.training import checkpoint
from saebench_meta.training.checkpoint import read_header, restore
from saebench_meta.training.feed import TensorFeed
from saebench_meta.training.loop import Listeners
from saebench_meta.training.recipe import make_recipe
from saebench_meta.training.run import Trained
from saebench_meta.training.trainer import Trainer
from saebench_plugins.architectures import saebench_architectures

OFTEN = replace(PACE, checkpoint_steps=3)
LABEL = toy_recipe().label


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    (made,) = train(tmp_path_factory.mktemp("undisturbed"))
    return made


def test_a_run_stopped_after_every_checkpoint_ends_with_the_same_weights(tmp_path: Path, undisturbed: Trained) -> None:
    every = replace(PACE, log_every=1, checkpoint_steps=1)
    for step in range(1, 12):
        with pytest.raises(StopError):
            train(tmp_path, pace=every, listeners=Listeners(progress=stop_at(step)))
        header = read_header(tmp_path / LABEL)
        assert header is not None and header.step == step
    (made,) = train(tmp_path, pace=every)
    assert same_sae(made.sae, undisturbed.sae)
    assert [line["step"] for line in lines(made.folder)] == list(range(1, 13))


def test_metrics_go_on_in_the_middle_of_an_interval(tmp_path: Path, undisturbed: Trained) -> None:
    """Checkpoints at 3, 6, 9; lines at 5, 10, 12: those after the checkpoint are cut off and written again."""
    for step in (5, 10):
        with pytest.raises(StopError):
            train(tmp_path, pace=OFTEN, listeners=Listeners(progress=stop_at(step)))
        assert lines(tmp_path / LABEL)[-1]["step"] == step
    (made,) = train(tmp_path, pace=OFTEN)
    assert timeless(made.folder) == timeless(undisturbed.folder)
    assert same_sae(made.sae, undisturbed.sae)


def test_a_half_written_line_is_cut_off(tmp_path: Path, undisturbed: Trained) -> None:
    with pytest.raises(StopError):
        train(tmp_path, pace=OFTEN, listeners=Listeners(progress=stop_at(10)))
    with (tmp_path / LABEL / "metrics.jsonl").open("a") as file:
        file.write('{"step": 7, "lo')
    (made,) = train(tmp_path)
    assert timeless(made.folder) == timeless(undisturbed.folder)


def test_saes_of_one_pass_go_on_from_checkpoints_of_their_own(tmp_path: Path) -> None:
    """The first is stopped at step 9; a second, new one starts at 0 while the first waits for it at 9."""
    with pytest.raises(StopError):
        train(tmp_path, pace=OFTEN, listeners=Listeners(progress=stop_at(10)))
    short, new = toy_recipe(7, seed=1), toy_recipe(k=5)
    made = train(tmp_path, toy_recipe(), new, short, pace=OFTEN)
    for one in made:
        (alone,) = train(tmp_path / "alone" / one.recipe.digest()[:8], one.recipe)
        assert same_sae(one.sae, alone.sae) and timeless(one.folder) == timeless(alone.folder)


def test_every_built_in_architecture_goes_on_bit_for_bit(tmp_path: Path) -> None:
    """All in one pass, stopped after checkpoints before and after latents have died."""
    architectures = saebench_architectures()
    given = {"d_sae": 32, "batch_size": 32, "tokens": 12 * 32, "threshold_batches": 3, "dead_after_tokens": 64}
    recipes = [
        make_recipe(a, name, **given, **({"k": 3} if "k" in a.hyperparameters else {}))
        for name, a in architectures.items()
        if not a.starts
    ]
    data = TensorFeed(toy_data(d_in=24), 32, 0)
    whole = train(tmp_path / "whole", *recipes, data=data, architectures=architectures)
    pace = replace(PACE, log_every=1, checkpoint_steps=1)
    for step in (1, 4, 9, 11):
        with pytest.raises(StopError):
            listeners = Listeners(progress=stop_at(step))
            train(tmp_path, *recipes, data=data, architectures=architectures, pace=pace, listeners=listeners)
    made = train(tmp_path, *recipes, data=data, architectures=architectures, pace=pace)
    assert [a.sae.content_hash() for a in made] == [b.sae.content_hash() for b in whole]
    assert {a.recipe.architecture for a in made} >= {"relu", "topk", "batchtopk", "jumprelu", "gated"}


SCRIPT = """
import sys
from pathlib import Path
from dataclasses import replace
from itertools import islice
import torch
from toy import PACE, toy_recipe, train
torch.set_num_threads(1)
train(Path(sys.argv[1]), toy_recipe(400), pace=replace(PACE, log_every=10, checkpoint_steps=7))
"""


def start(folder: Path) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
    return subprocess.Popen([sys.executable, "-c", SCRIPT, str(folder)], env=environment)


def killed_after(folder: Path, step: int) -> int:
    """Kill a training when its checkpoint has come to a step; the step it had come to."""
    process = start(folder)
    folder /= toy_recipe(400).label
    while checkpoint_step(folder) < step and process.poll() is None:
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert process.returncode == -signal.SIGKILL
    return checkpoint_step(folder)


@pytest.mark.slow
def test_three_kills_change_nothing(tmp_path: Path) -> None:
    label = toy_recipe(400).label
    assert start(tmp_path / "whole").wait() == 0
    came_to = [killed_after(tmp_path / "killed", step) for step in (50, 150, 280)]
    assert came_to == sorted(came_to) and came_to[-1] < 400
    assert start(tmp_path / "killed").wait() == 0
    whole, killed = tmp_path / "whole" / label, tmp_path / "killed" / label
    assert (killed / "sae.safetensors").read_bytes() == (whole / "sae.safetensors").read_bytes()
    assert timeless(killed) == timeless(whole)
    assert {p.name for p in killed.iterdir()} == {p.name for p in whole.iterdir()}


def stopped(folder: Path) -> Path:
    """A folder with a checkpoint of step 6, its file."""
    with pytest.raises(StopError):
        train(folder, pace=replace(PACE, log_every=6, checkpoint_steps=6), listeners=Listeners(progress=stop_at(6)))
    return folder / LABEL / checkpoint.FILE_NAME


def test_a_checkpoint_of_another_recipe_or_of_other_data_is_refused(tmp_path: Path, undisturbed: Trained) -> None:
    stopped(tmp_path)
    with pytest.raises(SaebenchError, match="by another recipe"):
        train(tmp_path, toy_recipe(lr=1e-3))
    with pytest.raises(SaebenchError, match="on other data"):
        train(tmp_path, data=feed(seed=5))
    (made,) = train(tmp_path, resume=False)
    assert same_sae(made.sae, undisturbed.sae)


def test_a_disk_that_refuses_costs_no_more_than_the_checkpoint(
    tmp_path: Path, undisturbed: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: Any) -> None:
        raise OSError("no space left on device")

    told: list[str] = []
    monkeypatch.setattr(checkpoint, "write", full)
    (made,) = train(tmp_path, pace=OFTEN, listeners=Listeners(notice=told.append))
    assert same_sae(made.sae, undisturbed.sae)
    assert len(told) == 4 and "no space left" in told[0] and "step 3" in told[0]


def test_the_last_checkpoint_stays_until_the_next_is_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = stopped(tmp_path)
    before = path.read_bytes()

    def torn(tensors: Any, target: Path, metadata: Any) -> None:
        target.write_bytes(before[: len(before) // 2])
        raise KeyboardInterrupt

    header = read_header(path.parent)
    assert header is not None
    monkeypatch.setattr("safetensors.torch.save_file", torn)
    with pytest.raises(KeyboardInterrupt):
        checkpoint.write(path.parent, header, {"silent": torch.zeros(3)})
    assert path.read_bytes() == before and not list(path.parent.glob("*.tmp"))


def test_what_a_killed_writer_left_is_removed(tmp_path: Path) -> None:
    path = stopped(tmp_path)
    (path.parent / f".{path.name}.0123.tmp").write_bytes(b"half")
    (made,) = train(tmp_path)
    assert not list(made.folder.glob(".*.tmp"))


# -- hostile files


def contents(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    with safe_open(path, framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118


def changed(name: str, value: torch.Tensor | None) -> Callable[[dict[str, torch.Tensor], dict[str, str]], None]:
    def change(tensors: dict[str, torch.Tensor], metadata: dict[str, str]) -> None:
        tensors.pop(name, None)
        if value is not None:
            tensors[name] = value

    return change


def header(text: str) -> Callable[[dict[str, torch.Tensor], dict[str, str]], None]:
    return lambda tensors, metadata: metadata.update({checkpoint.KEY: text})


def field(name: str, value: str) -> Callable[[dict[str, torch.Tensor], dict[str, str]], None]:
    def change(tensors: dict[str, torch.Tensor], metadata: dict[str, str]) -> None:
        metadata[checkpoint.KEY] = json.dumps({**json.loads(metadata[checkpoint.KEY]), name: json.loads(value)})

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (changed("parameter.W_enc", torch.zeros(1, 10)), r"'parameter.W_enc' has shape \(1, 10\), expected \(24, 10\)"),
        (changed("parameter.W_enc", torch.zeros(24, 10).double()), "is torch.float64, expected torch.float32"),
        (changed("parameter.W_enc", torch.full((24, 10), torch.nan)), "NaN or infinite"),
        (changed("adam.W_dec.exp_avg", torch.zeros(24, 1)), r"expected \(24, 10\)"),
        (changed("adam.W_dec.exp_avg_sq", None), "'adam.W_dec.exp_avg_sq' is missing"),
        (changed("state.smallest", None), "'state.smallest' is missing"),
        (changed("surplus", torch.zeros(3)), "'surplus' is unknown"),
        (header(""), "header"),
        (header("[" * 100_000), "header"),
        (header(" " * (1 << 21)), "a header of 2,097,152 characters"),
        (field("step", "-1"), "step"),
        (field("step", "13"), "of step 13 of 12"),
        (field("step", "1e400"), "step"),
        (field("format", "2"), "format"),
        (field("positions", "[[0],[0]]"), "by 2 processes"),
        (field("interval", '{"steps": 1, "sums": {"loss": NaN}}'), "interval"),
    ],
)
def test_a_changed_checkpoint_is_refused(tmp_path: Path, change: Any, message: str) -> None:
    path = stopped(tmp_path)
    tensors, metadata = contents(path)
    change(tensors, metadata)
    save_file(tensors, path, metadata)
    with pytest.raises(BadFileError, match=message):
        train(tmp_path)


def test_a_checkpoint_that_is_no_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / LABEL / checkpoint.FILE_NAME
    path.mkdir(parents=True)
    with pytest.raises(BadFileError, match="not a regular file"):
        train(tmp_path)


def test_damaged_bytes_are_an_error_that_names_the_file_or_a_checkpoint(tmp_path: Path) -> None:
    path = stopped(tmp_path)
    good = path.read_bytes()
    refused = 0
    for data in islice(mutations(good, seed=0), fuzz_count()):
        path.write_bytes(data)
        trainer = Trainer(TOY, toy_recipe(), feed().first())
        try:
            found = read_header(path.parent)
            assert found is not None
            restore(path.parent, found, trainer)
        except BadFileError as e:
            assert str(path) in str(e)
            refused += 1
        else:
            assert trainer.step_number == found.step
    assert refused
