"""Build everything atlas ships, from one seed: ``python -m saebench_plugins.atlas.build --out DIR``.

In order: tokenizer and language model, trained on the training split; its held-out loss and its city facts; activations
of the site on fresh training documents; one BatchTopK SAE a width; and ``atlas.json``, which states every figure
measured on the way and the sha256 of every file.  The model is rounded to half precision before anything is measured
or trained on it, so that every figure is that of the files.

With the same seed, machine, thread count and library versions the files come out byte for byte the same.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
import platform
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.logging import RichHandler
from torch import Tensor
from transformers import GPTNeoForCausalLM, PreTrainedTokenizerFast

from saebench_meta.sae import SAE, SAEInfo, Site
from saebench_plugins import native
from saebench_plugins.atlas import language_model as lm
from saebench_plugins.atlas.site import (
    CORPUS_DOCUMENTS,
    CORPUS_SEED,
    HOOK,
    MANIFEST,
    MODEL_REF,
    SITE_LAYER,
    WIDTHS,
    K,
    sae_name,
)
from saebench_plugins.atlas.steering import Intervention, swap_rate, swaps
from saebench_plugins.atlas.train_first_cut import BatchTopKRecipe, Dictionary, Quality, measure, train_batch_topk
from saebench_plugins.atlas.world import WORLD_VERSION, Split, documents, fingerprint, stream

logger = logging.getLogger(__name__)

SAE_STREAM = 1_000_003
"""Offset from the seed of the stream whose documents the SAEs are trained on: not the language model's."""


@dataclass(frozen=True)
class Plan:
    """Sizes of a build.

    Attributes:
        language_model: Recipe of the language model.
        saes: Recipes of the SAEs.
        sae_documents: Training documents whose activations the SAEs see.
        heldout_documents: Held-out documents for losses and SAE figures.
        fact_prompts_per_fact: Prompts for each city and relation.
    """

    language_model: lm.Recipe = field(default_factory=lm.Recipe)
    saes: tuple[BatchTopKRecipe, ...] = tuple(BatchTopKRecipe(d_sae=width, k=K) for width in WIDTHS)
    sae_documents: int = 8000
    heldout_documents: int = 1000
    fact_prompts_per_fact: int = 3


def build(out: Path, plan: Plan, *, seed: int = 0, device: str = "cpu") -> dict[str, Any]:
    """Build into `out` and return the manifest that was written there."""
    started = time.perf_counter()
    out.mkdir(parents=True, exist_ok=True)
    seconds: dict[str, float] = {}

    tokenizer = lm.make_tokenizer()
    model = lm.make_model(tokenizer, seed).to(device)
    lm.train(model, tokenizer, plan.language_model, seed)
    seconds["language model"] = time.perf_counter() - started
    heldout = documents(plan.heldout_documents, 0, "heldout")
    full_precision_loss = lm.heldout_loss(model, tokenizer, heldout)
    round_to_half(model)
    save_model(model, tokenizer, out / "model")
    figures = measure_language_model(model, tokenizer, heldout, plan)
    figures["heldout_loss_before_rounding"] = full_precision_loss

    mark = time.perf_counter()
    x_train = site_activations(model, tokenizer, documents(plan.sae_documents, seed + SAE_STREAM, "train"))
    x_heldout = site_activations(model, tokenizer, heldout)
    seconds["activations"] = time.perf_counter() - mark
    saes = {}
    for recipe in plan.saes:
        mark = time.perf_counter()
        recipe = replace(recipe, seed=seed)
        dictionary = train_batch_topk(x_train, recipe)
        quality = measure(dictionary, x_heldout)
        save_sae(dictionary, recipe, quality, out / "saes")
        seconds[sae_name(recipe.d_sae)] = time.perf_counter() - mark
        saes[sae_name(recipe.d_sae)] = {**asdict(quality), "threshold": dictionary.threshold, "recipe": asdict(recipe)}

    seconds["total"] = time.perf_counter() - started
    manifest = {
        "world_version": WORLD_VERSION,
        "seed": seed,
        "site": {"model": MODEL_REF, "hook": HOOK},
        "corpus": corpus_card(),
        "language_model": {**figures, "recipe": asdict(plan.language_model)},
        "saes": {"train_tokens": len(x_train), **saes},
        "seconds": {name: round(value, 1) for name, value in seconds.items()},
        "built_with": built_with(device),
        "files": file_hashes(out),
    }
    (out / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n")
    return manifest


def round_to_half(model: GPTNeoForCausalLM) -> None:
    """Round every weight to the nearest half-precision number, in place, staying in float32."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.half().float())


def save_model(model: GPTNeoForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Hugging Face format: weights stored in float16, computed with in float32 as `config.json` says."""
    model.half().save_pretrained(folder)
    model.float()
    config = json.loads((folder / "config.json").read_text())
    config["dtype"] = "float32"
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    tokenizer.save_pretrained(folder)
    for path in folder.iterdir():
        path.chmod(0o644)


def measure_language_model(
    model: GPTNeoForCausalLM, tokenizer: PreTrainedTokenizerFast, heldout: Sequence[str], plan: Plan
) -> dict[str, Any]:
    """Losses in nats a word beside their bounds, fact accuracy, and what swapping a city's residual does."""
    prompts = lm.fact_prompts(plan.fact_prompts_per_fact)
    pairs = swaps(prompts, per_prompt=1)
    interventions: tuple[Intervention, ...] = ("neutral patch", "mean difference")
    return {
        "parameters": sum(p.numel() for p in model.parameters()),
        "vocabulary": len(tokenizer),
        "train_tokens": plan.language_model.steps * plan.language_model.rows * lm.CONTEXT,
        "heldout_documents": len(heldout),
        "heldout_words": sum(len(text.split()) for text in heldout),
        "heldout_loss": lm.heldout_loss(model, tokenizer, heldout),
        "generator_entropy_bound": generator_entropy("heldout", 0, len(heldout)),
        "unigram_entropy": lm.unigram_entropy(heldout),
        "fact_prompts": len(prompts),
        "fact_accuracy": lm.fact_accuracy(model, tokenizer, prompts),
        "city_swaps": {
            "pairs": len(pairs),
            **{
                f"{intervention} after block {layer}": swap_rate(model, tokenizer, pairs, layer, intervention)
                for intervention in interventions
                for layer in (0, SITE_LAYER, SITE_LAYER + 1)
            },
        },
    }


def generator_entropy(split: Split, seed: int, n: int) -> float:
    """Mean surprisal of the generator's choices in nats a word: an upper bound of its entropy rate."""
    drawn = list(islice(stream(seed, split), n))
    return sum(document.surprisal for document in drawn) / sum(len(document.words) for document in drawn)


def save_sae(dictionary: Dictionary, recipe: BatchTopKRecipe, quality: Quality, folder: Path) -> None:
    """Native format; what was measured on held-out documents stands in the notes."""
    d_in, d_sae = dictionary.W_enc.shape
    info = SAEInfo(
        name=f"atlas-{sae_name(d_sae)}",
        site=Site(model=MODEL_REF, hook=HOOK),
        d_in=d_in,
        d_sae=d_sae,
        architecture="batchtopk",
        activation="jumprelu",
        k=recipe.k,
        prepend_bos=True,
        context_size=lm.CONTEXT,
        dataset="atlas",
        folded=("b_dec subtraction", "input scale", "batchtopk threshold"),
        notes=(
            "trained on the split 'train', one document a context, without the BOS position",
            f"held out: L0 {quality.l0:.2f}, FVU {quality.fvu:.4f}, dead {quality.dead:.1%}, {quality.tokens:,} tokens",
        ),
    )
    threshold = torch.full_like(dictionary.b_enc, dictionary.threshold)
    sae = SAE(dictionary.W_enc, dictionary.b_enc, dictionary.W_dec, dictionary.b_dec, info, threshold)
    native.save(sae, folder / f"{sae_name(d_sae)}.safetensors")


@torch.no_grad()
def site_activations(model: GPTNeoForCausalLM, tokenizer: PreTrainedTokenizerFast, texts: Sequence[str]) -> Tensor:
    """Residual stream (tokens, d_model) at the site, one document a context, without BOS and padding."""
    kept = []
    for ids, mask in lm.batches(tokenizer, texts):
        hidden = model.transformer(
            ids.to(model.device),
            attention_mask=mask.long().to(model.device),
            output_hidden_states=True,
            use_cache=False,
        ).hidden_states[SITE_LAYER + 1]
        words = mask.clone()
        words[:, 0] = False
        kept.append(hidden[words.to(model.device)])
    return torch.cat(kept)


def corpus_card() -> dict[str, Any]:
    """What identifies the evaluation corpus, which is generated anew when it is asked for."""
    texts = documents(CORPUS_DOCUMENTS, CORPUS_SEED, "evaluation")
    return {
        "split": "evaluation",
        "seed": CORPUS_SEED,
        "documents": len(texts),
        "words": sum(len(text.split()) for text in texts),
        "sha256": fingerprint(texts),
    }


def built_with(device: str) -> dict[str, Any]:
    """Versions and hardware that the bytes of a build depend on."""
    packages = ("torch", "transformers", "tokenizers", "safetensors")
    return {
        "python": platform.python_version(),
        **{name: version(name) for name in packages},
        "device": device,
        "threads": torch.get_num_threads(),
        "machine": platform.machine(),
    }


def file_hashes(out: Path) -> dict[str, dict[str, Any]]:
    """Size and sha256 of every file below `out` but the manifest, by relative path."""
    files = sorted(path for path in out.rglob("*") if path.is_file() and path.name != MANIFEST)
    return {
        path.relative_to(out).as_posix(): {
            "bytes": path.stat().st_size,
            "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        }
        for path in files
    }


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The command's options."""
    plan = Plan()
    parser = argparse.ArgumentParser(prog="python -m saebench_plugins.atlas.build", description="Build atlas.")
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1, help="torch threads; the bytes depend on their number")
    parser.add_argument("--steps", type=int, default=plan.language_model.steps, help="steps of the language model")
    parser.add_argument("--sae-steps", type=int, default=plan.saes[0].steps, help="steps of each SAE")
    parser.add_argument("--sae-documents", type=int, default=plan.sae_documents, help="documents the SAEs see")
    parser.add_argument("--heldout-documents", type=int, default=plan.heldout_documents)
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point of the command."""
    args = parse_arguments(argv)
    console = Console()
    logging.basicConfig(level=logging.INFO, format="%(message)s", handlers=[RichHandler(console=console)])
    torch.set_num_threads(args.threads)
    torch.use_deterministic_algorithms(True)
    device = args.device if args.device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
    default = Plan()
    plan = Plan(
        language_model=replace(default.language_model, steps=args.steps),
        saes=tuple(replace(recipe, steps=args.sae_steps) for recipe in default.saes),
        sae_documents=args.sae_documents,
        heldout_documents=args.heldout_documents,
    )
    manifest = build(args.out, plan, seed=args.seed, device=device)
    console.print_json(json.dumps({name: value for name, value in manifest.items() if name != "files"}))


if __name__ == "__main__":
    main()
