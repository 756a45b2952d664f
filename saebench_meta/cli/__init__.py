"""The command `saebench`: one module a command, loaded when it is typed."""

from __future__ import annotations

from saebench_meta.cli.group import saebench


def main() -> None:
    """Entry point of the console script."""
    saebench(prog_name="saebench")


__all__ = ["main", "saebench"]
