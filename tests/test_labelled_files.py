"""Labelled sets in local files: what is read, how it is split, and what is said of files that will not do."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from saebench_meta.errors import SaebenchError
from saebench_meta.hookspecs import LabelledSet
from saebench_plugins.labelled import files

ROWS = [{"text": f'text {i}, "quoted"', "label": ("cat", "dog")[i % 2]} for i in range(40)]


def written(path: Path, rows: list[dict[str, Any]]) -> Path:
    if path.suffix == ".csv":
        pd.DataFrame(rows).to_csv(path, index=False)
    elif path.suffix == ".parquet":
        pd.DataFrame(rows).to_parquet(path)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def pairs(found: LabelledSet, split: str) -> set[tuple[str, str]]:
    return {(t, found.classes[i]) for t, i in zip(found.texts[split], found.labels[split], strict=True)}


@pytest.mark.parametrize("suffix", files.READERS)
def test_every_format_gives_the_same_set(tmp_path: Path, suffix: str) -> None:
    found = files.load(str(written(tmp_path / f"pets{suffix}", ROWS)))
    assert found.classes == ("cat", "dog")
    assert pairs(found, "train") | pairs(found, "test") == {(row["text"], row["label"]) for row in ROWS}
    assert [sorted(found.labels[s]).count(i) for s in ("train", "test") for i in (0, 1)] == [16, 16, 4, 4]
    identity = files.peek(str(tmp_path / f"pets{suffix}"))
    assert identity.ref == f"pets{suffix}" and identity.sha256 is not None


def test_the_split_does_not_depend_on_the_order_of_rows_or_on_other_classes(tmp_path: Path) -> None:
    first = files.load(str(written(tmp_path / "a.jsonl", ROWS)))
    more = [{"text": f"bird {i}", "label": "bird"} for i in range(10)]
    second = files.load(str(written(tmp_path / "b.jsonl", random.Random(0).sample(ROWS + more, 50))))
    for split in ("train", "test"):
        assert {pair for pair in pairs(second, split) if pair[1] != "bird"} == pairs(first, split)


def test_a_split_of_the_files_own_is_kept_and_validation_is_not_tested_on(tmp_path: Path) -> None:
    split = ["train", "Test", "validation", "train"]
    rows = [{**row, "split": split[i % 4]} for i, row in enumerate(ROWS)]
    found = files.load(str(written(tmp_path / "own.csv", [{**row, "label": i % 3} for i, row in enumerate(rows)])))
    assert {s: len(texts) for s, texts in found.texts.items()} == {"train": 20, "validation": 10, "test": 10}
    assert found.classes == ("0", "1", "2")


def test_classes_that_are_numbers_come_in_their_order(tmp_path: Path) -> None:
    rows = [{"text": f"t {i}", "label": i % 12} for i in range(120)]
    assert files.load(str(written(tmp_path / "n.parquet", rows))).classes == tuple(map(str, range(12)))
    truths = [{"text": f"t {i}", "label": i % 2 == 0} for i in range(20)]
    assert files.load(str(written(tmp_path / "b.jsonl", truths))).classes == ("False", "True")


def changed(**changes: Any) -> list[dict[str, Any]]:
    return [{**ROWS[0], **changes}, *ROWS[1:]]


BAD: dict[str, tuple[list[dict[str, Any]], str]] = {
    "no text.csv": ([{"txt": "a", "label": "b"}], "has no column 'text'; did you mean 'txt'?"),
    "no label.parquet": ([{"text": "a", "lable": "b"}], "has no column 'label'; did you mean 'lable'?"),
    "no label.jsonl": ([{"text": "a"}], "line 1 has no 'label'"),
    "one class.csv": ([{**row, "label": "cat"} for row in ROWS], "all rows have the label 'cat'"),
    "few.csv": (changed(label="bird"), "class 'bird' has 1 different texts of 40, at least 5 are needed"),
    "same.csv": ([{**row, "text": f"{i % 4}"} for i, row in enumerate(ROWS)], "class 'cat' has 2 different texts"),
    "float.jsonl": (changed(label=0.5), "line 1 has float 0.5 as 'label', expected text or a whole number"),
    "list.jsonl": (changed(label=["cat"]), "line 1 has list"),
    "null.parquet": (changed(label=None), "row 1 has nothing as 'label'"),
    "empty.csv": (changed(label=""), "row 1 has an empty label"),
    "mixed.jsonl": (changed(label=3), "some labels are text, some numbers"),
    "text.jsonl": (changed(text=7), "line 1 has int 7 as 'text', expected text"),
    "split.jsonl": ([{**row, "split": "tst"} for row in ROWS], "'tst' is no split; did you mean 'test'?"),
    "part.csv": ([{**row, "split": "train"} for row in ROWS], "no row's split is 'test'"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_file_that_will_not_do_is_told_by_what_is_wrong(tmp_path: Path, name: str) -> None:
    rows, message = BAD[name]
    path = written(tmp_path / name, rows)
    for opened in (files.load, files.peek):
        with pytest.raises(SaebenchError) as raised:
            opened(str(path))
        assert message in str(raised.value) and name in str(raised.value)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("empty.csv", b"", "is not CSV"),
        ("head.csv", b"text,label\n", "has no rows"),
        ("ragged.csv", b"text,label\na,b\nc,d,e\n", "is not CSV: Error tokenizing data"),
        ("empty.jsonl", b"\n\n", "has no rows"),
        ("torn.jsonl", b'{"text": "a", "label": 1}\n{"text', "line 2 is not JSON"),
        ("lines.jsonl", b'"a"\n', "line 1 is no object with 'text' and 'label'"),
        ("latin.csv", "text,label\né,1\n".encode("latin-1"), "is not UTF-8 text"),
        ("latin.jsonl", '{"text": "é"}'.encode("latin-1"), "is not UTF-8 text"),
        ("fake.parquet", b"PAR1 no", "is not parquet"),
        ("pets.txt", b"text", "unknown suffix '.txt'"),
    ],
)
def test_what_is_no_such_file_is_one_sentence(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(SaebenchError) as raised:
        files.load(str(tmp_path / name))
    assert message in str(raised.value) and "\n" not in str(raised.value)


def test_a_missing_file_is_said_to_be_missing(tmp_path: Path) -> None:
    with pytest.raises(SaebenchError, match="there is no such file"):
        files.peek(str(tmp_path / "gone.csv"))


def test_a_file_that_changed_is_read_again(tmp_path: Path) -> None:
    path = written(tmp_path / "pets.jsonl", ROWS)
    before, first = files.peek(str(path)), files.load(str(path))
    assert files.load(str(path)) is first
    written(path, [{**row, "label": row["label"].upper()} for row in ROWS])
    assert files.load(str(path)).classes == ("CAT", "DOG")
    assert files.peek(str(path)).sha256 != before.sha256
