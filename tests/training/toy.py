"""A small dense architecture with everything that a loop must carry over: state, dead latents, an end."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from saebench_meta.hookspecs import Architecture, SAELoader
from saebench_meta.sae import Site
from saebench_meta.training import checkpoint, loop
from saebench_meta.training.feed import TensorFeed
from saebench_meta.training.loop import Pace
from saebench_meta.training.recipe import Recipe, make_recipe
from saebench_meta.training.run import SiteFacts, Trained
from saebench_meta.training.trainable import Exported, Loss, Moment, Processes, TrainableSAE, unit_rows
from saebench_plugins import native

FACTS = SiteFacts(Site(model="toy", hook="blocks.1.hook_resid_pre"), context_size=16, dataset="toys")


class Toy(TrainableSAE):
    """Per-row top-k, a running mean of the smallest kept activation, an auxiliary loss on dead latents."""

    def __init__(self, recipe: Recipe, d_in: int, first: Tensor, generator: torch.Generator) -> None:
        self.k = int(recipe.hyperparameters["k"])  # type: ignore[arg-type]
        rows = unit_rows(torch.randn(recipe.d_sae, d_in, generator=generator)).to(first.device)
        values = {
            "W_enc": rows.clone(),
            "W_dec": rows,
            "b_enc": torch.where(torch.arange(recipe.d_sae) % 4 == 0, -100.0, 0.0),  # every fourth never fires
            "b_dec": first.mean(0),
        }
        self.parameters = {name: value.to(first.device).requires_grad_() for name, value in values.items()}
        self.state = {"smallest": torch.zeros(())}

    def _codes(self, x: Tensor) -> Tensor:
        p = self.parameters
        pre = torch.relu((x - p["b_dec"]) @ p["W_enc"].T + p["b_enc"])
        top = pre.topk(self.k)
        return torch.zeros_like(pre).scatter(1, top.indices, top.values)

    def loss(self, x: Tensor, moment: Moment) -> Loss:
        p, f = self.parameters, self._codes(x)
        error = x - f @ p["W_dec"] - p["b_dec"]
        mse = error.square().mean()
        aux = torch.zeros(())
        if moment.dead is not None and bool(moment.dead.any()):
            aux = (x @ p["W_enc"][moment.dead].T).square().mean()
        smallest = moment.processes.mean(torch.where(f > 0, f, torch.inf).amin().detach())
        self.state["smallest"] = 0.9 * self.state["smallest"] + 0.1 * smallest
        return Loss(
            total=mse + aux / 32,
            sse=error.detach().square().sum(),
            active=(f > 0).sum().float(),
            fired=(f > 0).any(0),
            parts={"mse": mse.detach(), "aux": aux.detach()},
        )

    def finish(self, batches: Iterator[Tensor], processes: Processes) -> None:
        smallest = [torch.where((f := self._codes(x)) > 0, f, torch.inf).amin() for x in batches]
        self.state["smallest"] = processes.mean(torch.stack(smallest).mean())

    def export(self) -> Exported:
        p = self.parameters
        b_enc = p["b_enc"] - p["W_enc"] @ p["b_dec"]
        threshold = self.state["smallest"].expand(len(b_enc)).clone()
        return Exported(p["W_enc"].T, b_enc, p["W_dec"], p["b_dec"], "jumprelu", threshold)


TOY = Architecture(Toy, hyperparameters={"k": 3})
ARCHITECTURES = {"toy": TOY}
NATIVE: SAELoader = native.saebench_loaders()["native"]
PACE = Pace(log_every=5, checkpoint_steps=None, checkpoint_seconds=None)


def toy_recipe(steps: int = 12, **given: Any) -> Recipe:
    """Batches of 32, 24 latents, dead after four batches."""
    settings = {"d_sae": 24, "batch_size": 32, "lr": 3e-3, "dead_after_tokens": 128, "dead_after": 1.0}
    settings |= {"threshold_batches": 3, "warmup": 0.2, "decay": 0.3, "clip": 1.0}
    return make_recipe(TOY, "toy", **{**settings, "tokens": steps * 32, **given})


def toy_data(n: int = 150, d_in: int = 10, seed: int = 0) -> Tensor:
    """Sparse nonnegative sums of directions, on a mean."""
    g = torch.Generator().manual_seed(seed)
    return (torch.rand(n, 20, generator=g) < 0.15).float() @ torch.randn(20, d_in, generator=g) + 2


def same_sae(a: Any, b: Any) -> bool:
    """Whether two SAEs are equal bit for bit."""
    return all(torch.equal(getattr(a, n), getattr(b, n)) for n in ("W_enc", "b_enc", "W_dec", "b_dec", "threshold"))


def feed(seed: int = 0, **given: Any) -> TensorFeed:
    """150 activations in batches of 32."""
    return TensorFeed(toy_data(), 32, seed, **given)


def train(folder: Path, *recipes: Recipe, data: Any = None, **given: Any) -> list[Trained]:
    """The loop on toys; the usual recipe and feed unless given."""
    settings = {"pace": PACE, **given}
    architectures = settings.pop("architectures", ARCHITECTURES)
    return loop.train(architectures, recipes or [toy_recipe()], data or feed(), folder, FACTS, NATIVE, **settings)


def lines(folder: Path) -> list[dict[str, Any]]:
    """The metrics file."""
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def timeless(folder: Path) -> list[dict[str, Any]]:
    """The metrics file without what differs from one machine to the next."""
    return [{k: v for k, v in line.items() if k != "tokens_per_second"} for line in lines(folder)]


def checkpoint_step(folder: Path) -> int:
    """The step of a checkpoint that a process may be replacing just now; 0 if there is none."""
    try:
        data = (folder / checkpoint.FILE_NAME).read_bytes()
    except FileNotFoundError:
        return 0
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    return int(json.loads(header["__metadata__"][checkpoint.KEY])["step"])


class StopError(Exception):
    """Stands for whatever ends a run."""


def stop_at(step: int) -> Callable[[str, Any], None]:
    """A listener to progress that ends the run at that step."""

    def progress(label: str, line: Any) -> None:
        if line.step == step:
            raise StopError

    return progress
