"""The suite's own SAE format: one safetensors file whose header carries everything else.

The header's `__metadata__` holds `format: saebench-native`, `version: "1"` and `info`, the JSON of `SAEInfo`. Tensors:
`W_enc (d_in, d_sae)`, `b_enc (d_sae,)`, `W_dec (d_sae, d_in)`, `b_dec (d_in,)` and, for jumprelu, `threshold (d_sae,)`,
in F32, F16, BF16 or F64. A reference is such a file, or a folder that holds it as `sae.safetensors`.

A file is hostile until proven otherwise: every size it declares is held against the bytes that are there before
anything is reserved, and nothing is ever unpickled. Files are written here and not by the safetensors library, whose
order of metadata changes from one writing to the next, and with it the file's hash.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from saebench_meta.errors import SaebenchError
from saebench_meta.hookspecs import SAEHeader, SAELoader, hookimpl
from saebench_plugins.native_header import (
    DTYPES,
    FILE_NAME,
    FORMAT,
    MAX_HEADER,
    REWRITE,
    VERSION,
    bad,
    open_file,
    read_header,
    tensor_shapes,
)
from saebench_plugins.untrusted import Reader, not_finite

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from saebench_meta.sae import SAE

saebench_api = 1

READER = Reader("native", REWRITE)


@hookimpl
def saebench_loaders() -> Mapping[str, SAELoader]:
    return {
        "native": SAELoader(
            load,
            peek=peek,
            claims=claims,
            save=save,
            version=1,
            summary="this suite's own safetensors file, written by `save`",
        )
    }


def load(ref: str | Path, *, device: str | torch.device = "cpu", dtype: torch.dtype | None = None) -> SAE:
    """Open an SAE.

    Args:
        ref: a native file, or a folder with `sae.safetensors`.
        dtype: what the weights are cast to; float32 unless said otherwise.

    Raises:
        BadFileError: whatever is wrong with the file, naming file and field.
    """
    import torch

    from saebench_meta.sae import SAE

    file, path = open_file(ref)
    with file:
        header = read_header(file, path)
        target = dtype or torch.float32
        tensors = {name: READER.tensor(file, path, name, slot, target) for name, slot in header.slots.items()}
    if problem := _value_problem(tensors):
        raise bad(path, *problem)
    placed: dict[str, Any] = {name: tensor.to(device) for name, tensor in tensors.items()}
    return SAE(info=header.info, **placed)


def peek(ref: str | Path) -> SAEHeader:
    """The SAE's info from the header alone, without torch. Raises `BadFileError` as `load` does, values apart."""
    file, path = open_file(ref)
    with file:
        return SAEHeader(read_header(file, path).info, {"weights": path})


def claims(path: Path) -> bool:
    """Whether a file, or a folder's `sae.safetensors`, names this format near its start."""
    try:
        file_path = path / FILE_NAME if path.is_dir() else path
        if not file_path.is_file():  # a pipe would wait for ever
            return False
        with file_path.open("rb") as file:
            return FORMAT.encode() in file.read(4096)
    except (OSError, ValueError):
        return False


def save(sae: SAE, path: str | Path) -> Path:
    """Write an SAE in the dtype it has, as a whole or not at all. The same SAE always gives the same bytes.

    Args:
        path: the file if it ends in `.safetensors`, else the folder for `sae.safetensors`.

    Returns:
        The file written.

    Raises:
        SaebenchError: the SAE has a foreign encoder, or `load` would refuse what it holds; or the disk refuses.
    """
    from saebench_meta.store import write_atomic

    target = Path(path).expanduser()
    if target.is_dir() or target.suffix != ".safetensors":
        target = target / FILE_NAME
    data = _to_bytes(sae, target)
    try:
        write_atomic(target, data)
    except OSError as e:
        raise SaebenchError(f"native: '{target}' cannot be written: {e.strerror or e}. Give another path.") from e
    return target


def _value_problem(tensors: Mapping[str, Tensor]) -> tuple[str, str] | None:
    """The field and what is wrong with its values, or None: NaN, infinity, or a latent that writes nothing."""
    for name, tensor in tensors.items():
        if wrong := not_finite(tensor):
            dtype = str(tensor.dtype).removeprefix("torch.")
            return name, f"{wrong:,} of {tensor.numel():,} values are NaN or infinite as {dtype}"
    zero = (~tensors["W_dec"].any(1)).nonzero().squeeze(1).tolist()
    if zero:
        return "W_dec", f"{len(zero):,} decoder rows are all zero (the first is latent {zero[0]})"
    return None


def _to_bytes(sae: SAE, path: Path) -> bytes:
    """The whole file. Raises `SaebenchError` for what `load` would refuse."""
    import torch

    tensors = _writable(sae)
    codes = {getattr(torch, name): code for code, (name, _) in DTYPES.items()}
    metadata = {"format": FORMAT, "version": VERSION, "info": sae.info.model_dump_json()}
    header: dict[str, Any] = {"__metadata__": metadata}
    blocks: list[bytes] = []
    begin = 0
    # Widest values first, as the safetensors library does, so that every tensor starts at a multiple of its width.
    for name, t in sorted(tensors.items(), key=lambda item: -item[1].element_size()):
        blocks.append(t.reshape(-1).view(torch.uint8).numpy().tobytes())
        end = begin + len(blocks[-1])
        header[name] = {"dtype": codes[t.dtype], "shape": list(t.shape), "data_offsets": [begin, end]}
        begin = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    if len(text) > MAX_HEADER:
        raise SaebenchError(f"native: '{path}': the notes make a header of {len(text):,} bytes; shorten them")
    return b"".join([len(text).to_bytes(8, "little"), text, *blocks])


def _writable(sae: SAE) -> dict[str, Tensor]:
    """The SAE's tensors on the CPU, if this format can hold them."""
    name = sae.info.name
    if sae.encoder is not None:
        raise SaebenchError(
            f"native: '{name}' has an encoder of its own ({sae.info.architecture}), which this format cannot hold. "
            "Keep it in the format it came in."
        )
    tensors = {field: getattr(sae, field).detach().cpu().contiguous() for field in tensor_shapes(sae.info)}
    for field, tensor in tensors.items():
        if str(tensor.dtype).removeprefix("torch.") not in {known for known, _ in DTYPES.values()}:
            raise SaebenchError(f"native: '{name}': {field} is {tensor.dtype}; cast the SAE to float32 first")
    if problem := _value_problem(tensors):
        raise SaebenchError(f"native: '{name}' is not written: {problem[0]}: {problem[1]}")
    return tensors
