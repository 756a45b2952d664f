"""Built-in tasks keep every rule that is published for others' own, on a few documents and with few steps."""

from __future__ import annotations

import pytest

from saebench_meta.testing import Check, Samples, battery

pytestmark = pytest.mark.slow

CHEAP = {
    "broken_latents": {"worlds": ()},
    "city_steering": {"pairs": 2, "edits": 2, "side_tokens": 128, "steps": 10},
    "frankenstein": {"tokens": 8192, "ce_tokens": 256},
    "meta_sae": {"steps": 10},
    "meta_sae_family": {"steps": 10},
    "meta_sae_pair": {"steps": 10},
    "sparse_probing": {"splits": 1},
    "stitching": {"ce_points": 3, "adding_orders": 1},
    "tpp": {"trials": 1},
}
RANDOM = "it compares with latents drawn at random"
ROWS = "it trains on the decoder's rows, in their order"
EXEMPT = {
    "task 'frankenstein': padding*": "it trains on rows of the length given",
    "task 'meta_sae*': the order of latents*": ROWS,
    "task 'sparse_probing': the order of latents*": RANDOM,
    "task 'tpp': the order of latents*": RANDOM,
}
SAMPLES = Samples(parameters=CHEAP, exempt=EXEMPT)


@pytest.mark.parametrize("check", battery("saebench-meta", SAMPLES, kinds=("task",)), ids=str)
def test_a_task_keeps(check: Check) -> None:
    check()
