"""`.tiny` files: a loader that only reads, and small SAEs to try it with that `saebench check` has written for it."""

from pathlib import Path

from saebench_meta import SAELoader, hookimpl

saebench_api = 1


def load(ref, *, device, dtype):
    """One direction a line, as numbers; an SAE with these as decoder rows and, transposed, as encoder."""
    import torch

    from saebench_meta import SAE, SaebenchError, SAEInfo, Site

    try:
        with Path(ref).open(encoding="utf-8") as file:
            W = torch.tensor([[float(number) for number in line.split()] for line in file], device=device, dtype=dtype)
        info = SAEInfo(name="tiny", site=Site(model="m", hook="x"), d_in=W.shape[1], d_sae=W.shape[0])
    except (OSError, ValueError, IndexError) as e:
        raise SaebenchError(f"tiny loader: '{ref}' has no rows of numbers, all of one length.") from e
    return SAE(W.T.contiguous(), W.new_zeros(len(W)), W, W.new_zeros(W.shape[1]), info)


@hookimpl
def saebench_loaders():
    return {"tiny": SAELoader(load, summary="one direction a line")}


@hookimpl
def saebench_samples(folder):
    from saebench_meta import Samples

    file = folder / "two.tiny"
    file.write_text("1 0 0\n0 .6 .8\n")
    return Samples(saes={"tiny": [str(file)]})
