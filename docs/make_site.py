"""Builds the documentation site, strictly: `make docs`.

    python docs/make_site.py OUT [--repository URL] [--board PATH] [--no-notebook]

Its pages are the repository's own. Links that lead out of them go to the repository's page of the file where one is
named, and are plain text where none is. OUT/site is the site; it needs no server and no network.
"""

from __future__ import annotations

import argparse
import os
import posixpath
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
RENAMED = {
    "README.md": "index.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
    "docs/examples/first_run.ipynb": "examples/first_run.md",
}
"""Pages that stand elsewhere on the site than under docs/."""
SHOWN = {".md", ".css", ".csv", ".js", ".json", ".svg", ".png", ".LICENSE"}
TOKEN = re.compile(
    r"^```.*?^```|`[^`\n]+`|!?\[(?P<text>(?:[^\[\]`]|`[^`\n]*`)*)\]\((?P<target>(?!https?:|mailto:|#)[^)\s]+)\)",
    re.MULTILINE | re.DOTALL,
)
"""Code, which is left alone, or a link to a file."""
BOARD_AFTER = '    { "The leaderboard" = "leaderboard.md" },'
FRAME = re.compile(r'<table border="1" class="dataframe">')
FRAME_STYLE = re.compile(r"<style scoped>.*?</style>", re.DOTALL)
"""What pandas gives its tables; without it they look, and scroll, like any other."""
NOTEBOOK_SECONDS = 600


def pages(root: Path) -> dict[str, str]:
    """Files that are on the site: path in the repository -> path on the site."""
    below = (p.relative_to(root) for p in sorted((root / "docs").rglob("*")) if p.suffix in SHOWN and p.is_file())
    return {p.as_posix(): p.relative_to("docs").as_posix() for p in below} | RENAMED


def on_site(text: str, source: str, known: Mapping[str, str], repository: str | None) -> str:
    """A page's Markdown with its links as the site needs them.

    Args:
        text: the page.
        source: where it stands in the repository.
        known: what is on the site, as `pages` gives it.
        repository: address under which the repository's files can be read, ending before their paths.
    """

    def link(match: re.Match[str]) -> str:
        if match["target"] is None:
            return match[0]
        path, mark, anchor = match["target"].partition("#")
        path = posixpath.normpath(posixpath.join(posixpath.dirname(source), path))
        if path in known:
            here = posixpath.dirname(known[source])
            target = posixpath.relpath(known[path], here or ".") + mark + anchor
        elif repository is not None:
            target = f"{repository.rstrip('/')}/{path}{mark}{anchor}"
        else:
            return match["text"]
        return f"{'!' * match[0].startswith('!')}[{match['text']}]({target})"

    return TOKEN.sub(link, text)


def gather(root: Path, out: Path, repository: str | None) -> None:
    """Write every page and figure into a folder, as the site needs them; notebooks are left out."""
    known = pages(root)
    for source, place in known.items():
        target = out / place
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.endswith(".md"):
            target.write_text(on_site((root / source).read_text(), source, known, repository))
        elif not source.endswith(".ipynb"):
            shutil.copyfile(root / source, target)


def notebook(source: Path, target: Path, execute: bool) -> None:
    """A notebook as Markdown with what its cells print, its figures beside it; it runs in a folder of its own."""
    run = ["--execute", f"--ExecutePreprocessor.timeout={NOTEBOOK_SECONDS}"] if execute else []
    with tempfile.TemporaryDirectory() as folder:
        copy = shutil.copy(source, folder)
        command = [sys.executable, "-m", "nbconvert", "--log-level=ERROR", "--to=markdown", *run]
        command += [f"--output-dir={target.parent}", f"--output={target.stem}", copy]
        # A warning would show where this machine keeps its packages.
        subprocess.run(command, check=True, env={**os.environ, "PYTHONWARNINGS": "ignore"})
    target.write_text(FRAME.sub("<table>", FRAME_STYLE.sub("", target.read_text())))


def configuration(text: str, repository: str | None, board: str | None) -> str:
    """The generator's settings, with links to the repository and to the leaderboard's pages where they are named."""
    if repository is not None:
        home = repository.partition("/blob/")[0]
        text = text.replace("[project]\n", f'[project]\nrepo_url = "{home}"\n', 1)
    if board is not None:
        text = text.replace(BOARD_AFTER, f'{BOARD_AFTER}\n    {{ "Its table" = "{board}" }},', 1)
    return text


def build(
    out: Path, repository: str | None = None, board: str | None = None, execute: bool = True, root: Path = ROOT
) -> Path:
    """Build the site into a folder, and give the site's own; anything wrong with a page or a link ends it.

    Args:
        out: what is in it goes.
        repository: address of the repository's files, ending before their paths.
        board: where the leaderboard's pages will lie on the site.
        execute: whether to run the notebook.
    """
    shutil.rmtree(out, ignore_errors=True)
    gather(root, out / "pages", repository)
    for source, place in RENAMED.items():
        if source.endswith(".ipynb"):
            notebook(root / source, out / "pages" / place, execute)
    settings = out / "zensical.toml"
    settings.write_text(configuration((root / "docs" / "zensical.toml").read_text(), repository, board))
    subprocess.run([sys.executable, "-m", "zensical", "build", "--strict", "--config-file", str(settings)], check=True)
    return out / "site"


def main() -> None:
    parser = argparse.ArgumentParser(description="Build the documentation site.")
    parser.add_argument("out", type=Path, help="folder to write; what is in it goes")
    parser.add_argument("--repository", metavar="URL", help="address of the repository's files, such as …/blob/main")
    parser.add_argument("--board", metavar="PATH", help="where the leaderboard's pages will lie on the site")
    parser.add_argument("--no-notebook", action="store_true", help="show the notebook's code without running it")
    arguments = parser.parse_args()
    try:
        site = build(arguments.out.resolve(), arguments.repository, arguments.board, not arguments.no_notebook)
    except subprocess.CalledProcessError as e:
        sys.exit(e.returncode)
    sys.stdout.write(f"{site / 'index.html'}\n")


if __name__ == "__main__":
    main()
