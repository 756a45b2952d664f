"""Tied SAEs and the orthogonality loss: steps as in the formulas, the post's toys, the SAE that comes out."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from by_hand import BATCH, D_IN, D_SAE, assert_continues, assert_exports, assert_steps_agree, batches, made, of_loss
from planted import planted, recovered, train
from torch import Tensor

from saebench_meta import seeds
from saebench_meta.training.selection import SPARSE_SHARE
from saebench_meta.training.trainable import Moment, Processes, unit_rows

L1, ORTHO, PEAK = 0.02, 0.5, 0.7


class Post:
    """The loss of the post, with the running maxima in a list."""

    def __init__(self, shares: Callable[[int], float], jumprelu: bool = False, ortho: float = ORTHO) -> None:
        self.shares, self.jumprelu, self.ortho = shares, jumprelu, ortho
        self.maxima: deque[Tensor] = deque(maxlen=50)

    def __call__(self, p: dict[str, Tensor], x: Tensor, step: int) -> Tensor:
        centred = x - p["b_dec"]
        h = torch.relu(centred @ p["W"].T)
        self.maxima.append(h.detach().max(0).values)
        tau = self.shares(step) * PEAK * torch.stack(list(self.maxima)).max(0).values
        if self.jumprelu:
            h = h * (h > tau)
        loss = ((x - h @ p["W"] - p["b_dec"]) ** 2).mean() + L1 * h.sum(1).mean()
        cos = torch.nn.functional.cosine_similarity(centred[:, None], p["W"][None], dim=2)
        return loss + self.ortho * self.shares(step) * (cos**2 * (h <= tau)).sum() / h.numel()


@pytest.mark.parametrize("unit_norm", [True, False])
@pytest.mark.parametrize("jumprelu", [True, False])
def test_ten_steps_agree_with_a_dense_float64_implementation(unit_norm: bool, jumprelu: bool) -> None:
    xs = batches(10)
    trainer = made(
        "tied",
        xs,
        l1=L1,
        l1_warmup=0.0,
        ortho=ORTHO,
        ortho_delay=0.3,
        ortho_warmup=0.5,
        jumprelu=jumprelu,
        unit_norm=unit_norm,
    )
    post = Post([0, 0, 0, 0.2, 0.4, 0.6, 0.8, 1, 1, 1].__getitem__, jumprelu)
    assert_steps_agree(trainer, xs, of_loss(post), unit=("W",) if unit_norm else ())
    if not unit_norm:
        assert float((trainer.sae.parameters["W"].detach().norm(dim=1) - 1).abs().max()) > 1e-3


@pytest.mark.parametrize("jumprelu", [True, False])
def test_few_active_latents_take_the_sparse_way_to_the_same_steps(jumprelu: bool) -> None:
    xs = [x + 6 for x in batches(10)]
    away = unit_rows(torch.randn(D_SAE, D_IN, generator=seeds.generator(0, "away")) - 0.7)
    given: dict[str, Any] = {"b_dec": "zero", "l1": L1, "l1_warmup": 0.0, "ortho_delay": 0.0, "ortho_warmup": 0.0}
    trainer = made("tied", xs, {"W": away}, jumprelu=jumprelu, **given)
    l0 = assert_steps_agree(trainer, xs, of_loss(Post(lambda _: 1, jumprelu, ortho=0)), unit=("W",))
    assert 0 < max(l0) < SPARSE_SHARE * D_SAE


def test_the_loss_waits_then_rises_with_the_threshold() -> None:
    xs = batches(9)
    trainer = made("tied", xs, l1=0.0, ortho=ORTHO)
    seen = []
    for x in xs:
        result = trainer.step(x)
        largest = trainer.sae.state["maxima"].max(0).values
        share = trainer.sae.state["tau"] / (PEAK * largest)
        torch.testing.assert_close(share, share[:1].expand_as(share))
        seen.append(float(share[0]))
        extra = result.loss - result.parts["mse"]
        torch.testing.assert_close(extra, ORTHO * share[0] * result.parts.get("ortho", torch.tensor(0.0)))
    assert seen == pytest.approx([0, 0, 0, 1 / 3, 2 / 3, 1, 1, 1, 1])


def test_maxima_forget_after_fifty_batches() -> None:
    xs = batches(60)
    trainer = made("tied", xs, lr=1e-9, ortho=ORTHO)
    for x in [10 * xs[0], *xs[1:50]]:
        trainer.step(x)
    before = trainer.sae.state["maxima"].max(0).values
    trainer.step(xs[50])
    after = trainer.sae.state["maxima"].max(0).values
    assert bool((after < before / 2).all())


def test_latents_that_never_fire_are_drawn_away_too() -> None:
    x = torch.zeros(BATCH, D_IN)
    x[:, 0] = 1
    W = torch.zeros(D_SAE, D_IN)
    W[:, 0], W[:, 1] = -0.6, 0.8
    trainer = made("tied", [x], {"W": W}, b_dec="zero", scaling="none", ortho=ORTHO, ortho_delay=0.0, ortho_warmup=0.0)
    result = trainer.step(x)
    assert float(result.l0) == 0
    torch.testing.assert_close(result.parts["ortho"], torch.tensor(0.36))
    assert bool((trainer.sae.parameters["W"][:, 0] > -0.6).all())


def test_maxima_are_those_of_all_processes() -> None:
    (x,) = batches(1)
    trainer = made("tied", [x], ortho=ORTHO)
    sae = trainer.sae
    sae.loss(x, whole := Moment(0, 10, 0))
    want = sae.state["maxima"].clone()

    class Other(Processes):
        def max(self, x: Tensor) -> Tensor:
            return torch.maximum(x, theirs)

    sae.loss(x[BATCH // 2 :], whole)
    theirs = sae.state["maxima"][0].clone()
    assert not torch.equal(theirs, want[0])
    sae.loss(x[: BATCH // 2], replace(whole, processes=Other()))
    torch.testing.assert_close(sae.state["maxima"], want)


# -- the post's toys


def toy(features: Tensor, W: Tensor) -> list[tuple[int, float]]:
    """Of each latent the feature it is nearest to, and the cosine."""
    cosines = unit_rows(W) @ features.T
    return [(int(row.argmax()), float(row.max())) for row in cosines]


def orthogonal(n: int, d_in: int, seed: int) -> Tensor:
    return torch.linalg.qr(torch.randn(d_in, n, generator=seeds.generator(seed, "features")))[0].T


def parent_and_children(n: int, g: torch.Generator) -> Tensor:
    """Feature 0 is on whenever 1 or 2 is; 3 is on by itself."""
    on = (torch.rand(n, 4, generator=g) < torch.tensor([0.3, 0.2, 0.2, 0.2])).float()
    on[:, 1:3] *= on[:, :1]
    return on


def independent(n: int, g: torch.Generator) -> Tensor:
    return (torch.rand(n, 4, generator=g) < 0.2).float()


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("firing", [independent, parent_and_children])
def test_spare_latents_die_and_the_others_are_the_features(firing: Callable[..., Tensor], seed: int) -> None:
    features = orthogonal(4, 20, seed)
    x = firing(40_000, seeds.generator(seed, "toy")) @ features
    trainer = train("tied", x, 1500, seed=seed, d_sae=8, b_dec="zero", lr=3e-3, decay=0.2, l1=0.1)
    W, b_dec = trainer.sae.parameters["W"].detach(), trainer.sae.parameters["b_dec"].detach()
    live = (torch.relu((x * trainer.scale - b_dec) @ W.T) > 0.1).any(0)
    found = toy(features, W[live])
    assert sorted(i for i, _ in found) == [0, 1, 2, 3]
    assert min(c for _, c in found) > 0.99


def narrow(ortho: float, seed: int) -> list[tuple[int, float]]:
    """20 features, 5 latents; 12 is on whenever 5 or 7 is."""
    g = seeds.generator(seed, "narrow")
    features = orthogonal(20, 50, seed)
    on = torch.rand(60_000, 20, generator=g) < torch.linspace(0, 0.3, 20)
    on[:, 12] |= on[:, 5] | on[:, 7]
    x = (on * torch.linspace(20, 1, 20)) @ features
    given: dict[str, Any] = {"d_sae": 5, "b_dec": "zero", "scaling": "none", "lr": 1e-2, "decay": 0.2, "l1": 1e-3}
    trainer = train("tied", x, 1000, seed=seed, ortho=ortho, **given)
    return sorted(toy(features, trainer.sae.parameters["W"].detach()))


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_orthogonality_loss_parts_children_from_their_parent(seed: int) -> None:
    mixed, clean = narrow(0.0, seed), narrow(10_000 / 50, seed)
    assert [i for i, _ in mixed] == [i for i, _ in clean] == [4, 5, 6, 7, 8]
    assert max(mixed[1][1], mixed[3][1]) < 0.95
    assert min(c for _, c in clean) > 0.99


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize(("d_in", "settings"), [(128, {"l1": 0.01}), (64, {"l1": 0.02, "jumprelu": True})])
def test_it_finds_a_planted_dictionary(d_in: int, settings: dict[str, Any], seed: int) -> None:
    x, truth = planted(d_in, 32, 0.05, 40_000, seed)
    trainer = train("tied", x, 800, seed=seed, d_sae=40, lr=3e-3, decay=0.2, **settings)
    assert recovered(trainer.export().W_dec, truth) >= 0.9


# -- what comes out


@pytest.mark.parametrize("jumprelu", [True, False])
def test_the_exported_sae_gives_the_codes_of_training(jumprelu: bool) -> None:
    xs = batches(9)
    trainer = made("tied", xs, l1=L1, ortho=ORTHO, jumprelu=jumprelu)
    for x in xs:
        trainer.step(x)
    p, tau = trainer.sae.parameters, trainer.sae.state["tau"]
    h = torch.relu((xs[0] * trainer.scale - p["b_dec"]) @ p["W"].T)
    assert_exports(trainer, xs[0], h * (h > tau) if jumprelu else h)


def test_it_continues_from_a_checkpoint() -> None:
    assert_continues("tied", l1=L1, ortho=ORTHO, jumprelu=True)
