"""The dip test and the peaks: against its definition, another implementation, and mixtures made by hand."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from diptest import dipstat
from diptest import diptest as p_by_table
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import linprog

from saebench_meta.codes import Codes
from saebench_tasks.broken_latents import peaks
from saebench_tasks.broken_latents.dip import LEVELS, NULL, SIZES, dip, null_quantiles, p_values
from saebench_tasks.broken_latents.peaks import FLOOR, Firings, Peaks, collect, find

Draw = Callable[[np.random.Generator, int], np.ndarray]

ONE_PEAK: dict[str, Draw] = {
    "normal": lambda rng, n: 5 + rng.normal(size=n),
    "narrow": lambda rng, n: 16.6 + 1e-3 * rng.normal(size=n),
    "lognormal": lambda rng, n: np.exp(rng.normal(size=n)),
    "exponential": lambda rng, n: rng.exponential(size=n),
    "half normal, cut at 0": lambda rng, n: np.abs(rng.normal(size=n)),
    "normal, cut at 0 below its mean": lambda rng, n: cut(rng.normal(0.5, 1, 4 * n), 0)[:n],
    "normal, cut at a threshold above its mean": lambda rng, n: cut(rng.normal(1, 1, 40 * n), 2.5)[:n],
    "exponential, cut at a threshold": lambda rng, n: 3 + rng.exponential(size=n),
    "uniform": lambda rng, n: rng.random(n),
    "uniform on a log scale": lambda rng, n: np.exp(2 * rng.random(n)),
    "a constant": lambda rng, n: np.full(n, 7.0),
    "three values that nobody tells apart": lambda rng, n: rng.choice([16.6, 16.7, 16.9], n),
    "a constant and responses below the floor": lambda rng, n: np.where(rng.random(n) < 0.6, 10, 0.2 * rng.random(n)),
}
TWO_PEAKS: dict[str, Draw] = {
    "weak and strong": lambda rng, n: np.where(rng.random(n) < 0.7, rng.normal(10, 1, n), rng.normal(3, 0.4, n)),
    "two constants": lambda rng, n: rng.choice([5.0, 12.0], n),
    "a bulk that falls from 0, and a hump": lambda rng, n: np.where(
        rng.random(n) < 0.6, rng.exponential(2, n), rng.normal(20, 1, n)
    ),
}


def cut(values: np.ndarray, at: float) -> np.ndarray:
    return values[values > at]


def dip_by_definition(values: np.ndarray) -> float:
    """Smallest t with a unimodal function within t of F_n."""
    x, counts = np.unique(values, return_counts=True)
    upto = counts.cumsum() / len(values)
    return min(nearest(x, upto - counts / len(values), upto, mode) for mode in range(len(x)))


def nearest(x: np.ndarray, below: np.ndarray, upto: np.ndarray, mode: int) -> float:
    """The same for a mode at one of the points, as a linear program.

    Unknowns: the function just below every point up to the mode, and at every point from it on; t.
    """
    left, right = [("left", i) for i in range(mode + 1)], [("right", i) for i in range(mode, len(x))]
    place = {key: k for k, key in enumerate([*left, *right, "t"])}
    rows: list[np.ndarray] = []
    limits: list[float] = []

    def at_most(limit: float, weights: dict[Any, float]) -> None:
        rows.append(np.zeros(len(place)))
        limits.append(limit)
        for key, weight in weights.items():
            rows[-1][place[key]] = weight

    for key in (*left, *right):
        side, i = key
        touched = [below[i], upto[i]] if i != mode else [below[i] if side == "left" else upto[i]]
        for F in touched:  # within t of F on both of its sides
            at_most(F, {key: 1, "t": -1})
            at_most(-F, {key: -1, "t": -1})
    for part, sign in ((left, 1.0), (right, -1.0)):
        for one, other in pairwise(part):  # not falling
            at_most(0, {one: 1, other: -1})
        for a, b, c in zip(part, part[1:], part[2:], strict=False):  # convex, or concave
            before, after = 1 / (x[b[1]] - x[a[1]]), 1 / (x[c[1]] - x[b[1]])
            at_most(0, {a: -sign * before, b: sign * (before + after), c: -sign * after})
    at_most(0, {left[-1]: 1, right[0]: -1})
    cost = np.eye(len(place))[-1]
    return float(linprog(cost, A_ub=np.array(rows), b_ub=limits, bounds=(0, 1)).fun)


@pytest.mark.parametrize("seed", range(12))
def test_the_dip_is_that_of_the_definition(seed: int) -> None:
    rng = np.random.default_rng(seed)
    n = int(rng.integers(4, 30))
    values = [rng.normal(size=n), np.r_[rng.random(n // 2), 3 + rng.random(n - n // 2)], rng.integers(0, 8, n) * 1.0]
    for v in values:
        assert dip(v) == pytest.approx(dip_by_definition(v), abs=1e-9)


def test_the_dip_is_that_of_another_implementation() -> None:
    rng = np.random.default_rng(0)
    for draw in [*ONE_PEAK.values(), *TWO_PEAKS.values(), lambda rng, n: rng.integers(0, 12, n) * 1.0]:
        for n in (20, 173, 1000):
            values = draw(rng, n)
            assert dip(values) == pytest.approx(dipstat(values), abs=1e-12)


def test_dips_known_beforehand() -> None:
    """Evenly spaced points are as near a uniform distribution as n points get; two equal heaps are furthest off."""
    assert dip(np.arange(10)) == pytest.approx(1 / 20)
    assert dip(np.repeat([0.0, 1.0], 50)) == pytest.approx(1 / 4)
    assert dip(np.repeat([0.0, 1.0, 1.0, 1.0], 25)) == pytest.approx(1 / 8)
    assert dip(np.full(10, 3.0)) == 0.0


@given(st.lists(st.integers(0, 50), min_size=2, max_size=40), st.floats(0.01, 100), st.floats(-5, 5))
def test_the_dip_knows_neither_scale_nor_place_nor_direction(values: list[int], scale: float, place: float) -> None:
    v = np.array(values, dtype=np.float64)
    assert dip(scale * v + place) == pytest.approx(dip(v), abs=1e-9)
    assert dip(-v) == pytest.approx(dip(v), abs=1e-9)


# -- p


def test_the_tables_quantiles_come_from_its_command() -> None:
    few = null_quantiles(100, 2000, 1)
    middle = [LEVELS.index(level) for level in (0.9, 0.5, 0.1)]
    np.testing.assert_allclose(few[middle], np.array(NULL[SIZES.index(100)])[middle], rtol=0.02)


@pytest.mark.parametrize("n", [50, 130, 700, 2000])
def test_p_agrees_with_the_published_table(n: int) -> None:
    """`diptest` interpolates in the table of R's package; ours is drawn anew."""
    rng = np.random.default_rng(n)
    mixtures = [rng.normal(size=n) + gap * (rng.random(n) < 0.5) for gap in np.linspace(0, 4, 12)]
    found = [p_by_table(values) for values in [*mixtures, *rng.random((12, n))]]
    ours = p_values(np.array([d for d, _ in found]), np.full(24, n))
    theirs = np.array([p for _, p in found])
    assert 0 < (theirs < 0.05).sum() < 24
    np.testing.assert_allclose(ours, theirs, atol=0.012)


def test_p_is_uniform_for_uniform_samples_and_falls_with_the_dip() -> None:
    rng = np.random.default_rng(0)
    p = p_values(np.array([dip(rng.random(150)) for _ in range(1500)]), np.full(1500, 150))
    for level in (0.5, 0.1, 0.02):
        assert (p <= level).mean() == pytest.approx(level, abs=4 * np.sqrt(level * (1 - level) / 1500))
    for n in (20, 50, 333, 1000, 5000):
        falling = p_values(np.linspace(0.001, 0.25, 200), np.full(200, n))
        assert (np.diff(falling) <= 0).all() and falling[0] == 1 and 0 < falling[-1] < 1e-3


# -- peaks


def firings(columns: list[np.ndarray]) -> Firings:
    """Latents with these activations, on tokens counted from 0 for each."""
    sizes = [len(c) for c in columns]
    tokens = np.concatenate([np.arange(n) for n in sizes])
    return Firings(np.cumsum([0, *sizes]), tokens, np.concatenate(columns), np.array(sizes), max(sizes))


def found(columns: list[np.ndarray], least: int = 50, seed: int = 0) -> Peaks:
    return find(firings(columns), least, 0.05, np.random.default_rng(seed))


@pytest.mark.parametrize("name", ONE_PEAK)
def test_one_peak_is_not_two(name: str) -> None:
    rng = np.random.default_rng(1)
    made = found([ONE_PEAK[name](rng, 600) for _ in range(30)])
    assert len(made.latent) == 30
    assert (made.q > 0.05).all() and not made.several.any()
    assert {len(at) for at in made.peaks} == {1} and not made.valley.any()
    assert made.dip.max() < 0.03


@pytest.mark.parametrize("name", TWO_PEAKS)
@pytest.mark.parametrize("n", [200, 600])
def test_two_peaks_are_found_and_placed(name: str, n: int) -> None:
    rng = np.random.default_rng(2)
    made = found([TWO_PEAKS[name](rng, n) for _ in range(20)])
    assert (made.q < 0.01).all() and made.several.all()
    highest = {"weak and strong": (3, 10), "two constants": (5, 12)}.get(name)
    for at, valley in zip(made.peaks, made.valley, strict=True):
        assert len(at) >= 2 and valley > 0.5
        if highest:
            assert tuple(at) == pytest.approx(highest, rel=0.12)


def test_of_two_thousand_latents_with_one_peak_next_to_none_is_found() -> None:
    """Every third is uniform, for which the test keeps its level exactly; the rest has smaller dips."""
    rng = np.random.default_rng(3)
    draws = [
        lambda n: np.exp(rng.random(n)),
        lambda n: rng.exponential(size=n),
        lambda n: np.exp(0.7 * rng.normal(size=n)),
    ]
    made = found([draws[i % 3](80 + i % 50) for i in range(2000)], least=15)
    assert len(made.latent) == 2000
    assert 0.005 < (made.p <= 0.05).mean() < 0.05
    assert made.several.sum() <= 2


def test_the_false_discovery_rate_is_kept_among_true_ones() -> None:
    rng = np.random.default_rng(4)
    uniform = [np.exp(rng.random(200)) for _ in range(900)]
    double = [TWO_PEAKS["weak and strong"](rng, 200) for _ in range(100)]
    made = found([*uniform, *double])
    assert made.several[900:].all()
    assert made.several[:900].sum() / made.several.sum() < 0.1


def test_latents_with_few_activations_are_left_out_and_counted() -> None:
    rng = np.random.default_rng(5)
    weak = np.r_[np.full(40, 1.0), np.full(100, FLOOR / 2)]
    made = found([rng.random(49), TWO_PEAKS["two constants"](rng, 50), np.zeros(0), weak], least=50)
    assert made.latent.tolist() == [1] and made.of == 4 and made.n.tolist() == [50]
    nothing = found([rng.random(3), np.zeros(0)])
    assert len(nothing.latent) == len(nothing.q) == 0 and nothing.of == 2


@given(st.integers(0, 10_000))
def test_scale_and_order_of_latents_change_nothing(seed: int) -> None:
    g = torch.Generator().manual_seed(seed)
    f = torch.randn(300, 8, generator=g).relu() + 2 * (torch.rand(300, 8, generator=g) < 0.3)
    scale, order = 2.0 ** torch.randint(-8, 8, (8,), generator=g), torch.randperm(8, generator=g)

    def measured(codes: torch.Tensor) -> Peaks:
        chunks = [Codes.from_dense(part) for part in codes.split(64)]
        rng = np.random.default_rng(0)
        return find(collect(chunks, 8, 300, 100, rng), 20, 0.05, rng)

    one, other = measured(f), measured((f * scale)[:, order])
    assert len(one.latent) == 8
    for name in ("n", "dip", "p", "q", "valley"):
        np.testing.assert_allclose(getattr(other, name), getattr(one, name)[order.numpy()], rtol=1e-9)
    for at, latent in zip(other.peaks, order.tolist(), strict=True):
        np.testing.assert_allclose(at, one.peaks[latent] * float(scale[latent]), rtol=1e-9)


# -- what is looked at


def test_activations_kept_are_those_on_the_first_tokens_of_one_order() -> None:
    g = torch.Generator().manual_seed(0)
    f = torch.randn(500, 6, generator=g).relu() * torch.tensor([1, 1, 1, 0.0, 1, 1])
    f[:, 4] = -f[:, 4]  # negative activations are none
    f[:40, 5] = torch.inf
    order = np.random.default_rng(9).permutation(500)
    made = collect([Codes.from_dense(part) for part in f.split(70)], 6, 500, 100, np.random.default_rng(9))
    assert made.total.tolist() == (f > 0).sum(0).tolist()
    for j in range(6):
        part = slice(made.indptr[j], made.indptr[j + 1])
        on = [t for t in order if 0 < f[t, j] < torch.inf][:100]
        assert made.tokens[part].tolist() == on
        assert made.values[part].tolist() == f[on, j].tolist()


def test_what_is_kept_does_not_depend_on_when_the_rest_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    f = torch.randn(400, 5, generator=torch.Generator().manual_seed(1)).relu()
    chunks = [Codes.from_dense(part) for part in f.split(40)]
    kept = collect(chunks, 5, 400, 30, np.random.default_rng(0))
    monkeypatch.setattr(peaks, "HELD", 60)
    often = collect(chunks, 5, 400, 30, np.random.default_rng(0))
    assert (kept.indptr.tolist(), kept.tokens.tolist()) == (often.indptr.tolist(), often.tokens.tolist())
    assert often.indptr[-1] == 150
