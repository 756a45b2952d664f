"""Novel latents, geometry: a case worked out by hand, the boundary, invariances, samples against censuses, refusals."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from fakes import info, tied_sae
from hypothesis import given, settings
from hypothesis import strategies as st
from novel_pairs import novel_rows, run

from saebench_meta import controls
from saebench_meta.errors import SaebenchError
from saebench_meta.sae import SAE, Site
from saebench_meta.task import Output
from saebench_tasks.novel_latents import novel_latents

RATIOS = ("novel_ratio", "mirrored_ratio", "mean_max_cosine")


def dictionary(rows: list[list[float]] | torch.Tensor, **changes: Any) -> SAE:
    """An SAE of which only the decoder matters."""
    W = torch.as_tensor(rows, dtype=torch.float32)
    d_sae, d_in = W.shape
    return SAE(torch.zeros(d_in, d_sae), torch.zeros(d_sae), W, torch.zeros(d_in), info(d_in, d_sae, **changes))


def at(*degrees: float) -> SAE:
    """Unit directions in the plane."""
    return dictionary([[math.cos(math.radians(a)), math.sin(math.radians(a))] for a in degrees])


def numbers(output: Output) -> list[float | None]:
    return [output.estimates[name].value for name in RATIOS]


def test_directions_at_known_angles() -> None:
    """Under test 0°, 40°, 100°, 200°, 270°; reference 30°, 90°: nearest 30°, 10°, 10°, 110° and 120° away."""
    output = run(at(0, 40, 100, 200, 270), at(30, 90))
    cosines = [math.cos(math.radians(a)) for a in (30, 10, 10, 110, 120)]
    # mirrored: 30° has 40° beside it, 90° has 100°
    assert numbers(output) == [pytest.approx(2 / 5), 0.0, pytest.approx(sum(cosines) / 5)]
    table = novel_rows(output)
    assert table["latent"].tolist() == [4, 3]
    assert table["nearest_reference_latent"].tolist() == [0, 1]
    assert table["max_cosine"].tolist() == pytest.approx([cosines[4], cosines[3]], abs=1e-6)


def test_a_cosine_equal_to_the_threshold_counts_as_novel() -> None:
    sae, reference = dictionary([[3.0, 4.0]]), dictionary([[2.0, 0.0]])
    assert run(sae, reference, threshold=0.6).estimates["novel_ratio"].value == 1.0
    assert run(sae, reference, threshold=math.nextafter(0.6, 0)).estimates["novel_ratio"].value == 0.0


def test_opposite_directions_are_no_counterparts() -> None:
    assert run(at(0), at(180)).estimates["novel_ratio"].value == 1.0


def test_a_dictionary_against_itself_has_nothing_novel() -> None:
    sae = tied_sae(16, 40)
    assert numbers(run(sae, sae)) == [0.0, 0.0, pytest.approx(1.0)]
    assert len(novel_rows(run(sae, sae))) == 0


def test_swapping_the_two_swaps_the_ratios() -> None:
    one, other = tied_sae(4, 30, seed=1), tied_sae(4, 20, seed=2)
    forward, back = numbers(run(one, other)), numbers(run(other, one))
    assert forward[:2] == back[1::-1]
    assert 0 < forward[0] < 1  # type: ignore[operator]


@settings(max_examples=12)
@given(st.integers(0, 10_000))
def test_order_and_scale_of_latents_change_nothing(seed: int) -> None:
    g = torch.Generator().manual_seed(seed)
    one, other = tied_sae(4, 30, seed=1), tied_sae(4, 20, seed=2)
    scale = torch.rand(30, 1, generator=g) * 100 + 0.01
    changed = dictionary((one.W_dec * scale)[torch.randperm(30, generator=g)])
    assert numbers(run(changed, other)) == pytest.approx(numbers(run(one, other)), abs=1e-6)
    moved = dictionary(other.W_dec[torch.randperm(20, generator=g)] / 7)
    assert numbers(run(one, moved)) == pytest.approx(numbers(run(one, other)), abs=1e-6)


def test_all_latents_are_a_census_and_a_limit_makes_them_a_sample() -> None:
    one, other = tied_sae(4, 30, seed=1), tied_sae(4, 20, seed=2)
    whole = run(one, other).estimates
    assert {whole[name].method for name in RATIOS} == {"census"}
    assert (whole["novel_ratio"].n, whole["mirrored_ratio"].n, whole["novel_ratio"].ci_low) == (30, 20, None)
    part = run(one, other, limit=25).estimates
    assert (part["novel_ratio"].method, part["novel_ratio"].n, part["novel_ratio"].n_unit) == ("wilson", 25, "latents")
    assert part["novel_ratio"].ci_low is not None
    assert (part["mean_max_cosine"].method, part["mean_max_cosine"].n_unit) == ("bootstrap", "latents")
    # 25 latents are all of the reference's 20
    assert part["mirrored_ratio"] == whole["mirrored_ratio"]


def test_curve_rises_to_one_in_both_directions_and_meets_the_headline() -> None:
    output = run(tied_sae(4, 30, seed=1), tied_sae(4, 20, seed=2), threshold=0.7)
    curve = output.tables["ratio_over_theta"].data
    for (_, side), name in zip(curve.groupby("direction", sort=False), ("novel_ratio", "mirrored_ratio"), strict=True):
        assert side["ratio"].is_monotonic_increasing
        assert side["ratio"].iloc[-1] == 1.0
        assert float(side.loc[side["theta"] == 0.7, "ratio"].iloc[0]) == output.estimates[name].value


def test_permuting_decoder_coordinates_makes_nearly_every_latent_novel() -> None:
    sae = tied_sae(64, 40)
    control = controls.permuted_columns(sae, np.random.default_rng(0))
    assert run(sae, sae).estimates["novel_ratio"].value == 0.0
    assert run(control, sae).estimates["novel_ratio"].value == 1.0


def test_disjoint_orthogonal_dictionaries_have_nothing_in_common() -> None:
    eye = torch.eye(8)
    assert numbers(run(dictionary(eye[:5]), dictionary(eye[5:]))) == [1.0, 1.0, 0.0]


def test_ratios_have_no_better_direction() -> None:
    assert {novel_latents.metric(name).better for name in RATIOS} == {"neither"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"site": Site(model="toy", hook="blocks.9.hook_resid_pre")}, "differ in hook"),
        ({"site": Site(model="other", hook="blocks.1.hook_resid_pre")}, "differ in model"),
        ({"input_transform": "layer_norm"}, "differ in input transform"),
    ],
)
def test_saes_that_do_not_share_a_space_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(SaebenchError, match=message):
        run(dictionary([[1.0, 0.0]]), dictionary([[1.0, 0.0]], **changes))


def test_saes_of_different_width_are_refused_with_both_widths() -> None:
    with pytest.raises(SaebenchError, match=r"width d_in \(2 and 3\)"):
        run(dictionary([[1.0, 0.0]]), dictionary([[1.0, 0.0, 0.0]]))


@pytest.mark.parametrize("threshold", [1.5, -2.0, math.nan])
def test_a_threshold_that_is_no_cosine_is_refused(threshold: float) -> None:
    with pytest.raises(SaebenchError, match="threshold"):
        run(at(0), at(0), threshold=threshold)
