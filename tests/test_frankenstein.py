"""Frankenstein: a family worked out by hand, sums against stitched SAEs themselves, a run on the built-in world."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fakes import FakeContext, info, tied_sae, toy_context

import saebench_tasks.frankenstein as module
from saebench_meta import measure
from saebench_meta.errors import SaebenchError
from saebench_meta.plan import make_plan
from saebench_meta.plugins import Registry
from saebench_meta.resolve import resolve_sae
from saebench_meta.runner import UnitResult, execute
from saebench_meta.sae import SAE, SAEInfo
from saebench_meta.settings import Settings
from saebench_meta.stats import from_documents
from saebench_meta.store import read_valid
from saebench_meta.task import Family, Output
from saebench_plugins.atlas import world
from saebench_tasks import core
from saebench_tasks.frankenstein import build, frankenstein, shown, sums

LENGTHS = [9, 1, 5, 7, 3, 8, 6]


def plain(rows: list[list[float]], b_dec: list[float], name: str) -> SAE:
    """A relu SAE whose encoder is its decoder."""
    W = torch.tensor(rows)
    n, d = W.shape
    return SAE(W.T.contiguous(), torch.zeros(n), W, torch.tensor(b_dec), info(d, n, name=name))


def run(saes: list[SAE], ctx: FakeContext, **parameters: Any) -> Output:
    ctx.recipes = ()  # type: ignore[attr-defined]  # what a run without retraining has
    output = frankenstein(Family(tuple(saes)), ctx, **{"retrain": "none", **parameters})
    measure.check_output(frankenstein, output)
    return output


def values(output: Output) -> dict[str, float | None]:
    assert output.documents is not None
    rng = np.random.default_rng(0)
    of = {m.name: from_documents(m.of, output.documents, rng).value for m in frankenstein.metrics if m.of}
    return of | {name: estimate.value for name, estimate in output.estimates.items()}


def by_hand() -> tuple[list[SAE], FakeContext]:
    """Four tokens in two documents: x = (2,0), (0,1) and (−1,0), (0,3). One latent e1; then e1 again and e2."""
    ctx = toy_context([2, 2], d=2)
    ctx.held = replace(ctx.held, x=torch.tensor([[2.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.0, 3.0]]))
    return [plain([[1.0, 0.0], [0.0, 1.0]], [0.0, 1.0], "two"), plain([[1.0, 0.0]], [0.0, 0.0], "one")], ctx


def test_a_family_small_enough_to_work_out_by_hand() -> None:
    """The wider member gives e2 only; the bias is the mean of (0,0) and (0,1)."""
    output = run(*by_hand())
    found = values(output)
    # x_hat = (2,.5), (0,1.5), (0,.5), (0,3.5); of the wider member (2,1), (0,2), (0,1), (0,4)
    assert (found["latents"], found["l0"]) == (2, 3 / 4)
    assert found["mse_before"] == pytest.approx((0.25 + 0.25 + 1.25 + 0.25) / 8)
    assert found["mse_nearest"] == pytest.approx((1 + 1 + 2 + 1) / 8)
    assert found["relative_mse_before"] == pytest.approx(2 / 5) and found["relative_l0"] == 1
    assert found["explained_variance_before"] == pytest.approx(1 - 2 / (4.0625 + 0.0625 + 2.5625 + 4.0625))
    assert [found[name] for name in ("mse_after", "relative_mse", "row_cosine", "ce_recovered_after")] == [None] * 4
    stages = output.tables["stages"].data
    assert list(stages["name"]) == ["one", "two", "with two"] and list(stages["added"]) == [1, 2, 1]
    assert list(stages["mse"]) == pytest.approx([11 / 8, 5 / 8, 2 / 8])
    assert output.notes[0] == "2 latents: 1 of 1 from one, 1 of 2 from two."
    (made,) = output.saes.values()
    assert made.W_dec.tolist() == [[1, 0], [0, 1]] and made.b_dec.tolist() == [0, 0.5]


def test_cross_entropies_are_those_of_the_dictionaries_spliced() -> None:
    saes = [tied_sae(6, 5, seed=1, bias=0.0), tied_sae(6, 9, seed=2, bias=0.0)]
    output = run(saes, toy_context(LENGTHS))
    stages = output.tables["stages"].data
    of_core = core.core(saes[0], toy_context(LENGTHS), ce_tokens=4096).documents
    assert of_core is not None
    assert stages["ce_spliced"][0] == pytest.approx(np.nansum(of_core["loss_spliced"]) / sum(LENGTHS))
    assert output.documents is not None
    assert stages["ce_spliced"][2] == pytest.approx(np.nansum(output.documents["loss_before"]) / sum(LENGTHS))
    np.testing.assert_array_equal(output.documents["loss_clean"], of_core["loss_clean"])


def family(transform: str = "none", **changes: Any) -> list[SAE]:
    sizes = (5, 8, 8, 13)
    made = [tied_sae(6, n, seed=n + i, bias=-0.1, input_transform=transform) for i, n in enumerate(sizes)]
    made = [
        replace(sae, b_dec=torch.randn(6, generator=torch.Generator().manual_seed(i))) for i, sae in enumerate(made)
    ]
    return [replace(sae, info=sae.info.model_copy(update=changes)) for sae in made]


@pytest.mark.parametrize("transform", ["none", "layer_norm"])
@pytest.mark.parametrize("kind", [{}, {"activation": "topk", "k": 3}], ids=["relu", "topk"])
def test_one_pass_gives_what_each_dictionary_gives_by_itself(transform: str, kind: dict[str, Any]) -> None:
    """Members, stages and retrained stages, each encoded and decoded alone by another task's code."""
    members, ctx = family(transform, **kind), toy_context(LENGTHS)
    made = build.stages(members, 0.6)
    assert all(len(stage.chosen[-1]) for stage in made) and made[-1].sae.d_sae < sum(m.d_sae for m in members)
    trained = {i: replace(made[i].sae, W_dec=made[i].sae.W_dec + 0.1, b_dec=torch.ones(6)) for i in (0, 2)}
    dictionaries = sums.layers(members, made, trained)
    alone = [*members, *(stage.sae for stage in made), *trained.values()]
    assert [layer.sae for layer in dictionaries] == alone
    for sae, found in zip(alone, sums.measure(members, dictionaries, ctx), strict=True):
        tokens, _ = core.measure(sae, ctx)
        for column, expected in ((found.sse, tokens.error), (found.active, tokens.active)):
            per_document = np.bincount(tokens.document, weights=expected, minlength=len(LENGTHS))
            np.testing.assert_allclose(column, per_document, rtol=1e-5)


def test_the_order_in_which_a_family_is_given_changes_nothing() -> None:
    found = [values(run(saes, toy_context(LENGTHS))) for saes in (family(), family()[::-1])]
    first, second = ({k: v for k, v in one.items() if v is not None} for one in found)
    assert first["latents"] == second["latents"] and first["mse_before"] != pytest.approx(first["mse_nearest"])


def test_a_cosine_of_exactly_theta_is_not_below_it() -> None:
    members = [plain([[1.0, 0.0]], [0, 0], "a"), plain([[2.0, 0.0], [0.0, 1.0]], [0, 0], "b")]
    assert [list(c) for c in build.stages(members, 1.0)[-1].chosen] == [[0], [1]]
    assert [list(c) for c in build.stages(members, 0.0)[-1].chosen] == [[0], []]


def test_what_the_dictionary_has_already_is_left_out() -> None:
    sae = family()[1]
    twice = run([sae, sae], toy_context(LENGTHS), threshold=0.99)
    found = values(twice)
    assert found["latents"] == sae.d_sae and found["relative_mse_before"] == pytest.approx(1)
    (same,) = twice.saes.values()
    assert torch.equal(same.W_dec, sae.W_dec) and torch.equal(same.b_dec, sae.b_dec)


def test_a_latent_is_compared_with_all_stages_before_and_not_with_its_own_member() -> None:
    e1, e2, between = [1.0, 0.0], [0.0, 1.0], [0.8, 0.6]
    members = [plain([e1], [0, 0], "a"), plain([e2, e2], [0, 0], "b"), plain([e2, between, e1], [0, 0], "c")]
    assert [list(c) for c in build.stages(members, 0.7)[-1].chosen] == [[0], [0, 1], []]
    assert [list(c) for c in build.stages(members, 0.9)[-1].chosen] == [[0], [0, 1], [1]]


def test_nearest_is_by_ratio() -> None:
    assert build.nearest([100, 200, 400], 290) == 2  # 1.38 times as many, the other 1.45 times fewer
    assert build.nearest([100, 200, 400], 200) == 1
    assert build.nearest([100, 400], 200) == 0


def test_members_of_one_name_are_told_apart() -> None:
    made = [plain([[1.0, 0.0]], [0, 0], name) for name in ("a", "b", "a")]
    assert shown._labels(made) == ["a (1)", "b", "a (3)"]


# -- what is trained


def infos() -> tuple[SAEInfo, ...]:
    return tuple(info(6, n) for n in (32, 8, 16))


@pytest.mark.parametrize(("retrain", "widths"), [("none", []), ("last", [56]), ("all", [24, 56])])
def test_a_decoder_is_declared_for_every_stage_that_is_retrained(retrain: str, widths: list[int]) -> None:
    def recipe(architecture: str, **settings: Any) -> Any:
        return architecture, settings["d_sae"], settings["tokens"]

    asked = build.trains(infos(), {"retrain": retrain, "tokens": 5}, recipe)
    assert list(asked) == [("decoder", width, 5) for width in widths]


@pytest.mark.parametrize(
    ("parameters", "said"),
    [
        ({"threshold": 1.5}, "frankenstein.threshold is 1.5"),
        ({"ce_tokens": -1}, "frankenstein.ce_tokens is -1"),
        ({"retrain": "lst"}, "frankenstein.retrain is 'lst'.*did you mean 'last'"),
    ],
)
def test_parameters_out_of_range_are_refused(parameters: dict[str, Any], said: str) -> None:
    with pytest.raises(SaebenchError, match=said):
        run(family(), toy_context(LENGTHS), **parameters)


def test_saes_of_different_spaces_are_refused() -> None:
    with pytest.raises(SaebenchError, match=r"frankenstein: .* differ in input transform"):
        run([tied_sae(6, 5), tied_sae(6, 8, input_transform="center")], toy_context(LENGTHS))


# -- a run

MEMBERS = ("atlas:batchtopk-128", "atlas:batchtopk-256")


@pytest.fixture(scope="module")
def registry() -> Registry:
    from saebench_plugins import architectures, atlas, huggingface, native

    made = Registry()
    for plugin in (architectures, atlas, huggingface, native, core, module):
        assert made.register(plugin).problems == []
    return made


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("corpus") / "texts.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in world.documents(160, 5, "train")))
    return path


@pytest.fixture(scope="module")
def done(registry: Registry, corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> UnitResult:
    folder = tmp_path_factory.mktemp("frankenstein")
    parameters = {"frankenstein": {"tokens": 32_768, "ce_tokens": 512}}
    asked = Settings(
        family=MEMBERS,
        tasks=("frankenstein",),
        parameters=parameters,
        out=folder / "out",
        cache_dir=folder / "cache",
        device="cpu",
        corpus=str(corpus),
        limit=40,
    )
    (result,) = execute(registry, make_plan(registry, asked), asked).results
    assert result.status == "ok", result.reason
    return result


def test_a_new_decoder_lowers_the_error_and_the_record_says_how_it_was_trained(done: UnitResult) -> None:
    assert done.record is not None
    metrics = done.record.metrics
    before, after = metrics["mse_before"], metrics["mse_after"]
    assert before.value is not None and after.value is not None and after.value < before.value
    assert set(after.controls) >= {"random"} and metrics["row_cosine"].value != 1
    first = done.record.trained[0]
    assert first.recipe["architecture"] == "decoder" and first.recipe["d_sae"] == metrics["latents"].value
    assert len(first.data["start"]) == 64


def test_saved_saes_stand_beside_the_record_and_can_be_run(
    done: UnitResult, registry: Registry, corpus: Path, tmp_path: Path
) -> None:
    assert done.record is not None and done.folder is not None
    assert read_valid(done.folder, done.record.id) == done.record
    saes = {a.path: a for a in done.record.artifacts if a.kind == "sae"}
    assert set(saes) == {"saes/frankenstein.safetensors", "saes/frankenstein-before.safetensors"}
    after, before = (resolve_sae(registry, str(done.folder / path)).load() for path in sorted(saes, reverse=True))
    assert torch.equal(after.W_enc, before.W_enc) == torch.equal(after.b_enc, before.b_enc) == True  # noqa: E712
    assert not torch.equal(after.W_dec, before.W_dec)
    asked = Settings(
        saes=(str(done.folder / "saes/frankenstein.safetensors"),),
        tasks=("core",),
        out=tmp_path,
        cache=False,
        corpus=str(corpus),
        device="cpu",
        limit=40,
        parameters={"core": {"ce_tokens": 512}},
    )
    (again,) = execute(registry, make_plan(registry, asked), asked).results
    assert again.record is not None and again.status == "ok", again.reason
    for own, name in (("mse", "mse_after"), ("l0", "l0"), ("ce_recovered_mean", "ce_recovered_after")):
        expected = done.record.metrics[name].value
        assert again.record.metrics[own].value == pytest.approx(expected, rel=1e-4)


def test_another_sample_size_or_theta_is_another_record(registry: Registry, tmp_path: Path) -> None:
    def place(**parameters: Any) -> str:
        asked = Settings(family=MEMBERS, tasks=("frankenstein",), parameters={"frankenstein": parameters}, out=tmp_path)
        return make_plan(registry, asked).units[0].place.id

    assert len({place(), place(threshold=0.6), place(tokens=5000), place(retrain="none")}) == 4
