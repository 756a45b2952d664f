"""The loop: several SAEs in one pass, what is written, what is refused."""

from __future__ import annotations

import json
import os
import signal
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from toy import (
    ARCHITECTURES,
    FACTS,
    NATIVE,
    PACE,
    TOY,
    Toy,
    feed,
    lines,
    same_sae,
    timeless,
    toy_data,
    toy_recipe,
    train,
)

from saebench_meta.errors import BadFileError, SaebenchError
from saebench_meta.hookspecs import SAELoader
from saebench_meta.training import loop
from saebench_meta.training.feed import TensorFeed
from saebench_meta.training.loop import Listeners, names
from saebench_meta.training.recipe import Recipe
from saebench_meta.training.run import Trained, finished_in
from saebench_meta.training.trainer import Trainer


def by_hand(recipe: Recipe) -> Trainer:
    """The same training without the loop."""
    data = feed()
    trainer = Trainer(TOY, recipe, data.first())
    batches = data.batches()
    for _ in range(recipe.steps):
        trainer.step(next(batches))
    trainer.finish(next(batches) for _ in range(recipe.threshold_batches))
    return trainer


def test_the_loop_does_what_the_trainer_does_step_by_step(tmp_path: Path) -> None:
    (made,) = train(tmp_path)
    expected = by_hand(toy_recipe()).export()
    assert same_sae(made.sae, expected)
    assert made.sae.info.architecture == "toy" and made.sae.info.activation == "jumprelu" and made.sae.info.k == 3
    assert made.sae.info.site == FACTS.site and made.sae.info.context_size == 16 and made.sae.info.dataset == "toys"


def test_a_folder_holds_recipe_metrics_sae_and_how_it_came_about(tmp_path: Path) -> None:
    (made,) = train(tmp_path)
    assert made.folder == tmp_path / "toy-24-k3-s0"
    assert {p.name for p in made.folder.iterdir()} - {".lock"} == {
        "recipe.json",
        "metrics.jsonl",
        "sae.safetensors",
        "training.json",
    }
    assert same_sae(NATIVE.load(str(made.path)), made.sae)
    told = json.loads((made.folder / "training.json").read_text())
    assert Recipe.model_validate(json.loads((made.folder / "recipe.json").read_text())) == made.recipe
    assert told["digest"] == made.recipe.digest() and told["feed"] == feed().identity()
    assert told["metrics"] == lines(made.folder)[-1] == made.metrics
    assert told["versions"]["torch"] == torch.__version__


def test_lines_are_means_over_their_interval(tmp_path: Path) -> None:
    (made,) = train(tmp_path)
    data, recipe = feed(), made.recipe
    trainer, batches = Trainer(TOY, recipe, data.first()), data.batches()
    results = [trainer.step(next(batches)) for _ in range(recipe.steps)]
    found = lines(made.folder)
    assert [line["step"] for line in found] == [5, 10, 12]
    for line, (start, end) in zip(found, [(0, 5), (5, 10), (10, 12)], strict=True):
        part = results[start:end]
        assert line["tokens"] == 32 * end and line["lr"] == recipe.learning_rate(end - 1)
        assert line["loss"] == pytest.approx(float(torch.stack([r.loss for r in part]).mean()))
        assert line["l0"] == pytest.approx(float(torch.stack([r.l0 for r in part]).mean()))
        assert line["fvu"] == pytest.approx(sum(float(r.sse) for r in part) / sum(float(r.sst) for r in part))
        assert line["dead_share"] == pytest.approx(sum(int(r.dead) for r in part) / len(part) / 24)
        assert line["parts"]["mse"] == pytest.approx(float(torch.stack([r.parts["mse"] for r in part]).mean()))
    assert found[-1]["dead_share"] > 0


def test_progress_is_told_at_every_line(tmp_path: Path) -> None:
    told: list[tuple[str, int]] = []
    train(tmp_path, listeners=Listeners(progress=lambda label, line: told.append((label, line.step))))
    assert told == [("toy-24-k3-s0", step) for step in (5, 10, 12)]


def test_saes_trained_together_are_those_trained_alone(tmp_path: Path) -> None:
    recipes = [toy_recipe(12), toy_recipe(7, seed=1), toy_recipe(12, k=5), toy_recipe(12, lr=1e-3)]
    together = train(tmp_path / "sweep", *recipes)
    for recipe, made in zip(recipes, together, strict=True):
        (alone,) = train(tmp_path / "alone" / recipe.digest()[:8], recipe)
        assert made.recipe == recipe and same_sae(made.sae, alone.sae)
        assert timeless(made.folder) == timeless(alone.folder)


def test_folders_are_told_apart_where_labels_are_not() -> None:
    a, b, c = toy_recipe(), toy_recipe(lr=1e-3), toy_recipe(k=5)
    assert names([a, b, c]) == [f"{a.label}-{a.digest()[:8]}", f"{b.label}-{b.digest()[:8]}", c.label]


def test_what_is_finished_is_read_back_and_not_trained_again(tmp_path: Path) -> None:
    (made,) = train(tmp_path)
    stamps = {p.name: p.stat().st_mtime_ns for p in made.folder.iterdir()}
    (again, other) = train(tmp_path, toy_recipe(), toy_recipe(k=5))
    assert same_sae(again.sae, made.sae) and again.metrics == made.metrics and other.recipe.hyperparameters["k"] == 5
    assert {n: (made.folder / n).stat().st_mtime_ns for n in stamps if n != ".lock"} == {
        n: t for n, t in stamps.items() if n != ".lock"
    }


def test_a_finished_sae_is_found_without_its_data(tmp_path: Path) -> None:
    assert finished_in(tmp_path / "nowhere", toy_recipe(), NATIVE) is None
    (made,) = train(tmp_path)
    found = finished_in(made.folder, toy_recipe(), NATIVE)
    assert found is not None and same_sae(found.sae, made.sae) and found.metrics == made.metrics
    assert finished_in(made.folder, toy_recipe(k=5), NATIVE) is None


def test_weights_that_were_changed_are_refused(tmp_path: Path) -> None:
    (made,) = train(tmp_path)
    changed = bytearray(made.path.read_bytes())
    changed[-2] ^= 1  # still a number, still an SAE
    made.path.write_bytes(changed)
    NATIVE.load(str(made.path))
    for read in (lambda: finished_in(made.folder, toy_recipe(), NATIVE), lambda: train(tmp_path)):
        with pytest.raises(BadFileError, match="has changed since it was trained"):
            read()
    (anew,) = train(tmp_path, resume=False)
    assert same_sae(anew.sae, made.sae)


def test_what_is_read_back_is_what_the_training_gave(tmp_path: Path) -> None:
    (made,), (found,) = train(tmp_path), train(tmp_path)
    assert found.training.model_dump_json() == made.training.model_dump_json()
    assert found.sae.info == made.sae.info and found.training.content_sha256 == made.sae.content_hash()


def test_activations_that_are_no_numbers_are_told_from_a_loss_that_is_none(tmp_path: Path) -> None:
    x = toy_data()
    x[int(feed()._members(3)[0])] = torch.nan  # not in the first batch, on which the scale is measured
    with pytest.raises(SaebenchError, match="activations of step 3 are NaN"):
        train(tmp_path, data=TensorFeed(x, 32, 0))


def test_training_anew_is_on_request(tmp_path: Path) -> None:
    train(tmp_path)
    with pytest.raises(SaebenchError, match=r"by another recipe.*train anew"):
        train(tmp_path, toy_recipe(lr=1e-3))
    with pytest.raises(SaebenchError, match="on other data"):
        train(tmp_path, data=feed(seed=1))
    (made,) = train(tmp_path, toy_recipe(lr=1e-3), resume=False)
    assert made.recipe.lr == 1e-3 and same_sae(NATIVE.load(str(made.path)), made.sae)
    assert [line["step"] for line in lines(made.folder)] == [5, 10, 12]


def test_recipes_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SaebenchError, match="batches of 64, the data come in batches of 32"):
        train(tmp_path, toy_recipe(batch_size=64))
    with pytest.raises(SaebenchError, match="given 2 times"):
        train(tmp_path, toy_recipe(), toy_recipe())
    with pytest.raises(SaebenchError, match="no recipe"):
        loop.train(ARCHITECTURES, [], feed(), tmp_path, FACTS, NATIVE)
    with pytest.raises(SaebenchError, match="cannot be written"):
        loop.train(ARCHITECTURES, [toy_recipe()], feed(), tmp_path, FACTS, SAELoader(NATIVE.load))


class Breaks(Toy):
    """Its loss is not finite from step 6 on for k = 4."""

    def loss(self, x: Tensor, moment: Any) -> Any:
        made = super().loss(x, moment)
        return replace(made, total=made.total * torch.inf) if self.k == 4 and moment.step == 6 else made


def test_a_loss_that_is_not_finite_ends_that_sae_at_its_last_checkpoint(tmp_path: Path) -> None:
    architectures = {"toy": replace(TOY, build=Breaks)}
    told: list[str] = []
    pace = replace(PACE, checkpoint_steps=4)
    with pytest.raises(SaebenchError, match=r"toy-24-k4-s0: the loss of step 6 is NaN or infinite"):
        train(
            tmp_path,
            toy_recipe(k=4),
            toy_recipe(),
            architectures=architectures,
            pace=pace,
            listeners=Listeners(notice=told.append),
        )
    assert len(told) == 1 and "step 6" in told[0]
    assert loop.checkpoint.read_header(tmp_path / "toy-24-k4-s0").step == 4  # type: ignore[union-attr]
    (other,) = train(tmp_path, toy_recipe(), architectures=architectures)
    assert same_sae(other.sae, by_hand(toy_recipe()).export())


def test_a_second_process_waits_for_the_first(tmp_path: Path) -> None:
    from filelock import FileLock

    folder = tmp_path / toy_recipe().label
    folder.mkdir()
    told, waits = [], threading.Event()
    made: list[Trained] = []

    def notice(message: str) -> None:
        told.append(message)
        waits.set()

    with FileLock(folder / ".lock"):
        thread = threading.Thread(target=lambda: made.extend(train(tmp_path, listeners=Listeners(notice=notice))))
        thread.start()
        assert waits.wait(60) and not made
        assert not (folder / "recipe.json").exists()
    thread.join(60)
    assert len(made) == 1 and len(told) == 1 and "waiting" in told[0]


class Signalled:
    """A feed that is sent a signal by the time it is asked for a batch."""

    def __init__(self, at: int, number: int) -> None:
        self.at, self.number, self.feed = at, number, feed()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.feed, name)

    def batches(self, start: int = 0, position: tuple[int, ...] = ()) -> Iterator[Tensor]:
        for step, x in enumerate(self.feed.batches(start, position), start):
            if step == self.at:
                os.kill(os.getpid(), self.number)
            yield x


@pytest.mark.parametrize(
    ("number", "error"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, SystemExit)], ids=["int", "term"]
)
def test_a_signal_leaves_a_checkpoint_to_go_on_from(tmp_path: Path, number: int, error: type[BaseException]) -> None:
    before = signal.getsignal(number)
    with pytest.raises(error):
        train(tmp_path, data=Signalled(7, number))
    assert signal.getsignal(number) is before
    folder = tmp_path / toy_recipe().label
    assert loop.checkpoint.read_header(folder).step == 7  # type: ignore[union-attr]
    (made,) = train(tmp_path)
    assert same_sae(made.sae, by_hand(toy_recipe()).export())
    assert [line["step"] for line in lines(folder)] == [5, 10, 12]


@pytest.mark.parametrize("text", ["", "{}", "[" * 10_000, " " * (1 << 21)], ids=["empty", "fields", "deep", "large"])
def test_a_damaged_report_is_named(tmp_path: Path, text: str) -> None:
    (made,) = train(tmp_path)
    (made.folder / "training.json").write_text(text)
    with pytest.raises(BadFileError, match=r"training\.json"):
        train(tmp_path)
