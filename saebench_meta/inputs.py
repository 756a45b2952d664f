"""Model and corpus of a subject: what a task that reads activations depends on. No torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from saebench_meta.errors import SaebenchError
from saebench_meta.plugins import Registry
from saebench_meta.resolve import ResolvedData, ResolvedModel, ResolvedSAE, resolve_data, resolve_model
from saebench_meta.sae import UNKNOWN
from saebench_meta.settings import DEFAULT_CONTEXT, PROFILE_TOKENS, Settings


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
        self._models: dict[tuple[str, str | None], ResolvedModel | str] = {}
        self._data: dict[str, ResolvedData | str] = {}

    def find(self, sae: ResolvedSAE, documents: int | None = None) -> Inputs | str:
        """The inputs for an SAE, of at most so many documents, or why there are none."""
        settings, info = self.settings, sae.info
        for what, value in (("model", info.site.model), ("hook", info.site.hook)):
            if value.split()[0] == UNKNOWN:
                return f"'{sae.ref}' does not say its {what}: give --{what}"
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
