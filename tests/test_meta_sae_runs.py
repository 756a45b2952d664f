"""The three tasks in runs on SAEs from files: records, saved meta-SAEs, and what a dry run says."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from meta_sae_samples import hierarchy

import saebench_tasks.meta_sae as module
from saebench_meta.plan import make_plan
from saebench_meta.plugins import Registry
from saebench_meta.resolve import resolve_sae
from saebench_meta.runner import UnitResult, execute
from saebench_meta.settings import Settings
from saebench_meta.store import read_valid

NARROW, WIDE = 40, 90
FEW = {"steps": 25, "lr": 3e-3}
PARAMETERS: dict[str, dict[str, object]] = {
    "meta_sae": {**FEW, "curve": ()},
    "meta_sae_pair": FEW,
    "meta_sae_family": FEW,
}


@pytest.fixture(scope="module")
def registry() -> Registry:
    from saebench_plugins import architectures, native

    made = Registry()
    for plugin in (architectures, native, module):
        assert made.register(plugin).problems == []
    return made


@pytest.fixture(scope="module")
def members(registry: Registry, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """Files of a narrow SAE and a wide one, whose latents are sums of two of the same atoms."""
    folder, save = tmp_path_factory.mktemp("members"), registry.loaders["native"].save
    assert save is not None
    for name, latents in (("narrow", NARROW), ("wide", WIDE)):
        save(hierarchy(atoms=10, d_in=16, latents=latents, k=2)[0], folder / f"{name}.safetensors")
    return str(folder / "narrow.safetensors"), str(folder / "wide.safetensors")


@pytest.fixture(scope="module")
def results(
    registry: Registry, members: tuple[str, str], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, UnitResult]:
    """Of the wide SAE with the narrow one as its reference, and of both as a family."""
    folder = tmp_path_factory.mktemp("meta_sae")
    done: dict[str, UnitResult] = {}
    for tasks in (("meta_sae", "meta_sae_pair"), ("meta_sae_family",)):
        asked = Settings(
            saes=members[1:] if len(tasks) > 1 else (),
            family=members if len(tasks) == 1 else (),
            reference=members[0] if len(tasks) > 1 else None,
            tasks=tasks,
            parameters={task: PARAMETERS[task] for task in tasks},
            out=folder / "out",
            cache_dir=folder / "cache",
            device="cpu",
        )
        for result in execute(registry, make_plan(registry, asked), asked).results:
            assert result.status == "ok", result.reason
            done[result.unit.task.name] = result
    return done


def test_every_task_has_a_record_with_its_metrics(results: dict[str, UnitResult]) -> None:
    assert set(results) == {"meta_sae", "meta_sae_pair", "meta_sae_family"}
    for result in results.values():
        assert result.record is not None and result.folder is not None
        assert read_valid(result.folder, result.record.id) == result.record
        assert 0 < result.record.metrics["variance_explained"].value < 1  # type: ignore[operator]
        trained = {t.recipe["architecture"] for t in result.record.trained}
        assert "batchtopk" in trained and trained <= {"batchtopk", "encoder"}


def test_a_pair_takes_the_meta_sae_that_its_sae_has_already(results: dict[str, UnitResult]) -> None:
    single, pair = results["meta_sae"].record, results["meta_sae_pair"].record
    assert single is not None and pair is not None
    assert pair.trained[0].content_sha256 == single.trained[0].content_sha256
    for name in ("variance_explained", "held_out"):
        assert pair.metrics[name].value == single.metrics[name].value


@pytest.mark.parametrize("name", ["meta_sae", "meta_sae_family"])
def test_the_saved_meta_sae_makes_the_tables_that_were_written(
    results: dict[str, UnitResult], registry: Registry, members: tuple[str, str], name: str
) -> None:
    folder = results[name].folder
    assert folder is not None
    meta = resolve_sae(registry, str(folder / f"saes/{name}.safetensors")).load()
    saes = [resolve_sae(registry, ref).load() for ref in (members if name == "meta_sae_family" else members[1:])]
    f = meta.encode(torch.cat([sae.unit_decoder().float() for sae in saes]))
    pairs = pd.read_csv(folder / "tables/decomposition.csv")
    assert list(pairs)[-3:] == ["latent", "meta_latent", "activation"]
    row = pairs["latent"].to_numpy().copy()
    if len(saes) > 1:
        row += np.where(pairs["sae"].str.endswith("(2)"), saes[0].d_sae, 0)
    assert (f > 0).sum() == len(pairs)
    np.testing.assert_allclose(f[row, pairs["meta_latent"].to_numpy().copy()], pairs["activation"], rtol=1e-5)
    falls = pairs.groupby(row)["activation"].agg(lambda a: a.is_monotonic_decreasing)
    assert falls.all() and (np.diff(row) >= 0).all()
    top = pd.read_csv(folder / "tables/meta_latents.csv", keep_default_na=False)
    assert list(top) == ["meta_latent", "latents", "top"] and list(top["meta_latent"]) == list(range(meta.d_sae))
    assert top["latents"].to_list() == (f > 0).sum(0).tolist()


def test_a_plan_tells_what_is_trained_before_anything_is_loaded(
    registry: Registry, members: tuple[str, str], tmp_path: Path
) -> None:
    asked = Settings(saes=members[1:], reference=members[0], tasks=("meta_sae", "meta_sae_pair"), out=tmp_path)
    units = {unit.task.name: unit for unit in make_plan(registry, asked).units}
    own = [recipe.label for recipe in units["meta_sae"].trains]
    assert own[:3] == ["batchtopk-22-k4-s0"] * 3
    assert [recipe.d_sae for recipe in units["meta_sae"].trains[3:]] == [11, 11]
    assert [recipe.label for recipe in units["meta_sae_pair"].trains] == [own[0], "encoder-22-k4-s0"]


def test_another_setting_is_another_record(registry: Registry, members: tuple[str, str], tmp_path: Path) -> None:
    def place(**parameters: object) -> str:
        asked = Settings(saes=members[:1], tasks=("meta_sae",), parameters={"meta_sae": parameters}, out=tmp_path)
        return make_plan(registry, asked).units[0].place.id

    made = {place(), place(k=3), place(width=20), place(steps=9), place(lr=1e-4), place(seeds=2), place(held_out=0.2)}
    assert len(made) == 7
