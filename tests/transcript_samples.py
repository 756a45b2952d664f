"""Questions to a judge made by hand, with texts that would be markup if let, and a run folder that holds them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from record_samples import record, write

from saebench_meta.report import write_report
from saebench_meta.task import Transcript
from saebench_meta.transcripts import json_lines

OWNED = "document.title='owned'"
HOSTILE = [
    f"</script><script>{OWNED}</script>",
    f'<img src=x onerror="{OWNED}">',
    "<!--",
    "line\u2028and\u2029paragraph",
    "lone \ud800 surrogate",
    "nul \0 and \x1b[31m escape",
    "\u202eright to left override",
    "مرحبا «عالم» שלום",
    "{{ 7 * 7 }} {% raw %}",
    "__proto__",
    "\U0001f600 " * 3,
]


def row(number: int = 0, *, answer: int | None = 1, right: int = 1, **fields: Any) -> dict[str, Any]:
    verdict = "unanswered" if answer is None else "right" if answer == right else "wrong"
    return {
        "id": f"q{number}",
        "kind": "choose_latent",
        "latent": number,
        "description": f"words about topic {number}",
        "options": [f"option {number}.{i} with a «token»" for i in range(5)],
        "answer": answer,
        "right": right,
        "verdict": verdict,
        "words": None if answer is None else f"Number {answer + 1}.",
        "problem": "refusal" if answer is None else None,
        "model": "judge-1",
        **fields,
    }


def lines(rows: Sequence[Mapping[str, Any]]) -> bytes:
    return json_lines("questions", Transcript("Questions", rows))


def written(run: Path, rows: Sequence[Mapping[str, Any]], title: str = "Questions", name: str = "wide") -> Path:
    """A run folder with one record that has these questions, and its report; the page of the questions."""
    made = record(name=name)
    write(run, made, files={"transcripts/questions.jsonl": ("transcript", title, lines(rows).decode())})
    write_report(run)
    return run / "interactive" / f"{made.id[:16]}-questions.html"
