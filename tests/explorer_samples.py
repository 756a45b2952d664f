"""What an explorer shows, made by hand: four latents, three meta-latents, texts that would be markup if let."""

from __future__ import annotations

import numpy as np
import torch

from saebench_meta.explorer.activity import Activity
from saebench_meta.explorer.folder import Contents, Shown
from saebench_meta.explorer.passages import Passage
from saebench_meta.explorer.sources import Decomposition, Steering

EVIL = "<script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\">"

ACTIVITY = Activity(
    counts=torch.tensor([5, 1, 0, 2]),
    maxima=torch.tensor([2.0, 0.123456, 0.0, 1.0]),
    tokens=torch.tensor([[7, 3, -1], [9, -1, -1], [-1, -1, -1], [3, 7, 9]]),
    n_tokens=10,
)
VOCABULARY = {3: " Paris", 7: EVIL, 9: "\n"}
# Latent 0 is 2·m1 + 1·m0, latent 1 is 1·m1, latent 3 is 4·m0.
DECOMPOSITION = Decomposition(
    np.array([0, 0, 1, 3]), np.array([1, 0, 1, 0]), np.array([2, 1, 1, 4], np.float32), n_metas=3
)
PASSAGE = Passage("17", 1, [3, 7, 9], [0.5, 2.0, 0.0])
STEERING = Steering(
    ["city", "target", "reached"],
    [["Paris", "Tokyo", "3"]],
    {
        "Paris": [
            ("Tokyo", "none", "country", "France", -0.1),
            ("Tokyo", "none", "country", "Japan", -4.0),
            ("Tokyo", "swap", "country", "France", -3.0),
            ("Tokyo", "swap", "country", EVIL, -0.25),
        ]
    },
)


def contents(title: str = "toy") -> Contents:
    """Everything an explorer can hold, small."""
    return Contents(
        title=title,
        facts={"latents": "4", EVIL: EVIL},
        d_sae=4,
        notes=(EVIL,),
        report="../report.html",
        activity=ACTIVITY,
        vocabulary=VOCABULARY,
        decomposition=DECOMPOSITION,
        explanations={0: f"a capital {EVIL}", 1: "line breaks"},
        steering=STEERING,
        shown={0: Shown([(PASSAGE, [" Paris", EVIL, "\n"])], [4, 0, 1], ([(EVIL, 3.14159)], [(" Paris", -2.0)]))},
    )


def large(d_sae: int, n_metas: int, *, k: int, explained: int, shown: int) -> Contents:
    """As much as a large SAE has: `k` meta-latents a latent, full passages of the latents shown."""
    rng = np.random.default_rng(0)
    vocabulary = {i: f" token{i}" for i in range(20_000)}
    found = Activity(
        counts=torch.from_numpy(rng.integers(1, 100_000, d_sae)),
        maxima=torch.from_numpy(rng.gamma(2.0, 10.0, d_sae)),
        tokens=torch.from_numpy(rng.integers(0, len(vocabulary), (d_sae, 3))),
        n_tokens=1_000_000,
    )
    pairs = Decomposition(
        np.repeat(np.arange(d_sae), k),
        np.concatenate([rng.choice(n_metas, k, replace=False) for _ in range(d_sae)]),
        rng.random(d_sae * k).astype(np.float32),
        n_metas,
    )
    passage = Passage("123456", 24, list(range(37)), rng.random(37).tolist())
    one = [(passage, [vocabulary[i] for i in passage.tokens])] * 10
    ranked = [(f" token{i}", 1.234567 * i) for i in range(10)]
    return Contents(
        title="large",
        facts={"latents": f"{d_sae:,}"},
        d_sae=d_sae,
        activity=found,
        vocabulary=vocabulary,
        decomposition=pairs,
        explanations={
            i: f"words about the topic number {i}, mostly at the start of sentences" for i in range(explained)
        },
        shown={i: Shown(one, list(range(24)), (ranked, ranked)) for i in range(shown)},
    )
