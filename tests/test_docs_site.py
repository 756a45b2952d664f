"""The documentation's site: every page is in it, no link is broken, and nothing comes from elsewhere."""

from __future__ import annotations

import html
import importlib.util
import re
import shutil
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import make_site
import nbformat
import pytest
from browser import Tab, chromium, opened
from nbformat.v4 import new_code_cell, new_notebook, new_output

ROOT = Path(__file__).parents[1]
SETTINGS = tomllib.loads((ROOT / "docs" / "zensical.toml").read_text())["project"]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
KNOWN = {
    "README.md": "index.md",
    "docs/a.md": "a.md",
    "docs/tasks/b.md": "tasks/b.md",
    "docs/tasks/b.svg": "tasks/b.svg",
}
MISSING = [name for name in ("zensical", "nbconvert") if importlib.util.find_spec(name) is None]
HOST = "https://host.example/owner/repo/blob/main"

needs_generator = pytest.mark.skipif(
    bool(MISSING), reason=f"{' and '.join(MISSING)} not installed: pip install -c constraints-docs.txt -e '.[docs]'"
)


def entries(nav: Any) -> Iterator[str]:
    if isinstance(nav, str):
        yield nav
    else:
        for item in nav.values() if isinstance(nav, dict) else nav:
            yield from entries(item)


# -- links


@pytest.mark.parametrize(
    ("source", "text", "expected"),
    [
        ("README.md", "[x](docs/a.md)", "[x](a.md)"),
        ("README.md", "[x](docs/tasks/b.md#part)", "[x](tasks/b.md#part)"),
        ("docs/tasks/b.md", "[x](../a.md)", "[x](../a.md)"),
        ("docs/tasks/b.md", "![x](b.svg)", "![x](b.svg)"),
        ("docs/tasks/b.md", "[x](../../README.md)", "[x](../index.md)"),
        ("docs/a.md", "[x](../LICENSE)", f"[x]({HOST}/LICENSE)"),
        ("docs/a.md", "[`Codes`](../saebench_meta/codes.py#L3)", f"[`Codes`]({HOST}/saebench_meta/codes.py#L3)"),
        ("docs/a.md", "[x](https://else.example/a.md) [y](#part)", "[x](https://else.example/a.md) [y](#part)"),
        ("docs/a.md", "`[x](../LICENSE)`", "`[x](../LICENSE)`"),
        ("docs/a.md", "```\na[0](../LICENSE)\n```\n", "```\na[0](../LICENSE)\n```\n"),
        ("docs/a.md", "an interval [.1, .2] (see below)", "an interval [.1, .2] (see below)"),
    ],
)
def test_links_lead_to_the_same_file_on_the_site(source: str, text: str, expected: str) -> None:
    assert make_site.on_site(text, source, KNOWN, HOST) == expected


def test_without_a_repository_a_link_out_of_the_site_is_text() -> None:
    text = "see [`Codes`](../saebench_meta/codes.py) and [b](tasks/b.md)"
    assert make_site.on_site(text, "docs/a.md", KNOWN, None) == "see `Codes` and [b](tasks/b.md)"


def test_the_settings_name_the_repository_and_the_board_where_there_are_any() -> None:
    text = (ROOT / "docs" / "zensical.toml").read_text()
    assert make_site.configuration(text, None, None) == text
    named = tomllib.loads(make_site.configuration(text, HOST, "leaderboard/index.html"))["project"]
    assert named.pop("repo_url") == "https://host.example/owner/repo"
    before, after = list(entries(SETTINGS["nav"])), list(entries(named["nav"]))
    at = before.index("leaderboard.md") + 1
    assert after == [*before[:at], "leaderboard/index.html", *before[at:]]
    assert {**named, "nav": None} == {**SETTINGS, "nav": None}


# -- pages


def test_every_page_is_in_the_navigation_once() -> None:
    pages = [place for place in make_site.pages(ROOT).values() if place.endswith(".md")]
    assert sorted(entries(SETTINGS["nav"])) == sorted(pages)


@pytest.mark.parametrize("page", [p for p in make_site.pages(ROOT) if p.endswith(".md")])
def test_a_list_begins_after_an_empty_line(page: str) -> None:
    """Otherwise the site, unlike the repository's host, takes it for part of the paragraph."""
    text = re.sub(r"^```.*?^```", "code", (ROOT / page).read_text(), flags=re.MULTILINE | re.DOTALL)
    assert re.findall(r"^(?!\s|[-*|#>]|\d+\. ).+\n(?=[-*] |\d+\. |\|)", text, re.MULTILINE) == []


# -- the generator


def pins(name: str) -> dict[str, str]:
    lines = (ROOT / name).read_text().splitlines()
    return dict(line.split("==") for line in lines if line and not line.startswith("#"))


def test_the_generators_versions_are_pinned_beside_the_others() -> None:
    ours, docs = pins("constraints.txt"), pins("constraints-docs.txt")
    assert not set(ours) & set(docs)
    wanted = {re.split(r"[<>=]", line)[0] for line in PROJECT["optional-dependencies"]["docs"]}
    assert wanted <= set(ours) | set(docs)


def test_the_site_takes_no_fonts_from_elsewhere() -> None:
    assert SETTINGS["theme"]["font"] is False
    assert all("://" not in script["path"] for script in SETTINGS["extra"]["polyfills"])


@needs_generator
def test_a_notebook_is_shown_with_what_its_cells_printed(tmp_path: Path) -> None:
    cell = new_code_cell("1 + 1", outputs=[new_output("execute_result", data={"text/plain": "2"}, execution_count=1)])
    nbformat.write(new_notebook(cells=[cell]), tmp_path / "in.ipynb")
    make_site.notebook(tmp_path / "in.ipynb", tmp_path / "out.md", execute=False)
    assert re.search(r"```\s+1 \+ 1\s+```\s+2\s", (tmp_path / "out.md").read_text())


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The whole site, with the notebook as it is: another test runs it."""
    return Path(make_site.build(tmp_path_factory.mktemp("docs"), HOST, execute=False))


@needs_generator
@pytest.mark.slow
def test_every_page_is_on_the_site_and_loads_nothing_from_elsewhere(site: Path) -> None:
    for place in make_site.pages(ROOT).values():
        assert (site / place.replace(".md", ".html")).is_file(), place
    for page in site.rglob("*.html"):
        text = page.read_text()
        loaded = re.findall(r"<(?:script|img|link|iframe)\b[^>]*\b(?:src|href)=[\"']?([^\"'> ]+)", text)
        assert not [address for address in loaded if re.match(r"(?:https?:)?//", address)], page.name


@needs_generator
@pytest.mark.slow
def test_every_link_of_a_page_leads_to_a_file(site: Path) -> None:
    for page in site.rglob("*.html"):
        if page.name == "404.html":
            continue
        for address in re.findall(r"<a\b[^>]*\bhref=[\"']?([^\"'> ]+)", page.read_text()):
            target = html.unescape(address).partition("#")[0]
            if target and not re.match(r"[a-z]+:|//", target):
                assert (page.parent / target).exists(), f"{page.relative_to(site)} links to {target}"


@needs_generator
@pytest.mark.slow
def test_a_broken_link_ends_the_build(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for name in make_site.RENAMED:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / "CITATION.cff", tmp_path / name)
    shutil.copyfile(ROOT / "docs" / "examples" / "first_run.ipynb", tmp_path / "docs" / "examples" / "first_run.ipynb")
    (tmp_path / "docs" / "zensical.toml").write_text(
        '[project]\nsite_name = "x"\ndocs_dir = "pages"\nsite_dir = "site"\n'
    )
    (tmp_path / "docs" / "a.md").write_text("# A\n\n[part](#there)\n\n## There\n")
    make_site.build(tmp_path / "out", None, execute=False, root=tmp_path)
    (tmp_path / "docs" / "a.md").write_text("# A\n\n[part](#elsewhere)\n\n## There\n")
    with pytest.raises(subprocess.CalledProcessError):
        make_site.build(tmp_path / "out", None, execute=False, root=tmp_path)
    said = capfd.readouterr()
    assert "#elsewhere" in re.sub(r"\x1b\[[\d;]*m", "", said.out + said.err)


# -- in a browser

SEARCH = "[...document.querySelectorAll('body *')].find(e => e.shadowRoot)?.shadowRoot"


@pytest.fixture(scope="module")
def tab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tab]:
    chromium()
    with opened(tmp_path_factory.mktemp("profile")) as found:
        yield found


@needs_generator
@pytest.mark.slow
def test_a_page_opened_from_disk_finds_words_and_complains_of_nothing(tab: Tab, site: Path) -> None:
    tab.look(1280, "light")
    tab.open(site / "index.html")
    tab.wait("document.readyState === 'complete'")
    tab.wait(f"document.querySelector('.md-search__button')?.click() || {SEARCH} !== undefined")
    tab.wait(f"{SEARCH}.activeElement")
    tab.type("absorption")
    tab.wait(f"/\\b[1-9]\\d* results/.test({SEARCH}.textContent)")
    assert "Broken latents in toy worlds" in tab.value(f"{SEARCH}.textContent")
    assert tab.errors == []


@needs_generator
@pytest.mark.slow
@pytest.mark.parametrize("width", [390, 1280])
def test_pages_fit_and_follow_the_systems_theme(tab: Tab, site: Path, width: int) -> None:
    shades = {}
    for theme in ("light", "dark"):
        tab.look(width, theme)
        tab.open(site / "tasks" / "tpp.html")
        tab.wait("document.readyState === 'complete' && document.body.dataset.mdColorScheme")
        shades[theme] = tab.value("getComputedStyle(document.body).backgroundColor")
        assert tab.value("document.documentElement.scrollWidth") <= width
    assert shades["light"] != shades["dark"]
    assert tab.errors == []
