"""Every rule for loaders is broken by a loader made for it, and by no other; a sound one keeps them all."""

from __future__ import annotations

import itertools
import pickle
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from test_plugins import install

from saebench_meta.hookspecs import SAEHeader, SAELoader
from saebench_meta.plugins import registry
from saebench_meta.sae import SAE, SAEInfo, Site
from saebench_meta.testing import FaultError, attempt_all, check_loader
from saebench_meta.testing.checks import Outcome
from saebench_meta.testing.loaders import CHECKS, loader_checks, small_sae
from saebench_plugins import native

SOUND = SAELoader(native.load, peek=native.peek, claims=native.claims, save=native.save, summary="sound")


def changed(change: Callable[[SAE], SAE]) -> SAELoader:
    """A loader whose SAEs are not those of the file."""
    return replace(SOUND, load=lambda ref, **options: change(native.load(ref, **options)), peek=None)


def with_info(**changes: Any) -> Callable[[SAE], SAE]:
    return lambda sae: replace(sae, info=sae.info.model_copy(update=changes))


def drifting() -> Callable[[SAE], SAE]:
    """Another SAE at each load."""
    count = itertools.count()
    return lambda sae: replace(sae, b_dec=sae.b_dec + next(count))


def of_the_batch(sae: SAE) -> SAE:
    """Codes that depend on the other tokens of a batch; its hash cannot be taken, so it has a `peek`."""

    def encoder(z: torch.Tensor) -> torch.Tensor:
        pre = z @ sae.W_enc
        return torch.relu(pre - pre.mean(0))

    return replace(sae, encoder=encoder)


def from_pickle(ref: str, *, device: str, dtype: torch.dtype) -> SAE:
    """What no loader may do, with every error made a clear one."""
    from saebench_meta.errors import SaebenchError

    try:
        weights = pickle.loads(Path(ref).read_bytes())
        info = SAEInfo(name="p", site=Site(model="m", hook="blocks.0.hook_resid_post"), d_in=6, d_sae=10)
        return SAE(**{name: tensor.to(dtype) for name, tensor in weights.items()}, info=info)
    except Exception as e:
        raise SaebenchError(f"'{ref}' is no pickle of an SAE") from e


def to_pickle(sae: SAE, path: Path) -> Path:
    path.write_bytes(pickle.dumps({name: getattr(sae, name) for name in ("W_enc", "b_enc", "W_dec", "b_dec")}))
    return path


def halved(sae: SAE, path: Path) -> Path:
    return native.save(replace(sae, b_dec=sae.b_dec / 2), path)


def fails_without_a_file(ref: str, **options: Any) -> SAE:
    if not Path(ref).exists():
        raise FileNotFoundError(ref)
    return native.load(ref, **options)


BROKEN: dict[str, SAELoader] = {
    "says what it is": replace(SOUND, summary=""),
    "info is whole": changed(with_info(architecture="")),
    "weights have the dtype asked for": replace(SOUND, load=lambda ref, **_: native.load(ref)),
    "the same SAE every time": changed(drifting()),
    "codes and reconstructions agree": replace(
        SOUND, load=lambda ref, **options: of_the_batch(native.load(ref, **options))
    ),
    "peek agrees with load": replace(
        SOUND, peek=lambda ref: SAEHeader(native.peek(ref).info.model_copy(update={"name": "other"}), {})
    ),
    "recognises its own files only": replace(SOUND, claims=lambda path: True),
    "a missing file is one clear error": replace(SOUND, load=fails_without_a_file, peek=None),
    "a damaged file is one clear error": SAELoader(from_pickle, save=to_pickle, summary="pickles"),
    "saved and loaded it is the same": replace(SOUND, save=halved),
}


def outcomes(loader: SAELoader) -> dict[str, Outcome]:
    checks = loader_checks("mine", loader)
    return {check.title: outcome for check, outcome in zip(checks, attempt_all(checks), strict=True)}


def test_every_rule_has_a_loader_that_breaks_it() -> None:
    assert set(BROKEN) | {"peek imports no torch"} == set(CHECKS)  # that one needs a loader that is installed


def test_a_sound_loader_keeps_every_rule() -> None:
    found = outcomes(SOUND)
    assert {title: o for title, o in found.items() if o.status != "ok"}.keys() == {"peek imports no torch"}
    check_loader(SOUND)


@pytest.mark.parametrize("rule", BROKEN)
def test_a_broken_loader_breaks_its_rule(rule: str) -> None:
    found = outcomes(BROKEN[rule])
    assert found[rule].status == "fault" and found[rule].reason
    with pytest.raises(FaultError, match="loader 'loader'"):
        check_loader(BROKEN[rule])


def test_a_pickle_is_named_as_what_is_wrong() -> None:
    found = outcomes(BROKEN["a damaged file is one clear error"])["a damaged file is one clear error"]
    assert "pickle" in found.reason


def test_a_loader_without_samples_is_not_tried() -> None:
    found = outcomes(SAELoader(native.load, summary="x"))
    assert found["codes and reconstructions agree"].status == "skip"
    assert "saebench_samples" in found["codes and reconstructions agree"].reason


def test_an_sae_may_be_given_by_reference(tmp_path: Path) -> None:
    ref = str(native.save(small_sae(), tmp_path / "x.safetensors"))
    check_loader(replace(SOUND, save=None), [ref])


# -- what only an installed plugin can break

HEAVY = """
from saebench_meta import SAELoader, hookimpl
from saebench_plugins import native
saebench_api = 1

def peek(ref):
    import torch
    return native.peek(ref)

@hookimpl
def saebench_loaders():
    return {"heavy": SAELoader(native.load, peek=peek, save=native.save, summary="heavy")}
"""


@pytest.fixture
def heavy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[SAELoader]:
    install(tmp_path, "heavy", HEAVY)
    monkeypatch.syspath_prepend(str(tmp_path))
    registry.cache_clear()
    yield registry().loaders["heavy"]
    sys.modules.pop("heavy", None)
    registry.cache_clear()


def test_a_peek_that_imports_torch_is_found(heavy: SAELoader) -> None:
    checks = {check.title: check for check in loader_checks("heavy", heavy)}
    with pytest.raises(FaultError, match="imports torch"):
        checks["peek imports no torch"]()
