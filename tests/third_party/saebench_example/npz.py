"""SAEs kept as NumPy archives: arrays `W_enc`, `b_enc`, `W_dec`, `b_dec`, and the strings `model` and `hook`."""

from pathlib import Path

from saebench_meta import SAELoader, hookimpl

saebench_api = 1

ARRAYS = ("W_enc", "b_enc", "W_dec", "b_dec")


def load(ref, *, device, dtype):
    """The ReLU SAE in the archive at the path `ref`."""
    import numpy as np
    import torch

    from saebench_meta import SAE, SaebenchError, SAEInfo, Site

    try:
        with np.load(ref, allow_pickle=False) as archive:
            data = {name: archive[name] for name in (*ARRAYS, "model", "hook")}
        d_in, d_sae = data["W_enc"].shape
        info = SAEInfo(
            name=Path(ref).stem,
            site=Site(model=str(data["model"]), hook=str(data["hook"])),
            d_in=d_in,
            d_sae=d_sae,
        )
        return SAE(**{name: torch.from_numpy(data[name]).to(device, dtype) for name in ARRAYS}, info=info)
    except (OSError, KeyError, TypeError, ValueError) as e:
        raise SaebenchError(f"npz loader: '{ref}' is no SAE archive: {e}. It must hold {', '.join(ARRAYS)}.") from e


@hookimpl
def saebench_loaders():
    return {"npz": SAELoader(load, claims=lambda path: path.suffix == ".npz", version=1, summary="NumPy archives")}
