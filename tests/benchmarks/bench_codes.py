"""Sparse codes against the dense products they replace, one thread, all in one run: read the ratios, not the times.

`ratio` is the dense time over the sparse time; above 1 the sparse operation wins. The dense operation beside making the
codes is the encoder's product, which has to be done in any case: there the ratio says how little the step adds.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from saebench_meta.active import active_codes
from saebench_meta.codes import Codes


@dataclass(frozen=True)
class Row:
    operation: str
    sparse: Callable[[], object]
    against: str
    dense: Callable[[], object]


def best_of(function: Callable[[], object], repeats: int) -> float:
    """Seconds of the fastest call: what else the machine does only ever adds."""
    times = []
    for _ in range(repeats):
        begin = time.perf_counter()
        function()
        times.append(time.perf_counter() - begin)
    return min(times)


def random_codes(tokens: int, latents: int, active: int) -> Tensor:
    """A dense matrix with `active` positive values a token, at random places."""
    g = torch.Generator().manual_seed(0)
    f = torch.zeros(tokens, latents)
    places = torch.randint(latents, (tokens, active), generator=g)
    return f.scatter_(1, places, torch.rand(tokens, active, generator=g) + 0.1)


def rows(tokens: int, d_in: int, d_sae: int, active: int) -> list[Row]:
    f = random_codes(tokens, d_sae, active)
    x, W_enc, W_dec = torch.randn(tokens, d_in), torch.randn(d_in, d_sae), torch.randn(d_sae, d_in)
    documents = torch.arange(tokens) // 128
    n_docs = int(documents.max()) + 1
    membership = torch.nn.functional.one_hot(documents, n_docs).T.float() / 128
    codes = Codes.from_dense(f)
    _ = codes.by_latent
    chosen = torch.randperm(d_sae)[:1000]
    pre = torch.randn(tokens, d_sae)
    threshold = pre[0].topk(active).values[-1].expand(d_sae)
    return [
        Row("active, topk", lambda: active_codes(pre, "topk", k=active), "pre.topk(k)", lambda: pre.topk(active)),
        Row(
            "active, jumprelu",
            lambda: active_codes(pre, "jumprelu", threshold=threshold),
            "pre * (pre > threshold)",
            lambda: pre * (pre > threshold),
        ),
        Row("from_dense", lambda: Codes.from_dense(f), "x @ W_enc", lambda: x @ W_enc),
        Row("decode", lambda: codes.decode(W_dec), "f @ W_dec", lambda: f @ W_dec),
        # `replace` makes an object without the columns-first view that `codes` keeps.
        Row("t_matmul, first", lambda: replace(codes).t_matmul(x), "f.T @ x", lambda: f.T @ x),
        Row("t_matmul, again", lambda: codes.t_matmul(x), "f.T @ x", lambda: f.T @ x),
        Row("pool", lambda: codes.pool(documents, n_docs), "membership @ f", lambda: membership @ f),
        Row("select 1000", lambda: codes.select(chosen), "f[:, chosen]", lambda: f[:, chosen]),
        Row("counts", codes.counts, "(f != 0).sum(0)", lambda: (f != 0).sum(0)),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("tokens", 4096), ("d-in", 768), ("d-sae", 12288), ("active", 32), ("repeats", 2)):
        parser.add_argument(f"--{name}", type=int, default=default)
    a = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{a.tokens} tokens, d_in {a.d_in}, d_sae {a.d_sae}, {a.active} active, float32, best of {a.repeats}\n")
    print("| operation | ms | dense | ms | ratio |\n|---|---|---|---|---|")
    for row in rows(a.tokens, a.d_in, a.d_sae, a.active):
        sparse, dense = best_of(row.sparse, a.repeats), best_of(row.dense, a.repeats)
        print(f"| {row.operation} | {sparse * 1e3:.1f} | {row.against} | {dense * 1e3:.1f} | {dense / sparse:.1f} |")


if __name__ == "__main__":
    main()
