"""The two ends of the reproduce workflow: which record may be run again, and what may be put beside it.

badge.py check RECORD          is RECORD a record's folder under the results?
badge.py place RECORD FILE     put a rerun's reproduced.json beside it
"""

from __future__ import annotations

import hashlib
import json
import re
import sys
from pathlib import Path

RECORD = re.compile(
    r"leaderboard/results/[A-Za-z0-9][\w.-]{0,120}/[A-Za-z_][\w.-]{0,80}@\d{1,4}/[0-9a-f]{12}", re.ASCII
)
MAX_BYTES = 100_000
NAME = "reproduced.json"


def folder_of(text: str, root: Path) -> Path:
    """The record's folder below `root`.

    Raises:
        SystemExit: the text does not have the form of one, or there is none, or a link leads to it.
    """
    if not RECORD.fullmatch(text) or ".." in text:
        raise SystemExit("RECORD must be leaderboard/results/<SAE>-<weights>/<task>@<version>/<12 digits of the id>")
    folder = root / text
    if not (folder / "record.json").is_file() or folder.resolve() != root.resolve() / text:
        raise SystemExit(f"there is no record in {text}")
    return folder


def place(folder: Path, file: Path) -> Path:
    """Copy a badge beside its record; the job that made it has run what the record names, so it is checked again."""
    data = file.read_bytes() if file.is_file() and not file.is_symlink() else b""
    if not 0 < len(data) <= MAX_BYTES:
        raise SystemExit(f"{file.name} is missing, empty or larger than {MAX_BYTES:,} bytes")
    try:
        badge = json.loads(data)
    except ValueError as e:
        raise SystemExit(f"{file.name} is not JSON") from e
    of = hashlib.sha256((folder / "record.json").read_bytes()).hexdigest()
    if not isinstance(badge, dict) or badge.get("record_sha256") != of:
        raise SystemExit(f"{file.name} is not of this record")
    target = folder / NAME
    target.write_bytes(data)
    return target


def main(arguments: list[str]) -> None:
    match arguments:
        case ["check", record]:
            said = folder_of(record, Path())
        case ["place", record, file]:
            said = place(folder_of(record, Path()), Path(file))
        case _:
            raise SystemExit(__doc__)
    sys.stdout.write(f"{said.as_posix()}\n")


if __name__ == "__main__":
    main(sys.argv[1:])
