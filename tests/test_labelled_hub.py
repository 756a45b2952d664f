"""The eight labelled sets of the literature, read through the hub's own clients from a server on the loopback."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hub_server import COMMIT, Hub, Repo, serving

from saebench_plugins.labelled import hub_sets

CARD = b"---\nlicense: mit\n---\n"
LANGUAGES = {"C": ".h", "Python": ".py", "HTML": ".html", "Java": ".java", "PHP": ".php"}
PER = 20
"""Rows of a class, or of a group of it."""

READ = """
import json, sys
from saebench_meta.errors import SaebenchError
from saebench_plugins.labelled import hub_sets
hub_sets.TRAIN, hub_sets.TEST = 8, 4
for ref in sys.argv[1:]:
    try:
        identity, found = hub_sets.peek(ref), hub_sets.load(ref)
        said = [identity.ref, identity.revision, found.classes, found.texts, found.labels]
    except SaebenchError as e:
        said = str(e)
    print(json.dumps(said))
"""


def parquet(rows: list[dict[str, Any]]) -> bytes:
    file = io.BytesIO()
    pd.DataFrame(rows).to_parquet(file)
    return file.getvalue()


def splits(rows: dict[str, list[dict[str, Any]]]) -> dict[str, bytes]:
    return {"README.md": CARD} | {f"data/{s}-00000-of-00001.parquet": parquet(own) for s, own in rows.items()}


def biographies(split: str, reverse: bool = False) -> list[dict[str, Any]]:
    """Twice as many of one gender; profession 27 is of no set; some texts are in both splits or have two classes."""
    rows = [
        {"hard_text": f" {split} of {p}, {g}, {i} ", "profession": p, "gender": g}
        for p in (0, 1, 2, 6, 9, 27)
        for g in (0, 1)
        for i in range(PER * (1 + g))
    ]
    rows += [{"hard_text": f"in both {i}", "profession": 0, "gender": 0} for i in range(PER)]
    rows += [{"hard_text": f"{split}: two classes {i}", "profession": p, "gender": 0} for i in range(9) for p in (1, 2)]
    rows += [{"hard_text": "  ", "profession": 6, "gender": 0}] * PER
    return rows[::-1] if reverse else rows


def reviews(split: str) -> list[dict[str, Any]]:
    return [
        {"text": f"{split} {c} {stars} {i}", "category": c, "rating": stars}
        for c in (1, 2, 3, 5, 6, 7)
        for stars in (1.0, 5.0)
        for i in range(PER)
    ]


def programs() -> list[dict[str, Any]]:
    rows = [
        {"content": "l" * 150 + f"{language} {i} " + "x" * 400, "path": f"src/a{suffix}", "license": "mit"}
        for i in range(PER)
        for language, suffix in LANGUAGES.items()
    ]
    return [*rows, {"content": "short", "path": "a.py", "license": "mit"}, {**rows[0], "path": "a.go"}]


def speeches(pair: str) -> dict[str, bytes]:
    rows = [{"translation": {side: f"{side} in {pair} {i}" for side in pair.split("-")}} for i in range(PER)]
    return {f"{pair}/train-00000-of-00001.parquet": parquet([*rows, *rows[:3]])}


PAIRS = tuple(hub_sets.PAIRS.values())
CONFIGURATIONS = "\n".join(
    ["---", "configs:", *(f"- config_name: {p}\n  data_files: [{{split: train, path: {p}/*}}]" for p in PAIRS), "---\n"]
)


def repositories() -> dict[str, Repo]:
    news = {s: [{"text": f"{s} {i}", "label": i % 4} for i in range(4 * PER)] for s in ("train", "test")}
    code = {"README.md": CARD, "github-code.py": b"raise SystemExit(3)"}
    code["data/train-00000-of-01126.parquet"] = parquet(programs())
    pairs = {file: content for p in PAIRS for file, content in speeches(p).items()}
    both = ("train", "test")
    return {
        "datasets/LabHC/bias_in_bios": Repo.of(splits({s: biographies(s) for s in both})),
        "datasets/canrager/amazon_reviews_mcauley_1and5": Repo.of(splits({s: reviews(s) for s in both})),
        "datasets/fancyzhx/ag_news": Repo.of(splits(news)),
        "datasets/codeparrot/github-code": Repo.of(code),
        "datasets/Helsinki-NLP/europarl": Repo.of({"README.md": CONFIGURATIONS.encode(), **pairs}),
    }


@pytest.fixture(scope="module")
def hub() -> Iterator[Hub]:
    with serving(repositories()) as server:
        yield server


def read(hub: Hub, home: Path, *refs: str, **how: Any) -> list[Any]:
    """What each set holds, or what the error says."""
    return [json.loads(line) for line in hub.python(READ, home, *refs, **how).splitlines()]


REFS = tuple(name for name in hub_sets.SETS if name not in ("bias-in-bios-2", "bias-in-bios-3"))


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("hub")


@pytest.fixture(scope="module")
def found(hub: Hub, home: Path) -> dict[str, Any]:
    return dict(zip(REFS, read(hub, home, *REFS), strict=True))


@pytest.mark.parametrize("ref", REFS)
def test_each_set_has_its_classes_in_equal_numbers_and_no_text_twice(found: dict[str, Any], ref: str) -> None:
    name, commit, classes, texts, labels = found[ref]
    assert (name, commit, tuple(classes)) == (f"hub:{ref}", COMMIT, hub_sets.SETS[ref].classes)
    for split, size in (("train", 8), ("test", 4)):
        assert [labels[split].count(i) for i in range(len(classes))] == [size] * len(classes)
    every = texts["train"] + texts["test"]
    assert len(set(every)) == len(every) and all(text == text.strip() for text in every)


def test_biographies_are_balanced_by_gender_and_leave_out_what_is_in_both_splits_or_two_classes(
    found: dict[str, Any],
) -> None:
    texts, labels = found["bias-in-bios-1"][3:]
    for split, size in (("train", 4), ("test", 2)):
        for label, profession in ((1, 1), (2, 2), (3, 6), (4, 9)):
            own = [text for text, one in zip(texts[split], labels[split], strict=True) if one == label]
            assert [sum(f"{profession}, {gender}, " in text for text in own) for gender in (0, 1)] == [size, size]
    assert not any("two classes" in text for own in texts.values() for text in own)
    assert not any("in both" in text for text in texts["train"])


def test_programs_lose_their_beginning_and_are_told_by_the_ends_of_their_names(found: dict[str, Any]) -> None:
    classes, texts, labels = found["github-code"][2:]
    for split in ("train", "test"):
        assert all(text.startswith(f"{classes[i]} ") for text, i in zip(texts[split], labels[split], strict=True))


def test_speeches_are_of_one_side_of_a_pair_each(found: dict[str, Any]) -> None:
    classes, texts, labels = found["europarl"][2:]
    expected = [f"{classes[i]} in {hub_sets.PAIRS[classes[i]]} " for i in labels["train"]]
    assert all(text.startswith(start) for text, start in zip(texts["train"], expected, strict=True))


def test_the_choice_does_not_depend_on_the_order_of_rows(found: dict[str, Any], tmp_path: Path) -> None:
    rows = {s: biographies(s, reverse=True) for s in ("train", "test")}
    with serving({"datasets/LabHC/bias_in_bios": Repo.of(splits(rows))}) as other:
        assert read(other, tmp_path, "bias-in-bios-1") == [found["bias-in-bios-1"]]


def test_a_set_once_read_whole_is_there_without_the_hub_and_one_commit_can_be_named(
    found: dict[str, Any], hub: Hub, home: Path
) -> None:
    hub.asked.clear()
    kept, pinned, streamed, unknown = read(
        hub, home, "ag-news", f"ag-news@{COMMIT}", "europarl", "ag_nws", offline=True
    )
    assert kept == pinned == found["ag-news"] and hub.asked == []
    assert "cannot be reached" in streamed
    assert "did you mean 'ag-news'" in unknown


def test_a_class_without_texts_is_an_error_that_names_it(tmp_path: Path) -> None:
    news = {s: [{"text": f"{s} {i}", "label": i % 3} for i in range(30)] for s in ("train", "test")}
    with serving({"datasets/fancyzhx/ag_news": Repo.of(splits(news))}) as other:
        (said,) = read(other, tmp_path, "ag-news")
    assert "fancyzhx/ag_news has no texts of class 'Sci/Tech' left" in said


def test_reading_ends_when_there_are_enough_texts_of_every_class() -> None:
    rows = (("ab"[i % 2], None, f"text {i}") for i in count())
    of = hub_sets.HubSet("owner/endless", ("a", "b"), lambda commit, split: rows, splits=False, enough=700)
    pool = hub_sets._read(of, COMMIT, "train")
    assert sum(len(own) for own in pool.kept.values()) == 2000
