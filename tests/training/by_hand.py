"""Training steps by hand: the optimizer written out in float64, to hold architectures against their formulas."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from saebench_meta import seeds
from saebench_meta.sae import SAE, SAEInfo, Site
from saebench_meta.training.recipe import make_recipe
from saebench_meta.training.trainer import Trainer
from saebench_plugins.architectures import saebench_architectures

D_IN, D_SAE, BATCH, STEPS = 12, 40, 64, 10
Parameters = Mapping[str, Tensor]
Gradients = Callable[[Parameters, Tensor, int], Parameters]
"""(parameters, scaled batch, step) -> gradients by name, in float64."""


def batches(n: int, seed: int = 0) -> list[Tensor]:
    """Activations off centre and not of scale 1."""
    g = seeds.generator(seed, "batches")
    return [3 * torch.randn(BATCH, D_IN, generator=g) + 1 for _ in range(n)]


def made(name: str, xs: list[Tensor], start: Parameters | None = None, **given: Any) -> Trainer:
    """A built-in architecture before its first step, with some parameters put in place of those it starts with."""
    architecture = saebench_architectures()[name]
    given = {"lr": 1e-3, "d_sae": D_SAE, "batch_size": BATCH, "tokens": BATCH * len(xs), **given}
    trainer = Trainer(architecture, make_recipe(architecture, name, **given), xs[0])
    with torch.no_grad():
        for key, value in (start or {}).items():
            trainer.sae.parameters[key].copy_(value)
    return trainer


def of_loss(loss: Callable[[Parameters, Tensor, int], Tensor]) -> Gradients:
    """Gradients of a loss written densely."""

    def gradients(parameters: Parameters, x: Tensor, step: int) -> Parameters:
        leaves = {k: p.clone().requires_grad_() for k, p in parameters.items()}
        grads = torch.autograd.grad(loss(leaves, x, step), list(leaves.values()))
        return dict(zip(leaves, grads, strict=True))

    return gradients


def assert_steps_agree(trainer: Trainer, xs: list[Tensor], gradients: Gradients, unit: tuple[str, ...]) -> list[float]:
    """After each step every parameter is within 1e-5 of the one worked out by hand. Gives mean active latents."""
    r = trainer.recipe
    scale = 1 / xs[0].double().square().mean().sqrt()
    p = {k: t.detach().double().clone() for k, t in trainer.sae.parameters.items()}
    m, v = ({k: torch.zeros_like(t) for k, t in p.items()} for _ in range(2))
    l0 = []
    for step, x in enumerate(xs):
        l0.append(float(trainer.step(x).l0))
        g = dict(gradients(p, x.double() * scale, step))
        for k in p:
            if k in unit:
                g[k] = g[k] - (g[k] * p[k]).sum(1, keepdim=True) * p[k]
            m[k] = r.beta1 * m[k] + (1 - r.beta1) * g[k]
            v[k] = r.beta2 * v[k] + (1 - r.beta2) * g[k] ** 2
            m_hat, v_hat = m[k] / (1 - r.beta1 ** (step + 1)), v[k] / (1 - r.beta2 ** (step + 1))
            p[k] = p[k] - r.lr * m_hat / (v_hat.sqrt() + r.eps)
            if k in unit:
                p[k] = p[k] / p[k].norm(dim=1, keepdim=True)
            found = trainer.sae.parameters[k].detach().double()
            torch.testing.assert_close(found, p[k], atol=1e-5, rtol=0, msg=lambda s, k=k, i=step: f"{k}, step {i}: {s}")
    return l0


def exported(trainer: Trainer) -> SAE:
    """The SAE as tasks would read it."""
    e = trainer.export()
    info = SAEInfo(
        name="made",
        site=Site(model="m", hook="h"),
        d_in=e.W_dec.shape[1],
        d_sae=e.W_dec.shape[0],
        activation=e.activation,
        k=e.k,
    )
    return SAE(e.W_enc, e.b_enc, e.W_dec, e.b_dec, info, threshold=e.threshold)


def assert_exports(trainer: Trainer, x: Tensor, codes: Tensor) -> None:
    """The exported SAE gives codes of training (those of `x` times the scale), and rebuilds the same."""
    sae, p, s = exported(trainer), trainer.sae.parameters, trainer.scale
    found = sae.encode(x) * s
    assert 0 < float((codes > 0).float().mean()) < 1
    torch.testing.assert_close(found, codes.detach(), atol=1e-4, rtol=1e-4)
    W_dec = p["W_dec"] if "W_dec" in p else p["W"]
    x_hat = (codes @ W_dec + p["b_dec"]).detach() / s
    torch.testing.assert_close(sae.reconstruct(x), x_hat, atol=1e-3, rtol=1e-4)


def assert_continues(name: str, **given: Any) -> None:
    """A run put together again after four steps ends bit by bit like one that was not interrupted."""
    xs = batches(8)
    whole, first, second = (made(name, xs, **given) for _ in range(3))
    for x in xs:
        whole.step(x)
    for x in xs[:4]:
        first.step(x)
    second.restore({k: t.clone() for k, t in first.tensors().items()}, 4)
    for x in xs[4:]:
        second.step(x)
    held = second.tensors()
    for k, t in whole.tensors().items():
        assert torch.equal(t, held[k]), k
