"""What stitching costs beside one sparse decode of both SAEs on the same tokens: CPU or GPU seconds, ratios in one run.

    OMP_NUM_THREADS=1 python tests/benchmarks/bench_stitching.py           # d 768, 12288 -> 24576, 65,536 tokens
    OMP_NUM_THREADS=1 python tests/benchmarks/bench_stitching.py --atlas   # atlas's own pair and corpus
    OMP_NUM_THREADS=1 python tests/benchmarks/bench_stitching.py --brute   # brute force at a size where it ends
    python tests/benchmarks/bench_stitching.py --device cuda --widths 49152 98304

Without --atlas the SAEs are synthetic: half of S1's rows lie near rows of S0, codes have 43 active latents a token with
densities that fall as a power law, and what is decoded is what real codes of that shape cost.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import numpy as np
import torch

from saebench_meta.codes import Codes
from saebench_meta.geometry import similarity
from saebench_meta.sae import SAE, SAEInfo, Site
from saebench_meta.stitching import PairSample, additions, components, schedule, swaps, walk
from saebench_meta.stitching.sample import PairChunk
from saebench_meta.task import Pair


def synthetic(d: int, widths: tuple[int, int], tokens: int, l0: int, device: str) -> PairSample:
    """A pair and codes of its shape; codes are drawn, not encoded."""
    g = torch.Generator().manual_seed(0)
    F0, F1 = widths
    W0 = torch.nn.functional.normalize(torch.randn(F0, d, generator=g), dim=1)
    W1 = torch.nn.functional.normalize(torch.randn(F1, d, generator=g), dim=1)
    twins = torch.randperm(F1, generator=g)[: F1 // 2]
    origin = torch.randint(F0, (len(twins),), generator=g)
    W1[twins] = torch.nn.functional.normalize(W0[origin] + 0.7 * W1[twins], dim=1)
    pair = Pair(_sae(W1, "S1", device), _sae(W0, "S0", device))
    made = PairSample.__new__(PairSample)
    made.pair, made.n_tokens, made.n_docs, made.d_in = pair, tokens, max(1, tokens // 128), d
    rng = np.random.default_rng(0)
    chunks = []
    for start in range(0, tokens, 8192):
        n = min(8192, tokens - start)
        old, new = (_codes(rng, n, F, l0).to(device) for F in widths)
        x = old.decode(pair.reference.W_dec) + 0.5 * torch.randn(n, d, generator=g).to(device)
        document = (torch.arange(n) + start) // 128
        chunks.append(PairChunk(x, None, old, new, document))
    made._chunks = lambda: iter(chunks)
    return made


def _sae(W: torch.Tensor, name: str, device: str) -> SAE:
    F, d = W.shape
    info = SAEInfo(name=name, site=Site(model="none", hook="x"), d_in=d, d_sae=F)
    b = torch.zeros(d) if name == "S0" else 0.01 * torch.ones(d)
    # The encoder is never used here: one column stands for all.
    return SAE(torch.zeros(d, 1).expand(d, F), torch.zeros(F), W, b, info).to(device)


def _codes(rng: np.random.Generator, tokens: int, F: int, l0: int) -> Codes:
    """Active latents drawn with densities ∝ rank^-0.7, which spreads over the dictionary as trained ones do."""
    weights = (np.arange(F) + 10.0) ** -0.7
    drawn = np.searchsorted(np.cumsum(weights) / weights.sum(), rng.random((tokens, l0)))
    key = np.unique((np.arange(tokens)[:, None] * F + drawn).ravel())
    rows, cols = key // F, key % F
    indptr = np.concatenate([[0], np.bincount(rows, minlength=tokens).cumsum()])
    values = torch.from_numpy(rng.gamma(2.0, 0.5, len(key)).astype(np.float32))
    return Codes(torch.from_numpy(indptr), torch.from_numpy(cols.astype(np.int32)), values, F)


def atlas(old: str, new: str, tokens: int) -> PairSample:
    """Atlas's SAEs on atlas's own sample."""
    from saebench_meta.inputs import InputsFinder
    from saebench_meta.plugins import registry
    from saebench_meta.resolve import resolve_sae
    from saebench_meta.session import Session
    from saebench_meta.settings import Settings

    found = registry()
    settings = Settings(saes=(new,), tokens=tokens, cache=False)
    resolved = resolve_sae(found, new)
    inputs = InputsFinder(found, settings).find(resolved)
    assert not isinstance(inputs, str), inputs
    site = Session(found, settings).site(inputs)
    pair = Pair(resolved.load(), resolve_sae(found, old).load())
    return PairSample.of(pair, site.activations.all(), site.activations.documents)


def seconds(run: Callable[[], object], device: str, repeats: int = 3) -> float:
    """The median: CPU time on a CPU, wall time on a GPU."""
    taken = []
    for _ in range(repeats):
        clock = time.perf_counter if device == "cuda" else time.process_time
        if device == "cuda":
            torch.cuda.synchronize()
        start = clock()
        run()
        if device == "cuda":
            torch.cuda.synchronize()
        taken.append(clock() - start)
    return sorted(taken)[len(taken) // 2]


def decode_both(sample: PairSample) -> None:
    """One sparse decode of both SAEs on the sample."""
    for chunk in sample:
        chunk.old.decode(sample.pair.reference.W_dec)
        chunk.new.decode(sample.pair.sae.W_dec)


def decode_dense(sample: PairSample, rows: int = 1024) -> None:
    """The same with dense codes, made block by block."""
    for chunk in sample:
        for start in range(0, len(chunk.x), rows):
            chunk.old[start : start + rows].dense() @ sample.pair.reference.W_dec
            chunk.new[start : start + rows].dense() @ sample.pair.sae.W_dec


def brute_force(sample: PairSample, steps: int) -> None:
    """The first steps of the path, each SAE on the way decoded in full, sparsely."""
    theta_pair = similarity(sample.pair.sae.W_dec, sample.pair.reference.W_dec, 0.7)
    parts = components(theta_pair.edges, sample.pair.reference.d_sae, sample.pair.sae.d_sae)
    order = schedule(parts, theta_pair.max_a)
    for step in range(steps):
        old, new = (torch.from_numpy(kept) for kept in order.after(step))
        for chunk in sample:
            decoded = chunk.old.select(old).decode(sample.pair.reference.W_dec[old])
            decoded += chunk.new.select(new).decode(sample.pair.sae.W_dec[new])
            (chunk.x - decoded).double().square().sum()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--atlas", action="store_true")
    parser.add_argument("--pair", nargs=2, default=["atlas:batchtopk-512", "atlas:batchtopk-1024"])
    parser.add_argument("--brute", action="store_true", help="brute force and dense decode, d 128, 512 -> 1024")
    parser.add_argument("--dense", action="store_true", help="dense decode at this size, once")
    parser.add_argument("--d", type=int, default=768)
    parser.add_argument("--widths", type=int, nargs=2, default=[12288, 24576])
    parser.add_argument("--tokens", type=int, default=65_536)
    parser.add_argument("--l0", type=int, default=43)
    parser.add_argument("--device", default="cpu")
    given = parser.parse_args()
    torch.set_num_threads(1)
    if given.atlas:
        sample = atlas(*given.pair, given.tokens)
    elif given.brute:
        sample = synthetic(128, (512, 1024), 4096, 8, given.device)
    else:
        sample = synthetic(given.d, tuple(given.widths), given.tokens, given.l0, given.device)
    s0, s1 = sample.pair.reference, sample.pair.sae
    nnz = sum(c.old.nnz + c.new.nnz for c in sample)
    print(f"d {sample.d_in}, {s0.d_sae} -> {s1.d_sae}, {sample.n_tokens} tokens, {nnz:,} active, {given.device}")
    found = similarity(s1.W_dec, s0.W_dec, 0.7)
    parts = components(found.edges, s0.d_sae, s1.d_sae)
    order = schedule(parts, found.max_a)
    print(f"{int((found.max_a <= 0.7).sum())} novel, {parts.n} components, {order.steps} steps")
    base = seconds(lambda: decode_both(sample), given.device)
    print(f"{'sparse decode of both':34}{base:9.3f} s   1.00 x")
    rows: list[tuple[str, Callable[[], object], int]] = [
        ("ΔMSE of all latents (additions)", lambda: additions(sample), 3),
        ("path, every step (walk)", lambda: walk(sample, [order]), 3),
        ("every swap alone (swaps)", lambda: swaps(sample, parts), 3),
        ("cosines, edges (similarity)", lambda: similarity(s1.W_dec, s0.W_dec, 0.7), 1),
    ]
    if given.dense or given.brute:
        rows.append(("dense decode of both", lambda: decode_dense(sample), 1))
    if given.brute:
        rows.append(("brute force, every step", lambda: brute_force(sample, order.steps + 1), 1))
    for what, run, repeats in rows:
        taken = seconds(run, given.device, repeats)
        print(f"{what:34}{taken:9.3f} s {taken / base:6.2f} x")


if __name__ == "__main__":
    main()
