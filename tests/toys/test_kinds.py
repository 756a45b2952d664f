"""Kinds of latents: SAEs made by hand in the toy worlds, each kind recognised, and only where it should be."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from saebench_meta.sae import SAE, SAEInfo, Site
from saebench_plugins.toys.named import WORLDS
from saebench_plugins.toys.world import ToyWorld
from saebench_tasks.broken_latents.kinds import Scores, peaks, responses, score, singles_and_pairs


@dataclass(frozen=True)
class Latent:
    """Fires as relu(Σ reads_i m_i + bias), adds Σ adds_i d_i; over features."""

    reads: dict[int, float]
    adds: dict[int, float]
    bias: float = 0.0


def made(world: ToyWorld, *latents: Latent) -> SAE:
    """The SAE of these latents; decoder rows of norm 1, and codes that make up for it."""
    n = len(world.features)
    duals = torch.linalg.pinv(world.directions).T if n <= world.d_in else world.directions

    def rows(parts: list[dict[int, float]], basis: Tensor) -> Tensor:
        weights = torch.tensor([[part.get(i, 0.0) for i in range(n)] for part in parts])
        return weights @ basis

    W_dec = rows([latent.adds for latent in latents], world.directions)
    norms = W_dec.norm(dim=1).clamp_min(1e-9)
    info = SAEInfo(name="by-hand", site=Site(model=world.name, hook="x"), d_in=world.d_in, d_sae=len(latents))
    return SAE(
        W_enc=(rows([latent.reads for latent in latents], duals) * norms[:, None]).T.contiguous(),
        b_enc=torch.tensor([latent.bias for latent in latents]) * norms,
        W_dec=W_dec / norms[:, None],
        b_dec=torch.zeros(world.d_in),
        info=info,
    )


def right(feature: int) -> Latent:
    """What a latent should be."""
    return Latent({feature: 1}, {feature: 1})


def scores_of(world: str | ToyWorld, *latents: Latent) -> Scores:
    opened = WORLDS[world] if isinstance(world, str) else world
    return score(made(opened, *latents), opened, tokens=8192)


def test_a_perfect_dictionary_is_exact_throughout() -> None:
    scores = scores_of("independent-4", *map(right, range(4)))
    assert scores.kinds == ("exact",) * 4
    assert scores.features_of("exact") == {0, 1, 2, 3}
    assert scores.count("exact", "mixed") == 4
    assert scores.fvu < 1e-9
    np.testing.assert_allclose(scores.between, np.eye(4), atol=1e-6)


def test_a_latent_that_adds_nothing_is_dead_whatever_its_direction() -> None:
    silent = Latent({0: 1}, {0: 1}, bias=-5)
    weak = Latent({0: 0.05}, {0: 1})
    scores = scores_of("independent-4", right(0), silent, weak)
    assert scores.kinds == ("exact", "dead", "dead")
    assert scores.peaks == (1, 0, 0)
    assert scores.live.tolist() == [0]


def test_two_latents_for_one_feature_are_duplicates() -> None:
    half = Latent({0: 0.5}, {0: 1})
    assert scores_of("independent-4", half, right(1), half).kinds == ("duplicate", "exact", "duplicate")


def absorption() -> tuple[Latent, ...]:
    """0 fires unless 1 is on; 1 adds both."""
    return Latent({0: 1, 1: -1}, {0: 1}), Latent({1: 1}, {0: 1, 1: 1}), right(2), right(3)


def test_absorption_is_seen_on_both_sides() -> None:
    scores = scores_of("absorption-4", *absorption())
    assert scores.kinds == ("absorbed", "absorbing", "exact", "exact")
    assert scores.fvu < 1e-9
    assert np.argwhere(scores.parents).tolist() == [[1, 0]]
    assert scores.holds(1) == {0, 1}


def test_a_latent_that_takes_from_a_parent_nobody_else_has_is_a_combination() -> None:
    scores = scores_of("absorption-4", Latent({1: 1}, {0: 1, 1: 1}), right(2), right(3))
    assert scores.kinds == ("combination", "exact", "exact")


def test_a_latent_for_two_independent_features_leaves_holes_in_theirs() -> None:
    both = Latent({0: 1, 1: 1}, {0: 1, 1: 1}, bias=-1)
    first, second = Latent({0: 1, 1: -1}, {0: 1}), Latent({1: 1, 0: -1}, {1: 1})
    scores = scores_of("independent-4", first, second, both, right(2), right(3))
    assert scores.kinds == ("absorbed", "absorbed", "combination", "exact", "exact")
    assert scores.fvu < 1e-9


def test_a_sum_that_fires_on_either_is_mixed() -> None:
    assert scores_of("independent-4", Latent({0: 1, 1: 1}, {0: 1, 1: 1})).kinds == ("mixed",)


@pytest.mark.parametrize("part", [0.3, -0.3])
def test_a_part_of_another_feature_of_either_sign_is_mixed(part: float) -> None:
    scores = scores_of("independent-4", Latent({0: 1}, {0: 1, 1: part}), right(1))
    assert scores.kinds == ("mixed", "exact")
    assert scores.holds(0) == ({0, 1} if part > 0 else {0})


def test_a_right_direction_that_fires_elsewhere_is_inexact() -> None:
    assert scores_of("independent-4", Latent({0: 1, 1: 1}, {0: 1})).kinds == ("inexact",)


def test_what_is_silent_for_no_reason_is_not_absorbed() -> None:
    gap = Latent({0: 1, 1: -1}, {0: 1})
    assert scores_of("independent-4", gap, right(1)).kinds == ("inexact", "exact")


def test_the_true_directions_of_a_world_in_superposition_are_exact() -> None:
    chosen = (3, 4, 5, 7, 8)
    scores = scores_of("superposed-20", *map(right, chosen))
    assert scores.features_of("exact") == set(chosen)
    assert np.abs(scores.parts).max(where=np.arange(20) != scores.feature[:, None], initial=0) < 1e-6


def test_an_encoder_may_point_elsewhere() -> None:
    scores = scores_of("independent-4", Latent({0: 1, 1: -0.5}, {0: 1}), right(1), right(2), right(3))
    assert scores.kinds == ("exact",) * 4
    assert scores.matched("decoder").cosine.min() > 0.999
    assert scores.matched("encoder").cosine.min() == pytest.approx(1 / np.sqrt(1.25), abs=1e-6)


def test_matched_pairs_leave_dead_latents_out_and_say_how_the_others_fire() -> None:
    absent = Latent({}, {1: 1})
    matched = scores_of("absorption-4", absent, *absorption()).matched()
    assert dict(zip(matched.latents.tolist(), matched.features.tolist(), strict=True)) == {1: 0, 2: 1, 3: 2, 4: 3}
    assert matched.precision.tolist() == [1, 1, 1, 1]
    assert matched.recall[0] == pytest.approx(0.8, abs=0.03) and matched.recall[1:].tolist() == [1, 1, 1]
    assert matched.f1[0] == pytest.approx(2 * matched.recall[0] / (1 + matched.recall[0]))


def test_peaks_are_levels_of_activation() -> None:
    rng = np.random.default_rng(0)
    levels = rng.choice([0.0, 0.1, 0.5, 0.8, 1.0], 10_000)
    assert peaks(np.abs(levels + 0.004 * rng.standard_normal(10_000))) == 4  # the noise about 0 is none
    assert peaks(rng.uniform(0, 1, 10_000)) == 1


def test_a_world_with_uneven_magnitudes_is_judged_by_their_means() -> None:
    world = ToyWorld("toy:uneven", 8, (0.3, 0.3), (10.0, 1.0), spread=0.5)
    both = Latent({0: 1, 1: 10}, {0: 10, 1: 1}, bias=-14)
    scores = scores_of(world, right(0), right(1), both)
    assert scores.kinds[:2] == ("duplicate", "exact")
    assert scores.holds(2) == {0}


def test_scores_survive_json() -> None:
    scores = scores_of("absorption-4", *absorption())
    again = Scores.from_json(scores.to_json())
    assert again.to_json() == scores.to_json()
    assert again.kinds == scores.kinds
    assert again.holds(1) == {0, 1} and again.features_of("exact") == {2, 3}


def test_responses_to_single_features_and_pairs_as_in_the_posts_tables() -> None:
    world = WORLDS["absorption-4"]
    scores = scores_of(world, *absorption())
    sets = singles_and_pairs(scores.parents)
    assert sets[:4] == [(0,), (0, 1), (2,), (3,)]
    assert len(sets) == len(set(sets)) and (0, 1, 2) in sets and (1, 2) not in sets
    table: Any = responses(made(world, *absorption()), world, sets)
    np.testing.assert_allclose(table[0], [1, 0, 0, 0], atol=1e-6)
    np.testing.assert_allclose(table[1], [0, np.sqrt(2), 0, 0], atol=1e-6)
