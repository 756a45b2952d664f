"""SAEs kept as NumPy archives: arrays `W_enc`, `b_enc`, `W_dec`, `b_dec`, and the strings `model` and `hook`."""

from pathlib import Path

from saebench_meta import SAELoader, hookimpl

saebench_api = 1

ARRAYS = ("W_enc", "b_enc", "W_dec", "b_dec")


def load(ref, *, device, dtype):
    """The ReLU SAE in the archive at the path `ref`."""
    from zipfile import BadZipFile

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
    except (OSError, EOFError, BadZipFile, KeyError, TypeError, ValueError) as e:
        raise SaebenchError(f"npz loader: '{ref}' is no SAE archive: {e}. It must hold {', '.join(ARRAYS)}.") from e


@hookimpl
def saebench_loaders():
    return {"npz": SAELoader(load, claims=lambda path: path.suffix == ".npz", version=1, summary="NumPy archives")}


@hookimpl
def saebench_samples(folder):
    """What `saebench check` tries the loader with."""
    import numpy as np

    from saebench_meta import Samples

    W = np.eye(4, 6)
    np.savez(folder / "eye.npz", W_enc=W, b_enc=W[0], W_dec=W.T, b_dec=W[:, 0], model="m", hook="x")
    return Samples(saes={"npz": [str(folder / "eye.npz")]})
