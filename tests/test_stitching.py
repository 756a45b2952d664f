"""The algebra of stitching against brute force: every stitched SAE decoded in full, in float64, bias included."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from brute_force import BruteForce
from hypothesis import given, settings
from hypothesis import strategies as st

from saebench_meta.errors import SaebenchError
from saebench_meta.geometry import similarity
from saebench_meta.sae import SAE, SAEInfo, Site
from saebench_meta.stitching import (
    LEFTOVER,
    NOVEL,
    SWAP,
    Components,
    PairSample,
    Schedule,
    additions,
    check_same_space,
    components,
    only_add,
    schedule,
    swaps,
    walk,
)
from saebench_meta.task import Pair

D, TOKENS, DOCS = 12, 600, 40
THETA = 0.7


def random_sae(F: int, seed: int, like: SAE | None = None, **info: object) -> SAE:
    """A random SAE; half of its rows lie near rows of `like`."""
    g = torch.Generator().manual_seed(seed)
    W = torch.randn(F, D, generator=g)
    if like is not None:
        origin = torch.randint(like.d_sae, (F // 2,), generator=g)
        W[: F // 2] = like.W_dec[origin] + 0.25 * W[: F // 2]
    W = W * (0.5 + torch.rand(F, 1, generator=g))
    facts = SAEInfo(name=f"r{F}", site=Site(model="m", hook="h"), d_in=D, d_sae=F).model_copy(update=info)
    threshold = torch.full((F,), 0.3) if facts.activation == "jumprelu" else None
    b_dec = torch.randn(D, generator=g)
    return SAE(W.T.contiguous() * 0.5, torch.randn(F, generator=g) * 0.3 - 0.4, W, b_dec, facts, threshold)


def sample_of(s0: SAE, s1: SAE, seed: int = 0) -> PairSample:
    g = torch.Generator().manual_seed(seed)
    x = 2 * torch.randn(TOKENS, D, generator=g) + 1
    document = torch.randint(DOCS, (TOKENS,), generator=g).sort().values
    return PairSample.of(Pair(s1, s0), x, document, chunk=251)


NONE = np.zeros(0, dtype=int)
KINDS = {
    "relu": ({}, {}),
    "jumprelu and relu": ({}, {"activation": "jumprelu"}),
    "topk": ({"activation": "topk", "k": 3}, {"activation": "topk", "k": 4}),
    "layer_norm": ({"input_transform": "layer_norm"}, {"input_transform": "layer_norm"}),
    "norm_rescale": ({"input_transform": "norm_rescale"}, {"input_transform": "norm_rescale"}),
    "center": ({"input_transform": "center"}, {"input_transform": "center"}),
}


@cache
def case(kind: str) -> tuple[PairSample, Components, np.ndarray]:
    old, new = KINDS[kind]
    s0 = random_sae(16, 1, **old)
    s1 = random_sae(30, 2, like=s0, **new)
    found = similarity(s1.W_dec, s0.W_dec, THETA)
    return sample_of(s0, s1), components(found.edges, 16, 30), found.max_a


@pytest.mark.parametrize("kind", KINDS)
def test_adding_each_latent_alone_equals_decoding_anew(kind: str) -> None:
    sample, _, _ = case(kind)
    brute, made = BruteForce(sample), additions(sample)
    base = brute.errors(brute.all_old, NONE)
    group = brute.document * sample.n_groups // sample.n_docs
    for j in range(30):
        change = brute.errors(brute.all_old, np.array([j])) - base
        by_group = np.bincount(group, change, minlength=sample.n_groups)
        np.testing.assert_allclose(made.dsse[:, j], by_group, atol=1e-6 * base.sum())
    assert made.elements == TOKENS * D


@pytest.mark.parametrize("kind", KINDS)
def test_errors_where_each_latent_is_active(kind: str) -> None:
    sample, _, _ = case(kind)
    brute, made = BruteForce(sample), additions(sample)
    e0, e1 = brute.errors(brute.all_old, NONE), brute.errors(NONE, np.arange(30))
    active = brute.f1.numpy() != 0
    np.testing.assert_allclose(made.count.sum(0), active.sum(0))
    np.testing.assert_allclose(made.err_old.sum(0), e0 @ active, rtol=1e-5)
    np.testing.assert_allclose(made.err_new.sum(0), e1 @ active, rtol=1e-5)
    np.testing.assert_allclose(made.sse_old.sum(), e0.sum(), rtol=1e-6)
    np.testing.assert_allclose(made.sse_new.sum(), e1.sum(), rtol=1e-6)
    assert made.tokens.sum() == TOKENS


@pytest.mark.parametrize("order", ["cosine", "random"])
@pytest.mark.parametrize("kind", KINDS)
def test_every_step_of_the_path_equals_decoding_anew(kind: str, order: str) -> None:
    sample, parts, cosine = case(kind)
    way = schedule(parts, cosine, order=order, rng=np.random.default_rng(3))  # type: ignore[arg-type]
    brute, (path,) = BruteForce(sample), walk(sample, [way])
    base = brute.sse(brute.all_old, NONE)
    for step in range(way.steps + 1):
        old, new = way.after(step)
        assert path.sse[step] == pytest.approx(brute.sse(old, new), abs=1e-6 * base)
        assert path.active[step] == brute.active(old, new)
        assert (path.n_old[step], path.n_new[step]) == (len(old), len(new))
    assert path.sse[0] == pytest.approx(base, rel=1e-6)
    assert path.sse[-1] == pytest.approx(brute.sse(NONE, np.arange(30)), rel=1e-6)
    assert path.l0[-1] == brute.active(NONE, np.arange(30)) / TOKENS
    assert path.mse[0] == pytest.approx(base / (TOKENS * D), rel=1e-6)
    assert list(path.features[[0, -1]]) == [16, 30]


@pytest.mark.parametrize("kind", KINDS)
def test_every_swap_alone_equals_decoding_anew(kind: str) -> None:
    sample, parts, _ = case(kind)
    assert parts.n > 3 and parts.n_new.max() > 1
    brute, made = BruteForce(sample), swaps(sample, parts)
    base, active = brute.sse(brute.all_old, NONE), brute.active(brute.all_old, NONE)
    for c in range(parts.n):
        out, new = parts.members(c)
        rest = np.setdiff1d(brute.all_old, out)
        assert made.dsse[:, c].sum() == pytest.approx(brute.sse(rest, new) - base, abs=1e-6 * base)
        assert made.dactive[:, c].sum() == brute.active(rest, new) - active
    assert made.sse_old.sum() == pytest.approx(base, rel=1e-6)
    assert made.tokens.sum() == TOKENS


def test_one_big_component_is_swapped_exactly() -> None:
    s0, s1 = random_sae(10, 4), random_sae(14, 5)
    sample = sample_of(s0, s1)
    everything = Components(np.zeros(10, int), np.zeros(14, int), np.ones(1), np.full(1, 140))
    brute = BruteForce(sample)
    change = brute.sse(NONE, np.arange(14)) - brute.sse(brute.all_old, NONE)
    assert swaps(sample, everything).dsse.sum() == pytest.approx(change, rel=1e-6)


def test_adding_some_latents_and_removing_nothing() -> None:
    sample, _, _ = case("relu")
    brute = BruteForce(sample)
    chosen = [np.array([7, 3, 20]), np.array([1])]
    paths = walk(sample, [only_add(c, 16, 30) for c in chosen])
    for latents, path in zip(chosen, paths, strict=True):
        expected = [brute.sse(brute.all_old, latents[:n]) for n in range(len(latents) + 1)]
        np.testing.assert_allclose(path.sse, expected, rtol=1e-6)


def test_an_sae_stitched_with_itself_changes_nothing() -> None:
    s = random_sae(16, 1)
    sample = sample_of(s, s)
    found = similarity(s.W_dec, s.W_dec, 0.999)
    parts = components(found.edges, 16, 16)
    assert (parts.n, parts.n_old.max(), parts.n_new.max()) == (16, 1, 1)
    way = schedule(parts, found.max_a)
    (path,) = walk(sample, [way])
    assert way.steps == 32 and not (way.phase != SWAP).any()
    np.testing.assert_allclose(path.sse[way.whole()], path.sse[0], rtol=1e-7)
    assert len(set(path.active[way.whole()])) == 1
    made = swaps(sample, parts)
    np.testing.assert_allclose(made.dsse.sum(0), 0, atol=1e-6 * path.sse[0])
    assert not made.dactive.any()


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 2**31))
def test_permuting_latents_changes_nothing(seed: int) -> None:
    sample, parts, _ = case("relu")
    rng = np.random.default_rng(seed)
    p0, p1 = rng.permutation(16), rng.permutation(30)
    s0, s1 = _permuted(sample.pair.reference, p0), _permuted(sample.pair.sae, p1)
    other = sample_of(s0, s1)
    found = similarity(s1.W_dec, s0.W_dec, THETA)
    again = components(found.edges, 16, 30)
    np.testing.assert_allclose(additions(other).dsse, additions(sample).dsse[:, p1], atol=1e-3)
    assert sorted(zip(again.n_old, again.n_new, strict=True)) == sorted(zip(parts.n_old, parts.n_new, strict=True))
    both = ((sample, parts, case("relu")[2]), (other, again, found.max_a))
    ours, theirs = (walk(s, [schedule(c, m)])[0] for s, c, m in both)
    np.testing.assert_allclose(theirs.sse[[0, -1]], ours.sse[[0, -1]], rtol=1e-6)
    novel = int((parts.new < 0).sum())
    np.testing.assert_allclose(theirs.sse[: novel + 1], ours.sse[: novel + 1], rtol=1e-6)


def _permuted(s: SAE, order: np.ndarray) -> SAE:
    return replace(s, W_enc=s.W_enc[:, order].contiguous(), b_enc=s.b_enc[order], W_dec=s.W_dec[order])


def test_blocks_and_chunks_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    sample, parts, cosine = case("layer_norm")
    way = schedule(parts, cosine)
    before = walk(sample, [way])[0], additions(sample), swaps(sample, parts)
    for module in ("sample", "path"):
        name = f"saebench_meta.stitching.{module}.BLOCK_ELEMENTS"
        monkeypatch.setattr(name, {"cpu": 3 * D} if module == "sample" else 7 * D)
    after = walk(sample, [way])[0], additions(sample), swaps(sample, parts)
    np.testing.assert_allclose(after[0].sse, before[0].sse, rtol=1e-6)
    np.testing.assert_allclose(after[1].dsse, before[1].dsse, atol=1e-3)
    np.testing.assert_allclose(after[2].dsse, before[2].dsse, atol=1e-3)


# -- the graph, by hand


def _axes(*rows: tuple[int, ...]) -> torch.Tensor:
    out = torch.zeros(len(rows), 8)
    for i, axes in enumerate(rows):
        out[i, list(axes)] = 1
    return out


def test_components_by_hand() -> None:
    W0 = _axes((0,), (1,), (2,), (3,), (4, 5, 6))
    W1 = _axes((0,), (1, 2), (3,), (3,), (7,), (0,))
    # cos((1, 2), (1,)) = .7071 > .7: latent 1 joins two latents of S0; 3 splits in two; (4, 5, 6) and (7,) are alone.
    found = similarity(W1, W0, THETA)
    parts = components(found.edges, 5, 6)
    assert parts.old.tolist() == [0, 1, 1, 2, -1]
    assert parts.new.tolist() == [0, 1, 2, 2, -1, 0]
    assert parts.n_old.tolist() == [1, 2, 1] and parts.n_new.tolist() == [2, 1, 2]
    assert parts.n_edges.tolist() == [2, 2, 2]
    np.testing.assert_allclose(parts.mean_cosine, [1, 0.5**0.5, 1])
    assert [m.tolist() for m in parts.members(1)] == [[1, 2], [1]]
    way = schedule(parts, found.max_a)
    assert way.latent.tolist() == [4, 0, 0, 5, 3, 2, 3, 1, 2, 1, 4]
    assert way.enters.tolist() == [True, False, True, True, False, True, True, False, False, True, False]
    assert way.phase.tolist() == [NOVEL] + [SWAP] * 9 + [LEFTOVER]
    assert way.whole().tolist() == [0, 1, 4, 7, 10, 11]
    assert [a.tolist() for a in way.after(4)] == [[1, 2, 3, 4], [0, 4, 5]]


def test_a_tie_at_theta_is_novel() -> None:
    W0, W1 = torch.eye(4), torch.tensor([[0.5, 0.5, 0.5, 0.5], [1.0, 0, 0, 0]])
    found = similarity(W1, W0, 0.5)
    assert found.max_a.tolist() == [0.5, 1.0]
    parts = components(found.edges, 4, 2)
    assert parts.new.tolist() == [-1, 0] and parts.old.tolist() == [0, -1, -1, -1]


def test_disjoint_dictionaries_have_no_components_and_identical_ones_nothing_novel() -> None:
    eye = torch.eye(8)
    assert components(similarity(eye[:4], eye[4:], THETA).edges, 4, 4).n == 0
    same = components(similarity(eye, eye, THETA).edges, 8, 8)
    assert same.n == 8 and not (same.new < 0).any()


def test_a_path_between_disjoint_dictionaries_adds_all_then_removes_all() -> None:
    eye = torch.eye(8)
    found = similarity(eye[:3], eye[4:], THETA)
    way = schedule(components(found.edges, 4, 3), found.max_a)
    assert way.phase.tolist() == [NOVEL] * 3 + [LEFTOVER] * 4


def test_a_random_order_needs_a_stream() -> None:
    _, parts, cosine = case("relu")
    with pytest.raises(ValueError, match="rng"):
        schedule(parts, cosine, order="random")


def test_saes_of_different_spaces_are_refused() -> None:
    s0, s1 = random_sae(4, 1), random_sae(4, 1, input_transform="layer_norm")
    with pytest.raises(SaebenchError, match=r"stitching.*input transform \(layer_norm and none\)"):
        check_same_space("stitching", s1, s0)


def test_nothing_active_is_no_error() -> None:
    s0, s1 = (replace(random_sae(F, F), b_enc=torch.full((F,), -1e4)) for F in (4, 6))
    sample = sample_of(s0, s1)
    found = similarity(s1.W_dec, s0.W_dec, THETA)
    parts = components(found.edges, 4, 6)
    brute = BruteForce(sample)
    (path,) = walk(sample, [schedule(parts, found.max_a)])
    assert path.sse[-1] == pytest.approx(brute.sse(NONE, np.arange(6)), rel=1e-6)
    assert additions(sample).dsse.shape == (40, 6)
    assert swaps(sample, parts).dsse.shape == (40, parts.n)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_gpu_and_cpu_agree() -> None:
    sample, parts, cosine = case("layer_norm")
    pair = Pair(sample.pair.sae.to("cuda"), sample.pair.reference.to("cuda"))
    x = torch.cat([c.x for c in sample])
    document = torch.cat([c.document for c in sample])
    there, here = PairSample.of(pair, x, document), PairSample.of(sample.pair, x, document)
    way = schedule(parts, cosine)
    np.testing.assert_allclose(walk(there, [way])[0].sse, walk(here, [way])[0].sse, rtol=1e-5)
    np.testing.assert_allclose(additions(there).dsse, additions(here).dsse, atol=1e-2)
    np.testing.assert_allclose(swaps(there, parts).dsse, swaps(here, parts).dsse, atol=1e-2)


def test_schedule_of_one_step_is_whole_at_both_ends() -> None:
    one = Schedule(np.array([0]), np.array([True]), np.zeros(1, np.int8), np.array([-1]), 1, 1)
    assert one.whole().tolist() == [0, 1]
