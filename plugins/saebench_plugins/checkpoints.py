"""Steps of opening a checkpoint that several formats share: finding its files, reading it, placing its tensors."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from saebench_meta.hookspecs import SAEHeader
from saebench_plugins.native_header import show
from saebench_plugins.torch_file import TorchFile, open_torch_file
from saebench_plugins.untrusted import Reader

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from saebench_meta.sae import SAE, SAEInfo


class Plan(Protocol):
    """What a format knows of its files before a matrix is read."""

    @property
    def info(self) -> SAEInfo:
        """All that is known of the SAE besides its weights."""


P = TypeVar("P", bound=Plan)
MakePlan = Callable[[TorchFile, Path], P]
"""Checks an open file of weights against its configuration; raises `BadFileError`."""


def find_pair(ref: str | Path, weights: str, config: str, reader: Reader, *, levels: int = 1) -> tuple[Path, Path]:
    """File of weights and configuration of a reference: the folder of both, or the weights themselves.

    Args:
        levels: how many folders are looked through for the configuration, that of the weights first.

    Raises:
        BadFileError: no file system takes the reference. Whether the files are there is left to whoever opens them.
    """
    try:
        path = Path(ref).expanduser()
        file = path / weights if path.is_dir() else path
        places = [folder / config for folder in file.parents[:levels]]
        return file, next((place for place in places if place.is_file()), file.parent / config)
    except (OSError, ValueError, RuntimeError) as e:
        raise reader.bad(Path(ref), "file", f"it cannot be opened ({show(str(e))})") from e


def is_pair(path: Path, weights: str, config: str) -> bool:
    """Whether a path is a folder with both files, or the weights in one; false where no file system takes it."""
    try:
        folder = path if path.is_dir() else path.parent
        return path in (folder, folder / weights) and (folder / weights).is_file() and (folder / config).is_file()
    except (OSError, ValueError):
        return False


def load_torch(
    pair: tuple[Path, Path],
    reader: Reader,
    make_plan: MakePlan[P],
    canonical: Callable[[TorchFile, P, torch.dtype], dict[str, Tensor]],
    *,
    device: str | torch.device,
    dtype: torch.dtype | None,
) -> SAE:
    """The SAE of a `.pt` file and its configuration.

    Args:
        canonical: reads and folds the tensors: matrices in the dtype it is given, vectors in any.
        dtype: what the weights are cast to; float32 unless said otherwise.

    Raises:
        BadFileError: whatever is wrong with the files, naming file and field.
    """
    import torch

    weights, config = pair
    with open_torch_file(weights, reader) as file:
        plan = make_plan(file, config)
        tensors = canonical(file, plan, dtype or torch.float32)
    return place(plan.info, tensors, reader, weights, device=device, dtype=dtype)


def peek_torch(pair: tuple[Path, Path], reader: Reader, make_plan: MakePlan[P]) -> SAEHeader:
    """What `load_torch` will make of a `.pt` file and its configuration, without torch. Raises `BadFileError`."""
    weights, config = pair
    with open_torch_file(weights, reader) as file:
        return SAEHeader(make_plan(file, config).info, {"weights": weights, "config": config})


def place(
    info: SAEInfo,
    tensors: dict[str, Tensor],
    reader: Reader,
    weights: Path,
    *,
    device: str | torch.device,
    dtype: torch.dtype | None,
) -> SAE:
    """The SAE of folded tensors, named as in `SAE`, which are taken out of `tensors` one by one while they are cast.

    Args:
        weights: the file they are from, for the message.
        dtype: what they are cast to; float32 unless said otherwise.

    Raises:
        BadFileError: a value is NaN or infinite in that dtype.
    """
    import torch

    from saebench_meta.sae import SAE

    target = dtype or torch.float32
    placed: dict[str, Any] = {name: tensors.pop(name).to(device=device, dtype=target) for name in list(tensors)}
    reader.check_finite(weights, placed, " after folding")
    return SAE(info=info, **placed)
