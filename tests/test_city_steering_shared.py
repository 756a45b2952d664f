"""Meta-latents in common against attributes in common: counts by hand and by loops, the interval, chance."""

from __future__ import annotations

import math
from itertools import combinations

import numpy as np
import pytest
import torch
from fakes import info
from scipy.stats import t
from scipy.stats.contingency import odds_ratio

from saebench_meta.sae import SAE
from saebench_tasks.city_steering.edits import CityLatents
from saebench_tasks.city_steering.shared import ANY, counts, jackknife, log_odds, shared


def dictionary(rows: torch.Tensor) -> SAE:
    n, d = rows.shape
    return SAE(rows.T.contiguous(), torch.zeros(n), rows, torch.zeros(d), info(d, n))


def found(latents: list[int], sae: SAE) -> CityLatents:
    """One latent a city; -1 for a city of which none is ever on."""
    chosen = torch.tensor(latents)[:, None]
    on = (chosen >= 0).float()
    return CityLatents(chosen.clamp_min(0), on, on, sae.W_dec[chosen.clamp_min(0)[:, 0]] * on)


def test_log_odds_by_hand() -> None:
    assert float(log_odds(np.array([3, 1, 2, 4]))) == pytest.approx(math.log(3.5 * 4.5 / (1.5 * 2.5)))
    assert float(log_odds(np.array([3, 0, 0, 4]))) == pytest.approx(math.log(3.5 * 4.5 / (0.5 * 0.5)))
    for empty in ([0, 0, 2, 4], [3, 1, 0, 0], [0, 1, 0, 4], [3, 0, 2, 0]):
        assert np.isnan(log_odds(np.array(empty)))


def test_of_many_pairs_the_half_does_not_matter() -> None:
    table = np.array([[400, 300], [500, 900]])
    assert float(np.exp(log_odds(table.ravel()))) == pytest.approx(odds_ratio(table, kind="sample").statistic, rel=2e-3)


def test_pairs_of_cities_are_counted_as_by_loops() -> None:
    """Six cities on five latents; the two that have one latent in common are no pair."""
    rows = torch.tensor([[1.0, 0, 0], [1, 1, 0], [0, 1, 0], [0, 0, 1], [0, 1, 1]])
    sae, meta = dictionary(rows), dictionary(torch.eye(3))
    latents, country = [0, 1, 1, 2, 3, 4], ["a", "a", "b", "b", "b", "a"]
    facts = [{"country": c, "coast": "yes" if i < 2 else "no"} for i, c in enumerate(country)]
    cells = {name: [0, 0, 0, 0] for name in ("country", "coast", ANY)}
    for i, j in combinations(range(6), 2):
        if latents[i] == latents[j]:
            continue
        meta_latent = bool((rows[latents[i]] * rows[latents[j]]).sum() > 0)
        same = {name: facts[i][name] == facts[j][name] for name in facts[0]}
        for name, alike in {**same, ANY: any(same.values())}.items():
            cells[name][2 * (not alike) + (not meta_latent)] += 1
    odds = shared(facts, found(latents, sae), meta, sae, np.random.default_rng(0))
    assert {o.attribute: [o.both, o.value_only, o.meta_only, o.neither] for o in odds} == cells
    assert sum(cells[ANY]) == 14


def test_the_interval_leaves_out_one_latent_at_a_time() -> None:
    rng = np.random.default_rng(0)
    n = 9
    one, two = np.triu_indices(n, 1)
    total = rng.integers(1, 4, len(one))
    alike, shares = rng.integers(0, total + 1), rng.random(len(one)) < 0.5
    left = []
    for i in range(n):
        kept = [k for k in range(len(one)) if i not in (one[k], two[k])]
        left.append(float(log_odds(counts(alike[kept], total[kept], shares[kept]))))
    variance = (n - 1) / n * sum((x - sum(left) / n) ** 2 for x in left)
    assert jackknife(alike, total, shares) == pytest.approx(t.ppf(0.975, n - 1) * math.sqrt(variance))


def planted(related: bool, seed: int) -> tuple[list[dict[str, str]], CityLatents, SAE, SAE]:
    """Sixteen cities in four countries; the meta-latent is the country's, or drawn."""
    g = torch.Generator().manual_seed(seed)
    country = torch.arange(16) % 4
    rows = torch.eye(4)[country if related else torch.randint(0, 4, (16,), generator=g)]
    rows = torch.cat([rows, torch.eye(16)], 1)  # something of their own, which no meta-latent stands for
    meta = torch.cat([torch.eye(4), torch.zeros(4, 16)], 1)
    facts = [{"country": str(int(c))} for c in country]
    return facts, found(list(range(16)), dictionary(rows)), dictionary(meta), dictionary(rows)


def test_meta_latents_that_are_countries_stand_out() -> None:
    odds, _ = shared(*planted(True, 0), np.random.default_rng(0))
    assert (odds.both, odds.value_only, odds.meta_only, odds.neither) == (24, 0, 0, 96)
    assert odds.p == pytest.approx(1 / 1001) and odds.low > odds.null_high > 1


def test_meta_latents_that_have_nothing_to_do_with_countries_do_not() -> None:
    """p is below .1 in about a tenth of all draws."""
    p = [shared(*planted(False, seed), np.random.default_rng(seed))[0].p for seed in range(60)]
    assert sum(x < 0.1 for x in p) <= 14 and 0.35 < np.mean(p) < 0.75


def test_without_pairs_to_compare_there_is_no_ratio() -> None:
    _, latents, meta, sae = planted(True, 0)
    facts = [{"country": str(i)} for i in range(16)]
    (odds, _) = shared(facts, latents, meta, sae, np.random.default_rng(0))
    assert odds.both == odds.value_only == 0 and all(np.isnan([odds.odds_ratio, odds.low, odds.high, odds.p]))


def test_too_few_latents_say_nothing_and_silent_cities_are_left_out() -> None:
    facts, _, meta, sae = planted(True, 0)
    assert shared(facts, found([0, 1, 2] * 5 + [0], sae), meta, sae, np.random.default_rng(0)) == []
    silent = found([-1, -1, *range(2, 16)], sae)
    (odds, _) = shared(facts, silent, meta, sae, np.random.default_rng(0))
    assert odds.both + odds.value_only + odds.meta_only + odds.neither == 14 * 13 // 2
