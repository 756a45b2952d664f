"""The hub through its own client: which commit a revision names, single files, and what its refusals mean. No torch."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

from saebench_meta.errors import SaebenchError

TIMEOUT = 5.0
"""Seconds the hub has to answer before the local cache is asked instead."""
COMMIT = re.compile(r"[0-9a-f]{40}")


@lru_cache(maxsize=256)
def commit_of(name: str, revision: str | None, file: str, repo_type: str = "model") -> str:
    """The commit a revision names: as the hub says, and where it cannot be reached as the local cache has it.

    A commit stands for itself. The hub is asked once a process, so that what was planned is what is opened.

    Args:
        revision: commit, branch or tag; `main` if None.
        file: a small file most repositories have. Asking for it is asking whether this user may read the repository.

    Raises:
        SaebenchError: no such repository or revision, gated, or neither on this machine nor to be reached.
    """
    if revision is not None and COMMIT.fullmatch(revision):
        return revision
    from huggingface_hub.errors import EntryNotFoundError

    try:
        return fetch(name, file, revision, repo_type).parent.name
    except EntryNotFoundError as e:
        if (commit := cached_commit(name, revision, repo_type)) is not None:
            return commit
        raise explained(e, name, repo_type) from e
    except failures() as e:
        raise explained(e, name, repo_type) from e


def cached_commit(name: str, revision: str | None, repo_type: str = "model") -> str | None:
    """The commit a branch or tag named when the hub was last asked, or None; never touches the network."""
    from huggingface_hub.constants import HF_HUB_CACHE

    pointer = Path(HF_HUB_CACHE) / f"{repo_type}s--{name.replace('/', '--')}" / "refs" / (revision or "main")
    return pointer.read_text().strip() if pointer.is_file() else None


def fetch(name: str, file: str, revision: str | None, repo_type: str = "model") -> Path:
    """One file of a repository, in the local cache; no request is made for a commit whose file is there.

    Raises:
        Exception: what the client raises, one of `failures()`; `explained` says it in words.
    """
    from huggingface_hub import hf_hub_download, try_to_load_from_cache
    from huggingface_hub.constants import HF_HUB_OFFLINE

    if revision is not None and COMMIT.fullmatch(revision):
        cached = try_to_load_from_cache(name, file, revision=revision, repo_type=repo_type)
        if isinstance(cached, str):
            return Path(cached)
    here = HF_HUB_OFFLINE or not _answers(name, file, revision, repo_type)
    return Path(hf_hub_download(name, file, revision=revision, repo_type=repo_type, local_files_only=here))


def _answers(name: str, file: str, revision: str | None, repo_type: str) -> bool:
    """Whether the hub can be reached: without this the client tries again for minutes where nothing is cached."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_url

    try:
        get_hf_file_metadata(hf_hub_url(name, file, revision=revision, repo_type=repo_type), timeout=TIMEOUT)
    except failures() as e:
        return not is_unreachable(e)
    return True


def failures(*more: type[Exception]) -> tuple[type[Exception], ...]:
    """What the hub's client raises: errors of its own, of the disk, and of its HTTP library, whichever that is."""
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError

    http = [k for k in HfHubHTTPError.__mro__ if k.__name__ == "HTTPError" and issubclass(k, Exception)]
    return (OSError, ValueError, EntryNotFoundError, *http, *more)


def is_unreachable(error: BaseException) -> bool:
    """Whether the hub was not reached, rather than reached and unwilling."""
    from huggingface_hub import errors

    if isinstance(error, errors.HfHubHTTPError):
        return error.response.status_code >= 500
    lost = (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled, ConnectionError)
    return isinstance(error, lost) or any(kind.__name__ == "TransportError" for kind in type(error).__mro__)


def explained(error: BaseException, ref: str, repo_type: str = "model") -> SaebenchError:
    """What went wrong with something of the hub, told by its cause."""
    from huggingface_hub import errors

    def cause(kind: type[Exception]) -> bool:
        return any(isinstance(c, kind) for c in causes)

    causes = list(_causes(error))
    option = "--data-revision" if repo_type == "dataset" else "--revision"
    if cause(errors.GatedRepoError):
        return SaebenchError(
            f"'{ref}' is gated, and this user has no access: accept its terms on the hub, then log in with "
            "`hf auth login`"
        )
    if cause(errors.RevisionNotFoundError):
        return SaebenchError(f"'{ref}' has no such revision: give {option} a branch, tag or commit it has")
    if cause(errors.RepositoryNotFoundError) or cause(errors.HFValidationError):
        return SaebenchError(f"'{ref}' is neither here nor on the hub; private ones need `hf auth login`")
    if any(is_unreachable(c) for c in causes):
        return SaebenchError(
            f"'{ref}' is not on this machine and the hub cannot be reached: "
            "download it once with a network, or give a local path"
        )
    first = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return SaebenchError(first if isinstance(error, SaebenchError) else f"'{ref}' cannot be opened: {first[:300]}")


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """An error and all that led to it, also what its raiser left out with `from None`."""
    waiting, seen = [error], set[int]()
    while waiting:
        found = waiting.pop(0)
        if found is not None and id(found) not in seen:
            seen.add(id(found))
            yield found
            waiting += [found.__cause__, found.__context__]
