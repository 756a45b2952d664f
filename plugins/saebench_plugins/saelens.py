"""SAEs as sae-lens writes them: a folder with `cfg.json` and `sae_weights.safetensors`, versions 3 to 6.

    saelens:./folder                              any such folder, a trainer's checkpoint included
    saelens:gpt2-small-res-jb/blocks.8.hook_resid_pre    a release of the registry that comes with sae-lens
    saelens:owner/name/folder@revision            a hub repository

Reading a folder needs no sae-lens. Codes and reconstructions are those of sae-lens after its own folding
(`fold_activation_norm_scaling_factor`, `fold_W_dec_norm`, `fold_activation_whitening`), with two differences: factors
that lie beside a checkpoint are used and not ignored, and a batchtopk checkpoint is run with its threshold.

A gated SAE is the JumpReLU SAE it is equal to (Rajamanoharan et al. 2024, "Improving Dictionary Learning with Gated
Sparse Autoencoders", section 3.2): with h = z @ W_enc and m = e^r h + b_mag, the gate h + b_gate > 0 is
m > b_mag − e^r b_gate.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from saebench_meta.hookspecs import SAEHeader, SAELoader, hookimpl
from saebench_plugins.saelens_config import Plan, beside, folder_of, make_plan
from saebench_plugins.saelens_releases import download, download_if_there, find_release
from saebench_plugins.saelens_settings import CONFIG, READER, TRAINED_ONLY, WEIGHTS

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from saebench_meta.sae import SAE

saebench_api = 1

MIN_NORM = 1e-8
"""Least decoder norm that is divided by, as in sae-lens' `get_W_dec_norm`."""


@hookimpl
def saebench_loaders() -> Mapping[str, SAELoader]:
    return {
        "saelens": SAELoader(
            load,
            peek=peek,
            claims=claims,
            save=save,
            version=1,
            summary="folder, release or hub repository of sae-lens",
        )
    }


def save(sae: SAE, path: Path) -> Path:
    """A folder that sae-lens opens with the same codes; see `saelens_export.to_saelens`."""
    from saebench_plugins.saelens_export import to_saelens

    return to_saelens(sae, path)


def load(ref: str | Path, *, device: str | torch.device = "cpu", dtype: torch.dtype | None = None) -> SAE:
    """Open an SAE.

    Args:
        ref: folder, `release/sae_id[@revision]`, or `owner/name/folder[@revision]`.
        dtype: what the weights are cast to once everything is folded in float32; float32 unless said otherwise.

    Raises:
        BadFileError: whatever is wrong with a file, naming file and field.
        SaebenchError: an architecture this suite does not read, or an SAE that cannot be had.
    """
    import torch

    from saebench_meta.sae import SAE

    plan = _plan(ref)
    work = torch.float64 if dtype == torch.float64 else torch.float32
    tensors = _read(plan, work)
    _to_jumprelu(plan, tensors)
    _fold(plan, tensors)
    cast = {name: tensor.to(dtype or work) for name, tensor in tensors.items()}
    READER.check_finite(plan.weights, cast, " after folding")
    placed: dict[str, Any] = {name: tensor.to(device) for name, tensor in cast.items()}
    return SAE(info=plan.info, **placed)


def peek(ref: str | Path) -> SAEHeader:
    """The SAE's info from configuration and headers, without torch. Raises as `load` does, values apart."""
    plan = _plan(ref)
    return SAEHeader(plan.info, plan.files)


def claims(path: Path) -> bool:
    """Whether a path is a folder with both files, or the weights file in one."""
    try:
        folder = path if path.is_dir() else path.parent
        return (path.is_dir() or path.name == WEIGHTS) and all((folder / n).is_file() for n in (CONFIG, WEIGHTS))
    except (OSError, ValueError):
        return False


def _plan(ref: str | Path) -> Plan:
    if isinstance(ref, Path) or _is_local(ref):
        return make_plan(folder_of(ref))
    found = find_release(ref)
    folder, commit = download(found, (CONFIG, WEIGHTS))
    for name in beside(folder, found.overrides, found.scaling):
        download_if_there(replace(found, revision=commit or found.revision), name)
    return make_plan(
        folder,
        overrides=found.overrides,
        scaling=found.scaling,
        name=Path(found.folder).name,
        files={"registry": found.registry} if found.registry else {},
        notes=(f"from hub repository {found.repo}" + (f" at {commit}" if commit else ""),),
    )


def _is_local(ref: str) -> bool:
    """Whether a reference is meant as a path: it is there, or is written like one."""
    try:
        return ref.startswith((".", "/", "~")) or Path(ref).exists()
    except (OSError, ValueError):
        return True  # no file system takes it, which the opening will say


# -- reading and folding; every step works in place, so that a wide SAE is held once


def _read(plan: Plan, dtype: torch.dtype) -> dict[str, Tensor]:
    slots = {name: slot for name, slot in plan.slots.items() if name != "topk_threshold"}
    with READER.open(plan.weights) as file:
        tensors = {name: READER.tensor(file, plan.weights, name, slot, dtype) for name, slot in slots.items()}
    READER.check_finite(plan.weights, tensors)
    factor = tensors.pop("scaling_factor", None)
    if factor is not None and plan.folds.finetuned:
        tensors["W_dec"].mul_(factor[:, None])
    elif factor is not None and not bool((factor - 1).abs().max() <= 1e-5):
        raise READER.bad(
            plan.weights, "scaling_factor", "it is not 1 everywhere, but finetuning_scaling_factor is not true"
        )
    return tensors


def _to_jumprelu(plan: Plan, t: dict[str, Tensor]) -> None:
    """Thresholds of the architectures that keep them in another form."""
    if plan.kind == "gated":
        r = t.pop("r_mag").exp()
        t["b_enc"] = t.pop("b_mag")
        t["threshold"] = (t["b_enc"] - r * t.pop("b_gate")).clamp_min(0)  # below 0 the ReLU decides
        t["W_enc"].mul_(r)
    elif plan.kind in TRAINED_ONLY:
        t["threshold"] = t["b_enc"].new_full(t["b_enc"].shape, plan.folds.threshold or 0.0)
    elif "log_threshold" in t:
        t["threshold"] = t.pop("log_threshold").exp()


def _fold(plan: Plan, t: dict[str, Tensor]) -> None:
    """Norm factor, decoder norms, whitening and `b_dec`, in the order in which sae-lens folds them."""
    if plan.folds.scaling is not None:
        _fold_scaling(plan, t, plan.folds.scaling)
    if plan.folds.rescale:
        _fold_decoder_norms(t)
    mean = _fold_whitening(plan, t) if plan.folds.whitening is not None else None
    shift = t["b_dec"] if plan.folds.subtract_b_dec else mean
    if shift is not None:
        t["b_enc"].sub_(shift @ t["W_enc"])


def _fold_scaling(plan: Plan, t: dict[str, Tensor], s: float) -> None:
    """W_enc·s, W_dec/s, b_dec/s. The threshold of a rescaled batchtopk is in units of the decoder's norm."""
    t["W_enc"].mul_(s)
    t["W_dec"].div_(s)
    t["b_dec"].div_(s)
    if plan.kind in TRAINED_ONLY and plan.folds.rescale:
        t["threshold"].div_(s)


def _fold_decoder_norms(t: dict[str, Tensor]) -> None:
    """f·n, w/n with n = ‖w‖. Codes of such SAEs, and a batchtopk's threshold, are f·n already."""
    n = t["W_dec"].norm(dim=1).clamp_min(MIN_NORM)
    t["W_dec"].div_(n[:, None])
    t["W_enc"].mul_(n)
    t["b_enc"].mul_(n)


def _fold_whitening(plan: Plan, t: dict[str, Tensor]) -> Tensor:
    """z = (x − mean) @ M on the way in, x_hat = z_hat @ M⁻¹ + mean on the way out; returns the mean."""
    import torch

    assert plan.folds.whitening is not None
    path, d = plan.folds.whitening, plan.info.d_in
    slots = READER.tensor_slots(path)
    READER.match_shapes(path, slots, {"mean": (d,), "matrix": (d, d), "inverse_matrix": (d, d)})
    with READER.open(path) as file:
        w = {name: READER.tensor(file, path, name, slot, torch.float64) for name, slot in slots.items()}
    READER.check_finite(path, w)
    for rows in torch.split(t["W_dec"], 4096):
        rows.copy_(rows.double() @ w["inverse_matrix"])
    for columns in torch.split(t["W_enc"], 4096, dim=1):
        columns.copy_(w["matrix"] @ columns.double())
    t["b_dec"].copy_(t["b_dec"].double() @ w["inverse_matrix"] + w["mean"])
    return w["mean"].to(t["b_dec"].dtype)
