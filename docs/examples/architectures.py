"""`saebench train --arch sqrt`: a ReLU SAE that is penalised for the square roots of its codes, not for the codes."""

from saebench_meta import Architecture, hookimpl

saebench_api = 1


def build(recipe, d_in, first, generator):
    """The SAE before its first step. `first` is the first batch, (tokens, d_in)."""
    import torch

    from saebench_meta.training.trainable import Exported, Loss, TrainableSAE, unit_rows

    class Sqrt(TrainableSAE):
        def __init__(self):
            W_dec = unit_rows(torch.randn(recipe.d_sae, d_in, generator=generator)).to(first)
            start = {"W_enc": W_dec.clone(), "b_enc": first.new_zeros(recipe.d_sae)}
            start |= {"W_dec": W_dec, "b_dec": first.mean(0)}
            self.parameters = {name: tensor.requires_grad_() for name, tensor in start.items()}
            self.state = {}  # nothing changes in training but the parameters

        def loss(self, x, moment):
            p = self.parameters
            f = torch.relu(x @ p["W_enc"].T + p["b_enc"])
            sse = (f @ p["W_dec"] + p["b_dec"] - x).square().sum()
            penalty = ((f + 1e-3).sqrt() - 1e-3**0.5).sum() / len(x)  # the slope at 0 is finite
            total = sse / x.numel() + recipe.hyperparameters["penalty"] * penalty
            on = f.detach() > 0
            return Loss(total, sse.detach(), on.sum(), on.any(0), {"penalty": penalty.detach()})

        def export(self):
            W_enc, b_enc, W_dec, b_dec = (tensor.detach() for tensor in self.parameters.values())
            return Exported(W_enc.T.contiguous(), b_enc, W_dec, b_dec, activation="relu")

    return Sqrt()


@hookimpl
def saebench_architectures():
    return {"sqrt": Architecture(build, hyperparameters={"penalty": 1e-3}, summary="square roots of codes")}
