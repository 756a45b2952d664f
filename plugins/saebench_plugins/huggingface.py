"""Language models and corpora of the Hugging Face hub or in local folders and files.

    --model gpt2                 hub name; `hf:gpt2` says the same
    --model ./folder             folder with config.json and *.safetensors
    --corpus stories.jsonl       local file
    --corpus hf:owner/name       hub data set, streamed; `hf:owner/name:config` names one of its configurations

No code that comes with a model or data set is ever run.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from saebench_meta.errors import SaebenchError, did_you_mean
from saebench_meta.hookspecs import DataIdentity, DatasetLoader, ModelIdentity, ModelLoader, hookimpl
from saebench_plugins import files

if TYPE_CHECKING:
    import torch

    from saebench_meta.models import LanguageModel

saebench_api = 1

HASHED = (
    "config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "tokenizer.model",
    "vocab.json",
    "merges.txt",
)
"""Files beside the weights that change what a model computes on a text."""


@hookimpl
def saebench_language_models() -> Mapping[str, ModelLoader]:
    """Hub names and local folders, opened by TransformerLens."""
    return {
        "hf": ModelLoader(
            load=load_model,
            peek=peek_model,
            names=("gpt2", "EleutherAI/pythia-70m-deduped"),
            summary="hub name or local folder, through TransformerLens",
        )
    }


@hookimpl
def saebench_datasets() -> Mapping[str, DatasetLoader]:
    """Local files, and data sets of the hub."""
    return {
        "file": DatasetLoader(
            documents=files.documents,
            peek=files.peek,
            claims=files.claims,
            summary="txt, jsonl, json, csv or parquet file",
        ),
        "hf": DatasetLoader(documents=stream, peek=peek_dataset, summary="data set of the Hugging Face hub, streamed"),
    }


# -- language models


def load_model(
    ref: str,
    *,
    revision: str | None = None,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None,
    device_map: str | None = None,
) -> LanguageModel:
    """Open a hub name or a folder with raw weights.

    Raises:
        SaebenchError: the model cannot be had (no such folder, not downloaded and no network, gated); says which.
    """
    from saebench_meta.models import load_bridge

    identity = peek_model(ref, revision=revision)
    path = str(_folder(ref) or ref)
    try:
        return load_bridge(
            path,
            ref=ref,
            revision=identity.revision,
            device=device,
            dtype=dtype,
            device_map=device_map,
            files=identity.files,
        )
    except SaebenchError as e:
        raise _cannot_be_had(e, ref) from e


def peek_model(ref: str, *, revision: str | None = None) -> ModelIdentity:
    """Hashes of a folder's files; for a hub name the commit in the local hub cache, else the revision asked for."""
    folder = _folder(ref)
    if folder is None:
        return ModelIdentity(ref, _commit_at_hand(ref, revision) or revision)
    if revision is not None:
        raise SaebenchError(f"model '{ref}' is a local folder and has no revision: leave --revision out")
    from saebench_meta.resolve import file_sha256

    weights = sorted(folder.glob("*.safetensors"))
    if not (folder / "config.json").is_file() or not weights:
        missing = "*.safetensors" if (folder / "config.json").is_file() else "config.json"
        raise SaebenchError(
            f"model folder '{ref}' has no {missing}: give a Hugging Face folder "
            "(saved with save_pretrained; pickled .bin weights are not opened)"
        )
    named = [folder / name for name in HASHED if (folder / name).is_file()]
    return ModelIdentity(ref, None, {p.name: file_sha256(p) for p in (*named, *weights)})


def _commit_at_hand(name: str, revision: str | None) -> str | None:
    """`cached_commit` of a model.

    Raises:
        SaebenchError: the hub client is told to stay offline, and the model is not in the local cache.
    """
    from huggingface_hub.constants import HF_HUB_CACHE, HF_HUB_OFFLINE

    commit = cached_commit(name, revision)
    snapshots = Path(HF_HUB_CACHE) / f"models--{name.replace('/', '--')}" / "snapshots"
    if HF_HUB_OFFLINE and not (commit and (snapshots / commit).is_dir()):
        raise SaebenchError(
            f"model '{name}' (revision {revision or 'main'}) is not on this machine and the hub client is offline: "
            "unset HF_HUB_OFFLINE, or give a local folder"
        )
    return commit


def cached_commit(name: str, revision: str | None, *, repo_type: str = "model") -> str | None:
    """The commit a revision names in the local hub cache, or None; never touches the network."""
    from huggingface_hub.constants import HF_HUB_CACHE

    if revision is not None and len(revision) == 40 and all(c in "0123456789abcdef" for c in revision):
        return revision
    repository = Path(HF_HUB_CACHE) / f"{repo_type}s--{name.replace('/', '--')}"
    pointer = repository / "refs" / (revision or "main")
    return pointer.read_text().strip() if pointer.is_file() else None


def _folder(ref: str) -> Path | None:
    """The local folder a reference means; None for a hub name.

    Raises:
        SaebenchError: it can only mean a path, and there is no such folder.
    """
    path = Path(ref).expanduser()
    if path.is_dir():
        return path
    if path.is_file():
        raise SaebenchError(f"model '{ref}' is a file: give the folder that holds it")
    if not ref or ref.startswith((".", "/", "~")) or ref.count("/") > 1:
        beside = [p.name for p in path.parent.iterdir() if p.is_dir()] if path.parent.is_dir() else []
        hint = did_you_mean(path.name, beside) if beside else ""
        raise SaebenchError(f"model folder '{ref}' does not exist{hint}")
    return None


def _cannot_be_had(error: Exception, ref: str) -> SaebenchError:
    """What went wrong with something of the hub, told by its cause."""
    from huggingface_hub import errors

    causes = list(_causes(error))
    if any(isinstance(c, errors.GatedRepoError) for c in causes):
        return SaebenchError(f"'{ref}' is gated: accept its terms on the hub, then log in with `hf auth login`")
    if any(isinstance(c, errors.RevisionNotFoundError) for c in causes):
        return SaebenchError(f"'{ref}' has no such revision; give --revision a branch, tag or commit it has")
    if any(isinstance(c, errors.RepositoryNotFoundError) for c in causes):
        return SaebenchError(f"'{ref}' is neither a local folder nor on the hub; private ones need `hf auth login`")
    offline = (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled, ConnectionError)
    if any(isinstance(c, offline) for c in causes):
        return SaebenchError(
            f"'{ref}' is not on this machine and the hub cannot be reached: "
            "download it once with a network, or give a local path"
        )
    return error if isinstance(error, SaebenchError) else SaebenchError(f"'{ref}' cannot be opened: {error}")


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


# -- data sets


def peek_dataset(ref: str, *, split: str | None = None, revision: str | None = None) -> DataIdentity:
    """Name, commit (from the local hub cache if there, else as asked for) and split."""
    name = ref.partition(":")[0]
    if Path(ref).suffix.lower() in files.READERS:
        raise SaebenchError(f"corpus '{ref}': there is no such file")
    if not name or Path(ref).expanduser().exists() or name.count("/") > 1 or name.startswith((".", "/", "~")):
        raise SaebenchError(f"corpus '{ref}' is not a data set's name; for a local file give its path (file:PATH)")
    return DataIdentity(ref, cached_commit(name, revision, repo_type="dataset") or revision, split or "train")


def stream(
    ref: str, *, split: str | None = None, revision: str | None = None, text_field: str = "text"
) -> Iterable[str]:
    """Documents of a hub data set in its order, streamed; `name:config` names a configuration.

    Raises:
        SaebenchError: the data set, its split or the field cannot be had; says which.
    """
    name, _, configuration = ref.partition(":")
    rows = _open(ref, name, configuration or None, split or "train", revision)
    for i, row in enumerate(_reading(rows, ref)):
        if text_field not in row:
            raise SaebenchError(
                f"data set '{ref}' has no field '{text_field}'{did_you_mean(text_field, list(row))} "
                "Name it with --text-field."
            )
        text = row[text_field]
        if text is not None and not isinstance(text, str):
            raise SaebenchError(f"data set '{ref}': field '{text_field}' of row {i} is {type(text).__name__}, not text")
        yield text or ""


def _open(ref: str, name: str, configuration: str | None, split: str, revision: str | None) -> Iterable[Any]:
    import datasets

    try:
        rows: Iterable[Any] = datasets.load_dataset(name, configuration, split=split, revision=revision, streaming=True)
    except (OSError, ValueError, RuntimeError) as e:
        raise _cannot_be_had(e, ref) from e
    return rows


def _reading(rows: Iterable[Any], ref: str) -> Iterator[Any]:
    try:
        yield from rows
    except OSError as e:
        raise _cannot_be_had(e, ref) from e
