"""Scores on a world of sae-lens, against sae-lens's own, on the same samples: equal to 1e-6 where both define them.

Runs where sae-lens is installed.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from saebench_meta.matching import classification, cosines, firing, matched_f1, one_to_one
from saebench_meta.sae import SAE, SAEInfo, Site
from saebench_meta.truth import BATCH, truth_scores

pytest.importorskip("sae_lens", reason="sae-lens is an optional extra")

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from sae_lens import StandardSAE, StandardSAEConfig
    from sae_lens.synthetic import ActivationGenerator, FeatureDictionary, eval_sae_on_synthetic_data

FEATURES, D = 24, 16


@dataclass
class Theirs:
    """A world of sae-lens as one of ours; every draw is the same, since sae-lens draws from the global generator."""

    generator: Any
    dictionary: Any
    name: str = "theirs:24"

    @property
    def features(self) -> tuple[str, ...]:
        return tuple(map(str, range(FEATURES)))

    @property
    def directions(self) -> Tensor:
        return self.dictionary.feature_vectors.detach()  # type: ignore[no-any-return]  # untyped there

    def sample(self, n: int, seed: int) -> tuple[Tensor, Tensor]:
        with torch.random.fork_rng(), torch.no_grad():
            torch.manual_seed(5)
            magnitudes = self.generator.sample(n)
            return self.dictionary(magnitudes).detach(), magnitudes


@pytest.fixture(scope="module")
def world() -> Theirs:
    torch.manual_seed(0)
    probabilities = torch.linspace(0.02, 0.3, FEATURES)
    generator = ActivationGenerator(FEATURES, probabilities, std_firing_magnitudes=0.2)
    return Theirs(generator, FeatureDictionary(FEATURES, D, initializer=None))


def sae_of(directions: Tensor, bias: float) -> Any:
    """A standard SAE of theirs whose decoder rows are these, its encoder their transpose."""
    sae = StandardSAE(StandardSAEConfig(d_in=D, d_sae=len(directions)))
    with torch.no_grad():
        sae.W_dec.copy_(directions)
        sae.W_enc.copy_(directions.T)
        sae.b_enc.fill_(bias)
        sae.b_dec.zero_()
    return sae


def as_ours(sae: Any) -> SAE:
    d_sae = len(sae.W_dec)
    info = SAEInfo(name="theirs", site=Site(model="theirs:24", hook="x"), d_in=D, d_sae=d_sae)
    weights = (t.detach().clone() for t in (sae.W_enc, sae.b_enc, sae.W_dec, sae.b_dec))
    return SAE(*weights, info)


def their_scores(world: Theirs, sae: Any) -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(5)
        return eval_sae_on_synthetic_data(sae, world.dictionary, world.generator, num_samples=BATCH)


@pytest.mark.parametrize("d_sae", [10, FEATURES, 60])
def test_directions_l0_dead_and_classification_are_theirs(world: Theirs, d_sae: int) -> None:
    rows = torch.randn(d_sae, D, generator=torch.Generator().manual_seed(d_sae))
    theirs = sae_of(rows, -1.5)
    with torch.no_grad():
        theirs.b_enc[:2] = -100
    sae, found = as_ours(theirs), their_scores(world, theirs)
    scores = truth_scores(sae, world, tokens=BATCH)
    assert scores.mcc == pytest.approx(found.mcc, abs=1e-6)
    assert scores.uniqueness == pytest.approx(found.uniqueness, abs=1e-6)
    assert scores.l0 == pytest.approx(found.sae_l0, abs=1e-6)
    assert scores.dead == found.dead_latents >= 2
    x, magnitudes = world.sample(BATCH, 0)
    table = firing(sae.encode(x).numpy(), magnitudes.numpy())
    ours = classification(table, cosines(sae.W_dec, world.directions))
    of = found.classification
    assert ours == pytest.approx(
        {"precision": of.precision, "recall": of.recall, "f1": of.f1_score, "accuracy": of.accuracy}, abs=1e-6
    )


def test_matched_f1_is_theirs_where_every_latent_is_nearest_to_the_feature_it_is_matched_with(world: Theirs) -> None:
    g = torch.Generator().manual_seed(1)
    order = torch.randperm(FEATURES, generator=g)
    theirs = sae_of(world.directions[order] + 0.05 * torch.randn(FEATURES, D, generator=g), -0.4)
    sae = as_ours(theirs)
    cosine = np.abs(cosines(sae.W_dec, world.directions))
    x, magnitudes = world.sample(BATCH, 0)
    matched = matched_f1(firing(sae.encode(x).numpy(), magnitudes.numpy()))
    # The condition: F1, the best |cosine| and the best one-to-one match by |cosine| agree on every pair.
    assert dict(zip(matched.latents.tolist(), matched.features.tolist(), strict=True)) == dict(
        enumerate(order.tolist())
    )
    assert one_to_one(cosine)[1].tolist() == cosine.argmax(axis=1).tolist() == order.tolist()
    theirs_f1 = their_scores(world, theirs).classification.f1_score
    assert 0.3 < theirs_f1 < 0.99
    assert matched.mean == pytest.approx(theirs_f1, abs=1e-6)
    assert truth_scores(sae, world, tokens=BATCH).f1.value == pytest.approx(theirs_f1, abs=1e-6)
