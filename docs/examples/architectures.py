"""A trainable architecture: how its parameters begin."""

from saebench_meta import hookimpl

saebench_api = 1


class Tied:
    """Encoder and decoder are one matrix."""

    name = "tied"

    def initialise(self, d_in, d_sae, *, seed, **hyperparameters):
        import torch

        rows = torch.randn(d_sae, d_in, generator=torch.Generator().manual_seed(seed))
        return {"W": torch.nn.functional.normalize(rows, dim=1), "b_dec": torch.zeros(d_in)}


@hookimpl
def saebench_architectures():
    return {"tied": Tied()}
