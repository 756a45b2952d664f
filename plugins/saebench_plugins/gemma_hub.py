"""Gemma Scope on the hub: one file at a time through the hub's own client, and each way that fails in one sentence."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from saebench_meta.errors import SaebenchError


@dataclass(frozen=True)
class HubFile:
    """A file of a repository.

    Attributes:
        loader: the loader's name, for errors.
        revision: commit, tag or branch; None for the main branch.
        hint: where to look for what the repository does have.
    """

    loader: str
    repository: str
    name: str
    revision: str | None
    hint: str

    def __str__(self) -> str:
        return f"{self.loader} loader: {self.repository}/{self.name} (revision {self.revision or 'main'})"


def fetch(file: HubFile) -> Path:
    """The file from the hub or its local cache. Raises `SaebenchError` that says which of the ways it failed."""
    from huggingface_hub import errors as hub
    from huggingface_hub import hf_hub_download

    from saebench_plugins.hub import failures

    try:
        return Path(hf_hub_download(file.repository, file.name, revision=file.revision))
    except hub.LocalEntryNotFoundError as e:
        raise SaebenchError(
            f"{file} is not in the local hub cache and the hub cannot be reached: go online once, "
            "or give the path of a downloaded copy"
        ) from e
    except hub.GatedRepoError as e:
        raise SaebenchError(f"{file} is gated: accept its terms on its page and log in with `hf auth login`") from e
    except hub.RevisionNotFoundError as e:
        raise SaebenchError(f"{file}: there is no such revision; leave @REVISION out, or give a commit of it") from e
    except hub.EntryNotFoundError as e:
        raise SaebenchError(f"{file}: there is no such file. {file.hint}") from e
    except hub.RepositoryNotFoundError as e:
        raise SaebenchError(f"{file}: there is no such repository, or it is private") from e
    except failures() as e:  # other answers, a full disk, a name the client refuses
        raise SaebenchError(f"{file} could not be downloaded ({str(e)[:200]!a}); try again, or give a path") from e


def fetch_if_there(file: HubFile) -> Path | None:
    """The same, None where the hub says, or said when it was last asked, that it does not have the file."""
    from huggingface_hub import errors as hub
    from huggingface_hub import try_to_load_from_cache

    try:
        return fetch(file)
    except SaebenchError as e:
        if not isinstance(e.__cause__, hub.EntryNotFoundError):
            raise
        cached = try_to_load_from_cache(file.repository, file.name, revision=file.revision)
        known_absent = cached is not None and not isinstance(cached, str)
        if isinstance(e.__cause__, hub.LocalEntryNotFoundError) and not known_absent:  # unreachable is not absent
            raise
        return None


def commit_of(file: HubFile, path: Path) -> str | None:
    """The commit in a path of the hub's cache, `…/snapshots/COMMIT/NAME`."""
    snapshot = path.parents[file.name.count("/")]
    return snapshot.name if snapshot.parent.name == "snapshots" else None
