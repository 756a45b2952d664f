"""Cross-entropy of the language model when the activation at the site is replaced.

Four conditions on the same documents, the same batches and the same positions:

    clean     the activation as it is
    zero      0
    mean      the mean activation over the sample's evaluated tokens
    spliced   the SAE's reconstruction x_hat

Replaced are exactly the evaluated positions; BOS and other special tokens and padding keep their activation, whatever
the condition. A loss counts where the predicted token is evaluated and stands in one of the counted documents. The
prediction of a row's first token is made at a position that is not replaced (its BOS): it is the same in all
conditions and counts in all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from saebench_meta.batches import BatchRunner
from saebench_meta.errors import SaebenchError

if TYPE_CHECKING:
    import numpy as np
    from jaxtyping import Bool, Float, Int
    from torch import Tensor

    from saebench_meta.context import Context
    from saebench_meta.corpus import Batch, Sample
    from saebench_meta.models import LanguageModel
    from saebench_meta.sae import SAE

    Replacement = Callable[[Float[Tensor, "tokens d_in"]], Float[Tensor, "tokens d_in"]]

BATCH_BYTES = 2**28
"""Logits of one batch are at most this large (one row at least)."""
BATCH_TOKENS = 8192
"""Tokens of one batch, padding included, where the vocabulary is small."""
CODE_ELEMENTS = 2**26
"""Dense codes worked out at once while splicing."""
KEPT_BYTES = 2**29
"""Clean log-probabilities are kept for the KL divergence of every SAE if they fit in this, else worked out again."""


@dataclass(frozen=True)
class Losses:
    """What splicing an SAE costs: per-document sums over the counted predictions, 0 where a document has none.

    Attributes:
        loss: Σ −log q(token), nats.
        kl: Σ KL(clean ‖ spliced), nats.
    """

    loss: Float[np.ndarray, " docs"]
    kl: Float[np.ndarray, " docs"]


@dataclass(frozen=True)
class Baselines:
    """What does not depend on the SAE.

    Attributes:
        clean, zero, mean: Σ −log q(token) of each document, nats, in the three conditions without an SAE.
        predictions: number of counted predictions of each document.
        part: the counted documents.
        runner: goes through them in batches, halved from then on where memory runs out.
        kept: clean log-probabilities of the counted predictions of each row; None where they are too large to keep.
    """

    clean: Float[np.ndarray, " docs"]
    zero: Float[np.ndarray, " docs"]
    mean: Float[np.ndarray, " docs"]
    predictions: Int[np.ndarray, " docs"]
    part: Sample
    runner: BatchRunner
    kept: Mapping[int, Float[Tensor, "predictions vocab"]] | None


def first_documents(sample: Sample, n_tokens: int) -> Sample:
    """The first documents of the sample, with at most `n_tokens` evaluated tokens together: one at least, all for 0.

    The sample's order is random already. Whole documents are taken, so that each is an independent observation.
    """
    import torch

    if n_tokens < 0:
        raise SaebenchError(f"core.ce_tokens is {n_tokens}: give a number of tokens, or 0 for the whole sample")
    if n_tokens == 0:
        return sample
    sizes = torch.bincount(sample.document[sample.evaluated].long(), minlength=sample.n_docs)
    return sample.limit_documents(max(1, int((sizes.cumsum(0) <= n_tokens).sum())))


def baselines(sae: SAE, ctx: Context, n_tokens: int) -> Baselines:
    """Clean, zero-ablated and mean-ablated losses; once per run for all SAEs and controls at this site."""
    site = sae.info.site
    key = ("splice", str(site), site.revision, sae.info.prepend_bos, n_tokens)
    return ctx.memo(key, lambda: _baselines(ctx, site.hook, n_tokens))


def spliced(sae: SAE, ctx: Context, base: Baselines) -> Losses:
    """Losses with the SAE's reconstruction in place of the activation, and the KL divergence from the clean model."""
    import numpy as np
    import torch

    lm, hook, n_docs = ctx.lm(), sae.info.site.hook, len(base.predictions)

    def reconstruction(x: Float[Tensor, "tokens d_in"]) -> Float[Tensor, "tokens d_in"]:
        parts = torch.split(x.to(sae.device, sae.dtype), max(1, CODE_ELEMENTS // sae.d_sae))
        return torch.cat([sae.reconstruct(part) for part in parts])

    loss, kl = np.zeros(n_docs), np.zeros(n_docs)
    done = _progress(ctx, base.part, "splicing")

    def work(batch: Batch) -> None:
        predicted = _predictions(lm, batch, hook, reconstruction)
        if base.kept is None:
            clean = _predictions(lm, batch).log_probs
        else:
            clean = torch.cat([base.kept[row] for row in batch.rows.tolist()])
        divergence = _divergence(clean, predicted.log_probs)
        # Sums last: a batch that runs out of memory before is worked out again.
        loss[:] += predicted.loss_sums(n_docs)
        kl[:] += predicted.sums(divergence, n_docs)
        done(batch)

    base.runner.run(base.part, work)
    return Losses(loss, kl)


def kl_divergence(
    clean: Float[Tensor, "predictions vocab"], other: Float[Tensor, "predictions vocab"]
) -> Float[Tensor, " predictions"]:
    """KL(clean ‖ other) of next-token distributions given by logits, in nats.

    Log-probabilities are float32, their sum over the vocabulary float64.
    """
    return _divergence(clean.float().log_softmax(-1), other.float().log_softmax(-1))


def _divergence(
    log_p: Float[Tensor, "predictions vocab"], log_q: Float[Tensor, "predictions vocab"]
) -> Float[Tensor, " predictions"]:
    import torch

    return (log_p.exp() * (log_p - log_q)).sum(-1, dtype=torch.float64)


def _baselines(ctx: Context, hook: str, n_tokens: int) -> Baselines:
    import numpy as np
    import torch

    lm, n_docs = ctx.lm(), ctx.sample().n_docs
    part = first_documents(ctx.sample(), n_tokens)
    fitting = min(BATCH_TOKENS, max(1, BATCH_BYTES // (4 * lm.vocab_size)))
    runner = BatchRunner(min(fitting, ctx.batch_size or fitting), ctx.warn)
    mean = torch.as_tensor(ctx.activations().mean())
    ablations: dict[str, Replacement] = {"zero": torch.zeros_like, "mean": lambda x: mean.to(x).expand_as(x)}
    sums = {name: np.zeros(n_docs) for name in ("predictions", "clean", *ablations)}
    kept, done = _Kept(), _progress(ctx, part, "clean and ablated losses")

    def work(batch: Batch) -> None:
        clean = _predictions(lm, batch)
        ablated = {name: _predictions(lm, batch, hook, r).loss_sums(n_docs) for name, r in ablations.items()}
        # Sums last: a batch that runs out of memory before is worked out again.
        sums["predictions"] += clean.sums(torch.ones_like(clean.losses), n_docs)
        for name, values in {"clean": clean.loss_sums(n_docs), **ablated}.items():
            sums[name] += values
        kept.add(batch, clean.log_probs)
        done(batch)

    runner.run(part, work)
    predictions = sums.pop("predictions").astype(np.int64)
    return Baselines(**sums, predictions=predictions, part=part, runner=runner, kept=kept.all())


def _progress(ctx: Context, part: Sample, what: str) -> Callable[[Batch], None]:
    """Called after each batch: its rows count as done."""
    rows = iter(ctx.track(range(part.n_rows), what, part.n_rows))

    def done(batch: Batch) -> None:
        for _ in batch.rows:
            next(rows, None)

    return done


class _Kept:
    """Clean log-probabilities by row, or none of them once they are too large together."""

    def __init__(self) -> None:
        self._rows: dict[int, Tensor] = {}
        self._bytes = 0

    def add(self, batch: Batch, log_probs: Float[Tensor, "predictions vocab"]) -> None:
        import torch

        self._bytes += log_probs.numel() * log_probs.element_size()
        if self._bytes > KEPT_BYTES:
            self._rows.clear()
            return
        # Row by row, since a batch that runs out of memory later is cut otherwise.
        counts = batch.evaluated[:, 1:].sum(1).tolist()
        self._rows.update(zip(batch.rows.tolist(), torch.split(log_probs, counts), strict=True))

    def all(self) -> Mapping[int, Tensor] | None:
        return self._rows if self._bytes <= KEPT_BYTES else None


@dataclass(frozen=True)
class _Predictions:
    """The counted predictions of a batch: losses and log-probabilities in nats, document of the token."""

    losses: Float[Tensor, " predictions"]
    log_probs: Float[Tensor, "predictions vocab"]
    document: Int[Tensor, " predictions"]

    def sums(self, values: Float[Tensor, " predictions"], n_docs: int) -> Float[np.ndarray, " docs"]:
        """Sums of one value a prediction over documents, in float64."""
        import torch

        return torch.bincount(self.document, weights=values.cpu().double(), minlength=n_docs).numpy()

    def loss_sums(self, n_docs: int) -> Float[np.ndarray, " docs"]:
        """Sums of the losses over documents."""
        return self.sums(self.losses, n_docs)


def _predictions(
    lm: LanguageModel, batch: Batch, hook: str | None = None, replacement: Replacement | None = None
) -> _Predictions:
    """One forward pass, with the activation at `hook` replaced at the evaluated positions where asked for."""
    from saebench_meta.models import next_token_log_probs

    edit = None if replacement is None else _edit(replacement, batch.evaluated)
    logits = lm.logits(batch.tokens, hook=hook, edit=edit)
    log_probs, losses, counted = next_token_log_probs(logits, batch.tokens, batch.evaluated)
    return _Predictions(losses, log_probs, batch.document[counted.cpu()].long())


def _edit(replacement: Replacement, where: Bool[Tensor, "rows context"]) -> Callable[[Tensor], Tensor]:
    """The hook function that replaces the activation at the positions `where` and nowhere else."""

    def edit(x: Float[Tensor, "rows context d_in"]) -> Float[Tensor, "rows context d_in"]:
        mask = where.to(x.device)
        out = x.clone()
        out[mask] = replacement(x[mask]).to(out)
        return out

    return edit
