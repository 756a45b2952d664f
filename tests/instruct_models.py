"""Small random instruct models in Hugging Face folders: rotary positions and a chat template, or neither."""

from __future__ import annotations

import string
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers
from tokenizers import decoders as decoding
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

CHAT = (
    "{% for m in messages %}<|start|>{{ m['role'] }}\n{{ m['content'] }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant\n{% endif %}"
)
SPECIAL = {"bos_token": "<s>", "eos_token": "<|end|>", "pad_token": "<pad>"}
POSITIONS = 256


def bytes_tokenizer(template: str | None = CHAT) -> PreTrainedTokenizerFast:
    """A token a byte: ` 1` is two tokens."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE(vocab={letter: i for i, letter in enumerate(letters)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoding.ByteLevel()
    backend.add_special_tokens([AddedToken(t, special=True) for t in ("<|start|>", *SPECIAL.values())])
    return PreTrainedTokenizerFast(tokenizer_object=backend, chat_template=template, **SPECIAL)


def pieces_tokenizer() -> PreTrainedTokenizerFast:
    """As SentencePiece has it, spaces are letters: ` 1` is one token and another than `1`. No chat template."""
    letters = ["<unk>", "▁", *string.printable[:94], "\n"]
    letters += [f"▁{k}" for k in range(1, 10)]
    vocab = {letter: i for i, letter in enumerate(letters)}
    backend = Tokenizer(models.BPE(vocab=vocab, merges=[("▁", str(k)) for k in range(1, 10)], unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never")
    backend.decoder = decoding.Metaspace(prepend_scheme="never")
    return PreTrainedTokenizerFast(tokenizer_object=backend, **SPECIAL)


def rotary(vocabulary: int) -> PreTrainedModel:
    """A Llama of two layers."""
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    heads: dict[str, Any] = {"num_attention_heads": 4, "num_key_value_heads": 2}
    shape = LlamaConfig(
        vocab_size=vocabulary, max_position_embeddings=POSITIONS, initializer_range=0.8, **sizes, **heads
    )
    return LlamaForCausalLM(shape)


def absolute(vocabulary: int) -> PreTrainedModel:
    """A GPT-2 of two layers."""
    torch.manual_seed(0)
    shape = GPT2Config(
        vocab_size=vocabulary, n_positions=POSITIONS, n_embd=32, n_layer=2, n_head=4, initializer_range=0.8
    )
    return GPT2LMHeadModel(shape)


def save(folder: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> Path:
    """The folder, with both in it."""
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def log_prob(model: PreTrainedModel, ids: Sequence[int], more: Sequence[int]) -> float:
    """ln p(more | ids) by one forward pass on one row, in float64 from the logits on."""
    with torch.no_grad():
        logits = model(torch.tensor([[*ids, *more]])).logits[0].double().log_softmax(1)
    return sum(float(logits[len(ids) - 1 + j, token]) for j, token in enumerate(more))
