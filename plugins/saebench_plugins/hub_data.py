"""Data sets of the hub, streamed at one commit: `owner/name`, or `owner/name:config`. No code of theirs is ever run."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from saebench_meta.errors import SaebenchError, did_you_mean
from saebench_meta.hookspecs import DataIdentity
from saebench_plugins import files, hub

NAMES = (
    "Skylion007/openwebtext",
    "monology/pile-uncopyrighted",
    "allenai/c4:en",
    "roneneldan/TinyStories",
    "HuggingFaceFW/fineweb:sample-10BT",
    "HuggingFaceFW/fineweb-edu:sample-10BT",
    "cerebras/SlimPajama-627B",
)
"""What published SAEs were trained on or are measured on; docs/data.md has their licences."""
CARD = "README.md"


def peek(ref: str, *, split: str | None = None, revision: str | None = None) -> DataIdentity:
    """Name, commit and split.

    Raises:
        SaebenchError: not a data set's name; or the commit is not to be had, as `hub.commit_of` says.
    """
    return DataIdentity(ref, hub.commit_of(_name(ref), revision, CARD, "dataset"), split or "train")


def _name(ref: str) -> str:
    """The repository of a reference."""
    name = ref.partition(":")[0]
    if Path(ref).suffix.lower() in files.READERS:
        raise SaebenchError(f"corpus '{ref}': there is no such file")
    if not name or Path(ref).expanduser().exists() or name.count("/") > 1 or name.startswith((".", "/", "~")):
        raise SaebenchError(
            f"corpus '{ref}' is not a data set's name (such as {NAMES[0]} or {NAMES[2]}); "
            "for a local file give its path (file:PATH)"
        )
    return name


def stream(
    ref: str, *, split: str | None = None, revision: str | None = None, text_field: str = "text"
) -> Iterator[str]:
    """Documents of a data set in its order. No more is read of its files than is asked for.

    Raises:
        SaebenchError: the data set, its configuration, its split or the field cannot be had; says which.
    """
    for i, row in enumerate(rows(ref, split or "train", revision)):
        if text_field not in row:
            raise SaebenchError(
                f"data set '{ref}' has no field '{text_field}'{did_you_mean(text_field, list(row))} "
                "Name it with --text-field."
            )
        text = row[text_field]
        if text is not None and not isinstance(text, str):
            raise SaebenchError(f"data set '{ref}': field '{text_field}' of row {i} is {type(text).__name__}, not text")
        yield text or ""


def rows(
    ref: str, split: str, revision: str | None, *, files: str | None = None, keep: bool = False
) -> Iterator[dict[str, Any]]:
    """Rows of a data set in its order, with all their columns.

    Args:
        files: parquet files of the repository, by a pattern, instead of what its card or its code makes of them.
        keep: download the whole data set once and keep it on this machine, instead of streaming it.

    Raises:
        SaebenchError: the data set, its configuration or its split cannot be had; says which.
    """
    name, _, configuration = ref.partition(":")
    commit = hub.commit_of(_name(ref), revision, CARD, "dataset")
    try:
        yield from _open(name, configuration or None, split, commit, files, keep)
    except hub.failures(RuntimeError, ImportError) as e:
        raise _explained(e, ref) from e


def _open(
    name: str, configuration: str | None, split: str, commit: str, files: str | None, keep: bool
) -> Iterable[dict[str, Any]]:
    import datasets

    rows: Iterable[dict[str, Any]]
    if files is not None:
        of_it = {split: f"hf://datasets/{name}@{commit}/{files}"}
        rows = datasets.load_dataset("parquet", data_files=of_it, split=split, streaming=True)
        return rows
    builder = datasets.load_dataset_builder(name, configuration, revision=commit)
    if builder.hash != commit:
        # Where the hub cannot be reached, `datasets` takes what it prepared last, of whatever commit.
        raise ConnectionError(f"commit {commit} of {name} is not among the prepared data sets on this machine")
    if keep:
        builder.download_and_prepare()
    rows = builder.as_dataset(split=split) if keep else builder.as_streaming_dataset(split=split)
    return rows


def _explained(error: Exception, ref: str) -> SaebenchError:
    """The causes that only data sets have, else those of the hub."""
    said = str(error)
    if "scripts are no longer supported" in said:
        return SaebenchError(
            f"data set '{ref}' comes as code, which is never run: try the hub's own conversion, "
            "--data-revision refs/convert/parquet, without a configuration"
        )
    if isinstance(error, ImportError) or "zstd" in said or "zstandard" in said:
        return SaebenchError(f"data set '{ref}' needs a library to be read ({said}); `pip install zstandard` for .zst")
    if "Config name is missing" in said:
        return SaebenchError(f"data set '{ref}' has configurations: name one as '{ref}:CONFIG'. {said.splitlines()[1]}")
    return hub.explained(error, ref, "dataset")
