"""Model and corpus of a subject, and what is known of its world: what a task that reads activations depends on.

No torch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from saebench_meta.errors import SaebenchError
from saebench_meta.labelled_sets import LabelledFinder
from saebench_meta.plugins import Registry
from saebench_meta.resolve import ResolvedData, ResolvedModel, ResolvedSAE, resolve_data, resolve_model, resolve_sae
from saebench_meta.sae import UNKNOWN, SAEInfo
from saebench_meta.settings import DEFAULT_CONTEXT, PROFILE_TOKENS, Settings
from saebench_meta.worlds import is_world


@dataclass(frozen=True, eq=False)
class Inputs:
    """The site's model and the sampled corpus; what a task that reads activations depends on."""

    model: ResolvedModel
    data: ResolvedData
    hook: str
    sampling: dict[str, Any]

    def key(self) -> dict[str, Any]:
        return {"model": self.model.key(), "hook": self.hook, "data": self.data.key(), "sampling": self.sampling}


class InputsFinder:
    """Model and corpus of a subject, resolved once per site; a failure is kept as the reason why a need is unmet."""

    def __init__(self, registry: Registry, settings: Settings) -> None:
        self.registry, self.settings = registry, settings
        self.labelled = LabelledFinder(registry, settings)
        self._models: dict[tuple[str, str | None], ResolvedModel | str] = {}
        self._data: dict[str, ResolvedData | str] = {}

    def find(self, sae: ResolvedSAE, documents: int | None = None) -> Inputs | str:
        """The inputs for an SAE, of at most so many documents, or why there are none."""
        settings, info = self.settings, sae.info
        for what, value in (("model", info.site.model), ("hook", info.site.hook)):
            if value.split()[0] == UNKNOWN:
                return f"'{sae.ref}' does not say its {what}: give --{what}"
        if is_world(self.registry, info.site.model):
            return (
                f"'{sae.ref}' reads the world {info.site.model}, which is no language model: there are no activations "
                "on documents. Type `saebench truth` to compare it with the world's features"
            )
        revision = settings.revision or (None if settings.model else info.site.revision)
        model = self._once(
            self._models, (info.site.model, revision), lambda: self._model(info.site.model, revision), settings.model
        )
        if isinstance(model, str):
            return model
        corpus = settings.corpus or info.dataset
        if corpus is None:
            return "it needs documents: give --corpus (a file or a data set's name)"
        data = self._once(self._data, corpus, lambda: self._corpus(corpus), settings.corpus)
        if isinstance(data, str):
            return data
        sampling = {
            "tokens": PROFILE_TOKENS[settings.profile] if settings.tokens is None else settings.tokens,
            "documents": documents,
            "context": settings.context or info.context_size or DEFAULT_CONTEXT,
            "packing": settings.packing,
            "prepend_bos": info.prepend_bos,
            "seed": settings.seed,
            "split": data.identity.split,
            "text_field": settings.text_field,
        }
        return Inputs(model, data, info.site.hook, sampling)

    def _once(self, memory: dict[Any, Any], key: Any, make: Callable[[], Any], named: str | None) -> Any:
        """What `make` gives, or why it gives nothing; what the user named must be there."""
        if key not in memory:
            try:
                memory[key] = make()
            except SaebenchError as e:
                if named is not None:
                    raise
                memory[key] = str(e)
        return memory[key]

    def _model(self, ref: str, revision: str | None) -> ResolvedModel:
        return resolve_model(self.registry, ref, revision)

    def _corpus(self, ref: str) -> ResolvedData:
        return resolve_data(self.registry, ref, split=self.settings.split, revision=self.settings.data_revision)


class Truths:
    """What is known of the world of a subject: truths of its corpus, and oracles at its site.

    Attributes:
        notices: what the user should know of oracles that cannot be had.
    """

    def __init__(self, registry: Registry) -> None:
        self.registry = registry
        self.notices: list[str] = []
        self._oracles: dict[str, ResolvedSAE | None] = {}

    def of(self, info: SAEInfo, inputs: Inputs) -> str | None:
        """Name of the truth that annotates the corpus of an SAE's inputs; None if there is none."""
        corpus = inputs.data.identity.ref
        known = self.registry.truths.items()
        return next((name for name, t in known if t.model == info.site.model and corpus in t.corpora), None)

    def corpus(self, info: SAEInfo) -> str | None:
        """A corpus whose truth is known, for an SAE: the one it was trained on if it is one of them."""
        known = [c for t in self.registry.truths.values() if t.model == info.site.model for c in t.corpora]
        return info.dataset if info.dataset in known else next(iter(known), None)

    def why_not(self, model: str, corpus: str | None = None) -> str:
        """Why there is none of a model, or of it on a corpus, and where there is one."""
        known = [f"{t.model} on {' or '.join(t.corpora)}" for t in self.registry.truths.values()]
        what = model if corpus is None else f"{model} on {corpus}"
        return f"the truth of {what} is not known (known: {'; '.join(known) or 'none is installed'})"

    def oracle(self, sae: ResolvedSAE) -> ResolvedSAE | None:
        """The supervised dictionary at an SAE's site; None where there is none."""
        site = sae.info.site
        refs = (
            t.oracles[site.hook]
            for t in self.registry.truths.values()
            if t.model == site.model and site.hook in t.oracles
        )
        ref = next(refs, None)
        if ref is None:
            return None
        if ref not in self._oracles:
            self._oracles[ref] = self._resolve(ref, sae)
        return self._oracles[ref]

    def _resolve(self, ref: str, sae: ResolvedSAE) -> ResolvedSAE | None:
        site = sae.info.site
        try:
            found = resolve_sae(self.registry, ref, model=site.model, hook=site.hook)
        except SaebenchError as e:
            self.notices.append(f"the control 'oracle' is left out: {e}")
            return None
        if (found.info.d_in, found.own_hook) != (sae.info.d_in, site.hook):
            reads, asked = f"{found.own_hook}, {found.info.d_in} wide", f"{site.hook}, {sae.info.d_in} wide"
            self.notices.append(f"the control 'oracle' is left out: {ref} reads {reads}, not {asked}")
            return None
        return found
