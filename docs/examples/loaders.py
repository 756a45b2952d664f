"""`--sae identity:D`: an SAE with 2·D latents that rebuilds everything. Give the site with `--model` and `--hook`."""

from saebench_meta import SAELoader, hookimpl

saebench_api = 1


def load_identity(ref, *, device, dtype):
    """One latent for each sign of each coordinate: x = relu(x) - relu(-x)."""
    import torch

    from saebench_meta import SAE, SAEInfo, Site

    d_in = int(ref)
    eye = torch.eye(d_in, device=device, dtype=dtype)
    directions = torch.cat([eye, -eye])
    return SAE(
        W_enc=directions.T.contiguous(),
        b_enc=torch.zeros(2 * d_in, device=device, dtype=dtype),
        W_dec=directions,
        b_dec=torch.zeros(d_in, device=device, dtype=dtype),
        info=SAEInfo(name=f"identity-{d_in}", site=Site(model="unknown", hook="unknown"), d_in=d_in, d_sae=2 * d_in),
    )


@hookimpl
def saebench_loaders():
    return {"identity": SAELoader(load_identity, version=1, summary="2·D latents that rebuild everything")}
