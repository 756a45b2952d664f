"""`--model untrained:FOLDER`: a local Hugging Face model with the weights of its first moment, before training."""

import hashlib
from pathlib import Path

from saebench_meta import ModelIdentity, ModelLoader, SaebenchError, hookimpl

saebench_api = 1


def load(ref, *, revision, device, dtype):
    import torch
    from transformer_lens.model_bridge import TransformerBridge
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    from saebench_meta.models import LanguageModel

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(ref, local_files_only=True))
    bridge = TransformerBridge.boot_transformers(
        ref,
        hf_model=model.to(device, dtype),
        tokenizer=AutoTokenizer.from_pretrained(ref, local_files_only=True),
        device=str(device),
        dtype=dtype,
    )
    return LanguageModel(bridge, ref=f"untrained:{ref}")


def peek(ref, *, revision):
    config = Path(ref) / "config.json"
    if not config.is_file():
        raise SaebenchError(f"untrained: '{config}' is not there. Give a folder in Hugging Face format.")
    return ModelIdentity(ref, files={"config.json": hashlib.sha256(config.read_bytes()).hexdigest()})


@hookimpl
def saebench_language_models():
    return {"untrained": ModelLoader(load, peek, summary="a local model as it was before training")}
