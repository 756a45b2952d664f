"""TPP beside the stock tool, sae-bench 0.6.0, in one run on the same model, SAE and texts: CPU seconds and numbers.

    OMP_NUM_THREADS=1 python tests/benchmarks/bench_peer.py --peer PEER/bin/python --script peer_sae_bench.py
    OMP_NUM_THREADS=1 python tests/benchmarks/bench_peer.py … --train 400 --test 200 --d-sae 256 --seeds 5      # small

The stock tool lives in an environment of its own (docs/tasks/tpp.md). `--script` runs it with no network on a local
model and writes `OUT/assets`: model/, tok/, sae.safetensors, data.json, results.json. Ours is then timed on these
assets: cold, and again with activations cached on disk, as the stock tool is. Both are timed with the model in memory
and without imports, and both have one SAE; controls are ours alone and left out.
"""

from __future__ import annotations

import argparse
import importlib
import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open

from saebench_meta import measure
from saebench_meta.plan import Unit, make_plan
from saebench_meta.plugins import registry
from saebench_meta.sae import SAE, SAEInfo, Site
from saebench_meta.session import Session
from saebench_meta.settings import Settings
from saebench_meta.task_context import TaskContext
from saebench_plugins import native
from saebench_tasks.tpp import METRICS, tpp

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
for split, by_class in acts.items():
    for name, x in collection.create_meaned_model_activations(by_class).items():
        found[f"x {split} {name}"] = x
    for name, f in collection.get_sae_meaned_activations(by_class, sae, 125).items():
        found[f"f {split} {name}"] = f
save_file({n: t.contiguous() for n, t in found.items()}, out)
"""
"""Run in the stock tool's environment: its pooled activations and codes."""


def run_peer(args: argparse.Namespace, seed: int, out: Path) -> dict[str, Any]:
    """One run of the stock tool; its numbers and seconds."""
    sizes = {"train": args.train, "test": args.test, "d-sae": args.d_sae, "sae-steps": args.sae_steps, "threads": 1}
    flags = [f"--{name}={value}" for name, value in sizes.items()]
    command = [args.peer, args.script, *flags, "--only=tpp", f"--seed={seed}", f"--out={out}"]
    done = subprocess.run([*command, *(["--repeat"] if seed == 0 else [])], capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(done.stderr[-2000:])
    found: dict[str, Any] = json.loads((out / "assets" / "results.json").read_text())
    return found


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


def planned(folder: Path, paths: tuple[Path, Path, Path]) -> tuple[Session, Unit]:
    """A new session and its one unit."""
    sae, model, texts = paths
    settings = Settings(
        saes=(str(sae),),
        tasks=("tpp",),
        model=str(model),
        labelled=(str(texts),),
        corpus=str(folder / "corpus.jsonl"),
        context=128,
        cache_dir=folder / "cache",
        out=folder / "out",
    )
    found = registry()
    unit = make_plan(found, settings).units[0]
    if unit.unmet:
        sys.exit(unit.unmet)
    return Session(found, settings), unit


def scores(
    folder: Path, paths: tuple[Path, Path, Path], **parameters: Any
) -> tuple[dict[str, Any], float, TaskContext]:
    """The task's numbers, the trials' scores, and CPU seconds with everything a run works out for it."""
    session, unit = planned(folder, paths)
    ctx = TaskContext(session, unit)
    sae = session.sae(unit.subject.members[0], ctx.site)
    ctx.site.lm.check_hook(unit.subject.members[0].info.site.hook, sae.d_in)
    start = time.process_time()
    output = tpp(sae, ctx, **parameters)
    found: dict[str, Any] = {m.name: measure.estimate(m, output, tpp, 0).value for m in METRICS}
    taken = time.process_time() - start
    found["trials"] = output.tables["trials"].data["tpp"].tolist()
    found["curve"] = output.tables["curve"].data.set_index("n")
    return found, taken, ctx


def largest_differences(args: argparse.Namespace, out: Path, ctx: TaskContext, k: int, hook: str) -> dict[str, float]:
    """Largest difference of pooled activations and of pooled codes, text by text."""
    artifacts = next((out / "artifacts").rglob("*_activations.pt"))
    command = [
        args.peer,
        "-c",
        POOL,
        str(out / "assets"),
        str(artifacts),
        str(out / "pooled.safetensors"),
        str(k),
        hook,
    ]
    subprocess.run(command, check=True, capture_output=True)
    labelled = ctx.labelled(ctx.labelled_sets[0])
    sae = ctx._session.sae(ctx._unit.subject.members[0], ctx.site)
    ours = {"x": labelled.x.numpy(), "f": labelled.codes(sae).dense().numpy()}
    found = {"x": 0.0, "f": 0.0}
    with safe_open(out / "pooled.safetensors", framework="np") as f:
        for key in f.keys():  # noqa: SIM118
            kind, split, name = key.split(" ")
            c = labelled.classes.index(name)
            own = ours[kind][(labelled.label == c) & (labelled.test == (split == "test"))]
            # Texts stand in another order: each of theirs is held against the nearest of ours.
            gaps = [np.abs(own - row).max(1).min() for row in f.get_tensor(key)]
            found[kind] = max(found[kind], float(max(gaps)))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", required=True, help="python of the environment with sae-bench 0.6.0")
    parser.add_argument("--script", required=True, help="what runs it offline and writes assets")
    parser.add_argument("--train", type=int, default=4000)
    parser.add_argument("--test", type=int, default=1000)
    parser.add_argument("--d-sae", type=int, default=512)
    parser.add_argument("--sae-steps", type=int, default=300)
    parser.add_argument("--seeds", type=int, default=1, help="runs of the stock tool, for its spread")
    args = parser.parse_args()
    torch.set_num_threads(1)
    for name in ("altair", "pandas", "scipy.special"):
        importlib.import_module(name)  # what a first call imports is not timed
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        theirs = [run_peer(args, seed, folder / f"peer{seed}") for seed in range(args.seeds)]
        paths = prepared(folder / "peer0" / "assets", folder)
        found, cold, ctx = scores(folder, paths)
        _, warm, _ = scores(folder, paths)
        stock, stock_warm, _ = scores(folder, paths, compat="sae-bench-0.6", trials=max(2, args.seeds))
        gaps = largest_differences(args, folder / "peer0", ctx, theirs[0]["args"]["k"], ctx.site.inputs.hook)
    seconds = theirs[0]["timing_s"]
    print(f"train {args.train}, test {args.test}, d_sae {args.d_sae}")
    for name, one, other in (("cold", seconds["tpp"], cold), ("activations kept", seconds["tpp_cached"], warm)):
        print(f"{name:17} stock {one['cpu']:8.1f} CPU-s   ours {other:6.1f} CPU-s   ratio {one['cpu'] / other:6.1f}")
    print(f"ours with compat, activations kept, {len(stock['trials'])} runs: {stock_warm:.1f} CPU-s")
    print(f"largest difference: pooled activations {gaps['x']:.1e}, pooled codes {gaps['f']:.1e}")
    print(f"ours: tpp {found['tpp']:.4f}, probes {found['probe_accuracy']:.4f}, over trials {found['reseed_sd']:.4f}")
    print("   n   stock: mean  sd     compat   (total metric)")
    for n in (n for n in (2, 5, 10, 20, 50, 100, 500) if n <= args.d_sae):
        values = [run["results"]["tpp"][f"tpp_threshold_{n}_total_metric"] for run in theirs]
        spread = np.std(values, ddof=1) if len(values) > 1 else float("nan")
        print(f"{n:4}   {np.mean(values):11.4f}  {spread:.4f}   {stock['curve'].loc[n, 'tpp']:.4f}")


if __name__ == "__main__":
    main()
