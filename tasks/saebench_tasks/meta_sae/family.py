"""One meta-SAE for a whole family: how meta-latents per latent change with width, and what split latents are made of.

A latent i of one SAE is split when two or more latents j of one of the next wider SAEs have cos(w_i, w_j) > theta
(meta-SAE post, "Using Meta-SAEs to Interpret Split Features").
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise, product
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from saebench_meta.geometry import similarity
from saebench_meta.task import Output
from saebench_tasks.meta_sae import build, decomposition, estimates, shown
from saebench_tasks.meta_sae.rows import OWN, Rows, unit_rows

if TYPE_CHECKING:
    from jaxtyping import Float, Int

    from saebench_meta.codes import Codes
    from saebench_meta.context import Context
    from saebench_meta.sae import SAE
    from saebench_meta.stats import Estimate


def output(members: Sequence[SAE], ctx: Context, held_out: float, theta: float) -> Output:
    """Everything that `meta_sae_family` gives.

    Args:
        members: from the narrowest to the widest.
        held_out: share of the rows.
        theta: cosine above which latents belong together.
    """
    rows = unit_rows(members, held_out, ctx.seed)
    main = build.train(rows, ctx, build.Setting(OWN, 1.0, 0), ctx.recipes[0])
    made = decomposition.decomposed(rows, main)
    names = [f"{sae.info.name} ({i})" for i, sae in enumerate(members, 1)]
    by_member = {name: made.counts[rows.member == m] for m, name in enumerate(names)}
    pairs = splits(members, rows, made.codes, theta)
    cosines = {f"with {n}": decomposition.largest(made.live, s.W_dec) for n, s in zip(names, members, strict=True)}
    drawn = [shown.max_cosines({**cosines, "with each other": decomposition.within(made.live)})]
    renamed = made.pairs.assign(member=[names[m] for m in made.pairs["member"]]).rename(columns={"member": "sae"})
    return Output(
        estimates={
            **estimates.of_main(main, ctx),
            "per_latent_narrowest": estimates.mean(by_member[names[0]], "it has no latent with a direction", ctx),
            "per_latent_widest": estimates.mean(by_member[names[-1]], "it has no latent with a direction", ctx),
            **of_splits(pairs, ctx),
        },
        tables={
            **shown.decomposition_tables(renamed, made.top()),
            **shown.family_tables(per_width(members, rows, made.codes, names), named_splits(pairs, made.pairs, names)),
            **shown.tables(drawn),
        },
        figures={"per_latent": shown.per_latent(by_member), **shown.figures(drawn)},
        saes={"meta_sae_family": made.sae},
        notes=shown.notes(members, rows, main),
    )


def of_splits(pairs: pd.DataFrame, ctx: Context) -> dict[str, Estimate]:
    """How many latents split, and what they have in common with those they split into."""
    none, some = "no latent splits at this threshold", pairs.dropna(subset="kept")
    return {
        "split_latents": ctx.census(len(pairs.drop_duplicates(["member", "latent"])), len(pairs), n_unit="pairs"),
        "split_kept": estimates.mean(some["kept"].to_numpy(), none, ctx, n_unit="pairs"),
        "split_kept_chance": estimates.mean(some["chance"].to_numpy(), none, ctx, n_unit="pairs"),
        "split_added": estimates.mean(pairs["added"].to_numpy(), none, ctx, n_unit="pairs"),
    }


def per_width(saes: Sequence[SAE], rows: Rows, codes: Codes, names: Sequence[str]) -> pd.DataFrame:
    """A row a member: how many meta-latents its latents have."""
    counts = pd.DataFrame({"member": rows.member, "n": codes.l0().cpu().numpy()})
    by_member = counts.groupby("member")["n"]
    found = pd.DataFrame(
        {
            "meta_latents": by_member.mean(),
            "with_none": by_member.agg(lambda n: (n == 0).mean()),
            "with_one": by_member.agg(lambda n: (n == 1).mean()),
        }
    ).reindex(range(len(saes)))
    found.insert(0, "sae", list(names))
    found.insert(1, "latents", [sae.d_sae for sae in saes])
    return found


def splits(saes: Sequence[SAE], rows: Rows, codes: Codes, theta: float) -> pd.DataFrame:
    """A row a split latent and one that it split into.

    Columns: `member`, `latent`, `wider` (member), `split_into` (latent), `cosine`; `row` and `row_into`, their places
    in `rows`; `kept`, the share of the first's meta-latents that are active on the second, NaN where it has none;
    `chance`, what that is on average for a random latent of the wider SAE; `added`, meta-latents of the second alone.
    """
    pairs = pd.concat([_split_pairs(saes, *members, theta) for members in _steps(saes)] or [_NO_PAIRS])
    places = [_places(rows, m, sae.d_sae) for m, sae in enumerate(saes)]
    for latent, member, row in (("latent", "member", "row"), ("split_into", "wider", "row_into")):
        pairs[row] = np.array([places[m][i] for m, i in zip(pairs[member], pairs[latent], strict=True)], dtype=np.int64)
    return pairs.assign(**_in_common(pairs, rows, codes)).reset_index(drop=True)


_NO_PAIRS = pd.DataFrame({name: np.zeros(0, dtype=np.int64) for name in ("member", "latent", "wider", "split_into")})
_NO_PAIRS["cosine"] = np.zeros(0)


def _steps(saes: Sequence[SAE]) -> list[tuple[int, int]]:
    """Members, each with every member of the next width."""
    widths = [sae.d_sae for sae in saes]
    return [
        (a, b)
        for narrow, wide in pairwise(sorted(set(widths)))
        for a, b in product(range(len(saes)), repeat=2)
        if (widths[a], widths[b]) == (narrow, wide)
    ]


def _split_pairs(saes: Sequence[SAE], member: int, wider: int, theta: float) -> pd.DataFrame:
    edges = similarity(saes[member].W_dec, saes[wider].W_dec, theta).edges
    several = np.bincount(edges.a, minlength=saes[member].d_sae)[edges.a] > 1
    columns: dict[str, Any] = {
        "member": member,
        "latent": edges.a[several],
        "wider": wider,
        "split_into": edges.b[several],
        "cosine": edges.cosine[several],
    }
    return pd.DataFrame(columns)


def _places(rows: Rows, member: int, d_sae: int) -> Int[np.ndarray, " d_sae"]:
    """Where each latent of a member stands among the rows."""
    own = np.flatnonzero(rows.member == member)
    places = np.full(d_sae, -1, dtype=np.int64)
    places[rows.latent[own]] = own
    return places


def _in_common(pairs: pd.DataFrame, rows: Rows, codes: Codes) -> dict[str, Float[np.ndarray, " pairs"]]:
    from scipy import sparse

    entries = (np.ones(codes.nnz), codes.cols.cpu().numpy(), codes.indptr.cpu().numpy())
    active = sparse.csr_array(entries, shape=(codes.n_tokens, codes.n_latents))
    first, second = active[pairs["row"].to_numpy()], active[pairs["row_into"].to_numpy()]
    n_first, n_second = (np.diff(a.indptr).astype(float) for a in (first, second))
    shared = np.asarray(first.multiply(second).sum(axis=1)).reshape(-1)
    expected = np.zeros(len(pairs))
    for wider in pairs["wider"].unique():
        here = (pairs["wider"] == wider).to_numpy()
        density = np.asarray(active[np.flatnonzero(rows.member == wider)].mean(axis=0)).reshape(-1)
        expected[here] = first[np.flatnonzero(here)] @ density
    with np.errstate(invalid="ignore", divide="ignore"):
        return {"kept": shared / n_first, "chance": expected / n_first, "added": n_second - shared}


def named_splits(pairs: pd.DataFrame, decomposed: pd.DataFrame, names: Sequence[str]) -> pd.DataFrame:
    """For the reader: members by name, and the meta-latents of both, strongest first.

    Args:
        pairs: as from `splits`.
        decomposed: as from `decomposition.decomposition`.
    """
    grouped = decomposed.groupby(["member", "latent"])["meta_latent"]
    of = grouped.agg(lambda found: " ".join(map(str, found))).to_dict()
    both = [
        [of.get(key, "") for key in zip(pairs[m], pairs[i], strict=True)]
        for m, i in (("member", "latent"), ("wider", "split_into"))
    ]
    columns = {
        "sae": [names[m] for m in pairs["member"]],
        "latent": pairs["latent"],
        "wider": [names[m] for m in pairs["wider"]],
        "split_into": pairs["split_into"],
        "cosine": pairs["cosine"],
        "meta_latents": both[0],
        "meta_latents_into": both[1],
        "kept": pairs["kept"],
        "added": pairs["added"],
    }
    return pd.DataFrame(columns)
