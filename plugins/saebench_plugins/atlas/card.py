"""The tables of atlas's data card, as Markdown: ``python -m saebench_plugins.atlas.card --work DIR``.

What the build measured comes from ``atlas.json``. The table of SAEs joins two commands, whose results are kept in
``--work``: ``saebench run --tasks core`` and ``saebench truth --random`` on every SAE.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import click

from saebench_plugins.atlas import SCHEME, manifest
from saebench_plugins.atlas.lexicon import RELATIONS
from saebench_plugins.atlas.site import SITE_LAYER, shipped

CORE = {"l0": ".2f", "nmse": ".3f", "ce_recovered_zero": ".3f", "dead_fraction": ".1%"}
"""Metrics of `core` that are shown, with their formats."""

SAES = [f"{SCHEME}:{one.name}" for one in shipped()]


def tables(work: Path) -> str:
    """All tables, each under its heading."""
    return "\n\n".join([language_model(), steering(), saes(core_records(work), truth_rows(work)), files()])


def table(heads: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A Markdown table."""
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


def language_model() -> str:
    """Loss against its bounds, and facts by relation."""
    card = manifest()["language_model"]
    loss = [
        ("loss", f"{card['heldout_loss']:.4f}"),
        ("surprisal of the generator's own choices", f"{card['generator_entropy_bound']:.4f}"),
        ("unigram entropy", f"{card['unigram_entropy']:.4f}"),
    ]
    facts = [[f"{100 * card['fact_accuracy'][r]:.1f} %" for r in (*RELATIONS, "all")]]
    words = f"on {card['heldout_documents']:,} held-out documents ({card['heldout_words']:,} words)"
    return f"{table((words, 'nats/word'), loss)}\n\n{table((*RELATIONS, 'all'), facts)}"


def steering() -> str:
    """What changing the residual at the city does, after each block."""
    swaps = manifest()["language_model"]["city_swaps"]
    rows = [
        (name, *(f"{swaps[name][relation]:.2f}" for relation in RELATIONS))
        for name in (
            f"{what} after block {layer}" for what in ("neutral patch", "mean difference") for layer in range(3)
        )
    ]
    return table((f"site: block {SITE_LAYER}", *RELATIONS), rows)


def saes(core: dict[str, dict[str, Any]], truth: list[dict[str, Any]]) -> str:
    """Every SAE: `core` on the evaluation corpus, and how well it and its random control match the truth."""
    heads = ("reference", "L0", "FVU", "CE recovered", "dead", "matched F1", "of its random control", "F1 ≥ .9", "MCC")
    random = {row["ref"]: row["f1"] for row in truth if row["sae"].endswith("[random]")}
    rows = []
    for row in truth:
        ref = row["ref"]
        if row["sae"].endswith("[random]"):
            continue
        shown = [f"{core[ref][name]['value']:{form}}" for name, form in CORE.items()]
        interval = f"{row['f1']:.3f} ({row['f1_low']:.3f}–{row['f1_high']:.3f})"
        rows.append((f"`{ref}`", *shown, interval, f"{random[ref]:.3f}", f"{row['found']:.1%}", f"{row['mcc']:.3f}"))
    return table(heads, rows)


def files() -> str:
    """Size and beginning of the hash of every file."""
    rows = [
        (f"`{name}`", f"{entry['bytes']:,}", f"`{entry['sha256'][:16]}…`")
        for name, entry in manifest()["files"].items()
    ]
    return table(("file", "bytes", "sha256"), rows)


def core_records(work: Path) -> dict[str, dict[str, Any]]:
    """Metrics of the task `core` by SAE reference."""
    subjects = [argument for ref in SAES for argument in ("--sae", ref)]
    _saebench("run", *subjects, "--tasks", "core", "-o", str(work / "core"))
    found = [json.loads(path.read_text()) for path in (work / "core").rglob("record.json")]
    return {record["subject"]["saes"][0]["ref"]: record["metrics"] for record in found}


def truth_rows(work: Path) -> list[dict[str, Any]]:
    """What `saebench truth` says of every SAE, and of the random one of each."""
    kept = work / "truth.jsonl"
    if not kept.exists():
        kept.write_text(_saebench("truth", *SAES, "--random", "--json"))
    return [json.loads(line) for line in kept.read_text().splitlines()]


def _saebench(*arguments: str) -> str:
    done = subprocess.run([sys.executable, "-m", "saebench_meta", *arguments], stdout=subprocess.PIPE, check=True)
    return done.stdout.decode()


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point of the command."""
    parser = argparse.ArgumentParser(
        prog="python -m saebench_plugins.atlas.card", description="Tables of the data card."
    )
    parser.add_argument("--work", type=Path, required=True, help="folder for records; what is there is not run again")
    args = parser.parse_args(argv)
    args.work.mkdir(parents=True, exist_ok=True)
    click.echo(tables(args.work))


if __name__ == "__main__":
    main()
