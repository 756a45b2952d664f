"""`saebench stitch`: which latents of two SAEs end up in the file, and that a run takes it."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result

from saebench_meta.cli import saebench, stitch
from saebench_meta.geometry import similarity
from saebench_meta.plugins import registry
from saebench_meta.record import read_record
from saebench_meta.resolve import ResolvedSAE, resolve_sae
from saebench_meta.sae import SAE, SAEInfo, Site
from saebench_meta.stitching import components, schedule
from saebench_plugins import native, saelens

SMALL, LARGE = "atlas:batchtopk-128", "atlas:batchtopk-256"
SITE = Site(model="m", hook="blocks.1.hook_resid_pre")


def call(*arguments: str | Path) -> Result:
    return CliRunner().invoke(saebench, ["stitch", *map(str, arguments)])


def stitched(*arguments: str | Path) -> dict[str, Any]:
    done = call(*arguments, "--json")
    assert done.exit_code == 0, done.output
    facts: dict[str, Any] = json.loads(done.stdout)
    return facts


def refused(*arguments: str | Path) -> str:
    done = call(*arguments)
    assert done.exit_code == 2 and done.stdout == "" and "Traceback" not in done.stderr, done.output
    return done.stderr


def along_axes(axes: list[int], name: str, activation: str = "relu", **fields: Any) -> SAE:
    """Latents that write along axes of R⁶, so that two are alike exactly where their axes are."""
    known: dict[str, Any] = {"name": name, "site": SITE, "d_in": 6, "d_sae": len(axes), "activation": activation}
    W = torch.eye(6)[axes]
    b_dec = torch.full((6,), float(len(axes)))
    return SAE(W.T.contiguous(), torch.zeros(len(axes)), W, b_dec, SAEInfo(**(known | fields)))


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    """A has axes 0, 1, 2; B has 1 twice, 3, 4: A's 1 splits, A's 0 and 2 are left over, B's 3 and 4 are novel."""
    a = native.save(along_axes([0, 1, 2], "a"), tmp_path / "a.safetensors")
    return a, native.save(along_axes([1, 3, 1, 4], "b", "topk", k=2), tmp_path / "b.safetensors")


def axes(path: str | Path) -> list[int]:
    return native.load(path).W_dec.argmax(1).tolist()


# -- which latents


@pytest.mark.parametrize(
    ("flags", "step", "left"),
    [
        ([], 5, [0, 2, 1, 3, 1, 4]),
        (["--novel-only"], 2, [0, 1, 2, 3, 4]),
        (["--until", "0"], 0, [0, 1, 2]),
        (["--until", "1"], 1, [0, 1, 2, 3]),
        (["--until", "3"], 3, [0, 2, 3, 4]),
        (["--until", "4"], 4, [0, 2, 1, 3, 4]),
        (["--until", "6"], 6, [2, 1, 3, 1, 4]),
        (["--until", "7"], 7, [1, 3, 1, 4]),
        (["--theta", "1"], 4, [0, 1, 2, 1, 3, 1, 4]),
    ],
)
def test_the_latents_after_each_step(
    tmp_path: Path, pair: tuple[Path, Path], flags: list[str], step: int, left: list[int]
) -> None:
    facts = stitched(*pair, "-o", tmp_path / "out", *flags)
    assert (facts["step"], facts["steps"]) == (step, 7) and axes(facts["path"]) == left
    assert facts["from_a"] + facts["from_b"] == len(left) and facts["alpha"] == facts["from_a"] / len(left)
    made = native.load(facts["path"])
    expected = 3 * facts["alpha"] + 4 * (1 - facts["alpha"])
    torch.testing.assert_close(made.b_dec, torch.full((6,), expected))
    assert made.info.notes[-1] == f"step {step} of 7 from a to b" and made.info.architecture == "stitched"


def test_the_first_step_is_a_and_the_last_is_b(tmp_path: Path, pair: tuple[Path, Path]) -> None:
    x = torch.randn(30, 6, generator=torch.Generator().manual_seed(0))
    for path, step in zip(pair, (0, 7), strict=True):
        ours, theirs = (
            native.load(stitched(*pair, "-o", tmp_path / "out", "--until", str(step))["path"]),
            native.load(path),
        )
        assert ours.info.identity() == theirs.info.identity() and ours.info.k == theirs.info.k
        assert torch.equal(ours.encode(x), theirs.encode(x)) and torch.equal(ours.reconstruct(x), theirs.reconstruct(x))


def test_a_random_order_is_the_seeds_and_the_same_moves(tmp_path: Path) -> None:
    def chosen(seed: int) -> tuple[list[str], torch.Tensor]:
        facts = stitched(SMALL, LARGE, "-o", tmp_path / "o", "--until", 80, "--order", "random", "--seed", seed)
        assert facts["from_a"] == 128 and facts["from_b"] == 80
        return list(native.peek(facts["path"]).info.notes), native.load(facts["path"]).W_dec

    (notes, one), (_, again), (_, other) = chosen(1), chosen(1), chosen(2)
    assert torch.equal(one, again) and not torch.equal(one, other)
    assert notes[:2] == ["128 of 128 latents of atlas-batchtopk-128", "80 of 256 latents of atlas-batchtopk-256"]


def test_the_default_is_the_path_up_to_where_leftovers_leave(tmp_path: Path) -> None:
    facts = stitched(SMALL, LARGE, "-o", tmp_path / "o")
    old, new = (resolve_sae(registry(), ref).load() for ref in (SMALL, LARGE))
    lone = similarity(old.W_dec, new.W_dec).max_a <= 0.7
    assert facts["from_a"] == facts["leftover"] == int(lone.sum()) and facts["from_b"] == new.d_sae
    assert torch.equal(native.load(facts["path"]).W_dec, torch.cat([old.W_dec[torch.from_numpy(lone)], new.W_dec]))


def test_the_step_is_one_of_the_paths(tmp_path: Path) -> None:
    old, new = (resolve_sae(registry(), ref).load() for ref in (SMALL, LARGE))
    found = similarity(new.W_dec, old.W_dec, 0.5)
    path = schedule(components(found.edges, old.d_sae, new.d_sae), found.max_a)
    inside = int(np.setdiff1d(np.arange(path.steps), path.whole())[0])
    done = call(SMALL, LARGE, "-o", tmp_path / "o", "--theta", "0.5", "--until", inside)
    assert done.exit_code == 0 and f"--until {inside - 1} and --until" in done.output
    kept, entered = path.after(inside)
    assert torch.equal(native.load(tmp_path / "o").W_dec, torch.cat([old.W_dec[kept], new.W_dec[entered]]))


# -- what is told, and what can be done with the file


def test_what_was_written_is_told_with_the_next_command(tmp_path: Path, pair: tuple[Path, Path]) -> None:
    done = call(*pair, "-o", tmp_path / "my out", "--until", "4")
    assert done.exit_code == 0, done.output
    assert f"2 latents of {pair[0]} and 3 of {pair[1]}; b_dec is 0.400 times that of the first and 0.600" in done.output
    assert "step 4 of 7; at theta 0.7 2 latents of B are novel, and 2 of A have no counterpart" in done.output
    assert "in the middle of a swap; --until 2 and --until 5 are at its ends" in done.output
    assert f"saebench run --sae '{tmp_path / 'my out' / 'sae.safetensors'}' --tasks core" in done.output
    assert "in the middle" not in call(*pair, "-o", tmp_path / "o", "--until", "5").output


def test_a_run_takes_a_stitched_sae(tmp_path: Path) -> None:
    folder, new = tmp_path / "o", resolve_sae(registry(), LARGE).load()
    as_topk = replace(new, info=new.info.model_copy(update={"activation": "topk", "k": 8}), threshold=None)
    native.save(as_topk, tmp_path / "topk")
    facts = stitched(SMALL, tmp_path / "topk", "-o", folder, "--novel-only")
    assert facts["from_a"] == 128 and native.load(folder).encoder is not None
    arguments = ["run", "--sae", str(folder), "--sae", SMALL, "--tasks", "core", "--tokens", "2000"]
    done = CliRunner().invoke(saebench, [*arguments, "-o", str(tmp_path / "records")])
    assert done.exit_code == 0, done.output
    records = [read_record(path) for path in (tmp_path / "records").rglob("record.json")]
    l0 = {record.subject.saes[0].info.architecture: record.metrics["l0"].value for record in records}
    ours, theirs = l0.pop("stitched"), l0.popitem()[1]
    assert ours is not None and theirs is not None and theirs < ours <= theirs + 8  # all of A, and at most k of B


def test_plain_saes_can_be_written_for_sae_lens_and_parts_cannot(tmp_path: Path, pair: tuple[Path, Path]) -> None:
    facts = stitched(SMALL, LARGE, "-o", tmp_path / "lens", "--format", "saelens")
    assert saelens.load(tmp_path / "lens").d_sae == facts["from_a"] + facts["from_b"]
    assert "encoder of its own" in refused(*pair, "-o", tmp_path / "parts", "--format", "saelens")
    assert not (tmp_path / "parts").exists()


# -- theta and what is refused


def test_theta_is_the_formats_where_both_have_one(pair: tuple[Path, Path]) -> None:
    found = registry()
    plain = resolve_sae(found, str(pair[0]))

    def says(theta: float) -> ResolvedSAE:
        return replace(plain, loader=replace(plain.loader, parameters={"novel_latents.threshold": theta}))

    assert stitch.default_theta(found, says(0.4), says(0.4)) == 0.4
    for a, b in ((plain, plain), (says(0.4), plain), (plain, says(0.4)), (says(0.4), says(0.5))):
        assert stitch.default_theta(found, a, b) == 0.7


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--novel-only", "--until", "3"], "not both"),
        (["--until", "8"], "the path has 7 steps"),
        (["--until", "-1"], "'--until'"),
        (["--theta", "1.5"], "'--theta'"),
        (["--format", "onnx"], "onnx"),
        (["--format", "gemma-scope"], "only read, not written"),
    ],
)
def test_flags_that_do_not_fit_are_refused(
    tmp_path: Path, pair: tuple[Path, Path], flags: list[str], said: str
) -> None:
    assert said in refused(*pair, "-o", tmp_path / "o", *flags)
    assert not (tmp_path / "o").exists()


@pytest.mark.parametrize(
    ("fields", "flags", "said"),
    [
        ({"site": Site(model="m", hook="blocks.2.hook_resid_pre")}, [], "reads blocks.2.hook_resid_pre of m"),
        ({"site": Site(model="m", hook="blocks.2.hook_resid_pre")}, ["--hook", SITE.hook], "blocks.2.hook_resid_pre"),
        ({"site": Site(model="n", hook=SITE.hook)}, [], "of n: their latents do not fit together"),
        ({"site": Site(model="m", hook=SITE.hook, revision="r1")}, [], "of m@r1"),
        ({"input_transform": "center"}, [], "input transform center"),
    ],
)
def test_saes_that_read_different_things_are_refused(
    tmp_path: Path, pair: tuple[Path, Path], fields: dict[str, Any], flags: list[str], said: str
) -> None:
    other = native.save(along_axes([0, 1], "other", **fields), tmp_path / "other.safetensors")
    assert said in refused(pair[0], other, "-o", tmp_path / "o", *flags)


def test_the_model_can_be_named_where_the_files_name_none(tmp_path: Path) -> None:
    unknown = Site(model="unknown", hook="unknown")
    a = native.save(along_axes([0, 1], "a", site=unknown), tmp_path / "a.safetensors")
    b = native.save(along_axes([1, 2], "b"), tmp_path / "b.safetensors")
    assert "reads unknown of unknown" in refused(a, b, "-o", tmp_path / "o")
    facts = stitched(a, b, "-o", tmp_path / "o", "--model", "m", "--hook", SITE.hook)
    assert native.peek(facts["path"]).info.site == SITE


def test_the_commands_module_imports_nothing_heavy() -> None:
    code = (
        "import sys, saebench_meta.cli.stitch\n"
        "assert not {'torch', 'numpy', 'scipy', 'transformer_lens', 'safetensors'} & sys.modules.keys()\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
