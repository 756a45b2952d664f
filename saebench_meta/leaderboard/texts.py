"""What may stand in a record's texts and numbers, whatever field they are in: no markup, no paths, nothing absurd."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

MAX_DEPTH = 24
MAX_VALUES = 100_000
MAX_FAULTS = 20
MAX_NUMBER = 1e300
MAX_SHORT, MAX_LONG = 400, 2_000
SENTENCES = {"help", "why", "caption", "notes", "reason", "title", "description"}
"""Fields that hold sentences; every other text is a name."""

MARKUP = re.compile(r"<[a-z/!?]|&(?:#\d+|#x[0-9a-f]+|[a-z]\w*);|\b(?:javascript|vbscript):|\bdata:\w+/", re.IGNORECASE)
LOCAL_PATH = re.compile(
    r"""(?:^|[\s"'`(\[=,;:])            # at the start of a word:
        (?:/[\w.~-]+(?:/|$)|~[\w-]*/|\.{1,2}[/\\]|[a-z]:[\\/](?!/)|\\\\\w)
      | (?:^|[/\\])\.\.(?:[/\\]|$)      # a step up, anywhere
      | \bfile:                         # a URL of a file
    """,
    re.IGNORECASE | re.VERBOSE,
)
HASH = re.compile(r"[0-9a-f]{64}")
MIN_DIGITS = 6
"""Different digits in a hash; one in 10^19 true ones has fewer."""

Fault = tuple[str, str]
"""A field, and what is wrong with it and what to do."""


def value_faults(value: Any) -> Iterator[Fault]:
    """What is wrong with any text or number of a JSON value, keys of objects included; the first 20 faults."""
    count, found = 0, 0
    stack: list[tuple[_Path, str, Any, int]] = [((), "", value, 0)]
    while stack and found < MAX_FAULTS:
        path, name, item, depth = stack.pop()
        keyed = type(item) is dict
        count += len(item)
        if depth > MAX_DEPTH or count > MAX_VALUES:
            yield _field(path), f"is nested deeper than {MAX_DEPTH} levels, or one of more than {MAX_VALUES:,} values"
            return
        for key, inner in item.items() if keyed else enumerate(item):
            if keyed and (wrong := text_fault(key)):
                found += 1
                yield _field(path), f"a key of it {wrong}"
            own = str(key) if keyed else name
            if type(inner) is dict or type(inner) is list:
                stack.append(((path, key), own, inner, depth + 1))
            elif fault := _fault(own, inner):
                found += 1
                yield _field((path, key)), fault


_Path = tuple[Any, ...]
"""The path of what holds a value, and its key there; `()` at the top."""


def _field(path: _Path) -> str:
    keys: list[str] = []
    while path:
        path, key = path
        keys.append(f"[{key}]" if type(key) is int else f".{key}")
    return shown("".join(reversed(keys)).removeprefix("."))


def _fault(name: str, item: Any) -> str | None:
    """What is wrong with a text or a number in a field of this name; None if nothing."""
    kind = type(item)
    if kind is str:
        if (name == "sha256" or name.endswith("_sha256")) and (wrong := hash_fault(item)):
            return wrong
        return text_fault(item, MAX_LONG if name in SENTENCES else MAX_SHORT)
    if kind is float or kind is int:
        return None if -MAX_NUMBER < item < MAX_NUMBER else "is not a plausible number"
    return None


@lru_cache(maxsize=50_000)
def text_fault(text: str, limit: int = MAX_SHORT) -> str | None:
    """What is wrong with one text; None if nothing."""
    if len(text) > limit:
        return f"has {len(text):,} characters, and at most {limit:,} are taken: no texts stand in a record"
    if not text.isprintable():
        return "holds control characters, line breaks or characters that do not show"
    if MARKUP.search(text):
        return "holds markup: write it in plain words, with a space after `<`"
    if LOCAL_PATH.search(text):
        return "holds a path of a machine; name what it refers to by a reference others can use"
    return None


def hash_fault(text: str) -> str | None:
    """What keeps a text from being a sha256; None if nothing."""
    if not HASH.fullmatch(text) or len(set(text)) < MIN_DIGITS:
        return "is no sha256"
    return None


def shown(text: str, limit: int = 120) -> str:
    """A stranger's text fit for one line of a terminal: cut, and without what does not print."""
    plain = "".join(c if c.isprintable() else "?" for c in text[:limit])
    return plain + ("…" if len(text) > limit else "")
