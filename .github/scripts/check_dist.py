"""What must be in a wheel and an sdist that are published, and what must not: `check_dist.py DIST [--tag TAG]`."""

from __future__ import annotations

import argparse
import re
import sys
import tarfile
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path

WHEEL = (
    r"saebench_meta/py\.typed",
    r"saebench_meta/schema/.+\.json",
    r"saebench_meta/templates/explorer/index\.html",
    r"saebench_meta/templates/leaderboard/index\.html",
    r"saebench_meta/scaffold/.+",
    r"saebench_plugins/atlas/data/.+\.safetensors",
    r"saebench_plugins/cities/cities\.json",
    r"saebench_tasks/core\.py",
    r"saebench_meta-[^/]+\.dist-info/licenses/LICENSE",
)
SDIST = (r"LICENSE", r"README\.md", r"pyproject\.toml", r"constraints\.txt", r"docs/.+\.md", r"tests/.+\.py")
SDIST_NOT = ("leaderboard/", ".github/", "out/", "dist/", ".venv")
TOP = {"saebench_meta", "saebench_plugins", "saebench_tasks"}
VENDORED = re.compile(r"(.+/vendor)/[^/]+")


def faults(dist: Path, tag: str | None = None) -> Iterator[str]:
    """Everything that is wrong with the one wheel and the one sdist in a folder."""
    wheels, sdists = sorted(dist.glob("*.whl")), sorted(dist.glob("*.tar.gz"))
    if len(wheels) != 1 or len(sdists) != 1:
        yield f"{dist} holds {len(wheels)} wheels and {len(sdists)} sdists, not one of each"
        return
    with zipfile.ZipFile(wheels[0]) as archive:
        yield from _wheel(archive.namelist())
    root = sdists[0].name.removesuffix(".tar.gz")
    with tarfile.open(sdists[0]) as packed:
        yield from _sdist(packed.getnames(), root)
    version = root.rpartition("-")[2]
    if tag is not None and tag != f"v{version}":
        yield f"the tag {tag} is not that of version {version}"


def _wheel(names: Iterable[str]) -> Iterator[str]:
    found = set(names)
    yield from _missing(found, WHEEL, "the wheel")
    for top in sorted({n.partition("/")[0] for n in found} - TOP):
        if not re.fullmatch(r"saebench_meta-[^/]+\.dist-info", top):
            yield f"the wheel holds {top}, which is none of its packages"
    for folder in sorted({m[1] for n in found if (m := VENDORED.fullmatch(n))}):
        if not any(n.startswith(f"{folder}/LICENSE") for n in found):
            yield f"the wheel holds {folder} without its licence"


def _sdist(names: Iterable[str], root: str) -> Iterator[str]:
    found = {n.removeprefix(f"{root}/") for n in names if n != root}
    yield from _missing(found, SDIST, "the sdist")
    for name in sorted(found):
        if name.startswith(("/", f"{root}/", *SDIST_NOT)) or ".." in name.split("/"):
            yield f"the sdist holds {name}"


def _missing(found: set[str], wanted: Iterable[str], what: str) -> Iterator[str]:
    for pattern in wanted:
        if not any(re.fullmatch(pattern, name) for name in found):
            yield f"{what} holds nothing like {pattern}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("dist", type=Path)
    parser.add_argument("--tag", help="the tag that is released")
    arguments = parser.parse_args()
    if found := list(faults(arguments.dist, arguments.tag)):
        sys.exit("\n".join(found))
    sys.stdout.write(f"{arguments.dist}: complete\n")


if __name__ == "__main__":
    main()
