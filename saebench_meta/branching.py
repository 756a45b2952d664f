"""Going on from a hook with a larger batch than the model came to it with: how many edits of a few prompts are run.

Where the activation at a hook is all that what follows gets, as in the residual stream, what stands before the hook
need not run for every edit. Of other hooks, and of models whose code minds the larger batch, a small trial tells.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jaxtyping import Float, Int
    from torch import Tensor

    from saebench_meta.models import LanguageModel

    Run = Callable[..., Tensor]
    """Tokens, hook, function at the hook, and functions at more hooks -> logits."""

TRIAL_TOKENS = 3
LAST_HOOK = "unembed.hook_in"
"""Where there is one, only the last token of each row is unembedded."""


def branched(
    run: Run,
    tokens: Int[Tensor, "rows tokens"],
    hook: str,
    x: Float[Tensor, "rows tokens d_in"],
    ends: Int[Tensor, " rows"],
    *,
    cut: bool,
) -> Float[Tensor, "rows vocab"]:
    """Logits at `ends`, of one row of tokens up to the hook and of all of `x` from there.

    Args:
        cut: whether the model has `LAST_HOOK`.
    """
    import torch

    rows = torch.arange(len(x))

    def replace(was: Tensor, hook: Any) -> Tensor:  # noqa: ARG001
        return x.to(was).reshape(len(x), *was.shape[1:])

    def last(was: Tensor, hook: Any) -> Tensor:  # noqa: ARG001
        return was[rows, ends][:, None]

    if not cut:
        return run(tokens[:1], hook, replace)[rows, ends].float()
    return run(tokens[:1], hook, replace, more=[(LAST_HOOK, last)])[:, 0].float()


def repeated(
    lm: LanguageModel, tokens: Tensor, hook: str, x: Tensor, ends: Int[Tensor, " rows"]
) -> Float[Tensor, "rows vocab"]:
    """The same, of all rows from their tokens."""
    import torch

    return lm.logits(tokens, hook=hook, edit=lambda _: x.to(lm.device))[torch.arange(len(x)), ends]


def can_branch(lm: LanguageModel, hook: str, branch: Callable[[Tensor, str, Tensor, Tensor], Tensor]) -> bool:
    """Whether activations of two texts, as they are and turned, end in the logits that their tokens give."""
    import torch

    tokens = torch.arange(2 * TRIAL_TOKENS).view(2, TRIAL_TOKENS) % lm.vocab_size
    own, tokens = lm.activations(tokens, hook), tokens.repeat(2, 1)
    x, ends = torch.cat([own, own.roll(1, 2)]), torch.tensor([TRIAL_TOKENS - 1, TRIAL_TOKENS - 2] * 2)
    wanted = repeated(lm, tokens, hook, x, ends)
    try:
        found = branch(tokens, hook, x, ends)
    except (RuntimeError, ValueError, TypeError, IndexError):  # whatever a model's code makes of the larger batch
        return False
    near = 1e-4 if lm.dtype == torch.float32 else 1e-2
    return found.shape == wanted.shape and bool((found - wanted).abs().max() <= near * wanted.abs().max())
