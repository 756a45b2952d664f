"""Where SAELens SAEs are published, and what is known of a release that its folders do not say. Imports no torch.

A reference `release/sae_id` is looked up in the registry that comes with sae-lens (a file, so sae-lens itself is never
imported), or, for the releases of the table here, without sae-lens. `owner/name/folder` names a hub repository.
`@revision` at the end pins a commit, tag or branch; what was found is fixed by its hashes in every record.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from saebench_meta.errors import SaebenchError, UnknownNameError, did_you_mean

INSTALL = "pip install 'saebench-meta[saelens]'"
CENTRED = {"model_from_pretrained_kwargs": {"center_writing_weights": True}}
OTHER_FORMATS = {
    "gemma_2": "gemma-scope",
    "gemma_3": "gemma-scope-2",
    "dictionary_learning_1": "dictionary_learning",
    "llama_scope": "llama-scope",
}


@dataclass(frozen=True)
class Release:
    """A published release whose SAEs read centred activations, and how one of its folders is told."""

    repo: str
    hooks: str
    widths: tuple[int, ...]


CENTRED_RELEASES = {
    "gpt2-small-res-jb": Release(
        "jbloom/GPT2-Small-SAEs-Reformatted",
        r"blocks\.(\d|10|11)\.hook_resid_pre|blocks\.11\.hook_resid_post",
        (24576,),
    ),
    "gpt2-small-res-jb-feature-splitting": Release(
        "jbloom/GPT2-Small-Feature-Splitting-Experiment-Layer-8",
        r"blocks\.8\.hook_resid_pre",
        (768, 1536, 3072, 6144, 12288, 24576, 49152, 98304),
    ),
    "gpt2-small-mlp-tm": Release("tommmcgrath/gpt2-small-mlp-out-saes", r"blocks\.\d+\.hook_mlp_out", ()),
}
"""Trained on GPT-2 as TransformerLens opens it by default, with centred writing weights; their `cfg.json` is silent."""

SAME_FOLDERS = ("gpt2-small-res-jb", "gpt2-small-res-jb-feature-splitting")
"""Releases whose SAE ids are their folders' names, so that they are found without the registry."""


def centred_release(folder: Path, cfg: Mapping[str, Any]) -> str | None:
    """The release of CENTRED_RELEASES a folder belongs to, by the names above it or else by all of its settings."""
    if cfg.get("model_name") not in ("gpt2", "gpt2-small"):
        return None
    hook, width = str(cfg.get("hook_name")), cfg["d_sae"]
    names = {part.casefold() for part in folder.resolve().parts}
    for name, release in CENTRED_RELEASES.items():
        if not re.fullmatch(release.hooks, hook):
            continue
        known = {name, release.repo.split("/")[1], "models--" + release.repo.replace("/", "--")}
        if {k.casefold() for k in known} & names:
            return name
        if width in release.widths and _is_of_that_time(cfg):
            return name
    return None


def _is_of_that_time(cfg: Mapping[str, Any]) -> bool:
    """The settings those two releases share, in a configuration older than sae-lens' version numbers."""
    return (
        not cfg.get("sae_lens_version")
        and not cfg.get("sae_lens_training_version")
        and cfg.get("architecture", "standard") == "standard"
        and cfg.get("dataset_path") == "Skylion007/openwebtext"
        and cfg.get("context_size") == 128
        and cfg.get("d_in") == 768
    )


# -- references


@dataclass(frozen=True)
class Found:
    """An SAE of a hub repository, and what the release says over its folder."""

    repo: str
    folder: str
    revision: str | None = None
    overrides: Mapping[str, Any] = field(default_factory=dict)
    scaling: float | None = None
    registry: Path | None = None


def find_release(ref: str) -> Found:
    """What `release/sae_id[@revision]` or `owner/name/folder[@revision]` means. Touches no network.

    Raises:
        UnknownNameError: the registry has no such release or SAE.
        SaebenchError: the reference cannot be read, or the registry is needed and sae-lens is not installed.
    """
    name, _, revision = ref.partition("@")
    release, _, sae_id = name.partition("/")
    if not sae_id or ".." in name.split("/"):
        raise SaebenchError(
            f"saelens loader: '{ref}' is no folder and no reference. Give a folder, release/sae_id, or "
            "owner/name/folder of a hub repository."
        )
    if release in SAME_FOLDERS:
        return Found(CENTRED_RELEASES[release].repo, sae_id, revision or None, CENTRED)
    registry = registry_file()
    if registry is not None and (entry := _entry(registry, release)) is not None:
        return _from_entry(registry, entry, release, sae_id, revision or None)
    parts = name.split("/")
    if len(parts) >= 3:
        return Found("/".join(parts[:2]), "/".join(parts[2:]), revision or None)
    if registry is None:
        raise SaebenchError(
            f"saelens loader: '{ref}': there is no such folder, and the registry of releases comes with sae-lens, "
            f"which is not installed: {INSTALL}. Or give owner/name/folder of a hub repository."
        )
    raise UnknownNameError(
        f"saelens loader: the registry has no release '{release}'{did_you_mean(release, _names(registry))}"
    )


def registry_file() -> Path | None:
    """The registry of releases of an installed sae-lens, which is found and not imported; None without it."""
    spec = find_spec("sae_lens")
    folders = list(spec.submodule_search_locations or ()) if spec is not None else []
    files = [Path(folder) / "pretrained_saes.yaml" for folder in folders]
    return next((file for file in files if file.is_file()), None)


def _names(registry: Path) -> list[str]:
    return re.findall(r"^([^\s#][^\n]*):[ ]*$", registry.read_text("utf-8"), re.MULTILINE)


def _entry(registry: Path, release: str) -> dict[str, Any] | None:
    """One release of the registry: its lines are cut out first, because all of them take seconds to parse."""
    import yaml  # type: ignore[import-untyped]  # comes with huggingface_hub

    found = re.search(rf"^{re.escape(release)}:[ ]*\n(?:[ \-][^\n]*\n?|\n)*", registry.read_text("utf-8"), re.MULTILINE)
    if found is None:
        return None
    entry = yaml.safe_load(found[0])[release]
    assert isinstance(entry, dict)
    return entry


def _from_entry(registry: Path, entry: Mapping[str, Any], release: str, sae_id: str, revision: str | None) -> Found:
    conversion = entry.get("conversion_func")
    if conversion not in (None, "sae_lens"):
        scheme = OTHER_FORMATS.get(conversion)
        advice = f"Try {scheme}:…" if scheme else "This suite has no loader for it."
        raise SaebenchError(f"saelens loader: release '{release}' is in the format '{conversion}'. {advice}")
    saes = {str(sae["id"]): sae for sae in entry["saes"]}
    if sae_id not in saes:
        raise UnknownNameError(
            f"saelens loader: release '{release}' has no SAE '{sae_id}'{did_you_mean(sae_id, list(saes))}"
        )
    overrides = dict(entry.get("config_overrides") or {})
    overrides.pop("neuronpedia_id", None)
    scaling = saes[sae_id].get("norm_scaling_factor")
    return Found(entry["repo_id"], str(saes[sae_id]["path"]), revision, overrides, scaling, registry)


# -- the hub


def download(found: Found, names: tuple[str, ...]) -> tuple[Path, str | None]:
    """Fetch files of a folder, or find them in the hub's local cache; all of the same commit.

    Returns:
        The folder they are in, and the commit they are of where the cache says so.

    Raises:
        SaebenchError: the repository, revision or a file is not there, is gated, or cannot be reached.
    """
    from huggingface_hub import hf_hub_download

    from saebench_plugins.hub import failures

    revision, folder = found.revision, Path()
    try:
        for name in names:
            folder = Path(hf_hub_download(found.repo, f"{found.folder}/{name}", revision=revision)).parent
            revision = _commit(folder, found.folder) or revision
    except failures() as e:
        raise _hub_error(found, e) from e
    return folder, revision


def download_if_there(found: Found, name: str) -> None:
    """Fetch a file that most folders do not have. Raises as `download` does, unless the hub says it is not there."""
    from huggingface_hub import hf_hub_download, try_to_load_from_cache
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    from saebench_plugins.hub import failures

    file = f"{found.folder}/{name}"
    try:
        hf_hub_download(found.repo, file, revision=found.revision)
    except EntryNotFoundError as e:
        cached = try_to_load_from_cache(found.repo, file, revision=found.revision)
        known_absent = cached is not None and not isinstance(cached, str)
        if isinstance(e, LocalEntryNotFoundError) and not known_absent:  # unreachable is not the same as absent
            raise _hub_error(found, e) from e
    except failures() as e:
        raise _hub_error(found, e) from e


def _commit(folder: Path, inside: str) -> str | None:
    """The commit in a cache path `…/snapshots/<commit>/<folder>`."""
    depth = len(Path(inside).parts)
    parent = folder.parents[depth - 1] if 0 < depth <= len(folder.parents) else folder
    return parent.name if parent.parent.name == "snapshots" else None


def _hub_error(found: Found, e: Exception) -> SaebenchError:
    """What went wrong on the hub, told by its cause."""
    from huggingface_hub import errors

    what = f"saelens loader: '{found.repo}', folder '{found.folder}', revision '{found.revision or 'main'}'"
    if isinstance(e, errors.GatedRepoError):
        return SaebenchError(f"{what}: it is gated: accept its terms on the hub, then log in with `hf auth login`")
    if isinstance(e, errors.LocalEntryNotFoundError | errors.OfflineModeIsEnabled):
        return SaebenchError(f"{what}: it is not on this machine and the hub cannot be reached; fetch it once online")
    if isinstance(e, errors.RevisionNotFoundError):
        return SaebenchError(f"{what}: there is no such revision")
    if isinstance(e, errors.EntryNotFoundError):
        return SaebenchError(f"{what}: no SAELens SAE is there (a folder with cfg.json and sae_weights.safetensors)")
    if isinstance(e, errors.RepositoryNotFoundError | errors.HFValidationError):
        return SaebenchError(f"{what}: there is no such repository; private ones need `hf auth login`")
    return SaebenchError(f"{what}: it cannot be fetched ({type(e).__name__}: {str(e)[:200]})")
