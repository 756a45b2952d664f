"""The explorer's parts: activity, passages, what records hold, and the data chunks and folder made of them."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from explorer_samples import ACTIVITY, EVIL, PASSAGE, contents, large
from fakes import Chunk, toy_context
from record_samples import record, write

from saebench_meta.codes import Codes
from saebench_meta.errors import BadFileError, SaebenchError
from saebench_meta.explorer import collect, folder, sources
from saebench_meta.explorer.activity import NONE, Activity, activity, histograms
from saebench_meta.explorer.folder import chunks, folder_bytes, short, strongest, write_folder
from saebench_meta.explorer.passages import AFTER, BEFORE, chosen_codes, passages, pieces
from saebench_meta.explorer.sources import Sources, find_sources
from saebench_meta.report import write_report

# -- activity and passages


def sparse(tokens: int, latents: int, seed: int = 0) -> torch.Tensor:
    f = torch.rand(tokens, latents, generator=torch.Generator().manual_seed(seed))
    return torch.where(f < 0.8, 0.0, f)


class Tokens(Chunk):
    """A chunk that knows its tokens too."""

    def __init__(self, token: torch.Tensor) -> None:
        super().__init__(torch.zeros(len(token), 1), token)
        object.__setattr__(self, "token", token)


def in_chunks(f: torch.Tensor, token: torch.Tensor, size: int) -> list[tuple[Any, Codes]]:
    parts = zip(f.split(size), token.split(size), strict=True)
    return [(Tokens(t), Codes.from_dense(part)) for part, t in parts]


@pytest.mark.parametrize("size", [1, 7, 1000])
def test_activity_is_that_of_a_loop_over_latents_however_tokens_are_cut(size: int) -> None:
    f, token = sparse(60, 9), torch.randint(0, 8, (60,), generator=torch.Generator().manual_seed(1))
    f[:, 4] = 0
    found = activity(in_chunks(f, token, size), 9)
    assert found.n_tokens == 60
    assert found.counts.tolist() == (f > 0).sum(0).tolist()
    assert torch.equal(found.maxima, f.amax(0))
    for latent in range(9):
        largest = {int(t): float(f[token == t, latent].max()) for t in token.unique()}
        order = sorted((t for t in largest if largest[t] > 0), key=lambda t: -largest[t])[:3]
        assert found.tokens[latent].tolist() == order + [NONE] * (3 - len(order))


def test_a_histogram_counts_activations_in_equal_parts_up_to_the_largest() -> None:
    f = torch.tensor([[1.0, 0, 8.0], [2.0, 0, 8.0], [4.0, 0, 0.5], [0.5, 0, 4.0]])
    view = chosen_codes(in_chunks(f, torch.zeros(4, dtype=torch.long), 3), [2, 1, 0])
    assert histograms(view, bins=4).tolist() == [[1, 0, 1, 2], [0, 0, 0, 0], [1, 1, 1, 1]]


def test_passages_are_the_rows_with_the_largest_activations_and_what_stands_around() -> None:
    toy = toy_context([5, 90, 40, 40, 3], seed=2)
    sample = toy.texts
    n = int(sample.evaluated.sum())
    f = sparse(n, 4, seed=3)
    dense = torch.zeros(*sample.tokens.shape, 4)
    dense[sample.evaluated] = f
    latents = [3, 0]
    found = passages(chosen_codes(in_chunks(f, torch.zeros(n, dtype=torch.long), 50), latents), sample, n=3)
    for latent, mine in zip(latents, found, strict=True):
        rows = dense[:, :, latent].amax(1).argsort(descending=True)[:3].tolist()
        assert [p.document for p in mine] == [sample.document_ids[row] for row in rows]
        for row, passage in zip(rows, mine, strict=True):
            at = int(dense[row, :, latent].argmax())
            window = slice(max(0, at - BEFORE), min(int(sample.lengths[row]), at + AFTER + 1))
            assert passage.tokens == sample.tokens[row, window].tolist()
            assert passage.activations == dense[row, window, latent].tolist()
            assert passage.peak == at - window.start


def test_a_latent_that_is_never_active_has_no_passage() -> None:
    toy = toy_context([4, 4])
    f = torch.zeros(8, 2)
    f[3, 1] = 1.0
    found = passages(chosen_codes(in_chunks(f, torch.zeros(8, dtype=torch.long), 8), [0, 1]), toy.texts)
    assert [len(mine) for mine in found] == [0, 1]


def test_a_character_of_several_tokens_goes_to_the_last_of_them() -> None:
    parts = [b"caf", b"\xc3", b"\xa9", b" au"]
    texts = pieces(lambda ids: b"".join(parts[i] for i in ids).decode(errors="replace"), [0, 1, 2, 3])
    assert texts == ["caf", "", "é", " au"]


def test_more_latents_drawn_hold_the_fewer_and_the_chosen_ones_and_none_that_is_never_active() -> None:
    counts = torch.ones(50, dtype=torch.long)
    counts[:10] = 0
    found = Activity(counts, counts.float(), torch.full((50, 3), NONE), 50)
    few, many = (collect.drawn(found, n, [3], seed=0) for n in (5, 20))
    assert set(few) < set(many) and len(few) == 6 and len(many) == 21
    assert few == sorted(few) and [i for i in many if i < 10] == [3]
    assert collect.drawn(found, 5, [3], seed=1) != few
    assert collect.drawn(found, 500, [], seed=0) == list(range(10, 50))


# -- chunks and the folder


def test_the_chunks_hold_what_was_found() -> None:
    made = dict(chunks(contents()))
    assert list(made) == ["latents/0", "explanations", "decomposition", "steering/0", "index"]
    assert made["latents/0"] == {
        "passages": [
            {"document": "17", "peak": 1, "texts": [" Paris", EVIL, "\n"], "activations": [0.5, 2.0, 0.0]}
        ],
        "histogram": [4, 0, 1],
        "boosted": [[EVIL, 3.142]],
        "suppressed": [[" Paris", -2.0]],
    }  # fmt: skip
    assert made["explanations"] == {"latents": (0, 1), "texts": (f"a capital {EVIL}", "line breaks")}
    assert made["decomposition"] == {"counts": [2, 1, 0, 1], "metas": [1, 0, 1, 0], "activations": [2, 1, 1, 4]}
    assert made["steering/0"] == {
        "targets": ["Tokyo"],
        "edits": ["none", "swap"],
        "attributes": ["country"],
        "candidates": ["France", "Japan", EVIL],
        "rows": [[0, 0, 0, 0, -0.1], [0, 0, 0, 1, -4.0], [0, 1, 0, 0, -3.0], [0, 1, 0, 2, -0.25]],
    }
    index = made["index"]
    assert index["metas"] == {"latents": [2, 2, 0], "top": [3, 0, -1]}
    assert index["activity"] == {
        "tokens_seen": 10,
        "counts": [5, 1, 0, 2],
        "maxima": [2.0, 0.1235, 0.0, 1.0],
        "top": 3,
        "tokens": [1, 0, -1, 2, -1, -1, -1, -1, -1, 0, 1, 2],
        "vocabulary": [" Paris", EVIL, "\n"],
    }
    assert (index["d_sae"], index["shown"], index["explained"], index["report"]) == (4, [0], True, "../report.html")
    steering = index["steering"]
    assert steering["heads"] == ["city", "target", "reached"] and steering["pairs"] == [["Paris", "Tokyo", "3"]]
    assert steering["cities"] == ["Paris"]


def test_without_a_model_or_a_meta_sae_the_index_says_so() -> None:
    made = dict(chunks(folder.Contents(title="bare", facts={}, d_sae=4, notes=("no meta",))))
    assert list(made) == ["index"]
    assert {k: made["index"][k] for k in ("activity", "metas", "explained", "steering", "shown", "notes")} == {
        "activity": None, "metas": None, "explained": False, "steering": None, "shown": [], "notes": ["no meta"]
    }  # fmt: skip


def test_a_dense_decomposition_keeps_the_strongest_of_each_latent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folder, "MAX_PAIRS", 9)
    latents = np.repeat([0, 1, 2, 3], [3, 3, 0, 4])
    dense = sources.Decomposition(latents, np.arange(10) % 5, np.arange(10, 0, -1).astype(np.float32), n_metas=5)
    kept, said = strongest(dense, 4)
    assert kept.latents.tolist() == [0, 0, 1, 1, 3, 3] and kept.activations.tolist() == [10, 9, 7, 6, 4, 3]
    assert said is not None and "the 2 strongest" in said
    assert strongest(dense, 4)[0].n_metas == 5
    monkeypatch.setattr(folder, "MAX_PAIRS", 10)
    assert strongest(dense, 4) == (dense, None)


def test_numbers_have_four_digits() -> None:
    assert [short(v) for v in (0.123456, 123456.0, -2e-9, 0.0)] == [0.1235, 123500.0, -2e-9, 0.0]


def test_no_text_of_a_stranger_is_markup_or_a_name(tmp_path: Path) -> None:
    page = write_folder(tmp_path / "explorer", contents(title=EVIL))
    html = page.read_text()
    assert EVIL not in html and "&lt;script&gt;document.title=" in html
    assert re.findall(r"<script[^>]*>", html) == [f'<script src="{name}">' for name in folder.SCRIPTS]
    assert "default-src 'none'" in html and "unsafe-eval" not in html and "http" not in html.replace("http-equiv", "")
    for name in folder.SCRIPTS:
        script = (page.parent / name).read_text()
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b|new Function", script)
    files = sorted(p.relative_to(page.parent / "data").as_posix() for p in page.parent.rglob("data/**/*.js"))
    assert files == ["decomposition.js", "explanations.js", "index.js", "latents/0.js", "steering/0.js"]
    for file in files:
        text = (page.parent / "data" / file).read_text()
        name, value = re.fullmatch(r'explorer\.put\("([a-z]+(?:/\d+)?)", (.*)\);\n', text, re.DOTALL).groups()  # type: ignore[union-attr]
        assert f"{name}.js" == file and text.isascii()
        assert json.loads(value) == json.loads(json.dumps(dict(chunks(contents(title=EVIL)))[name]))


def test_writing_again_leaves_nothing_of_before_and_touches_no_other_folder(tmp_path: Path) -> None:
    out = tmp_path / "explorer"
    write_folder(out, contents())
    write_folder(out, replace(contents(), shown={}, steering=None))
    assert not (out / "data" / "latents").exists() and not (out / "data" / "steering").exists()
    other = tmp_path / "other"
    other.mkdir()
    (other / "thesis.txt").write_text("mine")
    with pytest.raises(SaebenchError, match="holds files that are no explorer"):
        write_folder(other, contents())
    assert [p.name for p in other.iterdir()] == ["thesis.txt"]
    (tmp_path / "link").symlink_to(out)
    with pytest.raises(SaebenchError, match="is a link"):
        write_folder(tmp_path / "link", contents())
    (tmp_path / "file").write_text("")
    with pytest.raises(SaebenchError, match="cannot be written to"):
        write_folder(tmp_path / "file" / "below", contents())


def test_the_folder_of_fifty_thousand_latents_is_below_thirty_megabytes(tmp_path: Path) -> None:
    page = write_folder(tmp_path / "explorer", large(50_000, 2304, k=4, explained=50_000, shown=300))
    assert folder_bytes(page.parent) < 30e6
    first = [page, *(page.parent / name for name in folder.SCRIPTS), page.parent / "data" / "index.js"]
    assert sum(file.stat().st_size for file in first) < 3e6
    decomposition = (page.parent / "data" / "decomposition.js").read_text()
    assert len(json.loads(decomposition.split(", ", 1)[1][:-3])["metas"]) == 200_000


# -- records


TABLES = {
    "decomposition": "latent,meta_latent,activation\n1,0,0.5\n0,2,0.25\n1,2,1.5\n",
    "meta_latents": "meta_latent,latents,top\n0,1,1\n2,2,1 0\n4,0,\n",
}


def run_folder(at: Path, tables: dict[str, str] = TABLES, *, task: str = "meta_sae", **fields: Any) -> Path:
    files = {f"tables/{name}.csv": ("table", name, text) for name, text in tables.items()}
    return write(at, record(task=task, **fields), files=files)


def test_a_decomposition_is_read_by_latent_the_strongest_first(tmp_path: Path) -> None:
    run_folder(tmp_path)
    found = sources.read_decomposition(find_sources(tmp_path))
    assert found is not None and found.n_metas == 5
    assert found.latents.tolist() == [0, 1, 1] and found.metas.tolist() == [2, 2, 0]
    assert found.activations.tolist() == [0.25, 1.5, 0.5]


def test_a_meta_sae_that_is_never_active_has_a_decomposition_without_pairs(tmp_path: Path) -> None:
    run_folder(tmp_path, {name: text.partition("\n")[0] + "\n" for name, text in TABLES.items()})
    found = sources.read_decomposition(find_sources(tmp_path))
    assert found is not None and (len(found.latents), found.n_metas) == (0, 0)
    page = write_folder(tmp_path / "e", collect.from_records(find_sources(tmp_path), tmp_path, tmp_path / "e"))
    assert '"counts":[0,0,0,0,0,0,0,0]' in (page.parent / "data" / "decomposition.js").read_text()


def test_explanations_and_steering_come_from_whichever_task_left_them(tmp_path: Path) -> None:
    run_folder(
        tmp_path, {"explanations": f'latent,score,explanation\n3,1,"a, b"\n5,0,{"x" * 2000}\n'}, task="autointerp"
    )
    rows = (
        "city,target,edit,attribute,candidate,logprob\n"
        "Paris,Tokyo,none,country,France,-0.5\nCairo,Paris,none,country,Egypt,-1\n"
    )
    run_folder(tmp_path, {"logprobs": rows, "pairs": "city,target\nParis,Tokyo\n"}, task="city_steering")
    found = find_sources(tmp_path)
    assert sources.read_explanations(found) == {3: "a, b", 5: "x" * 1000}
    steering = sources.read_steering(found)
    assert steering is not None and list(steering.logprobs) == ["Paris", "Cairo"]
    assert steering.logprobs["Paris"] == [("Tokyo", "none", "country", "France", -0.5)]
    assert (steering.heads, steering.pairs) == (["city", "target"], [["Paris", "Tokyo"]])
    assert sources.read_decomposition(found) is None
    told = collect.from_records(found, tmp_path, tmp_path / "explorer")
    assert told.notes == ("no meta_sae record of this SAE is there: no meta-latents",) and told.report is None


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("decomposition", "latent,activation\n1,1\n", "no column 'meta_latent'"),
        ("decomposition", "latent,meta_latent,activation\n8,0,1\n", "line 2: '8' is no number from 0 to 7"),
        ("decomposition", "latent,meta_latent,activation\n0,-1,1\n", "'-1' is no number"),
        ("decomposition", "latent,meta_latent,activation\n0,1000000,1\n", "'1000000' is no number from 0 to 999999"),
        ("decomposition", "latent,meta_latent,activation\n0,0,nan\n", "'nan' is no finite number"),
        ("decomposition", "latent,meta_latent,activation\n0,0\n", "it has 2 cells for 3 columns"),
        ("explanations", "latent,explanation\n9,x\n", "'9' is no number from 0 to 7"),
        ("decomposition", "", "no column 'latent'"),
    ],
)
def test_a_table_that_is_none_of_the_tasks_is_refused(tmp_path: Path, name: str, text: str, said: str) -> None:
    run_folder(tmp_path, {name: text})
    with pytest.raises(BadFileError, match=re.escape(said)):
        collect.from_records(find_sources(tmp_path), tmp_path, tmp_path / "explorer")


def test_the_newest_record_counts_and_unfinished_ones_and_pairs_do_not(tmp_path: Path) -> None:
    made = record(task="meta_sae")
    for day, activation in (("02", "0.5"), ("03", "0.75"), ("01", "0.25")):
        run = made.run.model_copy(update={"started": f"2026-01-{day}T00:00:00+00:00"})
        run_folder(tmp_path, {"decomposition": f"latent,meta_latent,activation\n0,0,{activation}\n"}, run=run)
    later = made.run.model_copy(update={"started": "2026-02-01T00:00:00+00:00"})
    pair = made.subject.model_copy(update={"kind": "pair"})
    other = {"decomposition": "latent,meta_latent,activation\n0,0,9\n"}
    run_folder(tmp_path, other, run=later, subject=pair)
    run_folder(tmp_path, other, run=later, status="failed", reason="it broke")
    found = sources.read_decomposition(find_sources(tmp_path))
    assert found is not None and found.activations.tolist() == [0.75]


def test_of_several_saes_one_must_be_named_unless_one_alone_has_a_meta_sae(tmp_path: Path) -> None:
    with pytest.raises(SaebenchError, match="holds no finished record"):
        find_sources(tmp_path)
    for name in ("a", "b"):
        write(tmp_path, record(name=name))
    with pytest.raises(SaebenchError, match=re.escape("several SAEs (toy:a, toy:b): name one with --sae")):
        find_sources(tmp_path)
    run_folder(tmp_path, name="b")
    found: Sources = find_sources(tmp_path)
    assert found.sae.ref == "toy:b" and len(found.found) == 2


def test_a_table_outside_its_records_folder_is_not_read(tmp_path: Path) -> None:
    at = run_folder(tmp_path / "run")
    secret = tmp_path / "secret.csv"
    secret.write_text(TABLES["decomposition"])
    (at / "tables" / "decomposition.csv").unlink()
    (at / "tables" / "decomposition.csv").symlink_to(secret)
    assert sources.read_decomposition(find_sources(tmp_path / "run")) is None


def test_the_report_links_the_explorer_where_there_is_one_and_the_explorer_the_report(tmp_path: Path) -> None:
    run_folder(tmp_path)
    assert "Explore the latents" not in write_report(tmp_path).read_text()
    out = tmp_path / "explorer"
    write_folder(out, collect.from_records(find_sources(tmp_path), tmp_path, out))
    assert '"report":"../report.html"' in (out / "data" / "index.js").read_text()
    assert '<a href="explorer/index.html">Explore the latents</a>' in write_report(tmp_path).read_text()


def test_the_samples_agree_with_each_other() -> None:
    assert ACTIVITY.maxima[0] == max(PASSAGE.activations) and ACTIVITY.counts[0] == sum(contents().shown[0].histogram)
