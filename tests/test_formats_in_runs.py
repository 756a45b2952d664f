"""What loaders leave open is settled by the run: a threshold never estimated, a site the file does not name."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import saebench_meta
from saebench_meta.calibration import uncalibrated_note
from saebench_meta.errors import SaebenchError
from saebench_plugins import native

K = 4


def written(folder: Path, **changes: Any) -> str:
    """A shipped SAE in a native file, with other info."""
    sae = saebench_meta.load_sae("atlas:batchtopk-128")
    sae = replace(sae, info=sae.info.model_copy(update={"name": "changed", **changes}))
    if "notes" in changes:
        sae = replace(sae, threshold=torch.zeros(sae.d_sae))
    return str(native.save(sae, folder / "changed.safetensors"))


def test_a_threshold_that_was_never_estimated_is_set_on_the_sample_and_said_so(tmp_path: Path) -> None:
    ref = written(tmp_path, k=K, notes=(uncalibrated_note(K, "the file holds no threshold"),))
    result = saebench_meta.run(ref, tasks="core", out=tmp_path / "out", tokens=2000, cache=False)
    assert result.failed == {}
    l0 = result.metric("core", "l0")
    assert l0.value == pytest.approx(K, rel=0.01)
    assert l0.controls["random"].value == pytest.approx(K, rel=0.02)
    assert result.metric("core", "explained_variance").value > 0.7


@pytest.mark.parametrize(
    ("site", "option"),
    [
        ({"model": "unknown", "hook": "blocks.1.hook_resid_post"}, "--model"),
        ({"model": "atlas", "hook": "unknown (pass --hook)"}, "--hook"),
    ],
)
def test_a_site_the_file_does_not_name_is_asked_for(tmp_path: Path, site: dict[str, str], option: str) -> None:
    ref = written(tmp_path, site=saebench_meta.Site(**site))
    with pytest.raises(SaebenchError, match=f"give {option}"):
        saebench_meta.run(ref, tasks="core", out=tmp_path / "out")
    known = {"model": "atlas", "hook": "blocks.1.hook_resid_post"}
    assert saebench_meta.run(ref, tasks="core", out=tmp_path / "out", limit=5, cache=False, **known).failed == {}
