"""A plugin for tests of the harness: SAEs, a language model and a corpus small enough to run in milliseconds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from saebench_meta.hookspecs import CatalogueEntry, SAEHeader, SAELoader, hookimpl
from saebench_meta.sae import SAE, SAEInfo, Site
from saebench_meta.stats import census
from saebench_meta.task import Family, Metric, Output, Pair, task

saebench_api = 1
HOOK = "blocks.1.hook_resid_post"


def info(ref: str) -> SAEInfo:
    width = int(ref.rpartition("-")[2])
    return SAEInfo(
        name=f"toy-{ref}", site=Site(model="no-such-model", hook=HOOK), d_in=4, d_sae=width, prepend_bos=False
    )


def load(ref: str, *, device: str, dtype: Any) -> SAE:
    import torch

    about = info(ref)
    generator = torch.Generator().manual_seed(about.d_sae)
    W = torch.randn(about.d_sae, 4, generator=generator, dtype=dtype)
    return SAE(W.T.contiguous(), torch.zeros(about.d_sae), W, torch.zeros(4), about)


@hookimpl
def saebench_loaders() -> Mapping[str, SAELoader]:
    return {"toy": SAELoader(load, peek=lambda ref: SAEHeader(info(ref), {}))}


@hookimpl
def saebench_catalogue() -> list[CatalogueEntry]:
    return [CatalogueEntry(f"toy:x-{w}", "no-such-model", HOOK, w) for w in (8, 16, 32)]


CALLS: list[str] = []


@task("toy_width", version=1, metrics=[Metric("width", better="neither", unit="latents", main=True)], controls=())
def toy_width(sae: SAE, ctx: Any, *, scale: float = 1.0, sizes: tuple[int, ...] = (1, 2)) -> Output:
    """Number of latents."""
    CALLS.append(sae.info.name)
    return Output(estimates={"width": census(sae.d_sae * scale, sae.d_sae)})


@task(
    "toy_pair",
    version=2,
    subject="pair",
    needs=["reference"],
    metrics=[Metric("ratio", better="neither", unit="1")],
    controls=["permuted_columns"],
)
def toy_pair(pair: Pair, ctx: Any) -> Output:
    """Ratio of widths."""
    return Output(estimates={"ratio": census(pair.sae.d_sae / pair.reference.d_sae, pair.sae.d_sae)})


@task("toy_family", version=1, subject="family", metrics=[Metric("size", better="neither", unit="1")], controls=())
def toy_family(family: Family, ctx: Any) -> Output:
    """Number of members."""
    return Output(estimates={"size": census(len(family.saes), len(family.saes), n_unit="SAEs")})


@task("toy_failing", version=1, metrics=[Metric("nothing", better="neither", unit="1")], controls=())
def toy_failing(sae: SAE, ctx: Any) -> Output:
    """Always fails."""
    raise RuntimeError("it broke")


@task("toy_needy", version=1, needs=["moonlight"], metrics=[Metric("nothing", better="neither", unit="1")])
def toy_needy(sae: SAE, ctx: Any) -> Output:
    """Needs what nobody has."""
    raise AssertionError


@task(
    "toy_data", version=1, needs=["activations"], metrics=[Metric("l0", better="neither", unit="1", of="l0 / tokens")]
)
def toy_data(sae: SAE, ctx: Any) -> Output:
    """Needs a model that is not there."""
    raise AssertionError


@hookimpl
def saebench_tasks() -> list[Any]:
    return [toy_width, toy_pair, toy_family, toy_failing, toy_needy, toy_data]
