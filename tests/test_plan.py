"""The plan: subjects, needs, references, parameters and ids, all before anything is loaded."""

from __future__ import annotations

import types
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import toy_plugin

from saebench_meta.errors import PluginError, SaebenchError, UnknownNameError, UnmetNeedError
from saebench_meta.hookspecs import (
    DataIdentity,
    DatasetLoader,
    ModelIdentity,
    ModelLoader,
    SAEHeader,
    SAELoader,
    hookimpl,
)
from saebench_meta.plan import Plan, make_plan
from saebench_meta.plugins import Registry
from saebench_meta.resolve import split_scheme
from saebench_meta.settings import Settings, parse_parameters
from saebench_meta.task import Metric, Task
from saebench_meta.task import task as made_of

TOYS = ("toy_width", "toy_pair", "toy_family")


@pytest.fixture
def registry() -> Registry:
    made = Registry()
    assert made.register(toy_plugin).problems == []
    return made


def plan(registry: Registry, **fields: Any) -> Plan:
    return make_plan(registry, Settings(**{"saes": ("toy:x-16",), "tasks": TOYS[:1], **fields}))


def labels(made: Plan) -> list[str]:
    return [u.label for u in made.units]


def test_a_family_runs_each_member_each_neighbouring_pair_and_the_whole(registry: Registry) -> None:
    made = plan(registry, saes=(), family=("toy:x-8", "toy:x-16", "toy:x-32"), tasks=("toy_w*", "toy_p*", "toy_fam*"))
    assert labels(made) == [
        "toy_width on toy-x-8",
        "toy_pair on toy-x-16-vs-toy-x-8",
        "toy_width on toy-x-16",
        "toy_pair on toy-x-32-vs-toy-x-16",
        "toy_width on toy-x-32",
        "toy_family on toy-x-8+toy-x-16+toy-x-32",
    ]


def test_a_reference_nobody_named_is_the_widest_narrower_one_and_is_told(registry: Registry) -> None:
    made = plan(registry, saes=("toy:x-32",), tasks=("toy_pair",))
    assert labels(made) == ["toy_pair on toy-x-32-vs-toy-x-16"]
    assert "toy:x-16" in made.notices[0]
    assert labels(plan(registry, tasks=("toy_pair",), reference="toy:x-32")) == ["toy_pair on toy-x-16-vs-toy-x-32"]


def test_a_missing_reference_says_what_to_type(registry: Registry) -> None:
    made = plan(registry, saes=("toy:x-8",), tasks=("toy_p*",))
    assert made.units[0].unmet is not None and "--reference" in made.units[0].unmet
    with pytest.raises(UnmetNeedError, match=r"toy_pair.*--reference"):
        plan(registry, saes=("toy:x-8",), tasks=("toy_pair",))


def test_under_a_glob_an_unmet_need_is_skipped_and_outright_it_is_an_error(registry: Registry) -> None:
    made = plan(registry, tasks=("all",))
    unmet = {u.task.name: u.unmet for u in made.units if u.unmet}
    assert set(unmet) == {"toy_needy", "toy_family", "toy_data"}
    assert "'moonlight'" in str(unmet["toy_needy"]) and "--family" in str(unmet["toy_family"])
    assert "hf" in str(unmet["toy_data"])
    with pytest.raises(UnmetNeedError, match="moonlight"):
        plan(registry, tasks=("toy_needy",))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"saes": ()}, "either --sae"),
        ({"family": ("toy:x-8", "toy:x-16")}, "either --sae"),
        ({"saes": (), "family": ("toy:x-8",)}, "at least two"),
        ({"saes": ("toy:x-8", "toy:x-8")}, "named twice"),
        ({"tasks": ("toy_widht",)}, "did you mean 'toy_width'"),
        ({"tasks": ("nothing*",)}, "no task matches"),
        ({"saes": ("tyo:x-8",)}, "no SAE loader is called 'tyo'.*did you mean 'toy'"),
        ({"saes": ("nowhere.safetensors",)}, "neither a file"),
        ({"parameters": {"toy_width": {"scal": 2}}}, "no parameter 'scal'.*did you mean 'scale'"),
        ({"parameters": {"toy_pair": {"x": 2}}}, "which this run does not include"),
        ({"parameters": {"toy_width": {"scale": "wide"}}}, "expected float"),
    ],
)
def test_bad_input_is_one_clear_error(registry: Registry, fields: dict[str, Any], message: str) -> None:
    with pytest.raises(SaebenchError, match=message):
        plan(registry, **fields)


def test_parameters_take_the_type_of_their_default(registry: Registry) -> None:
    parameters = parse_parameters(("toy_width.scale=2", "toy_width.sizes=[3, 4]"))
    assert plan(registry, parameters=parameters).units[0].parameters == {"scale": 2.0, "sizes": (3, 4)}
    parameters = parse_parameters(("toy_width.sizes=5,6",))
    assert plan(registry, parameters=parameters).units[0].parameters["sizes"] == (5, 6)
    for bad in ("x", "x=1", ".a=1", "a.=1", "toy_width.scale=NaN"):
        with pytest.raises(SaebenchError, match="-P"):
            parse_parameters((bad,))


def the_id(registry: Registry, **fields: Any) -> str:
    return plan(registry, **fields).units[0].place.id


def test_the_id_changes_with_what_was_asked_and_with_nothing_else(registry: Registry, tmp_path: Path) -> None:
    base = the_id(registry)
    same: list[dict[str, Any]] = [
        {"out": tmp_path},
        {"device": "cuda"},
        {"batch_size": 3},
        {"threads": 7},
        {"force": True},
        {"cache": False},
        {"dtype": "bfloat16"},
        {"fail_fast": True},
        {"parameters": {"toy_width": {"scale": 1}}},
    ]
    other: list[dict[str, Any]] = [
        {"seed": 1},
        {"limit": 5},
        {"saes": ("toy:x-8",)},
        {"hook": "blocks.0.hook_resid_post"},
        {"parameters": {"toy_width": {"scale": 2.0}}},
    ]
    assert {the_id(registry, **fields) for fields in same} == {base}
    assert len({base, *(the_id(registry, **fields) for fields in other)}) == len(other) + 1


class Inputs:
    """A model and a corpus that are there as far as a plan can tell."""

    saebench_api = 1

    @hookimpl
    def saebench_language_models(self) -> dict[str, ModelLoader]:
        return {"hf": ModelLoader(load=lambda: None, peek=lambda ref, revision: ModelIdentity(ref, revision))}

    @hookimpl
    def saebench_datasets(self) -> dict[str, DatasetLoader]:
        def peek(ref: str, *, split: str | None, revision: str | None) -> DataIdentity:
            if ref == "gone":
                raise UnknownNameError("no such corpus")
            return DataIdentity(ref, revision, split)

        return {"hf": DatasetLoader(documents=list, peek=peek)}


def test_data_and_model_are_in_the_id_of_tasks_that_read_them_only(registry: Registry) -> None:
    registry._add(Inputs(), replace(registry.plugins[0], name="inputs", problems=[], provides={}))
    changes: list[dict[str, Any]] = [
        {"corpus": "b"},
        {"tokens": 99},
        {"context": 7},
        {"model": "other"},
        {"dtype": "bfloat16"},
    ]
    for task, expected in (("toy_data", 6), ("toy_width", 1)):
        ids = {the_id(registry, tasks=(task,), **{"corpus": "a", **c}) for c in ({}, *changes)}
        assert len(ids) == expected
    with pytest.raises(SaebenchError, match="no such corpus"):
        plan(registry, tasks=("all",), corpus="gone")
    with pytest.raises(UnmetNeedError, match="--corpus"):
        plan(registry, tasks=("toy_data",))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("tokens", 0),
        ("limit", 0),
        ("batch_size", "auto"),
        ("seed", "1"),
        ("packing", "concatt"),
        ("profile", "fast"),
        ("dtype", "float16"),
        ("context", 1.5),
        ("threads", True),
    ],
)
def test_settings_that_no_run_can_mean_are_refused(field: str, value: Any) -> None:
    with pytest.raises(SaebenchError, match=field):
        Settings(**{field: value})


def test_a_hook_given_by_the_user_does_not_hide_that_two_saes_read_different_ones(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = {"toy:x-8": "blocks.0.hook_resid_post"}

    def peek(ref: str) -> SAEHeader:
        made = toy_plugin.info(ref)
        hook = other.get(f"toy:{ref}", made.site.hook)
        return SAEHeader(made.model_copy(update={"site": made.site.model_copy(update={"hook": hook})}), {})

    registry.loaders._items["toy"] = SAELoader(toy_plugin.load, peek=peek)
    fields: dict[str, Any] = {"tasks": ("toy_pair",), "reference": "toy:x-8", "hook": toy_plugin.HOOK}
    with pytest.raises(SaebenchError, match="does not make them comparable"):
        plan(registry, **fields)
    with pytest.raises(SaebenchError, match="a family shares one site"):
        plan(registry, saes=(), family=("toy:x-8", "toy:x-16"), hook=toy_plugin.HOOK)
    other.clear()
    assert labels(plan(registry, **fields)) == ["toy_pair on toy-x-16-vs-toy-x-8"]


def test_a_profile_sets_parameters_under_what_the_user_says(registry: Registry) -> None:
    toy = registry.tasks["toy_width"]
    name, value = toy.parameters[0].name, toy.parameters[0].default
    quick = replace(toy, name="hasty", profiles={"quick": {name: value + 1}})
    registry.tasks.add("hasty", quick, registry.tasks.owner("toy_width"))

    def made(**fields: Any) -> Any:
        return plan(registry, tasks=("hasty",), **fields).units[0]

    assert made().parameters[name] == value
    assert made(profile="quick").parameters[name] == value + 1
    assert made(profile="quick", parameters={"hasty": {name: value + 2}}).parameters[name] == value + 2
    assert made().place.id != made(profile="quick").place.id


@pytest.mark.parametrize("profiles", [{"quick": {"none": 1}}, {"default": {"a": 1}}])
def test_a_profile_that_sets_what_is_not_there_is_refused(profiles: dict[str, dict[str, int]]) -> None:
    def hasty(sae: object, ctx: object, *, a: int = 0) -> None:
        """Nothing."""

    with pytest.raises(ValueError, match="no parameter, or no profile"):
        made_of("hasty", version=1, metrics=[Metric("m", better="neither", unit="1")], profiles=profiles)(hasty)  # type: ignore[arg-type]


def test_a_formats_parameters_lie_between_the_tasks_and_the_users(registry: Registry) -> None:
    loud = {"toy_width.scale": 0.4, "toy_pair.none_such": 1, "absent.x": 2}
    plain = registry.loaders["toy"]
    quiet = Registry()
    module = types.ModuleType("loud")
    module.saebench_api = 1  # type: ignore[attr-defined]
    module.saebench_loaders = hookimpl(  # type: ignore[attr-defined]
        lambda: {"toy": replace(plain, parameters=loud), "calm": plain}, specname="saebench_loaders"
    )
    module.saebench_tasks = hookimpl(toy_plugin.saebench_tasks, specname="saebench_tasks")  # type: ignore[attr-defined]
    assert quiet.register(module).problems == []
    [before] = plan(registry).units
    made = plan(quiet)
    [unit] = made.units
    assert (before.parameters["scale"], unit.parameters["scale"]) == (1.0, 0.4)
    assert before.place.id != unit.place.id
    assert made.notices == ("toy_width.scale is 0.4 for toy SAEs; -P toy_width.scale=… changes it",)
    typed = plan(quiet, parameters={"toy_width": {"scale": 2.0}})
    assert typed.units[0].parameters["scale"] == 2.0 and typed.notices == ()
    with pytest.raises(SaebenchError, match=r"toy_pair.*none_such"):
        plan(quiet, tasks=("toy_pair",), reference="toy:x-32")
    assert plan(quiet, tasks=("toy_pair",), reference="calm:x-32").units[0].parameters == {}


def test_a_hook_may_be_named_as_hugging_face_names_modules(registry: Registry) -> None:
    [unit] = plan(registry, hook="model.layers.2.mlp").units
    assert unit.subject.members[0].info.site.hook == "blocks.2.hook_mlp_out"


# -- tasks that are parts of others


def with_parts(*parts: Task) -> Registry:
    """The toy tasks and some more."""
    made = Registry()
    module = types.ModuleType("parts")
    module.saebench_api = 1  # type: ignore[attr-defined]
    module.saebench_tasks = hookimpl(lambda: list(parts), specname="saebench_tasks")  # type: ignore[attr-defined]
    assert made.register(toy_plugin).problems == [] and made.register(module).problems == []
    return made


def part(name: str, part_of: str, of: Task = toy_plugin.toy_family) -> Task:
    return replace(of, name=name, part_of=part_of)


FAMILY: dict[str, Any] = {"saes": (), "family": ("toy:x-8", "toy:x-16")}


def test_a_part_is_run_with_its_task_where_there_is_a_family() -> None:
    registry = with_parts(part("toy_ladder", "toy_pair"))
    made = plan(registry, tasks=("toy_pair",), **FAMILY)
    assert labels(made) == ["toy_pair on toy-x-16-vs-toy-x-8", "toy_ladder on toy-x-8+toy-x-16"]
    assert "toy_ladder on toy-x-8+toy-x-16" in labels(plan(registry, tasks=("toy_p*",), **FAMILY))
    assert labels(plan(registry, tasks=("toy_width",), **FAMILY)) == ["toy_width on toy-x-8", "toy_width on toy-x-16"]


def test_a_part_for_a_family_is_left_out_without_one_unless_it_is_named_outright() -> None:
    registry = with_parts(part("toy_ladder", "toy_pair"), part("toy_scale", "toy_pair", toy_plugin.toy_width))
    assert {u.task.name for u in plan(registry, tasks=("toy_pair",)).units} == {"toy_pair", "toy_scale"}
    assert "toy_ladder" not in {u.task.name for u in plan(registry, tasks=("all",)).units}
    with pytest.raises(UnmetNeedError, match=r"toy_ladder.*--family"):
        plan(registry, tasks=("toy_pair", "toy_ladder"))


def test_a_parts_parameters_go_by_its_own_name_and_need_it_in_the_run() -> None:
    takes = replace(part("toy_ladder", "toy_pair"), parameters=toy_plugin.toy_width.parameters)
    registry, given = with_parts(takes), {"toy_ladder": {"scale": 3.0}}
    made = plan(registry, tasks=("toy_pair",), parameters=given, **FAMILY)
    assert {u.task.name: u.parameters.get("scale") for u in made.units} == {"toy_pair": None, "toy_ladder": 3.0}
    with pytest.raises(SaebenchError, match="'toy_ladder', which this run does not include"):
        plan(registry, tasks=("toy_pair",), parameters=given)


@pytest.mark.parametrize("parent", ["toy_piar", "toy_ladder", "toy_part"])
def test_a_part_of_no_task_or_of_another_part_is_its_plugins_error(parent: str) -> None:
    registry = with_parts(part("toy_ladder", parent), part("toy_part", "toy_pair"))
    with pytest.raises(PluginError, match=f"plugin 'parts': task 'toy_ladder' is declared part of '{parent}'"):
        plan(registry, tasks=("toy_ladder",), **FAMILY)
    assert len(labels(plan(registry, **FAMILY))) == 2


def test_a_bare_scheme_means_the_same_in_every_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "atlas").mkdir()  # such as the output of `saebench run -o atlas`
    monkeypatch.chdir(tmp_path)
    assert split_scheme("atlas", {"atlas": None}) == ("atlas", "")
    assert split_scheme("./atlas", {"atlas": None}) is None
    assert split_scheme("atlas:x", {"atlas": None}) == ("atlas", "x")
