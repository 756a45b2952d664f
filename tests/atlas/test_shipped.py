"""What is shipped is what its data card says, and the plugin offers it."""

from __future__ import annotations

import hashlib

import pytest
import torch
from transformers import GPTNeoForCausalLM, PreTrainedTokenizerFast

from saebench_meta.errors import SaebenchError
from saebench_plugins import atlas
from saebench_plugins.atlas import language_model as lm
from saebench_plugins.atlas.build import generator_entropy, site_activations
from saebench_plugins.atlas.lexicon import CITIES, RELATIONS, vocabulary
from saebench_plugins.atlas.site import DATA, WIDTHS, K, sae_name
from saebench_plugins.atlas.world import documents


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def shipped() -> tuple[GPTNeoForCausalLM, PreTrainedTokenizerFast]:
    model = GPTNeoForCausalLM.from_pretrained(DATA / "model", local_files_only=True).eval()
    return model, PreTrainedTokenizerFast.from_pretrained(DATA / "model", local_files_only=True)


def test_files_are_those_of_the_manifest() -> None:
    files = atlas.manifest()["files"]
    on_disk = {path.relative_to(DATA).as_posix() for path in DATA.rglob("*") if path.is_file()}
    assert on_disk == {*files, "atlas.json"}
    for name, entry in files.items():
        assert hashlib.sha256((DATA / name).read_bytes()).hexdigest() == entry["sha256"]
    assert sum(entry["bytes"] for entry in files.values()) < 5_000_000


def test_every_word_and_every_fact_is_one_token(shipped: tuple[GPTNeoForCausalLM, PreTrainedTokenizerFast]) -> None:
    _, tokenizer = shipped
    words = {*vocabulary(), *(city.attribute(r) for city in CITIES for r in RELATIONS), *(c.name for c in CITIES)}
    for word in words:
        ids = tokenizer(word, add_special_tokens=False)["input_ids"]
        assert len(ids) == 1
        assert ids[0] != tokenizer.unk_token_id


def test_heldout_loss_is_that_of_the_manifest(shipped: tuple[GPTNeoForCausalLM, PreTrainedTokenizerFast]) -> None:
    card = atlas.manifest()["language_model"]
    texts = documents(card["heldout_documents"], 0, "heldout")
    assert lm.heldout_loss(*shipped, texts) == pytest.approx(card["heldout_loss"], abs=0.02)
    assert card["heldout_loss"] < card["unigram_entropy"] / 2


def test_model_is_near_the_generator(shipped: tuple[GPTNeoForCausalLM, PreTrainedTokenizerFast]) -> None:
    card = atlas.manifest()["language_model"]
    bound = generator_entropy("heldout", 0, card["heldout_documents"])
    assert bound == pytest.approx(card["generator_entropy_bound"])
    assert card["heldout_loss"] < 1.3 * bound


def test_fact_accuracy_is_that_of_the_manifest(shipped: tuple[GPTNeoForCausalLM, PreTrainedTokenizerFast]) -> None:
    card = atlas.manifest()["language_model"]["fact_accuracy"]
    measured = lm.fact_accuracy(*shipped, lm.fact_prompts())
    assert measured == pytest.approx(card, abs=0.01)
    assert measured["all"] >= 0.8


@pytest.mark.parametrize("width", WIDTHS)
def test_sae_does_what_the_manifest_says(
    width: int, shipped: tuple[GPTNeoForCausalLM, PreTrainedTokenizerFast]
) -> None:
    x = site_activations(*shipped, documents(200, 0, "heldout"))
    sae = atlas.load_sae(sae_name(width))
    card = atlas.manifest()["saes"][sae_name(width)]
    f = sae.encode(x)
    l0 = (f > 0).float().sum(-1).mean().item()
    fvu = ((x - sae.decode(f)).pow(2).sum() / (x - x.mean(0)).pow(2).sum()).item()
    assert l0 == pytest.approx(card["l0"], rel=0.05)
    assert l0 == pytest.approx(K, rel=0.1)
    assert fvu == pytest.approx(card["fvu"], rel=0.1)


def test_wider_saes_leave_less_unexplained() -> None:
    fvu = [atlas.manifest()["saes"][sae_name(width)]["fvu"] for width in WIDTHS]
    assert fvu == sorted(fvu, reverse=True)


def test_catalogue_headers_and_files_agree() -> None:
    for entry in atlas.saebench_catalogue():
        scheme, _, name = entry.ref.partition(":")
        info = atlas.saebench_loaders()[scheme].peek(name).info  # type: ignore[misc]
        assert (info.d_sae, info.d_in, info.k, info.site.model, info.site.hook, info.architecture) == (
            entry.d_sae, entry.d_in, entry.k, entry.model, entry.hook, entry.architecture,
        )  # fmt: skip


def test_corpus_is_the_one_of_the_manifest_and_its_splits_are_apart() -> None:
    texts = atlas.evaluation_documents()
    card = atlas.manifest()["corpus"]
    assert len(texts) == card["documents"]
    assert atlas.peek_corpus().sha256 == card["sha256"]
    assert atlas.peek_corpus(split="heldout").sha256 != card["sha256"]
    assert not set(texts) & set(atlas.evaluation_documents(split="heldout"))


@pytest.mark.parametrize(
    "call",
    [
        lambda: atlas.load_sae("batchtopk-127"),
        lambda: atlas.peek_corpus(split="evaluatoin"),
        lambda: atlas.peek_corpus("other"),
        lambda: atlas.peek_model("other"),
    ],
)
def test_unknown_names_are_explained(call: object) -> None:
    with pytest.raises(SaebenchError, match="atlas has"):
        call()  # type: ignore[operator]


def test_model_identity_hashes_every_file() -> None:
    identity = atlas.peek_model()
    files = {f"model/{name}": sha256 for name, sha256 in identity.files.items()}
    expected = {n: e["sha256"] for n, e in atlas.manifest()["files"].items() if n.startswith("model/")}
    assert files == expected
