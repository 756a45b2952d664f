"""Markdown from a stranger as Markdown that can only be read: no links, images, mentions, references or HTML.

Of its structure what the leaderboard's own comment is made of is kept: headings, tables, lists, and lines in bold.
Everything else is text, and every character that Markdown could make something of is written as an entity.
"""

from __future__ import annotations

import html
import re
import unicodedata

MAX_LINES = 1_500
MAX_LINE = 2_000
MAX_CHARACTERS = 60_000
"""A comment takes 65,536."""
CUT = "… (cut here)"

HEADING = re.compile(r"(#{1,6}) +(.*)")
ITEM = re.compile(r"[-*] +(.*)")
BOLD = re.compile(r"\*\*(.+)\*\*")
RULE = re.compile(r"\|(?: *:?-{2,}:? *\|)+")
CELL = re.compile(r"(?<!\\)\|")
ESCAPED = re.compile(r"\\([!-/:-@\[-`{-~])")
SPECIAL = re.compile(r"[&<>\[\]()!*_`\\|~$^{}=+]")
LINKING = re.compile(r"[@#:]|\bwww(?=\.)|\bGH(?=-)|^[-/]|^\d+(?=[.)])", re.IGNORECASE)
"""What mentions, references, addresses and commands to a bot begin with; something that does not show goes after it."""
GAP = "\u200b"


def neutral(text: str) -> str:
    """The text as Markdown without effect, and short enough for a comment."""
    lines = text.splitlines()
    kept: list[str] = []
    room = MAX_CHARACTERS
    for line in lines[:MAX_LINES]:
        made = _line(line[:MAX_LINE])
        room -= len(made) + 1
        if room < 0:
            break
        kept.append(made)
    if len(kept) < len(lines):
        kept += ["", CUT]
    return "\n".join(kept).strip() + "\n"


def _line(line: str) -> str:
    line = line.strip()
    if RULE.fullmatch(line):
        return line
    if line.startswith("|") and line.endswith("|") and len(line) > 1:
        return "| " + " | ".join(_plain(cell) for cell in CELL.split(line)[1:-1]) + " |"
    if found := HEADING.fullmatch(line):
        return f"{found[1]} {_plain(found[2])}"
    if found := ITEM.fullmatch(line):
        return f"- {_plain(found[1])}"
    if found := BOLD.fullmatch(line):
        return f"**{_plain(found[1])}**"
    return _plain(line)


def _plain(text: str) -> str:
    """What a text says, with nothing in it that Markdown or the place it is shown in reacts to."""
    said = html.unescape(ESCAPED.sub(r"\1", text))
    shows = "".join(c for c in said if unicodedata.category(c) not in ("Cc", "Cf", "Cs", "Co", "Zl", "Zp")).strip()
    apart = LINKING.sub(lambda m: m[0] + GAP, shows)
    return SPECIAL.sub(lambda m: f"&#{ord(m[0])};", apart)
