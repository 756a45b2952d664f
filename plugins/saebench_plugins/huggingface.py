"""Language models and corpora of the Hugging Face hub or in local folders and files.

    --model gpt2                 hub name; `hf:gpt2` says the same
    --model ./folder             folder with config.json and *.safetensors
    --corpus stories.jsonl       local file
    --corpus hf:owner/name       hub data set, streamed; `hf:owner/name:config` names one of its configurations

No code that comes with a model or data set is ever run, no pickled weights are opened, and what comes from the hub is
opened at the commit that the record names.
"""

from __future__ import annotations

import json
import runpy
from collections.abc import Mapping
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from saebench_meta.errors import SaebenchError, did_you_mean
from saebench_meta.hookspecs import DatasetLoader, ModelIdentity, ModelLoader, hookimpl
from saebench_plugins import files, hub, hub_data

if TYPE_CHECKING:
    import torch

    from saebench_meta.models import LanguageModel

saebench_api = 1

CONFIG = "config.json"
INDEX = "model.safetensors.index.json"
WEIGHTS = (INDEX, "model.safetensors")
"""Weights that are opened: an index of several files, or the one file."""
HASHED = (
    CONFIG,
    INDEX,
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
        "hf": DatasetLoader(
            documents=hub_data.stream,
            peek=hub_data.peek,
            names=hub_data.NAMES,
            summary="data set of the Hugging Face hub, streamed",
        ),
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
        SaebenchError: the model cannot be had (no such folder, not downloaded and no network, gated), has no
            safetensors, or wants code of its own; says which.
    """
    from saebench_meta.foreign_code import ForeignCodeError
    from saebench_meta.models import load_bridge

    identity, folder = peek_model(ref, revision=revision), _folder(ref)
    if folder is None:
        _fetch_weights(identity.ref, identity.revision)
    try:
        return load_bridge(
            str(folder or identity.ref),
            ref=identity.ref,
            revision=identity.revision,
            device=device,
            dtype=dtype,
            device_map=device_map,
            files=identity.files,
        )
    except SaebenchError as e:
        if folder is not None or isinstance(e, ForeignCodeError):
            raise
        raise hub.explained(e, ref) from e


def peek_model(ref: str, *, revision: str | None = None) -> ModelIdentity:
    """Hashes of a folder's files; for a hub name its full name and the commit.

    Raises:
        SaebenchError: no such folder, no files of a model in it, or not to be had from the hub.
    """
    folder = _folder(ref)
    if folder is None:
        return _peek_hub(full_name(ref), revision)
    if revision is not None:
        raise SaebenchError(f"model '{ref}' is a local folder and has no revision: leave --revision out")
    from saebench_meta.resolve import file_sha256

    if not (folder / CONFIG).is_file() or not any((folder / name).is_file() for name in WEIGHTS):
        missing = WEIGHTS[1] if (folder / CONFIG).is_file() else CONFIG
        raise SaebenchError(
            f"model folder '{ref}' has no {missing}: give a Hugging Face folder "
            "(saved with save_pretrained; pickled .bin weights are not opened)"
        )
    named = [folder / name for name in HASHED if (folder / name).is_file()]
    hashes = {p.name: file_sha256(p) for p in (*named, *sorted(folder.glob("*.safetensors")))}
    return ModelIdentity(ref, None, hashes, parameters_of(folder / CONFIG))


def parameters_of(config: Path) -> int | None:
    """About how many parameters a model has by its configuration: 12 d² a layer and two embeddings; None if unsaid."""
    try:
        said = json.loads(config.read_bytes())
        said = said.get("text_config", said)
    except (OSError, ValueError, AttributeError):
        return None
    names = (("hidden_size", "n_embd", "d_model"), ("num_hidden_layers", "n_layer", "num_layers"), ("vocab_size",))
    found = [next((said[n] for n in same if isinstance(said.get(n), int)), None) for same in names]
    if None in found:
        return None
    d, layers, vocabulary = (int(n or 0) for n in found)
    return layers * 12 * d * d + 2 * vocabulary * d


def _peek_hub(name: str, revision: str | None) -> ModelIdentity:
    from huggingface_hub.errors import RemoteEntryNotFoundError

    commit = hub.commit_of(name, revision, CONFIG)
    try:
        config = hub.fetch(name, CONFIG, commit)
    except RemoteEntryNotFoundError as e:
        raise SaebenchError(f"'{name}' has no {CONFIG} on the hub: it is no model that transformers opens") from e
    except hub.failures() as e:
        raise hub.explained(e, name) from e
    return ModelIdentity(name, commit, parameters=parameters_of(config))


def _fetch_weights(name: str, commit: str | None) -> None:
    """See that there are safetensors, and fetch them: transformers would else open pickled weights."""
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    for file in WEIGHTS:
        try:
            hub.fetch(name, file, commit)
            return
        except LocalEntryNotFoundError as e:
            if file == WEIGHTS[-1]:
                raise hub.explained(e, name) from e
        except EntryNotFoundError:
            continue
        except hub.failures() as e:
            raise hub.explained(e, name) from e
    raise SaebenchError(
        f"'{name}' has no {WEIGHTS[1]} on the hub, and pickled weights are not opened: give a --revision that has them "
        "(the hub's converter leaves one at refs/pr/…), or convert a copy with save_pretrained"
    )


def full_name(name: str) -> str:
    """The hub name of a model that TransformerLens knows by a short one, such as gpt2 for gpt2-small."""
    return _short_names().get(name, name)


@lru_cache(maxsize=1)
def _short_names() -> dict[str, str]:
    """Out of TransformerLens' files, since importing it takes seconds; empty where a release keeps them elsewhere."""
    spec = find_spec("transformer_lens")
    folder = Path((spec.submodule_search_locations or [""])[0]) if spec else Path()
    table = folder / "tools" / "model_registry" / "data" / "model_aliases.json"
    aliases: Mapping[str, list[str]] = {}
    if table.is_file():
        aliases = json.loads(table.read_text("utf-8"))["aliases"]
    elif (folder / "supported_models.py").is_file():  # before 4: a module of nothing but tables
        aliases = runpy.run_path(str(folder / "supported_models.py"))["MODEL_ALIASES"]
    return {short: name for name, shorts in aliases.items() for short in shorts}


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
