"""A whole training step of a BatchTopK SAE, one thread, everything in one run: read the ratios, not the times.

The floor is the encoder's product, which has to be made in any case; beside it stand a step written with dense
matrices and, where sae-lens can be imported, its trainer's. All have 5 % dead latents and AuxK on. `--quality` trains
instead, and compares errors with those of the dense step.

    OMP_NUM_THREADS=1 python tests/benchmarks/bench_training.py [--repeats 5] [--small] [--quality]
"""

from __future__ import annotations

import argparse
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1] / "training"))

from dense import DenseTrainer, make_dead
from planted import planted

from saebench_meta.training.recipe import make_recipe
from saebench_meta.training.trainer import Trainer
from saebench_plugins.architectures import saebench_architectures

BATCH = 4096
SIZES = ((768, 12288, 32), (128, 2048, 16))
FRESH = 4
"""Batches that the steps go round."""


def trainer_of(d_sae: int, k: int, first: Tensor, **given: Any) -> Trainer:
    architecture = saebench_architectures()["batchtopk"]
    given = {"tokens": 100_000_000, "batch_size": BATCH, **given}
    return Trainer(architecture, make_recipe(architecture, "batchtopk", d_sae=d_sae, k=k, **given), first)


def contenders(
    d_in: int, d_sae: int, k: int, batches: list[Tensor]
) -> Iterator[tuple[str, Callable[[Tensor], object]]]:
    """Name -> a step on a batch."""
    dead = torch.arange(0, d_sae, 20)
    W, b, out = torch.randn(d_sae, d_in), torch.zeros(d_sae), torch.empty(BATCH, d_sae)
    yield "encoder product, memory kept", lambda x: torch.mm(x, W.T, out=out)
    yield "encoder, torch.nn.functional.linear", lambda x: torch.nn.functional.linear(x, W, b)
    for precision in ("float32", "bfloat16"):
        trainer = trainer_of(d_sae, k, batches[0], precision=precision)

        def step(x: Tensor, trainer: Trainer = trainer) -> None:
            make_dead(trainer, dead)
            found = trainer.step(x)
            assert int(found.dead) >= len(dead) and "aux" in found.parts

        yield f"saebench step, {precision}", step
    dense = DenseTrainer(trainer)

    def dense_step(x: Tensor) -> None:
        dense.loss.silent[dead] = 1e9
        dense.step(x)

    yield "dense step", dense_step
    yield from sae_lens(d_in, d_sae, k, batches, dead)


def sae_lens(
    d_in: int, d_sae: int, k: int, batches: list[Tensor], dead: Tensor
) -> Iterator[tuple[str, Callable[[Tensor], object]]]:
    """Its trainer's step, with the same optimizer and dead latents; nothing where it is not installed."""
    try:
        from sae_lens import BatchTopKTrainingSAE, BatchTopKTrainingSAEConfig
        from sae_lens.config import LoggingConfig, SAETrainerConfig
        from sae_lens.training.sae_trainer import SAETrainer
    except ImportError:
        return
    settings = SAETrainerConfig(
        total_training_samples=BATCH * 1000,
        train_batch_size_samples=BATCH,
        device="cpu",
        autocast=False,
        lr=3e-4,
        lr_end=3e-4,
        lr_scheduler_name="constant",
        lr_warm_up_steps=0,
        lr_decay_steps=0,
        n_restart_cycles=1,
        adam_beta1=0.9,
        adam_beta2=0.99,
        dead_feature_window=1000,
        feature_sampling_window=1000,
        n_checkpoints=0,
        checkpoint_path=None,
        save_final_checkpoint=False,
        logger=LoggingConfig(log_to_wandb=False),
        n_batches_for_norm_estimate=2,
    )
    sae = BatchTopKTrainingSAE(BatchTopKTrainingSAEConfig(d_in=d_in, d_sae=d_sae, k=k))
    trainer = SAETrainer(cfg=settings, sae=sae, data_provider=iter(batches))

    def dead_step(x: Tensor) -> None:
        trainer.n_forward_passes_since_fired[dead] = 10_000
        trainer.step(x)

    yield "sae-lens step", dead_step


def time_all(steps: dict[str, Callable[[Tensor], object]], batches: list[Tensor], repeats: int) -> dict[str, float]:
    """Median CPU seconds of each, taken in turn so that what else the machine does falls on all alike."""
    taken: dict[str, list[float]] = {name: [] for name in steps}
    for repeat in range(-1, repeats):
        for name, step in steps.items():
            if repeat > 1 and median(taken[name]) > 2:  # the slow ones twice, that is far from the ratio's bounds
                continue
            begin = time.process_time()
            step(batches[repeat % FRESH])
            if repeat >= 0:
                taken[name].append(time.process_time() - begin)
    return {name: median(times) for name, times in taken.items()}


def speed(sizes: tuple[tuple[int, int, int], ...], repeats: int) -> None:
    for d_in, d_sae, k in sizes:
        x = planted(d_in, 1024, 0.01, BATCH * FRESH, seed=0)[0] + 0.05 * torch.randn(BATCH * FRESH, d_in)
        batches = list(x.split(BATCH))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            seconds = time_all(dict(contenders(d_in, d_sae, k, batches)), batches, repeats)
        ours, floor = seconds["saebench step, float32"], min(seconds.values())
        print(f"\nd_in {d_in}, width {d_sae}, k {k}, batch {BATCH}, 5 % dead, AuxK on; median CPU time of a step")
        print(f"{'':38}{'ms':>9}{'tokens/s':>12}{'× product':>11}{'× ours':>9}")
        for name, s in seconds.items():
            print(f"{name:38}{s * 1e3:9.1f}{BATCH / s:12,.0f}{s / floor:11.2f}{s / ours:9.2f}")


def quality(seeds: int, steps: int) -> None:
    """FVU over the last tenth of the steps and dead latents at the end, ours against the dense step, same data."""
    columns = ("FVU, ours", "FVU, dense", "FVU, bf16", "dead, ours", "dead, dense", "dead, bf16")
    print("seed" + "".join(f"{name:>13}" for name in columns))
    for seed in range(seeds):
        x = planted(64, 512, 0.01, 100_000, seed)[0] + 0.02 * torch.randn(100_000, 64)
        given = {"tokens": steps * 512, "batch_size": 512, "seed": seed, "lr": 1e-3, "dead_after": 0.05}
        ours, rough = (trainer_of(1024, 8, x[:512], precision=p, **given) for p in ("float32", "bfloat16"))
        dense, errors, total = DenseTrainer(ours), [0.0, 0.0, 0.0], 0.0
        for step in range(steps):
            batch = x[torch.randint(len(x), (512,))]
            found, other, reference = ours.step(batch), rough.step(batch), dense.step(batch)
            if step >= 0.9 * steps:
                total += float(found.sst)
                errors = [a + float(b) for a, b in zip(errors, (found.sse, reference, other.sse), strict=True)]
        fvu = [e / total for e in errors]
        dead = [
            float((t >= ours.recipe.dead_window).float().mean()) for t in (ours.silent, dense.loss.silent, rough.silent)
        ]
        print(f"{seed:4}" + "".join(f"{v:13.5f}" for v in [*fvu, *dead]))


@contextmanager
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--small", action="store_true", help="only the small size")
    parser.add_argument("--quality", action="store_true", help="train, and compare errors with the dense step's")
    parser.add_argument("--steps", type=int, default=1500, help="of --quality")
    args = parser.parse_args()
    torch.manual_seed(0)
    with one_thread():
        if args.quality:
            quality(3, args.steps)
        else:
            speed(SIZES[1:] if args.small else SIZES, args.repeats)


if __name__ == "__main__":
    main()
