"""Errors that are the user's to mend: shown without a traceback, saying what is wrong and what to type next."""

from __future__ import annotations


class SaebenchError(Exception):
    """What the user can mend. The message says what was wrong, where, and what to do."""


class UnknownNameError(SaebenchError):
    """A name that no plugin offers; the message suggests the nearest one."""


class BadFileError(SaebenchError):
    """A file that is not what it claims to be: names the file and the field."""


class UnmetNeedError(SaebenchError):
    """A task needs what this run does not have: under a glob it is skipped, named outright the run ends."""


class PluginError(SaebenchError):
    """A plugin breaks a rule of the plugin interface."""


def did_you_mean(name: str, known: list[str]) -> str:
    """`; did you mean 'x'?`, or the list of what is known when nothing is near."""
    import difflib

    near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    if near:
        return "; did you mean " + " or ".join(repr(n) for n in near) + "?"
    return f" (known: {', '.join(sorted(known))})" if known else " (none is installed)"
