"""`saebench explore`: reopening what a record names, the passages and tokens of a real model, and what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result
from fakes import tied_sae
from record_samples import data, record, write

from saebench_meta.cli import saebench
from saebench_meta.explorer.lens import boosted, row_logits, why_no_lens
from saebench_meta.models import LanguageModel, load_bridge
from saebench_meta.record import ModelUsed, Subject, SubjectSAE
from saebench_meta.resolve import file_sha256
from saebench_meta.sae import SAEInfo, Site
from saebench_plugins import native

HOOK = "blocks.2.hook_resid_post"
MODEL, CORPUS, SAE = "model", "corpus.txt", "sae.safetensors"
D_IN, D_SAE = 64, 12
DECOMPOSITION = "latent,meta_latent,activation\n" + "".join(f"{i},{i % 3},1\n" for i in range(D_SAE))


def explore(*arguments: str | Path) -> Result:
    return CliRunner().invoke(saebench, ["explore", *map(str, arguments)])


def refused(*arguments: str | Path) -> str:
    done = explore(*arguments)
    assert done.exit_code == 2 and done.stdout == "" and "Traceback" not in done.stderr, done.output
    return done.stderr


def chunk(page: Path, name: str) -> Any:
    text = (page / "data" / f"{name}.js").read_text()
    return json.loads(text[text.index(", ") + 2 : -3])


def subject(ref: str, about: SAEInfo) -> Subject:
    files = {"weights": file_sha256(Path(ref))}
    sae = SubjectSAE(ref=ref, role="sae", loader="native", loader_version=1, info=about, files=files)
    return Subject(kind="sae", name=about.name, saes=[sae])


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stories_model_dir: Path, stories: list[str]) -> Path:
    """A run folder with a record on an SAE file, model and corpus that lie where the command is typed."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(stories_model_dir, MODEL)
    Path(CORPUS).write_text("\n".join(" ".join(s.split()) for s in stories[:40]))
    site = Site(model=MODEL, hook=HOOK)
    sae = tied_sae(D_IN, D_SAE, name="tied", site=site, prepend_bos=True, dataset=CORPUS)
    native.save(sae, Path(SAE))
    used = ModelUsed(ref=MODEL, revision=None, files={}, hook=HOOK, dtype="float32")
    sampled = data(tokens=600, context=48).model_copy(update={"ref": CORPUS})
    table = {"tables/decomposition.csv": ("table", "decomposition", DECOMPOSITION)}
    write(tmp_path / "out", record(task="core", subject=subject(SAE, sae.info), model=used, data=sampled))
    write(tmp_path / "out", record(task="meta_sae", subject=subject(SAE, sae.info)), files=table)
    return tmp_path / "out"


def test_what_the_record_names_is_opened_and_shown(run: Path) -> None:
    done = explore(run, "--latents", 3, "--latent", 0)
    assert done.exit_code == 0, done.output
    page = run / "explorer"
    assert (page / "index.html").as_uri() in done.stdout and f"`saebench report {run}` links it" in done.stdout
    index = chunk(page, "index")
    assert index["d_sae"] == D_SAE and len(index["shown"]) == 4 and 0 in index["shown"]
    assert 600 <= index["activity"]["tokens_seen"] < 900
    assert index["metas"]["latents"] == [4, 4, 4] and index["notes"] == []
    latent = next(i for i in index["shown"] if index["activity"]["counts"][i] > 10)
    shown = chunk(page, f"latents/{latent}")
    assert sum(shown["histogram"]) == index["activity"]["counts"][latent]
    first = shown["passages"][0]
    assert first["activations"][first["peak"]] == max(first["activations"]) == index["activity"]["maxima"][latent]
    text = " ".join(Path(CORPUS).read_text().splitlines()[int(first["document"])].split())
    assert "".join(first["texts"]).removeprefix("<s>").strip() in text
    top = index["activity"]["vocabulary"][index["activity"]["tokens"][3 * latent]].strip()
    assert top and top in first["texts"][first["peak"]]
    assert len(shown["boosted"]) == len(shown["suppressed"]) == 10
    assert shown["boosted"][0][1] > 0 > shown["suppressed"][0][1]


def test_what_is_gone_is_named_with_what_to_give(run: Path) -> None:
    assert "the SAE has latents 0 to 11" in refused(run, "--latent", D_SAE)
    Path("moved").mkdir()
    for name, option in ((MODEL, "--model"), (CORPUS, "--corpus"), (SAE, "--sae")):
        Path(name).rename(Path("moved") / name)
        said = refused(run)
        assert f"'{name}'" in said and option in said and "keeps only the last part of a local path" in said
        done = explore(run, option, Path("moved") / name, "--latents", 0)
        assert done.exit_code == 0, done.output
        (Path("moved") / name).rename(name)


def test_another_sae_of_the_same_name_is_refused(run: Path) -> None:
    native.save(tied_sae(D_IN, D_SAE, seed=1, name="tied", site=Site(model=MODEL, hook=HOOK)), Path(SAE))
    assert "is not the SAE of the records" in refused(run)
    assert f"no finished record in '{run}' is of '{SAE}'" in refused(run, "--sae", SAE)


def test_a_folder_without_records_is_refused(tmp_path: Path) -> None:
    assert "holds no finished record" in refused(tmp_path)
    assert "'nowhere'" in refused("nowhere")


def test_without_a_model_the_records_alone_are_shown(tmp_path: Path) -> None:
    sae = tied_sae(D_IN, D_SAE, name="lone", site=Site(model="unknown", hook=HOOK))
    file = native.save(sae, tmp_path / SAE)
    table = {"tables/decomposition.csv": ("table", "decomposition", DECOMPOSITION)}
    write(tmp_path / "out", record(task="meta_sae", subject=subject(str(file), sae.info)), files=table)
    done = explore(tmp_path / "out", "-o", tmp_path / "pages")
    assert done.exit_code == 0, done.output
    assert "note: no passages and no tokens:" in done.stdout and "does not say its model" in done.stdout
    index = chunk(tmp_path / "pages", "index")
    assert index["activity"] is None and index["shown"] == [] and index["metas"]["latents"] == [4, 4, 4]


# -- the logit lens


@pytest.fixture(scope="module")
def lm(stories_model_dir: Path) -> LanguageModel:
    return load_bridge(str(stories_model_dir), ref="stories", files={})


def test_logits_of_a_row_are_those_of_the_norm_and_unembedding_alone(
    lm: LanguageModel, stories_model_dir: Path
) -> None:
    from transformers import AutoModelForCausalLM

    hf = AutoModelForCausalLM.from_pretrained(stories_model_dir, local_files_only=True)
    rows = torch.randn(5, D_IN, generator=torch.Generator().manual_seed(0)) * torch.tensor([[0.1], [1], [3], [9], [50]])
    with torch.no_grad():
        stream = rows / rows.pow(2).mean(1, keepdim=True).sqrt()
        expected = hf.lm_head(hf.model.norm(stream))
    torch.testing.assert_close(row_logits(lm, rows), expected, atol=1e-4, rtol=1e-4)
    (up, down), *_ = boosted(lm, rows, n=4)
    assert [i for i, _ in up] == expected[0].topk(4).indices.tolist()
    assert [i for i, _ in down] == expected[0].topk(4, largest=False).indices.tolist()
    assert [v for _, v in down] == sorted(v for _, v in down)


def test_more_rows_than_go_through_at_once_change_nothing(lm: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = torch.randn(7, D_IN, generator=torch.Generator().manual_seed(1))
    at_once = boosted(lm, rows)
    monkeypatch.setattr("saebench_meta.explorer.lens.AT_ONCE", 4)
    done: list[tuple[int, int]] = []
    for ours, theirs in zip(boosted(lm, rows, progress=lambda *n: done.append(n)), at_once, strict=True):
        assert [[i for i, _ in ranked] for ranked in ours] == [[i for i, _ in ranked] for ranked in theirs]
    assert done == [(3, 7), (6, 7), (7, 7)]


def test_only_directions_of_the_residual_stream_have_a_lens(lm: LanguageModel) -> None:
    assert why_no_lens(lm, HOOK, D_IN) is None
    assert "no directions of the residual stream" in str(why_no_lens(lm, "blocks.0.mlp.hook_post", D_IN))
    assert why_no_lens(lm, HOOK, D_IN + 1) is not None
