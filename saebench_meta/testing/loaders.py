"""Checks of SAE loaders: what they give is a sound SAE, the same every time, and a bad file is one clear error."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import SkipTest

from saebench_meta.errors import SaebenchError
from saebench_meta.hookspecs import SAELoader
from saebench_meta.sae import SAE, SAEInfo, Site
from saebench_meta.testing.checks import Check, FaultError, Scratch, checks_of, clear_error, described, expect
from saebench_meta.testing.damage import damaged_copies, files_of
from saebench_meta.testing.watch import nothing_is_run

if TYPE_CHECKING:
    import torch
    from jaxtyping import Float
    from torch import Tensor

TOKENS = 16
TOLERANCE = 1e-5
"""Codes and reconstructions may differ by this much, relative to the largest, where only the order of sums differs."""
NO_SAMPLES = "it gives no samples: name some in `saebench_samples`, or let the loader `save`"


@dataclass(frozen=True)
class LoaderTrial:
    """A loader with what it is tried on.

    Attributes:
        scheme: what it is called.
        given: gives references of small sound SAEs, without the scheme.
    """

    scheme: str
    loader: SAELoader
    given: Callable[[], Sequence[str]]
    scratch: Scratch = field(default_factory=Scratch)

    @cached_property
    def refs(self) -> tuple[str, ...]:
        """References to try; where none are given, that of a small SAE which the loader saves."""
        refs = tuple(self.given())
        if not refs and self.loader.save is not None:
            refs = (str(self.loader.save(small_sae(), self.scratch.folder("sample") / "small")),)
        if not refs:
            raise SkipTest(NO_SAMPLES)
        return refs

    @cached_property
    def saes(self) -> dict[str, SAE]:
        """By reference, loaded once."""
        return {ref: self.load(ref) for ref in self.refs}

    def load(self, ref: str, dtype: torch.dtype | None = None) -> SAE:
        import torch

        sae = self.loader.load(ref, device="cpu", dtype=dtype or torch.float32)
        expect(isinstance(sae, SAE), f"'{ref}': `load` gives a {type(sae).__name__}, not an SAE")
        return sae

    def paths(self) -> list[str]:
        """References whose files can be copied."""
        found = [ref for ref in self.refs if files_of(ref)]
        if not found:
            raise SkipTest("none of its samples is a small file or folder")
        return found


def small_sae() -> SAE:
    """A ReLU SAE of 6 dimensions and 10 latents, the same every time."""
    import torch

    from saebench_meta import seeds

    W = torch.nn.functional.normalize(torch.randn(10, 6, generator=seeds.generator(0, "small SAE")), dim=1)
    site = Site(model="no-such-model", hook="blocks.1.hook_resid_post")
    info = SAEInfo(name="small", site=site, d_in=6, d_sae=10, prepend_bos=False, context_size=16)
    return SAE(W.T.contiguous(), torch.full((10,), -0.25), W, torch.full((6,), 0.125), info)


def loader_checks(
    scheme: str, loader: SAELoader | Callable[..., SAE], refs: Sequence[str] | Callable[[], Sequence[str]] = ()
) -> list[Check]:
    """Every check of a loader.

    Args:
        refs: references of small sound SAEs, without the scheme, or what gives them when they are needed.
    """
    whole = loader if isinstance(loader, SAELoader) else SAELoader(loader)
    given = refs if callable(refs) else lambda: refs
    trial = LoaderTrial(scheme, whole, given)
    return checks_of(f"loader '{scheme}'", CHECKS, trial)


# -- what it says


def _says_what_it_is(trial: LoaderTrial) -> None:
    described(trial.loader.summary, trial.loader.version)
    for key in trial.loader.parameters:
        expect(key.count(".") == 1, f"its parameter '{key}' is not of the form TASK.KEY")


def _info(trial: LoaderTrial) -> None:
    for ref, sae in trial.saes.items():
        same = SAEInfo.model_validate_json(sae.info.model_dump_json())
        expect(same == sae.info, f"'{ref}': its info does not survive being written as JSON")
        expect(bool(sae.info.architecture), f"'{ref}': `info.architecture` is empty")
        if sae.encoder is not None and trial.loader.peek is None:
            sae.content_hash()  # says itself what is missing


def _peek(trial: LoaderTrial) -> None:
    if trial.loader.peek is None:
        raise SkipTest("it has no `peek`: its SAEs are loaded and hashed to tell whether a record is there already")
    for ref, sae in trial.saes.items():
        header = trial.loader.peek(ref)
        told, found = header.info.model_dump(), sae.info.model_dump()
        unlike = [name for name in found if found[name] != told[name]]
        expect(not unlike, f"'{ref}': `peek` and `load` disagree about {', '.join(unlike)}")
        gone = [name for name, path in header.files.items() if not Path(path).is_file()]
        expect(not gone, f"'{ref}': `peek` names files that are not there: {', '.join(gone)}")


PROBE = """
import sys
from saebench_meta.plugins import registry
registry().loaders[sys.argv[1]].peek(sys.argv[2])
sys.exit(3 if "torch" in sys.modules else 0)
"""


def _peeks_without_torch(trial: LoaderTrial) -> None:
    from saebench_meta.plugins import registry

    if trial.loader.peek is None:
        raise SkipTest("it has no `peek`")
    if trial.scheme not in registry().loaders:
        raise SkipTest("it is not installed, so that no other process finds it")
    done = in_new_process(PROBE, trial.scheme, trial.refs[0])
    expect(done.returncode != 3, "`peek` imports torch: read what it needs without it")
    expect(done.returncode == 0, f"`peek` fails in a new process: {done.stderr.strip()[-300:]}")


def in_new_process(script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """A script run by a new interpreter that finds the same packages."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    command = [sys.executable, "-c", script, *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300, check=False)


# -- what it gives


def _dtypes(trial: LoaderTrial) -> None:
    import torch

    for ref in trial.refs:
        for dtype in (torch.float32, torch.float64):
            for name, tensor in weights(trial.load(ref, dtype)).items():
                expect(tensor.dtype == dtype, f"'{ref}': {name} is {tensor.dtype} where {dtype} was asked for")
                expect(
                    str(tensor.device) == "cpu", f"'{ref}': {name} is on {tensor.device}, not on the device asked for"
                )
                expect(not tensor.requires_grad, f"'{ref}': {name} requires a gradient")
                expect(bool(tensor.isfinite().all()), f"'{ref}': {name} holds NaN or infinite values")


def _twice(trial: LoaderTrial) -> None:
    for ref, sae in trial.saes.items():
        again = trial.load(ref)
        expect(again.info == sae.info, f"'{ref}': loaded twice, its info differs")
        expect(same_weights(sae, again), f"'{ref}': loaded twice, its weights differ")


def _codes(trial: LoaderTrial) -> None:
    import torch

    for ref, sae in trial.saes.items():
        x = activations(sae)
        f, (_, token_stats) = sae.encode(x), sae.transform(x)
        expect(tuple(f.shape) == (TOKENS, sae.d_sae), f"'{ref}': codes have shape {tuple(f.shape)}")
        expect(bool(f.isfinite().all()) and bool((f >= 0).all()), f"'{ref}': codes are negative or not finite")
        expect(close(sae.encode_sparse(x).dense(), f), f"'{ref}': `encode_sparse` and `encode` disagree")
        expect(close(sae.decode(f, token_stats), sae.reconstruct(x)), f"'{ref}': `decode` and `reconstruct` disagree")
        alone = torch.cat([sae.encode(row[None]) for row in x])
        expect(close(alone, f), f"'{ref}': a token's codes depend on the tokens beside it")


# -- what it does with what is no SAE


def _missing(trial: LoaderTrial) -> None:
    for ref in trial.refs:
        gone = f"{ref}-no-such-file"
        for what, function in _openers(trial).items():
            said = clear_error(partial(function, gone), gone.rpartition("/")[2])
            expect(said is not None, f"`{what}` of '{gone}', which is not there, raises nothing")


def _damaged(trial: LoaderTrial) -> None:
    folder = trial.scratch.folder("damaged")
    for ref in trial.paths():
        refused = 0
        for copy in damaged_copies(ref, folder):
            try:
                refused += _refuses(trial, copy.ref, trial.saes[ref])
            except FaultError as e:
                raise FaultError(f"'{copy.file.name}' ({copy.how}): {e}") from e
            expect(not copy.trap.exists(), f"'{copy.file.name}' was unpickled: a weights file could run any code")
        expect(refused > 0, f"'{ref}' loads whatever is done to its files")


def _refuses(trial: LoaderTrial, ref: str, sound: SAE) -> bool:
    """Whether a damaged SAE is refused with one clear error; else it must be the sound one, whose file was not read."""
    found: list[SAE] = []
    with nothing_is_run():
        said = clear_error(lambda: found.append(trial.load(ref)), Path(ref).name)
    expect(said is not None or same_weights(found[0], sound), "it loads, with other weights")
    return said is not None


def _claims(trial: LoaderTrial) -> None:
    claims = trial.loader.claims
    if claims is None:
        raise SkipTest("it has no `claims`, so that its SAEs are always named with their scheme")
    for ref in trial.paths():
        expect(claims(Path(ref)) is True, f"`claims` does not recognise '{ref}', which it loads")
    folder = trial.scratch.folder("claims")
    (folder / "empty").touch()
    (folder / "notes.txt").write_text("no SAE\n")
    for other in (folder / "empty", folder / "notes.txt", folder, folder / "missing"):
        expect(claims(other) is False, f"`claims` must say False of {_kind(other)}")


def _kind(path: Path) -> str:
    return {"empty": "an empty file", "notes.txt": "a text", "missing": "a path that is not there"}.get(
        path.name, "a folder without an SAE"
    )


def _saves(trial: LoaderTrial) -> None:
    save = trial.loader.save
    if save is None:
        raise SkipTest("it has no `save`")
    folder, written = trial.scratch.folder("saved"), 0
    for number, sae in enumerate([small_sae(), *trial.saes.values()]):
        try:
            path = save(sae, folder / f"sae-{number}")
        except SaebenchError:  # a format need not hold every kind of SAE
            continue
        written, back = written + 1, trial.load(str(path))
        x = activations(sae)
        expect(close(back.encode(x), sae.encode(x)), f"'{sae.info.name}' has other codes when it is saved and loaded")
        expect(
            close(back.reconstruct(x), sae.reconstruct(x)), f"'{sae.info.name}' rebuilds other activations when saved"
        )
        expect(back.info.site == sae.info.site, f"'{sae.info.name}' is at another site when it is saved and loaded")
    expect(written > 0, "`save` refuses every SAE, a plain ReLU one too")


def _openers(trial: LoaderTrial) -> dict[str, Callable[[str], object]]:
    peek = trial.loader.peek
    return {"load": trial.load} if peek is None else {"load": trial.load, "peek": peek}


# -- comparing


def weights(sae: SAE) -> dict[str, Tensor]:
    """Tensors of an SAE by name, those that its encoder names included."""
    from saebench_meta.sae import OpenEncoder

    names = ("W_enc", "b_enc", "W_dec", "b_dec", "threshold")
    found = {name: getattr(sae, name) for name in names if getattr(sae, name) is not None}
    own = sae.encoder.tensors() if isinstance(sae.encoder, OpenEncoder) else {}
    return found | {f"encoder.{name}": tensor for name, tensor in own.items() if tensor.is_floating_point()}


def same_weights(a: SAE, b: SAE) -> bool:
    """Whether two SAEs hold equal tensors."""
    import torch

    first, second = weights(a), weights(b)
    return first.keys() == second.keys() and all(torch.equal(t, second[name]) for name, t in first.items())


def activations(sae: SAE, tokens: int = TOKENS) -> Float[Tensor, "tokens d_in"]:
    """Activations to try an SAE on, off centre, the same every time."""
    import torch

    from saebench_meta import seeds

    return torch.randn(tokens, sae.d_in, generator=seeds.generator(0, "trial activations")) * 2 + 0.5


def close(a: Any, b: Any, tolerance: float = TOLERANCE) -> bool:
    """Whether two tensors of one shape agree, relative to the largest value."""
    if a.shape != b.shape:
        return False
    return bool(((a - b).abs() <= tolerance * (1 + b.abs().max())).all()) if b.numel() else True


CHECKS: Mapping[str, Callable[[LoaderTrial], None]] = {
    "says what it is": _says_what_it_is,
    "info is whole": _info,
    "weights have the dtype asked for": _dtypes,
    "the same SAE every time": _twice,
    "codes and reconstructions agree": _codes,
    "peek agrees with load": _peek,
    "peek imports no torch": _peeks_without_torch,
    "recognises its own files only": _claims,
    "a missing file is one clear error": _missing,
    "a damaged file is one clear error": _damaged,
    "saved and loaded it is the same": _saves,
}
"""By title, in the order in which they run."""
