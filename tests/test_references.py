"""Where the reference of a pair comes from, in which order, and what the run and the record say of it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import toy_plugin

from saebench_meta import variants
from saebench_meta.errors import UnmetNeedError
from saebench_meta.plan import Plan, make_plan
from saebench_meta.plugins import Registry
from saebench_meta.record import Record, canonical_hash
from saebench_meta.runner import execute
from saebench_meta.sae import SAE, SAEInfo, Site
from saebench_meta.settings import Settings
from saebench_meta.store import find_records
from saebench_plugins import architectures, atlas, native

D_IN = 128
SITE = Site(model="atlas", hook="blocks.1.hook_resid_post")
TRAINED = "batchtopk-8-k2-s0"


@pytest.fixture(scope="module")
def registry() -> Registry:
    made = Registry()
    for plugin in (native, atlas, architectures, toy_plugin):
        assert made.register(plugin).problems == []
    return made


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(variants, "REFERENCE_TOKENS", 4096)


def save(folder: Path, name: str, d_sae: int) -> str:
    """A file with an SAE of atlas; its reference."""
    W = torch.randn(d_sae, D_IN, generator=torch.Generator().manual_seed(d_sae))
    info = SAEInfo(name=name, site=SITE, d_in=D_IN, d_sae=d_sae, context_size=64, dataset="atlas")
    sae = SAE(W.T.contiguous(), torch.zeros(d_sae), W, torch.zeros(D_IN), info)
    return f"native:{native.save(sae, folder / f'{name}.safetensors')}"


@pytest.fixture
def wide(tmp_path: Path) -> str:
    (tmp_path / "saes").mkdir()
    return save(tmp_path / "saes", "wide", 16)


def narrow(tmp_path: Path) -> str:
    return save(tmp_path / "saes", "narrow", 4)


def asked(tmp_path: Path, sae: str, **fields: Any) -> Settings:
    places = {"out": tmp_path / "out", "cache_dir": tmp_path / "cache"}
    return Settings(**{"saes": (sae,), "tasks": ("toy_pair",), "tokens": 300, **places, **fields})


def keep(tmp_path: Path, plan: Plan, said: object = None) -> None:
    """What training the reference of a plan leaves in the cache, as far as a plan looks at it."""
    training = plan.units[0].subject.members[1].training
    assert training is not None
    folder = tmp_path / "cache" / "trained" / canonical_hash(training.key())[:32] / training.recipe.label
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "training.json").write_text(json.dumps(said or {"digest": training.recipe.digest()}))


def told(plan: Plan) -> str:
    [note] = plan.units[0].subject.notes
    return note


def test_one_named_comes_first(registry: Registry, tmp_path: Path, wide: str) -> None:
    reference, other = narrow(tmp_path), save(tmp_path / "saes", "other", 8)
    plan = make_plan(registry, asked(tmp_path, wide, reference=reference))
    assert told(plan) == "reference: narrow (native:narrow.safetensors), named by --reference" and not plan.notices
    assert other not in told(plan) and str(tmp_path) not in told(plan)


def test_in_a_family_it_is_the_neighbour(registry: Registry, tmp_path: Path, wide: str) -> None:
    family = (narrow(tmp_path), save(tmp_path / "saes", "middle", 8), wide)
    plan = make_plan(registry, asked(tmp_path, wide, saes=(), family=family))
    assert [u.subject.notes for u in plan.units] == [
        ("reference: narrow (native:narrow.safetensors), its neighbour in --family",),
        ("reference: middle (native:middle.safetensors), its neighbour in --family",),
    ]


def test_one_trained_before_comes_before_files_that_came_later(registry: Registry, tmp_path: Path, wide: str) -> None:
    plan = make_plan(registry, asked(tmp_path, wide))
    narrow(tmp_path)
    keep(tmp_path, plan)
    for budget in (30.0, 0.0):
        again = make_plan(registry, asked(tmp_path, wide, train_budget=budget))
        assert told(again) == f"reference: {TRAINED} (trained:{TRAINED}), trained for it before, from the cache"
        assert again.notices == (f"reference of wide: {TRAINED} (trained for it before, from the cache)",)
        assert again.units[0].place.id == plan.units[0].place.id


@pytest.mark.parametrize("said", [{"digest": "another"}, ["digest"], {"digest": None}])
def test_what_is_in_the_cache_must_be_the_one_that_would_be_trained(
    registry: Registry, tmp_path: Path, wide: str, said: object
) -> None:
    keep(tmp_path, make_plan(registry, asked(tmp_path, wide)), said)
    narrow(tmp_path)
    assert "beside it on disk" in told(make_plan(registry, asked(tmp_path, wide)))


@pytest.mark.parametrize("fields", [{"seed": 1}, {"dtype": "bfloat16"}, {"cache": False}])
def test_one_trained_otherwise_or_a_cache_not_used_is_passed_over(
    registry: Registry, tmp_path: Path, wide: str, fields: dict[str, Any]
) -> None:
    keep(tmp_path, make_plan(registry, asked(tmp_path, wide)))
    narrow(tmp_path)
    assert "beside it on disk" in told(make_plan(registry, asked(tmp_path, wide, **fields)))


def test_then_the_widest_narrower_one_beside_it(registry: Registry, tmp_path: Path, wide: str) -> None:
    narrow(tmp_path)
    reference = save(tmp_path / "saes", "middle", 8)
    plan = make_plan(registry, asked(tmp_path, wide))
    found = "the widest narrower one, beside it on disk"
    assert told(plan) == f"reference: middle (native:middle.safetensors), {found}"
    assert plan.notices == (f"reference of wide: {reference} ({found})",)
    named = make_plan(registry, asked(tmp_path, wide, reference=reference))
    assert named.units[0].place.id == plan.units[0].place.id  # how it was found is no part of what was done


def test_then_the_catalogue_it_came_from(registry: Registry, tmp_path: Path) -> None:
    plan = make_plan(registry, asked(tmp_path, "toy:x-32"))
    assert told(plan) == "reference: toy-x-16 (toy:x-16), the widest narrower one, in the catalogue"


@pytest.mark.slow
def test_then_one_is_trained_and_after_that_nothing_changes_it(registry: Registry, tmp_path: Path, wide: str) -> None:
    def run(out: str) -> Record:
        settings = asked(tmp_path, wide, out=tmp_path / out)
        [result] = execute(registry, make_plan(registry, settings), settings).results
        assert result.status == "ok", result.reason
        [(_, record)] = find_records(tmp_path / out)
        return record

    first = run("first")
    assert first.notes[0] == f"reference: {TRAINED} (trained:{TRAINED}), trained for it"
    narrow(tmp_path)
    second = run("second")
    assert second.notes[0].endswith("trained for it before, from the cache")
    assert (second.id, second.metrics) == (first.id, first.metrics)
    shutil.rmtree(tmp_path / "cache" / "trained")
    third = run("third")
    assert third.notes[0].endswith("beside it on disk") and third.id != first.id


def test_else_the_task_is_skipped_with_what_to_type(registry: Registry, tmp_path: Path, wide: str) -> None:
    with pytest.raises(UnmetNeedError, match="give --reference REF"):
        make_plan(registry, asked(tmp_path, wide, train_budget=0.0))
    [unit] = make_plan(registry, asked(tmp_path, wide, tasks=("toy_p*",), train_budget=0.0)).units
    assert unit.unmet == "it needs a narrower SAE at the same site: give --reference REF" and not unit.subject.notes
