"""Could a smaller SAE have been the meta-SAE? Its latents in place of meta-latents, and the graphs that both make."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from saebench_meta.geometry import max_cosine
from saebench_meta.task import Output, Pair
from saebench_tasks.meta_sae import decomposition, estimates, shown
from saebench_tasks.meta_sae.build import Setting, Trained, main_k, scored, train
from saebench_tasks.meta_sae.graph import NODES, Overlap, overlap
from saebench_tasks.meta_sae.omp import orthogonal_matching_pursuit
from saebench_tasks.meta_sae.rows import OWN, Rows, Squares, squares, unit_rows

if TYPE_CHECKING:
    from torch import Tensor

    from saebench_meta.codes import Codes
    from saebench_meta.context import Context
    from saebench_meta.sae import SAE

SEEN, HELD_OUT = False, True
REFERENCE = "meta-latents with the reference"


def output(pair: Pair, ctx: Context, held_out: float, theta: float, asked: Sequence[object]) -> Output:
    """Everything that `meta_sae_pair` gives.

    Args:
        held_out: share of the rows.
        theta: cosine above which a meta-latent is found in the reference.
        asked: latents to look at closely.
    """
    sae, reference = pair.sae, pair.reference
    rows = unit_rows([sae], held_out, ctx.seed)
    chosen = decomposition.chosen_latents(asked, rows, ctx)
    main, found = compare(rows, reference, ctx)
    made = decomposition.decomposed(rows, main)
    joined = graphs(rows, made.codes, reference, ctx)
    cosines = {
        REFERENCE: decomposition.largest(made.live, reference.W_dec),
        "meta-latents with each other": decomposition.within(made.live),
        "the reference's latents with each other": decomposition.within(reference.W_dec),
        "this SAE's latents with the reference": decomposition.largest(rows.x, reference.W_dec),
    }
    others = {"sae": sae, "reference": reference}
    drawn = [
        shown.max_cosines(cosines),
        shown.examples(*decomposition.beside(chosen, made.pairs, made.sae, sae, others)),
    ]
    alone = None if joined.share is not None else "no two latents share a meta-latent"
    rebuilt = ("replaced", "pursuit", "pursuit_reference")
    return Output(
        estimates={
            **estimates.of_main(main, ctx),
            **{f"held_out_{name}": estimates.of_held_out(found[name].held_out, ctx) for name in rebuilt},
            "found_in_reference": estimates.share_above(cosines[REFERENCE], theta, ctx),
            "graph_overlap": ctx.census(joined.share, joined.nodes, reason=alone),
            "graph_overlap_chance": ctx.census(joined.chance, joined.nodes, reason=alone),
        },
        tables={
            "comparisons": shown.comparisons_table(table(found)),
            "graphs": shown.graph_table(joined),
            **shown.tables(drawn),
        },
        figures=shown.figures(drawn),
        notes=shown.notes([sae], rows, main),
    )


@dataclass(frozen=True, eq=False)
class Comparison:
    """A way of rebuilding rows from few directions.

    Attributes:
        latents: of the dictionary; `distinct` of its directions.
        seen, held_out: errors.
    """

    name: str
    latents: int
    distinct: int
    seen: Squares
    held_out: Squares


def compare(rows: Rows, reference: SAE, ctx: Context) -> tuple[Trained, dict[str, Comparison]]:
    """The meta-SAE, and what else rebuilds the same rows with k directions each, on average or exactly."""
    meta_recipe, encoder_recipe = ctx.recipes
    setting = Setting(OWN, 1.0, 0)
    meta = train(rows, ctx, setting, meta_recipe)
    start, distinct = replaced(meta.sae, reference)
    other = ctx.train(encoder_recipe, rows=rows.part(SEEN), start=start)
    again = scored(other, setting, meta_recipe, rows.part(SEEN), rows.part(HELD_OUT))
    k, d_sae = main_k(meta_recipe), meta.sae.d_sae
    found = {
        "meta": Comparison("meta-SAE", d_sae, d_sae, meta.seen_batch, meta.held_out_batch),
        "replaced": Comparison(
            "nearest latents of the reference, encoder trained anew",
            d_sae,
            distinct,
            again.seen_batch,
            again.held_out_batch,
        ),
        "pursuit": _pursuit("matching pursuit of meta-latents", rows, meta.sae.unit_decoder(), k),
        "pursuit_reference": _pursuit(
            "matching pursuit of the reference's latents", rows, reference.unit_decoder().to(rows.x.device), k
        ),
    }
    return meta, found


def replaced(meta: SAE, reference: SAE) -> tuple[SAE, int]:
    """The meta-SAE with every decoder row replaced by the reference's nearest, and how many of those differ."""
    nearest = max_cosine(meta.W_dec, reference.W_dec)[1]
    directions = reference.unit_decoder()[nearest.to(reference.device)].to(meta.W_dec)
    return replace(meta, W_dec=directions), len(set(nearest.tolist()))


def _pursuit(name: str, rows: Rows, dictionary: Tensor, k: int) -> Comparison:
    """Of rows less the mean of those that the meta-SAE was trained on, as its bias is."""
    mean = rows.part(SEEN).double().mean(0)
    parts = (rows.part(part).double() for part in (SEEN, HELD_OUT))
    errors = [squares(x, mean + orthogonal_matching_pursuit(x - mean, dictionary, k)) for x in parts]
    return Comparison(name, len(dictionary), len(dictionary), *errors)


def table(found: dict[str, Comparison]) -> pd.DataFrame:
    """A row a comparison."""
    return pd.DataFrame(
        [
            {
                "by": c.name,
                "latents": c.latents,
                "distinct": c.distinct,
                "variance_explained": c.seen.explained,
                "held_out": c.held_out.explained,
            }
            for c in found.values()
        ]
    )


def graphs(rows: Rows, codes: Codes, reference: SAE, ctx: Context) -> Overlap:
    """The graph of shared meta-latents against the one through the reference, on at most `NODES` latents."""
    import torch
    from scipy import sparse

    n = len(rows.x)
    nodes = np.arange(n) if n <= NODES else np.sort(ctx.rng("graph").choice(n, NODES, replace=False))
    entries = (np.ones(codes.nnz, dtype=np.float32), codes.cols.cpu().numpy(), codes.indptr.cpu().numpy())
    active = sparse.csr_array(entries, shape=(n, codes.n_latents))[nodes]
    chosen = rows.x[torch.from_numpy(nodes).to(rows.x.device)]
    cosine = (chosen @ reference.unit_decoder().to(chosen).T).cpu().numpy()
    return overlap(active, cosine)
