"""From SAEs of several widths to one dictionary, stage by stage, and its decoder trained anew."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING, Any

from saebench_meta.errors import SaebenchError, did_you_mean

if TYPE_CHECKING:
    import numpy as np
    from jaxtyping import Float, Int
    from torch import Tensor

    from saebench_meta.context import Context
    from saebench_meta.sae import SAE, SAEInfo
    from saebench_meta.training.recipe import Recipe

TASK = "frankenstein"
RETRAINED = ("last", "all", "none")


@dataclass(frozen=True, eq=False)
class Stage:
    """The dictionary after so many members.

    Attributes:
        sae: stitched of the members' latents, one member's after the other, with b = Σ n_i b_i / Σ n_i.
        chosen: of each member so far, which latents it gave, ascending.
    """

    sae: SAE
    chosen: tuple[Int[np.ndarray, " chosen"], ...]

    def split(self, values: Tensor) -> tuple[Tensor, ...]:
        """One value, or row, a latent, by the member that gave it."""
        import torch

        return torch.split(values, [len(c) for c in self.chosen])


def stages(members: Sequence[SAE], theta: float) -> list[Stage]:
    """A stage for every member but the first: it adds its latents with max cosine < theta to all before.

    Latents of one member are compared with the dictionary before it, not with each other.

    Args:
        members: from the narrowest to the widest; the first is taken whole.

    Raises:
        SaebenchError: the SAEs do not share site, width and input transform.
    """
    import numpy as np

    from saebench_meta.geometry import max_cosine
    from saebench_meta.stitching import check_same_space
    from saebench_meta.stitching.stitched import stitch

    first, *others = members
    made: list[Stage] = []
    chosen: tuple[Int[np.ndarray, " chosen"], ...] = (np.arange(first.d_sae),)
    rows = first.W_dec
    for i, member in enumerate(others, 1):
        check_same_space(TASK, member, first)
        cosine = max_cosine(member.W_dec, rows)[0].cpu().numpy()
        chosen = (*chosen, np.flatnonzero(cosine < theta))
        sae = stitch(list(zip(members[: i + 1], chosen, strict=True)), name=f"{TASK}-{sum(map(len, chosen))}")
        made.append(Stage(sae, chosen))
        rows = sae.W_dec
    return made


def which_retrained(n_stages: int, retrain: str) -> range:
    """Numbers of the stages whose decoder is trained anew.

    Raises:
        SaebenchError: `retrain` is none of `RETRAINED`.
    """
    if retrain not in RETRAINED:
        raise SaebenchError(
            f"{TASK}.retrain is '{retrain}'{did_you_mean(retrain, list(RETRAINED))}: give {', '.join(RETRAINED)}"
        )
    return {"last": range(n_stages - 1, n_stages), "all": range(n_stages), "none": range(0)}[retrain]


def trains(
    infos: tuple[SAEInfo, ...], parameters: Mapping[str, Any], recipe: Callable[..., Recipe]
) -> Sequence[Recipe]:
    """A decoder for every stage that is retrained, as wide as the stage would be if no latent were left out."""
    widths = list(accumulate(sorted(info.d_sae for info in infos)))[1:]
    which = which_retrained(len(widths), parameters["retrain"])
    return [recipe("decoder", d_sae=widths[i], tokens=parameters["tokens"]) for i in which]


def retrained(made: Sequence[Stage], retrain: str, ctx: Context) -> dict[int, SAE]:
    """By number of the stage, it with its decoder trained anew."""
    which = which_retrained(len(made), retrain)
    trained: dict[int, SAE] = {}
    for i, recipe in zip(which, ctx.recipes, strict=True):
        start = made[i].sae
        trained[i] = ctx.train(recipe.model_copy(update={"d_sae": start.d_sae}), start=start)
    return trained


def moved(stage: Stage, sae: SAE) -> Iterator[Float[np.ndarray, " chosen"]]:
    """Cosine of each retrained decoder row with the row it began as, by the member that gave it."""
    from torch.nn.functional import cosine_similarity

    cosine = cosine_similarity(sae.W_dec.double(), stage.sae.W_dec.to(sae.device).double(), dim=1)
    for part in stage.split(cosine):
        yield part.cpu().numpy()


def nearest(sizes: Sequence[float], size: float) -> int:
    """The number of the size nearest to `size` by ratio; the first of equally near ones."""
    distances = [abs(math.log(max(s, 1e-12) / max(size, 1e-12))) for s in sizes]
    return distances.index(min(distances))
