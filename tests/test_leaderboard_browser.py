"""The leaderboard in a browser: opened from disk without a network, sorted, filtered, linked to, compared."""

from __future__ import annotations

import csv
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import board_samples
import pytest
from browser import PATIENCE, Tab, opened

from saebench_meta.leaderboard import pages

BOARD = board_samples.realistic()
ROWS = {row.name: row for row in BOARD.rows if row.kind == "sae"}
ENTER, ESCAPE, SPACE = ("Enter", 13), ("Escape", 27), (" ", 32)
NAMES = "[...document.querySelectorAll('#table .tabulator-row .open')].map((n) => n.textContent)"
FIRST = ["batchtopk-128", "batchtopk-256", "batchtopk-512", "jumprelu-1024", "relu-256", "relu-1024", "topk-512-k8"]
ATLAS = [f"atlas-{name}" for name in FIRST]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("leaderboard") / "site"
    pages.write(BOARD, folder)
    return folder


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tab]:
    with opened(tmp_path_factory.mktemp("profile")) as found:
        yield found


@pytest.fixture
def tab(browser: Tab, folder: Path) -> Iterator[Tab]:
    """The page anew, tall enough for every row. It may have complained of nothing and asked for nothing elsewhere."""
    browser.look(1280, "light", height=2000)
    visit(browser, folder)
    yield browser
    assert browser.errors == []
    inside(browser, folder)


def visit(tab: Tab, folder: Path, fragment: str = "") -> None:
    tab.open(Path("/nonexistent"))
    tab.errors.clear()
    tab.open(folder / pages.PAGE, fragment)
    settle(tab)


def settle(tab: Tab) -> None:
    tab.wait("document.documentElement?.dataset.ready === 'yes'")
    tab.value("new Promise((resolve) => requestAnimationFrame(() => setTimeout(resolve)))")


def inside(tab: Tab, folder: Path) -> None:
    asked: list[str] = tab.value("performance.getEntriesByType('resource').map((entry) => entry.name)")
    assert [name for name in asked if not name.startswith((folder.as_uri(), "data:"))] == []


def set_state(tab: Tab, **values: Any) -> None:
    tab.value(f"state.set({json.dumps(values)})")


def click(tab: Tab, selector: str) -> None:
    tab.value(f"document.querySelector({selector!r}).click()")


def texts(tab: Tab, selector: str) -> list[str]:
    found: list[str] = tab.value(f"[...document.querySelectorAll({selector!r})].map((n) => n.innerText.trim())")
    return found


def field(key: str) -> str:
    """Selects what belongs to a column of the table."""
    keys = [column.key for column in BOARD.columns]
    return f'[tabulator-field="{f"c{keys.index(key)}" if key in keys else key}"]'


def cell(tab: Tab, name: str, key: str) -> str:
    """What stands in a cell of the table, as it is read."""
    row = f"find((row) => row.querySelector('.open')?.textContent === {name!r})"
    of_row = f"[...document.querySelectorAll('#table .tabulator-row')].{row}.querySelector({field(key)!r})"
    found: str = tab.value(f"{of_row}.innerText")
    return found


def shown(tab: Tab, names: list[str]) -> None:
    tab.wait(f"JSON.stringify({NAMES}) === {json.dumps(names, separators=(',', ':'))!r}")


# -- the table


def test_rows_stand_by_site_and_references_after_them(tab: Tab) -> None:
    names = tab.value(NAMES)
    assert names[:9] == [*ATLAS, "chance", "random"]
    assert names[-2:] == ["chance", "random"] and len(names) == len(BOARD.rows)
    assert texts(tab, ".tabulator-group .site b") == ["atlas", "gpt2"]
    assert texts(tab, "#status") == ["9 SAEs, 4 reference rows"]


def test_a_cell_tells_its_value_interval_rank_and_doubts(tab: Tab) -> None:
    found = cell(tab, "atlas-batchtopk-128", "core@1.mse")
    of = ROWS["atlas-batchtopk-128"].cells["core@1.mse"]
    assert of.value is not None and of.rank == 7
    assert f"{of.value:.2f}" in found and f"[{of.low:.2f}, {of.high:.2f}]" in found
    assert "rank 7: 6 SAEs of this site better beyond the noise" in found
    assert "within the noise" in found
    assert "do not trust this number" in cell(tab, "atlas-relu-256", "sparse_probing@1.balanced_accuracy_k1")
    assert "rank 1: no SAE of this site is better" in cell(tab, "atlas-topk-512-k8", "core@1.mse")
    assert "fewer than 10 latents have passages enough" in cell(
        tab, "atlas-batchtopk-256", "autointerp@1.detection~c0ffee00"
    )
    missing = next(n for n in ATLAS if "meta_sae@1.variance_explained" not in ROWS[n].cells)
    assert cell(tab, missing, "meta_sae@1.variance_explained") == ""


def test_references_are_never_ranked_and_say_what_they_are(tab: Tab) -> None:
    assert tab.value("document.querySelectorAll('.tabulator-row.reference').length") == 4
    assert tab.value("document.querySelectorAll('.tabulator-row.reference :is(.rank, input)').length") == 0
    assert set(texts(tab, ".tabulator-row.reference .tag")) == {"control", "chance"}


def test_a_heading_tells_direction_unit_setting_and_failed_orders(tab: Tab) -> None:
    head = texts(tab, f".tabulator-col{field('sparse_probing@1.balanced_accuracy_k1')}")[0]
    assert "higher is better" in head and "fraction" in head
    column = next(c for c in BOARD.columns if c.metric == "balanced_accuracy_k1")
    assert column.order_failed and f"✗ {column.order_failed}/{column.order_tested}" in head
    click(tab, f".tabulator-col{field('autointerp@1.detection~c0ffee00')} .help")
    told = tab.value("document.querySelector('#help[open]').innerText")
    assert "trained > random" in told and column.why not in told and "openai:small" in told and "40" in told
    tab.press(*ESCAPE)
    tab.wait("!document.getElementById('help').open")


def by(metric: str, *, down: bool) -> list[str]:
    """SAEs of the first site in the order of a score, those without last."""
    known = [n for n in ATLAS if (c := ROWS[n].cells.get(metric)) and c.value is not None]
    ordered = sorted(known, key=lambda n: ROWS[n].cells[metric].value or 0, reverse=down)
    return [*ordered, *(n for n in ATLAS if n not in known)]


@pytest.mark.parametrize("metric", ["core@1.mse", "autointerp@1.detection~c0ffee00"])
def test_the_keyboard_sorts_best_first_and_then_turns(tab: Tab, metric: str) -> None:
    higher = metric != "core@1.mse"
    for down in (higher, not higher):
        tab.value(f"document.querySelector('.sort[data-field={json.dumps(metric)}]').focus()")
        tab.press(*ENTER)
        tab.wait(f"{NAMES}[0] === {by(metric, down=down)[0]!r}")
        assert tab.value(NAMES)[:9] == [*by(metric, down=down), "random", "chance"]
        sorted_ = tab.value("document.querySelector('.tabulator-col[aria-sort$=ending]').getAttribute('aria-sort')")
        assert sorted_ == ("descending" if down else "ascending")


def test_without_sites_apart_references_stand_below_all(tab: Tab) -> None:
    click(tab, "#group")
    tab.wait("document.querySelectorAll('.tabulator-group').length === 0")
    click(tab, '.sort[data-field="core@1.mse"]')
    tab.wait("location.hash.includes('sort')")
    names = tab.value(NAMES)
    assert names[0] == "atlas-topk-512-k8" and set(names[-4:]) == {"random", "chance"}
    assert "blocks.1.hook_resid_post" in cell(tab, "atlas-relu-256", "site")


# -- filters, columns, links


def test_filters_narrow_the_rows_and_say_so(tab: Tab) -> None:
    tab.value("document.getElementById('q').focus()")
    tab.type("atlas RELU")
    shown(tab, ["atlas-jumprelu-1024", "atlas-relu-256", "atlas-relu-1024", "chance", "random"])
    assert texts(tab, "#status") == ["3 of 9 SAEs, 2 reference rows"]
    set_state(tab, width_min="300")
    shown(tab, ["atlas-jumprelu-1024", "atlas-relu-1024", "chance", "random"])
    set_state(tab, l0_min="7")
    shown(tab, ["atlas-relu-1024", "chance", "random"])
    click(tab, "#refs")
    shown(tab, ["atlas-relu-1024"])
    click(tab, "#clear")
    tab.wait(f"{NAMES}.length === 9")
    for field, value, expected in (("model", "gpt2", 2), ("arch", "topk", 1)):
        tab.value(
            f"(() => {{ const s = document.getElementById({field!r}); s.value = {value!r}; "
            "s.dispatchEvent(new Event('change')); })()"
        )
        tab.wait(f"{NAMES}.length === {expected}")
    set_state(tab, q="nothing like this")
    tab.wait("document.querySelector('#table').innerText.includes('Nothing on the board fits')")


def test_columns_are_chosen_and_main_ones_come_back(tab: Tab) -> None:
    click(tab, "#choose")
    tab.wait("document.getElementById('choices').open")
    tab.value("document.getElementById('choices-filter').focus()")
    tab.type("novel")
    assert texts(tab, "#choices fieldset:not([hidden]) legend") == ["novel_latents@2", "novel_latents@1"]
    click(tab, "#choices-list label:not([hidden]) input:not(:checked)")
    tab.wait(f"document.querySelector({field('novel_latents@1.novel_ratio')!r}) !== null")
    head = texts(tab, f".tabulator-col{field('novel_latents@1.novel_ratio')}")[0]
    assert "old version" in head
    assert cell(tab, "atlas-batchtopk-128", "novel_latents@1.novel_ratio") != ""
    click(tab, "#choices-main")
    click(tab, "#choices .close")
    tab.wait(f"document.querySelector({field('novel_latents@1.novel_ratio')!r}) === null")
    assert "col=" not in tab.value("location.hash")


def test_a_link_shows_the_same_and_back_undoes_a_step(tab: Tab, folder: Path) -> None:
    set_state(tab, sort="core@1.mse", dir="desc", arch="batchtopk", theme="dark", col=["core@1.mse", "core@1.l0"])
    tab.wait(f"{NAMES}.length === 5")
    set_state(tab, q="256")
    tab.wait(f"{NAMES}.length === 3")
    tab.value("history.back()")
    tab.wait(f"{NAMES}.length === 5")
    fragment = tab.value("location.hash")
    before = tab.value("document.getElementById('table').textContent")
    visit(tab, folder, fragment)
    assert tab.value(NAMES) == [f"atlas-batchtopk-{n}" for n in (128, 256, 512)] + ["random", "chance"]
    assert tab.value("document.getElementById('table').textContent") == before
    assert tab.value("document.getElementById('arch').value") == "batchtopk"
    assert tab.value("document.documentElement.dataset.theme") == "dark"
    assert tab.value("location.hash") == fragment


def test_an_address_that_makes_no_sense_does_no_harm(tab: Tab, folder: Path) -> None:
    visit(
        tab, folder, "#view=elsewhere&sort=__proto__&dir=up&col=constructor&pick=toString&row=%00&l0_min=x&y=%E0%A4%A"
    )
    tab.wait("document.querySelector('#detail[open]')?.innerText.includes('No such row')")


# -- one row


def test_a_row_tells_all_that_is_known_of_it(tab: Tab) -> None:
    tab.value("[...document.querySelectorAll('.open')].find((n) => n.textContent === 'atlas-relu-256').focus()")
    tab.press(*ENTER)
    tab.wait("document.querySelector('#detail[open]')?.textContent.includes('How it was made')")
    told = tab.value("document.getElementById('detail').textContent")
    row = ROWS["atlas-relu-256"]
    for text in (row.weights, row.ref, "868 documents", "permuted_rows —", "oracle > trained > random", "census"):
        assert text in told
    control = row.cells["core@1.mse"].controls["random"]
    assert None not in control and f"random {control[0]:.2f} [{control[1]:.2f}, {control[2]:.2f}]" in told
    click(tab, "#detail details summary")
    made = tab.value("document.querySelector('#detail details').innerText")
    for text in (row.cells["core@1.mse"].record[:12], board_samples.sha("commit"), "scale of the activations"):
        assert text in made
    tab.press(*ESCAPE)
    tab.wait("!document.getElementById('detail').open && !location.hash.includes('row=')")
    assert tab.value("document.activeElement.textContent") == "atlas-relu-256"
    tab.value("history.back()")
    tab.wait("document.getElementById('detail').open")


def test_a_click_on_a_number_leads_to_it(tab: Tab) -> None:
    click(tab, f".tabulator-row:has(.open) {field('core@1.mse')}")
    tab.wait("document.querySelector('#detail tr.at th')?.textContent.startsWith('mse')")


# -- plot


def front() -> list[str]:
    """By the definition: no SAE of the site has both fewer active latents and a lower MSE."""
    found = []
    for name in ATLAS:
        l0, mse = ROWS[name].l0 or 0, ROWS[name].cells["core@1.mse"].value or 0
        others = [(ROWS[n].l0 or 0, ROWS[n].cells["core@1.mse"].value or 0) for n in ATLAS if n != name]
        if not any(other[0] <= l0 and other[1] <= mse for other in others):
            found.append((l0, name))
    return [name for _, name in sorted(found)]


def test_the_plot_marks_the_front_and_leads_to_rows(tab: Tab) -> None:
    click(tab, "#to-plot")
    tab.wait("document.querySelectorAll('#figure .point.front').length > 0")
    assert texts(tab, "#figure-body .names")[0] == f"On the front: {', '.join(front())}"
    assert tab.value("document.querySelectorAll('#figure .point:not(.reference)').length") == len(ATLAS)
    assert "Sites do not compare" in texts(tab, "#figure-caption")[0]
    point = "[...document.querySelectorAll('#figure g')].find((n) => n.ariaLabel?.startsWith('atlas-relu-1024'))"
    tab.value(f"{point}.focus()")
    assert "atlas-relu-1024" in texts(tab, "#tip")[0] and "[" in texts(tab, "#tip")[0]
    tab.press(*ENTER)
    tab.wait("document.querySelector('#detail[open] h2')?.textContent.startsWith('atlas-relu-1024')")


@pytest.mark.parametrize("x", ["l0", "width"])
def test_any_score_stands_against_l0_and_width(tab: Tab, x: str) -> None:
    set_state(
        tab, view="plot", x=x, y="sparse_probing@1.balanced_accuracy_k1", hook="blocks.1.hook_resid_post", scale="log"
    )
    tab.wait("document.querySelector('#figure svg')?.ariaLabel.startsWith('balanced_accuracy_k1')")
    with_value = [n for n in ATLAS if "sparse_probing@1.balanced_accuracy_k1" in ROWS[n].cells]
    assert tab.value("document.querySelectorAll('#figure g[role=button] .point:not(.reference)').length") == len(
        with_value
    )
    assert tab.value("document.querySelectorAll('#figure .whiskers').length") >= len(with_value)
    assert "chance" in texts(tab, "#figure-body")[0]


# -- side by side


def test_chosen_saes_are_compared_by_what_was_tested(tab: Tab) -> None:
    a, b, elsewhere = "atlas-batchtopk-128", "atlas-topk-512-k8", "gpt2-small-resid-post-v5-32k-layer-8"
    for name in (a, b, elsewhere):
        click(tab, f"#table input[aria-label='compare {name}']")
    assert texts(tab, "#picked") == ["(3)"]
    click(tab, "#tray-compare")
    tab.wait("document.querySelectorAll('#compare-body tbody tr').length > 3")
    line = "[...document.querySelectorAll('#compare-body tbody tr')].find((r) => r.innerText.includes('mse'))"
    cells = tab.value(f"[...{line}.querySelectorAll('td')].map((n) => n.innerText)")
    tested = next(d for d in BOARD.differences["core@1.mse"] if (d.a, d.b) == (ROWS[a].id, ROWS[b].id))
    assert tested.verdict == "b" and tested.low is not None and tested.high is not None
    assert "better" not in cells[0].replace("better beyond", "") and "better: difference" in cells[1]
    assert f"[−{tested.high:.2f}, −{tested.low:.2f}]" in cells[1]
    assert "untested: not of one model and site" in cells[2]
    set_state(tab, base=ROWS[b].id)
    tab.wait(f"{line}.innerText.includes('worse')")
    assert f"worse: difference [{tested.low:.2f}, {tested.high:.2f}]" in tab.value(f"{line}.innerText")
    census = tab.value("document.getElementById('compare-body').innerText")
    assert "untested: both are exact over their dictionary (census)" in census


def test_at_most_six_are_compared(tab: Tab) -> None:
    for name in ATLAS:
        click(tab, f"#table input[aria-label='compare {name}']")
    assert tab.value("state.current().pick.length") == 6
    assert "take one out first" in texts(tab, "#status")[0]
    last = tab.value(f"document.querySelector(\"#table input[aria-label='compare {ATLAS[-1]}']\").checked")
    assert last is False


# -- downloads


def downloaded(tab: Tab, folder: Path, button: str, name: str) -> str:
    tab.call("Page.setDownloadBehavior", behavior="allow", downloadPath=str(folder))
    click(tab, button)
    end = time.monotonic() + PATIENCE
    while not (folder / name).is_file():
        assert time.monotonic() < end, f"{name} never came"
        time.sleep(0.02)
    return (folder / name).read_text(encoding="utf-8")


def test_downloads_hold_what_is_shown(tab: Tab, tmp_path: Path) -> None:
    set_state(tab, q="atlas-batchtopk", refs="no", sort="core@1.mse", dir="asc", col=["core@1.mse"])
    expected = [f"atlas-batchtopk-{n}" for n in (512, 256, 128)]
    shown(tab, expected)
    lines = list(csv.DictReader(downloaded(tab, tmp_path, "#csv", "leaderboard.csv").splitlines()))
    assert [line["name"] for line in lines] == expected
    value = ROWS[expected[0]].cells["core@1.mse"].value
    assert value is not None and float(lines[0]["core@1.mse"]) == pytest.approx(value, abs=1e-3)
    found = json.loads(downloaded(tab, tmp_path, "#json", "leaderboard.json"))
    assert [row["name"] for row in found["rows"]] == expected
    assert [c["key"] for c in found["columns"]] == ["core@1.mse"]
    assert found["rows"][0]["cells"][0]["rank"] == ROWS[expected[0]].cells["core@1.mse"].rank


def test_a_download_holds_no_formula(tab: Tab) -> None:
    assert tab.value("download.field('=1+1')") == "'=1+1"
    assert tab.value("download.field('a\"b,c')") == '"a""b,c"'
    assert tab.value("download.field(-0.5)") == "-0.5"


# -- looks


def test_themes_follow_the_system_until_the_reader_says(tab: Tab) -> None:
    paper = "getComputedStyle(document.body).backgroundColor"
    light = tab.value(paper)
    tab.look(1280, "dark", height=2000)
    dark = tab.value(paper)
    assert dark != light
    for expected in (light, dark, dark):
        click(tab, "#theme")
        assert tab.value(paper) == expected
    tab.look(1280, "light", height=2000)
    assert tab.value(paper) == light


@pytest.mark.parametrize("view", ["table", "plot", "compare"])
@pytest.mark.parametrize("name", ["realistic", "hostile"])
def test_nothing_is_wider_than_a_phone(browser: Tab, tmp_path: Path, name: str, view: str) -> None:
    board = getattr(board_samples, name)()
    pages.write(board, tmp_path / "site")
    browser.look(390, "dark")
    visit(browser, tmp_path / "site")
    set_state(browser, view=view, pick=[row.id for row in board.rows[:3]])
    settle(browser)
    assert browser.value("document.documentElement.scrollWidth") <= 390


def test_texts_of_strangers_stay_texts(browser: Tab, tmp_path: Path) -> None:
    board = board_samples.hostile()
    folder = tmp_path / "site"
    pages.write(board, folder)
    browser.look(1280, "light", height=2000)
    visit(browser, folder)
    keys = [column.key for column in board.columns]
    picked = [row.id for row in board.rows if row.kind == "sae"][:4]
    for step in (
        {"col": keys}, {"group": "no", "sort": keys[1]}, {"row": picked[0], "at": keys[1]}, {"row": ""},
        {"view": "plot", "y": keys[1]}, {"view": "plot", "y": keys[7], "x": "width"},
        {"view": "compare", "pick": picked}, {"base": picked[2]},
        {"q": board_samples.EVIL, "model": board_samples.EVIL, "view": "table"},
    ):  # fmt: skip
        set_state(browser, **step)
        settle(browser)
        browser.wait("document.querySelectorAll('main *').length > 0")
        browser.value("document.querySelectorAll('details').forEach((node) => { node.open = true; })")
        assert browser.value("document.title") == "saebench-meta leaderboard"
        assert (
            browser.value("document.querySelectorAll('body :is(img, iframe, object, embed, form [src])').length") == 0
        )
    click(browser, "#choose")
    for button in browser.value("document.querySelectorAll('.help').length") * [".help"]:
        click(browser, button)
    sources = browser.value("[...document.scripts].map((node) => node.src)")
    assert len(sources) > 10 and all(source.startswith(folder.as_uri()) for source in sources)
    assert "onerror" in browser.value("document.getElementById('choices').textContent")
    assert browser.value("download.contents().then((found) => download.csv(found).length > 0)")
    assert browser.errors == [] and browser.value("document.title") == "saebench-meta leaderboard"
    inside(browser, folder)
