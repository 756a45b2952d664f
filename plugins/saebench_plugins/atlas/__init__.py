"""The built-in world: a generated corpus whose every feature is known, a language model trained on it, and SAEs on its
residual stream, so that everything runs offline in about a minute and can be held against the truth.

- ``world.py``, ``lexicon.py``: the generator of documents and its words and facts;
- ``truth.py``, ``labelled.py``: which generating features are on at every word; eight labelled sets;
- ``language_model.py``, ``steering.py``: the model, and whether its facts can be steered at the site;
- ``cities.py``: its cities, and the prompts that ask for their facts;
- ``saes.py``, ``oracle.py``: the family of SAEs, degraded ones, and the supervised dictionary;
- ``build.py``: the one command that makes ``data/`` from a seed;
- this module: the plugin, which offers all of it through the ordinary hooks.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from saebench_meta.cities import CityLoader
from saebench_meta.errors import BadFileError, UnknownNameError, did_you_mean
from saebench_meta.hookspecs import (
    CatalogueEntry,
    DataIdentity,
    DatasetLoader,
    LabelledLoader,
    LabelledSet,
    ModelIdentity,
    ModelLoader,
    SAEHeader,
    SAELoader,
    hookimpl,
)
from saebench_meta.worlds import KnownTruth, Span
from saebench_plugins.atlas.site import (
    CORPUS_DOCUMENTS,
    CORPUS_SEED,
    D_MODEL,
    DATA,
    HOOK,
    LABELLED,
    MANIFEST,
    MODEL_PARAMETERS,
    MODEL_REF,
    ORACLE,
    TRUTH_VERSION,
    K,
    shipped,
)

if TYPE_CHECKING:
    from pathlib import Path

    import torch

    from saebench_meta.cities import Cities
    from saebench_meta.models import LanguageModel
    from saebench_meta.sae import SAE
    from saebench_plugins.atlas.world import Split

saebench_api = 1

SCHEME = "atlas"


@hookimpl
def saebench_loaders() -> Mapping[str, SAELoader]:
    return {SCHEME: SAELoader(load_sae, peek=peek_sae, version=1, summary="the built-in SAEs")}


@hookimpl
def saebench_catalogue() -> Iterable[CatalogueEntry]:
    return [
        CatalogueEntry(
            ref=f"{SCHEME}:{one.name}",
            model=MODEL_REF,
            hook=HOOK,
            d_sae=one.d_sae or manifest()["features"],
            architecture=one.architecture,
            d_in=D_MODEL,
            k=K if one.architecture in ("batchtopk", "degraded") else None,
            note=f"built in; {one.note}",
        )
        for one in shipped()
    ]


@hookimpl
def saebench_language_models() -> Mapping[str, ModelLoader]:
    return {
        SCHEME: ModelLoader(
            load_model, peek=peek_model, names=(MODEL_REF,), summary="the built-in language model: GPT-Neo, 4 layers"
        )
    }


@hookimpl
def saebench_datasets() -> Mapping[str, DatasetLoader]:
    return {
        SCHEME: DatasetLoader(
            evaluation_documents,
            peek=peek_corpus,
            names=(SCHEME,),
            summary="the built-in corpus, generated from a seed",
            train_split="train",
        )
    }


@hookimpl
def saebench_truths() -> Mapping[str, KnownTruth]:
    return {
        SCHEME: KnownTruth(
            model=MODEL_REF,
            oracles={HOOK: f"{SCHEME}:{ORACLE}"},
            corpora=(SCHEME,),
            features=features,
            annotate=annotate,
            version=TRUTH_VERSION,
        )
    }


@hookimpl
def saebench_labelled() -> Mapping[str, LabelledLoader]:
    return {
        SCHEME: LabelledLoader(
            load_labelled,
            peek=peek_labelled,
            names=LABELLED,
            summary="eight built-in sets, after the eight real ones",
            models=(MODEL_REF,),
        )
    }


@hookimpl
def saebench_cities() -> Mapping[str, CityLoader]:
    return {SCHEME: CityLoader(load_cities, peek_cities, models=(MODEL_REF,), summary="cities of the built-in world")}


@lru_cache(maxsize=1)
def manifest() -> dict[str, Any]:
    """``atlas.json``: every figure of the build that made the shipped files."""
    loaded: dict[str, Any] = json.loads((DATA / MANIFEST).read_text())
    return loaded


def sae_path(ref: str) -> Path:
    """The file of a built-in SAE. Raises `UnknownNameError` for any other name."""
    known = [one.name for one in shipped()]
    if ref not in known:
        raise UnknownNameError(f"atlas has no SAE '{ref}'{did_you_mean(ref, known)}")
    return DATA / "saes" / f"{ref}.safetensors"


def load_sae(ref: str, *, device: str | torch.device = "cpu", dtype: torch.dtype | None = None) -> SAE:
    """Open a built-in SAE such as ``batchtopk-256``."""
    from saebench_plugins import native

    return native.load(sae_path(ref), device=device, dtype=dtype)


def peek_sae(ref: str) -> SAEHeader:
    """Its info, without torch."""
    from saebench_plugins import native

    return native.peek(sae_path(ref))


def evaluation_documents(
    ref: str = "",
    *,
    split: str | None = None,
    revision: str | None = None,  # noqa: ARG001 - there is one
    text_field: str | None = None,  # noqa: ARG001 - texts have no fields
) -> list[str]:
    """Generate the corpus: `CORPUS_DOCUMENTS` documents of the split `evaluation`, or of another one by name.

    Raises:
        BadFileError: the evaluation documents are not those the manifest was made with.
    """
    from saebench_plugins.atlas.world import documents, fingerprint

    name = _corpus_split(ref, split)
    texts = documents(CORPUS_DOCUMENTS, CORPUS_SEED, name)
    if name == "evaluation" and fingerprint(texts) != manifest()["corpus"]["sha256"]:
        raise BadFileError(
            f"atlas: the generated corpus is not the one of {DATA / MANIFEST}: corpus.sha256 differs. The generator "
            "was changed; build atlas again with `python -m saebench_plugins.atlas.build`."
        )
    return texts


def peek_corpus(
    ref: str = "",
    *,
    split: str | None = None,
    revision: str | None = None,  # noqa: ARG001 - there is one
) -> DataIdentity:
    """The corpus by the hash of its texts, or, for the other splits, of its generator."""
    name = _corpus_split(ref, split)
    sha256 = manifest()["corpus"]["sha256"] if name == "evaluation" else _generator_hash(name)
    return DataIdentity(ref=SCHEME, split=name, sha256=sha256)


def _corpus_split(ref: str, split: str | None) -> Split:
    from saebench_plugins.atlas.world import SPLITS

    if ref:
        raise UnknownNameError(f"atlas has one corpus, '{SCHEME}', and none called '{ref}'")
    for name in SPLITS:
        if name == (split or "evaluation"):
            return name
    raise UnknownNameError(f"atlas has no split '{split}'{did_you_mean(str(split), list(SPLITS))}")


def _generator_hash(split: str, *more: str) -> str:
    sources = [(DATA.parent / name).read_bytes() for name in ("lexicon.py", "world.py", *more)]
    return hashlib.sha256(b"".join([*sources, f"{split}/{CORPUS_SEED}/{CORPUS_DOCUMENTS}".encode()])).hexdigest()


def features() -> Sequence[str]:
    """Names of the generating features, in the order of their numbers."""
    from saebench_plugins.atlas.truth import feature_names

    return feature_names()


def annotate(ref: str = "", *, split: str | None = None) -> Iterable[Sequence[Span]]:
    """Which features are on at each word of the documents that `evaluation_documents` gives."""
    from saebench_plugins.atlas.truth import annotated

    return annotated(CORPUS_DOCUMENTS, CORPUS_SEED, _corpus_split(ref, split))


def load_labelled(ref: str) -> LabelledSet:
    """One of the eight labelled sets, such as ``professions-1``."""
    from saebench_plugins.atlas.labelled import LABELLED_SPLITS, SETS, examples

    _check_labelled(ref)
    drawn = {split: examples(ref, split) for split in LABELLED_SPLITS}
    return LabelledSet(
        SETS[ref].classes,
        texts={split: tuple(texts) for split, (texts, _) in drawn.items()},
        labels={split: tuple(labels) for split, (_, labels) in drawn.items()},
    )


def peek_labelled(ref: str) -> DataIdentity:
    """A labelled set by the hash of its generator."""
    _check_labelled(ref)
    return DataIdentity(ref=f"{SCHEME}:{ref}", sha256=_generator_hash(f"labelled/{ref}", "labelled.py"))


def load_cities() -> Cities:
    """The cities of the world, with the prompts that ask for their facts."""
    from saebench_plugins.atlas.cities import cities

    return cities()


def peek_cities() -> DataIdentity:
    """The cities by the hash of what they are made of."""
    return DataIdentity(ref=SCHEME, sha256=_generator_hash("cities", "cities.py"))


def _check_labelled(ref: str) -> None:
    if ref not in LABELLED:
        raise UnknownNameError(f"atlas has no labelled set '{ref}'{did_you_mean(ref, list(LABELLED))}")


def load_model(
    ref: str = "",
    *,
    revision: str | None = None,  # noqa: ARG001 - there is one
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None,
) -> LanguageModel:
    """Open the built-in language model through TransformerLens."""
    from saebench_meta.models import load_bridge

    files = peek_model(ref).files
    return load_bridge(str(DATA / "model"), ref=MODEL_REF, device=device, dtype=dtype, files=files)


def peek_model(
    ref: str = "",
    *,
    revision: str | None = None,  # noqa: ARG001 - there is one
) -> ModelIdentity:
    """The model by the hashes of its files."""
    _check_model_ref(ref)
    files = sorted(path for path in (DATA / "model").iterdir() if path.is_file())
    hashes = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
    return ModelIdentity(MODEL_REF, files=hashes, parameters=MODEL_PARAMETERS)


def _check_model_ref(ref: str) -> None:
    if ref:
        raise UnknownNameError(f"atlas has one language model, '{MODEL_REF}', and none called '{ref}'")
