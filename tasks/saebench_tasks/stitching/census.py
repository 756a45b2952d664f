"""The components as they are: their kinds and sizes, and which tokens the latents of some of them are active on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from saebench_meta.passages import quoting
from saebench_meta.task import Table

if TYPE_CHECKING:
    from collections.abc import Mapping

    from jaxtyping import Float, Int
    from scipy.sparse import csc_array

    from saebench_meta.context import Context
    from saebench_meta.geometry import Edges
    from saebench_meta.stats import Estimate
    from saebench_meta.stitching import Components, PairSample
    from saebench_tasks.stitching.link import Link

KINDS = {"one_to_one": "1→1", "splits": "1→n", "merges": "n→1", "compositions": "n→m"}
"""Metric -> kind: latents of S0 on the left, of S1 on the right."""
SHOWN = 6
"""Latents of a component and side that the table of examples names."""
EACH = 3
"""Tokens shown of a latent."""


def kinds(parts: Components) -> np.ndarray:
    """The kind of every component, as text."""
    several = 2 * (parts.n_old > 1) + (parts.n_new > 1)
    return np.take(np.array(list(KINDS.values()), dtype=object), several)


def estimates(link: Link, ctx: Context) -> dict[str, Estimate]:
    """How many latents are novel, left over or in components, and of what kinds these are."""
    parts, kind = link.parts, kinds(link.parts)
    none = None if parts.n else "no two latents have a cosine above theta"
    sizes = parts.n_old + parts.n_new
    shares = {
        name: ctx.census(float((kind == text).mean()) if parts.n else None, parts.n, n_unit="components", reason=none)
        for name, text in KINDS.items()
    }
    largest = float(sizes.max() / sizes.sum()) if parts.n else None
    return {
        "novel": ctx.census(int((parts.new < 0).sum()), len(parts.new)),
        "leftovers": ctx.census(int((parts.old < 0).sum()), len(parts.old)),
        "components": ctx.census(parts.n, parts.n, n_unit="components"),
        **shares,
        "largest_share": ctx.census(largest, int(sizes.sum()), reason=none),
    }


def summary(parts: Components) -> Table:
    """One row a kind."""
    kind = kinds(parts)
    rows = [
        {
            "kind": text,
            "components": int((kind == text).sum()),
            "latents_S0": int(parts.n_old[kind == text].sum()),
            "latents_S1": int(parts.n_new[kind == text].sum()),
            "largest": int((parts.n_old + parts.n_new)[kind == text].max(initial=0)),
        }
        for text in KINDS.values()
    ]
    alone = {"novel": (0, int((parts.new < 0).sum())), "leftover": (int((parts.old < 0).sum()), 0)}
    for text, (n_old, n_new) in alone.items():
        rows.append({"kind": text, "components": 0, "latents_S0": n_old, "latents_S1": n_new, "largest": 0})
    return Table(
        "Census of components",
        pd.DataFrame(rows),
        "Latents of the reference (S0) on the left of the arrow, of this SAE (S1) on the right.",
    )


def chosen(parts: Components, n: int) -> list[int]:
    """The n components of each kind with the highest mean cosine."""
    order, kind = np.argsort(-parts.mean_cosine, kind="stable"), kinds(parts)
    return [int(c) for text in KINDS.values() for c in order[kind[order] == text][:n]]


def members(parts: Components, components: list[int]) -> tuple[Int[np.ndarray, " old"], Int[np.ndarray, " new"]]:
    """Latents of S0 and of S1 that the examples name."""
    sides = zip(*(parts.members(c) for c in components), strict=True) if components else ([], [])
    old, new = (np.unique(np.concatenate([np.zeros(0, int), *(m[:SHOWN] for m in side)])) for side in sides)
    return old, new


def firings(
    sample: PairSample, old: Int[np.ndarray, " old"], new: Int[np.ndarray, " new"]
) -> tuple[csc_array, csc_array]:
    """Activations of some latents of S0 and of S1, (tokens, latents) each, in one pass."""
    import torch
    from scipy.sparse import csc_array, csr_array, vstack

    sides: tuple[list[Any], list[Any]] = ([], [])
    wanted = [torch.from_numpy(latents.astype(np.int64)) for latents in (old, new)]
    for chunk in sample:
        for side, codes, latents in zip(sides, (chunk.old, chunk.new), wanted, strict=True):
            few = codes.select(latents.to(codes.device)).to("cpu")
            values, cols, indptr = few.values.float().numpy(), few.cols.numpy(), few.indptr.numpy()
            side.append(csr_array((values, cols, indptr), shape=(few.n_tokens, few.n_latents)))
    first, second = (csc_array(vstack(side)) for side in sides)
    return first, second


def examples(
    link: Link,
    components: list[int],
    of_old: Mapping[int, csc_array],
    of_new: Mapping[int, csc_array],
    ctx: Context,
) -> Table:
    """One row a latent of the chosen components."""
    text, kind = quoting(ctx), kinds(link.parts)
    rows = []
    for c in components:
        for side, latents, found in zip(("S0", "S1"), link.parts.members(c), (of_old, of_new), strict=True):
            for latent in latents[:SHOWN].tolist():
                column = found[latent]
                top = np.argsort(-column.data, kind="stable")[:EACH]
                rows.append(
                    {
                        "component": c,
                        "kind": kind[c],
                        "side": side,
                        "latent": latent,
                        "of": len(latents),
                        "cosine": _best(link.similarity.edges, latent, side),
                        "active": column.nnz,
                        "top": " | ".join(text(int(column.indices[i]))["text"] for i in top),
                    }
                )
    return Table(
        "Examples of components",
        pd.DataFrame(rows),
        f"The components with the highest mean cosine of each kind, at most {SHOWN} latents a side (`of`: how many "
        "there are). cosine: the highest with a latent of the other side. active: tokens. top: the tokens of highest "
        "activation between « ». This file quotes the corpus.",
    )


def _best(edges: Edges, latent: int, side: str) -> float:
    own = edges.b if side == "S0" else edges.a
    return float(edges.cosine[own == latent].max())


def bias(link_of: tuple[Float[np.ndarray, " d_in"], Float[np.ndarray, " d_in"]], ctx: Context) -> dict[str, Estimate]:
    """How far the decoder biases of S0 and S1 are from each other."""
    b0, b1 = link_of
    norm0, norm1 = float(np.linalg.norm(b0)), float(np.linalg.norm(b1))
    n, none = len(b0), "a decoder bias is zero"
    cosine = float(b0 @ b1) / (norm0 * norm1) if norm0 and norm1 else None
    magnitude = abs(norm1 - norm0) / norm0 if norm0 else None
    return {
        "b_dec_cosine": ctx.census(cosine, n, n_unit="dimensions", reason=None if cosine is not None else none),
        "b_dec_magnitude": ctx.census(magnitude, n, n_unit="dimensions", reason=None if norm0 else none),
    }
