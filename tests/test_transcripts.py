"""Transcripts: kept as they were, read without trust, and shown in a report."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np
import pytest
from click.testing import CliRunner
from record_samples import record, write
from transcript_samples import HOSTILE, lines, row, written

from saebench_meta.artifacts import draft
from saebench_meta.cli import saebench
from saebench_meta.errors import SaebenchError
from saebench_meta.measure import SUBJECT
from saebench_meta.plugins import Registry
from saebench_meta.record import JudgeUsed
from saebench_meta.report import write_report
from saebench_meta.store import Draft, read_valid
from saebench_meta.task import Output, Transcript
from saebench_meta.transcripts import EXAMPLES, MAX_BYTES, MAX_CHARS, fault, packed, read_questions


def drafted(rows: Sequence[Mapping[str, Any]], control: Sequence[Mapping[str, Any]] = ()) -> Draft:
    asked = {SUBJECT: rows, "random": control}
    outputs = {name: Output(transcripts={"the questions": Transcript("Questions", r)}) for name, r in asked.items()}
    return draft(outputs, Registry())


def questions(folder: Path, data: bytes) -> Path:
    file = folder / "questions.jsonl"
    file.write_bytes(data)
    return file


# -- kept


def test_a_transcript_is_kept_beside_the_record_and_only_that_of_the_subject(tmp_path: Path) -> None:
    files = drafted([row(0), row(1, answer=0)], control=[row(7)])
    assert list(files.files) == ["transcripts/the-questions.jsonl"]
    (artifact,) = files.artifacts
    data = files.files[artifact.path]
    assert (artifact.kind, artifact.title, artifact.bytes) == ("transcript", "Questions", len(data))
    (tmp_path / "transcripts").mkdir()
    (tmp_path / artifact.path).write_bytes(data)
    (tmp_path / "record.json").write_text(record(artifacts=files.artifacts).to_json())
    assert read_valid(tmp_path) is not None
    (tmp_path / artifact.path).write_bytes(b"")
    assert read_valid(tmp_path) is None


@pytest.mark.parametrize("text", [*HOSTILE, "x" * 100_000])
def test_whatever_a_text_holds_it_is_one_line_and_read_back_as_it_was(text: str) -> None:
    rows = [row(0, description=[text, text], words=text), row(1, **{"more " + text: text})]
    data = lines(rows)
    assert data.isascii() and len(data.decode().splitlines()) == 2
    assert [json.loads(line) for line in data.splitlines()] == rows


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"right": 5}, r"row 1: 'right' is 5, but there are 5 options"),
        ({"right": -1}, r"'right' is -1"),
        ({"answer": 5, "verdict": "wrong"}, r"'answer' is 5, but there are 5 options"),
        ({"answer": True}, r"'answer' is True; it must be the place of the chosen option"),
        ({"verdict": "right", "answer": None}, r"'verdict' is 'right'; by 'answer' and 'right' it is 'unanswered'"),
        ({"verdict": "maybe"}, r"must be right, wrong or unanswered"),
        ({"options": "abcde"}, r"'options' is 'abcde'; it must be a list of texts"),
        ({"options": []}, r"there are 0 options"),
        ({"latent": "seven"}, r"'latent' is 'seven'; it must be a whole number or null"),
        ({"words": 3}, r"'words' is 3"),
        ({"latent": np.int64(3)}, r"row 1: it is no plain data \(Object of type int64"),
        ({"density": float("nan")}, r"it is no plain data"),
    ],
)
def test_a_row_that_is_no_question_is_refused_with_its_place_and_reason(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(SaebenchError, match=f"transcript 'the questions', .*{said}"):
        drafted([row(0), row(1, **fields)])


@pytest.mark.parametrize("key", sorted(row()))
def test_no_key_may_be_missing(key: str) -> None:
    assert fault(row()) is None
    assert (fault({k: v for k, v in row().items() if k != key}) or "").startswith(f"'{key}' is missing")


# -- read


def test_lines_that_are_no_questions_are_counted_and_left_out(tmp_path: Path) -> None:
    bad = [b"", b"[1]", b"null", b"{", b"\xff\xfe", b"[" * 100_000, b'{"id": 1}', b'{"a": ' * 50_000]
    found = read_questions(questions(tmp_path, lines([row(3)]) + b"\n".join(bad) + b"\n" + lines([row(4)])))
    assert [q.id for q in found.shown] == ["q3", "q4"]
    assert found.faulty == len(bad) and found.missing == f"{len(bad)} lines of the file are no questions"


def test_what_a_file_holds_beyond_what_is_shown_is_counted(tmp_path: Path) -> None:
    one = lines([row(0, words="w" * (MAX_BYTES // 10))])
    found = read_questions(questions(tmp_path, one * 12))
    assert (len(found.shown), found.unread, found.faulty) == (9, 3, 0)
    assert found.missing == "3 more are in the file only"
    assert read_questions(questions(tmp_path, b"x" * (MAX_BYTES + 5))).shown == []


def test_long_texts_are_cut_and_characters_that_cannot_be_shown_are_replaced(tmp_path: Path) -> None:
    (q,) = read_questions(questions(tmp_path, lines([row(options=["o" * 5000, *HOSTILE[3:7]], x={"y": [1]})]))).shown
    assert q.options[0] == "o" * MAX_CHARS + "…"
    assert q.options[1:4] == [HOSTILE[3], "lone \ufffd surrogate", "nul \ufffd and \ufffd[31m escape"]
    assert q.more == [("model", "judge-1"), ("x", '{"y": [1]}')]


def test_texts_that_recur_are_packed_once(tmp_path: Path) -> None:
    rows = [row(0), row(0, answer=None), row(0, description=["option 0.1 with a «token»"])]
    made = packed(read_questions(questions(tmp_path, lines(rows))).shown)
    assert len(made["texts"]) == len(set(made["texts"])) == 10
    first, _, third = made["questions"]
    assert [made["texts"][i] for i in first["options"]] == row(0)["options"]
    assert third["description"] == [first["options"][1]]


# -- the report


def test_the_report_counts_verdicts_and_shows_examples_without_a_script(tmp_path: Path) -> None:
    rows = [row(i, answer=i % 2) for i in range(10)] + [
        row(i, answer=None, kind="choose_meta & more") for i in range(3)
    ]
    page = written(tmp_path, rows)
    text = (tmp_path / "report.html").read_text()
    assert "<script" not in text
    assert text.count('<li class="question">') == 3 * EXAMPLES
    href = f'href="interactive/{page.name}#kind=choose_meta%20%26%20more&verdict=unanswered"'
    assert re.search(re.escape(href) + r"[^>]*>3</a>", text)
    assert f"{3 * EXAMPLES} of 13 questions" in text and "✓ right, chosen" in text and "✗ chosen" in text
    links = [unquote(h) for h in re.findall(r'href="([^"#]*jsonl)"', text)]
    assert links and all((tmp_path / link).is_file() for link in links)


def test_the_page_has_the_file_and_the_way_back(tmp_path: Path) -> None:
    page = written(tmp_path, [row()], name="a name & sign")
    text = page.read_text()
    assert "default-src 'none'" in text and 'src="transcript.js"' in text and "<noscript>" in text
    (link,) = re.findall(r'href="([^"]*jsonl)"', text)
    assert (page.parent / unquote(link)).resolve().is_file()
    assert 'href="../report.html#record-1"' in text


def test_the_report_says_who_was_asked_and_what_it_took(tmp_path: Path) -> None:
    judge = JudgeUsed(
        name="paid",
        version="2",
        plugin="p:q",
        options={"model": "small-1"},
        prompts={"choose.v1": "c" * 64},
        models={"small-1-2024": 12},
        asked=1300,
        cached=40,
        unanswered={"refusal": 3},
        prompt_tokens=5000,
        completion_tokens=200,
        cost_usd=0.0123,
        seconds=61.25,
    )
    write(tmp_path, record(judge=judge))
    text = write_report(tmp_path).read_text()
    for name, said in {
        "judge": "paid 2",
        "judge: model": "small-1",
        "prompt choose.v1": f"sha256 {'c' * 16}…",
        "judge&#39;s model": "small-1-2024 (12 answers)",
        "judge asked": "1,300 requests, 40 of them from the cache, 3 unanswered (refusal)",
        "judge&#39;s tokens": "5,000 + 200",
        "judge&#39;s cost": "$0.0123",
        "judge&#39;s seconds": "61.2",
    }.items():
        assert f"<dt>{name}</dt><dd>{said}</dd>" in text


def test_markup_in_a_transcript_stays_text(tmp_path: Path) -> None:
    page = written(tmp_path, [row(0, description=HOSTILE, words=HOSTILE[0], kind=HOSTILE[1])], title=HOSTILE[0])
    for text, scripts in (((tmp_path / "report.html").read_text(), 0), (page.read_text(), 2)):
        assert text.count("<script") == scripts and "<img" not in text and "49" not in text


def test_a_transcript_outside_its_record_is_not_read(tmp_path: Path) -> None:
    page = written(tmp_path / "run", [row(0)])
    file = next((tmp_path / "run").rglob("record.json"))
    (tmp_path / "secret.jsonl").write_bytes(lines([row(1, description="secret")]))
    page.unlink()
    outside = "../" * 4 + "secret.jsonl"
    assert (file.parent / outside).is_file()
    file.write_text(file.read_text().replace("transcripts/questions.jsonl", outside))
    assert "secret" not in write_report(tmp_path / "run").read_text()
    assert not list((tmp_path / "run").rglob("*-secret.html"))


def test_pages_are_not_written_through_a_link_to_another_folder(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "interactive").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(SaebenchError, match="is a link to another folder"):
        written(tmp_path / "run", [row()])
    assert list((tmp_path / "elsewhere").iterdir()) == []


def test_show_says_where_a_transcript_is(tmp_path: Path) -> None:
    written(tmp_path, [row()])
    folder = next(tmp_path.rglob("record.json")).parent
    for path in (tmp_path, folder, folder / "record.json"):
        out = CliRunner().invoke(saebench, ["show", str(path)]).stdout
        assert out.splitlines()[-1] == f"Questions, toy_task on wide: {folder}/transcripts/questions.jsonl"
