"""Every addition, every swap and steps of the path on atlas's own SAEs and activations, against brute force."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
from brute_force import BruteForce

from saebench_meta.geometry import similarity
from saebench_meta.inputs import InputsFinder
from saebench_meta.plugins import registry
from saebench_meta.resolve import resolve_sae
from saebench_meta.session import Session
from saebench_meta.settings import Settings
from saebench_meta.stitching import Components, PairSample, Schedule, additions, components, schedule, swaps, walk
from saebench_meta.task import Pair

TOKENS, THETA = 2000, 0.7
NONE = np.zeros(0, dtype=int)


@dataclass
class Case:
    sample: PairSample
    brute: BruteForce
    parts: Components
    way: Schedule
    base: float


@pytest.fixture(scope="module", params=["batchtopk", "relu"])
def case(request: pytest.FixtureRequest) -> Case:
    old, new = (f"atlas:{request.param}-{width}" for width in (128, 256))
    found = registry()
    settings = Settings(saes=(new,), tokens=TOKENS, cache=False, device="cpu")
    s1, s0 = resolve_sae(found, new), resolve_sae(found, old)
    inputs = InputsFinder(found, settings).find(s1)
    assert not isinstance(inputs, str)
    activations = Session(found, settings).site(inputs).activations
    pair = Pair(s1.load(), s0.load())
    sample = PairSample.of(pair, activations.all(), activations.documents)
    seen = similarity(pair.sae.W_dec, pair.reference.W_dec, THETA)
    parts = components(seen.edges, 128, 256)
    brute = BruteForce(sample)
    return Case(sample, brute, parts, schedule(parts, seen.max_a), brute.sse(brute.all_old, NONE))


def test_every_addition_equals_decoding_anew(case: Case) -> None:
    made = additions(case.sample).dsse.sum(0)
    alone = [case.brute.sse(case.brute.all_old, np.array([j])) - case.base for j in range(256)]
    np.testing.assert_allclose(made, alone, rtol=0, atol=1e-6 * case.base)


def test_every_swap_alone_equals_decoding_anew(case: Case) -> None:
    assert case.parts.n > 20
    made = swaps(case.sample, case.parts)
    for c in range(case.parts.n):
        out, new = case.parts.members(c)
        rest = np.setdiff1d(case.brute.all_old, out)
        assert made.dsse[:, c].sum() == pytest.approx(
            case.brute.sse(rest, new) - case.base, rel=0, abs=1e-6 * case.base
        )
        active = case.brute.active(rest, new) - case.brute.active(case.brute.all_old, NONE)
        assert made.dactive[:, c].sum() == active


def test_the_path_equals_decoding_anew_and_ends_at_the_larger_sae(case: Case) -> None:
    (path,) = walk(case.sample, [case.way])
    steps = np.random.default_rng(0).choice(case.way.steps + 1, 50, replace=False)
    for step in (0, case.way.steps, *steps):
        old, new = case.way.after(int(step))
        assert path.sse[step] == pytest.approx(case.brute.sse(old, new), rel=0, abs=1e-6 * case.base)
        assert path.active[step] == case.brute.active(old, new)
    everything = np.arange(256)
    assert path.sse[0] == pytest.approx(case.base, rel=1e-6)
    assert path.sse[-1] == pytest.approx(case.brute.sse(NONE, everything), rel=1e-6)
    assert path.active[-1] == case.brute.active(NONE, everything)
