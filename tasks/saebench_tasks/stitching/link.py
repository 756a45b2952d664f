"""The way from one SAE to another: which latents belong together, the path, and what it comes to in each document.

A link is worked out once for a pair: the chain of a family takes up what the pair's own task has found.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from saebench_meta.errors import SaebenchError
from saebench_meta.stitching import (
    LEFTOVER,
    NOVEL,
    Components,
    PairSample,
    Path,
    Schedule,
    check_same_space,
    components,
    schedule,
    walk,
)

if TYPE_CHECKING:
    import numpy as np
    from jaxtyping import Bool, Float
    from torch import Tensor

    from saebench_meta.codes import Codes
    from saebench_meta.context import Context
    from saebench_meta.geometry import Similarity
    from saebench_meta.sae import SAE
    from saebench_meta.task import Pair

    _Part = tuple[Float[Tensor, "tokens d_in"], Float[Tensor, " tokens"]]

ENDS = ("old", "novel", "swapped", "new")
"""Where phases end: S0; with all novel latents; with all components swapped; S1."""
RELATIVE = 1e-6
"""How far the path may end from S1 as measured by itself."""
SQUARES = 1e-12
"""The same as a share of Σ‖x‖², where the error is nearly nothing."""


@dataclass(frozen=True, eq=False)
class Link:
    """One pair, in arrays only.

    Attributes:
        similarity: of the decoder rows of S1 (a) and of S0 (b).
        parts: connected components.
        schedule, path: in the order of cosines.
        documents: sums over each document: `tokens`, `elements`, and `sse_*`, `active_*` at each of `ENDS`.
    """

    similarity: Similarity
    parts: Components
    schedule: Schedule
    path: Path
    documents: Mapping[str, Float[np.ndarray, " docs"]]


def link(pair: Pair, ctx: Context, theta: float, task: str) -> Link:
    """The way from `pair.reference` to `pair.sae`; found again where a task of this run has walked it on this sample.

    Raises:
        SaebenchError: theta is no cosine, or the SAEs do not live in one space.
    """
    if not -1 <= theta <= 1:
        raise SaebenchError(f"{task}.threshold is {theta}: a cosine lies between -1 and 1")
    check_same_space(task, pair.sae, pair.reference)
    weights = weights_of(pair.reference), weights_of(pair.sae)
    if None in weights:
        return _link(pair, ctx, theta)
    return ctx.memo(("stitching link", *weights, theta), lambda: _link(pair, ctx, theta))


def weights_of(sae: SAE) -> str | None:
    """What tells an SAE from others; None where a foreign encoder hides its weights."""
    try:
        return sae.content_hash()
    except ValueError:
        return None


def _link(pair: Pair, ctx: Context, theta: float) -> Link:
    from saebench_meta.geometry import similarity

    sample = PairSample(pair, ctx)
    found = similarity(pair.sae.W_dec, pair.reference.W_dec, theta)
    parts = components(found.edges, pair.reference.d_sae, pair.sae.d_sae)
    steps = schedule(parts, found.max_a)
    (path,) = walk(sample, [steps])
    documents, squares = at_ends(sample, parts)
    check_ends(pair.sae, path, documents, squares)
    return Link(found, parts, steps, path, documents)


def phase_ends(steps: Schedule) -> dict[str, int]:
    """How many steps are done at each of `ENDS`."""
    novel, leftover = int((steps.phase == NOVEL).sum()), int((steps.phase == LEFTOVER).sum())
    return dict(zip(ENDS, (0, novel, steps.steps - leftover, steps.steps), strict=True))


def at_ends(sample: PairSample, parts: Components) -> tuple[dict[str, np.ndarray], float]:
    """Sums over each document where phases end, decoded in float64 and apart from the path; and Σ‖x‖².

    Every latent is in one of four sets: of S0 swapped or left over, of S1 novel or swapped. A document without tokens
    has NaN.
    """
    import numpy as np
    import torch

    s0, s1 = sample.pair.reference, sample.pair.sae
    W0, W1 = s0.W_dec.double(), s1.W_dec.double()
    b0, b1 = s0.b_dec.double(), s1.b_dec.double()
    left, novel = (torch.from_numpy(c < 0).to(s0.device) for c in (parts.old, parts.new))
    n_left, n_novel = int(left.sum()), int(novel.sum())
    alpha = (1.0, s0.d_sae / (s0.d_sae + n_novel), n_left / (n_left + s1.d_sae), 0.0)
    names = ("tokens", *(f"{what}_{end}" for end in ENDS for what in ("sse", "active")))
    sums = {name: torch.zeros(sample.n_docs, dtype=torch.float64) for name in names}
    squares = 0.0
    for chunk in sample:
        x, scale = chunk.x.double(), 1.0 if chunk.scale is None else chunk.scale.double()[:, None]
        out, stay = _split(chunk.old, left, W0)
        into, enter = _split(chunk.new, novel, W1)
        whole = ((out, stay), (out, stay, enter), (stay, enter, into), (enter, into))
        document = chunk.document.cpu().long()
        sums["tokens"].index_add_(0, document, torch.ones(len(x), dtype=torch.float64))
        squares += float(x.square().sum())
        for end, sets, share in zip(ENDS, whole, alpha, strict=True):
            x_hat = sum((decoded for decoded, _ in sets), scale * (share * b0 + (1 - share) * b1))
            sums[f"sse_{end}"].index_add_(0, document, (x - x_hat).square().sum(1).cpu())
            for _, active in sets:
                sums[f"active_{end}"].index_add_(0, document, active.cpu())
    columns = {name: column.numpy() for name, column in sums.items()}
    measured = columns["tokens"] > 0
    columns["elements"] = columns["tokens"] * sample.d_in
    return {name: np.where(measured, column, np.nan) for name, column in columns.items()}, squares


def _split(codes: Codes, chosen: Bool[Tensor, " latents"], W: Tensor) -> tuple[_Part, _Part]:
    """What the latents that are not chosen add to each token's reconstruction and L0, and what the chosen do."""
    import torch

    inside = chosen[codes.cols.long()]
    values = codes.values.double()
    parts = []
    for keep in (~inside, inside):
        active = torch.zeros(codes.n_tokens, dtype=torch.float64, device=values.device)
        active.index_add_(0, codes.rows, keep.double())
        parts.append((replace(codes, values=values * keep).decode(W), active))
    return parts[0], parts[1]


def check_ends(sae: SAE, path: Path, documents: Mapping[str, np.ndarray], squares: float) -> None:
    """The path starts at S0 and ends at S1, in error and in L0.

    Raises:
        ArithmeticError: it does not.
    """
    import numpy as np
    import torch

    relative = max(RELATIVE, torch.finfo(sae.dtype).eps)
    for end, at in (("old", 0), ("new", -1)):
        sse, active = (float(np.nansum(documents[f"{what}_{end}"])) for what in ("sse", "active"))
        if abs(path.sse[at] - sse) > relative * sse + SQUARES * squares or path.active[at] != active:
            raise ArithmeticError(
                f"the path has squared error {path.sse[at]:.9g} and {path.active[at]} active latents where the SAE "
                f"itself has {sse:.9g} and {active:.0f}: please report this as a bug"
            )


def whole_points(steps: Schedule) -> Bool[np.ndarray, " points"]:
    """Whether no component is half swapped, for every number of steps done."""
    import numpy as np

    whole = np.zeros(steps.steps + 1, dtype=bool)
    whole[steps.whole()] = True
    return whole
