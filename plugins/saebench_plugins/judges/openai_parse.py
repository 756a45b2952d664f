"""Which option an answer names, however the model put it: JSON, a number, a sentence, or the option's own words.

An answer that could mean two options means none.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from typing import Any

FIELD = "answer"
_THOUGHTS = re.compile(r"<think(?:ing)?>.*?(?:</think(?:ing)?>|\Z)", re.DOTALL | re.IGNORECASE)
_NOUN = r"(?:option|choice|answer|number|passage|group|explanation|description|latent)"
_GAP = r"[\s*_:=#({\[\"'“`]*"
_SAYS = rf"\b(?:answer|choice|boxed|(?:correct|right|best)\s+{_NOUN})\b"
_NOT = re.compile(r"\b(?:not|neither|nor|none|wrong|incorrect|except)\b|n['’]t\b", re.IGNORECASE)
_SOME = rf"(\d{{1,3}}(?:\s*(?:,|/|&|\bor\b|\band\b)\s*(?:{_NOUN}{_GAP})?\d{{1,3}})*)\b(?!\.\d)"
_STATED = re.compile(rf"{_SAYS}{_GAP}(?:is|would be)?{_GAP}(?:{_NOUN})?{_GAP}{_SOME}", re.IGNORECASE)
_NAMED = re.compile(rf"\b{_NOUN}{_GAP}{_SOME}", re.IGNORECASE)
_ALONE = re.compile(rf"[\s*_#(\[\"'“`]*(?:{_NOUN}{_GAP})?(\d{{1,3}})[\s*_)\].,:;!\"'”`]*", re.IGNORECASE)
_LEADING = re.compile(r"[\s*_#(\[\"'“`]*(\d{1,3})(?=[)\].:,;\s*\"'”`-])(?!\.\d)")
_NUMBER = re.compile(r"(?<![\w.-])\d{1,3}(?!\w|\.\d)")
_LONGEST = 10_000
"""Characters of an answer that are looked at."""


def without_thoughts(text: str) -> str:
    """A text without the `<think>` part that some models print before they answer."""
    return _THOUGHTS.sub("", text).strip()


def choice_of(text: str, options: Sequence[str]) -> int | None:
    """Index into the options, from 0, of the one that an answer names; None where it names none, or more than one."""
    text = without_thoughts(text)[:_LONGEST]
    for read in (_from_json, _from_number, _from_whole, _from_statement, _from_words, _from_lead):
        named = set(read(text, options))
        if named:
            number = named.pop()
            return number - 1 if not named and 1 <= number <= len(options) else None
    return None


def _from_json(text: str, options: Sequence[str]) -> Iterator[int]:
    """Numbers in the JSON objects of a text, wherever they stand in it."""
    decoder, at = json.JSONDecoder(), text.find("{")
    while at >= 0:
        try:
            value, end = decoder.raw_decode(text, at)
        except (ValueError, RecursionError):
            end = at + 1
        else:
            yield from _of_value(value, options)
        at = text.find("{", end)


def _of_value(value: dict[str, Any], options: Sequence[str]) -> Iterator[int]:
    wanted = next((v for k, v in value.items() if k.lower() in (FIELD, "choice", "option", "number")), None)
    if wanted is None and len(value) == 1:
        (wanted,) = value.values()
    if isinstance(wanted, str):
        yield from _from_number(wanted, options) or _from_words(wanted, options)
    elif isinstance(wanted, int | float) and not isinstance(wanted, bool) and wanted == wanted // 1:
        yield int(wanted)


def _from_number(text: str, _: Sequence[str]) -> list[int]:
    """The number, where there is little else."""
    found = _ALONE.fullmatch(text)
    return [int(found[1])] if found else []


def _from_whole(text: str, options: Sequence[str]) -> list[int]:
    """The option that is all there is, whatever numbers stand in it."""
    return [n for n, option in enumerate(options, 1) if _plain(option) == _plain(text)]


def _from_statement(text: str, _: Sequence[str]) -> list[int]:
    """`the answer is 3`; failing that, the options it speaks of, if it denies nothing: `option 3`."""
    stated = _STATED.findall(text) or ([] if _NOT.search(text) else _NAMED.findall(text))
    return [int(n) for numbers in stated for n in re.findall(r"\d+", numbers)]


def _from_words(text: str, options: Sequence[str]) -> list[int]:
    """Options quoted in full; one that is part of another that is quoted too does not count."""
    said = _plain(text)
    words = [_plain(option) for option in options]
    quoted = [w for w in words if w and re.search(rf"(?<!\w){re.escape(w)}(?!\w)", said)]
    return [n for n, w in enumerate(words, 1) if w in quoted and not any(w != q and w in q for q in quoted)]


def _from_lead(text: str, options: Sequence[str]) -> list[int]:
    """`3. The passage about …`, with no other number in it that could be meant."""
    if not (found := _LEADING.match(text)):
        return []
    others = [int(n) for n in _NUMBER.findall(text) if 1 <= int(n) <= len(options)]
    return [int(found[1]), *others]


def _plain(text: str) -> str:
    return " ".join(text.casefold().split()).strip(" .\"'“”`*")
