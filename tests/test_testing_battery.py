"""Built-in loaders and architectures, and their plugins, keep every rule that is published for others' own."""

from __future__ import annotations

from pathlib import Path

import format_samples
import pytest
import torch

from saebench_meta import seeds
from saebench_meta.testing import Check, Samples, battery

PLUGIN = "saebench-meta"
EXEMPT = {"loader 'sparsify': a missing file*": "a path that is no folder is taken for a file of one, which is named"}


def samples(folder: Path) -> Samples:
    """A small SAE of every format that is only read, and two that are shipped; `native` writes its own."""
    schemes = set(format_samples.FORMATS) - {"native"}
    written = {scheme: (str(drawn(folder / scheme, scheme)),) for scheme in schemes}
    return Samples(saes={**written, "atlas": ("batchtopk-128", "relu-128")}, exempt=EXEMPT)


def drawn(folder: Path, scheme: str) -> Path:
    """A sound SAE with weights of which no two are equal: among equal ones, which are the k largest is chance."""
    ref = format_samples.write(folder, scheme)
    weights = {
        name: torch.rand(tensor.shape, generator=seeds.generator(0, scheme, name)) - 0.25
        for name, tensor in format_samples.tensors(scheme).items()
    }
    (folder / format_samples.FORMATS[scheme].weights).write_bytes(format_samples.packed(scheme, weights))
    return ref


@pytest.mark.parametrize("check", battery(PLUGIN, kinds=("plugin", "architecture")), ids=str)
def test_a_plugin_or_architecture_keeps(check: Check) -> None:
    check()


@pytest.mark.parametrize("check", battery(PLUGIN, samples, kinds=("loader",)), ids=str)
def test_a_loader_keeps(check: Check) -> None:
    check()
