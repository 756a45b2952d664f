"""Toy worlds: what is on how often and with what, where directions point, that the same seed draws the same."""

from __future__ import annotations

import math

import pytest
import torch

from saebench_meta.errors import SaebenchError
from saebench_meta.plugins import registry
from saebench_meta.worlds import open_world
from saebench_plugins.toys.named import WORLDS
from saebench_plugins.toys.world import ToyWorld, spread_out

N = 40_000


def firing(name: str) -> torch.Tensor:
    """(N, features): which are on."""
    return WORLDS[name].sample(N, 0)[1] > 0


def assert_rates(on: torch.Tensor, expected: list[float]) -> None:
    """Shares within five standard errors."""
    for share, p in zip(on.double().mean(0).tolist(), expected, strict=True):
        assert share == pytest.approx(p, abs=5 * math.sqrt(p * (1 - p) / N))


LINEAR = [0.015 * (i + 1) for i in range(20)]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("absorption-4", [0.25, 0.05, 0.05, 0.05]),
        ("independent-4", [0.2] * 4),
        ("two-children-4", [1 - 0.8**3, 0.2, 0.2, 0.2]),
        ("linear-20", LINEAR),
        ("small-parent-20", [*LINEAR[:12], 1 - 0.805 * 0.91 * 0.88, *LINEAR[13:]]),
        ("large-parent-20", [*LINEAR[:6], 1 - 0.895 * 0.91 * 0.88, *LINEAR[7:]]),
        ("superposed-20", [*LINEAR[:6], 1 - 0.895 * 0.91 * 0.88, *LINEAR[7:]]),
        ("single-parent-4", [0.3, 0.12, 0.12, 0.2]),
    ],
)
def test_features_are_on_as_often_as_worked_out_by_hand(name: str, expected: list[float]) -> None:
    assert_rates(firing(name), expected)


@pytest.mark.parametrize(
    ("name", "parent", "children"),
    [
        ("absorption-4", 0, (1,)),
        ("two-children-4", 0, (1, 2)),
        ("small-parent-20", 12, (5, 7)),
        ("large-parent-20", 6, (5, 7)),
        ("single-parent-4", 0, (1, 2)),
    ],
)
def test_no_child_is_on_without_its_parent_and_parents_are_on_alone(
    name: str, parent: int, children: tuple[int, ...]
) -> None:
    on = firing(name)
    assert not (on[:, children] & ~on[:, [parent]]).any()
    alone = on[:, parent] & ~on[:, children].any(1)
    assert alone.double().mean() > 0.05


def test_everything_else_is_independent() -> None:
    on = firing("large-parent-20").double()
    family = (5, 6, 7)
    others = [i for i in range(20) if i not in family]
    correlation = torch.corrcoef(on.T)[others].index_fill(1, torch.tensor(others), 0)
    assert float(correlation.abs().max()) < 5 / math.sqrt(N)


def test_children_of_one_parent_are_independent_given_it() -> None:
    on = firing("single-parent-4")
    given = on[on[:, 0]].double()
    assert float((given[:, 1] * given[:, 2]).mean()) == pytest.approx(0.16, abs=5 * math.sqrt(0.16 * 0.84 / len(given)))


def test_activations_are_sums_of_magnitude_times_direction() -> None:
    world = WORLDS["superposed-20"]
    x, magnitudes = world.sample(100, 3)
    assert x.shape == (100, 19) and x.dtype == torch.float32
    by_hand = torch.stack([sum((m * d for m, d in zip(row, world.directions, strict=True))) for row in magnitudes])
    torch.testing.assert_close(x, by_hand, rtol=1e-5, atol=1e-4)
    assert set(magnitudes.flatten().tolist()) == set(map(float, range(21)))


def test_linear_20_has_its_largest_expected_errors_at_4_to_8() -> None:
    magnitudes = WORLDS["linear-20"].sample(N, 0)[1]
    assert set(magnitudes.square().mean(0).topk(5).indices.tolist()) == {4, 5, 6, 7, 8}
    by_hand = [p * (20 - i) ** 2 for i, p in enumerate(LINEAR)]
    torch.testing.assert_close(magnitudes.square().mean(0), torch.tensor(by_hand), rtol=0.2, atol=0.05)


@pytest.mark.parametrize("name", [name for name in WORLDS if name != "superposed-20"])
def test_directions_are_orthonormal_where_there_is_room(name: str) -> None:
    d = WORLDS[name].directions.double()
    torch.testing.assert_close(d @ d.T, torch.eye(len(d), dtype=torch.float64), rtol=0, atol=1e-6)


def test_twenty_directions_in_nineteen_dimensions_reach_the_bound() -> None:
    cosines = WORLDS["superposed-20"].directions.double() @ WORLDS["superposed-20"].directions.double().T
    torch.testing.assert_close(cosines.diag(), torch.ones(20, dtype=torch.float64))
    off = cosines[~torch.eye(20, dtype=torch.bool)]
    torch.testing.assert_close(off.abs(), torch.full_like(off, 1 / 19), rtol=0, atol=1e-5)
    assert (off > 0).any() and (off < 0).any()


def test_directions_in_much_superposition_are_nearer_to_orthogonal_than_random_ones() -> None:
    def largest(d: torch.Tensor) -> float:
        return float((d @ d.T).fill_diagonal_(0).abs().max())

    random = torch.nn.functional.normalize(torch.randn(30, 20, generator=torch.Generator().manual_seed(0)), dim=1)
    assert math.sqrt(10 / (20 * 29)) <= largest(spread_out(30, 20, 0)) < 0.4 * largest(random)


def test_the_same_seed_draws_the_same_and_another_something_else() -> None:
    one, again = ToyWorld("toy:a", 3, (0.5,) * 3, (1.0,) * 3), ToyWorld("toy:a", 3, (0.5,) * 3, (1.0,) * 3)
    for a, b in zip(one.sample(50, 7), again.sample(50, 7), strict=True):
        assert torch.equal(a, b)
    assert not torch.equal(one.sample(50, 7)[1], one.sample(50, 8)[1])
    assert not torch.equal(one.directions, ToyWorld("toy:a", 3, (0.5,) * 3, (1.0,) * 3, seed=1).directions)


def test_magnitudes_are_spread_evenly_about_their_mean() -> None:
    magnitudes = ToyWorld("toy:a", 2, (0.5, 0.9), (2.0, 10.0), spread=0.25).sample(N, 0)[1]
    for column, mean in zip(magnitudes.T, (2.0, 10.0), strict=True):
        on = column[column > 0]
        assert 0.75 * mean <= float(on.min()) < 0.751 * mean
        assert 1.249 * mean < float(on.max()) <= 1.25 * mean
        assert float(on.std()) == pytest.approx(0.5 * mean / math.sqrt(12), rel=0.03)


@pytest.mark.parametrize(
    "wrong",
    [
        {"magnitudes": (1.0,)},
        {"probabilities": (0.5, 1.5)},
        {"spread": 1.0},
        {"pulled": ((0, (0,)),)},
        {"given": ((0, (2,)),)},
    ],
)
def test_a_world_that_makes_no_sense_is_refused(wrong: dict[str, object]) -> None:
    right: dict[str, object] = {"name": "toy:a", "d_in": 3, "probabilities": (0.5, 0.5), "magnitudes": (1.0, 1.0)}
    with pytest.raises(SaebenchError, match="world 'toy:a'"):
        ToyWorld(**{**right, **wrong})  # type: ignore[arg-type]


def test_worlds_are_found_by_reference_and_a_slip_is_answered_with_the_nearest() -> None:
    assert open_world(registry(), "toy:linear-20") is WORLDS["linear-20"]
    with pytest.raises(SaebenchError, match="did you mean 'linear-20'"):
        open_world(registry(), "toy:linear20")
