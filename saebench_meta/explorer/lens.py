"""The logit lens of decoder rows: which tokens a latent's direction boosts and suppresses.

A row takes the place of the last layer's residual stream and goes through the final norm and the unembedding; what a
stream of zeros gives (the biases of both) is subtracted. The row is scaled to a root mean square of 1 first: norms are
blind to the length of what they normalise, but for their epsilon. The layers between the SAE's hook and the last one
are passed over, so that early hooks show the direct effect only.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from saebench_meta.errors import SaebenchError

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

    from saebench_meta.models import LanguageModel

N_LOGITS = 10
RESIDUAL = ("hook_resid_pre", "hook_resid_mid", "hook_resid_post", "hook_attn_out", "hook_mlp_out", "hook_embed")
"""Hooks whose directions are directions of the residual stream."""
AT_ONCE = 64
"""Rows of a forward pass; the logits of each take the size of the vocabulary."""

Ranked = list[tuple[int, float]]


def why_no_lens(lm: LanguageModel, hook: str, d_in: int) -> str | None:
    """Why decoder rows of an SAE at a hook have no logits; None if they have."""
    if not hook.endswith(RESIDUAL) or d_in != lm.d_model:
        return f"the decoder rows are no directions of the residual stream, since the SAE reads {hook}"
    try:
        lm.check_hook(_last(lm), lm.d_model)
    except SaebenchError as e:
        return str(e)
    return None


def boosted(
    lm: LanguageModel,
    W_dec: Float[Tensor, "rows d_model"],
    n: int = N_LOGITS,
    progress: Callable[[int, int], None] = lambda _done, _total: None,
) -> list[tuple[Ranked, Ranked]]:
    """Of each row, the `n` tokens with the largest and with the smallest logit, the most extreme first.

    Args:
        progress: told rows done and in all.

    Returns:
        token id and logit of each.
    """
    found: list[tuple[Ranked, Ranked]] = []
    size = min(AT_ONCE, lm.n_ctx) - 1
    for start in range(0, len(W_dec), size):
        logits = row_logits(lm, W_dec[start : start + size])
        top, low = (logits.topk(min(n, logits.shape[1]), largest=largest) for largest in (True, False))
        for *ids, up, down in zip(top.indices, low.indices, top.values, low.values, strict=True):
            found.append((_ranked(ids[0], up), _ranked(ids[1], down)))
        progress(len(found), len(W_dec))
    return found


def _ranked(ids: Tensor, values: Tensor) -> Ranked:
    return list(zip(ids.tolist(), values.tolist(), strict=True))


def row_logits(lm: LanguageModel, W_dec: Float[Tensor, "rows d_model"]) -> Float[Tensor, "rows vocab"]:
    """Logits of a residual stream that is one row of `W_dec` and nothing else, less those of an empty one."""
    import torch

    unit = torch.nn.functional.normalize(W_dec.float(), dim=1, eps=1e-12) * lm.d_model**0.5
    stream = torch.cat([torch.zeros_like(unit[:1]), unit])[None]
    # Each row stands at a token of its own: after the last layer no token reads another.
    tokens = torch.zeros(1, stream.shape[1], dtype=torch.int64)
    logits = lm.logits(tokens, hook=_last(lm), edit=lambda x: stream.to(x))[0]
    return logits[1:] - logits[:1]


def _last(lm: LanguageModel) -> str:
    return f"blocks.{lm.n_layers - 1}.hook_resid_post"
