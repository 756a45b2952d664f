"""The HTML page and the tables of records: what is shown, and that nothing in a stranger's record can do harm."""

from __future__ import annotations

import io
import json
import re
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest
from browser import OFFLINE, chromium, opened
from record_samples import MODEL, control, data, metric, order, record, write

from saebench_meta import tables
from saebench_meta.errors import BadFileError, SaebenchError
from saebench_meta.interactive import MAX_SPEC
from saebench_meta.record import Artifact, Record
from saebench_meta.report import ROWS_SHOWN, summary_html, write_report

VOID = {"meta", "link", "img", "br", "hr", "input"}


class Page(HTMLParser):
    """Checks that tags nest, and keeps links, images and ids."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.attributes: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def of(self, tag: str, name: str) -> list[str]:
        return [a[name] or "" for t, a in self.attributes if t == tag and name in a]


def full_record(name: str = "wide") -> Record:
    return record(
        name=name,
        model=MODEL,
        data=data(),
        notes=["two documents were cut"],
        metrics={
            "score": metric(controls={"random": control(0.12, 0.63)}, order=order()),
            "loss": metric(1.25, None, None, better="lower", unit="nats", order=order(False, "random>trained")),
            "minor": metric(3.0, None, None, unit="latents", main=False, help="not in the short table"),
        },
    )


POINTS = [{"x": 1, "y": 2}, {"x": 2, "y": 3}]
PLACE = {name: {"field": name, "type": "quantitative", "title": f"the {name}"} for name in "xy"}
DATUM = {"mark": "rule", "encoding": {"x": {"datum": 1}}}
CURVE = {"data": {"values": POINTS}, "mark": "line", "encoding": PLACE}
LAYERED = {"data": {"values": POINTS}, "layer": [{"mark": "line", "encoding": PLACE}, DATUM]}


def write_full(run: Path, name: str = "wide", rows: int = ROWS_SHOWN + 3) -> Path:
    files = {
        "tables/top.csv": ("table", "Top latents", "latent,share\n" + "".join(f"{i},0.5\n" for i in range(rows))),
        "figures/curve.vl.json": ("figure", "A curve", json.dumps(CURVE)),
    }
    return write(run, full_record(name), files=files)


def test_the_page_shows_numbers_controls_tables_figures_and_where_they_come_from(tmp_path: Path) -> None:
    write_full(tmp_path)
    write_full(tmp_path, "narrow")
    write(tmp_path, record(name="broken", status="failed", reason="it broke"))
    target = write_report(tmp_path, skipped={"probing on wide": "it needs a judge: give --judge NAME"})
    assert target == tmp_path / "report.html"
    text = target.read_text()
    page = Page(text)
    for part in (
        "0.750",
        "[0.700, 0.800]",
        "census",
        "random 0.120",
        "two documents were cut",
        "not in the short table",
    ):
        assert part in text
    assert "it broke" in text and "give --judge NAME" in text
    assert "abc with changes" in text and "sampling: context" in text
    assert len(page.of("img", "src")) == 2
    assert f"{ROWS_SHOWN + 3} rows" in text and f"first {ROWS_SHOWN} rows" in text
    assert text.count("<td>0.5</td>") == 2 * ROWS_SHOWN
    anchors = [h[1:] for h in page.of("a", "href") if h.startswith("#")]
    ids = [i for _, a in page.attributes if (i := a.get("id"))]
    assert set(anchors) <= set(ids) and len(ids) == len(set(ids))


def test_the_page_reaches_for_nothing_on_the_network_and_runs_no_script(tmp_path: Path) -> None:
    write_full(tmp_path)
    text = write_report(tmp_path).read_text()
    page = Page(text)
    assert not [t for t, _ in page.attributes if t in ("script", "iframe", "link", "object")]
    assert all(s.startswith("data:") for s in page.of("img", "src"))
    assert not re.search(r"(?:src|href)=\"(?:https?:)?//|url\(|@import", text)
    assert "default-src 'none'" in text


def test_links_to_files_lead_to_files_that_are_there(tmp_path: Path) -> None:
    write_full(tmp_path, "name with space & sign")
    page = Page(write_report(tmp_path).read_text())
    from urllib.parse import unquote

    links = [h for h in page.of("a", "href") if not h.startswith("#")]
    assert len(links) == 3
    assert all((tmp_path / unquote(h.partition("#")[0])).is_file() for h in links)


def test_markup_in_a_record_stays_text(tmp_path: Path) -> None:
    evil = "<script>alert(1)</script>"
    made = full_record().model_copy(update={"notes": [evil]})
    write(tmp_path, made, files={"tables/t.csv": ("table", evil, f"{evil}\n{evil}\n")})
    text = write_report(tmp_path).read_text()
    assert "<script" not in text and text.count("&lt;script&gt;") >= 4


def test_an_artifact_outside_its_record_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "secret.csv").write_text("secret\n42\n")
    folder = write(tmp_path / "run", full_record())
    artifact = Artifact(path="../../../../secret.csv", kind="table", title="t", sha256="0" * 64, bytes=1)
    assert (folder / artifact.path).is_file()
    (folder / "record.json").write_text(full_record().model_copy(update={"artifacts": [artifact]}).to_json())
    assert "secret" not in write_report(tmp_path / "run").read_text()


def test_a_broken_record_is_named(tmp_path: Path) -> None:
    folder = write_full(tmp_path)
    (folder / "record.json").write_text("{")
    with pytest.raises(BadFileError, match=r"record\.json"):
        write_report(tmp_path)


def test_a_missing_folder_is_the_users_error(tmp_path: Path) -> None:
    with pytest.raises(SaebenchError, match="does not exist"):
        write_report(tmp_path / "none")


def test_a_folder_without_records_makes_a_page_that_says_so(tmp_path: Path) -> None:
    assert "No task has finished" in write_report(tmp_path).read_text()


def test_subjects_lacking_a_metric_leave_its_cell_empty(tmp_path: Path) -> None:
    first = record(name="a", metrics={"x": metric(), "y": metric(0.5)})
    second = record(name="b", metrics={"x": metric(0.25)})
    text = summary_html([first, second], {"t on b": "no"}, {})
    assert text.count("<td>") == 4 and "<td></td>" in text
    Page(text)


# -- interactive figures


def write_figures(run: Path, *specs: object) -> Path:
    """The page of the interactive figures of a record with these; the report is written too."""
    texts = [spec if isinstance(spec, str) else json.dumps(spec) for spec in specs]
    files = {f"figures/f{i}.vl.json": ("figure", f"figure {i}", text) for i, text in enumerate(texts)}
    made = full_record()
    write(run, made, files=files)
    write_report(run)
    return run / "interactive" / f"{made.id[:16]}.html"


def specs_of(page: Path) -> list[dict[str, object]]:
    return [json.loads(s) for s in re.findall(r'class="spec">(.*?)</script>', page.read_text(), re.DOTALL)]


def browsed(page: Path, profile: Path) -> str:
    """The page as a browser without a network has it once its scripts have run."""
    options = [
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--virtual-time-budget=20000",
        f"--user-data-dir={profile}",
        OFFLINE,
        "--enable-logging=stderr",
    ]
    done = subprocess.run(
        [chromium(), *options, "--dump-dom", page.as_uri()], capture_output=True, text=True, timeout=300
    )
    assert "Refused" not in done.stderr and "Content Security Policy" not in done.stderr, done.stderr
    return done.stdout


def test_vega_is_bundled_once_and_written_into_every_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import vl_convert

    bundled: list[int] = []
    monkeypatch.setattr(vl_convert, "javascript_bundle", lambda: bundled.append(1) or "var vega;")
    monkeypatch.setenv("SAEBENCH_CACHE_DIR", str(tmp_path / "cache"))
    scripts = [write_figures(tmp_path / name, CURVE).parent / "vega.js" for name in ("a", "b")]
    assert [s.read_text() for s in scripts] == ["var vega;"] * 2 and len(bundled) == 1
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("SAEBENCH_CACHE_DIR", str(tmp_path / "file"))
    assert (write_figures(tmp_path / "c", CURVE).parent / "vega.js").is_file() and len(bundled) == 2


def test_each_figure_has_an_interactive_one_that_reaches_for_nothing_but_its_scripts(tmp_path: Path) -> None:
    page = write_figures(tmp_path, CURVE, {**CURVE, "mark": "bar"})
    report = (tmp_path / "report.html").read_text()
    assert [f'href="interactive/{page.name}#figure-{i}"' in report for i in (1, 2, 3)] == [True, True, False]
    seen = Page(page.read_text())
    assert seen.of("script", "src") == ["vega.js", "draw.js"]
    assert all((page.parent / s).is_file() for s in ("vega.js", "draw.js"))
    assert set(seen.of("a", "href")) == {"../report.html#record-1"}
    assert "default-src 'none'" in page.read_text() and "unsafe-eval" not in page.read_text()
    assert [s["data"] for s in specs_of(page)] == [CURVE["data"]] * 2


@pytest.mark.slow
def test_a_browser_draws_the_figures_from_disk_without_a_network(tmp_path: Path) -> None:
    seen = browsed(write_figures(tmp_path / "run", CURVE, LAYERED), tmp_path / "profile")
    assert seen.count(">the x</text>") == 2 and "cannot be drawn" not in seen


@pytest.mark.slow
def test_every_task_of_every_sae_is_on_one_page_that_is_no_wider_than_a_phone(tmp_path: Path) -> None:
    for task in ("first_task", "second_task"):
        for name in ("wide", "a-name-that-goes-on-and-on-vs-another-that-does-too"):
            files = {
                "tables/t.csv": ("table", f"{task}'s table", "a\n" + "b" * 300),
                "figures/f.vl.json": ("figure", f"{task}'s figure", json.dumps(CURVE)),
            }
            write(tmp_path, record(task=task, name=name, notes=["sha256 " + "0" * 200]), files=files)
    page = write_report(tmp_path)
    with opened(tmp_path / "profile") as tab:
        tab.look(390, "light")
        tab.open(page)
        tab.wait("document.readyState === 'complete'")
        tab.value("document.querySelectorAll('details').forEach((d) => { d.open = true })")
        assert tab.value("document.documentElement.scrollWidth") == 390
        count = "[...document.querySelectorAll('{}')].filter((n) => n.textContent.includes('{}')).length"
        for task in ("first_task", "second_task"):
            for tag, shown in (("caption", 1), ("h2", 2), ("figure", 2), ("details > summary", 2)):
                assert tab.value(count.format(tag, task)) == shown, (task, tag)
        assert tab.value("[...document.images].every((i) => i.complete && i.naturalWidth > 0)")
        assert tab.errors == []


@pytest.mark.slow
def test_a_strangers_figure_runs_no_code_and_loads_nothing(tmp_path: Path) -> None:
    owned = "</script><script>document.title='owned'</script>"
    (tmp_path / "secret.csv").write_text("x,y\n1,SECRET\n")
    reading = {"data": {"url": "../../secret.csv"}, "mark": "text", "encoding": {"text": {"field": "y"}}}
    evaluated = {"calculate": "constructor.constructor('document.title=\"owned\"')()", "as": "x"}
    page = write_figures(
        tmp_path / "run",
        {**CURVE, "title": owned, "description": owned},
        {**reading, "usermeta": {"embedOptions": {"loader": {"baseURL": "/"}, "ast": False}}},
        {**CURVE, "transform": [evaluated]},
        {
            "data": {"values": [{"u": (tmp_path / "x.svg").as_uri()}]},
            "mark": "image",
            "encoding": {"url": {"field": "u"}},
        },
        {**CURVE, "mark": {"type": "point", "href": "javascript:document.title='owned'"}},
    )
    seen = browsed(page, tmp_path / "profile")
    assert "<title>toy_task@1 on wide: figures</title>" in seen
    assert "SECRET" not in seen and not re.search(r'href="[^"]*(x\.svg|javascript:)', seen)
    assert "&lt;/script&gt;" in seen and "embedOptions" not in seen


@pytest.mark.parametrize("text", ["", "[1]", '{"a": NaN}', "[" * 100_000, '{"a": "' + " " * MAX_SPEC + '"}', "{}"])
def test_a_figure_that_cannot_be_read_is_shown_as_an_image_only(tmp_path: Path, text: str) -> None:
    page = write_figures(tmp_path, text)
    report = (tmp_path / "report.html").read_text()
    assert not page.exists() and ">interactive</a>" not in report and "<img" in report


def test_wheel_and_drag_zoom_where_both_axes_are_numbers(tmp_path: Path) -> None:
    names = {**PLACE, "x": {"field": "x", "type": "nominal"}}
    binned = {**PLACE, "x": {**PLACE["x"], "bin": "binned"}}
    own = [{"name": "mine", "value": 1}]
    page = write_figures(
        tmp_path, CURVE, {**CURVE, "encoding": names}, {**CURVE, "encoding": binned}, {**CURVE, "params": own}, LAYERED
    )
    found = specs_of(page)
    zoom = [{"name": "zoom", "select": "interval", "bind": "scales"}]
    assert [s.get("params") for s in found] == [zoom, None, None, own, None]
    assert found[-1]["layer"] == [{"mark": "line", "encoding": PLACE, "params": zoom}, DATUM]


def test_interactive_figures_are_not_written_through_a_link_to_another_folder(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "interactive").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(SaebenchError, match="is a link to another folder"):
        write_figures(tmp_path / "run", CURVE)
    assert list((tmp_path / "elsewhere").iterdir()) == []


def test_saes_that_a_task_made_can_be_downloaded(tmp_path: Path) -> None:
    folder = write(tmp_path, full_record(), files={"saes/stitched.safetensors": ("sae", "stitched <256>", "weights")})
    page = Page(write_report(tmp_path).read_text())
    [link] = [a["href"] for t, a in page.attributes if t == "a" and "download" in a]
    assert link == (folder / "saes/stitched.safetensors").relative_to(tmp_path).as_posix().replace("@", "%40")
    assert "stitched &lt;256&gt;" in (tmp_path / "report.html").read_text()


# -- the formatting shared with the terminal


@pytest.mark.parametrize(
    ("value", "low", "high", "shown"),
    [
        (0.81234, 0.80111, 0.82345, "0.812 [0.801, 0.823]"),
        (1234.5, 1100.0, 1400.0, "1,234 [1,100, 1,400]"),
        (0.5, 0.5, 0.5, "0.5 [0.5, 0.5]"),
        (-0.00012, -0.00015, -0.00009, "-0.000120 [-0.000150, -0.000090]"),
    ],
)
def test_a_value_has_the_digits_its_interval_allows(value: float, low: float, high: float, shown: str) -> None:
    m = metric(value, low, high)
    assert f"{tables.number(m.value, tables.places(m))} {tables.interval(m)}" == shown


@pytest.mark.parametrize(
    ("value", "shown"),
    [(None, "—"), (128.0, "128"), (16384, "16,384"), (0.123456, "0.1235"), (1e-9, "1e-09"), (12345.6, "12,346")],
)
def test_a_number_without_an_interval_has_four_digits(value: float | None, shown: str) -> None:
    assert tables.number(value) == shown


def test_a_metric_without_a_value_gives_its_reason() -> None:
    m = metric(None, None, None, reason="no document was long enough")
    assert tables.interval(m) == "no document was long enough"


def test_the_order_of_controls_is_told_in_words() -> None:
    assert tables.order_text(order()) == "trained > random"
    assert tables.order_text(order(False, "random>trained")) == "expected trained > random, seen random > trained"
    assert tables.order_text(order(None)).endswith("(within the noise)")


def test_the_text_table_holds_main_metrics_with_direction_controls_and_reasons() -> None:
    text = tables.render_text([full_record()], {"probing on wide": "it needs a judge"}, {"x on y": "it broke"})
    assert "↑ score (fraction)" in text and "↓ loss (nats)" in text and "minor" not in text
    assert "random 0.120" in text and "✓" in text
    assert "✗ loss of toy_task@1 on wide: expected trained > random, seen random > trained" in text
    assert "probing on wide: it needs a judge" in text and "x on y: it broke" in text
    assert "\x1b" not in text


@pytest.mark.parametrize("width", [60, 80, 109, 110, 200])
def test_numbers_and_intervals_are_never_broken_however_narrow_the_terminal(width: int) -> None:
    from rich.console import Console

    console = Console(file=io.StringIO(), color_system=None, width=width)
    long = record(
        name="a-long-name-of-a-subject-" * 3, metrics={"score": metric(controls={"random": control(0.12, 0.63)})}
    )
    tables.print_records(console, [full_record(), long])
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert text.count("[0.700, 0.800]") == 2 and text.count("0.750") == 2
    assert text.count("120 documents") == 3


def test_all_metrics_are_shown_on_request_or_where_none_is_main() -> None:
    assert [r.metric for r in tables.rows([full_record()], all_metrics=True)] == ["score", "loss", "minor"]
    assert [r.metric for r in tables.rows([record(metrics={"m": metric(main=False)})])] == ["m"]
