"""Build everything atlas ships, from one seed: ``python -m saebench_plugins.atlas.build --out DIR``.

In order: tokenizer and language model, trained on the training split; its held-out loss, its city facts, and whether
they can be steered; activations of the site on fresh training documents; the family of SAEs, trained by the suite's own
trainer; the degraded ladder; the oracle; and ``atlas.json``, which states every figure measured on the way and the
sha256 of every file. All weights are rounded to half precision before anything is measured or trained on them, so that
every figure is that of the files.

What is finished is kept in ``--work``: the same command goes on where it was interrupted. With the same seed, machine,
thread count and library versions the files come out byte for byte the same.
"""

from __future__ import annotations

import argparse
import json
import logging
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from rich.console import Console
from rich.logging import RichHandler
from transformers import GPTNeoForCausalLM, PreTrainedTokenizerFast

from saebench_meta.record import canonical_hash
from saebench_meta.sae import SAE
from saebench_meta.training.loop import Listeners
from saebench_plugins import native
from saebench_plugins.atlas import language_model as lm
from saebench_plugins.atlas import saes
from saebench_plugins.atlas.identity import built_with, corpus_card, file_hashes
from saebench_plugins.atlas.oracle import STEPS, oracle
from saebench_plugins.atlas.site import (
    DEGRADED_FROM,
    HOOK,
    MANIFEST,
    MODEL_REF,
    ORACLE,
    SITE_LAYER,
    TRUTH_VERSION,
    WIDTHS,
    Shipped,
    shipped,
)
from saebench_plugins.atlas.steering import Intervention, swap_rate, swaps
from saebench_plugins.atlas.truth import annotated, feature_names
from saebench_plugins.atlas.world import WORLD_VERSION, Split, documents, stream

if TYPE_CHECKING:
    from jaxtyping import Float
    from scipy.sparse import csr_array
    from torch import Tensor

    from saebench_meta.training.metrics import Figures

logger = logging.getLogger(__name__)

SAE_STREAM = 1_000_003
"""Offset from the seed of the stream whose documents the SAEs are trained on: not the language model's."""
DEGRADED_TOKENS = 100_000
"""Activations on which the firing rates of degraded latents are set."""


@dataclass(frozen=True)
class Plan:
    """Sizes of a build.

    Attributes:
        language_model: Recipe of the language model.
        widths: Of the family of SAEs.
        sae_steps: Steps of each.
        sae_documents: Training documents whose activations the SAEs see.
        probe_steps: Steps of the oracle's probes.
        heldout_documents: Held-out documents for losses and SAE figures.
        fact_prompts_per_fact: Prompts for each city and relation.
    """

    language_model: lm.Recipe = field(default_factory=lm.Recipe)
    widths: tuple[int, ...] = WIDTHS
    sae_steps: int = saes.STEPS
    sae_documents: int = 8000
    probe_steps: int = STEPS
    heldout_documents: int = 1000
    fact_prompts_per_fact: int = 3


@dataclass(frozen=True)
class Quality:
    """What an SAE does on held-out activations: mean L0, FVU, share of dead latents, number of tokens."""

    l0: float
    fvu: float
    dead: float
    tokens: int


def build(out: Path, plan: Plan, *, seed: int = 0, device: str = "cpu", work: Path | None = None) -> dict[str, Any]:
    """Build into `out` and return the manifest that was written there.

    Args:
        work: where unfinished parts are kept; `out` with the suffix ``.work`` unless given.
    """
    clock = _Clock()
    work = work or out.with_name(out.name + ".work")
    model, tokenizer = built_language_model(work, plan.language_model, seed, device)
    clock.lap("language model")
    shutil.copytree(work / "model", out / "model", dirs_exist_ok=True)
    heldout = documents(plan.heldout_documents, 0, "heldout")
    figures = measure_language_model(model, tokenizer, heldout, plan)
    clock.lap("figures of the language model")

    train_seed = seed + SAE_STREAM
    x = site_activations(model, tokenizer, documents(plan.sae_documents, train_seed, "train"))
    x_heldout = site_activations(model, tokenizer, heldout)
    clock.lap("activations")
    made = all_saes(x, train_seed, plan, seed, work / "saes", clock)
    cards = {}
    for one in shipped():
        if one.name in made:
            cards[one.name] = save_sae(made[one.name], one, x_heldout, out / "saes")
    clock.lap("figures of the SAEs")

    manifest = {
        "world_version": WORLD_VERSION,
        "truth_version": TRUTH_VERSION,
        "features": len(feature_names()),
        "seed": seed,
        "site": {"model": MODEL_REF, "hook": HOOK},
        "corpus": corpus_card(),
        "language_model": {**figures, "recipe": asdict(plan.language_model)},
        "sae_train_tokens": len(x),
        "saes": cards,
        "built_with": built_with(device),
        "files": file_hashes(out),
    }
    (out / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n")
    return manifest


class _Clock:
    """Tells how long each part took."""

    def __init__(self) -> None:
        self.last = time.perf_counter()

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        logger.info("%s: %.0f s", name, now - self.last)
        self.last = now


# -- language model


def built_language_model(
    work: Path, recipe: lm.Recipe, seed: int, device: str
) -> tuple[GPTNeoForCausalLM, PreTrainedTokenizerFast]:
    """Train and save the model, or open the one that this recipe gave before."""
    key = canonical_hash({"recipe": asdict(recipe), "seed": seed, "world": WORLD_VERSION, "device": device})
    done = work / "model.key"
    tokenizer = lm.make_tokenizer()
    if not (done.exists() and done.read_text() == key):
        model = lm.make_model(tokenizer, seed).to(device)
        lm.train(model, tokenizer, recipe, seed)
        round_to_half(model)
        save_model(model, tokenizer, work / "model")
        done.write_text(key)
    opened = GPTNeoForCausalLM.from_pretrained(work / "model", local_files_only=True).to(device).eval()
    return opened, tokenizer


def round_to_half(model: GPTNeoForCausalLM) -> None:
    """Round every weight to the nearest half-precision number, in place, staying in float32."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.half().float())


def save_model(model: GPTNeoForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Hugging Face format: weights stored in float16, computed with in float32 as `config.json` says."""
    folder.mkdir(parents=True, exist_ok=True)
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


@torch.no_grad()
def site_activations(
    model: GPTNeoForCausalLM, tokenizer: PreTrainedTokenizerFast, texts: Sequence[str]
) -> Float[Tensor, "words d_model"]:
    """Residual stream at the site, one document a context, without BOS and padding."""
    kept: list[Tensor] = []
    for ids, mask in lm.batches(tokenizer, texts):
        hidden = model.transformer(
            ids.to(model.device),
            attention_mask=mask.long().to(model.device),
            output_hidden_states=True,
            use_cache=False,
        ).hidden_states[SITE_LAYER + 1]
        words = mask.clone()
        words[:, 0] = False
        kept.append(hidden[words.to(model.device)].cpu())
    return torch.cat(kept)


def features_on(n: int, seed: int, split: Split) -> csr_array:
    """(words, features) of the same documents, word by word."""
    import numpy as np
    from scipy.sparse import csr_array

    rows = [on for spans in annotated(n, seed, split) for _, _, on in spans]
    ends = np.cumsum([0, *(len(on) for on in rows)])
    columns = np.fromiter((feature for on in rows for feature in on), np.int32, int(ends[-1]))
    return csr_array((np.ones(len(columns), np.uint8), columns, ends), shape=(len(rows), len(feature_names())))


# -- SAEs


def all_saes(
    x: Float[Tensor, "words d_model"], train_seed: int, plan: Plan, seed: int, work: Path, clock: _Clock
) -> dict[str, SAE]:
    """The trained family, the degraded ladder where what it starts from is among it, and the oracle."""
    wanted = saes.recipes(seed, plan.sae_steps, plan.widths)
    made = saes.train_family(x, wanted, work, saes.site_facts(lm.CONTEXT), Listeners(progress=_progress))
    clock.lap("trained SAEs")
    some = x[torch.linspace(0, len(x) - 1, min(len(x), DEGRADED_TOKENS)).long()]
    if DEGRADED_FROM in made:
        made |= saes.degraded(made[DEGRADED_FROM], some, seed)
    on = features_on(plan.sae_documents, train_seed, "train")
    made[ORACLE] = oracle(x, on, lm.CONTEXT, seed, plan.probe_steps)
    clock.lap("degraded SAEs and oracle")
    return made


def _progress(label: str, figures: Figures) -> None:
    logger.info("%s: step %d, FVU %.4f, L0 %.1f", label, figures.step, figures.fvu or 0.0, figures.l0)


def save_sae(sae: SAE, one: Shipped, x_heldout: Float[Tensor, "words d_model"], folder: Path) -> dict[str, Any]:
    """Write an SAE in half precision, and what the file does on held-out activations."""
    info = sae.info.model_copy(update={"name": f"atlas-{one.name}", "architecture": one.architecture})
    path = native.save(replace(sae, info=info).to(dtype=torch.float16), folder / f"{one.name}.safetensors")
    return {"d_sae": sae.d_sae, "architecture": one.architecture, **asdict(measure(native.load(path), x_heldout))}


@torch.no_grad()
def measure(sae: SAE, activations: Float[Tensor, "words d_model"], chunk: int = 8192) -> Quality:
    """`Quality` on activations; sums in float64."""
    mean = activations.double().mean(0)
    active, unexplained, total = 0, 0.0, 0.0
    fired = torch.zeros(sae.d_sae, dtype=torch.bool)
    for x in torch.split(activations, chunk):
        f = sae.encode(x)
        active += int((f > 0).sum())
        fired |= (f > 0).any(0)
        unexplained += (x - sae.decode(f)).double().pow(2).sum().item()
        total += (x.double() - mean).pow(2).sum().item()
    tokens = len(activations)
    return Quality(l0=active / tokens, fvu=unexplained / total, dead=1 - fired.double().mean().item(), tokens=tokens)


# -- command


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The command's options."""
    plan = Plan()
    parser = argparse.ArgumentParser(prog="python -m saebench_plugins.atlas.build", description="Build atlas.")
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--work", type=Path, help="folder for what is unfinished; beside --out unless given")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1, help="torch threads; the bytes depend on their number")
    parser.add_argument("--steps", type=int, default=plan.language_model.steps, help="steps of the language model")
    parser.add_argument("--sae-steps", type=int, default=plan.sae_steps, help="steps of each SAE")
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
        sae_steps=args.sae_steps,
        sae_documents=args.sae_documents,
        heldout_documents=args.heldout_documents,
    )
    manifest: Mapping[str, Any] = build(args.out, plan, seed=args.seed, device=device, work=args.work)
    console.print_json(json.dumps({name: value for name, value in manifest.items() if name != "files"}))


if __name__ == "__main__":
    main()
