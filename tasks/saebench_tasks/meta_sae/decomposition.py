"""Latents as sums of meta-latents: all of them, and some beside the nearest latents of SAEs (meta-SAE post)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from saebench_meta.errors import SaebenchError
from saebench_meta.geometry import max_cosine

if TYPE_CHECKING:
    from jaxtyping import Float, Int
    from torch import Tensor

    from saebench_meta.codes import Codes
    from saebench_meta.context import Context
    from saebench_meta.sae import SAE
    from saebench_tasks.meta_sae.build import Trained
    from saebench_tasks.meta_sae.rows import Rows

NEAREST = 5
"""Nearest latents shown beside the meta-latents of a latent, as in the post."""
TOP = 20
"""Latents named for each meta-latent."""
SHOWN = 3
"""Latents looked at closely where the user names none and gives no `--limit`."""
BLOCK = 4096


@dataclass(frozen=True, eq=False)
class Decomposed:
    """All rows by one meta-SAE.

    Attributes:
        pairs: as from `decomposition`.
        counts: active meta-latents of each row.
        live: decoder rows of meta-latents that are active on some row; the others were not learned from any.
    """

    sae: SAE
    codes: Codes
    pairs: pd.DataFrame
    counts: Int[np.ndarray, " rows"]
    live: Float[Tensor, "live d_in"]

    def top(self) -> pd.DataFrame:
        return top_latents(self.pairs, self.sae.d_sae)


def decomposed(rows: Rows, trained: Trained) -> Decomposed:
    """By the inference threshold."""
    codes = trained.sae.encode_sparse(rows.x)
    live = trained.sae.W_dec[codes.counts() > 0]
    return Decomposed(trained.sae, codes, decomposition(rows, codes), codes.l0().cpu().numpy(), live)


def decomposition(rows: Rows, codes: Codes) -> pd.DataFrame:
    """All pairs of a latent and a meta-latent active on it, the strongest of each latent first.

    Columns `member`, `latent`, `meta_latent`, `activation`.
    """
    row = codes.rows.cpu().numpy()
    columns = {
        "member": rows.member[row],
        "latent": rows.latent[row],
        "meta_latent": codes.cols.long().cpu().numpy(),
        "activation": codes.values.double().cpu().numpy(),
    }
    order = ["member", "latent", "activation", "meta_latent"]
    return pd.DataFrame(columns).sort_values(order, ascending=[True, True, False, True], ignore_index=True)


def top_latents(pairs: pd.DataFrame, n_meta: int) -> pd.DataFrame:
    """A row a meta-latent: `meta_latent`, `latents` (on how many it is active), `top` (those it is strongest on)."""
    strongest = pairs.sort_values(["meta_latent", "activation", "latent"], ascending=[True, False, True])
    top = strongest.groupby("meta_latent")["latent"].agg(lambda latents: " ".join(map(str, latents[:TOP])))
    counts = np.bincount(pairs["meta_latent"], minlength=n_meta)
    every = range(n_meta)
    return pd.DataFrame({"meta_latent": every, "latents": counts, "top": top.reindex(every, fill_value="")})


def within(W: Float[Tensor, "rows d_in"]) -> Float[np.ndarray, " rows"]:
    """Largest cosine of every row with another row; empty where there is no other."""
    import torch
    from torch.nn.functional import normalize

    if len(W) < 2:
        return np.zeros(0)
    unit = normalize(W.double(), dim=1)
    best = []
    for start in range(0, len(unit), BLOCK):
        cosine = unit[start : start + BLOCK] @ unit.T
        cosine.diagonal(start).fill_(-torch.inf)
        best.append(cosine.amax(1))
    return torch.cat(best).clamp(-1, 1).cpu().numpy()


def largest(W: Float[Tensor, "rows d_in"], others: Float[Tensor, "latents d_in"]) -> Float[np.ndarray, " rows"]:
    """Largest cosine of every row with a row of others."""
    return max_cosine(W, others)[0].cpu().numpy() if len(W) else np.zeros(0)


def chosen_latents(asked: Sequence[object], rows: Rows, ctx: Context) -> list[int]:
    """Latents to look at closely: those named, or a few drawn.

    Raises:
        SaebenchError: one is no latent of the SAE.
    """
    known = {int(i) for i in rows.latent}
    if not asked:
        drawn = ctx.rng("latents shown").choice(sorted(known), min(ctx.limit or SHOWN, len(known)), replace=False)
        return sorted(int(i) for i in drawn)
    numbers = [int(text) if (text := str(a)).isdecimal() else -1 for a in asked]
    for given, number in zip(asked, numbers, strict=True):
        if number not in known:
            raise SaebenchError(f"latents: '{given}' is no latent with a direction: give numbers up to {max(known)}")
    return numbers


def beside(
    latents: Sequence[int], pairs: pd.DataFrame, meta: SAE, sae: SAE, others: Mapping[str, SAE]
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The meta-latents of some latents beside the nearest latents of dictionaries, itself left out.

    Args:
        pairs: as from `decomposition`, of this SAE alone.
        others: dictionaries by name, `sae` itself among them or not.

    Returns:
        A row a latent and rank: `latent`, `rank`, `meta_latent`, `activation`, `meta_cosine` and for every dictionary
        its latent and cosine; and the cosines of meta-latents with those latents, a row a pair.
    """
    frames, cells = [], []
    for latent in latents:
        own = pairs[pairs["latent"] == latent].reset_index(drop=True)
        meta_latents = own["meta_latent"].to_numpy(copy=True)
        row, directions = sae.unit_decoder()[latent].double(), meta.unit_decoder()[meta_latents].double()
        columns = {
            "meta_latent": pd.Series(meta_latents),
            "activation": own["activation"],
            "meta_cosine": pd.Series((directions @ row).cpu().numpy()),
        }
        for name, other in others.items():
            unit = other.unit_decoder().double()
            near, cosine = nearest_rows(unit, row, latent if other is sae else None)
            columns |= {f"{name}_latent": pd.Series(near), f"{name}_cosine": pd.Series(cosine)}
            against = (directions @ unit[near].T).cpu().numpy()
            cells += [
                {"latent": latent, "meta_latent": str(m), "nearest": f"{name} {n}", "cosine": against[i, j]}
                for i, m in enumerate(meta_latents)
                for j, n in enumerate(near)
            ]
        frame = pd.DataFrame(columns)
        frame = frame.astype({c: "Int64" for c in frame if str(c).endswith("latent")})
        frame.insert(0, "latent", latent)
        frame.insert(1, "rank", range(1, len(frame) + 1))
        frames.append(frame)
    return pd.concat(frames, ignore_index=True), pd.DataFrame(
        cells, columns=["latent", "meta_latent", "nearest", "cosine"]
    )


def nearest_rows(
    unit: Float[Tensor, "latents d_in"], row: Float[Tensor, " d_in"], leave_out: int | None
) -> tuple[Int[np.ndarray, " nearest"], Float[np.ndarray, " nearest"]]:
    """The rows nearest to a direction, nearest first, and their cosines."""
    import torch

    cosine = unit @ row
    if leave_out is not None:
        cosine[leave_out] = -torch.inf
    top = cosine.topk(min(NEAREST, len(unit) - (leave_out is not None)))
    return top.indices.cpu().numpy(), top.values.clamp(-1, 1).cpu().numpy()
