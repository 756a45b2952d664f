"""Models of local folders, corpora of local files, and what is said when something cannot be had."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from saebench_meta.errors import BadFileError, SaebenchError
from saebench_plugins import files, huggingface

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
    with pytest.raises(SaebenchError, match=r"has no \*\.safetensors.*pickled"):
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
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    return tmp_path


def test_a_hub_name_is_pinned_to_the_commit_in_the_local_cache(hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    commit = "a" * 40
    refs = hub / "models--owner--name" / "refs"
    refs.mkdir(parents=True)
    (refs / "main").write_text(commit)
    assert huggingface.peek_model("owner/name").revision == commit
    assert huggingface.peek_model("owner/name", revision="v2").revision == "v2"
    assert huggingface.peek_model("owner/name", revision="b" * 40).revision == "b" * 40
    assert huggingface.peek_model("owner/other").revision is None
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    (hub / "models--owner--name" / "snapshots" / commit).mkdir(parents=True)
    assert huggingface.peek_model("owner/name").revision == commit
    with pytest.raises(SaebenchError, match="offline"):
        huggingface.peek_model("owner/other")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("GatedRepoError", "is gated"),
        ("RevisionNotFoundError", "no such revision"),
        ("RepositoryNotFoundError", "neither a local folder nor on the hub"),
        ("LocalEntryNotFoundError", "cannot be reached"),
    ],
)
def test_what_the_hub_refuses_is_told_by_its_cause(name: str, message: str) -> None:
    from huggingface_hub import errors

    kind = getattr(errors, name)
    error = OSError("wrapped")
    error.__cause__ = kind.__new__(kind)
    told = huggingface._cannot_be_had(error, "owner/name")
    assert message in str(told) and "owner/name" in str(told)


# -- data sets of the hub


def test_a_hub_data_set_is_streamed_and_its_field_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    asked: list[tuple[Any, ...]] = []

    def load(*args: Any, **options: Any) -> list[dict[str, Any]]:
        asked.append((*args, options))
        return [{"text": "a", "n": 1}, {"text": None, "n": 2}]

    monkeypatch.setattr(datasets, "load_dataset", load)
    assert list(huggingface.stream("owner/name:config", split="test", revision="v1")) == ["a", ""]
    assert asked == [("owner/name", "config", {"split": "test", "revision": "v1", "streaming": True})]
    with pytest.raises(SaebenchError, match="did you mean 'text'"):
        list(huggingface.stream("owner/name", text_field="txt"))
    with pytest.raises(SaebenchError, match="is int, not text"):
        list(huggingface.stream("owner/name", text_field="n"))


def test_a_hub_data_set_that_cannot_be_reached_is_one_clear_error() -> None:
    with pytest.raises(SaebenchError, match="'owner/name'"):
        list(huggingface.stream("owner/name"))


def test_a_data_sets_identity_names_its_split_and_commit(hub: Path) -> None:
    refs = hub / "datasets--owner--name" / "refs"
    refs.mkdir(parents=True)
    (refs / "main").write_text("c" * 40)
    identity = huggingface.peek_dataset("owner/name")
    assert (identity.revision, identity.split, identity.sha256) == ("c" * 40, "train", None)
    with pytest.raises(SaebenchError, match="not a data set's name"):
        huggingface.peek_dataset("./missing")
    with pytest.raises(SaebenchError, match="no such file"):
        huggingface.peek_dataset("missing.txt")


def test_the_plugin_offers_both_kinds() -> None:
    assert set(huggingface.saebench_datasets()) == {"file", "hf"}
    assert set(huggingface.saebench_language_models()) == {"hf"}
