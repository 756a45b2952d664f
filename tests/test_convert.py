"""`saebench convert`: any SAE as a native file or a SAELens folder, with the same codes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import click
import pytest
import torch
from click.testing import CliRunner, Result

from saebench_meta.cli import convert
from saebench_meta.cli.group import Group
from saebench_meta.plugins import Registry
from saebench_meta.sae import SAE, SAEInfo, Site
from saebench_plugins import native, saelens

D, F = 5, 9


@pytest.fixture(autouse=True)
def registry(monkeypatch: pytest.MonkeyPatch) -> Registry:
    found = Registry()
    found.register(native, "native")
    found.register(saelens, "saelens")
    monkeypatch.setattr("saebench_meta.plugins.registry", lambda: found)
    return found


@pytest.fixture
def sae() -> SAE:
    g = torch.Generator().manual_seed(0)
    info = SAEInfo(
        name="mine",
        site=Site(model="m", hook="blocks.1.hook_resid_pre"),
        d_in=D,
        d_sae=F,
        architecture="topk",
        activation="topk",
        k=3,
        input_transform="norm_rescale",
        context_size=32,
        folded=("decoder norms",),
    )
    W = [torch.randn(s, generator=g) for s in ((D, F), (F,), (F, D), (D,))]
    return SAE(W[0], W[1], W[2], W[3], info)


def call(*arguments: str | Path) -> Result:
    group = click.Group(commands={"convert": convert.command})
    return CliRunner().invoke(group, ["convert", *map(str, arguments)])


def test_there_and_back_gives_the_same_codes(tmp_path: Path, sae: SAE) -> None:
    native.save(sae, tmp_path / "a.safetensors")
    there = call(tmp_path / "a.safetensors", tmp_path / "b", "--format", "saelens")
    assert there.exit_code == 0, there.output
    assert str(tmp_path / "b") in there.output and "folded into its weights: decoder norms" in there.output
    back = call(tmp_path / "b", tmp_path / "c.safetensors", "--format", "native", "--json")
    assert back.exit_code == 0, back.output
    facts = json.loads(back.output)
    assert (facts["path"], facts["format"]) == (str(tmp_path / "c.safetensors"), "native")
    x = torch.randn(20, D, generator=torch.Generator().manual_seed(1))
    for ours in (saelens.load(tmp_path / "b"), native.load(tmp_path / "c.safetensors")):
        assert torch.equal(ours.encode(x), sae.encode(x)) and torch.equal(ours.reconstruct(x), sae.reconstruct(x))
        assert ours.info.identity() == sae.info.identity()


def test_the_users_word_on_the_site_is_written(tmp_path: Path, sae: SAE) -> None:
    native.save(sae, tmp_path / "a.safetensors")
    done = call(tmp_path / "a.safetensors", tmp_path / "b", "--model", "other", "--hook", "blocks.0.hook_mlp_out")
    assert done.exit_code == 0, done.output
    assert str(native.peek(tmp_path / "b").info.site) == "other/blocks.0.hook_mlp_out"


def test_the_users_word_on_the_input_transform_is_written(tmp_path: Path, sae: SAE) -> None:
    native.save(sae, tmp_path / "a.safetensors")
    done = call(tmp_path / "a.safetensors", tmp_path / "b", "--input-transform", "center")
    assert done.exit_code == 0, done.output
    made = native.load(tmp_path / "b")
    assert made.info.input_transform == "center" and "the file said norm_rescale" in made.info.notes[-1]


def test_what_cannot_be_written_is_an_error_of_the_users(tmp_path: Path, sae: SAE) -> None:
    from saebench_meta.errors import SaebenchError

    native.save(sae, tmp_path / "a.safetensors")
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "kept").write_text("x")
    done = call(tmp_path / "a.safetensors", tmp_path / "b", "--format", "saelens")
    assert isinstance(done.exception, SaebenchError) and "not empty" in str(done.exception)
    assert not (tmp_path / "d").exists()
    assert isinstance(call(tmp_path / "absent", tmp_path / "d").exception, SaebenchError)


def test_the_commands_module_imports_nothing_heavy() -> None:
    code = (
        "import sys, saebench_meta.cli.convert\n"
        "assert not {'torch', 'numpy', 'transformer_lens', 'safetensors'} & sys.modules.keys()\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_a_format_that_is_only_read_names_those_that_are_written(tmp_path: Path, sae: SAE) -> None:
    from saebench_meta.errors import SaebenchError, UnknownNameError

    native.save(sae, tmp_path / "a.safetensors")
    done = call(tmp_path / "a.safetensors", tmp_path / "b", "--format", "gemma-scope")
    assert isinstance(done.exception, SaebenchError) and "native, saelens" in str(done.exception)
    assert isinstance(call(tmp_path / "a.safetensors", tmp_path / "b", "--format", "onnx").exception, UnknownNameError)
    assert issubclass(Group, click.Group) and convert.command.name == "convert"
