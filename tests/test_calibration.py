"""The threshold of a batch-top-k SAE found on data: mean L0 is k, whatever the chunks."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from saebench_meta import calibration
from saebench_meta.calibration import calibrate_threshold, is_uncalibrated, uncalibrated_note
from saebench_meta.errors import SaebenchError
from saebench_meta.sae import SAE, SAEInfo, Site

D, F = 8, 40


def make(**fields: Any) -> SAE:
    g = torch.Generator().manual_seed(0)
    known: dict[str, Any] = {"activation": "jumprelu", "k": 5, "notes": ("kept", uncalibrated_note(5, "because"))}
    info = SAEInfo(name="x", site=Site(model="m", hook="h"), d_in=D, d_sae=F, **(known | fields))
    threshold = torch.zeros(F) if info.activation == "jumprelu" else None
    return SAE(
        torch.randn(D, F, generator=g), torch.randn(F, generator=g), torch.randn(F, D), torch.zeros(D), info, threshold
    )


def sample(n: int) -> torch.Tensor:
    return torch.randn(n, D, generator=torch.Generator().manual_seed(n))


@pytest.mark.parametrize("transform", ["none", "center", "layer_norm", "norm_rescale"])
@pytest.mark.parametrize("k", [1, 5, 11])
def test_mean_l0_on_the_sample_is_k(k: int, transform: str) -> None:
    x = sample(300)
    sae = calibrate_threshold(make(input_transform=transform), [x], k)
    assert int((sae.encode(x) > 0).sum()) == k * 300


def test_the_threshold_lies_midway_between_the_last_kept_and_the_first_dropped() -> None:
    info = SAEInfo(name="x", site=Site(model="m", hook="h"), d_in=1, d_sae=3, activation="jumprelu", k=1)
    sae = SAE(torch.tensor([[1.0, 2.0, 4.0]]), torch.zeros(3), torch.ones(3, 1), torch.zeros(1), info, torch.zeros(3))
    found = calibrate_threshold(sae, [torch.tensor([[1.0], [0.5]])], 1)  # 4, 2, 1 and 2, 1, 0.5: two above 2 at most
    assert found.threshold is not None and found.threshold[0] == 2.0  # a tie: 4 alone is above
    found = calibrate_threshold(sae, [torch.tensor([[1.0], [0.25]])], 1)  # 4, 2, 1 and 1, .5, .25: two above 1.5
    assert found.threshold is not None and found.threshold.tolist() == [1.5] * 3


def test_chunks_and_blocks_make_no_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.cat([sample(100) * 3, sample(200) * 0.1, sample(57)])  # the first tokens hold most of the large values
    whole = calibrate_threshold(make(), [x], 5)
    monkeypatch.setattr(calibration, "BLOCK", 7 * F)
    parts = calibrate_threshold(make(), (part for part in torch.split(x, 23)), 5)
    assert whole.threshold is not None and parts.threshold is not None
    torch.testing.assert_close(parts.threshold, whole.threshold, atol=1e-6, rtol=0)
    assert int((parts.encode(x) > 0).sum()) == 5 * len(x)


def test_the_batch_selection_of_training_comes_out_on_the_same_batch() -> None:
    x, sae = sample(64), make()
    pre = torch.relu(sae.preactivations(x))
    best = pre.flatten().topk(5 * 64)
    expected = torch.zeros(pre.numel()).scatter(0, best.indices, best.values).view(pre.shape)
    torch.testing.assert_close(calibrate_threshold(sae, [x], 5).encode(x), expected)


def test_a_k_that_is_never_reached_gives_zero() -> None:
    sae = make()
    silent = replace(sae, b_enc=torch.full((F,), -1e3))
    found = calibrate_threshold(silent, [sample(10)], 5)
    assert found.threshold is not None and found.threshold.tolist() == [0.0] * F


def test_the_note_changes_and_the_others_stay() -> None:
    before = make()
    after = calibrate_threshold(before, [sample(50)], 5)
    assert is_uncalibrated(before.info) and not is_uncalibrated(after.info)
    assert after.info.notes[0] == "kept" and "calibrated on 50 tokens" in after.info.notes[1]
    assert torch.equal(after.W_enc, before.W_enc) and after.info.k == 5


def test_neighbouring_numbers_are_still_told_apart() -> None:
    a = torch.tensor(1.0)
    b = torch.nextafter(a, torch.tensor(2.0))
    assert calibration._between(torch.stack([a, b]), 1) == 1.0


@pytest.mark.parametrize(
    ("fields", "x", "k", "said"),
    [
        ({"activation": "relu"}, sample(3), 5, "no threshold"),
        ({}, sample(0), 5, "no activations"),
        ({}, sample(3), 0, "cannot be reached"),
        ({}, sample(3), F + 1, "cannot be reached"),
    ],
)
def test_what_cannot_be_calibrated_says_why(fields: dict[str, Any], x: torch.Tensor, k: int, said: str) -> None:
    with pytest.raises(SaebenchError, match=said):
        calibrate_threshold(make(**fields), [x], k)
