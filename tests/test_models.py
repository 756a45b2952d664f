"""The language model facade, on a small real model."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from saebench_meta.errors import SaebenchError
from saebench_meta.models import LanguageModel, load_bridge, next_token_log_probs, strict_fp32

HOOK = "blocks.2.hook_resid_post"


@pytest.fixture(scope="module")
def lm(stories_model_dir: Path) -> LanguageModel:
    return load_bridge(str(stories_model_dir), ref="stories")


@pytest.fixture(scope="module")
def tokens(lm: LanguageModel, stories: list[str]) -> torch.Tensor:
    return torch.tensor([[lm.bos_id or 0, *ids[:23]] for ids in lm.tokenize(stories[:3])])


def test_sizes_and_special_tokens_are_those_of_the_folder(lm: LanguageModel) -> None:
    assert (lm.d_model, lm.n_layers, lm.n_ctx, lm.vocab_size) == (64, 5, 512, 512)
    assert (lm.bos_id, lm.special_ids) == (1, frozenset({0, 1, 2}))
    assert (lm.processing, lm.dtype, lm.device.type) == ("raw", torch.float32, "cpu")
    assert lm.backend.startswith("transformer-lens ")


def test_no_special_tokens_are_added_by_tokenize(lm: LanguageModel) -> None:
    first, empty = lm.tokenize(["Once upon a time", ""])
    assert first and not lm.special_ids & set(first) and empty == []


def test_clean_cross_entropy_of_thirty_stories_is_the_reported_one(lm: LanguageModel, stories: list[str]) -> None:
    total, count = 0.0, 0
    for ids in lm.tokenize(stories[:30]):
        row = torch.tensor([[lm.bos_id or 0, *ids][:512]])
        evaluated = torch.tensor([[i not in lm.special_ids for i in row[0].tolist()]])
        _, losses, mask = next_token_log_probs(lm.logits(row), row, evaluated)
        total, count = total + losses.double().sum().item(), count + int(mask.sum())
    assert total / count == pytest.approx(1.3136, abs=5e-4)


def test_logits_and_activations_are_those_of_transformers(
    lm: LanguageModel, tokens: torch.Tensor, stories_model_dir: Path
) -> None:
    from transformers import AutoModelForCausalLM

    hf = AutoModelForCausalLM.from_pretrained(stories_model_dir, local_files_only=True)
    with torch.no_grad():
        out = hf(tokens, output_hidden_states=True)
    torch.testing.assert_close(lm.logits(tokens), out.logits, atol=2e-5, rtol=0)
    torch.testing.assert_close(lm.activations(tokens, HOOK), out.hidden_states[3], atol=2e-5, rtol=0)


def test_gpt2s_gelu_is_one_kernel_of_the_same_function(tmp_path: Path) -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    config = GPT2Config(vocab_size=50, n_positions=16, n_embd=8, n_layer=2, n_head=2, activation_function="gelu_new")
    plain = GPT2LMHeadModel(config).eval()
    with torch.no_grad():
        for name, weights in plain.named_parameters():
            if "mlp" in name:
                weights.normal_(0, 2)  # far into both tails of the activation
    plain.save_pretrained(tmp_path)
    lm = load_bridge(str(tmp_path), ref="gpt2")
    kinds = [type(m).__name__ for m in lm._model.original_model.modules()]
    assert "NewGELUActivation" not in kinds and kinds.count("GELU") == 2
    ids = torch.randint(0, 50, (3, 12))
    with torch.no_grad():
        torch.testing.assert_close(lm.logits(ids), plain(ids).logits, atol=1e-5, rtol=1e-5)


def test_losses_are_those_of_the_predicted_tokens() -> None:
    logits = torch.zeros(1, 3, 4)
    logits[0, 0, 2] = 1.0
    log_probs, losses, mask = next_token_log_probs(
        logits, torch.tensor([[1, 2, 3]]), torch.tensor([[True, True, True]])
    )
    whole = (torch.tensor(1.0).exp() + 3).log()
    torch.testing.assert_close(losses, torch.stack([whole - 1, torch.tensor(4.0).log()]))
    torch.testing.assert_close(log_probs[0], torch.tensor([0.0, 0.0, 1.0, 0.0]) - whole)
    assert mask.tolist() == [[False, True, True]]


def test_padding_on_the_right_moves_nothing(lm: LanguageModel, tokens: torch.Tensor) -> None:
    n = tokens.shape[1]
    for extra in (1, 40):
        padded = torch.cat([tokens, torch.full((len(tokens), extra), 7)], 1)
        for hook in (HOOK, "blocks.1.attn.hook_z"):
            a, b = lm.activations(tokens, hook), lm.activations(padded, hook)[:, :n]
            torch.testing.assert_close(a, b, atol=1e-5, rtol=0)
        torch.testing.assert_close(lm.logits(tokens), lm.logits(padded)[:, :n], atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    "hook", ["hook_embed", "blocks.0.hook_resid_pre", "blocks.4.hook_resid_post", "blocks.2.hook_mlp_out"]
)
def test_every_site_is_read_and_edited(lm: LanguageModel, tokens: torch.Tensor, hook: str) -> None:
    assert lm.activations(tokens, hook).shape == (*tokens.shape, 64)
    clean = lm.logits(tokens)
    assert torch.equal(lm.logits(tokens, hook=hook, edit=lambda x: x), clean)
    assert (lm.logits(tokens, hook=hook, edit=torch.zeros_like) - clean).abs().max() > 0.1


def test_heads_are_joined_for_reading_and_editing(lm: LanguageModel, tokens: torch.Tensor) -> None:
    hook, seen = "blocks.2.attn.hook_z", []
    z = lm.activations(tokens, hook)

    def edit(x: torch.Tensor) -> torch.Tensor:
        seen.append(x)
        return x.clone()

    assert torch.equal(lm.logits(tokens, hook=hook, edit=edit), lm.logits(tokens))
    assert z.shape == (*tokens.shape, 64) and torch.equal(seen[0], z)


def test_reading_stops_after_the_sites_layer(lm: LanguageModel, tokens: torch.Tensor) -> None:
    ran: list[int] = []
    handles = [block.register_forward_hook(lambda *_, n=n: ran.append(n)) for n, block in enumerate(lm._model.blocks)]
    try:
        lm.activations(tokens, "blocks.1.hook_resid_pre")
    finally:
        for handle in handles:
            handle.remove()
    assert max(ran, default=-1) <= 1


def test_an_error_in_an_edit_leaves_no_hook_behind(lm: LanguageModel, tokens: torch.Tensor) -> None:
    clean = lm.logits(tokens)

    def broken(x: torch.Tensor) -> torch.Tensor:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        lm.logits(tokens, hook=HOOK, edit=broken)
    with pytest.raises(ValueError, match="returned"):
        lm.logits(tokens, hook=HOOK, edit=lambda x: x[:, :1])
    assert torch.equal(lm.logits(tokens), clean)


def test_reading_leaves_the_full_model_as_it_was(lm: LanguageModel, tokens: torch.Tensor) -> None:
    clean = lm.logits(tokens)
    lm.activations(tokens, "blocks.0.hook_resid_pre")
    assert torch.equal(lm.logits(tokens), clean)


def test_gradients_are_off(lm: LanguageModel, tokens: torch.Tensor) -> None:
    assert not any(p.requires_grad for p in lm._model.parameters())
    x = lm.activations(tokens, HOOK)
    assert not x.requires_grad and not x.is_inference()


@pytest.mark.parametrize(
    ("hook", "d_in", "message"),
    [
        ("blocks.2.hook_residpost", None, "did you mean 'blocks.2.hook_resid_post'"),
        ("blocks.5.hook_resid_post", None, "layers 0 to 4"),
        (HOOK, 128, "64 wide, the SAE reads 128"),
        ("blocks.2.attn.hook_pattern", None, "not one vector per token"),
        ("blocks.2.hook_mlp_in", None, "cannot be read"),
        ("nonsense", None, "is not in model 'stories'"),
    ],
)
def test_a_hook_that_cannot_be_read_is_refused(lm: LanguageModel, hook: str, d_in: int | None, message: str) -> None:
    with pytest.raises(SaebenchError, match=message):
        lm.check_hook(hook, d_in)


def test_an_unknown_hook_is_never_passed_over(lm: LanguageModel, tokens: torch.Tensor) -> None:
    with pytest.raises(SaebenchError, match="is not in model"):
        lm.activations(tokens, "blocks.2.nonsense")
    with pytest.raises(SaebenchError, match="is not in model"):
        lm.logits(tokens, hook="blocks.2.nonsense", edit=lambda x: x)


def test_a_hook_that_does_not_fire_is_an_error(
    lm: LanguageModel, tokens: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lm, "_run", lambda *_: None)
    with pytest.raises(SaebenchError, match="gave no activation"):
        lm.activations(tokens, "blocks.2.hook_resid_pre")


def test_the_model_runs_no_further_than_the_hook(lm: LanguageModel, tokens: torch.Tensor) -> None:
    ran: list[str] = []
    last = f"blocks.{lm.n_layers - 1}.hook_resid_post"
    parts = {"blocks.0.hook_mlp_out", "blocks.1.hook_mlp_out", "unembed.hook_in"} & lm._hooks
    more = [lm._model.hook_dict[name].register_forward_hook(lambda *_, name=name: ran.append(name)) for name in parts]
    try:
        lm.activations(tokens, "blocks.0.hook_resid_post")
        assert ran == ["blocks.0.hook_mlp_out"]
        x = lm.activations(tokens, last)
        assert "unembed.hook_in" in parts and "unembed.hook_in" not in ran
    finally:
        for handle in more:
            handle.remove()
    kept: list[torch.Tensor] = []
    lm.logits(tokens, hook=last, edit=lambda before: kept.append(before) or before)  # type: ignore[func-returns-value]
    assert torch.equal(x, kept[0])


def test_activations_of_a_hooked_transformer_are_those_it_gives(tokens: torch.Tensor) -> None:
    try:
        from transformer_lens import HookedTransformer, HookedTransformerConfig
    except ImportError:
        pytest.skip("this release of transformer-lens has no HookedTransformer")
    config = HookedTransformerConfig(
        n_layers=2,
        d_model=8,
        n_ctx=64,
        d_head=4,
        n_heads=2,
        d_mlp=16,
        act_fn="gelu",
        d_vocab=1000,
        device="cpu",
        seed=0,
    )
    model = HookedTransformer(config)
    lm = LanguageModel(model, ref="own")
    for hook in ("blocks.0.hook_resid_pre", "blocks.1.hook_resid_post"):
        with torch.no_grad():
            expected = model.run_with_cache(tokens)[1][hook]
        assert torch.equal(lm.activations(tokens, hook), expected)
    assert not any(point.fwd_hooks for point in model.hook_dict.values())  # none is left behind


def test_strict_fp32_is_strict_inside_and_restores_after_an_error() -> None:
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("high")
        with pytest.raises(KeyError), strict_fp32():
            assert torch.backends.cuda.matmul.fp32_precision == "ieee"
            raise KeyError
        assert torch.backends.cuda.matmul.fp32_precision == "tf32"
        assert torch.get_float32_matmul_precision() == "high"
    finally:
        torch.set_float32_matmul_precision(before)


def test_loading_touches_no_network(stories_model_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import socket

    def refuse(*_: object) -> None:
        raise AssertionError("network touched")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    assert load_bridge(str(stories_model_dir), ref="stories").n_layers == 5


def test_a_model_spread_by_a_device_map_computes_the_same(
    lm: LanguageModel, tokens: torch.Tensor, stories_model_dir: Path
) -> None:
    spread = load_bridge(str(stories_model_dir), ref="stories", device_map="auto")
    assert (spread.device.type == "cuda") == torch.cuda.is_available()
    torch.testing.assert_close(spread.logits(tokens).cpu(), lm.logits(tokens), atol=2e-5, rtol=0)
    torch.testing.assert_close(spread.activations(tokens, HOOK).cpu(), lm.activations(tokens, HOOK), atol=2e-5, rtol=0)
