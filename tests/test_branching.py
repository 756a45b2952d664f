"""Many edits of a few prompts: logits are those of the tokens repeated, and what stands before the hook runs once."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from saebench_meta import branching
from saebench_meta.models import LanguageModel, load_bridge

SITES = ("blocks.1.hook_resid_post", "blocks.2.hook_resid_pre", "blocks.3.hook_mlp_out", "blocks.2.attn.hook_z")


@pytest.fixture(scope="module")
def lm(stories_model_dir: Path) -> LanguageModel:
    return load_bridge(str(stories_model_dir), ref="stories")


def prompts(lm: LanguageModel, stories: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows of different texts and lengths, padded."""
    ends = torch.tensor([4, 9, 6, 9, 2])
    tokens = torch.tensor([[lm.bos_id or 0, *ids[:9]] for ids in lm.tokenize(stories[:5])])
    return tokens * (torch.arange(10) <= ends[:, None]), ends


def edited(lm: LanguageModel, tokens: torch.Tensor, hook: str) -> torch.Tensor:
    x = lm.activations(tokens, hook)
    return x + 0.3 * torch.randn(x.shape, generator=torch.Generator().manual_seed(0))


def one_by_one(lm: LanguageModel, tokens: torch.Tensor, hook: str, x: torch.Tensor, ends: torch.Tensor) -> torch.Tensor:
    """Each row alone and without padding."""
    rows = [
        lm.logits(tokens[[i], : end + 1], hook=hook, edit=lambda _, i=i, end=end: x[[i], : end + 1])[0, -1]
        for i, end in enumerate(ends.tolist())
    ]
    return torch.stack(rows)


@pytest.mark.parametrize("hook", SITES)
def test_branches_are_repeated_tokens(lm: LanguageModel, stories: list[str], hook: str) -> None:
    tokens, ends = prompts(lm, stories)
    x = edited(lm, tokens, hook)
    found = lm.branches(tokens, hook, x, ends)
    assert found.shape == (5, lm.vocab_size)
    torch.testing.assert_close(found, one_by_one(lm, tokens, hook, x, ends), atol=1e-5, rtol=0)


def test_branches_of_the_built_in_model_are_repeated_tokens() -> None:
    from saebench_plugins.atlas import load_model

    lm, hook, ends = load_model(), "blocks.1.hook_resid_post", torch.tensor([5, 3, 5])
    tokens = torch.randint(3, lm.vocab_size, (3, 6), generator=torch.Generator().manual_seed(0))
    x = edited(lm, tokens, hook)
    found = lm.branches(tokens, hook, x, ends)
    torch.testing.assert_close(found, one_by_one(lm, tokens, hook, x, ends), atol=1e-5, rtol=0)


def batches(lm: LanguageModel, tokens: torch.Tensor, hook: str, ends: torch.Tensor) -> tuple[set[int], set[int]]:
    """Sizes of the batches that the first and the last block see."""
    x = edited(lm, tokens, hook)
    lm.branches(tokens, hook, x, ends)  # the trial is made here
    seen: dict[int, set[int]] = {0: set(), lm.n_layers - 1: set()}
    handles = [
        lm._model.blocks[n].register_forward_pre_hook(
            lambda _, args, kwargs, n=n: seen[n].add(len((*args, *kwargs.values())[0])), with_kwargs=True
        )
        for n in seen
    ]
    try:
        lm.branches(tokens, hook, x, ends)
    finally:
        for handle in handles:
            handle.remove()
    first, last = seen.values()
    return first, last


def test_before_the_residual_stream_one_row_runs(lm: LanguageModel, stories: list[str]) -> None:
    tokens, ends = prompts(lm, stories)
    assert batches(lm, tokens, "blocks.2.hook_resid_pre", ends) == ({1}, {5})


def test_where_more_than_the_activation_passes_on_all_rows_run(lm: LanguageModel, stories: list[str]) -> None:
    """What a layer's MLP adds is not all that the next one gets."""
    tokens, ends = prompts(lm, stories)
    assert batches(lm, tokens, "blocks.3.hook_mlp_out", ends) == ({5}, {5})


def test_a_model_whose_code_minds_the_larger_batch_repeats(
    lm: LanguageModel, stories: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> torch.Tensor:
        raise RuntimeError("shape mismatch")

    monkeypatch.setattr(lm, "_branching", {})
    tokens, ends = prompts(lm, stories)
    x = edited(lm, tokens, SITES[0])
    monkeypatch.setattr(branching, "branched", refuse)
    torch.testing.assert_close(
        lm.branches(tokens, SITES[0], x, ends), one_by_one(lm, tokens, SITES[0], x, ends), atol=1e-5, rtol=0
    )


def test_activations_of_other_tokens_are_refused(lm: LanguageModel, stories: list[str]) -> None:
    tokens, ends = prompts(lm, stories)
    x = edited(lm, tokens, SITES[0])
    for bad in (x[:, :3], x[:2]):
        with pytest.raises(ValueError, match=r"for \(5, 10\) tokens"):
            lm.branches(tokens, SITES[0], bad, ends)
    with pytest.raises(ValueError, match="2 ends"):
        lm.branches(tokens, SITES[0], x, ends[:2])
