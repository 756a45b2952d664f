"""Labelled sets in runs: which a run has, that they are opened once, and what plans and records say of them."""

from __future__ import annotations

import json
import types
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from torch import Tensor

from saebench_meta.cli import saebench
from saebench_meta.cli.config import _settings_of_record
from saebench_meta.cli.run import what_to_type
from saebench_meta.compare import data_difference
from saebench_meta.errors import SaebenchError, UnknownNameError, UnmetNeedError
from saebench_meta.hookspecs import (
    DataIdentity,
    DatasetLoader,
    LabelledLoader,
    LabelledSet,
    ModelIdentity,
    ModelLoader,
    SAELoader,
    hookimpl,
)
from saebench_meta.labelled_sets import LabelledFinder, resolve_labelled
from saebench_meta.plan import describe, make_plan
from saebench_meta.plugins import Registry
from saebench_meta.plugins import registry as installed
from saebench_meta.record import Record, canonical_hash
from saebench_meta.runner import RunResult, execute
from saebench_meta.sae import SAE, SAEInfo, Site
from saebench_meta.settings import Settings
from saebench_meta.task import Metric, Output, Task, task
from saebench_plugins import labelled
from saebench_plugins.atlas.site import LABELLED

D_IN, HOOK, NAME = 6, "hook_embed", "wordlm"


class WordModel:
    """Its tokens are words and its activations their embeddings."""

    ref, revision, processing, backend, tokenizer = NAME, None, "raw", "toy", None
    n_ctx, bos_id, special_ids, vocab_size, dtype = 128, 1, frozenset({1}), 99_991, torch.float32
    device, files = torch.device("cpu"), types.MappingProxyType({"words": "0"})

    def __init__(self) -> None:
        self.E = torch.randn(99_991, D_IN, generator=torch.Generator().manual_seed(0))

    def tokenize(self, texts: list[str]) -> list[list[int]]:
        return [[2 + zlib.crc32(word.encode()) % 99_989 for word in text.split()] for text in texts]

    def check_hook(self, hook: str, d_in: int | None = None) -> None:
        assert (hook, d_in) in ((HOOK, None), (HOOK, D_IN))

    def activations(self, tokens: Tensor, hook: str) -> Tensor:
        return self.E[tokens]


def load_sae(ref: str, *, device: str, dtype: Any) -> SAE:
    W = torch.randn(8, D_IN, generator=torch.Generator().manual_seed(len(ref)))
    info = SAEInfo(name=ref, site=Site(model=NAME, hook=HOOK), d_in=D_IN, d_sae=8, dataset=NAME)
    return SAE(W.T.contiguous(), torch.zeros(8), W, torch.zeros(D_IN), info)


OPENED: list[str] = []


def load_set(ref: str) -> LabelledSet:
    OPENED.append(ref)
    texts = {split: tuple(f"{ref} {split} {i} {'yes' if i % 2 else 'no'}" for i in range(n)) for split, n in SIZES}
    return LabelledSet(("no", "yes"), texts, {split: tuple(i % 2 for i in range(n)) for split, n in SIZES})


SIZES = (("train", 40), ("test", 20))
SEEN: list[tuple[str, str, Any]] = []


def looking(name: str, **options: Any) -> Task:
    @task(
        name,
        version=1,
        metrics=[Metric("texts", better="neither", unit="texts", main=True, help="Texts of all sets.")],
        **{"needs": ["labelled"], "limit_unit": "texts", **options},
    )
    def look(sae: SAE, ctx: Any, *, ask: str = "") -> Output:
        """Texts of all sets."""
        sets = [ctx.labelled(name) for name in ([ask] if ask else ctx.labelled_sets)]
        SEEN.extend((name, sae.info.name, found) for found in sets)
        assert all(found.codes(sae).n_tokens == len(found.x) == found.n_texts for found in sets)
        return Output(estimates={"texts": ctx.census(float(sum(f.n_texts for f in sets)), 1)})

    return look


TASKS = (
    looking("look"),
    looking("look_again"),
    looking("look_whole", limit_unit="documents"),
    looking("blind", needs=["lm"]),
)


class Plugin:
    __name__ = "own"
    saebench_api = 1

    @hookimpl
    def saebench_language_models(self) -> Mapping[str, ModelLoader]:
        model = WordModel()
        peek = lambda ref, *, revision: ModelIdentity(NAME, files={"words": "0"})  # noqa: E731
        return {NAME: ModelLoader(lambda *_, **__: model, peek), "other": ModelLoader(lambda *_, **__: model, peek)}

    @hookimpl
    def saebench_datasets(self) -> Mapping[str, DatasetLoader]:
        texts = [f"some words of document {i}" for i in range(50)]
        peek = lambda ref, *, split, revision: DataIdentity(NAME, sha256="1")  # noqa: E731
        return {NAME: DatasetLoader(lambda *_, **__: texts, peek)}

    @hookimpl
    def saebench_loaders(self) -> Mapping[str, SAELoader]:
        return {NAME: SAELoader(load_sae)}

    @hookimpl
    def saebench_labelled(self) -> Mapping[str, LabelledLoader]:
        peek = lambda ref: DataIdentity(f"own:{ref}", sha256=f"of {ref}")  # noqa: E731
        return {"own": LabelledLoader(load_set, peek, names=("first", "second"), models=(NAME,))}

    @hookimpl
    def saebench_tasks(self) -> tuple[Task, ...]:
        return TASKS


@pytest.fixture
def registry() -> Registry:
    made = Registry()
    assert made.register(labelled).problems == []
    assert made.register(Plugin()).problems == []  # type: ignore[arg-type]  # any object can be a plugin
    OPENED.clear()
    SEEN.clear()
    return made


@pytest.fixture
def pets(tmp_path: Path) -> Path:
    path = tmp_path / "pets.jsonl"
    rows = [{"text": f"{'cat' if i % 2 else 'dog'} number {i}", "label": i % 2} for i in range(50)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def settings(out: Path, **fields: Any) -> Settings:
    return Settings(
        **{"saes": (f"{NAME}:a",), "tasks": ("look",), "out": out / "out", "cache_dir": out / "c", **fields}
    )


def go(registry: Registry, out: Path, **fields: Any) -> RunResult:
    chosen = settings(out, **fields)
    return execute(registry, make_plan(registry, chosen), chosen)


def record(registry: Registry, out: Path, **fields: Any) -> Record:
    result = go(registry, out, **fields).results[0]
    assert result.record is not None and result.status == "ok", result.reason
    return result.record


def the_id(registry: Registry, out: Path, **fields: Any) -> str:
    return make_plan(registry, settings(out, **fields)).units[0].place.id


def test_a_set_is_opened_once_for_all_tasks_saes_and_controls(registry: Registry, tmp_path: Path) -> None:
    result = go(registry, tmp_path, saes=(f"{NAME}:a", f"{NAME}:bb"), tasks=("look", "look_again"))
    assert result.count("ok") == 4 and OPENED == ["first", "second"]
    assert {(task, sae) for task, sae, _ in SEEN} == {
        (task, sae) for task in ("look", "look_again") for sae in ("a", "a [random]", "bb", "bb [random]")
    }
    assert len({id(found) for *_, found in SEEN}) == 2


def test_a_record_says_what_was_used(registry: Registry, tmp_path: Path) -> None:
    made = record(registry, tmp_path)
    assert [used.name for used in made.labelled] == ["own:first", "own:second"]
    used = made.labelled[0]
    assert (used.sha256, used.texts, used.test, used.tokens) == ("of first", 60, 20, 240)
    assert used.classes == {"no": 30, "yes": 30} and used.dropped == {}
    assert used.content_sha256 is not None and used.content_sha256 != made.labelled[1].content_sha256
    assert _settings_of_record(made)["labelled"] == ("own:first", "own:second")


def test_a_limit_counts_texts_of_each_set_where_that_is_the_tasks_unit(registry: Registry, tmp_path: Path) -> None:
    result = go(registry, tmp_path, tasks=("look", "look_whole"), limit=30)
    texts = {r.unit.task.name: [used.texts for used in r.record.labelled] for r in result.results if r.record}
    assert texts == {"look": [30, 30], "look_whole": [60, 60]}
    assert all(r.record is not None and r.record.run.partial for r in result.results)


def test_a_profile_uses_part_of_a_set_and_its_records_are_others(
    registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from saebench_meta import labelled_sets

    monkeypatch.setattr(labelled_sets, "PROFILE_TEXTS", {"quick": 30})
    ids = set()
    for profile, limit, texts in (("quick", None, 30), ("default", None, 60), ("quick", 40, 40), ("default", 40, 40)):
        result = go(registry, tmp_path, tasks=("look",), profile=profile, limit=limit, tokens=512)
        assert [[used.texts for used in r.record.labelled] for r in result.results if r.record] == [[texts, texts]]
        ids.add(result.results[0].unit.place.id)
    assert len(ids) == 3  # a limit is the same in every profile


def test_sets_are_the_users_or_the_models_or_those_for_any(registry: Registry, pets: Path) -> None:
    def names(model: str, *refs: str) -> Any:
        found = LabelledFinder(registry, Settings(labelled=refs)).find(model)
        return found if isinstance(found, str) else [one.name for one in found]

    assert names(NAME) == names("other", "own") == ["own:first", "own:second"]
    assert names(NAME, str(pets), "own:second", str(pets)) == ["pets.jsonl", "own:second"]
    assert names("other", f"file:{pets}") == ["pets.jsonl"]
    assert LabelledFinder(registry, Settings()).defaults("other") == ("hub",)
    assert "give --labelled FILE" in names("other")  # the hub is out of reach in tests


def test_references_that_name_nothing_say_so(registry: Registry, tmp_path: Path, pets: Path) -> None:
    for ref, message in (
        ("gone.csv", "neither a file nor a reference of the form scheme:name"),
        ("owm:first", "did you mean 'own'"),
        ("file", "this scheme has no sets of its own; give file:PATH"),
        (str(tmp_path), "no loader recognises it"),
        ("hub:agnews", "did you mean 'ag-news'"),
    ):
        with pytest.raises(SaebenchError) as raised:
            resolve_labelled(registry, ref)
        assert message in str(raised.value)
    same = tmp_path / "other" / pets.name
    same.parent.mkdir()
    same.write_text(pets.read_text().replace("cat", "bird"))
    with pytest.raises(SaebenchError, match=r"two labelled sets are called 'pets\.jsonl'"):
        the_id(registry, tmp_path, labelled=(str(pets), str(same)))


def test_the_id_follows_the_sets_and_their_content_and_not_where_they_lie(
    registry: Registry, tmp_path: Path, pets: Path
) -> None:
    base = the_id(registry, tmp_path)
    assert the_id(registry, tmp_path, labelled=("own",)) == base
    copy = tmp_path / "elsewhere" / pets.name
    copy.parent.mkdir()
    copy.write_text(pets.read_text())
    changes: tuple[dict[str, Any], ...] = ({"labelled": ("own:first",)}, {"labelled": (str(pets),)}, {"limit": 20})
    assert len({base, *(the_id(registry, tmp_path, **c) for c in changes)}) == 4
    assert the_id(registry, tmp_path, labelled=(str(pets),)) == the_id(registry, tmp_path, labelled=(str(copy),))
    before = the_id(registry, tmp_path, labelled=(str(copy),))
    copy.write_text(pets.read_text().replace("cat", "bird"))
    assert the_id(registry, tmp_path, labelled=(str(copy),)) != before
    blind = {"tasks": ("blind",)}
    assert the_id(registry, tmp_path, **blind) == the_id(registry, tmp_path, labelled=(str(pets),), **blind)


def test_rows_in_another_order_are_the_same_data(registry: Registry, tmp_path: Path, pets: Path) -> None:
    first = record(registry, tmp_path, labelled=(str(pets),))
    lines = pets.read_text().splitlines(keepends=True)
    pets.write_text("".join(lines[::-1]))
    second = record(registry, tmp_path, labelled=(str(pets),))
    assert first.id != second.id and data_difference(first, second) is None
    pets.write_text("".join(lines).replace("cat", "bird"))
    third = record(registry, tmp_path, labelled=(str(pets),))
    assert data_difference(first, third) == "not the same texts of the labelled set pets.jsonl"


def test_a_set_that_is_not_of_the_run_or_not_declared_is_told(registry: Registry, tmp_path: Path) -> None:
    wrong = go(registry, tmp_path, parameters={"look": {"ask": "own:frist"}}).results[0]
    assert wrong.status == "failed" and "did you mean 'own:first'" in str(wrong.reason)
    blind = go(registry, tmp_path, tasks=("blind",), parameters={"blind": {"ask": "own:first"}}).results[0]
    assert blind.status == "skipped" and "add 'labelled' to its needs" in str(blind.reason)


def test_sets_that_cannot_be_had_are_an_unmet_need_and_a_bad_file_ends_the_plan(
    registry: Registry, tmp_path: Path
) -> None:
    made = make_plan(registry, settings(tmp_path, tasks=("look*",), model="other", corpus=NAME))
    assert all("cannot be reached" in str(unit.unmet) for unit in made.units)
    with pytest.raises(UnmetNeedError, match="--labelled FILE"):
        make_plan(registry, settings(tmp_path, model="other", corpus=NAME))
    (tmp_path / "bad.csv").write_text("txt,label\na,b\n")
    with pytest.raises(SaebenchError, match="has no column 'text'"):
        make_plan(registry, settings(tmp_path, tasks=("look*",), labelled=(str(tmp_path / "bad.csv"),)))
    with pytest.raises(UnknownNameError, match="owm"):
        make_plan(registry, settings(tmp_path, tasks=("all",), labelled=("owm:first",)))


def test_a_plan_says_which_sets_and_a_command_repeats_them(registry: Registry, tmp_path: Path, pets: Path) -> None:
    chosen = settings(tmp_path, labelled=(str(pets), "own:first"))
    [unit] = make_plan(registry, chosen).units
    assert describe(unit, chosen)["labelled"] == [str(pets), "own:first"]
    typed = what_to_type(unit, "give --judge NAME", chosen)
    assert typed is not None and f"--labelled {pets} --labelled own:first" in typed


def test_the_command_line_takes_several_sets() -> None:
    """Of the plugins that are installed; a task that needs no set is enough to see what is refused."""
    done = CliRunner().invoke(
        saebench, ["run", "--sae", "atlas:batchtopk-128", "--tasks", "all", "--dry-run", "--labelled", "atlas:topcs"]
    )
    assert isinstance(done.exception, SystemExit | UnknownNameError)
    assert "did you mean 'topics'" in done.output + str(done.exception)


def test_a_notebook_may_name_one_set_or_give_a_list() -> None:
    one: Any = "own:first"
    assert Settings(labelled=one).labelled == ("own:first",)
    several: Any = ["own:first", "own:second"]
    assert Settings(labelled=several).labelled == ("own:first", "own:second")


def test_keys_of_sets_are_plain_data(registry: Registry, pets: Path) -> None:
    [one] = resolve_labelled(registry, str(pets))
    assert one.key() == {"name": "pets.jsonl", "version": 1, "sha256": one.identity.sha256}
    assert canonical_hash(one.key())


def test_the_installed_sets_of_atlas_are_those_of_runs_on_its_model() -> None:
    found = LabelledFinder(installed(), Settings()).find("atlas")
    assert not isinstance(found, str)
    assert [one.name for one in found] == [f"atlas:{name}" for name in LABELLED]
    assert LabelledFinder(installed(), Settings()).defaults("gpt2") == ("hub",)
