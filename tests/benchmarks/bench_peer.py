"""Sparse probing and TPP beside the stock tool, sae-bench 0.6.0, in one run on the same model, SAE and texts.

    OMP_NUM_THREADS=1 python tests/benchmarks/bench_peer.py --peer PEER/bin/python --script peer_sae_bench.py
    OMP_NUM_THREADS=1 python tests/benchmarks/bench_peer.py … --d-sae 8192 --train 400 --test 100 --sae-steps 50
    OMP_NUM_THREADS=1 python tests/benchmarks/bench_peer.py … --scale 100 --seeds 6 --train 400 --test 200 --d-sae 256

The stock tool lives in an environment of its own (docs/tasks/tpp.md). `--script` runs it with no network on a local
model and writes `OUT/assets`: model/, tok/, sae.safetensors, data.json, results.json. Ours is then timed on these
assets: cold, and again with activations cached on disk, as the stock tool is. Both are timed with the model in memory
and without imports, and both have one SAE. Ours is timed twice: as it comes, with its several splits or trials, random
latents and regularisation chosen by validation, and under the stock protocol. Intervals are part of both; controls,
which the stock tool has not, and the writing of records and pages are left out.

`--scale` multiplies what the model writes to the residual stream. At 1 the stock tool's TPP probes, with their L1
penalty, learn next to nothing from activations so small, and its scores stay near 0.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open

from saebench_meta import measure
from saebench_meta.labelled import Labelled
from saebench_meta.plan import Unit, make_plan
from saebench_meta.plugins import registry
from saebench_meta.sae import SAE, SAEInfo, Site
from saebench_meta.session import Session
from saebench_meta.settings import Settings
from saebench_meta.task_context import TaskContext
from saebench_plugins import native
from saebench_tasks.sparse_probing import sparse_probing
from saebench_tasks.tpp import tpp
from saebench_tasks.tpp.metrics import SIZES

TASKS = {"tpp": tpp, "sparse_probing": sparse_probing}
PEER_KS = (1, 2, 5)
STOCK = "sae-bench-0.6"
AS_STOCK: dict[str, dict[str, Any]] = {"tpp": {"compat": STOCK, "trials": 1}, "sparse_probing": {"compat": STOCK}}
AGREES = 1e-5

RUN = """
import importlib.util, sys, torch
from transformers import GPT2LMHeadModel
scale, folder, seeds, script, *flags = sys.argv[1:]
plain = GPT2LMHeadModel.__init__

def scaled(self, config):
    plain(self, config)
    writers = [self.transformer.wte, self.transformer.wpe]
    writers += [part for block in self.transformer.h for part in (block.attn.c_proj, block.mlp.c_proj)]
    with torch.no_grad():
        for parameter in (p for part in writers for p in part.parameters()):
            parameter.mul_(float(scale))

GPT2LMHeadModel.__init__ = scaled
spec = importlib.util.spec_from_file_location("script", script)
run = importlib.util.module_from_spec(spec)
spec.loader.exec_module(run)
for seed in seeds.split(","):
    sys.argv = [script, *flags, f"--seed={seed}", f"--out={folder}/peer{seed}"]
    torch.set_grad_enabled(True)  # the tool leaves it off
    run.main()
    flags = [flag for flag in flags if flag != "--repeat"]
"""
"""Run in the stock tool's environment: the script, once a seed, with a larger residual stream."""

POOL = """
import sys, torch
from safetensors.torch import load_file, save_file
from sae_bench.custom_saes.topk_sae import TopKSAE
from sae_bench.sae_bench_utils import activation_collection as collection
assets, artifacts, out, k, hook = sys.argv[1:]
w = load_file(assets + "/sae.safetensors")
sae = TopKSAE(*w["W_enc"].shape, int(k), "tiny", 1, torch.device("cpu"), torch.float32, hook_name=hook)
sae.load_state_dict(w, strict=False)
acts = torch.load(artifacts, weights_only=True)
found = {}
for split, by_class in ((split, acts[split]) for split in ("train", "test")):
    for name, x in collection.create_meaned_model_activations(by_class).items():
        found[f"x {split} {name}"] = x
    for name, f in collection.get_sae_meaned_activations(by_class, sae, 125).items():
        found[f"f {split} {name}"] = f
save_file({n: t.detach().contiguous() for n, t in found.items()}, out)
"""
"""Run in the stock tool's environment: its pooled activations and codes."""

OFFLINE = dict.fromkeys(("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE", "JAXTYPING_DISABLE"), "1")


# -- the stock tool


def run_peer(args: argparse.Namespace, folder: Path) -> list[dict[str, Any]]:
    """Numbers and seconds of the stock tool for every seed; the first has a second pass, on what it has cached."""
    kept = [folder / f"peer{seed}" / "assets" / "results.json" for seed in range(args.seeds)]
    missing = [seed for seed, path in enumerate(kept) if not path.exists()]
    if missing:
        sizes = {"train": args.train, "test": args.test, "d-sae": args.d_sae, "sae-steps": args.sae_steps, "threads": 1}
        flags = [f"--{name}={value}" for name, value in sizes.items()] + ["--only=sp,tpp"]
        flags += ["--repeat"] if 0 in missing and not args.cold else []
        seeds = ",".join(map(str, missing))
        _in_peer([args.peer, "-c", RUN, str(args.scale), str(folder), seeds, args.script, *flags])
    return [json.loads(path.read_text()) for path in kept]


def _in_peer(command: Sequence[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, **OFFLINE})
    if done.returncode:
        sys.exit(done.stderr[-2000:])


def peer_scores(run: Mapping[str, Any]) -> dict[str, float]:
    """Its numbers under our names."""
    probing, effects = run["results"]["sparse_probing"], run["results"]["tpp"]
    return {
        "dense_accuracy": probing["llm_test_accuracy"],
        **{f"accuracy_k{k}": probing[f"sae_top_{k}_test_accuracy"] for k in PEER_KS},
        **{f"tpp_{n}": effects[key] for n in SIZES if (key := f"tpp_threshold_{n}_total_metric") in effects},
    }


# -- ours


def prepared(assets: Path, folder: Path) -> tuple[Path, Path, Path]:
    """The assets as we read them: an SAE file, a model folder with its tokenizer, a labelled set."""
    with safe_open(assets / "sae.safetensors", framework="pt") as f:
        about = f.metadata()
        w = {name: f.get_tensor(name) for name in f.keys()}  # noqa: SIM118
    model = folder / "model"
    shutil.copytree(assets / "model", model)
    shutil.copytree(assets / "tok", model, dirs_exist_ok=True)
    d_in, d_sae = w["W_enc"].shape
    site = Site(model=str(model), hook=about["hook_name"])
    info = SAEInfo(name="peer", site=site, d_in=d_in, d_sae=d_sae, activation="topk", k=int(about["k"]))
    bias = w["b_enc"].double() - w["b_dec"].double() @ w["W_enc"].double()
    sae = native.save(SAE(w["W_enc"], bias.float(), w["W_dec"], w["b_dec"], info), folder / "sae.safetensors")
    texts = folder / "texts.jsonl"
    with texts.open("w") as lines:
        for split, classes in json.loads((assets / "data.json").read_text()).items():
            for label, own in classes.items():
                lines.writelines(json.dumps({"text": t, "label": label, "split": split}) + "\n" for t in own)
    corpus = folder / "corpus.jsonl"
    corpus.write_text("".join(json.dumps({"text": t}) + "\n" for t in json.loads((assets / "corpus.json").read_text())))
    return sae, model, texts


def planned(folder: Path, paths: tuple[Path, Path, Path], name: str, seed: int) -> tuple[Session, Unit]:
    """A new session and its one unit; each task has a cache of its own."""
    sae, model, texts = paths
    settings = Settings(
        saes=(str(sae),),
        tasks=(name,),
        model=str(model),
        labelled=(str(texts),),
        corpus=str(folder / "corpus.jsonl"),
        context=128,
        cache_dir=folder / f"cache-{name}",
        out=folder / "out",
        seed=seed,
    )
    found = registry()
    unit = make_plan(found, settings).units[0]
    if unit.unmet:
        sys.exit(unit.unmet)
    return Session(found, settings), unit


def scores(
    folder: Path, paths: tuple[Path, Path, Path], name: str, seed: int = 0, **parameters: Any
) -> tuple[dict[str, float], float, TaskContext]:
    """A task's metrics, and CPU seconds with everything a run works out for them."""
    session, unit = planned(folder, paths, name, seed)
    ctx, task = TaskContext(session, unit), TASKS[name]
    sae = session.sae(unit.subject.members[0], ctx.site)
    ctx.site.lm.check_hook(unit.subject.members[0].info.site.hook, sae.d_in)
    start = time.process_time()
    output = task(sae, ctx, **parameters)
    found = {m.name: measure.estimate(m, output, task, 0).value for m in task.metrics}
    return {m: float("nan") if v is None else v for m, v in found.items()}, time.process_time() - start, ctx


def ways(name: str) -> list[tuple[str, dict[str, Any]]]:
    """The parameters that a task is timed with: its own, and those of the stock protocol."""
    return [("as it comes", {}), ("stock protocol", AS_STOCK[name])]


def timed(
    folder: Path, paths: tuple[Path, Path, Path], name: str, passes: int, parameters: Mapping[str, Any]
) -> list[float]:
    """CPU seconds of a task: cold, then with what the first pass kept on disk."""
    shutil.rmtree(folder / f"cache-{name}", ignore_errors=True)
    return [scores(folder, paths, name, **parameters)[1] for _ in range(passes)]


# -- pooled activations and codes


def pooled_apart(args: argparse.Namespace, out: Path, ctx: TaskContext, k: int) -> None:
    """Print how far pooled activations and codes are apart, and why where codes are further apart than `AGREES`."""
    artifacts = next(path for path in (out / "artifacts").rglob("*_activations.pt") if "tpp" in str(path))
    pooled = out / "pooled.safetensors"
    _in_peer([args.peer, "-c", POOL, *map(str, (out / "assets", artifacts, pooled, k, ctx.site.inputs.hook))])
    labelled = ctx.labelled(ctx.labelled_sets[0])
    sae = ctx._session.sae(ctx._unit.subject.members[0], ctx.site)
    x, f = labelled.x.numpy(), labelled.codes(sae).dense().numpy()
    apart_x, apart_f = np.zeros(len(x)), np.zeros(len(x))
    with safe_open(pooled, framework="np") as theirs:
        for c, name in enumerate(labelled.classes):
            for split in ("train", "test"):
                own = np.flatnonzero((labelled.label == c) & (labelled.test == (split == "test")))
                rows, codes = (theirs.get_tensor(f"{kind} {split} {name}") for kind in ("x", "f"))
                # Texts stand in another order: each of theirs is held against ours with the nearest activations.
                for row, code in zip(rows, codes, strict=True):
                    gaps = np.abs(x[own] - row).max(1)
                    text = own[gaps.argmin()]
                    apart_x[text], apart_f[text] = gaps.min(), np.abs(f[text] - code).max()
    far = apart_f > AGREES
    print(f"pooled activations: largest difference {apart_x.max():.1e}; largest code {f.max():.1e}")
    print(
        f"pooled codes: {far.sum()} of {len(far)} texts differ by more than {AGREES:.0e}, the others by at most",
        end=" ",
    )
    print(f"{apart_f[~far].max():.1e}")
    for text, gap, of in nearest_ties(labelled, sae, k, np.flatnonzero(far)):
        print(
            f"  text {text}: codes {apart_f[text]:.1e} apart; at one token the k-th and the next pre-activation are",
            end=" ",
        )
        print(f"{gap:.1e} apart, {gap / of:.1e} of the largest")


def nearest_ties(labelled: Labelled, sae: SAE, k: int, texts: np.ndarray) -> list[tuple[int, float, float]]:
    """Of each text the token whose k-th and next pre-activation are closest in float64: gap, and largest size there."""
    found: list[tuple[int, float, float]] = []
    W, b = sae.W_enc.double(), sae.b_enc.double()
    for chunk, _ in labelled.chunks(sae):
        for text in np.intersect1d(texts, chunk.document.numpy()):
            pre = chunk.x[chunk.document == text].double() @ W + b
            top = pre.topk(k + 1, dim=1).values
            gaps = top[:, k - 1] - top[:, k]
            at = int(gaps.argmin())
            found.append((int(text), float(gaps[at]), float(pre[at].abs().max())))
    return found


# -- tables


def print_seconds(seconds: Mapping[str, Any], ours: Mapping[str, Mapping[str, Sequence[float]]]) -> None:
    """Ours as it comes, and under the stock protocol: one trial, its probes, its numbers."""
    for name, ways in ours.items():
        for way, taken in ways.items():
            for state, key, own in zip(("cold", "activations kept"), (name, f"{name}_cached"), taken, strict=False):
                one = seconds[key]["cpu"]
                print(
                    f"{name:15} {state:17} stock {one:7.1f} CPU-s   ours, {way:14} {own:6.1f} CPU-s"
                    f"   ratio {one / own:6.1f}",
                    flush=True,
                )


def print_scores(theirs: Sequence[Mapping[str, float]], ours: Sequence[Mapping[str, float]]) -> None:
    """Both spreads over seeds; `inside`: our mean is within two standard deviations of theirs."""
    print(f"{'':16}stock: mean  sd      compat: mean  sd      difference / stock sd")
    for name in theirs[0]:
        (a, sd_a), (b, sd_b) = (_spread([run[name] for run in runs]) for runs in (theirs, ours))
        print(
            f"{name:16}{a:11.4f}  {sd_a:.4f}  {b:12.4f}  {sd_b:.4f}  {(b - a) / sd_a if sd_a else float('nan'):10.2f}"
        )


def _spread(values: Sequence[float]) -> tuple[float, float]:
    return float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else float("nan")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", help="python of the environment with sae-bench 0.6.0")
    parser.add_argument("--script", help="what runs it offline and writes assets")
    parser.add_argument("--train", type=int, default=4000)
    parser.add_argument("--test", type=int, default=1000)
    parser.add_argument("--d-sae", type=int, default=512)
    parser.add_argument("--sae-steps", type=int, default=300)
    parser.add_argument("--scale", type=float, default=1.0, help="of the residual stream")
    parser.add_argument("--seeds", type=int, default=1, help="runs of both under the stock protocol, for the spread")
    parser.add_argument("--cold", action="store_true", help="leave out the second pass, on activations that are kept")
    parser.add_argument("--keep", type=Path, help="folder of the runs; those of the stock tool in it are not run again")
    args = parser.parse_args()
    if not (args.peer and args.script):
        parser.exit(0, "not run: it needs sae-bench 0.6.0 in an environment of its own, --peer and --script\n")
    return args


def compared(args: argparse.Namespace, kept: Path, folder: Path) -> None:
    """Run both and print.

    Args:
        kept: folder of the stock tool's runs.
        folder: scratch.
    """
    runs = run_peer(args, kept)
    first = runs[0]
    paths = prepared(kept / "peer0" / "assets", folder)
    print(f"train {args.train}, test {args.test}, d_sae {args.d_sae}, residual stream × {args.scale:g}")
    taken = {
        name: {way: timed(folder, paths, name, 1 if args.cold else 2, p) for way, p in ways(name)} for name in TASKS
    }
    print_seconds(first["timing_s"], taken)
    pooled_apart(args, kept / "peer0", scores(folder, paths, "tpp", trials=1)[2], first["args"]["k"])
    ours = [
        {k: v for name in TASKS for k, v in scores(folder, paths, name, seed, **AS_STOCK[name])[0].items()}
        for seed in range(args.seeds)
    ]
    print_scores([peer_scores(run) for run in runs], ours)


def main() -> None:
    args = arguments()
    torch.set_num_threads(1)
    for name in ("altair", "pandas", "scipy.special", "sklearn.linear_model"):
        importlib.import_module(name)  # what a first call imports is not timed
    with tempfile.TemporaryDirectory() as temporary:
        compared(args, args.keep or Path(temporary), Path(temporary))


if __name__ == "__main__":
    main()
