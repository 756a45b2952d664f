"""From what a user types to the labelled sets it names, and which sets a run has by default. No torch."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from saebench_meta.errors import SaebenchError, UnknownNameError
from saebench_meta.hookspecs import DataIdentity, LabelledLoader
from saebench_meta.plugins import Registry
from saebench_meta.record import LabelledUsed
from saebench_meta.resolve import split_scheme
from saebench_meta.settings import PROFILE_TEXTS, Settings

if TYPE_CHECKING:
    from saebench_meta.labelled import Labelled


@dataclass(frozen=True, eq=False)
class ResolvedLabelled:
    """A labelled set with its loader.

    Attributes:
        ref: as `--labelled` takes it.
        limit: most texts of it that the run uses.
        by_profile: without a limit, about how many texts of it the profile uses; None for all.
    """

    ref: str
    rest: str
    loader: LabelledLoader
    identity: DataIdentity
    limit: int | None = None
    by_profile: int | None = None

    @property
    def name(self) -> str:
        """What results call it: `scheme:name`, or the name of a file."""
        return self.identity.ref

    def key(self) -> dict[str, Any]:
        """What of the set goes into a record's id: name, loader's version, and the content's hash or revision."""
        i = self.identity
        source = {"sha256": i.sha256} if i.sha256 else {"revision": i.revision, "split": i.split}
        texts = {} if self.by_profile is None else {"texts": self.by_profile}
        return {"name": i.ref, "version": self.loader.version, **source, **texts}

    def to_record(self, used: Labelled | None = None) -> LabelledUsed:
        """What was asked for, and what of it was used where a task has opened it."""
        asked = LabelledUsed(name=self.name, revision=self.identity.revision, sha256=self.identity.sha256)
        if used is None:
            return asked
        counts = {"texts": used.n_texts, "test": int(used.test.sum()), "tokens": int(used.n_tokens.sum())}
        classes = {name: int((used.label == i).sum()) for i, name in enumerate(used.classes)}
        more = {"classes": classes, "dropped": used.dropped, "content_sha256": used.content_hash}
        return asked.model_copy(update=counts | more)


def resolve_labelled(registry: Registry, ref: str) -> tuple[ResolvedLabelled, ...]:
    """The sets that a reference names: `scheme:name`, a scheme alone for all of its sets, or a file.

    Raises:
        SaebenchError: nothing opens it, or as the loader's `peek` says.
    """
    found = split_scheme(ref, registry.labelled)
    if found is None:
        return (_resolved(ref, ref, registry.labelled[_claiming(registry, ref)]),)
    scheme, rest = found
    loader = registry.labelled[scheme]
    if rest:
        return (_resolved(ref, rest, loader),)
    if not loader.names:
        raise SaebenchError(f"--labelled {ref}: this scheme has no sets of its own; give {scheme}:PATH")
    return tuple(_resolved(f"{scheme}:{name}", name, loader) for name in loader.names)


def _resolved(ref: str, rest: str, loader: LabelledLoader) -> ResolvedLabelled:
    return ResolvedLabelled(ref, rest, loader, loader.peek(rest))


def _claiming(registry: Registry, ref: str) -> str:
    path = Path(ref).expanduser()
    schemes = ", ".join(sorted(registry.labelled))
    if not path.exists():
        raise UnknownNameError(
            f"--labelled {ref}: neither a file nor a reference of the form scheme:name (schemes: {schemes})"
        )
    for name, loader in registry.labelled.items():
        if loader.claims is not None and loader.claims(path):
            return name
    raise SaebenchError(f"--labelled {ref}: no loader recognises it (asked: {schemes}); give csv, jsonl or parquet")


class LabelledFinder:
    """The labelled sets of a run: those the user names, else those made for the model, else those for any model."""

    def __init__(self, registry: Registry, settings: Settings) -> None:
        self.registry, self.settings = registry, settings
        self._found: dict[tuple[str, ...], tuple[ResolvedLabelled, ...] | str] = {}

    def find(self, model: str, limit: int | None = None) -> tuple[ResolvedLabelled, ...] | str:
        """The sets for SAEs of a model, at most `limit` texts of each, or why there are none.

        Raises:
            SaebenchError: a set that the user names cannot be had.
        """
        refs = self.settings.labelled or self.defaults(model)
        if refs not in self._found:
            try:
                self._found[refs] = self._resolve(refs)
            except SaebenchError as e:
                if self.settings.labelled:
                    raise
                self._found[refs] = f"{e} (its labelled sets by default; give --labelled FILE for one of your own)"
        found = self._found[refs]
        if isinstance(found, str):
            return found
        by_profile = PROFILE_TEXTS.get(self.settings.profile) if limit is None else None
        return tuple(replace(one, limit=limit, by_profile=by_profile) for one in found)

    def defaults(self, model: str) -> tuple[str, ...]:
        """Schemes whose sets are made for a model; where there are none, those whose sets are for any."""
        schemes = {name: loader.models for name, loader in self.registry.labelled.items() if loader.names}
        own = tuple(name for name, models in schemes.items() if model in models)
        return own or tuple(name for name, models in schemes.items() if not models)

    def _resolve(self, refs: tuple[str, ...]) -> tuple[ResolvedLabelled, ...]:
        if not refs:
            raise SaebenchError("it needs labelled sets: give --labelled FILE (csv, jsonl or parquet)")
        found: dict[str, ResolvedLabelled] = {}
        for one in (one for ref in refs for one in resolve_labelled(self.registry, ref)):
            other = found.setdefault(one.name, one)
            if other.key() != one.key():
                raise SaebenchError(
                    f"two labelled sets are called '{one.name}' ({other.ref}, {one.ref}): rename a file"
                )
        return tuple(found.values())
