"""Puts an explorer together: what the records say, and what the session works out for it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from saebench_meta import seeds
from saebench_meta.errors import SaebenchError
from saebench_meta.explorer import sources as records
from saebench_meta.explorer.folder import Contents, Shown

if TYPE_CHECKING:
    from saebench_meta.explorer.activity import Activity
    from saebench_meta.explorer.passages import Passage
    from saebench_meta.explorer.sources import Sources
    from saebench_meta.inputs import Inputs
    from saebench_meta.models import LanguageModel
    from saebench_meta.resolve import ResolvedSAE
    from saebench_meta.sae import SAE
    from saebench_meta.session import Session, Site

N_LATENTS = 300
"""Latents with passages, unless the user says."""


def from_records(sources: Sources, folder: Path, out: Path) -> Contents:
    """What the records alone say.

    Args:
        folder: of the run.
        out: where the explorer will be.

    Raises:
        BadFileError: a table in a record is not what its task writes.
    """
    from saebench_meta.report import REPORT

    info = sources.sae.info
    beside = out.resolve().parent == folder.resolve() and (folder / REPORT).is_file()
    facts = {"SAE": sources.sae.ref, "reads": str(info.site), "latents": f"{info.d_sae:,} ({info.architecture})"}
    decomposition = records.read_decomposition(sources)
    if decomposition is not None:
        facts["meta-latents"] = f"{decomposition.n_metas:,}"
    return Contents(
        title=info.name,
        facts=facts,
        d_sae=info.d_sae,
        notes=() if decomposition is not None else ("no meta_sae record of this SAE is there: no meta-latents",),
        report=f"../{REPORT}" if beside else None,
        decomposition=decomposition,
        explanations=records.read_explanations(sources),
        steering=records.read_steering(sources),
    )


def with_activations(
    contents: Contents,
    session: Session,
    resolved: ResolvedSAE,
    inputs: Inputs,
    *,
    n_latents: int = N_LATENTS,
    chosen: Sequence[int] = (),
) -> Contents:
    """With activity of every latent, and with passages and logits of some.

    Args:
        n_latents: how many latents besides those of `chosen` are drawn, among those active on the sample.
        chosen: latents that are shown in any case.

    Raises:
        SaebenchError: the model does not fit the SAE, or a chosen latent is not there.
    """
    from saebench_meta.explorer.activity import activity, histograms
    from saebench_meta.explorer.passages import chosen_codes, passages

    check_chosen(chosen, contents.d_sae)
    site = session.site(inputs)
    site.lm.check_hook(inputs.hook, resolved.info.d_in)
    sae = session.sae(resolved, site)
    found = activity(site.code_chunks(sae), sae.d_sae)
    latents = drawn(found, n_latents, chosen, session.settings.seed)
    view, texts = chosen_codes(site.code_chunks(sae), latents), _Texts(site.lm)
    quoted = [texts.of(of_latent) for of_latent in passages(view, site.sample)]
    logits, notes = _logits(site, sae, latents, texts)
    shown = [
        Shown(mine, counts, logits.get(i))
        for i, mine, counts in zip(latents, quoted, histograms(view).tolist(), strict=True)
    ]
    facts = {**contents.facts, "tokens looked at": f"{found.n_tokens:,} of {inputs.data.identity.ref}"}
    return replace(
        contents,
        facts={**facts, "passages": f"of {len(latents):,} latents"},
        notes=(*contents.notes, *notes),
        activity=found,
        vocabulary={i: texts.token(i) for i in found.types},
        shown=dict(zip(latents, shown, strict=True)),
    )


def check_chosen(chosen: Sequence[int], d_sae: int) -> None:
    """Refuse latents that are not there.

    Raises:
        SaebenchError: says which numbers there are.
    """
    for latent in chosen:
        if not 0 <= latent < d_sae:
            raise SaebenchError(f"--latent {latent}: the SAE has latents 0 to {d_sae - 1}")


def drawn(found: Activity, n: int, chosen: Sequence[int], seed: int) -> list[int]:
    """The chosen latents and `n` others of those that are active, in ascending order."""
    active = [i for i in found.counts.nonzero().squeeze(1).tolist() if i not in set(chosen)]
    # Sorting by one draw a latent: a larger `n` shows those of a smaller one too.
    order = seeds.rng(seed, "explorer", "latents").random(len(found.counts))
    return sorted({*chosen, *sorted(active, key=lambda i: float(order[i]))[:n]})


def _logits(
    site: Site, sae: SAE, latents: Sequence[int], texts: _Texts
) -> tuple[dict[int, tuple[Any, Any]], tuple[str, ...]]:
    """By latent the tokens it boosts and suppresses as texts; why there are none."""
    from saebench_meta.explorer.lens import boosted, why_no_lens

    why = why_no_lens(site.lm, site.inputs.hook, sae.d_in)
    if why is not None:
        return {}, (f"no boosted or suppressed tokens: {why}",)
    found = boosted(
        site.lm, sae.W_dec[list(latents)], progress=lambda done, total: site.session.progress("logits", done, total)
    )
    named = [tuple([(texts.token(i), v) for i, v in ranked] for ranked in both) for both in found]
    return dict(zip(latents, named, strict=True)), ()  # type: ignore[arg-type]  # a pair stays a pair


class _Texts:
    """Token ids as texts; without a tokenizer, their numbers."""

    def __init__(self, lm: LanguageModel) -> None:
        self._tokenizer = lm.tokenizer

    def _decode(self, ids: list[int]) -> str:
        return str(self._tokenizer.decode(ids, clean_up_tokenization_spaces=False))

    def token(self, token: int) -> str:
        return str(token) if self._tokenizer is None else self._decode([token])

    def of(self, found: Sequence[Passage]) -> list[tuple[Passage, list[str]]]:
        from saebench_meta.explorer.passages import pieces

        if self._tokenizer is None:
            return [(p, [f"{i} " for i in p.tokens]) for p in found]
        return [(p, pieces(self._decode, p.tokens)) for p in found]
