"""Questions to a judge in a browser: opened from disk without a network, chosen, read, and told nothing by texts."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from browser import Tab, opened
from transcript_samples import HOSTILE, row, written

ENTER, SKIP = ("Enter", 13), ("Tab", 9)
COUNT = 60


def mixed() -> list[dict[str, Any]]:
    """60 questions: every third wrong, every fifth of another kind, the last without an answer, one hostile."""
    rows = [
        row(i, answer=0 if i % 3 == 0 else 1, kind="choose_meta" if i % 5 == 0 else "choose_latent")
        for i in range(COUNT - 1)
    ]
    rows[1] |= {"description": HOSTILE, "options": HOSTILE[:5], "words": HOSTILE[1], HOSTILE[0]: HOSTILE[1]}
    return [*rows, row(COUNT - 1, answer=None, words="I would rather not.")]


@pytest.fixture(scope="module")
def tab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tab]:
    page = written(tmp_path_factory.mktemp("run"), mixed(), title=HOSTILE[0])
    with opened(tmp_path_factory.mktemp("profile")) as found:
        found.open(page)
        found.wait("document.getElementById('status')?.textContent")
        yield found


@pytest.fixture(autouse=True)
def _from_the_start(tab: Tab) -> Iterator[None]:
    """Every test begins with all questions, and no page may have complained or have been taken over."""
    tab.value("document.activeElement.blur(); location.hash = '#'")
    status(tab, f"{COUNT} of {COUNT} questions: 39 right, 20 wrong, 1 unanswered")
    yield
    assert tab.errors == []
    assert tab.value("document.title") != "owned"
    assert tab.value("document.querySelectorAll('#questions script, #questions img').length") == 0


def status(tab: Tab, text: str) -> None:
    tab.wait(f"document.getElementById('status').textContent === {text!r}")


def texts(tab: Tab, selector: str) -> list[str]:
    found: list[str] = tab.value(f"[...document.querySelectorAll({selector!r})].map((n) => n.textContent)")
    return found


def fill(tab: Tab, field: str, value: str) -> None:
    tab.value(
        f"(() => {{ const field = document.getElementById({field!r}); field.focus(); field.value = {value!r};"
        "field.dispatchEvent(new Event('input', { bubbles: true })) })()"
    )


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"verdict": "wrong"}, "20 of 60 questions: 0 right, 20 wrong, 0 unanswered"),
        ({"kind": "choose_meta"}, "12 of 60 questions: 8 right, 4 wrong, 0 unanswered"),
        ({"kind": "choose_meta", "verdict": "wrong"}, "4 of 60 questions: 0 right, 4 wrong, 0 unanswered"),
        ({"latent": "7"}, "1 of 60 questions: 1 right, 0 wrong, 0 unanswered"),
        ({"text": "TOPIC 3"}, "11 of 60 questions: 6 right, 5 wrong, 0 unanswered"),
        ({"text": "rather not"}, "1 of 60 questions: 0 right, 0 wrong, 1 unanswered"),
        ({"text": "zebra"}, "0 of 60 questions: 0 right, 0 wrong, 0 unanswered"),
    ],
)
def test_questions_are_chosen_by_verdict_kind_latent_and_text(tab: Tab, fields: dict[str, str], told: str) -> None:
    for field, value in fields.items():
        fill(tab, field, value)
    status(tab, told)
    assert len(texts(tab, ".question")) == min(25, int(told.split()[0]))
    address = tab.value("Object.fromEntries(new URLSearchParams(location.hash.slice(1)))")
    assert address == fields


def test_an_address_chooses_and_fills_the_fields(tab: Tab) -> None:
    tab.value("location.hash = '#kind=choose_meta&verdict=wrong&text=topic%204'")
    status(tab, "1 of 60 questions: 0 right, 1 wrong, 0 unanswered")
    values = "['text', 'verdict', 'kind', 'latent'].map((id) => document.getElementById(id).value)"
    assert tab.value(values) == ["topic 4", "wrong", "choose_meta", ""]
    assert texts(tab, "h2") == ["Latent 45 ✗ wrongchoose_meta, q45"]


def test_right_and_chosen_options_are_told_in_words(tab: Tab) -> None:
    tab.value("location.hash = '#latent=3'")
    status(tab, "1 of 60 questions: 0 right, 1 wrong, 0 unanswered")
    assert texts(tab, ".options b") == ["✗ chosen", "right", "", "", ""]
    assert texts(tab, ".options mark") == ["«token»"] * 5
    assert texts(tab, ".question > p") == ["Judge: Number 1.", "model: judge-1"]
    tab.value("location.hash = '#latent=59'")
    status(tab, "1 of 60 questions: 0 right, 0 wrong, 1 unanswered")
    assert texts(tab, ".options b") == ["", "right", "", "", ""]
    assert texts(tab, ".question > p")[:2] == ["Judge: I would rather not.", "No answer: refusal"]


def test_hostile_texts_are_shown_as_they_are(tab: Tab) -> None:
    tab.value("location.hash = '#latent=1'")
    status(tab, "1 of 60 questions: 1 right, 0 wrong, 0 unanswered")
    seen = [t.replace("\ud800", "\ufffd").replace("\0", "\ufffd").replace("\x1b", "\ufffd") for t in HOSTILE]
    assert texts(tab, ".described .text") == seen
    assert texts(tab, ".options .text") == seen[:5]
    assert texts(tab, "h1") == [f"{HOSTILE[0]}: toy_task@1 on wide"]


def test_more_questions_come_on_request_and_a_keyboard_is_enough(tab: Tab) -> None:
    tab.value("document.getElementById('latent').focus()")
    tab.value("document.getElementById('more').focus()")
    assert texts(tab, "#more") == ["Show 25 more of 35"]
    tab.press(*ENTER)
    assert tab.value("document.activeElement.textContent").startswith("Latent 25 ")
    tab.value("document.getElementById('more').click()")
    assert len(texts(tab, ".question")) == COUNT and tab.value("document.getElementById('more').hidden")
    tab.value("document.getElementById('skip').focus()")
    tab.press(*ENTER)
    assert tab.value("document.activeElement.id") == "questions"
    tab.value("document.getElementById('text').focus()")
    tab.type("topic 59")
    status(tab, "1 of 60 questions: 0 right, 0 wrong, 1 unanswered")
    for expected in ("verdict", "kind", "latent"):
        tab.press(*SKIP)
        assert tab.value("document.activeElement.id") == expected


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_nothing_is_wider_than_a_phone(tab: Tab, theme: str) -> None:
    tab.look(390, theme)
    assert tab.value("document.documentElement.scrollWidth") <= 390
    tab.look(1280, theme)
