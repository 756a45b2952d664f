"""Transcripts: the questions a judge was asked with what it answered, as JSON lines, and how a report shows them.

A line comes from a stranger, a judge's words from a model: nothing here is taken on trust. A line that is no question
is left out and counted; texts are cut, and characters that cannot be shown are replaced.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from saebench_meta.errors import SaebenchError
from saebench_meta.interactive import FOLDER, own_folder
from saebench_meta.store import write_atomic

if TYPE_CHECKING:
    from jinja2 import Environment

    from saebench_meta.task import Transcript

VERDICTS = ("right", "wrong", "unanswered")
SCRIPT = "transcript.js"
MAX_BYTES = 16 << 20
"""Of a file, how much is shown; the rest is in the file only."""
MAX_CHARS = 4000
"""Of one text, how much is shown."""
EXAMPLES = 2
"""Questions of each kind and verdict that stand in the report itself."""
UNSHOWABLE = re.compile("[\0-\x08\x0b\x0c\x0e-\x1f\x7f\ud800-\udfff]")


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _is_number(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _are_texts(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(text, str) for text in value)


def _or_null(check: Callable[[object], bool]) -> Callable[[object], bool]:
    return lambda value: value is None or check(value)


KEYS: dict[str, tuple[Callable[[object], bool], str]] = {
    "id": (lambda v: _is_text(v) or _is_number(v), "a text or a whole number"),
    "kind": (_is_text, "a text"),
    "latent": (_or_null(_is_number), "a whole number or null"),
    "description": (lambda v: _is_text(v) or _are_texts(v), "a text or a list of texts"),
    "options": (_are_texts, "a list of texts"),
    "right": (_is_number, "the place of the right option, from 0"),
    "answer": (_or_null(_is_number), "the place of the chosen option, from 0, or null"),
    "verdict": (lambda v: v in VERDICTS, "right, wrong or unanswered"),
    "words": (_or_null(_is_text), "the judge's words or null"),
    "problem": (_or_null(_is_text), "why there is no answer, or null"),
    "model": (_or_null(_is_text), "a text or null"),
}
"""What a row must have, and what each is. Further keys are kept, and shown as they are."""


def fault(row: object) -> str | None:
    """What is wrong with a row, which is plain data as JSON has it; None where nothing is."""
    if not isinstance(row, dict):
        return "it is no object"
    for key, (check, meaning) in KEYS.items():
        if key not in row or not check(row[key]):
            return f"'{key}' is {'missing' if key not in row else repr(row[key])[:80]}; it must be {meaning}"
    for key in ("right", "answer"):
        if row[key] is not None and not 0 <= row[key] < len(row["options"]):
            return f"'{key}' is {row[key]}, but there are {len(row['options'])} options"
    if (verdict := verdict_of(row["answer"], row["right"])) != row["verdict"]:
        return f"'verdict' is '{row['verdict']}'; by 'answer' and 'right' it is '{verdict}'"
    return None


def verdict_of(answer: int | None, right: int) -> str:
    """`right`, `wrong`, or `unanswered` where there is no answer."""
    return "unanswered" if answer is None else "right" if answer == right else "wrong"


def json_lines(name: str, transcript: Transcript) -> bytes:
    """The file of a transcript: a question a line, in ASCII, so that no reader sees a line break inside one.

    Raises:
        SaebenchError: a row is not plain data, or no question; says which and why.
    """
    lines = []
    for place, row in enumerate(transcript.rows):
        try:
            line = json.dumps(dict(row), allow_nan=False)
            wrong = fault(json.loads(line))
        except (TypeError, ValueError, RecursionError) as e:
            wrong = f"it is no plain data ({e})"
        if wrong is not None:
            raise SaebenchError(f"transcript '{name}', row {place}: {wrong}. The task's author must mend it.")
        lines.append(line + "\n")
    return "".join(lines).encode()


# -- reading one


@dataclass(frozen=True)
class Question:
    """One question as it is shown: texts cut, nothing in them that cannot be shown.

    Attributes:
        description: what the judge had to find the option for, one text or several.
        words, problem: the judge's words, and why there is no answer; empty where there are none.
        more: what else is known of it, by name.
    """

    id: str
    kind: str
    latent: str
    description: list[str]
    options: list[str]
    right: int
    answer: int | None
    verdict: str
    words: str
    problem: str
    more: list[tuple[str, str]]


@dataclass(frozen=True)
class Questions:
    """What is shown of a file.

    Attributes:
        shown: in the order of the file.
        unread: lines beyond what is shown.
        faulty: lines that are no question.
    """

    shown: list[Question]
    unread: int
    faulty: int

    @property
    def counts(self) -> dict[str, Counter[str]]:
        """Kind -> verdict -> questions."""
        counts: dict[str, Counter[str]] = {}
        for question in self.shown:
            counts.setdefault(question.kind, Counter())[question.verdict] += 1
        return counts

    @property
    def examples(self) -> list[Question]:
        """The first questions of each kind and verdict."""
        seen: Counter[tuple[str, str]] = Counter()
        found = []
        for question in self.shown:
            seen[key := (question.kind, question.verdict)] += 1
            if seen[key] <= EXAMPLES:
                found.append(question)
        return found

    @property
    def missing(self) -> str:
        """What a reader should know of what is not shown; empty where all is."""
        said = [f"{self.unread:,} more are in the file only"] if self.unread else []
        said += [f"{self.faulty:,} lines of the file are no questions"] if self.faulty else []
        return "; ".join(said)


def read_questions(file: Path) -> Questions:
    """The questions of a transcript's file, as far as they are shown."""
    with file.open("rb") as f:
        data = f.read(MAX_BYTES)
        if whole := not f.peek(1):
            unread = 0
        else:
            unread = sum(chunk.count(b"\n") for chunk in iter(partial(f.read, 1 << 20), b""))
    lines = (data if whole else data[: data.rfind(b"\n") + 1]).splitlines()
    shown = [question for line in lines if (question := _question(line)) is not None]
    return Questions(shown, unread, len(lines) - len(shown))


def _question(line: bytes) -> Question | None:
    """The question of a line; None if it holds none."""
    try:
        row = json.loads(line)
        return _shown(row) if fault(row) is None else None
    except (ValueError, RecursionError):
        return None


def _shown(row: dict[str, Any]) -> Question:
    described = row["description"]
    more = {"model": row["model"]} | {key: value for key, value in row.items() if key not in KEYS}
    return Question(
        id=_text(row["id"]),
        kind=_text(row["kind"]),
        latent=_text(row["latent"]),
        description=[_text(text) for text in ([described] if isinstance(described, str) else described)],
        options=[_text(text) for text in row["options"]],
        right=row["right"],
        answer=row["answer"],
        verdict=row["verdict"],
        words=_text(row["words"]),
        problem=_text(row["problem"]),
        more=[(_text(key), _text(value)) for key, value in more.items() if value is not None],
    )


def _text(value: object) -> str:
    """A value as a text that can be shown; nothing where there is none."""
    text = value if isinstance(value, str) else "" if value is None else json.dumps(value, ensure_ascii=False)
    return UNSHOWABLE.sub("\ufffd", text if len(text) <= MAX_CHARS else text[:MAX_CHARS] + "…")


# -- pages


@dataclass(frozen=True)
class Page:
    """A page on which the questions of one transcript can be looked through.

    Attributes:
        name: of the file.
        title, caption: the transcript's.
        about: task and subject.
        back: where the report tells of the record.
        source: the transcript's file, from the report.
    """

    name: str
    title: str
    caption: str
    about: str
    back: str
    source: str
    questions: Questions

    @property
    def href(self) -> str:
        """Where the page is, from the report."""
        return f"{FOLDER}/{self.name}"


def write_pages(folder: Path, pages: Sequence[Page], environment: Environment) -> None:
    """Write the pages into a run folder, with their script.

    Raises:
        SaebenchError: the folder for them is a link to another one.
    """
    if not pages:
        return
    at = own_folder(folder)
    write_atomic(at / SCRIPT, environment.get_template(SCRIPT).render().encode())
    template = environment.get_template("transcript.html")
    for page in pages:
        made = template.render(page=page, data=packed(page.questions.shown), verdicts=VERDICTS, script=SCRIPT)
        write_atomic(at / page.name, made.encode())


def packed(questions: Sequence[Question]) -> dict[str, list[Any]]:
    """Questions for the page's script: texts stand in a list once, and questions hold their places in it."""
    places: dict[str, int] = {}

    def place(text: str) -> int:
        return places.setdefault(text, len(places))

    packed = []
    for question in questions:
        row = asdict(question)
        texts = {key: [place(text) for text in row[key]] for key in ("description", "options")}
        more = [[name, place(text)] for name, text in question.more]
        packed.append(
            {**row, **texts, "more": more, "words": place(question.words), "problem": place(question.problem)}
        )
    return {"texts": list(places), "questions": packed}
