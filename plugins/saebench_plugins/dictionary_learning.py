"""SAEs of the `dictionary_learning` library: a folder with `ae.pt` and `config.json`.

    AutoEncoder              f = relu(W (x - bias) + b), decoder norms folded as the library's own loader does
    AutoEncoderNew           f = relu(W x + b)
    AutoEncoderTopK          f = topk(relu(W (x - b_dec) + b))
    BatchTopKSAE, MatryoshkaBatchTopKSAE
                             f = relu(W (x - b_dec) + b), kept where f > threshold; -1 means it was never estimated
    JumpReluAutoEncoder      f = relu(x W_enc + b_enc), kept where it exceeds the latent's threshold
    GatedAutoEncoder         h = W (x - decoder_bias);  f = relu(e^r h + b_mag), kept where h + b_gate > 0

The last is run as the JumpReLU SAE it is equal to: with m = e^r h + b_mag the gate opens where m > b_mag - e^r b_gate
(Rajamanoharan et al. 2024, "Improving Dictionary Learning with Gated Sparse Autoencoders", section 3.2).

Checkpoints on the way (`checkpoints/ae_1000.pt`) take the config of the folder above. A *backup* `ae.pt` holds step,
optimizer and the SAE of x / norm_factor besides; the factor is folded in. Nothing is unpickled.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from saebench_meta.hookspecs import SAEHeader, SAELoader, hookimpl
from saebench_plugins.checkpoints import find_pair, is_pair, load_torch, peek_torch
from saebench_plugins.dictionary_learning_config import CONFIG, READER, SCHEME, WEIGHTS, Plan, make_plan
from saebench_plugins.folding import fold_decoder_norms, left_product
from saebench_plugins.torch_file import TorchFile, load_tensor

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from saebench_meta.sae import SAE

saebench_api = 1


@hookimpl
def saebench_loaders() -> Mapping[str, SAELoader]:
    return {
        SCHEME: SAELoader(
            load, peek=peek, claims=claims, version=1, summary="ae.pt and config.json, as the library saves"
        )
    }


def load(ref: str | Path, *, device: str | torch.device = "cpu", dtype: torch.dtype | None = None) -> SAE:
    """Open a folder with `ae.pt` and `config.json`, or a `.pt` file with the config beside it or one folder up.

    Args:
        dtype: what the weights are cast to; float32 unless said otherwise.

    Raises:
        BadFileError: whatever is wrong with the files, naming file and field.
    """
    return load_torch(_files(ref), READER, make_plan, _canonical, device=device, dtype=dtype)


def peek(ref: str | Path) -> SAEHeader:
    """The SAE's info from config and declared shapes, without torch. Raises `BadFileError` as `load` does."""
    return peek_torch(_files(ref), READER, make_plan)


def claims(path: Path) -> bool:
    """Whether a path is a folder with `ae.pt` and a config, or such a file of weights."""
    try:
        if path.is_dir():
            return is_pair(path, WEIGHTS, CONFIG)
        if path.suffix != ".pt" or not path.name.startswith("ae") or not path.is_file():
            return False
        return any((folder / CONFIG).is_file() for folder in path.resolve().parents[:2])
    except (OSError, ValueError, RuntimeError):
        return False


def _files(ref: str | Path) -> tuple[Path, Path]:
    return find_pair(ref, WEIGHTS, CONFIG, READER, levels=2)


# -- the weights


def _canonical(file: TorchFile, plan: Plan, dtype: torch.dtype) -> dict[str, Tensor]:
    """The canonical tensors; matrices in `dtype`, vectors in float64 until everything is folded."""
    import torch

    layout, entries = plan.layout, plan.entries

    def vector(name: str) -> Tensor:
        return load_tensor(file, name, entries[name], torch.float64)

    W_enc = load_tensor(file, layout.W_enc, entries[layout.W_enc], dtype, transpose=layout.linear)
    W_dec = load_tensor(file, layout.W_dec, entries[layout.W_dec], dtype, transpose=layout.linear)
    b_enc, b_dec = vector(layout.b_enc) * plan.norm_factor, vector(layout.b_dec) * plan.norm_factor
    tensors = {"W_enc": W_enc, "b_enc": b_enc, "W_dec": W_dec, "b_dec": b_dec}
    if layout.architecture == "gated":
        scale = vector("r_mag").exp()
        tensors["threshold"] = b_enc - scale * vector("gate_bias") * plan.norm_factor
        W_enc.mul_(scale.to(dtype))
    elif layout.other:
        tensors["threshold"] = vector("threshold") * plan.norm_factor
    elif layout.activation == "jumprelu":
        tensors["threshold"] = torch.full_like(b_enc, (plan.threshold or 0.0) * plan.norm_factor)
    if layout.b_dec == "bias":
        fold_decoder_norms(W_enc, b_enc, W_dec)
    if layout.subtract:
        b_enc -= left_product(b_dec, W_enc)
    return tensors
