"""What a training goes on from after an interruption: one safetensors file, replaced as a whole.

The file's header says which recipe and which data it belongs to; its tensors are `Trainer.tensors()`. It is held to be
hostile: nothing is unpickled, and names, shapes and dtypes are compared with the trainer's before a tensor is read.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from saebench_meta.errors import BadFileError
from saebench_meta.store import sync_folder

if TYPE_CHECKING:
    from torch import Tensor

    from saebench_meta.training.trainer import Trainer

FILE_NAME = "checkpoint.safetensors"
KEY = "saebench"
"""Where in the file's metadata the header stands."""
MAX_HEADER = 1 << 20
ADAM = ("exp_avg", "exp_avg_sq", "step")

Count = Annotated[int, Field(ge=0, le=2**53)]


class Interval(BaseModel):
    """Sums over the steps since the last line of the metrics file."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    steps: Count = 0
    sums: dict[str, float] = Field(default_factory=dict)


class Header(BaseModel):
    """What a checkpoint holds besides tensors.

    Attributes:
        recipe: digest of the recipe.
        feed: hash of the feed's identity.
        step: steps made.
        positions: of the feed in every process, empty where it needs none.
        interval: of the metrics.
        seconds: taken so far.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    format: Literal[1] = 1
    recipe: str
    feed: str
    step: Count
    positions: tuple[tuple[Count, ...], ...] = ()
    interval: Interval = Interval()
    seconds: float = Field(default=0.0, ge=0)


def write(folder: Path, header: Header, tensors: Mapping[str, Tensor]) -> None:
    """Replace the folder's checkpoint; the one before stays until this one is whole and on the disk.

    Raises:
        OSError: the disk refuses.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    temporary = folder / f".{FILE_NAME}.{uuid.uuid4().hex}.tmp"
    try:
        save_file({k: t.contiguous() for k, t in tensors.items()}, temporary, {KEY: header.model_dump_json()})
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(folder / FILE_NAME)
    except SafetensorError as e:
        raise OSError(str(e)) from e
    finally:
        temporary.unlink(missing_ok=True)
    sync_folder(folder)


def remove_leftovers(folder: Path) -> None:
    """Remove what a process killed while writing left. Call while the folder is locked."""
    for path in folder.glob(f".{FILE_NAME}.*.tmp"):
        path.unlink(missing_ok=True)


def read_header(folder: Path) -> Header | None:
    """The header of the folder's checkpoint; None where there is none. Call while the folder is locked.

    Raises:
        BadFileError: the file is no checkpoint.
    """
    from safetensors import SafetensorError, safe_open

    path = folder / FILE_NAME
    if not path.exists():
        return None
    if not path.is_file():
        raise _bad(path, "not a regular file")
    try:
        with safe_open(path, framework="pt") as file:
            text = (file.metadata() or {}).get(KEY, "")
        if len(text) > MAX_HEADER:
            raise _bad(path, f"a header of {len(text):,} characters")
        return Header.model_validate_json(text)
    except (OSError, RuntimeError, SafetensorError) as e:  # torch maps the file, and says so in its own way
        raise _bad(path, str(e)) from e
    except ValidationError as e:
        first = e.errors()[0]
        raise _bad(path, f"header: {'.'.join(map(str, first['loc']))}: {first['msg']}") from e


def restore(folder: Path, header: Header, trainer: Trainer) -> None:
    """Set a new trainer to where the folder's checkpoint was written.

    Raises:
        BadFileError: the file's tensors are not this trainer's.
    """
    from safetensors import SafetensorError, safe_open

    path = folder / FILE_NAME
    wanted = _wanted(trainer, header.step)
    try:
        with safe_open(path, framework="pt") as file:
            if names := set(file.keys()) ^ set(wanted):
                raise _bad(path, f"tensor '{min(names)}' is {'missing' if min(names) in wanted else 'unknown'}")
            for name, like in wanted.items():
                found = file.get_slice(name)
                if tuple(found.get_shape()) != tuple(like.shape):
                    raise _bad(path, f"'{name}' has shape {tuple(found.get_shape())}, expected {tuple(like.shape)}")
            tensors = {name: file.get_tensor(name) for name in wanted}
    except (OSError, RuntimeError, SafetensorError) as e:  # torch maps the file, and says so in its own way
        raise _bad(path, str(e)) from e
    for name, like in wanted.items():
        if tensors[name].dtype != like.dtype:
            raise _bad(path, f"'{name}' is {tensors[name].dtype}, expected {like.dtype}")
        if not bool(tensors[name].isfinite().all()):
            raise _bad(path, f"'{name}' holds NaN or infinite values")
    trainer.restore(tensors, header.step)


def _wanted(trainer: Trainer, step: int) -> dict[str, Tensor]:
    """Names of the tensors of a checkpoint, each with a tensor of its shape and dtype."""
    import torch

    wanted = trainer.tensors()
    if step:  # Adam's moments come with the first step
        for name, tensor in trainer.sae.parameters.items():
            like = tensor.detach()
            wanted |= {f"adam.{name}.{m}": torch.zeros(()) if m == "step" else like for m in ADAM}
    return wanted


def _bad(path: Path, what: str) -> BadFileError:
    return BadFileError(f"checkpoint '{path}' cannot be used: {what}. Train anew without it, or remove it.")
