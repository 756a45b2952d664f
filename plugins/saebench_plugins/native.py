"""The suite's own SAE format: one safetensors file whose header carries everything else.

The header's `__metadata__` holds `format: saebench-native`, `version: "1"` and `info`, the JSON of `SAEInfo`. Tensors:
`W_enc (d_in, d_sae)`, `b_enc (d_sae,)`, `W_dec (d_sae, d_in)`, `b_dec (d_in,)` and, for jumprelu, `threshold (d_sae,)`,
in F32, F16, BF16 or F64. A reference is such a file, or a folder that holds it as `sae.safetensors`.

A file is hostile until proven otherwise: every size it declares is held against the bytes that are there before
anything is reserved, and nothing is ever unpickled. Files are written here and not by the safetensors library, whose
order of metadata changes from one writing to the next, and with it the file's hash.

A stitched SAE whose encoder is made of parts has version `"2"`: `parts`, a JSON list of `activation`, `d_sae` (latents
that are encoded), `n` (of them kept) and `k`, stands in the metadata too. Instead of `W_enc` and `b_enc` every part has
`part0.W_enc (d_in, d_sae)`, `part0.b_enc (d_sae,)` and `part0.threshold (d_sae,)` for jumprelu or, for topk,
`part0.kept (n,)` in I64, which latents those are. Its latents are those of the parts, one after the other.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from saebench_meta.errors import SaebenchError
from saebench_meta.hookspecs import SAEHeader, SAELoader, hookimpl
from saebench_plugins.native_header import (
    DTYPES,
    FILE_NAME,
    FORMAT,
    INDEX_DTYPES,
    MAX_HEADER,
    REWRITE,
    STITCHED_VERSION,
    VERSION,
    Header,
    PartLayout,
    bad,
    is_index,
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

    file, path = open_file(ref)
    with file:
        header = read_header(file, path)
        target = dtype or torch.float32
        tensors = {
            name: READER.tensor(file, path, name, slot, torch.int64 if is_index(name) else target)
            for name, slot in header.slots.items()
        }
    if problem := _value_problem(tensors, header.parts):
        raise bad(path, *problem)
    return _sae(header, {name: tensor.to(device) for name, tensor in tensors.items()})


def _sae(header: Header, tensors: Mapping[str, Tensor]) -> SAE:
    from saebench_meta.sae import SAE
    from saebench_meta.stitching.stitched import Part, Stitched

    weights: dict[str, Any] = {name: tensor for name, tensor in tensors.items() if "." not in name}
    if not header.parts:
        return SAE(info=header.info, **weights)
    parts = []
    for i, layout in enumerate(header.parts):
        own: dict[str, Any] = {name: tensors[f"part{i}.{name}"] for name in layout.shapes(header.info.d_in)}
        parts.append(Part(activation=layout.activation, k=layout.k, **own))
    encoder = Stitched(tuple(parts))
    W_enc, b_enc = encoder.columns()
    return SAE(W_enc, b_enc, info=header.info, encoder=encoder, **weights)


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


def _value_problem(tensors: Mapping[str, Tensor], parts: Sequence[PartLayout]) -> tuple[str, str] | None:
    """The field and what is wrong with its values, or None.

    NaN, infinity, a latent that writes nothing, one that is kept twice or is not there.
    """
    for name, tensor in tensors.items():
        if wrong := not_finite(tensor):
            dtype = str(tensor.dtype).removeprefix("torch.")
            return name, f"{wrong:,} of {tensor.numel():,} values are NaN or infinite as {dtype}"
    zero = (~tensors["W_dec"].any(1)).nonzero().squeeze(1).tolist()
    if zero:
        return "W_dec", f"{len(zero):,} decoder rows are all zero (the first is latent {zero[0]})"
    for i, layout in enumerate(parts):
        kept = tensors.get(f"part{i}.kept")
        if kept is not None and (int(kept.min()) < 0 or int(kept.max()) >= layout.d_sae):
            return f"part{i}.kept", f"it names latents that are not among the {layout.d_sae:,} of its part"
        if kept is not None and bool((kept.sort().values.diff() == 0).any()):
            return f"part{i}.kept", "a latent stands twice"
    return None


def _to_bytes(sae: SAE, path: Path) -> bytes:
    """The whole file. Raises `SaebenchError` for what `load` would refuse."""
    import torch

    tensors, parts = _writable(sae)
    codes = {getattr(torch, name): code for code, (name, _) in (DTYPES | INDEX_DTYPES).items()}
    version = {"version": STITCHED_VERSION, "parts": parts} if parts else {"version": VERSION}
    metadata = {"format": FORMAT, **version, "info": sae.info.model_dump_json()}
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


def _writable(sae: SAE) -> tuple[dict[str, Tensor], str]:
    """The SAE's tensors on the CPU, if this format can hold them, and the JSON of its parts, if it has any."""
    name = sae.info.name
    weights, described = _weights(sae)
    layouts = [PartLayout.model_validate(part) for part in json.loads(described or "[]")]
    tensors = {field: weights[field].detach().cpu().contiguous() for field in tensor_shapes(sae.info, layouts)}
    for field, tensor in tensors.items():
        known = INDEX_DTYPES if is_index(field) else DTYPES
        if str(tensor.dtype).removeprefix("torch.") not in {dtype for dtype, _ in known.values()}:
            raise SaebenchError(f"native: '{name}': {field} is {tensor.dtype}; cast the SAE to float32 first")
    if problem := _value_problem(tensors, layouts):
        raise SaebenchError(f"native: '{name}' is not written: {problem[0]}: {problem[1]}")
    return tensors, described


def _weights(sae: SAE) -> tuple[dict[str, Any], str]:
    """Tensors by name, and the JSON of a stitched SAE's parts, else an empty text."""
    from saebench_meta.stitching.stitched import ForeignPart, Stitched

    encoder = sae.encoder
    if encoder is None:
        return vars(sae), ""
    if isinstance(encoder, Stitched) and not any(isinstance(part, ForeignPart) for part in encoder.parts):
        return {**vars(sae), **encoder.tensors()}, encoder.describe()
    raise SaebenchError(
        f"native: '{sae.info.name}' has an encoder of its own ({sae.info.architecture}), or a part that has one, which "
        "this format cannot hold. Keep such SAEs in the format they came in."
    )
