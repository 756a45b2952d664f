"""What is shipped is what its data card says, and the plugin offers it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from scipy.sparse import csr_array
from transformers import GPTNeoForCausalLM, PreTrainedTokenizerFast

from saebench_meta.controls import random_sae
from saebench_meta.errors import SaebenchError
from saebench_meta.matching import firing, matched_f1
from saebench_meta.plugins import registry
from saebench_meta.resolve import find_reference, resolve_sae
from saebench_meta.sae import SAE
from saebench_plugins import atlas
from saebench_plugins.atlas import card
from saebench_plugins.atlas import language_model as lm
from saebench_plugins.atlas.build import features_on, generator_entropy, measure, site_activations
from saebench_plugins.atlas.lexicon import CITIES, RELATIONS, vocabulary
from saebench_plugins.atlas.site import DATA, DEGRADED, DEGRADED_FROM, ORACLE, SITE_LAYER, WIDTHS, K, shipped
from saebench_plugins.atlas.world import documents


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def model() -> tuple[GPTNeoForCausalLM, PreTrainedTokenizerFast]:
    opened = GPTNeoForCausalLM.from_pretrained(DATA / "model", local_files_only=True).eval()
    return opened, PreTrainedTokenizerFast.from_pretrained(DATA / "model", local_files_only=True)


def test_files_are_those_of_the_manifest() -> None:
    files = atlas.manifest()["files"]
    on_disk = {path.relative_to(DATA).as_posix() for path in DATA.rglob("*") if path.is_file()}
    assert on_disk == {*files, "atlas.json"}
    for name, entry in files.items():
        assert hashlib.sha256((DATA / name).read_bytes()).hexdigest() == entry["sha256"]
    assert sum(entry["bytes"] for entry in files.values()) < 12_000_000


def test_every_word_and_every_fact_is_one_token(model: tuple[GPTNeoForCausalLM, PreTrainedTokenizerFast]) -> None:
    _, tokenizer = model
    words = {*vocabulary(), *(city.attribute(r) for city in CITIES for r in RELATIONS), *(c.name for c in CITIES)}
    for word in words:
        ids = tokenizer(word, add_special_tokens=False)["input_ids"]
        assert len(ids) == 1
        assert ids[0] != tokenizer.unk_token_id


def test_heldout_loss_is_that_of_the_manifest(model: tuple[GPTNeoForCausalLM, PreTrainedTokenizerFast]) -> None:
    card = atlas.manifest()["language_model"]
    texts = documents(card["heldout_documents"], 0, "heldout")
    assert lm.heldout_loss(*model, texts) == pytest.approx(card["heldout_loss"], abs=0.02)
    assert card["heldout_loss"] < card["unigram_entropy"] / 2


def test_model_is_near_the_generator(model: tuple[GPTNeoForCausalLM, PreTrainedTokenizerFast]) -> None:
    card = atlas.manifest()["language_model"]
    bound = generator_entropy("heldout", 0, card["heldout_documents"])
    assert bound == pytest.approx(card["generator_entropy_bound"])
    assert card["heldout_loss"] < 1.3 * bound


def test_fact_accuracy_is_that_of_the_manifest(model: tuple[GPTNeoForCausalLM, PreTrainedTokenizerFast]) -> None:
    card = atlas.manifest()["language_model"]["fact_accuracy"]
    measured = lm.fact_accuracy(*model, lm.fact_prompts())
    assert measured == pytest.approx(card, abs=0.01)
    assert measured["all"] >= 0.95


@pytest.fixture(scope="module")
def some_activations(model: tuple[GPTNeoForCausalLM, PreTrainedTokenizerFast]) -> torch.Tensor:
    return site_activations(*model, documents(200, 0, "heldout"))


@pytest.mark.parametrize("name", [one.name for one in shipped()])
def test_sae_does_what_the_manifest_says(name: str, some_activations: torch.Tensor) -> None:
    quality, card = measure(atlas.load_sae(name), some_activations), atlas.manifest()["saes"][name]
    assert quality.l0 == pytest.approx(card["l0"], rel=0.05)
    assert quality.fvu == pytest.approx(card["fvu"], rel=0.1)
    if card["architecture"] == "batchtopk":
        assert quality.l0 == pytest.approx(K, rel=0.1)


@pytest.mark.parametrize("architecture", ["batchtopk", "relu"])
def test_wider_saes_leave_less_unexplained(architecture: str) -> None:
    fvu = [atlas.manifest()["saes"][f"{architecture}-{width}"]["fvu"] for width in WIDTHS]
    assert fvu == sorted(fvu, reverse=True)


def test_each_step_of_the_degraded_ladder_leaves_more_unexplained() -> None:
    names = [DEGRADED_FROM, *(f"{DEGRADED_FROM}-degraded{percent}" for percent in DEGRADED)]
    fvu = [atlas.manifest()["saes"][name]["fvu"] for name in names]
    assert fvu == sorted(fvu)


@dataclass(frozen=True)
class Drawn:
    """Activations in one chunk, as the random control reads them."""

    x: torch.Tensor

    @property
    def n_tokens(self) -> int:
        return len(self.x)

    def __iter__(self) -> Iterator[Drawn]:
        yield self


def test_the_truth_puts_the_oracle_before_trained_degraded_and_random_saes(some_activations: torch.Tensor) -> None:
    on = features_on(200, 0, "heldout")

    def score(sae: SAE) -> float:
        fired = csr_array((sae.encode(some_activations) > 0).numpy())
        matched = matched_f1(firing(fired, on), 10)
        return float(matched.f1[matched.counted].mean())

    trained = atlas.load_sae(DEGRADED_FROM)
    ladder = [atlas.load_sae(f"{DEGRADED_FROM}-degraded{percent}") for percent in DEGRADED]
    random = random_sae(trained, cast(Any, Drawn(some_activations)), 4.0, torch.Generator().manual_seed(0))
    scores = [score(sae) for sae in (atlas.load_sae(ORACLE), trained, *ladder, random)]
    assert scores == sorted(scores, reverse=True)
    assert scores[0] > 0.9
    assert scores[0] > 2 * scores[1]


def test_facts_can_be_steered_at_the_site() -> None:
    swaps = atlas.manifest()["language_model"]["city_swaps"]
    for intervention in ("neutral patch", "mean difference"):
        rates = swaps[f"{intervention} after block {SITE_LAYER}"]
        assert rates.keys() == set(RELATIONS)
        assert min(rates.values()) >= 0.9


def test_catalogue_headers_and_files_agree() -> None:
    for entry in atlas.saebench_catalogue():
        scheme, _, name = entry.ref.partition(":")
        info = atlas.saebench_loaders()[scheme].peek(name).info  # type: ignore[misc]
        assert (info.d_sae, info.d_in, info.k, info.site.model, info.site.hook, info.architecture) == (
            entry.d_sae, entry.d_in, entry.k, entry.model, entry.hook, entry.architecture,
        )  # fmt: skip


@pytest.mark.parametrize(
    ("name", "reference"),
    [
        ("batchtopk-1024", "batchtopk-512"),
        ("relu-512", "relu-256"),
        ("batchtopk-512-degraded50", "batchtopk-256"),
        ("oracle", "batchtopk-1024"),
    ],
)
def test_the_reference_is_of_the_same_architecture_where_there_is_one(name: str, reference: str) -> None:
    found = find_reference(registry(), resolve_sae(registry(), f"atlas:{name}"))
    assert found == (f"atlas:{reference}", "in the catalogue")


def test_labelled_sets_come_through_their_hook() -> None:
    loader = atlas.saebench_labelled()["atlas"]
    for name in loader.names:
        labelled = loader.load(name)
        assert set(labelled.texts) == {"train", "test"}
        assert loader.peek(name).ref == f"atlas:{name}"
    assert len({loader.peek(name).sha256 for name in loader.names}) == 8


def test_truth_annotates_the_corpus_document_by_document() -> None:
    truth = atlas.saebench_truths()["atlas"]
    n = len(truth.features())
    spans = list(truth.annotate("", split=None))
    for text, found in zip(atlas.evaluation_documents(), spans, strict=True):
        assert [text[start:end] for start, end, _ in found] == text.split()
        assert all(0 <= feature < n for _, _, on in found for feature in on)


@pytest.mark.parametrize("table", [card.language_model, card.steering, card.files])
def test_the_data_card_shows_the_figures_of_the_manifest(table: Callable[[], str]) -> None:
    page = (Path(__file__).parents[2] / "docs" / "atlas.md").read_text()
    for part in table().split("\n\n"):
        assert part in page


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
        lambda: atlas.load_labelled("profession-1"),
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
