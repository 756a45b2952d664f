"""The explorer in a browser: opened from disk without a network, searched, followed, and told nothing by texts."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from browser import Tab, opened
from explorer_samples import EVIL, contents

from saebench_meta.explorer.folder import write_folder

ENTER, TAB = ("Enter", 13), ("Tab", 9)


@pytest.fixture(scope="module")
def tab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tab]:
    page = write_folder(tmp_path_factory.mktemp("run") / "explorer", contents())
    with opened(tmp_path_factory.mktemp("profile")) as found:
        found.open(page)
        heading(found, "toy: latents")
        yield found


@pytest.fixture(autouse=True)
def _from_the_start(tab: Tab) -> Iterator[None]:
    """Every test begins at the start, and no page may have complained or have been taken over."""
    tab.value("location.hash = '#'; document.activeElement.blur()")
    heading(tab, "toy: latents")
    yield
    assert tab.errors == []
    assert tab.value("document.title") != "owned"
    assert tab.value("document.querySelectorAll('main script, main img, main iframe').length") == 0


def heading(tab: Tab, text: str) -> None:
    tab.wait(f"document.querySelector('h1')?.textContent === {text!r}")


def texts(tab: Tab, selector: str) -> list[str]:
    found: list[str] = tab.value(f"[...document.querySelectorAll({selector!r})].map((n) => n.textContent)")
    return found


def test_a_search_finds_a_token_leads_to_its_latent_and_on_to_a_meta_latent(tab: Tab) -> None:
    tab.value("document.getElementById('query').focus()")
    tab.type("PARIS")
    heading(tab, "2 latents for “PARIS”")
    assert tab.value("document.getElementById('status').textContent") == "2 latents for “PARIS”"
    assert texts(tab, "main tbody a") == ["latent 0", "latent 3"]
    tab.value("document.querySelector('main a[href=\"#latent/0\"]').click()")
    heading(tab, "Latent 0")
    assert texts(tab, "section:first-of-type tbody tr th") == ["meta-latent 1", "meta-latent 0"]
    tab.value("document.querySelector('a[href=\"#meta/0\"]').click()")
    heading(tab, "Meta-latent 0")
    assert texts(tab, "tbody th") == ["latent 3", "latent 0"]
    tab.value("history.back()")
    heading(tab, "Latent 0")


@pytest.mark.parametrize(
    ("query", "found"),
    [("3", ["latent 3"]), ("capital", ["latent 0"]), ("line br", ["latent 1"]), ("pari", ["latent 0", "latent 3"])],
)
def test_a_search_knows_numbers_explanations_and_parts_of_tokens(tab: Tab, query: str, found: list[str]) -> None:
    tab.value(f"location.hash = '#search/' + encodeURIComponent({query!r})")
    tab.wait(f"document.querySelector('h1').textContent.endsWith('“{query}”')")
    assert texts(tab, "main tbody a") == found


def test_a_search_without_a_match_says_so(tab: Tab) -> None:
    tab.value("location.hash = '#search/zebra'")
    heading(tab, "0 latents for “zebra”")
    tab.value("const q = document.getElementById('query'); q.value = ''; q.focus()")
    tab.press(*ENTER)
    heading(tab, "toy: latents")


def test_a_latent_shows_its_passages_shaded_by_activation_and_its_logits(tab: Tab) -> None:
    tab.value("location.hash = '#latent/0'")
    heading(tab, "Latent 0")
    assert texts(tab, ".passage") == [f" Paris{EVIL}↵\n"]
    assert texts(tab, ".passage mark") == [EVIL] and texts(tab, ".passage span") == ["Paris"]
    shade = "[...document.querySelectorAll('.passage span, .passage mark')].map((n) => n.style.getPropertyValue('--f'))"
    assert tab.value(shade) == ["0.25", "1"]
    assert texts(tab, ".up") == ["3.14"] and texts(tab, ".down") == ["-2.00"]
    assert EVIL in texts(tab, "dd")[0]


def test_the_histogram_shows_how_often_a_latent_is_how_active(tab: Tab) -> None:
    tab.value("location.hash = '#latent/0'")
    tab.wait("document.querySelectorAll('svg[role=img] rect').length === 3")
    assert texts(tab, "svg[role=img] title") == [
        "0 to 0.6667: 4 tokens", "0.6667 to 1.333: 0 tokens", "1.333 to 2: 1 token"
    ]  # fmt: skip
    heights = "[...document.querySelectorAll('svg[role=img] rect')].map((r) => r.getAttribute('height') / 110)"
    assert tab.value(heights) == [1, 0, 0.25]


def test_the_graph_joins_a_latent_with_those_that_share_its_meta_latents(tab: Tab) -> None:
    tab.value("location.hash = '#latent/0'")
    tab.wait("document.querySelectorAll('svg a').length === 4")
    links = "[...document.querySelectorAll('svg a')].map((a) => a.getAttribute('href')).sort()"
    assert tab.value(links) == ["#latent/1", "#latent/3", "#meta/0", "#meta/1"]
    assert tab.value("document.querySelectorAll('svg[role=group] line').length") == 4
    assert "latent 3, Paris" in tab.value("[...document.querySelectorAll('svg a')].map((a) => a.ariaLabel)")
    # cos((1, 2), (0, 1)) and cos((1, 2), (4, 0)) over meta-latents 0 and 1.
    assert texts(tab, "details td.number:nth-child(2)") == ["0.8944", "0.4472"]


def test_what_is_not_there_is_said(tab: Tab) -> None:
    for address, said in (
        ("latent/3", "saebench explore"),
        ("latent/2", "active on none of the tokens"),
        ("meta/2", "active on no latent's decoder row"),
        ("latent/4", "there is no latent 4: they are 0 to 3"),
        ("latent/x", "there is no latent x"),
        ("nowhere", "nothing is at #nowhere"),
    ):
        tab.value(f"location.hash = '#{address}'")
        tab.wait(f"document.querySelector('main').innerText.includes({said!r})")


def test_steering_shows_log_probabilities_with_and_without_an_edit(tab: Tab) -> None:
    tab.value("document.querySelector('a[href=\"#steering/0\"]').click()")
    heading(tab, "Steering: Paris")
    assert texts(tab, "main > div tr") == ["candidatenoneswap", "France-0.1-3", "Japan-4", f"{EVIL}-0.25"]
    assert texts(tab, "b") == ["-0.1", "-0.25"]
    assert texts(tab, "main > section tbody tr") == ["ParisTokyo3"]


def test_a_keyboard_is_enough(tab: Tab) -> None:
    tab.value("document.querySelector('a').focus()")
    tab.press(*ENTER)
    tab.wait("document.activeElement.id === 'view'")
    tab.value("document.getElementById('query').focus()")
    tab.type("paris")
    heading(tab, "2 latents for “paris”")
    for expected in ("Latents found", "latent 0"):
        tab.press(*TAB)
        assert tab.value("document.activeElement.ariaLabel ?? document.activeElement.textContent") == expected
    tab.press(*ENTER)
    heading(tab, "Latent 0")
    assert tab.value("document.activeElement.tagName") == "H1"
    tab.wait("document.querySelectorAll('svg a').length === 4")
    tab.value("document.querySelector('svg a[href=\"#meta/1\"]').focus()")
    tab.press(*ENTER)
    heading(tab, "Meta-latent 1")
    assert tab.value("document.activeElement.tagName") == "H1"


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_nothing_is_wider_than_a_phone(tab: Tab, theme: str) -> None:
    tab.look(390, theme)
    for address, title in (("", "toy: latents"), ("latent/0", "Latent 0"), ("steering/0", "Steering: Paris")):
        tab.value(f"location.hash = '#{address}'")
        heading(tab, title)
        assert tab.value("document.documentElement.scrollWidth") <= 390
    tab.look(1280, theme)
