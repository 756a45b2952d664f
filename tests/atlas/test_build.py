"""The build command end to end, at a size of seconds."""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from saebench_plugins import native
from saebench_plugins.atlas import language_model as lm
from saebench_plugins.atlas.build import Plan, build, site_activations
from saebench_plugins.atlas.lexicon import CITIES, RELATIONS
from saebench_plugins.atlas.site import MANIFEST
from saebench_plugins.atlas.steering import block_output
from saebench_plugins.atlas.world import documents, is_held_out

TINY = Plan(
    language_model=replace(lm.Recipe(), steps=3, rows=4),
    widths=(128, 256),
    sae_steps=3,
    sae_documents=40,
    probe_steps=3,
    heldout_documents=8,
    fact_prompts_per_fact=1,
)


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    out = tmp_path_factory.mktemp("atlas")
    return out / "data", build(out / "data", TINY, seed=1)


def test_manifest_is_what_was_returned_and_hashes_every_file(built: tuple[Path, dict[str, Any]]) -> None:
    out, manifest = built
    assert json.loads((out / MANIFEST).read_text()) == json.loads(json.dumps(manifest))
    on_disk = {path.relative_to(out).as_posix(): path for path in out.rglob("*") if path.is_file()}
    del on_disk[MANIFEST]
    assert on_disk.keys() == manifest["files"].keys()
    for name, path in on_disk.items():
        assert manifest["files"][name]["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()


def test_same_seed_gives_the_same_bytes_and_another_seed_others(
    built: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    torch.manual_seed(123)
    assert build(tmp_path / "again", TINY, seed=1)["files"] == built[1]["files"]
    other = build(tmp_path / "other", TINY, seed=2)["files"]
    assert other["model/model.safetensors"]["sha256"] != built[1]["files"]["model/model.safetensors"]["sha256"]


def test_built_saes_open_as_native_files(built: tuple[Path, dict[str, Any]]) -> None:
    for name, card in built[1]["saes"].items():
        sae = native.load(built[0] / "saes" / f"{name}.safetensors")
        assert (sae.d_in, sae.d_sae, sae.info.architecture) == (128, card["d_sae"], card["architecture"])
    assert built[1]["saes"].keys() == {
        *(f"{architecture}-{width}" for architecture in ("batchtopk", "relu") for width in (128, 256)),
        *("batchtopk-512-s1", "batchtopk-512-s2", "oracle"),
    }


def test_what_is_finished_is_kept(built: tuple[Path, dict[str, Any]]) -> None:
    work = built[0].with_name("data.work")
    before = {path: path.stat().st_mtime_ns for path in work.rglob("*.safetensors")}
    assert len(before) == 1 + 6
    assert build(built[0].with_name("twice"), TINY, seed=1, work=work)["files"] == built[1]["files"]
    assert {path: path.stat().st_mtime_ns for path in work.rglob("*.safetensors")} == before


def test_model_folder_opens_with_transformers_in_float32(built: tuple[Path, dict[str, Any]]) -> None:
    folder = built[0] / "model"
    model = AutoModelForCausalLM.from_pretrained(folder, local_files_only=True)
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    assert model.dtype == torch.float32
    text = documents(1, 0, "heldout")[0]
    ids = tokenizer(text)["input_ids"]
    assert ids[0] == tokenizer.bos_token_id
    assert tokenizer.unk_token_id not in ids
    assert tokenizer.decode(ids[1:]) == text
    assert tokenizer(text, add_special_tokens=False)["input_ids"] == ids[1:]


def test_local_attention_reaches_two_tokens_by_the_site() -> None:
    tokenizer = lm.make_tokenizer()
    model = lm.make_model(tokenizer, 0).eval()
    ids = torch.arange(20)[None]
    changed = ids.clone()
    changed[0, 5] = 700
    with torch.no_grad():
        before, after = (model.transformer(i, output_hidden_states=True).hidden_states[2] for i in (ids, changed))
    differs = (before != after).any(-1)[0].nonzero().squeeze(1).tolist()
    assert differs == [5, 6, 7]


def test_site_activations_leave_out_bos_and_padding_and_match_the_block_output() -> None:
    tokenizer = lm.make_tokenizer()
    model = lm.make_model(tokenizer, 0).eval()
    texts = documents(2, 0, "heldout")
    x = site_activations(model, tokenizer, texts)
    assert x.shape == (sum(len(text.split()) for text in texts), 128)
    kept: list[torch.Tensor] = []

    def keep(residual: torch.Tensor) -> torch.Tensor:
        kept.append(residual)
        return residual

    with torch.no_grad(), block_output(model, 1, keep):
        model(tokenizer(texts[:1], return_tensors="pt")["input_ids"])
    torch.testing.assert_close(kept[0][0, 1:], x[: kept[0].shape[1] - 1], atol=1e-5, rtol=1e-5)


def test_heldout_loss_does_not_depend_on_padding() -> None:
    tokenizer = lm.make_tokenizer()
    model = lm.make_model(tokenizer, 0).eval()
    texts = documents(5, 0, "heldout")
    counts = [len(text.split()) for text in texts]
    one_by_one = [lm.heldout_loss(model, tokenizer, [text]) for text in texts]
    expected = sum(c * loss for c, loss in zip(counts, one_by_one, strict=True)) / sum(counts)
    assert lm.heldout_loss(model, tokenizer, texts) == pytest.approx(expected, abs=1e-5)


def test_learning_rate_warms_up_and_ends_at_zero() -> None:
    recipe = lm.Recipe(steps=1000, warmup=10)
    assert lm.share_of_peak(0, recipe) == pytest.approx(0.1)
    assert lm.share_of_peak(10, recipe) == pytest.approx(1.0, abs=1e-3)
    assert lm.share_of_peak(999, recipe) < 1e-4


def test_every_parameter_has_one_optimizer() -> None:
    model = lm.make_model(lm.make_tokenizer(), 0)
    optimizers = [optimizer for optimizer, _ in lm.make_optimizers(model, lm.Recipe())]
    owned = [id(p) for optimizer in optimizers for group in optimizer.param_groups for p in group["params"]]
    assert sorted(owned) == sorted(id(p) for p in model.parameters())


def test_unigram_entropy_by_hand() -> None:
    assert lm.unigram_entropy(["a a b", "b"]) == pytest.approx(math.log(2))


def test_fact_prompts_cover_every_fact_with_the_answer_left_out() -> None:
    prompts = lm.fact_prompts(per_fact=2)
    assert len(prompts) == 2 * len(CITIES) * len(RELATIONS)
    for prompt in prompts:
        words = prompt.text.split()
        assert prompt.answer not in words
        opening = words.index(",") + 1
        aside = words.index(",", opening) + 1
        assert is_held_out(" ".join(words[:opening]), " ".join(words[opening:aside]))
        assert len(words) - words.index(prompt.city) >= 5
