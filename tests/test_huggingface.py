"""Models of local folders, corpora of local files, and what is said when something cannot be had."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from saebench_meta.errors import BadFileError, SaebenchError
from saebench_meta.hookspecs import DataIdentity
from saebench_meta.plugins import registry
from saebench_meta.resolve import resolve_data
from saebench_plugins import files, hub, hub_data, huggingface

TEXTS = ["one day", "", 'with "quotes", and a comma', "two\u2028parts", "NA"]


def write(folder: Path, suffix: str, texts: list[str], field: str = "text") -> Path:
    import pandas as pd

    path = folder / f"corpus{suffix}"
    rows = [{"id": i, field: text} for i, text in enumerate(texts)]
    match suffix:
        case ".txt":
            path.write_text("\n".join(texts) + "\n")
        case ".jsonl":
            path.write_text("".join(json.dumps(r) + "\n" for r in rows))
        case ".json":
            path.write_text(json.dumps(texts))
        case ".csv":
            pd.DataFrame(rows).to_csv(path, index=False)
        case ".parquet":
            pd.DataFrame(rows).to_parquet(path)
    return path


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".csv", ".parquet"])
def test_every_format_gives_the_same_documents_in_order(tmp_path: Path, suffix: str) -> None:
    path = write(tmp_path, suffix, TEXTS)
    assert files.claims(path) and files.documents(str(path)) == TEXTS
    if suffix != ".json":
        body = write(tmp_path, suffix, TEXTS, field="body")
        assert files.documents(str(body), text_field="body") == TEXTS


def test_text_files_hold_a_document_a_line_or_one_between_blank_lines(tmp_path: Path) -> None:
    path = write(tmp_path, ".txt", ["one day", "two\u2028parts", " three"])
    assert files.documents(str(path)) == ["one day", "two\u2028parts", " three"]
    path.write_text("\nfirst line\nsecond line\n \t\n\n  another\n\n")
    assert files.documents(str(path)) == ["first line\nsecond line", "  another"]
    path.write_text("")
    assert not any(files.documents(str(path)))


def test_a_list_of_objects_and_null_texts_are_read(tmp_path: Path) -> None:
    path = tmp_path / "c.json"
    path.write_text(json.dumps([{"text": "a"}, {"text": None}, "b"]))
    assert files.documents(str(path)) == ["a", "", "b"]


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".parquet"])
def test_a_missing_field_is_named_with_a_suggestion(tmp_path: Path, suffix: str) -> None:
    path = write(tmp_path, suffix, ["x"], field="texts")
    with pytest.raises(BadFileError, match=r"no field 'text'; did you mean 'texts'\? Name it with --text-field"):
        files.documents(str(path))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b'{"text": "x"}\n{"text"', "line 2 is not JSON"),
        ("a.json", b'{"text": "x"}', "not a list"),
        ("a.json", b"[1]", "item 0 has int"),
        ("a.parquet", b"PAR1nonsense", "is not parquet"),
        ("a.csv", b"", "is not CSV"),
        ("a.txt", b"\xff\xfe\xfa", "not UTF-8"),
    ],
)
def test_a_broken_file_is_named(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(BadFileError, match=message):
        files.documents(str(tmp_path / name))


def test_files_that_cannot_be_used_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.docx").write_text("x")
    assert not files.claims(tmp_path / "a.docx") and not files.claims(tmp_path)
    for ref, options, message in [
        ("a.docx", {}, "unknown suffix"),
        ("b.txt", {}, "no such file"),
    ]:
        with pytest.raises(SaebenchError, match=message):
            files.documents(str(tmp_path / ref), **options)
    path = write(tmp_path, ".txt", ["x"])
    with pytest.raises(SaebenchError, match="has no split"):
        files.peek(str(path), split="train")


def test_a_files_identity_is_its_content_and_how_it_is_read(tmp_path: Path) -> None:
    names = ("a.txt", "b.txt", "c.jsonl", "d.txt")
    for name, text in zip(names, ('"x"\n', '"x"\n', '"x"\n', '"y"\n'), strict=True):
        (tmp_path / name).write_text(text)
    a, b, c, d = (files.peek(str(tmp_path / name)).sha256 for name in names)
    assert a == b and len({a, c, d}) == 3


# -- models


def test_a_local_folder_is_named_by_the_hashes_of_its_files(stories_model_dir: Path, tmp_path: Path) -> None:
    identity = huggingface.peek_model(str(stories_model_dir))
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= set(identity.files)
    weights = (stories_model_dir / "model.safetensors").read_bytes()
    assert identity.files["model.safetensors"] == hashlib.sha256(weights).hexdigest()
    shutil.copytree(stories_model_dir, tmp_path / "copy")
    assert huggingface.peek_model(str(tmp_path / "copy")).files == identity.files


def test_a_loaded_model_carries_its_identity(stories_model_dir: Path) -> None:
    lm = huggingface.load_model(str(stories_model_dir))
    assert lm.files == huggingface.peek_model(str(stories_model_dir)).files
    assert (lm.ref, lm.revision, lm.n_layers) == (str(stories_model_dir), None, 5)


def test_folders_that_are_no_models_are_refused(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    with pytest.raises(SaebenchError, match=r"has no config\.json"):
        huggingface.peek_model(str(tmp_path / "model"))
    (tmp_path / "model" / "config.json").write_text("{}")
    (tmp_path / "model" / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(SaebenchError, match=r"has no model\.safetensors.*pickled"):
        huggingface.peek_model(str(tmp_path / "model"))
    with pytest.raises(SaebenchError, match="does not exist; did you mean 'model'"):
        huggingface.peek_model(str(tmp_path / "modle"))
    (tmp_path / "model" / "model.safetensors").write_bytes(b"")
    with pytest.raises(SaebenchError, match="no revision"):
        huggingface.peek_model(str(tmp_path / "model"), revision="main")
    with pytest.raises(SaebenchError, match="cannot be opened"):
        huggingface.load_model(str(tmp_path / "model"))


def test_truncated_weights_are_one_clear_error(stories_model_dir: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(stories_model_dir, folder)
    weights = folder / "model.safetensors"
    data = weights.read_bytes()
    weights.chmod(0o644)
    weights.write_bytes(data[: len(data) // 2])
    with pytest.raises(SaebenchError, match="cannot be opened"):
        huggingface.load_model(str(folder))


@pytest.fixture
def hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty cache of the hub's client, with the client told to stay offline."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    hub.commit_of.cache_clear()
    yield tmp_path
    hub.commit_of.cache_clear()


def test_short_names_of_transformer_lens_are_the_models_they_stand_for(hub_cache: Path) -> None:
    commit = "a" * 40
    for folder, name, content in [("refs", "main", commit), (f"snapshots/{commit}", "config.json", "{}")]:
        path = hub_cache / "models--gpt2" / folder / name
        path.parent.mkdir(parents=True)
        path.write_text(content)
    assert huggingface.full_name("pythia-70m-deduped") == "EleutherAI/pythia-70m-deduped"
    short, full = huggingface.peek_model("gpt2-small"), huggingface.peek_model("gpt2")
    assert short == full and (full.ref, full.revision) == ("gpt2", commit)
    with pytest.raises(SaebenchError, match="'EleutherAI/pythia-70m-deduped' is not on this machine"):
        huggingface.peek_model("pythia-70m-deduped")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("GatedRepoError", "is gated"),
        ("RevisionNotFoundError", "no such revision: give --revision"),
        ("RepositoryNotFoundError", "neither here nor on the hub"),
        ("LocalEntryNotFoundError", "cannot be reached"),
    ],
)
@pytest.mark.parametrize("left_out", [False, True])
def test_what_the_hub_refuses_is_told_by_its_cause(name: str, message: str, left_out: bool) -> None:
    from huggingface_hub import errors

    kind = getattr(errors, name)
    error = OSError("wrapped")
    if left_out:
        error.__context__, error.__suppress_context__ = kind.__new__(kind), True
    else:
        error.__cause__ = kind.__new__(kind)
    told = str(hub.explained(error, "owner/name"))
    assert re.search(message, told) and "owner/name" in told


# -- data sets of the hub


@pytest.mark.parametrize("ref", hub_data.NAMES)
def test_the_data_sets_that_are_named_can_be_referred_to(ref: str) -> None:
    commit = "b" * 40
    for given in (ref, f"hf:{ref}"):
        found = resolve_data(registry(), given, split=None, revision=commit)
        assert (found.rest, found.identity) == (ref, DataIdentity(ref, commit, "train"))


def test_what_is_no_data_sets_name_is_refused(hub_cache: Path) -> None:
    for ref, message in [
        ("./missing", "not a data set's name"),
        ("a/b/c", "such as Skylion007/openwebtext or allenai/c4:en"),
        ("missing.txt", "no such file"),
        ("owner/name", "'owner/name' is not on this machine"),
    ]:
        with pytest.raises(SaebenchError, match=message):
            hub_data.peek(ref)


def test_the_plugin_offers_both_kinds() -> None:
    assert set(huggingface.saebench_datasets()) == {"file", "hf"}
    assert set(huggingface.saebench_language_models()) == {"hf"}
