"""What a SAELens folder says of itself: `cfg.json` of every version, and the files beside it. Imports no torch.

Configurations of versions 3 to 5 are flat (`hook_point` or `hook_name`, `activation_fn_str`, a boolean
`normalize_activations`); version 6 keeps the language model's part in `metadata`. Both are read alike.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from saebench_plugins.native_header import Slot, show
from saebench_plugins.saelens_settings import (
    CONFIG,
    KINDS,
    MODEL_NAMES,
    READER,
    SCALER,
    TRAINED_ONLY,
    UNKNOWN,
    WEIGHTS,
    WHITENING,
    Folds,
    centring,
    folded,
    kind_of,
    normalization,
    notes_on,
    transform_of,
)

if TYPE_CHECKING:
    from saebench_meta.sae import SAEInfo

OLD_KEYS = {"hook_point": "hook_name", "hook_point_head_index": "hook_head_index"}


@dataclass(frozen=True)
class Plan:
    """Everything `load` needs, worked out without torch.

    Attributes:
        kind: the architecture as stored: standard, topk, jumprelu, gated, batchtopk or matryoshka_batchtopk.
        files: everything that codes depend on, for the record's id.
    """

    info: SAEInfo
    kind: str
    weights: Path
    slots: Mapping[str, Slot]
    folds: Folds
    files: Mapping[str, Path]


def folder_of(ref: str | Path) -> Path:
    """The folder a path means: itself, or that of the weights file. Raises `BadFileError`."""
    try:
        path = Path(ref).expanduser()
        path = path.parent if path.name == WEIGHTS and not path.is_dir() else path
        if path.is_dir():
            return path
    except (OSError, ValueError, RuntimeError) as e:
        raise READER.bad(Path(ref), "file", f"it cannot be opened ({show(str(e))})") from e
    raise READER.bad(path, "file", f"there is no such folder; a SAELens SAE is a folder with {CONFIG} and {WEIGHTS}")


def beside(folder: Path, overrides: Mapping[str, Any], scaling: float | None) -> tuple[str, ...]:
    """Files besides the two that a folder's configuration calls for, if it has them."""
    path = folder / CONFIG
    mode = normalization(path, {**READER.json_file(path), **overrides})
    if mode == "covariance_whitening":
        return (WHITENING,)
    return (SCALER,) if mode == "expected_average_only_in" and scaling is None else ()


def make_plan(
    folder: Path,
    *,
    overrides: Mapping[str, Any] | None = None,
    scaling: float | None = None,
    name: str | None = None,
    files: Mapping[str, Path] | None = None,
    notes: tuple[str, ...] = (),
) -> Plan:
    """Read a folder's configuration and headers.

    Args:
        overrides: what a release says over the folder's own configuration.
        scaling: norm factor a release gives where the folder has none.
        files: further files that change the codes, for the record's id.

    Raises:
        BadFileError: a file is not what it should be.
        SaebenchError: an architecture or setting this suite does not read, named.
    """
    path, weights = folder / CONFIG, folder / WEIGHTS
    cfg, meta = _read_config(path, overrides or {})
    kind = kind_of(path, cfg, meta)
    slots = READER.tensor_slots(weights)
    d_sae, d_in = _sizes(path, cfg, weights, slots)
    READER.match_shapes(weights, slots, _shapes(kind, slots, d_in, d_sae))
    normalize = normalization(path, cfg)
    own = _own_scaling(folder) if normalize == "expected_average_only_in" else None
    folds = _folds(path, cfg, kind, slots, own or scaling)
    centred, why = centring(folder, path, cfg, meta, d_sae)
    fields = {
        "folded": tuple(folded(kind, folds)),
        "notes": (*notes, *why, *notes_on(path, cfg, meta, normalize, folds)),
        "input_transform": transform_of(path, normalize, centred),
    }
    used = {"config": path, "weights": weights}
    if folds.scaling is not None:
        used |= {"scaling": folder / SCALER} if own else files or {}
    if folds.whitening is not None:
        used["whitening"] = folds.whitening
    info = _info(path, name or folder.resolve().name or "sae", kind, cfg, meta, d_in, d_sae, fields)
    return Plan(info, kind, weights, slots, folds, used)


def _read_config(path: Path, overrides: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The configuration, and the same with version 6's `metadata` over it; what a release says is over both."""
    stored = READER.json_file(path)
    cfg = {OLD_KEYS.get(key, key): value for key, value in stored.items()}
    metadata = cfg.get("metadata") or {}
    if not isinstance(metadata, dict):
        raise READER.bad(path, "metadata", f"it is {show(metadata)}, expected an object")
    return {**cfg, **overrides}, {**cfg, **metadata, **overrides}


def _folds(path: Path, cfg: Mapping[str, Any], kind: str, slots: Mapping[str, Slot], scaling: float | None) -> Folds:
    weights, whitening = path.with_name(WEIGHTS), path.with_name(WHITENING)
    normalize = normalization(path, cfg)
    threshold = READER.scalar(weights, "topk_threshold", slots["topk_threshold"]) if kind in TRAINED_ONLY else None
    if threshold is not None and not math.isfinite(threshold):
        raise READER.bad(weights, "topk_threshold", f"it is {threshold}")
    selects = kind in ("topk", *TRAINED_ONLY)  # elsewhere sae-lens has no such setting
    return Folds(
        subtract_b_dec=READER.flag(path, cfg, "apply_b_dec_to_input", True),
        rescale=selects and READER.flag(path, cfg, "rescale_acts_by_decoder_norm", False),
        finetuned="scaling_factor" in slots and READER.flag(path, cfg, "finetuning_scaling_factor", False),
        scaling=scaling if normalize == "expected_average_only_in" else None,
        whitening=whitening if normalize == "covariance_whitening" and whitening.exists() else None,
        threshold=threshold,
    )


def _sizes(path: Path, cfg: Mapping[str, Any], weights: Path, slots: Mapping[str, Slot]) -> tuple[int, int]:
    """(d_sae, d_in) as the decoder has them; a configuration that says otherwise is refused."""
    if "W_dec" not in slots:
        raise READER.bad(weights, "W_dec", "this tensor is missing")
    shape = slots["W_dec"].shape
    if len(shape) != 2 or not all(shape):
        raise READER.bad(weights, "W_dec.shape", f"it is {show(list(shape))}, expected [d_sae, d_in]")
    for key, found in (("d_sae", shape[0]), ("d_in", shape[1])):
        said = READER.size(path, cfg, key)
        if said not in (None, found):
            raise READER.bad(path, key, f"it is {said:,}, but W_dec has {found:,} in '{weights.name}'")
    return shape[0], shape[1]


def _shapes(kind: str, slots: Mapping[str, Slot], d_in: int, d_sae: int) -> dict[str, tuple[int, ...]]:
    per_latent = {
        "gated": ("b_gate", "b_mag", "r_mag"),
        "jumprelu": ("b_enc", "log_threshold" if "log_threshold" in slots else "threshold"),
    }.get(kind, ("b_enc",))
    shapes: dict[str, tuple[int, ...]] = {"W_enc": (d_in, d_sae), "W_dec": (d_sae, d_in), "b_dec": (d_in,)}
    shapes |= dict.fromkeys(per_latent, (d_sae,))
    if kind in TRAINED_ONLY:
        shapes["topk_threshold"] = (1,) if "topk_threshold" in slots and slots["topk_threshold"].shape == (1,) else ()
    if "scaling_factor" in slots:  # versions 3 to 5 wrote it whether it was used or not
        shapes["scaling_factor"] = (d_sae,)
    return shapes


def _own_scaling(folder: Path) -> float | None:
    path = folder / SCALER
    return READER.positive(path, READER.json_file(path), "scaling_factor") if path.exists() else None


# -- the info


def _info(
    path: Path,
    name: str,
    kind: str,
    cfg: Mapping[str, Any],
    meta: Mapping[str, Any],
    d_in: int,
    d_sae: int,
    fields: Mapping[str, Any],
) -> SAEInfo:
    from pydantic import ValidationError

    from saebench_meta.sae import SAEInfo, Site

    model = READER.text(path, meta, "model_name") or UNKNOWN
    trained = READER.text(path, meta, "training_architecture") or kind
    try:
        return SAEInfo(
            name=name.encode("utf-8", "replace").decode(),
            site=Site(model=MODEL_NAMES.get(model, model), hook=READER.text(path, meta, "hook_name") or UNKNOWN),
            d_in=d_in,
            d_sae=d_sae,
            architecture="relu" if trained == "standard" else trained,
            activation=KINDS[kind],  # type: ignore[arg-type]  # one of the three names
            k=_k(path, kind, cfg, meta),
            prepend_bos=READER.flag(path, meta, "prepend_bos", True),
            context_size=READER.size(path, meta, "context_size"),
            dataset=READER.text(path, meta, "dataset_path"),
            **fields,
        )
    except ValidationError as e:
        first = e.errors(include_url=False, include_context=False)[0]
        raise READER.bad(path, show(".".join(map(str, first["loc"])) or "k")[1:-1], show(first["msg"])[1:-1]) from e


def _k(path: Path, kind: str, cfg: Mapping[str, Any], meta: Mapping[str, Any]) -> int | None:
    """k of the activation; for thresholds the k of training, rounded, where it is known."""
    for source in (cfg, cfg.get("activation_fn_kwargs"), meta.get("training_architecture_details")):
        if isinstance(source, dict) and source.get("k") is not None:
            if kind == "topk":
                return READER.size(path, source, "k")
            if (k := READER.positive(path, source, "k")) is not None:
                return max(1, round(k))
    if kind == "topk":
        raise READER.bad(path, "k", "a topk SAE needs it, and it is neither there nor in activation_fn_kwargs")
    return None
