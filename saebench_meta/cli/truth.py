"""`saebench truth`: how well SAEs match the features of a world whose truth is known."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from saebench_meta.cli.options import POSITIVE, option
from saebench_meta.cli.output import columns, json_line

if TYPE_CHECKING:
    from saebench_meta.plugins import Registry
    from saebench_meta.resolve import ResolvedSAE
    from saebench_meta.session import Session
    from saebench_meta.settings import Settings
    from saebench_meta.truth import TruthScores

HEADS = ("SAE", "L0", "dead", "matched F1", "95 % interval", "features", "rare", "precision", "recall")
MORE_HEADS = ("F1 >= .9", "MCC", "MCC of W_enc", "uniqueness")


@click.command("truth")
@click.argument("refs", nargs=-1, required=True, metavar="REF...")
@option("--random", is_flag=True, help="Also a random SAE of the shape and L0 of each.")
@option("--tokens", type=POSITIVE, default=65_536, metavar="N", help="Tokens, or samples of a world.")
@option("--seed", type=click.IntRange(min=0), default=0, metavar="N", help="Of the sample and the bootstrap.")
@option("--corpus", metavar="REF", help="Documents; by default the SAE's own, if their truth is known.")
@option("--split", metavar="NAME", help="Split of the corpus.")
@option("--min-count", type=POSITIVE, default=10, metavar="N", help="Features on in fewer tokens are not matched.")
@option("--device", default="auto", metavar="NAME", help="`auto`, `cpu`, `cuda`, `cuda:1`, `mps`.")
@option("-o", "--out", type=click.Path(dir_okay=False, path_type=Path), help="CSV file: a line a feature and SAE.")
@option("--json", "as_json", is_flag=True, envvar="SAEBENCH_JSON", help="As JSON, one SAE a line.")
def command(refs: tuple[str, ...], random: bool, min_count: int, out: Path | None, as_json: bool, **given: Any) -> None:
    """Compare SAEs with the features of their world.

    For SAEs trained on a world (`saebench train --world`), and on a language model whose truth a plugin knows.

    Latents and features are matched one to one by F1; the mean is over the features that occur. Its interval is over
    documents, or blocks of samples of a world, with the match as it is. MCC matches decoder rows with the features'
    directions, or with the rows of the oracle.

    \b
    saebench truth trained/relu-8-l10.01-s0 --random
    saebench truth atlas:batchtopk-256 atlas:oracle -o features.csv
    """
    from contextlib import nullcontext

    from saebench_meta.plugins import registry
    from saebench_meta.progress import display
    from saebench_meta.settings import Settings

    found = registry()
    settings = Settings(saes=refs, **given)
    with nullcontext() if as_json else display(found):
        scored = list(_scored(found, settings, min_count, random=random))
    if out is not None:
        _write(out, scored)
    if as_json:
        from saebench_meta.truth import as_row

        for ref, name, scores in scored:
            json_line({"ref": ref, "sae": name, **as_row(scores)})
    else:
        click.echo(columns([_line(name, scores) for _, name, scores in scored], (*HEADS, *MORE_HEADS)))


def _scored(
    registry: Registry, settings: Settings, min_count: int, *, random: bool
) -> Iterator[tuple[str, str, TruthScores]]:
    """Reference, name and scores of every SAE, each followed by its random control if asked for.

    Raises:
        SaebenchError: an SAE that cannot be had, or whose truth is not known.
    """
    from saebench_meta.models import strict_fp32
    from saebench_meta.resolve import resolve_sae
    from saebench_meta.session import Session
    from saebench_meta.worlds import is_world

    resolved = [resolve_sae(registry, ref) for ref in settings.saes]
    session = Session(registry, settings)
    with strict_fp32():
        for sae in resolved:
            score = _on_world if is_world(registry, sae.info.site.model) else _on_documents
            for name, scores in score(session, sae, min_count, random=random):
                yield sae.ref, name, scores


def _on_world(
    session: Session, resolved: ResolvedSAE, min_count: int, *, random: bool
) -> Iterator[tuple[str, TruthScores]]:
    from saebench_meta.truth import TOKENS, random_on_world, truth_scores
    from saebench_meta.worlds import open_world

    sae, seed = session.sae(resolved), session.settings.seed
    world = open_world(session.registry, resolved.info.site.model)
    tokens = session.settings.tokens or TOKENS
    saes = [sae, random_on_world(sae, world, tokens, seed)] if random else [sae]
    for one in saes:
        yield one.info.name, truth_scores(one, world, tokens=tokens, seed=seed, min_count=min_count)


def _on_documents(
    session: Session, resolved: ResolvedSAE, min_count: int, *, random: bool
) -> Iterator[tuple[str, TruthScores]]:
    from saebench_meta.errors import UnmetNeedError
    from saebench_meta.inputs import InputsFinder, Truths
    from saebench_meta.truth import truth_scores

    truths, info = Truths(session.registry), resolved.info
    known = truths.corpus(info)
    if known is None:
        raise UnmetNeedError(f"'{resolved.ref}': {truths.why_not(info.site.model)}")
    corpus = session.settings.corpus or known
    inputs = InputsFinder(session.registry, replace(session.settings, corpus=corpus)).find(resolved)
    if isinstance(inputs, str):
        raise UnmetNeedError(inputs)
    name = truths.of(info, inputs)
    if name is None:
        raise UnmetNeedError(f"'{resolved.ref}': {truths.why_not(info.site.model, inputs.data.identity.ref)}")
    site = session.site(inputs)
    site.lm.check_hook(inputs.hook, info.d_in)
    oracle, controls = truths.oracle(resolved), [session.control("random", resolved, site)] if random else []
    directions = None if oracle is None else session.sae(oracle, site).W_dec
    source, seed = (site.activations, site.truth(name)), session.settings.seed
    for one in [session.sae(resolved, site), *controls]:
        yield one.info.name, truth_scores(one, source, seed=seed, directions=directions, min_count=min_count)


def _line(name: str, scores: TruthScores) -> Sequence[str]:
    from saebench_meta.tables import number

    f1, whole = scores.f1, (scores.features, scores.rare)
    interval = "-" if f1.ci_low is None else f"[{number(f1.ci_low, 3)}, {number(f1.ci_high, 3)}]"
    shares = (scores.precision, scores.recall, scores.found, scores.mcc, scores.mcc_encoder, scores.uniqueness)
    first = (name, number(scores.l0), number(scores.dead), number(f1.value, 3), interval)
    return (*first, *map(number, whole), *(number(share, 3) for share in shares))


def _write(path: Path, scored: Sequence[tuple[str, str, TruthScores]]) -> None:
    """The scores of every feature as CSV, in the order of the SAEs and of the world."""
    from saebench_meta.store import write_atomic

    lines = [{"sae": name, **asdict(score)} for _, name, scores in scored for score in scores.per_feature]
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(lines[0]) if lines else ["sae"], lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    write_atomic(path, text.getvalue().encode())
