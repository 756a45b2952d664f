"""From what a user types to what it names: SAE, model and corpus references. Loads no weights and no torch."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from saebench_meta.errors import SaebenchError, UnknownNameError, did_you_mean
from saebench_meta.hook_names import hook_of, norm_after
from saebench_meta.hookspecs import DataIdentity, DatasetLoader, ModelIdentity, ModelLoader, SAELoader
from saebench_meta.plugins import Names, Registry
from saebench_meta.sae import SAEInfo

if TYPE_CHECKING:
    from saebench_meta.sae import SAE
    from saebench_meta.variants import Training

DEFAULT_SCHEME = "hf"


@lru_cache(maxsize=256)
def _hash_at(path: str, _size: int, _mtime_ns: int) -> str:
    with Path(path).open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def file_sha256(path: Path) -> str:
    """sha256 of a file, worked out once per process while it does not change."""
    stat = path.stat()
    return _hash_at(str(path.resolve()), stat.st_size, stat.st_mtime_ns)


# -- SAEs


@dataclass(frozen=True, eq=False)
class ResolvedSAE:
    """An SAE reference with its loader, and what is known without its weights."""

    ref: str
    scheme: str
    rest: str
    loader: SAELoader
    info: SAEInfo
    files: Mapping[str, str]
    own_hook: str
    """The hook as the file gives it; `info.site` may carry the user's."""
    training: Training | None = None
    """How it comes to be, for an SAE that the run trains; its loader is then not used."""

    def load(self, *, device: str = "cpu", dtype: Any = None) -> SAE:
        """The SAE itself, with this reference's site (a user may have named another model or hook)."""
        import torch

        sae = self.loader.load(self.rest, device=device, dtype=dtype or torch.float32)
        found = sae.info.model_copy(update={"site": self.info.site})
        if found.identity() != self.info.identity():
            raise SaebenchError(f"'{self.ref}' changed while it was being opened; run the command again")
        return replace(sae, info=self.info)

    def identity(self) -> dict[str, Any]:
        """What of this SAE goes into a record's id; the model is named by its own identity, not by its path."""
        if self.training is not None:
            return {"trained": self.training.key()}
        identity = self.info.identity()
        identity["site"] = {"hook": self.info.site.hook}
        return {"files": dict(self.files), "loader": self.scheme, "version": self.loader.version, **identity}


def split_scheme(ref: str, names: Mapping[str, object]) -> tuple[str, str] | None:
    """`scheme:rest`, if it is one; a bare scheme name stands for itself with nothing after it.

    A bare name means the same in every folder: a file or folder of that name here is `./name`.
    """
    scheme, colon, rest = ref.partition(":")
    if colon and (scheme in names or not Path(ref).exists()) and len(scheme) > 1 and "/" not in scheme:
        return scheme, rest
    return (ref, "") if ref in names else None


def resolve_sae(registry: Registry, ref: str, *, model: str | None = None, hook: str | None = None) -> ResolvedSAE:
    """Find the loader of an SAE reference and read what it tells without weights.

    Args:
        ref: `scheme:rest`, or a path that exactly one loader claims.
        model: what the user says of the model, over what the file says.
        hook: likewise; a TransformerLens hook name, or the path of a Hugging Face module, whose output is meant.

    Raises:
        SaebenchError: nothing opens the reference, or the module's output is no hook of TransformerLens.
    """
    found = split_scheme(ref, registry.loaders)
    scheme, rest = found if found is not None else (_claiming_loader(registry, ref), ref)
    loader = registry.loaders[scheme]
    if loader.peek is not None:
        header = loader.peek(rest)
        info, files = header.info, {name: file_sha256(path) for name, path in sorted(header.files.items())}
    else:
        import torch

        sae = loader.load(rest, device="cpu", dtype=torch.float32)
        info, files = sae.info, {"weights": sae.content_hash()}
    site = info.site.model_copy(update={"model": model} if model else {})
    if hook:
        site = site.model_copy(update={"hook": named_hook(hook, site.model)})
    return ResolvedSAE(ref, scheme, rest, loader, info.model_copy(update={"site": site}), files, info.site.hook)


def named_hook(hook: str, model: str) -> str:
    """A hook as the user names it, as a TransformerLens hook name; what is neither is left for the model to refuse.

    Raises:
        SaebenchError: in this model a norm stands between the module named and the hook of that name.
    """
    known = hook_of(hook)
    if known is None or known == hook:
        return hook
    if norm_after(model, known):
        raise SaebenchError(
            f"--hook {hook}: '{model}' has a norm after this module, and {known} is after the norm: they differ. "
            f"Give --hook {known} if that is what the SAE reads."
        )
    return known


def _claiming_loader(registry: Registry, ref: str) -> str:
    path = Path(ref)
    if not path.exists():
        known = [e.ref for e in registry.catalogue.values()]
        raise UnknownNameError(
            f"'{ref}' is neither a file or folder nor a reference of the form scheme:name "
            f"(schemes: {', '.join(sorted(registry.loaders))}){did_you_mean(ref, known) if known else ''} "
            "Type `saebench saes` for what can be had by reference."
        )
    claims = [name for name, loader in registry.loaders.items() if loader.claims is not None and loader.claims(path)]
    if len(claims) == 1:
        return claims[0]
    if not claims:
        raise SaebenchError(
            f"'{ref}': no SAE loader recognises it (asked: {', '.join(sorted(registry.loaders))}). "
            "Name the format yourself: --sae scheme:PATH."
        )
    raise SaebenchError(
        f"'{ref}' is claimed by several loaders: {', '.join(claims)}. Say which: --sae {claims[0]}:{ref}"
    )


def find_reference(registry: Registry, sae: ResolvedSAE) -> tuple[str, str] | None:
    """A reference for an SAE nobody named: the widest narrower one at its site, beside it on disk or in its catalogue;
    in the catalogue one of its architecture, where there is one.

    Returns:
        The reference's ref and, in words, where it was found.
    """
    beside = [(info.d_sae, ref) for ref, info in _siblings(sae)]
    if beside:
        return max(beside)[1], "beside it on disk"
    mine = {sae.ref, f"{sae.scheme}:{sae.rest}"} & set(registry.catalogue)
    entries = [
        e
        for e in registry.catalogue.values()
        if mine and e.model == sae.info.site.model and e.hook == sae.own_hook and e.d_sae < sae.info.d_sae
    ]
    kin = [e for e in entries if e.architecture in ("", sae.info.architecture)]
    widest = max(kin or entries, key=lambda e: e.d_sae, default=None)  # the first of several of a width
    return None if widest is None else (widest.ref, "in the catalogue")


def _siblings(sae: ResolvedSAE) -> list[tuple[str, SAEInfo]]:
    """Narrower SAEs of the same format, site and input space in the same folder; what cannot be read is passed over."""
    path = Path(sae.rest)
    if sae.loader.peek is None or sae.loader.claims is None or not path.exists():
        return []
    own = sae.loader.peek(sae.rest).info  # as the file gives it, before the user's word
    found = []
    for other in sorted(path.parent.iterdir()):
        if other != path and sae.loader.claims(other):
            try:
                info = sae.loader.peek(str(other)).info
            except SaebenchError:
                continue
            comparable = (info.site, info.d_in, info.input_transform) == (own.site, own.d_in, own.input_transform)
            if comparable and info.d_sae < own.d_sae:
                found.append((f"{sae.scheme}:{other}", info))
    return found


# -- models and corpora


@dataclass(frozen=True, eq=False)
class ResolvedModel:
    """A model reference with its loader."""

    ref: str
    rest: str
    loader: ModelLoader
    identity: ModelIdentity
    revision: str | None

    def key(self) -> dict[str, Any]:
        """What of the model goes into a record's id: hashes of local files, else reference and revision."""
        if self.identity.files:
            return {"files": dict(self.identity.files)}
        return {"ref": self.identity.ref, "revision": self.identity.revision}


def resolve_model(registry: Registry, ref: str, revision: str | None) -> ResolvedModel:
    """Find the loader of a model reference; raises if the model cannot be had."""
    scheme, rest = _scheme_or_default(registry.models, ref)
    loader = registry.models[scheme]
    return ResolvedModel(ref, rest, loader, loader.peek(rest, revision=revision), revision)


@dataclass(frozen=True, eq=False)
class ResolvedData:
    """A corpus reference with its loader."""

    ref: str
    rest: str
    loader: DatasetLoader
    identity: DataIdentity

    def key(self) -> dict[str, Any]:
        """What of the corpus goes into a record's id: the content's hash, else reference, revision and split."""
        i = self.identity
        return {"sha256": i.sha256} if i.sha256 else {"ref": i.ref, "revision": i.revision, "split": i.split}


def resolve_data(registry: Registry, ref: str, *, split: str | None, revision: str | None) -> ResolvedData:
    """Find the loader of a corpus reference."""
    path = Path(ref)
    if path.exists() and ref not in registry.datasets:
        claims = [n for n, d in registry.datasets.items() if d.claims is not None and d.claims(path)]
        if not claims:
            raise SaebenchError(
                f"corpus '{ref}': no data set loader recognises this file "
                f"(asked: {', '.join(sorted(registry.datasets))}). Give txt, jsonl, json, csv or parquet."
            )
        scheme, rest = claims[0], ref
    else:
        scheme, rest = _scheme_or_default(registry.datasets, ref)
    loader = registry.datasets[scheme]
    return ResolvedData(ref, rest, loader, loader.peek(rest, split=split, revision=revision))


def _scheme_or_default(names: Names[Any], ref: str) -> tuple[str, str]:
    found = split_scheme(ref, names)
    return found if found is not None else (DEFAULT_SCHEME, ref)
