"""The oracle and the degraded ladder, where what they should be is known."""

from __future__ import annotations

import pytest
import torch
from scipy.sparse import csr_array

from saebench_meta.sae import SAE, SAEInfo, Site
from saebench_meta.training.trainable import unit_rows
from saebench_plugins.atlas.oracle import best_threshold, decoder, oracle
from saebench_plugins.atlas.saes import degraded
from saebench_plugins.atlas.site import DEGRADED

D_IN, FEATURES, TOKENS = 24, 12, 6000


@pytest.fixture(scope="module")
def planted() -> tuple[torch.Tensor, csr_array, torch.Tensor]:
    """Activations of features that are on with probability .1, their truth, and their directions (of norm 3)."""
    g = torch.Generator().manual_seed(0)
    directions = 3 * unit_rows(torch.randn(FEATURES, D_IN, generator=g))
    on = torch.rand(TOKENS, FEATURES, generator=g) < 0.1
    x = on.float() @ directions + 1.0 + 0.05 * torch.randn(TOKENS, D_IN, generator=g)
    return x, csr_array(on.numpy().astype("uint8")), directions


def test_decoder_is_the_least_squares_answer(planted: tuple[torch.Tensor, csr_array, torch.Tensor]) -> None:
    x, on, directions = planted
    W_dec, b_dec = decoder(x, on)
    design = torch.cat([torch.from_numpy(on.toarray()).double(), torch.ones(TOKENS, 1).double()], 1)
    solved = torch.linalg.lstsq(design, x.double()).solution
    torch.testing.assert_close(W_dec, solved[:-1].float(), atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(b_dec, solved[-1].float(), atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(W_dec, directions, atol=0.03, rtol=0)


def test_oracle_fires_where_features_are_on_with_codes_of_their_norm(
    planted: tuple[torch.Tensor, csr_array, torch.Tensor],
) -> None:
    x, on, directions = planted
    sae = oracle(x, on, 128, 0)
    f, truth = sae.encode(x), torch.from_numpy(on.toarray()).bool()
    both = ((f > 0) & truth).sum(0)
    assert (2 * both / ((f > 0).sum(0) + truth.sum(0))).min() > 0.97
    mean_code = torch.stack([f[truth[:, j], j].mean() for j in range(FEATURES)])
    torch.testing.assert_close(mean_code, directions.norm(dim=1), rtol=0.05, atol=0)
    torch.testing.assert_close(sae.W_dec.norm(dim=1), torch.ones(FEATURES))
    assert (x - sae.decode(f)).pow(2).sum() / (x - x.mean(0)).pow(2).sum() < 0.1


def test_a_feature_that_is_never_on_never_fires(planted: tuple[torch.Tensor, csr_array, torch.Tensor]) -> None:
    x, on, _ = planted
    off = csr_array(on.toarray() * [0, *[1] * (FEATURES - 1)])
    sae = oracle(x, off.astype("uint8"), 128, 0)
    assert torch.isfinite(sae.W_enc).all()
    torch.testing.assert_close(sae.W_dec.norm(dim=1), torch.ones(FEATURES))
    assert not (sae.encode(x)[:, 0] > 0).any()


def test_best_threshold_by_hand() -> None:
    score = torch.tensor([0.9, 0.8, 0.7, 0.2, 0.1])
    truth = torch.tensor([True, False, True, False, False])
    assert best_threshold(score, truth) == (pytest.approx(0.45), pytest.approx(0.8))  # F1 4/5, against 2/3 above .9
    tied = torch.tensor([0.5, 0.5, 0.1])
    assert best_threshold(tied, torch.tensor([True, False, False]))[0] == pytest.approx(0.3)
    assert best_threshold(score, torch.zeros(5, dtype=torch.bool))[0] > 0.9


def test_ladder_replaces_ever_more_latents_by_random_ones_that_fire_as_often() -> None:
    g = torch.Generator().manual_seed(0)
    x = torch.randn(4000, D_IN, generator=g)
    W = unit_rows(torch.randn(64, D_IN, generator=g))
    info = SAEInfo(
        name="x", site=Site(model="m", hook="h"), d_in=D_IN, d_sae=64, architecture="batchtopk", activation="jumprelu"
    )
    sae = SAE(W.T.contiguous(), torch.zeros(64), W, torch.zeros(D_IN), info, torch.full((64,), 1.5))
    share = (sae.encode(x) > 0).float().mean(0)
    before: set[int] = set()
    for percent, worse in zip(DEGRADED, degraded(sae, x, 0).values(), strict=True):
        replaced = set((worse.W_dec != W).any(1).nonzero().squeeze(1).tolist())
        assert len(replaced) == round(percent / 100 * 64)
        assert before < replaced
        f = worse.encode(x)
        torch.testing.assert_close((f > 0).float().mean(0), share, atol=2e-3, rtol=0)
        kept = [j for j in range(64) if j not in replaced]
        torch.testing.assert_close(f[:, kept], sae.encode(x)[:, kept])
        before = replaced
