"""What the language model's training exchanges after cities."""

from __future__ import annotations

import torch

from saebench_plugins.atlas import language_model as lm
from saebench_plugins.atlas.site import SITE_LAYER
from saebench_plugins.atlas.steering import block_output

CITIES = torch.tensor([1, 2, 3])
IDS = torch.tensor([[1, 9, 7, 7], [2, 9, 8, 7], [3, 9, 7, 2], [9, 9, 7, 9]])


def test_places_are_exchanged_among_the_same_token_at_the_same_distance_only() -> None:
    seen = set()
    for seed in range(50):
        to, source = lm._exchange(IDS, CITIES, 1.0, torch.Generator().manual_seed(seed))
        assert sorted(to.tolist()) == sorted(source.tolist()) == [1, 2, 5, 6, 9, 10]
        for a, b in zip(to.tolist(), source.tolist(), strict=True):
            assert IDS.flatten()[a] == IDS.flatten()[b]
            assert a % 4 == b % 4
            seen.add((a, b))
    groups = ((1, 5, 9), (2, 10), (6,))
    assert seen == {(a, b) for group in groups for a in group for b in group}


def test_a_share_of_nothing_exchanges_nothing() -> None:
    to, _ = lm._exchange(IDS, CITIES, 0.0, torch.Generator().manual_seed(0))
    assert not len(to)


def test_the_model_is_changed_at_the_site_after_cities_while_training_and_not_after() -> None:
    tokenizer = lm.make_tokenizer()
    model = lm.make_model(tokenizer, 0).eval()
    texts = ["in Paris , as everyone knows", "near Lima , as everyone knows"]
    ids = tokenizer(texts, return_tensors="pt")["input_ids"]
    cities = torch.tensor(tokenizer.convert_tokens_to_ids(["Paris", "Lima"]))
    kept: list[torch.Tensor] = []

    def keep(residual: torch.Tensor) -> torch.Tensor:
        kept.append(residual)
        return residual

    with torch.no_grad():
        for seed in range(4):
            with (
                lm.mixed_after_cities(model, ids, cities, 1.0, torch.Generator().manual_seed(seed)),
                block_output(model, SITE_LAYER, keep),
            ):
                model(ids)
        with block_output(model, SITE_LAYER, keep):
            model(ids)
    *mixed, plain = kept
    other = [0, 1, 2, 5, 6]  # BOS, preposition, city, and what is further away
    assert all(torch.equal(x[:, other], plain[:, other]) for x in mixed)
    changed = [x for x in mixed if not torch.equal(x, plain)]
    assert changed
    for x in changed:
        for position in (3, 4):
            options = (plain[:, position], plain[:, position].flip(0))
            assert any(torch.equal(x[:, position], option) for option in options)
